"""What the measures look at: real, held-out and generated images, and their features."""

__all__ = []

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.evaluation.arms import Usefulness
from condgen.evaluation.classifier import Classifier
from condgen.evaluation.latents import LatentHealth
from condgen.evaluation.network import network_features
from condgen.evaluation.records import Measure
from condgen.evaluation.sources import Source

PIXELS = 32  # a side that images are brought down to where pixels are compared


@dataclass(frozen=True)
class ImageSet:
    """Images and what the measures look at.

    Attributes:
        images: uint8.
        labels: of each.
        small: in [0, 1], brought down to 32 pixels a side.
        seen: features of the judge; None where there is none.
        other: (n, d), what the second look sees; None where none was asked for.
    """

    images: UInt8[np.ndarray, "n channels height width"]
    labels: Any
    small: Float[Tensor, "n channels rows columns"]
    seen: Any
    other: Any


@dataclass(frozen=True)
class Sets:
    """Real test images, held-out real images and generated images.

    Attributes:
        real: of the test split.
        held_out: of the validation split.
        generated: as many as held out, of the same labels.
        names: of the classes; none: generated images have no classes, and nothing is said about single ones.
        seed: of subsamples.
    """

    real: ImageSet
    held_out: ImageSet
    generated: ImageSet
    names: tuple[str, ...]
    seed: int


@dataclass
class Found:
    """What has been found so far."""

    measures: dict[str, Measure] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    latents: LatentHealth | None = None
    useful: Usefulness | None = None


def compared(
    look: Callable[[np.ndarray, Any], ImageSet],
    source: Source,
    data: LabelledImages,
    held_out: LabelledImages,
    labelled: bool,
    seed: int,
) -> Sets:
    """The three sets that are compared, the generated one drawn now."""
    return Sets(
        real=look(data.test.images, data.test.labels),
        held_out=look(held_out.images, held_out.labels),
        generated=look(source.draw(held_out.labels, seed), held_out.labels),
        names=tuple(data.class_names) if labelled else (),
        seed=seed,
    )


def looker(judge: Classifier | None, second: nn.Module | str | None) -> Callable[[np.ndarray, Any], ImageSet]:
    """Images and labels → what the measures look at."""
    if isinstance(second, str) and second != "pixels":
        raise ValueError(f"Expected a network, or 'pixels', for a second look; got {second!r}.")

    def look(images: np.ndarray, labels: Any) -> ImageSet:
        own, other = small(images), None
        if second == "pixels":
            other = F.adaptive_avg_pool2d(own, (min(own.shape[2], 8), min(own.shape[3], 8))).flatten(1)
        elif isinstance(second, nn.Module):
            other = network_features(second, images)
        return ImageSet(images, labels, own, None if judge is None else judge.embed(images), other)

    return look


def small(images: UInt8[np.ndarray, "n channels height width"]) -> Float[Tensor, "n channels rows columns"]:
    """Images in [0, 1], large ones brought down to 32 pixels a side by averaging.

    Example:
        >>> small(np.zeros((2, 3, 64, 28), np.uint8)).shape
        torch.Size([2, 3, 32, 28])
    """
    parts = []
    for start in range(0, len(images), 256):
        x = image_tensor(images[start : start + 256]).float()
        parts.append(F.adaptive_avg_pool2d(x, (min(x.shape[2], PIXELS), min(x.shape[3], PIXELS))))
    return torch.cat(parts)


def tensor(images: UInt8[np.ndarray, "..."]) -> Float[Tensor, "..."]:
    """Floats in [0, 1]."""
    return image_tensor(images).float()
