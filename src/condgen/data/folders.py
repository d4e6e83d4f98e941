"""Folders of image files, with one subfolder per class, perhaps within folders of splits."""

__all__ = ["load_folder"]

import warnings
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from condgen.data.checks import check_memory
from condgen.data.images import LabelledImages
from condgen.data.names import shortened
from condgen.data.npz import SPLIT_NAMES, naming, with_every_class
from condgen.io.names import CLASSES, read_classes

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".heic", ".heif"),
)
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "GIF", "WEBP", "AVIF", "PPM", "JPEG2000", "HEIF")
OURS = {CLASSES, "samples.json", "provenance.csv"}  # files that condgen writes beside images
LARGEST_SIZE = 2048  # pixels a side


def load_folder(path: str | Path, size: int | Sequence[int], class_names: Sequence[str] = ()) -> LabelledImages:
    """Images from a folder with one subfolder per class, cropped around the centre, resized and split.

    All formats that Pillow reads are read, in subfolders of a class too, turned as their EXIF orientation says; all
    images grey or all RGB. As much of an image as has the shape asked for, a square by default, is cut out around its
    centre and resized with antialiasing (bicubic). Splits are those of the folder if it holds `train/CLASS`, and
    `val/CLASS` (or `valid`, `validation`) and `test/CLASS` if they are there; otherwise they are stratified, 80:10:10.
    Hidden files are passed over.

    Args:
        path: the folder.
        size: pixels of height and width, one number for both or (height, width).
        class_names: which subfolders to read, in the order of the labels; by default all, in the order that condgen
            wrote down in the folder, or sorted by name.

    Raises:
        ValueError: if the folder is not as described or an image cannot be read; the message names it.

    Warns:
        UserWarning: of everything that is left out, with its number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for kind in ("lobed", "round"):
        ...         Path(folder, kind).mkdir()
        ...         for i in range(5):
        ...             Image.new("L", (40, 30)).save(Path(folder, kind, f"{i}.png"))
        ...     load_folder(folder, size=28).train
        LabelledImages '... train': 6 images of (1, 28, 28); lobed 3, round 3
    """
    path = Path(path).expanduser()
    shape = sides(size)
    if not path.is_dir():
        raise ValueError(f"Expected a folder with one subfolder per class; {path} is no folder.")
    splits, left_out = split_folders(path), Counter[str]()
    known = read_classes(path)
    names, folders = class_folders(list(splits.values()) or [path], class_names, known)
    files: list[tuple[Path, int, str]] = []
    for split, folder in (splits or {"": path}).items():
        note_loose(folder, left_out)
        for label, name in enumerate(names):
            own = image_files(folder / folders[name], left_out) if (folder / folders[name]).is_dir() else []
            if not own and split in ("", "train"):
                raise ValueError(
                    f"Expected PNG, JPEG, TIFF or other images in {folder / folders[name]}; got none. Add or convert "
                    "some, or leave the class out."
                )
            files += [(file, label, split) for file in own]
    if splits:
        note_loose(path, left_out)
    if left_out:
        said = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()))
        warnings.warn(f"Left out of {path}: {said}.", stacklevel=2)
    images = read_images([file for file, _, _ in files], shape)
    labels = np.array([label for _, label, _ in files])
    places = {name: np.flatnonzero([own == name for _, _, own in files]) for name in splits}
    places = {name: own for name, own in places.items() if len(own)}
    with naming(path):
        whole = LabelledImages(images, labels, names, places, name=path.resolve().name, kind="class")
        return with_every_class(whole if places else whole.split())


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size.

    Raises:
        ValueError: unless it is one or two whole numbers in range.

    Example:
        >>> sides(28), sides((32, 16))
        ((28, 28), (32, 16))
    """
    both = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(both) != 2 or not all(isinstance(side, Integral) and 1 <= side <= LARGEST_SIZE for side in both):
        raise ValueError(
            f"Expected a size from 1 to {LARGEST_SIZE} pixels, one number or (height, width); got {size!r}."
        )
    return int(both[0]), int(both[1])


def split_folders(path: Path) -> dict[str, Path]:
    """Split → its folder; empty if the subfolders are classes."""
    folders = visible_folders(path)
    found = {SPLIT_NAMES[folder.name.lower()]: folder for folder in folders if folder.name.lower() in SPLIT_NAMES}
    whole = len(found) == len(folders) and "train" in found and all(map(visible_folders, folders))
    return {name: found[name] for name in ("train", "validation", "test") if name in found} if whole else {}


def visible_folders(path: Path) -> list[Path]:
    """The subfolders that are not hidden, sorted by name."""
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def class_folders(
    parents: Sequence[Path], class_names: Sequence[str], known: dict[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Names of the classes in the order of the labels, and the subfolder of each.

    Args:
        parents: folders with one subfolder per class.
        class_names: those to read; by default all.
        known: subfolder → class name, as condgen wrote it down.
    """
    have = sorted({folder.name for parent in parents for folder in visible_folders(parent)})
    if not have:
        raise ValueError(
            f"Expected one subfolder per class in {parents[0]}; got none. Sort the images into subfolders."
        )
    ordered = [folder for folder in known if folder in have] + [folder for folder in have if folder not in known]
    folders = {known.get(folder, folder): folder for folder in ordered}
    if absent := [name for name in class_names if name not in folders]:
        raise ValueError(f"Expected subfolders {shortened(absent)} in {parents[0]}; got {shortened(list(folders))}.")
    return list(class_names) or list(folders), folders


