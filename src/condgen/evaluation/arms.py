"""The plan of a usefulness study, its arms, and what classifiers did in each."""

__all__ = ["FULL", "QUICK", "Arm", "Run", "StudyPlan", "Usefulness"]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from condgen.evaluation.records import plain
from condgen.evaluation.statistics import Values, mean, spread

Images = UInt8[np.ndarray, "images channels height width"]
Labels = Int64[np.ndarray, " images"]
Counts = Int64[np.ndarray, " classes"]
Pool = Sequence[UInt8[np.ndarray, "_ channels height width"]]  # one entry a class
LabelSets = Sequence[Int64[np.ndarray, "_"]]
Draw = Callable[[np.ndarray, int], Any]
Kind = Literal["real", "oversampled", "synthetic", "balanced"]
KINDS: tuple[Kind, ...] = ("real", "oversampled", "synthetic", "balanced")
CUT_KINDS: tuple[Kind, ...] = ("real", "oversampled", "balanced")
REAL_ONLY = ("real", "oversampled")


@dataclass(frozen=True)
class StudyPlan:
    """How much training a verdict on usefulness is worth.

    Args:
        seeds: classifiers an arm; each has initial weights, an order and generated images of its own.
        steps: optimiser steps of every classifier, whatever it is trained on.
        batch_size: images a step.
        width: of the classifier.
        cuts: to how many images the rare class is cut, one set of arms each.
        milestones: how often along the training the validation split is looked at, the last time at its end.
        most: generated images an arm has at most, in the proportions that it would have without; None for all.

    Raises:
        ValueError: if a number is not positive, or there are more milestones than steps.

    Example:
        >>> StudyPlan(seeds=1, steps=10, milestones=4).looks
        (3, 5, 8, 10)
    """

    seeds: int = 2
    steps: int = 500
    batch_size: int = 32
    width: int = 8
    cuts: tuple[int, ...] = (20,)
    milestones: int = 4
    most: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cuts", tuple(self.cuts))
        if min(self.seeds, self.steps, self.batch_size - 1, self.width, self.milestones, *self.cuts) < 1:
            raise ValueError(f"Expected positive numbers in a plan, and a batch_size of 2 or more; got {self}.")
        if self.milestones > self.steps:
            raise ValueError(f"Expected at most one milestone a step; got {self.milestones} in {self.steps} steps.")
        if len(set(self.cuts)) < len(self.cuts):
            raise ValueError(f"Expected every cut once; got {self.cuts}.")

    @property
    def looks(self) -> tuple[int, ...]:
        """The steps after which the validation split is looked at."""
        return tuple(math.floor(self.steps * k / self.milestones + 0.5) for k in range(1, self.milestones + 1))


QUICK = StudyPlan(seeds=1, cuts=(), most=3000)
FULL = StudyPlan(seeds=3, steps=600, batch_size=64, width=16, cuts=(20, 100))
PLANS = {"quick": QUICK, "full": FULL}


@dataclass(frozen=True)
class Run:
    """One classifier: where along its training it was chosen, and what it then did on the test split.

    Attributes:
        seed: of its weights, its order and the generated images.
        step: after which it was best on the validation split.
        validation_macro_f1: by which it was chosen.
        validation_accuracy: which decides ties.
        accuracy: share of test images recognised.
        macro_f1: mean over classes of the harmonic mean of precision and recall, on the test split.
        recall: share of each class recognised; None for a class without test images.
        guesses: the class that it said of each test image, for intervals that take the images into account.

    Example:
        >>> Run(0, 50, 0.8, 0.9, 0.85, 0.75, (1.0, None)).value("accuracy")
        0.85
    """

    seed: int
    step: int
    validation_macro_f1: float
    validation_accuracy: float
    accuracy: float
    macro_f1: float
    recall: tuple[float | None, ...]
    guesses: tuple[int, ...] = ()

    def value(self, quantity: str | int) -> float | None:
        """One number: "accuracy", "macro_f1" and so on by name, the recall of a class by its number."""
        return self.recall[quantity] if isinstance(quantity, int) else getattr(self, quantity)


