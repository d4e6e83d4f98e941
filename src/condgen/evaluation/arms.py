"""The plan of a usefulness study, its arms, and what classifiers did in each."""

__all__ = ["FULL", "QUICK", "Arm", "Run", "StudyPlan", "Usefulness"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from condgen.evaluation.records import plain
from condgen.evaluation.settings import ClassifierTraining
from condgen.evaluation.statistics import Values, mean, spread

Images = UInt8[np.ndarray, "images channels height width"]
Labels = Int64[np.ndarray, " images"]
Counts = Int64[np.ndarray, " classes"]
Pool = Sequence[UInt8[np.ndarray, "_ channels height width"]]  # one entry a class
LabelSets = Sequence[Int64[np.ndarray, "_"]]
Draw = Callable[[np.ndarray, int], Any]
Kind = Literal["real", "oversampled", "cutmix", "synthetic", "balanced"]
KINDS: tuple[Kind, ...] = ("real", "oversampled", "cutmix", "synthetic", "balanced")
CUT_KINDS: tuple[Kind, ...] = ("real", "oversampled", "cutmix", "balanced")
REAL_ONLY = ("real", "oversampled", "cutmix")
NAMES = {"cutmix": "oversampled, CutMix"}  # where a kind is not called by its own
QUICK_ACCURACY, FULL_ACCURACY = 0.87, 0.96  # benchmarks/results/usefulness_cpu_202611.md
CUTMIX = 0.5  # share of the batches of the arm "cutmix" that are mixed


@dataclass(frozen=True)
class StudyPlan:
    """How much training a verdict on usefulness is worth.

    Args:
        seeds: classifiers an arm; each has initial weights, an order and generated images of its own.
        steps: updates of every classifier, whatever it is trained on.
        batch_size: images an update.
        width: channels of the classifier's first stage.
        cuts: to how many images the rare class is cut, one set of arms each.
        most: generated images an arm has at most, in the proportions that it would have without; None for all.
        cutmix: whether there is an arm with CutMix.

    Raises:
        ValueError: if a number is not positive.

    Example:
        >>> StudyPlan(seeds=1, steps=10).training(seed=3, cutmix=0.0).updates(1000)
        (10, 128)
    """

    seeds: int = 3
    steps: int = 1500
    batch_size: int = 128
    width: int = 16
    cuts: tuple[int, ...] = (20,)
    most: int | None = None
    cutmix: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "cuts", tuple(self.cuts))
        if min(self.seeds, self.steps, self.batch_size - 1, self.width, *self.cuts) < 1:
            raise ValueError(f"Expected positive numbers in a plan, and a batch_size of 2 or more; got {self}.")
        if len(set(self.cuts)) < len(self.cuts):
            raise ValueError(f"Expected every cut once; got {self.cuts}.")

    def kinds(self, cut: bool = False) -> tuple[Kind, ...]:
        """The kinds of arms, of the whole set or of one with a class that was cut."""
        return tuple(kind for kind in (CUT_KINDS if cut else KINDS) if self.cutmix or kind != "cutmix")

    @property
    def shortfall(self) -> str:
        """What its classifiers are short of; empty for those that are trained until they have converged."""
        if self.steps * self.batch_size * self.width >= FULL.steps * FULL.batch_size * FULL.width:
            return ""
        return (
            f"Classifiers are small and quickly trained ({self.steps} updates of {self.batch_size} images, width "
            f"{self.width}): on BloodMNIST those of the quick plan recognise {QUICK_ACCURACY:.0%} of real test images, "
            f"converged ones {FULL_ACCURACY:.0%}. How far a good classifier falls behind shows in the full plan alone."
        )

    def training(self, seed: int, cutmix: float) -> ClassifierTraining:
        """How a classifier of this plan is trained."""
        return ClassifierTraining(
            steps=self.steps, batch_size=self.batch_size, width=self.width, seed=seed, cutmix=cutmix
        )


QUICK = StudyPlan(seeds=1, steps=250, batch_size=64, width=8, cuts=(), most=1500, cutmix=False)
FULL = StudyPlan()
PLANS = {"quick": QUICK, "full": FULL}


@dataclass(frozen=True)
class Run:
    """One classifier, and what it did on the validation and the test split.

    Attributes:
        seed: of its weights, its order and the generated images.
        validation_macro_f1: macro-F1 on the validation split.
        validation_loss: cross-entropy on the validation split, in nats per image.
        still_falling: by which share that fell over the last tenth of the training; near 0 it has converged.
        accuracy: share of test images recognised.
        macro_f1: mean over classes of the harmonic mean of precision and recall, on the test split.
        recall: share of each class recognised; None for a class without test images.
        guesses: the class that it said of each test image, for intervals that take the images into account.

    Example:
        >>> Run(0, 0.8, 0.3, 0.01, 0.85, 0.75, (1.0, None)).value("accuracy")
        0.85
    """

    seed: int
    validation_macro_f1: float
    validation_loss: float
    still_falling: float
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
        kind: "real", "oversampled", "cutmix", "synthetic" or "balanced".
        cut: to how many images the rare class was cut; None: not at all.
        real: real images in the training set.
        generated: generated images in it.
        runs: one a seed.

    Example:
        >>> arm = Arm("real", None, 100, 0, (Run(0, 0.8, 0.5, 0.0, 0.8, 0.7, ()), Run(1, 0.8, 0.5, 0.0, 0.9, 0.7, ())))
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
        """What generated images have to beat: the best, on validation images, of the arms without any."""
        real = [arm for arm in self.arms if arm.kind in REAL_ONLY and arm.cut == cut]
        return max(real, key=lambda arm: arm.mean("validation_macro_f1") or 0.0)

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
    name = NAMES.get(kind, kind)
    return name if cut is None else f"{name}, {cut} {rare}"


def plus_minus(arm: Arm, quantity: str | int) -> str:
    """Mean and standard deviation over seeds, in print."""
    centre, deviation = arm.mean(quantity), arm.spread(quantity)
    if centre is None:
        return "-"
    return f"{centre:.3f}" if deviation is None else f"{centre:.3f} ± {deviation:.3f}"
