"""Comparison: any function of two sets of images, beside its floor, per class and overall, with intervals.

The same function, given held-out real images in place of the generated ones, gives the floor (where low is good) or the
ceiling (where high is good).
"""

__all__ = ["compare"]

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from condgen.evaluation.records import Measure, Unmeasurable, about
from condgen.evaluation.statistics import Interval, half_samples, members, two_spreads

LEAST = 20  # images of a set whose halves say how far a figure may be off
Samples = Tensor | tuple[Tensor, ...]
Function = Callable[[Any, Any], Mapping[str, Any]]
Found = dict[str, float | None]


def compare(
    function: Function,
    real: Samples,
    generated: Samples,
    held_out: Samples | None,
    *,
    names: Sequence[str] | Mapping[str, str],
    real_labels: np.ndarray | Tensor | None = None,
    labels: np.ndarray | Tensor | None = None,
    held_out_labels: np.ndarray | Tensor | None = None,
    classes: Sequence[str] = (),
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
        names: names of the function's values; a dictionary says what their measures are called if not the same.
        real_labels: of the real images.
        labels: of the generated images. None: nothing is said of single classes.
        held_out_labels: of the held-out ones; None: those of the generated images.
        classes: names of the classes.
        within: the overall value is the mean over classes, so that distances between classes do not enter.
        subsamples: half-samples for the intervals; under three there are none, nor for fewer than 20 images.
        seed: of the half-samples.

    Raises:
        ValueError: if labels are not one for each image, or samples are not finite.

    Example:
        >>> import torch
        >>> def means(real, generated):
        ...     return {"difference": float(generated.mean() - real.mean())}
        >>> x = torch.arange(40.0)
        >>> found = compare(means, x, x + 2, x, names=["difference"])
        >>> found["difference"].overall, found["difference"].floor
        (2.0, 0.0)
    """
    floor_labels = labels if held_out_labels is None else held_out_labels
    check("real", real, real_labels)
    check("generated", generated, labels)
    if held_out is not None:
        check("held-out", held_out, floor_labels)
    called = names if isinstance(names, Mapping) else {name: name for name in names}
    of = Comparison(function, list(called), subsamples, seed)
    parts = {}
    if labels is not None and floor_labels is not None and real_labels is not None:
        for label, name in enumerate(classes):
            others = None if held_out is None else rows(held_out, members(floor_labels, label))
            parts[name] = of(rows(real, members(real_labels, label)), rows(generated, members(labels, label)), others)
    if within and parts:
        whole = average(list(parts.values()))
    else:
        whole = of(real, generated, held_out, (real_labels, labels, floor_labels))
    return {
        called[name]: Measure(
            overall=whole.value[name],
            per_class={key: part.value[name] for key, part in parts.items()},
            floor=whole.floor[name],
            interval=whole.interval[name],
            excess=whole.excess[name],
            per_class_floor={key: part.floor[name] for key, part in parts.items()},
            per_class_interval={key: part.interval[name] for key, part in parts.items()},
            reason="; ".join(reasons(name, whole, parts)),
            **about(called[name]),
        )
        for name in names
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
    """What a comparison gave: name → value, floor and intervals; and why values and floors are None."""

    value: Found
    floor: Found
    interval: Mapping[str, Interval | None]
    excess: Mapping[str, Interval | None]
    reason: Mapping[str, str]
    floor_reason: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """A function of two sets, with floor and intervals."""

    function: Function
    names: Sequence[str]
    subsamples: int
    seed: int

    def __call__(
        self, real: Samples, generated: Samples, held_out: Samples | None, labels: Sequence[Any] | None = None
    ) -> Compared:
        """Value, floor and the value's interval; with labels of whole sets, the interval of what exceeds the floor."""
        value, reason = self.taken(real, generated)
        floor, floor_reason = dict.fromkeys(self.names), dict.fromkeys(self.names, "there are no held-out images")
        if held_out is not None:
            floor, floor_reason = self.taken(real, held_out)
        sets = [real, generated]
        if labels is not None and held_out is not None and any(number is not None for number in floor.values()):
            sets.append(held_out)
        known = min(map(size, sets)) >= LEAST and any(number is not None for number in value.values())
        halves = list(self.halves(sets, labels or (None,) * len(sets))) if known else []
        interval = {name: two_spreads(value[name], [half[name] for half, _ in halves]) for name in self.names}
        beyond = {name: [minus(half[name], base[name]) for half, base in halves] for name in self.names}
        excess = {name: two_spreads(minus(value[name], floor[name]), beyond[name]) for name in self.names}
        return Compared(value, floor, interval, excess, reason, floor_reason)

    def taken(self, real: Samples, generated: Samples) -> tuple[Found, dict[str, str]]:
        """The function's values, None where there is a reason for it."""
        try:
            found: Mapping[str, Any] = self.function(real, generated)
        except Unmeasurable as error:
            found = dict.fromkeys(self.names, error)
        reason = {name: str(found[name]) for name in self.names if isinstance(found[name], Unmeasurable)}
        return {name: None if name in reason else float(found[name]) for name in self.names}, reason

    def halves(self, sets: Sequence[Samples], labels: Sequence[Any]) -> Iterator[tuple[Found, Found]]:
        """Values and floors on half of each set, without replacement, half of each class."""
        each = [
            half_samples(size(own), self.subsamples, self.seed + k, y)
            for k, (own, y) in enumerate(zip(sets, labels, strict=False))
        ]
        for places in zip(*each, strict=True):
            half = [rows(own, place) for own, place in zip(sets, places, strict=True)]
            nothing: Found = dict.fromkeys(self.names)
            yield self.taken(half[0], half[1])[0], self.taken(half[0], half[2])[0] if len(half) > 2 else nothing


def minus(value: float | None, floor: float | None) -> float | None:
    """The difference, where both are known."""
    return None if value is None or floor is None else value - floor


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

    def over(found: Sequence[Found]) -> Found:
        return {name: known_mean([one[name] for one in found]) for name in names}

    def around(middle: Found, found: Sequence[Mapping[str, Interval | None]]) -> dict[str, Interval | None]:
        pairs = {name: [pair for one in found if (pair := one[name]) is not None] for name in names}
        reach = {name: math.hypot(*((b - a) / 2 for a, b in own)) / max(len(own), 1) for name, own in pairs.items()}
        # Of classes that have a value and no interval nothing is known, and so nothing of their mean.
        counts = {name: sum(part.value[name] is not None for part in parts) for name in names}
        there = {
            name: m for name, m in middle.items() if m is not None and pairs[name] and len(pairs[name]) == counts[name]
        }
        return {
            name: (there[name] - reach[name], there[name] + reach[name]) if name in there else None for name in names
        }

    value, floor = over([part.value for part in parts]), over([part.floor for part in parts])
    return Compared(
        value,
        floor,
        around(value, [part.interval for part in parts]),
        dict.fromkeys(names),
        {name: parts[0].reason[name] for name in names if value[name] is None},
        {name: parts[0].floor_reason[name] for name in names if floor[name] is None},
    )


def known_mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are there."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
