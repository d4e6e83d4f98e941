"""A training step of a velocity network with attention written out, against PyTorch's fused attention, interleaved.

    python benchmarks/attention.py --rounds 15 --out benchmarks/results/attention

The networks of the recipes `sharp` (latents of 4x7x7) and `flow` (images of 3x28x28), batch 128, bfloat16 autocast.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from notes import keep
from torch import nn

from condgen.nn import velocities
from condgen.nn.velocities import ResNetVelocity, UNetVelocity

BATCH, CLASSES, COMPONENTS = 128, 8, 64


def step(network: nn.Module, shape: tuple[int, ...]) -> float:
    """Seconds of a forward and a backward pass."""
    z, t, c = torch.randn(BATCH, *shape), torch.rand(BATCH), torch.eye(CLASSES).repeat(BATCH // CLASSES, 1)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        slope = network(z, t, c, torch.zeros(BATCH, dtype=torch.int64), torch.zeros(BATCH))
    slope.float().square().mean().backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    few, lines = velocities.FEW, ["| network | fused, ms | written out, ms | ratio |", "|---|---|---|---|"]
    for name, build, shape, components in (
        ("sharp", ResNetVelocity, (4, 7, 7), COMPONENTS),
        ("flow", UNetVelocity, (3, 28, 28), 0),
    ):
        network, times = build(shape, CLASSES, components), {0: [], few: []}
        for _ in range(options.rounds + 2):
            for velocities.FEW in times:
                times[velocities.FEW].append(step(network, shape))
        fused, written = (1e3 * statistics.median(found[2:]) for found in times.values())
        lines.append(f"| {name} | {fused:.0f} | {written:.0f} | {fused / written:.2f} |")
    keep(options.out, "Attention in training", "\n".join(lines))


if __name__ == "__main__":
    main()
