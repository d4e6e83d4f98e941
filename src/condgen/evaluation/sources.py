"""Where generated images come from: a model that draws them, or images that are there already."""

__all__ = []

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from condgen.data.images import LabelledImages
from condgen.io.archives import weights_hash
from condgen.io.pictures import to_uint8
from condgen.models.classes import num_classes
from condgen.random import permutation


@dataclass(frozen=True)
class Source:
    """Where generated images come from.

    Attributes:
        draw: (labels, seed) → uint8 images of these labels.
        labelled: whether images have labels.
        model: that draws them; None for images that are there already.
        available: how many images of each class there are; None: as many as asked for.
        about: of the model, for the page.
    """

    draw: Callable[[np.ndarray, int], UInt8[np.ndarray, "n channels height width"]]
    labelled: bool = True
    model: Any = None
    available: Int64[np.ndarray, " classes"] | None = None
    about: Mapping[str, Any] | None = None


def as_source(generated: Any, data: LabelledImages) -> Source:
    """A model or a set of images as a source of generated images for the classes of `data`.

    Raises:
        ValueError: if they do not fit the data.
    """
    shape = getattr(generated, "image_shape", None)
    if shape is not None and tuple(shape) != data.image_shape:
        raise ValueError(
            f"Expected generated images of {data.image_shape}, as {data.name!r} has; got {tuple(shape)}. Resize them, "
            "or load the real images in that size."
        )
    if isinstance(generated, LabelledImages):
        return from_images(generated, data)
    if not hasattr(generated, "sample"):
        raise TypeError(
            f"Expected a model or LabelledImages that were generated; got {type(generated).__name__}. "
            "Arrays: pass LabelledImages(images, labels)."
        )
    return from_model(generated, data)


def from_model(generator: Any, data: LabelledImages) -> Source:
    """Images drawn from a model as they are asked for."""
    labelled = generator.conditioner.columns > 0
    if data.kind == "class" and labelled and (classes := num_classes(generator)) != data.num_classes:
        raise ValueError(
            f"Expected a model of {data.num_classes} classes, as {data.name!r} has; this one knows {classes}. "
            "Evaluate it on the data it was trained on."
        )
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    described = {"parameters": parameters, "description": repr(generator)}
    described["weights"] = weights_hash(generator.state_dict())
    return Source(drawing(generator), labelled, generator, None, described)


def drawing(generator: Any) -> Callable[[np.ndarray, int], np.ndarray]:
    """(labels, seed) → uint8 images, from a model."""

    def draw(labels: np.ndarray, seed: int) -> np.ndarray:
        blocks = []
        for block in generator.sample_blocks(torch.as_tensor(labels), seed=seed):
            low, high = float(block.min()), float(block.max())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"Expected samples in [0, 1]; got values from {low:.4g} to {high:.4g}. Rescale them in the model."
                )
            blocks.append(to_uint8(block).cpu().numpy())
        return np.concatenate(blocks)

    return draw


def from_images(images: LabelledImages, data: LabelledImages) -> Source:
    """Images that are there already: in an order of the seed, and again from the start where more are asked for."""
    if not len(images):
        raise ValueError("Expected generated images; got none.")
    if images.kind != "class":
        raise ValueError(f"Expected generated images of classes; {images.name!r} has {images.kind} labels. Remap them.")
    images = images.ordered(data.class_names)
    members = [np.flatnonzero(images.labels == label) for label in range(data.num_classes)]
    counts = np.array([len(own) for own in members])
    if missing := [name for name, count in zip(data.class_names, counts, strict=True) if not count]:
        raise ValueError(
            f"Expected generated images of every class of {data.name!r}; there are none of {', '.join(missing)}. "
            "Generate some."
        )

    def draw(labels: np.ndarray, seed: int) -> np.ndarray:
        taken = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            places = np.flatnonzero(labels == label)
            order = members[label][permutation(len(members[label]), seed, int(label)).numpy()]
            taken[places] = np.resize(order, len(places))
        return images.images[taken]

    return Source(draw, available=counts)


def chosen(data: LabelledImages, source: Source, images: int | None, seed: int) -> Int64[np.ndarray, " n"]:
    """Which validation images stand for real ones: as many of each class as images will be generated of it.

    No more than there are test images, so that generated and held-out sets have one size and one mixture of classes.
    """
    for split in ("train", "validation", "test"):
        if split not in data.splits or not len(getattr(data, split)):
            raise ValueError(
                f"Expected training, validation and test images; {data.name!r} has none for {split}. Split it."
            )
    validation = data.validation
    most = min(len(validation), len(data.test), len(validation) if images is None else images)
    if most < 2:
        raise ValueError(f"Expected at least 2 images to evaluate; got {most}. Pass a larger number of images.")
    taken = validation.stratified(most / len(validation), seed)
    if source.available is None:
        return taken
    kept = [taken[validation.labels[taken] == label][:count] for label, count in enumerate(source.available)]
    return np.sort(np.concatenate(kept))
