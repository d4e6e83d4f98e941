"""What the engine costs beside the steps it takes: `fit` against a bare loop with the same step, interleaved.

    python benchmarks/engine_overhead.py --rounds 7 --out benchmarks/results/engine_overhead

Both train the reference network by the same objective, on the same batches with the same noise, at batch 128. The bare
loop has nothing else: no Fabric, no schedules, no totals, no training states, no files. `fit` keeps all of them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from notes import keep

import condgen
from condgen.data.batches import batches
from condgen.losses.elbo import ELBO
from condgen.random import Use, normals
from condgen.recipes import bloodmnist_reference
from condgen.training.optimizers import adam


def bare(images: Any, epochs: int) -> float:
    """Seconds of a loop that does nothing but its steps."""
    model, objective = bloodmnist_reference(), ELBO()
    condgen.trim(model)
    optimizer, beta = adam(model.parameters()), torch.ones(())
    x_all, y_all = torch.as_tensor(images.images), torch.as_tensor(images.labels)
    model.train()
    began = time.perf_counter()
    for epoch in range(epochs):
        for index, x, y in batches(x_all, y_all, 128, seed=0, epoch=epoch):
            noise = normals(model.noise_shapes, 0, index, Use.TRAINING, epoch)
            optimizer.zero_grad()
            objective.loss(model, x, y, noise, beta=beta)["loss"].backward()
            optimizer.step()
    return time.perf_counter() - began


def engine(images: Any, epochs: int) -> float:
    """Seconds of `fit`, its folder included."""
    model = bloodmnist_reference()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        condgen.fit(model, images, epochs=epochs, batch_size=128, out=folder, accelerator="cpu", progress=False)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    images = condgen.load_smears(options.images)
    images = images.subset(range(len(images)))  # no splits: both train on all
    for loop in (bare, engine):
        loop(images.subset(range(512)), 1)  # warm
    pairs = []
    for k in range(options.rounds):
        order = (bare, engine) if k % 2 else (engine, bare)
        seconds = {loop.__name__: loop(images, options.epochs) for loop in order}
        pairs.append((seconds["bare"], seconds["engine"]))
        print(f"round {k + 1}: bare {pairs[-1][0]:.2f} s, engine {pairs[-1][1]:.2f} s", flush=True)
    ratios = sorted(engine / bare for bare, engine in pairs)
    result = (
        f"fit takes {statistics.median(ratios) - 1:+.1%} of the bare loop's time (rounds from {ratios[0] - 1:+.1%} to "
        f"{ratios[-1] - 1:+.1%}); bare {statistics.median(b for b, _ in pairs):.2f} s, {options.images:,} images, "
        f"{options.epochs} epoch(s)."
    )
    keep(options.out, "What the engine costs", result)


if __name__ == "__main__":
    main()
