"""Readers: a path or a name in, labelled images with train, validation and test splits out.

Contract: `load_…(path or name, …) → LabelledImages`, uint8, with its splits. Whatever is wrong with a file is
a ValueError that names the file; nothing a file holds is ever executed. :func:`load_data` picks the reader.
"""

__all__ = ["load_data", "load_folder", "load_medmnist", "load_npz"]

import hashlib
import math
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from condgen.data.images import LabelledImages, check_images, check_memory, normalised_labels, shortened
from condgen.data.smears import load_smears
from condgen.io.progress import working

MEDMNIST_SIZES = (28, 64, 128, 224)
PREFIXES = {"train": "train_", "validation": "val_", "test": "test_"}  # of MedMNIST's arrays
CHANNELS = (1, 3, 4)
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
OTHER_SUFFIXES = (".bmp", ".gif", ".webp", ".jp2", ".npy", ".svs", ".dcm")  # images, too, but not read
LARGEST_SIZE = 2048  # pixels a side
BOMB = (2**30, 100)  # an archive that holds more bytes than this, and this many times its own


def load_data(source: str | Path, size: int = 28, n: int = 5000, seed: int = 0) -> LabelledImages:
    """The images behind a name or path: "smears", a MedMNIST flag, an npz file or a folder of class folders.

    Names come first: a folder called "smears" is reached as "./smears", or as a `Path`.

    Args:
        source: what to load.
        size: height and width in pixels; an npz file keeps its own.
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
    if isinstance(source, str) and source.endswith("mnist") and source in medmnist_flags():
        return load_medmnist(source, size)
    if path.is_dir():
        return load_folder(path, size)
    raise ValueError(
        f'Expected "smears", a MedMNIST flag ({", ".join(medmnist_flags())}), a path ending in .npz, '
        f"or a folder with one subfolder per class; got {str(source)!r}."
    )


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


def load_npz(path: str | Path, class_names: Sequence[str] = ()) -> LabelledImages:
    """Images and labels from an npz file, with the file's splits or stratified ones.

    The file holds either `train_images`, `train_labels` and the same for `val_` and `test_` as MedMNIST's do
    (without `val_` or `test_` the set lacks that split), or `images` and `labels`, which are split 80:10:10
    with :meth:`LabelledImages.split`. Images are uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with
    C of 1, 3 or 4, channels last where both could be meant; labels as :class:`LabelledImages` takes them.

    Args:
        path: of the file.
        class_names: one name per class; by default the file's array `class_names`, if it has one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or not as described, or if a class has no training image.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "cells.npz")
        ...     np.savez(path, images=np.zeros((30, 28, 28), np.uint8), labels=np.arange(30) % 2)
        ...     load_npz(path, class_names=("round", "lobed")).validation
        LabelledImages 'cells validation': 4 images of (1, 28, 28); round 2, lobed 2
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"Expected an npz file; there is no file {path}.")
    with naming(path):
        if not zipfile.is_zipfile(path):
            raise ValueError("Expected an npz archive; got another kind of file, or part of an archive.")
        check_archive(path)
        with np.load(path, allow_pickle=False) as file:
            images, labels, splits = read_arrays(file, split_prefixes(file.files))
            names = tuple(class_names) or class_names_in(file)
        whole = LabelledImages(images, labels, names, splits, name=path.stem)
        return with_every_class(whole if "train" in splits else whole.split())


def check_archive(path: Path) -> None:
    """Raise if the archive would fill the memory with next to nothing, or with more than there is."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
        for member in archive.infolist():
            check_length(archive, member)
    packed, (large, ratio) = path.stat().st_size, BOMB
    if size > large and size > ratio * packed:
        raise ValueError(f"Expected images; got {packed:,} bytes that unpack to {size:,}, as no photographs do.")
    check_memory(1, (size,))


def check_length(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raise unless an array is as long as it says, before memory is taken for it."""
    if not member.filename.endswith(".npy"):
        return
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
        size = kind.itemsize * math.prod(shape)
        if not kind.hasobject and size != member.file_size - file.tell():
            raise ValueError(f"{member.filename} is said to hold {size:,} bytes of {shape}, and holds others.")


