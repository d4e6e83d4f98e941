"""Writing: labelled images to a file that is read back, by condgen and by others."""

__all__ = ["write_npz"]

from pathlib import Path
from typing import Any

import numpy as np

from condgen.data.names import PROBABILITIES, SYNTHETIC
from condgen.io.atomic import replacing


def write_npz(data: Any, path: str | Path) -> Path:
    """Write a set to an npz file that :func:`condgen.load_npz` reads, whole or not at all.

    In MedMNIST's layout, the `medmnist` package reads it as well. Of the factors a teacher's probabilities and which
    images were generated are kept, for training images.

    Args:
        data: labelled images, with splits, or without, which it is then read back with.
        path: of the file; its folder is made where it is missing.

    Raises:
        ValueError: for another ending than .npz.
        OSError: if it cannot be written.

    Example:
        >>> import condgen, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cells = condgen.LabelledImages(np.zeros((30, 1, 8, 8), np.uint8), np.arange(30) % 2).split()
        ...     condgen.load_npz(write_npz(cells, Path(folder, "cells.npz"))).validation.class_counts
        {'class 0': 2, 'class 1': 2}
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"Expected a path ending in .npz; got {path}.")
    arrays: dict[str, np.ndarray] = {"class_names": np.array([str(name) for name in data.class_names])}
    for name, part in {name: getattr(data, name) for name in data.splits}.items() if data.splits else [("", data)]:
        prefix = {"": "", "validation": "val_"}.get(name, f"{name}_")
        images = np.moveaxis(part.images, 1, -1)
        arrays[f"{prefix}images"] = images[..., 0] if images.shape[-1] == 1 else images
        small = data.kind == "class" and data.num_classes <= 256
        labels = part.labels.astype(np.uint8) if small else part.labels  # MedMNIST's own, where it suffices
        arrays[f"{prefix}labels"] = labels[:, None] if labels.ndim == 1 else labels
        if name in ("", "train"):
            known = [factor for factor in (PROBABILITIES, SYNTHETIC) if factor in part.factors]
            arrays |= {f"{prefix}{factor}": part.factors[factor] for factor in known}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path
