"""Measures: a value beside what real images reach, per class and overall, with an interval.

Two sets of images are compared by a function of their features. The same function, given held-out real images in
place of the generated ones, gives the floor (where low is good) or the ceiling (where high is good). The interval comes
from half-samples drawn without replacement: a bootstrap would draw images twice, which biases distances between
covariances and makes images their own neighbours.
"""

__all__ = ["Better", "Measure", "Unmeasurable", "compare", "half_samples"]

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from condgen.noise import permutation

Better = Literal["lower", "higher", "floor"]
Samples = Tensor | tuple[Tensor, ...]
Function = Callable[[Any, Any], Mapping[str, Any]]
Interval = tuple[float, float]


class Unmeasurable(ValueError):  # noqa: N818 - it is no error, it stands for a value
    """Too little to measure; the message says why.

    Example:
        >>> raise Unmeasurable("one image has no distances")
        Traceback (most recent call last):
            ...
        condgen.metrics.measures.Unmeasurable: one image has no distances
    """


@dataclass(frozen=True)
class Measure:
    """A measure of generated images beside what real ones reach.

    Args:
        overall: the value on all images; None if it could not be taken.
        per_class: class name → value.
        floor: the same measure on held-out real images, as many; for "higher" it is a ceiling.
        interval: of `overall`, about two standard errors either side, or 95 %.
        per_class_floor: class name → floor.
        per_class_interval: class name → interval.
        better: "lower" or "higher" values are better, or those nearest to the "floor".
        unit: such as "nats per image".
        meaning: one sentence for readers who do not know the measure.
        reason: why something is None.

    Raises:
        ValueError: if a number is not finite, or `overall` is None without a reason.

    Example:
        >>> Measure(2.0, floor=1.0, interval=(1.8, 2.2)).to_json()["interval"]
        [1.8, 2.2]
    """

    overall: float | None
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    floor: float | None = None
    interval: Interval | None = None
    per_class_floor: Mapping[str, float | None] = field(default_factory=dict)
    per_class_interval: Mapping[str, Interval | None] = field(default_factory=dict)
    better: Better = "lower"
    unit: str = ""
    meaning: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        tables = [self.per_class.values(), self.per_class_floor.values()]
        ends = [self.interval, *self.per_class_interval.values()]
        numbers = [self.overall, self.floor, *(value for table in tables for value in table)]
        numbers += [end for pair in ends if pair is not None for end in pair]
        if bad := [number for number in numbers if number is not None and not math.isfinite(number)]:
            raise ValueError(f"Expected finite figures; got {bad[0]}. Leave it None, with a reason.")
        if self.overall is None and not self.reason:
            raise ValueError("Expected a reason for a measure without a value; got none.")

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, lists and text that JSON holds."""
        return {name: plain(value) for name, value in asdict(self).items()}


def plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def compare(
    function: Function,
    real: Samples,
    generated: Samples,
    held_out: Samples | None,
    *,
    real_labels: np.ndarray | Tensor | None = None,
    labels: np.ndarray | Tensor | None = None,
    held_out_labels: np.ndarray | Tensor | None = None,
    names: Sequence[str] = (),
    describe: Mapping[str, Mapping[str, Any]],
    within: bool = False,
    subsamples: int = 10,
    seed: int = 0,
) -> dict[str, Measure]:
    """Compare generated images with real ones, overall and class by class.

    Args:
        function: (real, generated) → name → value; raises `Unmeasurable` where a set is too small, or gives one in
            the place of a single value.
        real: what the function compares, a tensor (n, ...) or a tuple of them.
        generated: the same of generated images.
        held_out: the same of held-out real images, as many; None: no floor.
        real_labels: of the real images.
        labels: of the generated images. None: nothing is said of single classes.
        held_out_labels: of the held-out ones; None: those of the generated images.
        names: of the classes.
        describe: name → `better`, `unit` and `meaning`, one entry a value of the function.
        within: the overall value is the mean over classes, so that distances between classes do not enter.
        subsamples: half-samples for the interval; under three there is none.
        seed: of the half-samples.

    Raises:
        ValueError: if labels are not one for each image, or samples are not finite.

    References:
        A general theory for jackknife variance estimation (Shao & Wu, 1989), https://doi.org/10.1214/aos/1176347263

    Example:
        >>> def means(real, generated):
        ...     return {"difference": float(generated.mean() - real.mean())}
        >>> x = torch.arange(40.0)
        >>> found = compare(means, x, x + 2, x, describe={"difference": {"better": "floor"}})
        >>> found["difference"].overall, found["difference"].floor
        (2.0, 0.0)
    """
    floor_labels = labels if held_out_labels is None else held_out_labels
    check("real", real, real_labels)
    check("generated", generated, labels)
    if held_out is not None:
        check("held-out", held_out, floor_labels)
    of = Comparison(function, list(describe), subsamples, seed)
    classes = {}
    if labels is not None and floor_labels is not None and real_labels is not None:
        for label, name in enumerate(names):
            theirs, own = members(real_labels, label), members(labels, label)
            others = None if held_out is None else rows(held_out, members(floor_labels, label))
            classes[name] = of(rows(real, theirs), rows(generated, own), others)
    whole = (
        average(list(classes.values())) if within and classes else of(real, generated, held_out, real_labels, labels)
    )
    return {
        name: Measure(
            overall=whole.value[name],
            per_class={key: part.value[name] for key, part in classes.items()},
            floor=whole.floor[name],
            interval=whole.interval[name],
            per_class_floor={key: part.floor[name] for key, part in classes.items()},
            per_class_interval={key: part.interval[name] for key, part in classes.items()},
            reason="; ".join(reasons(name, whole, classes)),
            **about,
        )
        for name, about in describe.items()
    }


def check(name: str, samples: Samples, labels: np.ndarray | Tensor | None) -> None:
    """Refuse labels that are not one for each image, which would silently compare others, and figures like NaN."""
    parts = samples if isinstance(samples, tuple) else (samples,)
    if any(len(part) != len(parts[0]) for part in parts) or (labels is not None and len(labels) != len(parts[0])):
        counts = ", ".join(str(len(part)) for part in parts)
        given = "" if labels is None else f" and {len(labels)} labels"
        raise ValueError(f"Expected one label for each {name} image; got {counts} images{given}. Pass them as pairs.")
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError(f"Expected finite figures of the {name} images; some are not. Check what computes them.")


@dataclass(frozen=True)
class Compared:
    """What a comparison gave: name → value, floor, interval; and why values and floors are None."""

    value: Mapping[str, float | None]
    floor: Mapping[str, float | None]
    interval: Mapping[str, Interval | None]
    reason: Mapping[str, str]
    floor_reason: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """A function of two sets, with floor and interval."""

    function: Function
    names: Sequence[str]
    subsamples: int
    seed: int

    def __call__(
        self,
        real: Samples,
        generated: Samples,
        held_out: Samples | None,
        real_labels: np.ndarray | Tensor | None = None,
        labels: np.ndarray | Tensor | None = None,
    ) -> Compared:
        """Value, floor and interval."""
        value, reason = self.taken(real, generated)
        floor, floor_reason = self.floors(real, held_out)
        known = any(number is not None for number in value.values())
        halves = list(self.half_values(real, generated, real_labels, labels)) if known else []
        intervals = {name: around(value[name], [half[name] for half in halves]) for name in self.names}
        return Compared(value, floor, intervals, reason, floor_reason)

    def floors(self, real: Samples, held_out: Samples | None) -> tuple[dict[str, float | None], dict[str, str]]:
        """The same of held-out images, if there are any."""
        if held_out is None:
            return dict.fromkeys(self.names), dict.fromkeys(self.names, "there are no held-out images")
        return self.taken(real, held_out)

    def taken(self, real: Samples, generated: Samples) -> tuple[dict[str, float | None], dict[str, str]]:
        """The function's values, None where there is a reason for it."""
        try:
            found: Mapping[str, Any] = self.function(real, generated)
        except Unmeasurable as error:
            found = dict.fromkeys(self.names, error)
        value: dict[str, float | None] = dict.fromkeys(self.names)
        reason: dict[str, str] = {}
        for name in self.names:
            if isinstance(one := found[name], Unmeasurable):
                reason[name] = str(one)
            else:
                value[name] = float(one)
        return value, reason

    def half_values(
        self, real: Samples, generated: Samples, real_labels: Any, labels: Any
    ) -> Iterator[Mapping[str, float | None]]:
        """Values on half of either set, without replacement, half of each class."""
        theirs = half_samples(size(real), self.subsamples, self.seed, real_labels)
        own = half_samples(size(generated), self.subsamples, self.seed + 1, labels)
        for first, second in zip(theirs, own, strict=True):
            yield self.taken(rows(real, first), rows(generated, second))[0]


