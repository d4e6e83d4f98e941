"""
Many devices
============

The same call on one device and on several, and samples drawn by several workers, byte for byte those of one. Run as a
script: ``python 13_devices.py``. Needs ``pip install condgen``.
"""

import sys
import tempfile
from pathlib import Path

import torch

import condgen
from condgen.sampling.shards import write_samples

SMOKE = "--smoke" in sys.argv
IMAGES, SIZE, EPOCHS = (160, 16, 1) if SMOKE else (6000, 28, 10)


def train(devices: int, out: Path) -> condgen.ConditionalVAE:
    """A batch is split over the devices; states are kept, so that the same call goes on where it was stopped."""
    torch.manual_seed(0)  # each process builds the same model
    cells = condgen.load_smears(IMAGES, size=SIZE)
    model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=8, width=16)
    condgen.fit(model, cells, epochs=EPOCHS, devices=devices, out=out, resume="auto", progress=False)
    return condgen.load(out)


if __name__ == "__main__":
    # On a machine with several GPUs: devices=torch.cuda.device_count(), or condgen train --devices 4.
    here = Path(tempfile.mkdtemp())
    model = train(max(1, torch.cuda.device_count()), here / "run")

    # Three workers, here one after the other: each draws its part, the last to end puts the parts together.
    labels = torch.arange(300) % 8
    for k in (1, 2, 3):
        write_samples(model, labels, here / "parts.npz", seed=0, shard=(k, 3))
    write_samples(model, labels, here / "whole.npz", seed=0)
    assert (here / "parts.npz").read_bytes() == (here / "whole.npz").read_bytes()
    print("three workers wrote what one writes, byte for byte")