def split_prefixes(keys: Sequence[str]) -> dict[str, str]:
    """Split → prefix of its arrays; one split "all" without prefix where the file has none."""
    found = {s: p for s, p in PREFIXES.items() if f"{p}images" in keys or f"{p}labels" in keys}
    if "train" in found:
        return found
    if "images" in keys and not found:
        return {"all": ""}
    have = ", ".join(keys) or "no arrays"
    raise ValueError(f"Expected train_images and train_labels, or images and labels; got {have}.")


def read_arrays(
    file: "np.lib.npyio.NpzFile", prefixes: dict[str, str]
) -> tuple[UInt8[np.ndarray, "images channels height width"], np.ndarray, dict[str, slice]]:
    """Images, labels, and the slice of each split; one split's images are in memory beside the result."""
    labels = {split: np.atleast_1d(array(file, f"{prefix}labels")) for split, prefix in prefixes.items()}
    images, splits, start = np.empty((0, 0, 0, 0), np.uint8), {}, 0
    for split, prefix in prefixes.items():
        part = channels_first(array(file, f"{prefix}images"), f"{prefix}images")
        labels[split] = normalised_labels(labels[split], len(part))
        if not splits:
            images = np.empty((sum(map(len, labels.values())), *part.shape[1:]), np.uint8)
        if part.shape[1:] != images.shape[1:]:
            expected = f"images of one shape in every split, (channels, height, width) = {images.shape[1:]}"
            raise ValueError(f"Expected {expected}; got {part.shape[1:]} in {prefix}images.")
        splits[split] = slice(start, start + len(part))
        images[splits[split]] = part
        start += len(part)
    if len({(part.shape[1:], part.dtype) for part in labels.values()}) > 1:
        raise ValueError("Expected labels of one kind and width in every split; they differ.")
    return images, np.concatenate(list(labels.values())), {} if "all" in splits else splits


def array(file: "np.lib.npyio.NpzFile", key: str) -> np.ndarray:
    """One array of the file; objects stay pickled."""
    if key not in file:
        raise ValueError(f"Expected an array {key!r}; got {', '.join(file.files)}.")
    try:
        return np.asarray(file[key])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"{key!r} holds pickled Python objects, which are never loaded. Save it as plain numbers."
        ) from error


def class_names_in(file: "np.lib.npyio.NpzFile") -> tuple[str, ...]:
    """The file's own class names, if any."""
    if "class_names" not in file:
        return ()
    names = array(file, "class_names")
    if names.dtype.kind != "U" or names.ndim != 1:
        raise ValueError(f"Expected class_names as a list of text; got {names.dtype} of shape {names.shape}.")
    return tuple(names.tolist())


def channels_first(images: np.ndarray, key: str) -> UInt8[np.ndarray, "images channels height width"]:
    """A view of shape (N, C, H, W), once the images are known to be uint8 and present."""
    if images.dtype.kind == "f" and np.isnan(images).any():
        raise ValueError(f"Expected uint8 images in [0, 255]; got {images.dtype} with NaN in {key}. Fill or drop them.")
    if images.dtype != np.uint8:
        raise ValueError(
            f"Expected uint8 images in [0, 255]; got {images.dtype} in {key}. "
            "Floats in [0, 1]: save (255 * images).round().astype('uint8')."
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not (images.shape[3] in CHANNELS or images.shape[1] in CHANNELS):
        raise ValueError(
            f"Expected {key} of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1, 3 or 4; got {images.shape}."
        )
    if len(images) == 0:
        raise ValueError(f"Expected images in every split; {key} is empty. Leave it out or fill it.")
    images = np.moveaxis(images, 3, 1) if images.shape[3] in CHANNELS else images
    check_images(images)
    return images


def with_every_class(images: LabelledImages) -> LabelledImages:
    """The same images, once every class is known to have one to train on."""
    if images.kind == "class":
        counts = np.bincount(images.labels[images.splits["train"]], minlength=images.num_classes)
        missing = [repr(name) for name, count in zip(images.class_names, counts, strict=True) if count == 0]
        if missing:
            raise ValueError(
                f"Expected training images of every class; got none of {', '.join(missing)}. "
                "Add some, or leave the class out of labels and names."
            )
    return images


def load_folder(path: str | Path, size: int, class_names: Sequence[str] = ()) -> LabelledImages:
    """Images from a folder with one subfolder per class, cropped to the central square, resized and split.

    PNG, JPEG and TIFF files are read, all grey or all RGB; other files and hidden ones are passed over. The
    shorter side fills the square, which is resized with antialiasing (bicubic). Splits are stratified,
    80:10:10.

    Args:
        path: of the folder.
        size: height and width in pixels.
        class_names: which subfolders to read, in the order of the labels; by default all, sorted by name.

    Raises:
        ValueError: if the folder is not as described or an image cannot be read; the message names it.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for kind in ("lobed", "round"):
        ...         Path(folder, kind).mkdir()
        ...         for i in range(5):
        ...             Image.new("L", (40, 30)).save(Path(folder, kind, f"{i}.png"))
        ...     load_folder(folder, size=28).train
        LabelledImages '... train': 6 images of (1, 28, 28); lobed 3, round 3
    """
    path = Path(path).expanduser()
    if not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"Expected a size from 1 to {LARGEST_SIZE} pixels; got {size}.")
    names = class_folders(path, class_names)
    files = [(file, label) for label, name in enumerate(names) for file in image_files(path / name)]
    first = read_image(files[0][0], size)
    check_memory(len(files), first.shape)
    images = np.empty((len(files), len(first), size, size), np.uint8)
    for i, (file, _) in enumerate(files):
        image = read_image(file, size)
        if len(image) != len(first):
            kinds = {len(image): file, len(first): files[0][0]}
            raise ValueError(
                f"Expected all images grey or all RGB; {kinds[1]} is grey, {kinds[3]} is RGB. Convert some."
            )
        images[i] = image
    labels = np.array([label for _, label in files])
    with naming(path):
        return with_every_class(LabelledImages(images, labels, names, name=path.resolve().name).split())