def around(value: float | None, halves: Sequence[float | None]) -> Interval | None:
    """The value, give or take twice the spread of its half-samples; None where there are too few of them."""
    there = [half for half in halves if half is not None]
    if value is None or len(there) < 3:
        return None
    spread = float(np.std(there, ddof=1))
    return value - 2 * spread, value + 2 * spread


def half_samples(
    n: int, count: int, seed: int = 0, labels: np.ndarray | Tensor | None = None
) -> Iterator[Int64[Tensor, " half"]]:
    """Indices of halves of n images, drawn without replacement, half of each class where there are labels.

    The spread of a statistic over such halves estimates the standard error of the statistic on all n: the variance
    of a mean of b out of n is (1/b - 1/n) s², which for b = n/2 is s²/n.

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


def rows(samples: Samples, index: Tensor) -> Samples:
    """Some of the samples."""
    return tuple(part[index] for part in samples) if isinstance(samples, tuple) else samples[index]


def size(samples: Samples) -> int:
    """How many samples there are."""
    return len(samples[0]) if isinstance(samples, tuple) else len(samples)


def reasons(name: str, whole: Compared, classes: Mapping[str, Compared], most: int = 3) -> Iterator[str]:
    """Why there is no overall value, or none for some classes; then the same of floors and of intervals."""
    if name in whole.reason:
        yield whole.reason[name]
        return
    missing = [f"{key}: {part.reason[name]}" for key, part in classes.items() if name in part.reason]
    yield from missing[:most]
    if len(missing) > most:
        yield f"and {len(missing) - most} more classes"
    measured = {"": whole, **{f" of {key}": part for key, part in classes.items() if name not in part.reason}}
    floorless = {of: part.floor_reason[name] for of, part in measured.items() if name in part.floor_reason}
    if floorless:
        of, why = next(iter(floorless.items()))
        yield f"no floor{of}: {why}"
    if any(part.interval[name] is None for part in measured.values()):
        yield "no interval where half of the images are too few"


def average(parts: Sequence[Compared]) -> Compared:
    """Means over classes. Classes are drawn apart from each other, so the variances of their values add up."""
    names = list(parts[0].value)
    value = {name: mean([part.value[name] for part in parts]) for name in names}
    intervals: dict[str, Interval | None] = {}
    for name in names:
        pairs = [pair for part in parts if (pair := part.interval[name]) is not None]
        half = math.sqrt(sum(((high - low) / 2) ** 2 for low, high in pairs)) / len(pairs) if pairs else 0.0
        middle = value[name]
        intervals[name] = (middle - half, middle + half) if pairs and middle is not None else None
    floor = {name: mean([part.floor[name] for part in parts]) for name in names}
    reason = {name: parts[0].reason[name] for name in names if value[name] is None}
    floor_reason = {name: parts[0].floor_reason[name] for name in names if floor[name] is None}
    return Compared(value, floor, intervals, reason, floor_reason)


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are there."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
