"""Npz files: MedMNIST's layout and its relatives, or plain images and labels."""

__all__ = ["load_npz"]

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped

from condgen.data.checks import check_memory
from condgen.data.convert import uint8_images
from condgen.data.images import LabelledImages
from condgen.data.names import PROBABILITIES, SYNTHETIC

SPLIT_NAMES = {
    **{"train": "train", "training": "train"},
    **{"val": "validation", "valid": "validation", "validation": "validation", "dev": "validation"},
    **{"test": "test", "testing": "test"},
}
IMAGES, LABELS = ("images", "x", "data", "arr_0"), ("labels", "y", "targets", "label", "arr_1")
CHANNELS = (1, 3, 4)
BOMB = (2**30, 100)  # an archive that holds more bytes than this, and this many times its own


def load_npz(path: str | Path, class_names: Sequence[str] = ()) -> LabelledImages:
    """Images and labels from an npz file, with the file's splits or stratified ones.

    The file holds either `train_images`, `train_labels` and the same for `val_` and `test_` as MedMNIST's do (without
    `val_` or `test_` the set lacks that split), or `images` and `labels`, which are split 80:10:10 with
    :meth:`~condgen.data.images.LabelledImages.split`. `valid_` and `validation_` are read as `val_`, and `x` and `y` as
    images and labels, before or after the split's name (`x_train`, `train_x`). Images are of shape (N, H, W),
    (N, H, W, C) or (N, C, H, W) with C of 1, 3 or 4, channels last where both could be meant. Their values and the
    labels are as :class:`~condgen.data.images.LabelledImages` takes them. A teacher's probabilities of the classes
    (`train_probabilities`, or `probabilities` beside `images`) become `factors["probabilities"]`.

    Args:
        path: of the file.
        class_names: one name per class; by default the file's array `class_names`, if it has one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or not as described, or if a class has no training image.

    Example:
        >>> import tempfile
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
            images, labels, splits = read_arrays(file, split_arrays(file.files))
            names = tuple(class_names) or class_names_in(file)
            soft, made = probabilities_in(file, splits, len(images)), synthetic_in(file, splits, len(images))
        whole = LabelledImages(images, labels, names, splits, name=path.stem)
        if soft is not None:
            whole = with_probabilities(whole, soft)
        if made is not None:
            whole = replace(whole, factors={**whole.factors, SYNTHETIC: made})
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


def split_arrays(keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Split → names of its arrays of images and labels; one split "all" if the file has no splits.

    Raises:
        ValueError: if the file has no images to train on, or two names for one split.
    """
    found: dict[str, tuple[str, str]] = {}
    for prefix, split in SPLIT_NAMES.items():
        if pair := named(keys, prefix):
            if split in found:
                raise ValueError(f"Expected one {split} split; got {found[split][0]} and {pair[0]}.")
            found[split] = pair
    if "train" in found:
        return found
    if not found and (pair := named(keys, "")):
        return {"all": pair}
    have = ", ".join(keys) or "no arrays"
    raise ValueError(f"Expected train_images and train_labels, or images and labels; got {have}.")


def named(keys: Sequence[str], split: str) -> tuple[str, str] | None:
    """The names of a split's arrays, such as train_images and train_labels, or x_train and y_train."""
    for form in ("{split}_{part}", "{part}_{split}") if split else ("{part}",):
        images = [form.format(split=split, part=part) for part in IMAGES]
        labels = [form.format(split=split, part=part) for part in LABELS]
        found = [key for key in images if key in keys], [key for key in labels if key in keys]
        if found[0] or (found[1] and split):
            return (found[0] or images)[0], (found[1] or labels)[0]
    return None


