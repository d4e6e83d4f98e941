"""Encoder and decoder variants side by side: speed, memory and quality after the same time, and quality against time.

    python benchmarks/variants.py --data bloodmnist --minutes 2 --out benchmarks/results/variants

Each variant trains for the same minutes on the same data, with a discretised logistic likelihood, so that one number,
the bound in bits per dimension on validation images, ranks them; no classifier takes part. Beside it: how well images
come back (PSNR of the mean reconstruction), images per second in training and sampling, peak memory, weights. A variant
that is done already in `--runs` is not trained again.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

import condgen
from condgen import recipes
from condgen.apps.timing import machine, peak
from condgen.distributions.likelihoods import DiscretizedLogistic
from condgen.training.optimizers import adamw

matplotlib.use("Agg")


def reference(shape: tuple[int, int, int], classes: int) -> condgen.ConditionalVAE:
    """The reference's networks, with two parameters a pixel instead of one."""
    model = recipes.bloodmnist_reference(False, shape, classes)
    doubled = recipes.bloodmnist_reference(False, (2 * shape[0], *shape[1:]), classes)
    model.decoder, model.likelihood = doubled.decoder, DiscretizedLogistic()
    return model


def numbers(**options: Any) -> Callable[..., condgen.ConditionalVAE]:
    return lambda shape, classes: condgen.conditional_vae(shape, classes, likelihood=DiscretizedLogistic(), **options)


VARIANTS: dict[str, Callable[..., condgen.ConditionalVAE]] = {
    "reference (16 to 512, down to 1x1)": reference,
    "conv 16": numbers(width=16),
    "conv 32": numbers(width=32),
    "conv 64": numbers(width=64),
    "resnet 32, vector of 128": numbers(network="resnet", width=32),
    "resnet 32, map 4x7x7": numbers(latent=(4, 7, 7), width=32),
    "resnet 48, map 4x7x7": numbers(latent=(4, 7, 7)),
    "resnet 48, map 8x7x7": numbers(latent=(8, 7, 7)),
    "resnet 48, two blocks, map 4x7x7": numbers(latent=(4, 7, 7), depth=2),
}


def train(name: str, source: str, minutes: float, folder: Path) -> None:
    """One variant, in a process of its own: its figures and its curve go to a file."""
    data = condgen.load_data(source)
    torch.manual_seed(0)
    model = VARIANTS[name](data.image_shape, data.num_classes)
    history = condgen.fit(
        model, data, minutes=minutes, batch_size=128, optimizer=partial(adamw, lr=1e-3), clip=100.0, progress=False
    )
    memory = peak(torch.device("cpu"))
    validation, labels = data.validation, np.arange(2048) % data.num_classes
    back = model.reconstruct(validation.images, validation.labels)
    error = (back - torch.as_tensor(validation.images) / 255).square().flatten(1).mean(1)
    model.sample(labels)
    started = time.perf_counter()
    model.sample(labels)
    sampling = len(labels) / (time.perf_counter() - started)
    bits = 1 / (math.prod(data.image_shape) * math.log(2))
    found = {
        "variant": name,
        "weights": sum(p.numel() for p in model.parameters()),
        "training": statistics.median(history["images_per_second"]),
        "sampling": sampling,
        "memory": memory,
        "epochs": len(history["seconds"]),
        "psnr": float((-10 * error.log10()).mean()),
        "seconds": np.cumsum(history["seconds"]).tolist(),
        "bits": [bits * loss for loss in history["validation_loss"]],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{list(VARIANTS).index(name)}.json").write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="smears")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--runs", type=Path, default=Path("runs/variants"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    context, rows = multiprocessing.get_context("spawn"), []
    for number, name in enumerate(VARIANTS):
        file = options.runs / f"{number}.json"
        if not file.exists():
            print(name, file=sys.stderr, flush=True)
            worker = context.Process(target=train, args=(name, options.data, options.minutes, options.runs))
            worker.start()
            worker.join()
        rows.append(json.loads(file.read_text()))
    lines = ["# Encoder and decoder variants", "", ", ".join(f"{k} {v}" for k, v in machine().items()), ""]
    lines += [f"    python benchmarks/variants.py {' '.join(sys.argv[1:])}", ""]
    lines += ["| variant | bits per dimension | PSNR, dB | epochs | training, images/s | sampling, images/s "]
    lines[-1] += "| memory, GiB | weights |"
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['variant']} | {min(row['bits']):.3f} | {row['psnr']:.1f} | {row['epochs']} "
            f"| {row['training']:,.0f} | {row['sampling']:,.0f} | {row['memory']:.2f} | {row['weights']:,} |"
        )
    print("\n".join(lines))
    if options.out:
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
        options.out.with_suffix(".json").write_text(
            json.dumps({"machine": machine(), "variants": rows}, indent=1) + "\n"
        )
        plot(rows, options.out.with_suffix(".png"))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Quality against time, a line a variant."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for row in rows:
        axes.plot(row["seconds"], row["bits"], label=row["variant"], linewidth=1.5)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("bits per dimension on validation (lower is better)")
    axes.set_ylim(top=np.percentile([b for row in rows for b in row["bits"]], 97))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
