"""How training's cost grows with image size, batch, data-set size, threads and processes; exponents fitted.

    python benchmarks/scaling.py --out benchmarks/results/scaling

Each row is the median of rounds that take the settings in turn. The exponent is the slope of log seconds over log
setting: 0 is flat, 1 proportional. Data-set size: whole epochs of `condgen.fit` of a small network over images made up
for the purpose. Processes: each trains a network of its own with one thread.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import condgen
from condgen.apps.benchmarking import Variant, build
from condgen.apps.timing import machine
from condgen.losses.elbo import ELBO
from condgen.nn.memory import keep_freed_memory
from condgen.random import Use, normals
from condgen.training.optimizers import adam

STEPS = 8  # of a round


def stepping(size: int = 28, batch: int = 128, network: str = "reference") -> Callable[[], float]:
    """A function that trains some steps and tells the seconds an image took."""
    keep_freed_memory()
    model = build(Variant(network, 32, size, batch))
    optimizer, index = adam(model.parameters()), torch.arange(batch)
    x, y = torch.rand(batch, 3, size, size), index % 8

    def work() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            noise = normals(model.noise_shapes, 0, index, Use.TRAINING)
            optimizer.zero_grad()
            ELBO().loss(model, x, y, noise)["loss"].backward()
            optimizer.step()
        return (time.perf_counter() - started) / (STEPS * batch)

    work()
    return work


def epoch(images: int) -> Callable[[], float]:
    """The same for a whole epoch of so many images, from memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, 28, 28), dtype=np.uint8)
    data = condgen.LabelledImages(pixels, np.arange(images) % 8, ())
    model = condgen.conditional_vae((3, 28, 28), 8, latent=8, width=4)

    def work() -> float:
        history = condgen.fit(model, data, epochs=1, batch_size=128, progress=False, accelerator="cpu")
        return history["seconds"][0] / images

    return work


def on_threads(count: int) -> Callable[[], float]:
    inner = stepping(network="resnet_map")

    def work() -> float:
        usual = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return inner()
        finally:
            torch.set_num_threads(usual)

    return work


def alone(barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    work = stepping(network="resnet_map")
    barrier.wait()
    results.put(work())


def in_processes(count: int) -> Callable[[], float]:
    """Seconds an image of all processes together."""

    def work() -> float:
        context = multiprocessing.get_context("spawn")
        barrier, results = context.Barrier(count), context.Queue()
        workers = [context.Process(target=alone, args=(barrier, results)) for _ in range(count)]
        for worker in workers:
            worker.start()
        rates = [1 / results.get() for _ in workers]
        for worker in workers:
            worker.join()
        return 1 / sum(rates)

    return work


def measured(make: Callable[[int], Callable[[], float]], settings: Sequence[int], rounds: int) -> dict[int, float]:
    """Median seconds an image at each setting."""
    works = {setting: make(setting) for setting in settings}
    found: dict[int, list[float]] = {setting: [] for setting in settings}
    for _ in range(rounds):
        for setting, work in works.items():
            found[setting].append(work())
    return {setting: statistics.median(values) for setting, values in found.items()}


def exponent(found: dict[int, float]) -> float:
    """The slope of log seconds over log setting."""
    x, y = ([math.log(v) for v in values] for values in (found.keys(), found.values()))
    return float(np.polyfit(x, y, 1)[0])


SWEEPS: dict[str, tuple[Callable[[int], Callable[[], float]], tuple[int, ...], int]] = {
    "image size, reference": (lambda n: stepping(size=n, batch=32), (28, 64, 128), 7),
    "image size, residual networks": (lambda n: stepping(size=n, batch=32, network="resnet_map"), (28, 64, 128), 5),
    "batch, reference": (lambda n: stepping(batch=n), (8, 32, 128, 512), 7),
    "threads, residual networks": (on_threads, (1, 2), 5),
    "processes of one thread, residual networks": (in_processes, (1, 2), 3),
    "images in the data set, a small network": (epoch, (10_000, 100_000, 1_000_000), 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="sweeps whose name starts with one of these")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = [name for name in SWEEPS if not options.only or name.startswith(tuple(options.only))]
    lines = ["# How training's cost grows", "", ", ".join(f"{k} {v}" for k, v in machine().items()), ""]
    lines += [f"    python benchmarks/scaling.py {' '.join(sys.argv[1:])}", ""]
    kept: dict[str, Any] = {"machine": machine()}
    for name in chosen:
        make, settings, rounds = SWEEPS[name]
        print(name, file=sys.stderr, flush=True)
        found = measured(make, settings, rounds)
        kept[name] = {"seconds per image": found, "exponent": exponent(found)}
        lines += [f"## {name.capitalize()}", "", f"| {name.split(',')[0]} | ms an image | images/s |", "|---|---|---|"]
        lines += [f"| {setting:,} | {1e3 * value:.3g} | {1 / value:,.0f} |" for setting, value in found.items()]
        lines += ["", f"Exponent {exponent(found):.2f}.", ""]
    print("\n".join(lines))
    if options.out:
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
        options.out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
