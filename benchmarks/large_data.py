"""Training on a memory-mapped file of a million images: what stays in memory.

    python benchmarks/large_data.py --images 1000000 --out benchmarks/results/large_data

The file (2.4 GB for a million) is written first, in the folder that TMPDIR names.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from notes import keep

import condgen
from condgen.training.callbacks import LambdaCallback


def anonymous() -> float:
    """Resident memory that is no file's, MB; pages of the file can be given back at any time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    n = options.images
    with tempfile.TemporaryDirectory() as folder:
        path, seed = Path(folder) / "images.npy", condgen.load_smears(2000)
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (n, 3, 28, 28))
        for start in range(0, n, 2000):
            images[start : start + 2000] = seed.images[: n - start]
        images.flush()
        del images
        labels = np.resize(seed.labels, n)
        splits = {"train": slice(0, n - 1000), "validation": slice(n - 1000, n)}
        data = condgen.LabelledImages(np.load(path, mmap_mode="r"), labels, seed.class_names, splits)
        torch.manual_seed(0)
        model = condgen.conditional_vae(data.image_shape, data.num_classes, latent=16, width=8)
        condgen.fit(model, seed, epochs=1, batch_size=512, progress=False)  # what torch itself takes
        before, seen = anonymous(), []
        history = condgen.fit(
            model,
            data,
            epochs=1,
            batch_size=512,
            progress=False,
            callbacks=[LambdaCallback(on_step=lambda s: seen.append(anonymous()) if s.step % 50 == 1 else None)],
        )
    result = (
        f"{n:,} images of 28x28x3 ({n * 2352 / 1e9:.2f} GB): anonymous resident memory {before:.0f} MB before, "
        f"{max(seen):.0f} MB at most during an epoch, {max(seen) - before:+.0f} MB; "
        f"{history['images_per_second'][0]:,.0f} images/s."
    )
    keep(options.out, "Data larger than memory", result)


if __name__ == "__main__":
    main()
