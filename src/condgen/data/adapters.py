"""Data as people hand them over, pairs of arrays and data sets of torch, as labelled images."""

__all__ = ["as_labelled"]

from typing import Any

import numpy as np
from torch import Tensor

from condgen.data.images import LabelledImages


def as_labelled(data: Any, name: str = "images") -> LabelledImages:
    """What people hand over, as labelled images: such a set, a pair (images, labels), a data set of torch, or a loader.

    Args:
        data: labelled images; a pair of arrays or tensors; a data set of pairs (image, label), such as torchvision's
            `ImageFolder`, whose `classes` name the classes; or a `DataLoader` of one.
        name: what to call the set.

    Raises:
        TypeError: for anything else.

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
    inner = getattr(data, "dataset", data)  # of a loader
    if hasattr(inner, "__len__") and hasattr(inner, "__getitem__") and not isinstance(inner, str | np.ndarray | Tensor):
        pairs = [inner[k] for k in range(len(inner))]
        if pairs and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
            images = np.stack([picture_array(image) for image, _ in pairs])
            labels = np.array([as_array(label) for _, label in pairs])
            names = tuple(map(str, getattr(inner, "classes", ())))
            return LabelledImages(images, labels, names, name=name)
    raise TypeError(
        f"Expected LabelledImages, a pair (images, labels), or a data set of pairs; got {type(data).__name__}. Build "
        "one: condgen.LabelledImages(images, labels)."
    )


def as_array(values: Any) -> np.ndarray:
    """An array of a tensor, a list or an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def picture_array(image: Any) -> np.ndarray:
    """One image of a data set as an array, channels first; a picture of Pillow's has them last."""
    array = as_array(image)
    pillow = not isinstance(image, Tensor | np.ndarray)
    return np.moveaxis(array, 2, 0) if pillow and array.ndim == 3 else array
