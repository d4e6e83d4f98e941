"""Batches: one pass over images and labels that already lie where they are needed."""

__all__ = ["Batch", "Images", "batches", "image_tensor"]

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from condgen.random import Use, permutation, stream, uniform

BALANCED = 2  # level of the stream ORDER
Images = tuple[Tensor, Any]  # images, and labels: a tensor, or a tuple of tensors with one row for each image


class Batch(NamedTuple):
    """Images, labels, and their numbers in the set."""

    index: Int64[Tensor, " batch"]  # pyright: ignore[reportIncompatibleMethodOverride]
    x: Float[Tensor, "batch ..."]
    y: Any


def batches(
    images: Shaped[Tensor, "images ..."],
    labels: Shaped[Tensor, "images ..."] | tuple[Tensor, ...],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    balance: Float[Tensor, " images"] | None = None,
    start: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """One pass over tensors that already are where they are needed, last partial batch included.

    Args:
        images: on the device that trains, uint8 (images, channels, height, width) unless `prepare` takes others.
        labels: on the same device; a tuple of tensors for labels of several parts.
        batch_size: images a batch.
        seed: of the order.
        epoch: the order is a function of (seed, epoch); None keeps the order of the set.
        prepare: makes x of what lies in `images`; by default :func:`image_tensor`.
        balance: weight of each image: the pass draws as many images as there are, with replacement, in proportion.
        start: batches that are left out at the beginning.
        part: (k, n): every n-th image of each batch, from the k-th on, for one of n devices. One that has no share in a
            small batch gets its first image, which is not to count.

    Yields:
        Batches with x in [0, 1].

    Example:
        >>> images, labels = torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5)
        >>> [batch.index.tolist() for batch in batches(images, labels, 2)]
        [[0, 1], [2, 3], [4]]
    """
    n, device = len(images), images.device
    if balance is not None and epoch is not None:
        u = uniform(seed, torch.arange(n, device=device), stream(Use.ORDER, epoch, BALANCED), ())
        edges = balance.to(device).double().cumsum(0)
        order = torch.searchsorted(edges, u * edges[-1], right=True).clamp(max=n - 1)
    else:
        order = torch.arange(n, device=device) if epoch is None else permutation(n, seed, epoch, device)
    places = torch.arange(start * batch_size, max(n, start * batch_size), device=device)
    for whole in places.split(batch_size) if len(places) else ():
        place = whole[part[0] :: part[1]] if part[0] < len(whole) else whole[:1]
        index = order[place]
        # An image drawn twice gets noise of its own each time.
        numbers = index if balance is None else place
        y = tuple(part[index] for part in labels) if isinstance(labels, tuple) else labels[index]
        yield Batch(numbers, (prepare or image_tensor)(images[index]), y)


def image_tensor(images: Tensor | np.ndarray) -> Float[Tensor, "batch channels height width"]:
    """Images as float tensors in [0, 1]: uint8 is divided by 255, floats are taken as they are once checked.

    Raises:
        ValueError: if floats are not finite or leave [0, 1].
        TypeError: for any other type.

    Example:
        >>> image_tensor(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))
        tensor([[[[1.]]]])
    """
    # A copy: torch warns about arrays it may not write to, such as a memory map.
    images = torch.tensor(images) if isinstance(images, np.ndarray) else images
    if images.dtype == torch.uint8:
        return images.to(torch.get_default_dtype()) / 255
    if not images.is_floating_point():
        raise TypeError(f"Expected images as uint8 or as floats in [0, 1]; got {images.dtype}.")
    if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"Expected float images in [0, 1]; got values from {low:.4g} to {high:.4g}. Rescale them.")
    return images
