"""What people have, made what the library computes with: images as uint8, labels as classes, columns or conditions.

What is clear is converted exactly, with a note (a warning) that says how it was read. What could mean two things is an
error that says how to tell them apart.
"""

__all__ = ["KINDS", "classes_by_value", "kind_of", "labels_as", "uint8_images"]

import warnings
from typing import Any, Literal

import numpy as np

Kind = Literal["class", "multi-label", "continuous"]
KINDS = {
    **dict.fromkeys(("class", "classes"), "class"),
    **dict.fromkeys(("multi-label", "multilabel"), "multi-label"),
    **dict.fromkeys(("continuous", "conditions"), "continuous"),
}
FEW = 20  # different whole floats that are taken for classes
MOST_UNNAMED = 1000  # classes that numbers alone may stand for, where there are fewer images
CHANNELS = (1, 3, 4)


def note(text: str) -> None:
    """Say how something was read."""
    warnings.warn(text, stacklevel=4)


def uint8_images(images: np.ndarray, what: str = "images") -> np.ndarray:
    """Images as uint8 of shape (images, channels, height, width); uint8 ones of that shape are given back as they are.

    Channels last are moved to the front, grey images without a channel get one, and whole numbers from 0 to 255 or
    multiples of 1/255 from 0 to 1 are converted exactly.

    Args:
        images: an array.
        what: what to call them in messages.

    Raises:
        TypeError: for something that holds no numbers.
        ValueError: for values that cannot be converted exactly, or another shape.

    Example:
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     uint8_images(np.full((2, 28, 28, 3), 200.0)).shape
        (2, 3, 28, 28)
    """
    if hasattr(images, "detach"):  # a tensor
        images = images.detach().cpu().numpy()  # type: ignore[attr-defined]
    kind = getattr(images, "dtype", None)
    if kind is None or kind.kind not in "biuf":
        raise TypeError(f"Expected {what} as an array of numbers; got {kind or type(images).__name__}.")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (0, *CHANNELS) and images.shape[3] in CHANNELS:
        note(f"The {what} have shape {images.shape}: the last axis is taken for the channels.")
        images = np.moveaxis(images, 3, 1)
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            f"Expected {what} of shape (images, channels, height, width); got {images.shape}. "
            "Channels last: pass images.transpose(0, 3, 1, 2)."
        )
    return forwards(images) if kind == np.uint8 else grey_levels(images, what)


def forwards(array: Any) -> Any:
    """The same array, copied if it is a reversed view, of which PyTorch makes no tensor.

    Example:
        >>> forwards(np.arange(3)[::-1]).strides
        (8,)
    """
    reversed_ = isinstance(array, np.ndarray) and any(stride < 0 for stride in array.strides)
    return array.copy() if reversed_ else array


def grey_levels(images: np.ndarray, what: str) -> np.ndarray:
    """Numbers that are grey levels, as uint8."""
    if images.size == 0:
        return images.astype(np.uint8)
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise ValueError(f"Expected {what} in [0, 255]; got NaN or infinity. Fill or drop them.")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 255:
        raise ValueError(
            f"Expected {what} in [0, 255]; got values from {low:.4g} to {high:.4g}. If they were standardised, undo "
            "that; otherwise rescale them to [0, 255] and pass them as uint8."
        )
    if images.dtype.kind == "b":
        note(f"The {what} are True and False: read as white and black.")
        return images.astype(np.uint8) * 255
    whole = images.dtype.kind in "iu" or bool((images == np.round(images)).all())
    if 0 < high <= 1 and whole:
        raise ValueError(
            f"Expected {what} in [0, 255]; got only 0 and 1, which can be grey levels or black and white. Pass "
            "(255 * images).astype('uint8') if 1 is white, images.astype('uint8') if it is the darkest grey."
        )
    if whole:
        note(f"The {what} are {images.dtype} from {low:.0f} to {high:.0f}: read as uint8.")
        return images.astype(np.uint8)
    if high > 1:
        raise ValueError(
            f"Expected {what} as whole numbers from 0 to 255; got fractions up to {high:.4g}. Pass "
            "images.round().astype('uint8') if they are grey levels."
        )
    levels = 255.0 * images.astype(np.float64)
    if np.abs(levels - levels.round()).max() > (0.25 if images.itemsize < 4 else 1e-3):
        raise ValueError(
            f"Expected uint8 {what} in [0, 255]; got {images.dtype} in [0, 1] that are no multiples of 1/255. Pass "
            "(255 * images).round().astype('uint8')."
        )
    note(f"The {what} are multiples of 1/255 from 0 to 1: read as uint8.")
    return levels.round().astype(np.uint8)


