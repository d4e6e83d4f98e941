"""Images and labels as users of imbalanced-learn have them, so that generated ones can be put behind them."""

__all__ = []

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt8


@dataclass(frozen=True)
class Pixels:
    """Images as a user has them: their layout, range and type, so that generated ones can be put behind them.

    Attributes:
        given: what the user gave.
        array: the same as an array.
        shape: (channels, height, width) of one image.
        last: whether channels come last.
        top: the number that white is: 1 or 255.
    """

    given: Any
    array: np.ndarray
    shape: tuple[int, int, int]
    last: bool
    top: float

    @classmethod
    def of(cls, given: Any, shape: tuple[int, int, int]) -> "Pixels":
        """Read off how images are laid out and scaled.

        Raises:
            ValueError: if they have another size, or values in no range that is known.
        """
        array, (channels, height, width) = np.asarray(given), shape
        layouts: dict[tuple[int, ...], bool] = {(channels, height, width): False, (height, width, channels): True}
        if channels == 1:
            layouts[height, width] = False
        rows = array.ndim == 2 and array.shape[1] == channels * height * width
        if not len(array) or not (rows or array.shape[1:] in layouts):
            raise ValueError(
                f"Expected images (n, {channels}, {height}, {width}), channels first or last, or rows of them; got "
                f"{array.shape}."
            )
        if array.dtype.kind not in "iuf":
            raise ValueError(f"Expected images as numbers; got {array.dtype}.")
        last = layouts[array.shape[1:]] if not rows else rows_have_channels_last(array, shape)
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 255):
            raise ValueError(
                f"Expected images in [0, 1] or [0, 255]; got values from {low:.4g} to {high:.4g}. Balance before you "
                "standardise."
            )
        return cls(given, array, shape, last, 1.0 if array.dtype.kind == "f" and high <= 1 else 255.0)

    def uint8(self) -> UInt8[np.ndarray, "n channels height width"]:
        """The given images as grey levels, channels first."""
        channels, height, width = self.shape
        array = self.array.reshape(-1, *((height, width, channels) if self.last else self.shape))
        return np.rint((np.moveaxis(array, -1, 1) if self.last else array) * (255 / self.top)).astype(np.uint8)

    def followed_by(self, images: UInt8[np.ndarray, "n ..."]) -> Any:
        """The given images, then these, all of one kind."""
        own = np.moveaxis(images, 1, 3) if self.last else images
        own = own.reshape(len(own), *self.array.shape[1:])
        own = (own / 255).astype(self.array.dtype) if self.top == 1 else own.astype(self.array.dtype)
        whole = np.concatenate([self.array, own])
        return type(self.given)(whole, columns=self.given.columns) if hasattr(self.given, "columns") else whole


def rows_have_channels_last(rows: Shaped[np.ndarray, "n pixels"], shape: tuple[int, int, int]) -> bool:
    """Whether flattened images have their channels last: the layout in which neighbouring pixels are more alike.

    Raises:
        ValueError: if both layouts are about as smooth, so that one cannot tell.
    """
    channels, height, width = shape
    if channels == 1:
        return False
    some = rows[:256].astype(np.float64)
    first = np.abs(np.diff(some.reshape(-1, channels, height, width), axis=3)).mean()
    last = np.abs(np.diff(some.reshape(-1, height, width, channels), axis=2)).mean()
    if abs(first - last) <= 0.05 * max(first, last):
        raise ValueError(
            "Expected rows of images whose layout one can tell; channels first and last are as likely here. Pass "
            "images of shape (n, channels, height, width)."
        )
    return bool(last < first)


@dataclass(frozen=True)
class Classes:
    """Labels as a user has them, so that those of generated images can be put behind them.

    Attributes:
        given: what the user gave.
        array: the same as an array.
        numbers: the model's numbers of the classes.
    """

    given: Any
    array: np.ndarray
    numbers: Int64[np.ndarray, " n"]

    @classmethod
    def of(cls, given: Any, number_of: Callable[[Any], int]) -> "Classes":
        """Read labels, whatever their kind.

        Raises:
            ValueError: for labels that are no classes of the model.
        """
        array = np.asarray(given)
        if array.ndim == 2 and array.shape[1] > 1:
            if not (np.isin(array, (0, 1)).all() and (array.sum(1) == 1).all()):
                raise ValueError("Expected one class per image: one 1 in every row of one-hot labels.")
            return cls(given, array, np.array([number_of(int(k)) for k in array.argmax(1)], np.int64))
        if array.ndim not in (1, 2):
            raise ValueError(f"Expected one class per image; got labels of shape {array.shape}.")
        found, inverse = np.unique(array.reshape(len(array)), return_inverse=True)
        numbers = [number_of(label.item() if hasattr(label, "item") else label) for label in found]
        return cls(given, array, np.array(numbers, np.int64)[inverse])

    def followed_by(self, made: Int64[np.ndarray, " n"], names: Sequence[str]) -> Any:
        """The given labels, then those of generated images, all of one kind."""
        array = self.array
        if array.ndim == 2 and array.shape[1] > 1:
            return np.concatenate([array, np.eye(array.shape[1], dtype=array.dtype)[made]])
        own = np.array(names, dtype=object)[made] if array.dtype.kind in "USO" else made
        if array.dtype.kind != "O":  # text keeps its full length, whatever the longest label that was given
            own = own.astype(str if array.dtype.kind == "U" else array.dtype)
        whole = np.concatenate([array, own.reshape(len(own), *array.shape[1:])])
        kind = type(self.given)
        if hasattr(self.given, "categories"):  # a categorical of pandas
            return kind(whole, categories=self.given.categories, ordered=self.given.ordered)
        if hasattr(self.given, "to_frame") and hasattr(self.given, "name"):  # a Series
            return kind(whole, name=self.given.name).astype(self.given.dtype)
        return whole
