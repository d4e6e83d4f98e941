"""Readers: a path or a name in, labelled images with train, validation and test splits out.

Contract: `load_…(path or name, …) → LabelledImages`, uint8, with its splits. Whatever is wrong with a file is
a ValueError that names the file; nothing a file holds is ever executed. :func:`load_data` picks the reader.
"""

__all__ = ["load_data", "load_folder", "load_medmnist", "load_npz"]

import hashlib
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from condgen.data.folders import load_folder, split_folders
from condgen.data.images import LabelledImages
from condgen.data.npz import load_npz, split_arrays
from condgen.data.smears import load_smears
from condgen.io.progress import working

MEDMNIST_SIZES = (28, 64, 128, 224)
PREFIXES = {"train": "train_", "validation": "val_", "test": "test_"}  # of MedMNIST's arrays


def load_data(source: str | Path, size: int = 28, n: int = 5000, seed: int = 0) -> LabelledImages:
    """The images behind a name or path: "smears", a MedMNIST flag, an npz file or a folder of class folders.

    Names come first: a folder called "smears" is reached as "./smears", or as a `Path`. A flag may end in a size of
    MedMNIST's: "bloodmnist64".

    Args:
        source: what to load.
        size: height and width in pixels; an npz file keeps its own, and so does a flag that ends in one.
        n: number of images to draw, for "smears" only.
        seed: of the drawing, for "smears" only.

    Raises:
        ValueError: if `source` is none of these; otherwise as the reader it leads to.

    Example:
        >>> load_data("smears", n=100).image_shape
        (3, 28, 28)
    """
    if source == "smears":
        return load_smears(n, size, seed)
    path = Path(source).expanduser()
    if path.suffix.lower() == ".npz":
        return load_npz(path)
    # The ending spares everyone else the import of medmnist, which takes seconds.
    flag, own = sized(source) if isinstance(source, str) else ("", None)
    if flag.endswith("mnist") and flag in medmnist_flags():
        return load_medmnist(flag, own or size)
    if path.is_dir():
        return load_folder(path, size)
    raise ValueError(
        f'Expected "smears", a MedMNIST flag ({", ".join(medmnist_flags())}), a path ending in .npz, '
        f"or a folder with one subfolder per class; got {str(source)!r}."
    )


