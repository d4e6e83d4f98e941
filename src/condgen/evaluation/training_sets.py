"""Training sets of a usefulness study, from real and generated images."""

__all__ = ["cut_class"]

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from condgen.data.images import LabelledImages
from condgen.evaluation.arms import CUTMIX, Arm, Counts, Draw, Images, Kind, Labels, LabelSets, Pool
from condgen.random import permutation


def rarest(train: LabelledImages) -> str:
    """The class with the fewest images; the first of several."""
    counts = train.class_counts
    return min(counts, key=lambda name: counts[name])


def class_count(train: LabelledImages, name: str) -> int:
    """Images of a class.

    Raises:
        ValueError: if there is no such class.
    """
    if name not in train.class_counts:
        raise ValueError(f"Expected a class among {', '.join(train.class_names)}; got {name!r}.")
    return train.class_counts[name]


def cut_class(train: LabelledImages, name: str, n: int, seed: int = 0) -> Int64[np.ndarray, " kept"]:
    """Sorted indices of the images that stay when one class is cut to n images, at random.

    A cut to fewer images is part of a cut to more. A generator meant to know no more than the cut set is trained on
    `train.subset(cut_class(train, name, n, seed))`.

    Args:
        train: images with class labels; indices count in it.
        name: the class to cut.
        n: how many of its images stay, all if it has no more.
        seed: the same seed keeps the same images.

    Raises:
        ValueError: if there is no such class.

    Example:
        >>> images = LabelledImages(np.zeros((6, 1, 8, 8), np.uint8), np.array([0, 1, 1, 0, 1, 1]))
        >>> images.subset(cut_class(images, "class 1", 2)).class_counts
        {'class 0': 2, 'class 1': 2}
    """
    class_count(train, name)
    of_class = train.labels == list(train.class_names).index(name)
    members = np.flatnonzero(of_class)
    stay = members[permutation(len(members), seed, 0).numpy()[:n]]
    return np.sort(np.concatenate([np.flatnonzero(~of_class), stay]))


def filling(labels: Labels, classes: int) -> Counts:
    """How many images bring each class up to the largest."""
    counts = np.bincount(labels, minlength=classes)
    return counts.max() - counts


def limited(counts: Counts, most: int | None) -> Counts:
    """Counts brought down to about `most` together, in their proportions, one of each class at least.

    Example:
        >>> limited(np.array([300, 100, 0]), 40).tolist()
        [30, 10, 0]
    """
    if most is None or counts.sum() <= most:
        return counts
    return np.where(counts > 0, np.maximum(counts * most // counts.sum(), 1), 0)


def empty_arm(kind: Kind, cut: int | None, labels: Labels, most: int | None = None) -> Arm:
    """An arm without runs, its images counted."""
    n, classes = len(labels), int(labels.max()) + 1
    fill = int(limited(filling(labels, classes), most).sum())
    alone = int(limited(np.bincount(labels), most).sum())
    real, generated = {"synthetic": (0, alone), "balanced": (n, fill)}.get(kind, (n, 0))
    return Arm(kind, cut, real, generated)


def draw_pool(draw: Draw, data: LabelledImages, label_sets: LabelSets, seed: int, most: int | None = None) -> Pool:
    """Generated images of each class, as many as the arm that needs most of it."""
    classes = data.num_classes
    whole = limited(np.bincount(label_sets[0], minlength=classes), most)
    fills = (limited(filling(labels, classes), most) for labels in label_sets)
    wanted = np.max([whole, *fills], axis=0).tolist()
    # A seed for each class: the images of two classes are drawn from different noise.
    seeds = [(seed * classes + label) % 2**63 for label in range(classes)]
    return [drawn(draw, label, wanted[label], seeds[label], data) for label in range(classes)]


def drawn(draw: Draw, label: int, count: int, seed: int, data: LabelledImages) -> Images:
    """Generated images of one class.

    Raises:
        ValueError: if there are not as many as asked, or of another shape.
        TypeError: if they are not uint8.
    """
    name = data.class_names[label]
    try:
        images = np.asarray(draw(np.full(count, label, np.int64), seed))
    except (ValueError, LookupError) as error:
        raise ValueError(f"The generator could not draw {count} images of {name!r}: {error}") from error
    expected = f"Expected {count} uint8 images of {name!r} of shape ({count}, {', '.join(map(str, data.image_shape))})"
    if images.dtype != np.uint8:
        raise TypeError(f"{expected}; the generator gave {images.dtype}. Pass floats in [0, 1] through to_uint8.")
    if images.shape != (count, *data.image_shape):
        raise ValueError(f"{expected}; the generator gave {images.shape}. One image a label, of the size of real ones.")
    return images


class TrainingSet(NamedTuple):
    """What a classifier learns from; without weights every pass takes every image once."""

    images: Images
    labels: Labels
    weights: Float[np.ndarray, " images"] | None
    cutmix: float = 0.0  # share of the batches that are mixed


def training_set(kind: Kind, images: Images, labels: Labels, pool: Pool, most: int | None = None) -> TrainingSet:
    """The set of an arm, from real images and enough generated ones of each class."""
    counts = np.bincount(labels, minlength=len(pool))
    if kind == "real":
        return TrainingSet(images, labels, None)
    if kind in ("oversampled", "cutmix"):
        return TrainingSet(images, labels, 1 / counts[labels], CUTMIX if kind == "cutmix" else 0.0)
    wanted = limited(counts if kind == "synthetic" else filling(labels, len(pool)), most)
    generated = [of_class[:n] for of_class, n in zip(pool, wanted.tolist(), strict=True)]
    generated_labels = np.repeat(np.arange(len(pool)), wanted)
    if kind == "synthetic":
        return TrainingSet(np.concatenate(generated), generated_labels, None)
    return TrainingSet(np.concatenate([images, *generated]), np.concatenate([labels, generated_labels]), None)