def kind_of(labels: np.ndarray, names: int = 0) -> Kind:
    """What labels of this shape and type are: classes, several labels per image, or continuous conditions.

    Args:
        labels: an array of one or two axes.
        names: how many names were given.

    Example:
        >>> kind_of(np.array([1.0, 2.0, 2.0])), kind_of(np.eye(3, dtype=int)), kind_of(np.array([0.5, 1.0]))
        ('class', 'class', 'continuous')
    """
    text = labels.dtype.kind in "USO"
    if text or labels.ndim == 1 or labels.shape[1] == 1:
        columns = labels if labels.ndim == 1 else labels[:, 0]
        if text or labels.dtype.kind in "iub":
            return "class"
        one_condition = labels.ndim == 2 and names == 1
        whole = bool((np.isfinite(columns) & (columns == np.round(columns))).all())
        few = whole and len(np.unique(columns)) <= FEW
        return "class" if len(columns) and few and not one_condition else "continuous"
    if labels.dtype.kind == "f" and not np.isin(labels, (0.0, 1.0)).all():
        return "continuous"
    one_hot = len(labels) > 1 and bool(((labels != 0).sum(1) == 1).all() and np.isin(labels, (0, 1)).all())
    if one_hot:
        return "class"
    return "continuous" if labels.dtype.kind == "f" else "multi-label"


def labels_as(kind: Kind, labels: np.ndarray, n: int, said: bool) -> np.ndarray:
    """Labels as int64 (n,) or text (n,) for classes, uint8 (n, classes), or float32 (n, conditions).

    Args:
        kind: what they are.
        labels: an array.
        n: number of images.
        said: whether somebody said what they are; otherwise a surprising reading gets a note.

    Raises:
        ValueError: for labels that do not fit their kind or the images.
        TypeError: for labels of another type.

    Example:
        >>> labels_as("class", np.array([[0, 1], [1, 0]]), 2, said=True), labels_as("multi-label", np.eye(1), 1, True)
        (array([1, 0]), array([[1]], dtype=uint8))
    """
    if kind == "continuous":
        if labels.dtype.kind not in "iubf":
            raise TypeError(f"Expected numbers as continuous labels; got {labels.dtype}.")
        if not np.isfinite(labels).all():
            raise ValueError("Expected finite continuous labels; got NaN or infinity. Drop or fill those images.")
        return (labels if labels.ndim == 2 else labels[:, None]).astype(np.float32)
    if kind == "multi-label":
        if labels.ndim != 2 or labels.dtype.kind not in "iubf" or not np.isin(labels, (0, 1)).all():
            raise ValueError("Expected 0 or 1 in every column of multi-label labels; got other values.")
        return labels.astype(np.uint8)
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not np.isin(labels, (0, 1)).all() or not ((labels != 0).sum(1) == 1).all():
            raise ValueError("Expected one class per image: a single column, or one 1 in every row of one-hot labels.")
        if not said:
            note('Every row of the labels has one 1: read as one-hot classes (kind="multi-label" to keep the columns).')
        return labels.argmax(1).astype(np.int64)
    column = labels.reshape(n)
    column = column.astype(str) if column.dtype.kind == "S" else column
    if column.dtype.kind in "USO":
        if not all(isinstance(label, str) for label in column.tolist()):
            raise TypeError(f"Expected class labels as numbers or text; got {type(column.tolist()[0]).__name__}.")
        return column.astype(str)
    if column.dtype.kind == "f":
        if not (np.isfinite(column).all() and (column == np.round(column)).all()):
            raise ValueError('Expected whole numbers as class labels; got others. Pass kind="continuous" if they are.')
        if not said:
            note('The labels are whole floats: read as classes (kind="continuous" to keep them as numbers).')
    return column.astype(np.int64)


def classes_by_value(labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers from 0, and the names of the classes: one class for each value, in the order of values.

    Args:
        labels: class labels without names: whole numbers of 0 or more, or text.

    Raises:
        ValueError: for negative numbers, or numbers that seem to count something else than classes.

    Example:
        >>> classes_by_value(np.array(["round", "lobed", "round"]))
        (array([1, 0, 1]), ('lobed', 'round'))
        >>> classes_by_value(np.array([0, 2, 1]))[1]
        ('class 0', 'class 1', 'class 2')
    """
    values, numbers = np.unique(labels, return_inverse=True)
    if labels.dtype.kind in "US":
        return numbers.astype(np.int64), tuple(values.tolist())
    if len(values) and values[0] < 0:
        raise ValueError(f"Expected labels in [0, classes); got {values[0]}. Number the classes from 0.")
    if len(values) and values[-1] >= max(len(labels), MOST_UNNAMED):
        raise ValueError(
            f"Expected labels in [0, classes); got {values[-1]} among {len(labels)} images. Are these the numbers of "
            "patients or files? Number the classes from 0."
        )
    if len(values) and values[-1] != len(values) - 1:
        shown = ", ".join(map(str, values[:8].tolist())) + (" …" if len(values) > 8 else "")
        note(f"The labels are {shown}: read as {len(values)} classes, in this order. Name them by class_names=.")
    return numbers.astype(np.int64), tuple(f"class {value}" for value in values.tolist())
