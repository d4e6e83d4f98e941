"""Privacy: copies of training images, and what the likelihood gives away."""

__all__ = ["privacy_measures"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.evaluation.copies import Copies
from condgen.evaluation.membership import jackknife
from condgen.evaluation.records import Measure, about
from condgen.evaluation.statistics import Interval, members, newcombe, wilson


def privacy_measures(
    copies: Copies,
    labels: np.ndarray | Tensor | None = None,
    held_out_labels: np.ndarray | Tensor | None = None,
    names: Sequence[str] = (),
    *,
    seed: int = 0,
) -> dict[str, Measure]:
    """Near copies and nearest distances as measures.

    Args:
        copies: from :func:`~condgen.evaluation.copies.near_copies`.
        labels: of the generated images; None: nothing is said of single classes.
        held_out_labels: of the held-out ones.
        names: of the classes.
        seed: of the half-samples that the interval of the second comes from.

    Returns:
        `near_copies`, a share with Wilson's interval and Newcombe's of what it is above that of held-out images, and
        `nearest_distance_ratio`, the median distance of generated images from their nearest training image over that of
        held-out images, with the delete-half jackknife's.

    Raises:
        ValueError: if there are not as many labels as images.

    References:
        Probable inference, the law of succession, and statistical inference (Wilson, 1927),
        https://doi.org/10.1080/01621459.1927.10502953

    Example:
        >>> from condgen.evaluation.copies import near_copies
        >>> train, other = torch.rand(100, 50), torch.rand(40, 50)
        >>> found = privacy_measures(near_copies(train, train[:20], other))
        >>> found["near_copies"].overall, found["nearest_distance_ratio"].overall
        (1.0, 0.0)
    """
    check_sides(copies, labels, held_out_labels)
    classes = {}
    if labels is not None and held_out_labels is not None:
        classes = {name: (members(labels, k), members(held_out_labels, k)) for k, name in enumerate(names)}
    whole = (torch.arange(len(copies.ratio)), torch.arange(len(copies.held_out_ratio)))
    near, held_out_near = copies.near.double(), copies.held_out_near.double()

    def closeness(own: Tensor, theirs: Tensor) -> float | None:
        """Median distance of some generated images over that of some held-out ones."""
        if not (len(own) and len(theirs)):
            return None
        below = float(copies.held_out_distance[theirs].double().median())
        return float(copies.distance[own].double().median()) / below if below > 0 else None

    return {
        "near_copies": Measure(
            copies.share,
            per_class={name: share(near[own]) for name, (own, _) in classes.items()},
            floor=copies.floor,
            interval=interval(near),
            excess=newcombe(int(near.sum()), len(near), int(held_out_near.sum()), len(held_out_near)),
            per_class_floor={name: share(held_out_near[theirs]) for name, (_, theirs) in classes.items()},
            per_class_interval={name: interval(near[own]) for name, (own, _) in classes.items()},
            reason=said({name: own for name, (own, _) in classes.items()}, "generated"),
            **about("near_copies"),
        ),
        "nearest_distance_ratio": Measure(
            closeness(*whole),
            per_class={name: closeness(*pair) for name, pair in classes.items()},
            floor=1.0,
            interval=jackknife(closeness, *whole, seed),
            per_class_floor={name: None if closeness(*pair) is None else 1.0 for name, pair in classes.items()},
            per_class_interval={name: jackknife(closeness, *pair, seed) for name, pair in classes.items()},
            reason="Half of the held-out images are training images themselves."
            if closeness(*whole) is None
            else said({name: pair[0][: len(pair[1])] for name, pair in classes.items()}, "generated or held-out"),
            **about("nearest_distance_ratio"),
        ),
    }


def share(near: Float[Tensor, " n"]) -> float | None:
    """Of ones; None of nothing."""
    return float(near.mean()) if len(near) else None


def interval(near: Float[Tensor, " n"]) -> Interval | None:
    """Wilson's interval of a share, which holds at shares near 0 too; None of nothing."""
    return wilson(int(near.sum()), len(near)) if len(near) else None


def said(classes: dict[str, Tensor], kind: str) -> str:
    """Which classes have no images."""
    absent = [name for name, own in classes.items() if not len(own)]
    return f"No {kind} images of {', '.join(absent)}." if absent else ""


def check_sides(copies: Copies, labels: Any, held_out_labels: Any) -> None:
    """Raise unless there is a label for each image, or none at all."""
    for own, images in ((labels, copies.ratio), (held_out_labels, copies.held_out_ratio)):
        if own is not None and len(own) != len(images):
            raise ValueError(f"Expected one label for each image; got {len(images)} images and {len(own)} labels.")
