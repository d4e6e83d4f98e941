"""Truth to the label: whether a generated image shows the class it was asked for, as the judge sees it."""

__all__ = ["LABELS", "LabelTruth", "label_measures", "label_truth", "wilson"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from condgen.metrics.measures import Measure

LABELS: Mapping[str, Mapping[str, Any]] = {
    "label_accuracy": {
        "better": "higher",
        "unit": "share of images",
        "meaning": "Share of generated images that the judge takes for the class asked for; above the real figure, the "
        "images are clearer cases than real ones.",
    },
    "label_macro": {
        "better": "higher",
        "unit": "share of images",
        "meaning": "The same, every class counted alike however many images it has.",
    },
}


@dataclass(frozen=True)
class LabelTruth:
    """How often the judge sees the class that was asked for.

    Attributes:
        accuracy: share of all images, in [0, 1].
        macro: mean over the classes that there are.
        recall: per class; None for one without images.
        interval: of the accuracy, 95 %.
        recall_interval: per class.
        confusion: images by class asked for (rows) and class seen (columns).

    Example:
        >>> import torch
        >>> truth = label_truth(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> truth.recall, truth.macro
        ((1.0, 0.5, None), 0.75)
    """

    accuracy: float
    macro: float
    recall: tuple[float | None, ...]
    interval: tuple[float, float]
    recall_interval: tuple[tuple[float, float] | None, ...]
    confusion: Int64[np.ndarray, "classes classes"]


def label_truth(probabilities: Float[Tensor, "n classes"], labels: Shaped[Any, " n"]) -> LabelTruth:
    """Compare the judge's most probable class with the label of each image.

    Args:
        probabilities: of the judge.
        labels: asked for, integers in [0, classes).

    Raises:
        ValueError: without images, or if a label is none of the judge's classes.

    Example:
        >>> import torch
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> truth = label_truth(probabilities, torch.tensor([0, 0, 1, 1]))
        >>> truth.accuracy, truth.recall, truth.confusion.tolist()
        (0.75, (1.0, 0.5), [[2, 0], [1, 1]])
    """
    from sklearn.metrics import confusion_matrix

    if not len(probabilities):
        raise ValueError("Expected at least one image; got none.")
    classes, asked_for = probabilities.shape[1], np.asarray(labels)
    if asked_for.min() < 0 or asked_for.max() >= classes:
        # scikit-learn leaves such images out without a word
        raise ValueError(
            f"Expected labels in [0, {classes}), the judge's classes; got {asked_for.min()} to {asked_for.max()}. "
            "Remap them."
        )
    seen = probabilities.argmax(1).cpu().numpy()
    confusion = confusion_matrix(asked_for, seen, labels=range(classes)).astype(np.int64)
    right, asked = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    recall = tuple(r / n if n else None for r, n in zip(right, asked, strict=True))
    present = [value for value in recall if value is not None]
    return LabelTruth(
        accuracy=sum(right) / sum(asked),
        macro=sum(present) / len(present),
        recall=recall,
        interval=wilson(sum(right), sum(asked)),
        recall_interval=tuple(wilson(r, n) if n else None for r, n in zip(right, asked, strict=True)),
        confusion=confusion,
    )


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share: stays in [0, 1] and says something at 0 and 1.

    Args:
        right: how many.
        n: of how many, at least one.
        z: quantile of the normal distribution; 1.96 for 95 %.

    References:
        Probable inference, the law of succession, and statistical inference (Wilson, 1927),
        https://doi.org/10.1080/01621459.1927.10502953

    Example:
        >>> [round(end, 4) for end in wilson(9, 10)]
        [0.5958, 0.9821]
    """
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    # At 0 and 1 one end is the share itself, which rounding must not leave outside.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


def label_measures(generated: LabelTruth, real: LabelTruth, names: Sequence[str]) -> dict[str, Measure]:
    """`label_accuracy` and `label_macro`, with what the judge recognises of real images as ceiling.

    Args:
        generated: of generated images.
        real: of real ones that the judge was not trained on.
        names: of the classes.

    Example:
        >>> import torch
        >>> truth = label_truth(torch.eye(2), torch.tensor([0, 1]))
        >>> label_measures(truth, truth, ["round", "lobed"])["label_accuracy"].overall
        1.0
    """
    per_class = {
        "per_class": dict(zip(names, generated.recall, strict=True)),
        "per_class_floor": dict(zip(names, real.recall, strict=True)),
        "per_class_interval": dict(zip(names, generated.recall_interval, strict=True)),
    }
    absent = [name for name, value in zip(names, generated.recall, strict=True) if value is None]
    reason = f"no images of {', '.join(absent)}" if absent else ""
    found = {
        "label_accuracy": (generated.accuracy, real.accuracy, generated.interval),
        "label_macro": (generated.macro, real.macro, macro_interval(generated)),
    }
    return {
        name: Measure(overall, floor=floor, interval=interval, reason=reason, **per_class, **LABELS[name])
        for name, (overall, floor, interval) in found.items()
    }


def macro_interval(truth: LabelTruth) -> tuple[float, float]:
    """Of the mean recall, from those of the classes, in [0, 1] as they are.

    Distances to the lower ends add up as squares, and so do those to the upper ends: at a recall of 1 all doubt is
    below (Zou & Donner, 2008, https://doi.org/10.1002/sim.3095).
    """
    ends = [
        (value - pair[0], pair[1] - value)
        for value, pair in zip(truth.recall, truth.recall_interval, strict=True)
        if value is not None and pair is not None
    ]
    below, above = (math.hypot(*sides) / len(ends) for sides in zip(*ends, strict=True))
    return max(truth.macro - below, 0.0), min(truth.macro + above, 1.0)