def class_folders(path: Path, class_names: Sequence[str]) -> list[str]:
    """Names of the subfolders to read."""
    if not path.is_dir():
        raise ValueError(f"Expected a folder with one subfolder per class; {path} is no folder.")
    have = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not have:
        raise ValueError(f"Expected one subfolder per class in {path}; got none. Sort the images into subfolders.")
    absent = [name for name in class_names if name not in have]
    if absent:
        raise ValueError(f"Expected subfolders {shortened(absent)} in {path}; got {shortened(have)}.")
    return list(class_names) or have


def image_files(folder: Path) -> list[Path]:
    """The images of one class, sorted by name."""
    visible = [file for file in folder.iterdir() if not file.name.startswith(".")]
    files = sorted(f for f in visible if f.suffix.lower() in SUFFIXES and f.is_file())
    others = sorted({f.suffix for f in visible if f.suffix.lower() in OTHER_SUFFIXES})
    others += [f"images in {f.name}/" for f in visible if f.is_dir() and any(g.suffix in SUFFIXES for g in f.iterdir())]
    if not files:
        raise ValueError(
            f"Expected PNG, JPEG or TIFF images in {folder}; got {shortened(others) or 'none'}. Add or convert some, "
            "or leave the class out."
        )
    if others:
        warnings.warn(f"{folder} holds {shortened(others)} besides, which are not read.", stacklevel=2)
    return files


def read_image(file: Path, size: int) -> UInt8[np.ndarray, "channels size size"]:
    """One image file as uint8 of shape (1 or 3, size, size)."""
    with naming(file), Image.open(file, formats=("PNG", "JPEG", "TIFF")) as image:
        image = grey_or_rgb(image)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box))
    return np.moveaxis(np.atleast_3d(pixels), 2, 0)


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """An opaque 8-bit image in mode L or RGB; anything that needs a choice is left to the user."""
    # Pillow reads 16-bit colours as their upper bytes and only the decoder's settings still tell.
    if image.mode.startswith(("I", "F")) or ";16" in str(getattr(image, "tile", "")):
        raise ValueError("Expected 8 bits per channel; got more. Rescale to [0, 255] and save as uint8.")
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        raise ValueError("Expected one image per file; got several pages. Save them one by one.")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise ValueError(f"Expected a grey or an RGB image; got mode {image.mode}. Convert it to RGB.")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise ValueError("Expected an opaque image; got transparent pixels. Flatten it onto a background.")
    return image.convert(mode)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes a reader raise becomes one ValueError that names the file."""
    try:
        yield
    except Exception as error:  # zlib, struct, tokenize and others each have their own
        raise ValueError(f"{path}: {error or type(error).__name__}") from error