@dataclass(frozen=True)
class Arm:
    """One way to make a training set, and the classifiers trained on it.

    Attributes:
        kind: "real", "oversampled", "synthetic" or "balanced".
        cut: to how many images the rare class was cut; None: not at all.
        real: real images in the training set.
        generated: generated images in it.
        runs: one a seed.

    Example:
        >>> arm = Arm("real", None, 100, 0, (Run(0, 9, 0.8, 0.8, 0.8, 0.7, ()), Run(1, 9, 0.8, 0.8, 0.9, 0.7, ())))
        >>> f"{arm.mean('accuracy'):.2f} ± {arm.spread('accuracy'):.2f}"
        '0.85 ± 0.07'
    """

    kind: Kind
    cut: int | None
    real: int
    generated: int
    runs: tuple[Run, ...] = ()

    def values(self, quantity: str | int) -> tuple[float | None, ...]:
        """A quantity (see :meth:`Run.value`) of every run."""
        return tuple(run.value(quantity) for run in self.runs)

    def mean(self, quantity: str | int) -> float | None:
        """Mean over seeds."""
        return mean(self.values(quantity))

    def spread(self, quantity: str | int) -> float | None:
        """Standard deviation over seeds; None for a single one."""
        return spread(self.values(quantity))


@dataclass(frozen=True)
class Usefulness:
    """What classifiers learn from real and generated images.

    Attributes:
        arms: in the order of the report.
        class_names: of the labels.
        rare: the class that was cut: the rarest in training, unless another was asked for.
        cuts: for every cut, which images of the rare class stayed (positions in the train split).
        plan: how much training each classifier had.
        seed: of all of it.
        notes: what to keep in mind, one sentence each.
        test_labels: true classes of the test images, for intervals that take the images into account.

    Example:
        >>> result = Usefulness((Arm("real", 20, 120, 0),), ("a", "b"), "b", {20: ()}, QUICK, 0, ())
        >>> result.arm("real", cut=20).real, result.name(result.arms[0])
        (120, 'real, 20 b')
    """

    arms: tuple[Arm, ...]
    class_names: tuple[str, ...]
    rare: str
    cuts: Mapping[int, tuple[int, ...]]
    plan: StudyPlan
    seed: int
    notes: tuple[str, ...]
    test_labels: tuple[int, ...] = ()

    def arm(self, kind: str, cut: int | None = None) -> Arm:
        """The arm of a kind and a cut.

        Raises:
            KeyError: if there is none.
        """
        for arm in self.arms:
            if (arm.kind, arm.cut) == (kind, cut):
                return arm
        raise KeyError(f"No arm {arm_name(kind, cut, self.rare)!r}; there are {[self.name(arm) for arm in self.arms]}.")

    def name(self, arm: Arm) -> str:
        """What the arm is called in tables, such as "balanced, 20 basophil"."""
        return arm_name(arm.kind, arm.cut, self.rare)

    def baseline(self, cut: int | None = None) -> Arm:
        """What generated images have to beat: the better on validation images of "real" and "oversampled"."""
        return max(
            (self.arm(kind, cut) for kind in REAL_ONLY), key=lambda real: real.mean("validation_macro_f1") or 0.0
        )

    def rows(self) -> list[dict[str, str | int]]:
        """The table of the report: one row an arm, means and standard deviations over seeds."""
        rare = self.class_names.index(self.rare)
        return [
            {
                "arm": self.name(arm),
                "accuracy": plus_minus(arm, "accuracy"),
                "macro-F1": plus_minus(arm, "macro_f1"),
                f"recall of {self.rare}": plus_minus(arm, rare),
                "real images": arm.real,
                "generated images": arm.generated,
                "seeds": len(arm.runs),
            }
            for arm in self.arms
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain numbers, lists and dictionaries, every single run included, but for single guesses."""
        return {
            "rare": self.rare,
            "class_names": list(self.class_names),
            "seed": self.seed,
            "plan": plain(asdict(self.plan)),
            "cuts": {str(n): list(kept) for n, kept in self.cuts.items()},
            "notes": list(self.notes),
            "arms": [
                {
                    "arm": self.name(arm),
                    **plain(asdict(replace(arm, runs=tuple(replace(run, guesses=()) for run in arm.runs)))),
                    "mean": self.over_seeds(arm, mean),
                    "sd": self.over_seeds(arm, spread),
                }
                for arm in self.arms
            ],
        }

    def over_seeds(self, arm: Arm, summary: Callable[[Values], float | None]) -> dict[str, Any]:
        """A summary of each measured quantity of an arm."""
        recalls = {name: summary(arm.values(k)) for k, name in enumerate(self.class_names)}
        return {
            "accuracy": summary(arm.values("accuracy")),
            "macro_f1": summary(arm.values("macro_f1")),
            "recall": recalls,
        }


def arm_name(kind: str, cut: int | None, rare: str) -> str:
    """What an arm is called."""
    return kind if cut is None else f"{kind}, {cut} {rare}"


def plus_minus(arm: Arm, quantity: str | int) -> str:
    """Mean and standard deviation over seeds, in print."""
    centre, deviation = arm.mean(quantity), arm.spread(quantity)
    if centre is None:
        return "-"
    return f"{centre:.3f}" if deviation is None else f"{centre:.3f} ± {deviation:.3f}"
