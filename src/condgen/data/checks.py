"""Checks of labelled images: names, labels, splits, and whether so many fit into memory."""

__all__ = ["check_memory"]

import os
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np


def check_names(names: tuple[str, ...]) -> None:
    """Raise unless every class has a name of its own that can be written."""
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"Expected a name of its own for every class; got {twice[0]!r} more than once.")
    for name in names:
        try:
            str(name).encode()
        except UnicodeEncodeError:  # a folder's name in another encoding
            raise ValueError(f"Expected class names in UTF-8; got {str(name)!a}. Rename the class.") from None


def check_labels(labels: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise unless the labels stay within the named classes."""
    if labels.ndim == 2:
        if labels.shape[1] != len(names):
            raise ValueError(f"Expected {len(names)} label columns, one per name; got {labels.shape[1]}.")
        return
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or (len(labels) and high >= len(names)):
        raise ValueError(
            f"Expected labels in [0, {len(names)}), one class per name; got {low if low < 0 else high}. "
            "Name more classes or remap the labels."
        )


def check_splits(splits: Mapping[str, slice | np.ndarray], n: int) -> None:
    """Raise unless no image is in two splits, nor twice in one."""
    taken, places = np.zeros(n, bool), np.arange(n)
    for name, indices in splits.items():
        try:
            members = places[indices]
        except IndexError as error:
            raise ValueError(f"Expected indices of {n} images in split {name!r}; {error}.") from error
        if taken[members].any() or len(np.unique(members)) < len(members):
            raise ValueError(
                f"Expected every image in one split at most; {name!r} shares some with another or has them twice."
            )
        taken[members] = True


def check_memory(n: int, image_shape: Sequence[int]) -> None:
    """Raise if this many images of this shape are more than this machine's memory.

    Example:
        >>> check_memory(6000, (3, 100_000, 100_000))
        Traceback (most recent call last):
            ...
        ValueError: 6,000 images of (3, 100000, 100000) take 167,638 GiB; this machine has ... GiB. Take fewer or ...
    """
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**36
    size = n * int(np.prod(image_shape, dtype=object))
    if size > have:
        raise ValueError(
            f"{n:,} images of {tuple(image_shape)} take {size / 2**30:,.0f} GiB; this machine has {have >> 30} GiB. "
            "Take fewer or smaller ones."
        )