def image_files(folder: Path, left_out: Counter[str]) -> list[Path]:
    """The images of one class, in its subfolders too, sorted by path; what is left out is counted."""
    found = []
    for file in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in file.relative_to(folder).parts) or file.is_dir():
            continue
        if not file.exists():
            left_out["dead links"] += 1
        elif not file.is_file():  # a pipe would be waited for
            left_out["pipes and devices"] += 1
        elif file.suffix.lower() in SUFFIXES:
            found.append(file)
        else:
            left_out[f"{file.suffix.lower() or 'nameless'} files"] += 1
    return found


def note_loose(folder: Path, left_out: Counter[str]) -> None:
    """Count files that lie beside the classes."""
    for file in folder.iterdir():
        if not file.name.startswith(".") and not file.is_dir() and file.name not in OURS:
            image = file.suffix.lower() in SUFFIXES
            left_out["images that are in no class's folder" if image else f"loose {file.suffix.lower()} files"] += 1


def read_images(files: Sequence[Path], shape: tuple[int, int]) -> UInt8[np.ndarray, "images channels height width"]:
    """All images as one array."""
    first = read_image(files[0], shape)
    check_memory(len(files), first.shape)
    images = np.empty((len(files), *first.shape), np.uint8)
    for i, file in enumerate(files):
        image = read_image(file, shape)
        if len(image) != len(first):
            kinds = {len(image): file, len(first): files[0]}
            raise ValueError(
                f"Expected all images grey or all RGB; {kinds[1]} is grey, {kinds[3]} is RGB. Convert some."
            )
        images[i] = image
    return images


def read_image(file: Path, shape: tuple[int, int]) -> UInt8[np.ndarray, "channels height width"]:
    """One image file as uint8, with 1 or 3 channels."""
    height, width = shape
    known = tuple(name for name in FORMATS if name in Image.OPEN or (Image.init() and name in Image.OPEN))
    with naming(file), Image.open(file, formats=known) as image:
        check_readable(image)
        image = grey_or_rgb(ImageOps.exif_transpose(image))
        scale = min(image.width / width, image.height / height)
        wide, high = round(scale * width), round(scale * height)
        left, top = (image.width - wide) // 2, (image.height - high) // 2
        box = (left, top, left + wide, top + high)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box))
    return np.moveaxis(np.atleast_3d(pixels), 2, 0)


def check_readable(image: Image.Image) -> None:
    """Raise for whatever would need a choice that is the user's.

    Raises:
        ValueError: for more than 8 bits, several pages, or a mode that is neither grey nor RGB.
    """
    # Pillow reads 16-bit colours as their upper bytes and only the decoder's settings still tell.
    if image.mode.startswith(("I", "F")) or ";16" in str(getattr(image, "tile", "")):
        raise ValueError("Expected 8 bits per channel; got more. Rescale to [0, 255] and save as uint8.")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # some cameras add a second view
        raise ValueError("Expected one image per file; got several pages. Save them one by one.")
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise ValueError(f"Expected a grey or an RGB image; got mode {image.mode}. Convert it to RGB.")


def grey_or_rgb(image: Image.Image) -> Image.Image:
    """An opaque image in mode L or RGB."""
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise ValueError("Expected an opaque image; got transparent pixels. Flatten it onto a background.")
    return image.convert(mode)
