"""Data as people hand them over, pairs of arrays and data sets of torch, as labelled images."""

__all__ = ["as_labelled"]

from typing import Any

import numpy as np
from torch import Tensor

from condgen.data.images import LabelledImages
from condgen.io.progress import working


def as_labelled(data: Any, name: str = "images") -> LabelledImages:
    """What people hand over, as labelled images: such a set, a pair (images, labels), or a data set of torch.

    Args:
        data: labelled images; a pair of arrays, tensors or columns of pandas (one of images may hold an array in each
            row); or a data set of pairs (image, label), such as torchvision's `ImageFolder` or MedMNIST's, which is
            read once. Its `classes`, or MedMNIST's `info`, name the classes.
        name: what to call the set.

    Raises:
        TypeError: for anything else, a `DataLoader` among it.

    Example:
        >>> as_labelled((np.zeros((4, 1, 8, 8), np.uint8), ["ant", "bee", "bee", "ant"])).class_counts
        {'ant': 2, 'bee': 2}
    """
    if isinstance(data, LabelledImages):
        return data
    if hasattr(data, "labelled_images"):  # generated images, drawn at once
        return data.labelled_images()
    if isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(part, "__len__") for part in data):
        return LabelledImages(as_array(data[0]), as_array(data[1]), name=name)
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        raise TypeError(
            "Expected a data set; got a loader of one, whose order and batches are its own. Give its data set: "
            "loader.dataset."
        )
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not isinstance(data, str | np.ndarray | Tensor):
        pairs = []
        with working("reading the data set", len(data)) as advance:
            for k in range(len(data)):
                pairs.append(data[k])
                advance()
        if pairs and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            images = np.stack([picture_array(image) for image, _ in pairs])
            labels = np.array([as_array(label) for _, label in pairs])
            return LabelledImages(images, labels, classes_of(data), name=name)
    raise TypeError(
        f"Expected LabelledImages, a pair (images, labels), or a data set of pairs; got {type(data).__name__}. Build "
        "one: condgen.LabelledImages(images, labels)."
    )


def classes_of(data: Any) -> tuple[str, ...]:
    """The names of the classes that a data set has: torchvision's `classes`, or MedMNIST's `info`."""
    if hasattr(data, "classes"):
        return tuple(map(str, data.classes))
    named = getattr(data, "info", None)
    return tuple(map(str, named["label"].values())) if isinstance(named, dict) and "label" in named else ()


def as_array(values: Any) -> np.ndarray:
    """An array of a tensor, a list, a column of pandas or an array; rows that are images themselves are stacked."""
    if isinstance(values, Tensor):
        return values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype == object and array.ndim == 1 and len(array) and np.ndim(array[0]) > 1:
        return np.stack([picture_array(image) for image in array])
    return array


def picture_array(image: Any) -> np.ndarray:
    """One image of a data set as an array, channels first; a picture of Pillow's has them last."""
    array = as_array(image)
    pillow = not isinstance(image, Tensor | np.ndarray)
    return np.moveaxis(array, 2, 0) if pillow and array.ndim == 3 else array
