"""A membership attack: whether the model's likelihood tells training images from others."""

__all__ = ["membership_auc"]

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.evaluation.copies import Images
from condgen.evaluation.likelihood import density_unknown
from condgen.evaluation.reconstruction import check_labels, slices
from condgen.evaluation.records import Measure, about
from condgen.evaluation.statistics import Interval, delong, half_samples, members, two_spreads
from condgen.random import permutation

HALVES = 10


def membership_auc(
    model: Any,
    train_images: Images,
    train_labels: np.ndarray | Tensor,
    held_out_images: Images,
    held_out_labels: np.ndarray | Tensor,
    names: Sequence[str] = (),
    *,
    samples: int = 16,
    images: int = 500,
    seed: int = 0,
) -> Measure:
    """Whether training images can be told from others by the model's likelihood.

    The attacker takes images that the model finds more probable (by the importance-weighted bound) for training images.
    The area under the curve is the chance that a training image is more probable than another. As many training as
    held-out images of each class are compared, since some classes are more probable than others.

    Args:
        model: that infers latents (`infer`).
        train_images: that it was trained on, uint8 or floats in [0, 1].
        train_labels: class labels.
        held_out_images: real images that it was not trained on.
        held_out_labels: class labels.
        names: of the classes; none: nothing is said of single classes.
        samples: draws of z an image.
        images: how many of each at most are compared, the same share of every class.
        seed: of the draws, and of which images are taken.

    Returns:
        The area, with the interval of DeLong, DeLong & Clarke-Pearson (1988), which closes up where the two are told
        apart without error; its floor is 0.5, where the attacker learns nothing.

    Raises:
        ValueError: if there are not as many labels as images, or no class has images in both sets.

    References:
        LOGAN: membership inference attacks against generative models (Hayes, Melis, Danezis & De Cristofaro, 2019),
        https://arxiv.org/abs/1705.07663; comparing the areas under two or more correlated receiver operating
        characteristic curves, https://doi.org/10.2307/2531595

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(200, size=16)
        >>> model = condgen.conditional_vae((3, 16, 16), num_classes=8, latent=4, width=8)
        >>> auc = membership_auc(
        ...     model, cells.train.images, cells.train.labels, cells.test.images, cells.test.labels, samples=2
        ... )
        >>> auc.interval[0] < auc.floor < auc.interval[1]  # nothing was learned of them
        True
    """
    for own, labels in ((train_images, train_labels), (held_out_images, held_out_labels)):
        check_labels(own, labels)
    if unknown := density_unknown(model, train_labels):
        return Measure(None, floor=0.5, reason=unknown, **about("membership_auc"))
    train, held_out = matched(grouped(train_labels), grouped(held_out_labels), images, seed)
    if not len(train):
        raise ValueError("Expected training and held-out images of one class at least; the sets share none.")
    sets = ((train_images, train_labels, train), (held_out_images, held_out_labels, held_out))
    member, other = (scores(model, own[index], labels[index], samples, seed) for own, labels, index in sets)
    y = torch.as_tensor(train_labels)[torch.as_tensor(train)]
    of_class = {
        name: (member[members(y, label)], other[members(torch.as_tensor(held_out_labels)[held_out], label)])
        for label, name in enumerate(names)
    }
    rated = {name: delong(*pair) if min(map(len, pair)) > 1 else (None, None) for name, pair in of_class.items()}
    area, interval = delong(member, other)
    few = [name for name, (value, _) in rated.items() if value is None]
    return Measure(
        area,
        per_class={name: value for name, (value, _) in rated.items()},
        floor=0.5,
        interval=interval,
        per_class_floor={name: None if value is None else 0.5 for name, (value, _) in rated.items()},
        per_class_interval={name: ends for name, (_, ends) in rated.items()},
        reason=f"Fewer than two images of {', '.join(few)} in one of the sets." if few else "",
        **about("membership_auc"),
    )


def grouped(labels: Any) -> np.ndarray:
    """Class labels as they are; other labels as one class."""
    labels = np.asarray(labels)
    return labels if labels.ndim == 1 and labels.dtype.kind in "iu" else np.zeros(len(labels), np.int64)


def matched(train: Any, held_out: Any, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of as many images of each class from both sets, `most` at most."""
    train, held_out = np.asarray(train), np.asarray(held_out)
    counts = {c: min((train == c).sum(), (held_out == c).sum()) for c in np.intersect1d(train, held_out).tolist()}
    share = min(1.0, most / max(1, sum(counts.values())))
    taken: list[list[np.ndarray]] = [[], []]
    for label, count in counts.items():
        for side, labels in zip(taken, (train, held_out), strict=True):
            own = np.flatnonzero(labels == label)
            side.append(own[permutation(len(own), seed, len(side)).numpy()[: max(1, int(share * count))]])
    first, second = (np.sort(np.concatenate([np.empty(0, np.int64), *side])) for side in taken)
    return first, second


def scores(model: Any, images: Images, labels: Any, samples: int, seed: int) -> Float[Tensor, " n"]:
    """Importance-weighted log-likelihood of each image, nats."""
    parts = [
        model.log_likelihood(
            images[at], labels[at.start : at.stop], samples=samples, seed=seed, start=at.start, chunk=4
        )
        for at in slices(len(images))
    ]
    return torch.cat(parts).double().cpu()


def jackknife(
    function: Callable[[Tensor, Tensor], float | None], own: Tensor, theirs: Tensor, seed: int
) -> Interval | None:
    """The function's value, give or take twice the spread of its values on halves of both sets."""
    value = function(own, theirs)
    if value is None or min(len(own), len(theirs)) < 4:
        return None
    pairs = zip(half_samples(len(own), HALVES, seed), half_samples(len(theirs), HALVES, seed + 1), strict=True)
    values = [function(own[first], theirs[second]) for first, second in pairs]
    around = None if None in values else two_spreads(value, values)
    return None if around is None else (max(0.0, around[0]), around[1])
