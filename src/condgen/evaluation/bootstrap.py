"""How much a classifier's figures depend on which test images there happen to be: a bootstrap over images, paired."""

__all__ = ["image_spreads", "widened"]

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int64

from condgen.evaluation.statistics import Interval

RESAMPLES, SEED = 400, 0


def image_spreads(
    labels: Int64[np.ndarray, " images"],
    guesses: Sequence[Int64[np.ndarray, " images"]],
    baseline: Sequence[Int64[np.ndarray, " images"]] = (),
    *,
    quantities: Mapping[str, str | int],
    classes: int,
) -> dict[str, float]:
    """Standard deviations, over resampled test images, of figures that are means over classifiers.

    All classifiers look at the same resampled images, so that what one set of test images does to all of them cancels
    out of a difference.

    Args:
        labels: true classes of the test images.
        guesses: what each classifier said of them.
        baseline: what other classifiers said; a figure is then the difference of the two means.
        quantities: name → "accuracy", "macro_f1", or the number of a class for its recall.
        classes: number of classes.

    Returns:
        A standard deviation by each name.

    References:
        An introduction to the bootstrap (Efron & Tibshirani, 1993)

    Example:
        >>> labels = np.repeat([0, 1], 200)
        >>> guess = np.where(np.arange(400) % 5 == 0, 1 - labels, labels)  # 0.8 are right
        >>> wanted = {"": "accuracy"}
        >>> spread = image_spreads(labels, [guess], quantities=wanted, classes=2)[""]
        >>> abs(spread - (0.8 * 0.2 / 400) ** 0.5) < 0.003
        True
        >>> image_spreads(labels, [guess], [guess], quantities=wanted, classes=2)
        {'': 0.0}
    """
    counts = resamples(len(labels))
    own, others = ([confusions(counts, labels, guess, classes) for guess in some] for some in (guesses, baseline))
    found = {}
    for name, quantity in quantities.items():
        value = np.mean([figure(confusion, quantity) for confusion in own], axis=0)
        if others:
            value = value - np.mean([figure(confusion, quantity) for confusion in others], axis=0)
        found[name] = float(np.nanstd(value, ddof=1))
    return found


@functools.lru_cache(4)
def resamples(images: int) -> Float[np.ndarray, "resamples images"]:
    """How often each image is in each resample; the same whenever there are as many images."""
    counts = np.random.default_rng(SEED).multinomial(images, np.full(images, 1 / images), RESAMPLES)
    return counts.astype(np.float32)


def confusions(
    counts: Float[np.ndarray, "resamples images"], labels: np.ndarray, guesses: np.ndarray, classes: int
) -> Float[np.ndarray, "resamples classes classes"]:
    """Confusion matrices (truth by guess) of resampled images."""
    cells = np.zeros((len(labels), classes * classes), counts.dtype)
    cells[np.arange(len(labels)), np.asarray(labels) * classes + np.asarray(guesses)] = 1
    return (counts @ cells).reshape(-1, classes, classes)


def figure(confusion: Float[np.ndarray, "n classes classes"], quantity: str | int) -> Float[np.ndarray, " n"]:
    """Accuracy, macro-F1 over the classes that are there, or the recall of a class; NaN if it has no images."""
    right, truth, said = (
        np.diagonal(confusion, axis1=1, axis2=2),
        confusion.sum(2),
        confusion.sum(1),
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        if quantity == "accuracy":
            return right.sum(1) / truth.sum(1)
        if quantity == "macro_f1":
            return np.nanmean(np.where(truth > 0, 2 * right / (truth + said), np.nan), axis=1)
        return right[:, int(quantity)] / truth[:, int(quantity)]


def widened(interval: Interval | None, spread: float, low: float, high: float) -> Interval | None:
    """An interval over seeds, made wider by what other test images could have given, and kept within its range.

    The two reaches are independent, so their squares are added.

    Args:
        interval: over seeds; None stays None.
        spread: standard deviation over test images.
        low: the least that the figure can be.
        high: the most.

    Example:
        >>> widened((0.2, 0.8), 0.4 / 1.96, 0.0, 1.0), widened((0.5, 1.3), 0.0, 0.0, 1.0)
        ((0.0, 1.0), (0.5, 1.0))
    """
    if interval is None:
        return None
    centre = sum(interval) / 2
    reach = math.hypot((interval[1] - interval[0]) / 2, 1.96 * spread)
    return max(low, centre - reach), min(high, centre + reach)
