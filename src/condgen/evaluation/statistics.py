"""Statistics: means, intervals, half-samples and two-sample distances that the measures share."""

__all__ = [
    "delong",
    "half_samples",
    "mean",
    "newcombe",
    "normal",
    "spread",
    "student",
    "two_spreads",
    "unbiased_mmd",
    "wilson",
]

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from condgen.random import permutation

Interval = tuple[float, float]
Values = Sequence[float | None]


def mean(values: Values) -> float | None:
    """The mean; None without values, or where one is None or NaN.

    Example:
        >>> mean([1.0, 2.0]), mean([1.0, None])
        (1.5, None)
    """
    known = [value for value in values if value is not None and not math.isnan(value)]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def spread(values: Values) -> float | None:
    """Standard deviation of a sample; None where a value is missing or there is one only.

    Example:
        >>> spread([1.0, 3.0]) == 2**0.5, spread([1.0])
        (True, None)
    """
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 and len(known) == len(values) else None


def student(values: Values, confidence: float = 0.95) -> Interval | None:
    """Student's interval of the mean of a few independent values, such as over seeds; None for fewer than two.

    With two values it reaches 12.7 standard errors to either side, with three 4.3: so few say little.

    Example:
        >>> low, high = student([1.0, 3.0])
        >>> round(low, 2), round(high, 2)
        (-10.71, 14.71)
    """
    from scipy.stats import t

    centre, deviation = mean(values), spread(values)
    if centre is None or deviation is None:
        return None
    reach = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return centre - reach, centre + reach


def normal(values: Float[Tensor, " n"]) -> Interval | None:
    """Mean ± 1.96 standard errors, of a figure taken image by image; None for fewer than two.

    Example:
        >>> normal(torch.tensor([1.0, 3.0])) == (2 - 1.96, 2 + 1.96)
        True
    """
    if len(values) < 2:
        return None
    centre, error = float(values.double().mean()), float(values.double().std()) / math.sqrt(len(values))
    return centre - 1.96 * error, centre + 1.96 * error


def wilson(right: int, n: int) -> Interval:
    """Wilson's 95 % interval of a share: stays in [0, 1] and says something at 0 and 1.

    Args:
        right: how many.
        n: of how many, at least one.

    References:
        Probable inference, the law of succession, and statistical inference (Wilson, 1927),
        https://doi.org/10.1080/01621459.1927.10502953

    Example:
        >>> [round(end, 4) for end in wilson(9, 10)]
        [0.5958, 0.9821]
    """
    from scipy.stats import binomtest

    found = binomtest(right, n).proportion_ci(method="wilson")
    # At 0 and 1 one end is the share itself, which rounding must not leave outside.
    return max(min(float(found.low), right / n), 0.0), min(max(float(found.high), right / n), 1.0)


def newcombe(right: int, n: int, right_other: int, n_other: int) -> Interval:
    r"""Newcombe's 95 % interval of the difference of two independent shares, from Wilson's of each.

    .. math:: p_1 - p_2 - \sqrt{(p_1 - l_1)^2 + (u_2 - p_2)^2}, \qquad
              p_1 - p_2 + \sqrt{(u_1 - p_1)^2 + (p_2 - l_2)^2}

    Args:
        right: how many of the first.
        n: of how many, at least one.
        right_other: how many of the second.
        n_other: of how many, at least one.

    References:
        Interval estimation for the difference between independent proportions (Newcombe, 1998), method 10,
        https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I

    Example:
        >>> [round(end, 4) for end in newcombe(56, 70, 48, 80)]  # the example (a) of the paper
        [0.0524, 0.3339]
    """
    (low, high), (low_other, high_other) = wilson(right, n), wilson(right_other, n_other)
    p, other = right / n, right_other / n_other
    below, above = math.hypot(p - low, high_other - other), math.hypot(high - p, other - low_other)
    return p - other - below, p - other + above


def delong(member: Float[Tensor, " m"], other: Float[Tensor, " n"]) -> tuple[float, Interval]:
    """Area under the curve and its 95 % interval, within [0, 1].

    Args:
        member: scores of what should score high, at least two.
        other: scores of the rest, at least two.

    References:
        Comparing the areas under two or more correlated receiver operating characteristic curves: a nonparametric
        approach (DeLong, DeLong & Clarke-Pearson, 1988), https://doi.org/10.2307/2531595

    Example:
        >>> delong(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0]))[0]
        0.75
    """
    # Of each image: the share of the other set that it is ranked above, ties half.
    above = (member[:, None] > other).double() + (member[:, None] == other).double() / 2
    area = float(above.mean())
    error = math.sqrt(float(above.mean(1).var() / len(member) + above.mean(0).var() / len(other)))
    return area, (max(0.0, area - 1.96 * error), min(1.0, area + 1.96 * error))


def two_spreads(value: float | None, halves: Values) -> Interval | None:
    """The value, give or take twice the spread of its values on half-samples; None where there are too few of them.

    References:
        A general theory for jackknife variance estimation (Shao & Wu, 1989), https://doi.org/10.1214/aos/1176347263

    Example:
        >>> two_spreads(5.0, [4.0, 5.0, 6.0])
        (3.0, 7.0)
    """
    there = [half for half in halves if half is not None]
    if value is None or len(there) < 3:
        return None
    reach = 2 * float(np.std(there, ddof=1))
    return value - reach, value + reach


def half_samples(
    n: int, count: int, seed: int = 0, labels: np.ndarray | Tensor | None = None
) -> Iterator[Int64[Tensor, " half"]]:
    """Indices of halves of n images, drawn without replacement, half of each class where there are labels.

    The spread of a statistic over such halves estimates the standard error of the statistic on all n: the variance
    of a mean of b out of n is (1/b - 1/n) s², which for b = n/2 is s²/n. A bootstrap would draw images twice, which
    biases distances between covariances and makes images their own neighbours.

    Example:
        >>> [half.tolist() for half in half_samples(4, 2, labels=torch.tensor([0, 0, 1, 1]))]
        [[0, 3], [0, 2]]
    """
    labels = torch.zeros(n) if labels is None else torch.as_tensor(labels)
    classes = [torch.nonzero(labels == label)[:, 0] for label in labels.unique()]
    for draw in range(count):
        # Classes of odd size round up and down in turn, so that the half has half of all images.
        parts, odd = [], draw
        for number, own in enumerate(classes):
            take = (len(own) + odd % 2) // 2
            odd += len(own) % 2
            parts.append(own[permutation(len(own), seed, draw * len(classes) + number)[:take]])
        yield torch.cat(parts).sort().values


def members(labels: np.ndarray | Tensor, label: int) -> Int64[Tensor, " members"]:
    """Where a label is."""
    return torch.nonzero(torch.as_tensor(labels) == label)[:, 0]


def unbiased_mmd(xx: Float[Tensor, "n n"], yy: Float[Tensor, "m m"], xy: Float[Tensor, "n m"]) -> float:
    r"""Squared maximum mean discrepancy of two samples from the kernel between their points, unbiased.

    .. math:: \frac{1}{n(n-1)} \sum_{i \ne j} k(x_i, x_j) + \frac{1}{m(m-1)} \sum_{i \ne j} k(y_i, y_j)
              - \frac{2}{nm} \sum_{i, j} k(x_i, y_j)

    References:
        A kernel two-sample test (Gretton et al., 2012), https://jmlr.org/papers/v13/gretton12a.html

    Example:
        >>> k = torch.eye(2)
        >>> unbiased_mmd(k, k, k)  # below 0 where two samples are closer to each other than to themselves
        -1.0
    """
    within = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    return float(sum(within) - 2 * xy.mean())