def in_splits(source: str | Path) -> bool:
    """Whether data come in splits of their own, and are not split when they are read.

    Args:
        source: as :func:`load_data` takes it.

    Example:
        >>> in_splits("bloodmnist"), in_splits("smears")
        (True, True)
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return bool(split_folders(path))
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            return "train" in split_arrays(file.files)
    return True


def load_medmnist(flag: str, size: int = 28, root: str | Path | None = None, download: bool = True) -> LabelledImages:
    """A 2D MedMNIST set with its official splits; a file that is present is used as it is.

    Labels are class labels (N,), for ChestMNIST several labels an image (N, 14).

    References:
        MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image classification
        (Yang et al., 2023), https://doi.org/10.1038/s41597-022-01721-8

    Args:
        flag: the set's name in `medmnist.INFO`, such as "bloodmnist".
        size: height and width in pixels: 28, 64, 128 or 224.
        root: folder of the files; by default the environment variable CONDGEN_DATA, else medmnist's own
            folder, ~/.medmnist.
        download: fetch an absent file; it appears in the folder only once it is complete.

    Raises:
        ValueError: for an unknown or 3D flag, another size, or a file that is damaged or holds other images.
        FileNotFoundError: if the file is absent and not downloaded; the message says which file to put where.

    Warns:
        UserWarning: if the file differs from the official one; the message says in what.

    Example:
        >>> load_medmnist("bloodmnist", root="/no/such/folder", download=False)
        Traceback (most recent call last):
            ...
        FileNotFoundError: Expected the file bloodmnist.npz in the folder /no/such/folder; it is not there...
    """
    info = medmnist_info(flag)
    if size not in MEDMNIST_SIZES:
        raise ValueError(f"Expected a size of 28, 64, 128 or 224 for MedMNIST; got {size}.")
    suffix = "" if size == 28 else f"_{size}"
    path = medmnist_folder(root) / f"{flag}{suffix}.npz"
    if not path.is_file():
        fetch(path, info, size, info[f"url{suffix}"], download)
    images = load_npz(path, [info["label"][key] for key in sorted(info["label"], key=int)])
    expected = (info["n_channels"], size, size)
    if images.image_shape != expected:
        raise ValueError(f"{path}: Expected images of {expected}; got {images.image_shape}. Rename the file.")
    differences = unofficial(path, images, info, info[f"MD5{suffix}"])
    if differences:
        warnings.warn(f"{path} is not the official file: {'; '.join(differences)}.", stacklevel=2)
    return images


def sized(name: str) -> tuple[str, int | None]:
    """Split a name such as "bloodmnist64" into a MedMNIST flag and a size in pixels; None where it has no size.

    Example:
        >>> sized("bloodmnist64"), sized("bloodmnist_128"), sized("bloodmnist")
        (('bloodmnist', 64), ('bloodmnist', 128), ('bloodmnist', None))
    """
    found = re.fullmatch(rf"(.*mnist)_?({'|'.join(map(str, MEDMNIST_SIZES))})", name)
    return (found[1], int(found[2])) if found else (name, None)


def medmnist_flags() -> list[str]:
    """Names of the 2D sets."""
    from medmnist import INFO

    return [flag for flag, info in INFO.items() if not info["python_class"].endswith("3D")]


def medmnist_info(flag: str) -> dict[str, Any]:
    """Medmnist's facts about a 2D set."""
    from medmnist import INFO

    if flag in medmnist_flags():
        return INFO[flag]
    got = f"the 3D set {flag!r}" if flag in INFO else repr(flag)
    raise ValueError(f"Expected a 2D MedMNIST set, one of {', '.join(medmnist_flags())}; got {got}.")


def medmnist_folder(root: str | Path | None) -> Path:
    """Where the files lie: `root`, else CONDGEN_DATA, else medmnist's default."""
    from medmnist.info import DEFAULT_ROOT

    return Path(root or os.environ.get("CONDGEN_DATA") or DEFAULT_ROOT or "~/.medmnist").expanduser()


def fetch(path: Path, info: dict[str, Any], size: int, url: str, download: bool) -> None:
    """Put the official file at `path`, or say how to."""
    cause = None
    if download:
        try:
            with working(f"downloading {path.name}"):
                return fetch_official(path, info, size)
        except Exception as error:
            # medmnist turns every exception into a RuntimeError, Ctrl-C too.
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            cause = error
    tried = "and the download failed" if download else "and download=False"
    raise FileNotFoundError(
        f"Expected the file {path.name} in the folder {path.parent}; it is not there {tried}. Get it from "
        f"{url} and put it there, or name another folder by root= or the environment variable CONDGEN_DATA."
    ) from cause


def fetch_official(path: Path, info: dict[str, Any], size: int) -> None:
    """Medmnist's own download, moved to `path` once it is complete."""
    import medmnist

    # On the final disk, so that the move is one step; in a folder that exists, so that failing leaves none.
    existing = next(folder for folder in (path.parent, *path.parent.parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".condgen-", dir=existing) as folder:
        getattr(medmnist, info["python_class"])(split="val", root=folder, size=size, download=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        Path(folder, path.name).replace(path)


def unofficial(path: Path, images: LabelledImages, info: dict[str, Any], md5: str) -> list[str]:
    """In what a file differs from the official one."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5:
            return []
    differences = [f"its md5 checksum is not {md5}"]
    for split, prefix in PREFIXES.items():
        got = len(images.labels[images.splits[split]]) if split in images.splits else 0
        official = info["n_samples"][prefix.rstrip("_")]
        if got != official:
            differences.append(f"it has {got} {split} images instead of {official}")
    return differences