def read_arrays(
    file: "np.lib.npyio.NpzFile", arrays: dict[str, tuple[str, str]]
) -> tuple[Shaped[np.ndarray, "images channels height width"], np.ndarray, dict[str, slice]]:
    """Images, labels, and the slice of each split; one split's images are in memory beside the result."""
    labels = {split: np.atleast_1d(array(file, name)) for split, (_, name) in arrays.items()}
    images, splits, start = np.empty((0, 0, 0, 0), np.uint8), {}, 0
    for split, (name, _) in arrays.items():
        part = channels_first(array(file, name), name)
        if len(labels[split]) != len(part) or labels[split].ndim > 2:
            shape = labels[split].shape
            raise ValueError(f"Expected one label for each of {len(part)} images; got labels of shape {shape}.")
        if not splits:
            images = np.empty((sum(map(len, labels.values())), *part.shape[1:]), part.dtype)
        if part.shape[1:] != images.shape[1:] or part.dtype != images.dtype:
            expected = f"images of one shape in every split, (channels, height, width) = {images.shape[1:]}"
            raise ValueError(f"Expected {expected}; got {part.shape[1:]} in {name}.")
        splits[split] = slice(start, start + len(part))
        images[splits[split]] = part
        start += len(part)
    columns = [part if part.ndim == 2 else part[:, None] for part in labels.values()]
    if len({(part.shape[1:], part.dtype.kind.replace("u", "i")) for part in columns}) > 1:
        raise ValueError("Expected labels of one kind and width in every split; they differ.")
    return images, np.concatenate(columns), {} if "all" in splits else splits


def probabilities_in(
    file: "np.lib.npyio.NpzFile", splits: Mapping[str, slice], images: int
) -> Float[np.ndarray, "images classes"] | None:
    """A teacher's probabilities for each image, NaN where the file has none; None if it has none at all."""
    places = {"probabilities": slice(None)} if not splits else {"train_probabilities": splits["train"]}
    for name, place in places.items():
        if name in file:
            part = array(file, name)
            count = len(range(images)[place])
            if part.ndim != 2 or len(part) != count or part.dtype.kind != "f":
                raise ValueError(
                    f"Expected {name} of shape ({count}, classes), as floats; got {part.dtype} of shape {part.shape}."
                )
            whole = np.full((images, part.shape[1]), np.nan, np.float32)
            whole[place] = part
            return whole
    return None


def synthetic_in(
    file: "np.lib.npyio.NpzFile", splits: Mapping[str, slice], images: int
) -> Bool[np.ndarray, " images"] | None:
    """Which images were generated, where the file says so of its training images."""
    name, place = ("train_synthetic", splits.get("train")) if splits else ("synthetic", slice(None))
    if name not in file or place is None:
        return None
    part, count = array(file, name), len(range(images)[place])
    if part.shape != (count,) or part.dtype.kind != "b":
        raise ValueError(f"Expected {name} of shape ({count},), true or false; got {part.dtype} of {part.shape}.")
    whole = np.zeros(images, bool)
    whole[place] = part
    return whole


def with_probabilities(data: LabelledImages, soft: Float[np.ndarray, "images classes"]) -> LabelledImages:
    """The set with probabilities of its classes; where there are none all of it is on the label."""
    if data.kind != "class" or soft.shape[1] != data.num_classes:
        raise ValueError(
            f"Expected probabilities of the {data.num_classes} classes of the labels; got {soft.shape[1]} columns."
        )
    hard = np.eye(data.num_classes, dtype=np.float32)[data.labels]
    return replace(data, factors={PROBABILITIES: np.where(np.isnan(soft), hard, soft)})


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


def channels_first(images: np.ndarray, key: str) -> Shaped[np.ndarray, "images channels height width"]:
    """An array of images from a file as (N, C, H, W) uint8; raises for shapes that are no images."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape[1:3] or not (images.shape[3] in CHANNELS or images.shape[1] in CHANNELS):
        raise ValueError(
            f"Expected {key} of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1, 3 or 4; got {images.shape}."
        )
    if len(images) == 0:
        raise ValueError(f"Expected images in every split; {key} is empty. Leave it out or fill it.")
    images = np.moveaxis(images, 3, 1) if images.shape[3] in CHANNELS else images
    return images if images.dtype == np.uint8 else uint8_images(images, key)


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


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes a reader raise becomes one ValueError that names the file."""
    try:
        yield
    except Exception as error:  # zlib, struct, tokenize and others each have their own
        raise ValueError(f"{path}: {error or type(error).__name__}") from error
