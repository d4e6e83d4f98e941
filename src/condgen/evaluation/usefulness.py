"""Usefulness: whether a classifier learns from generated images, alone and next to real ones.

The same classifier is trained on different sets for the same number of steps, chosen on the validation split, and
measured once on the test split, which is always real.

References:
    Classification accuracy score for conditional generative models (Ravuri & Vinyals, 2019),
    https://arxiv.org/abs/1905.10887
"""

__all__ = ["FULL", "QUICK", "Arm", "Plan", "Run", "Usefulness", "cut_class", "usefulness", "usefulness_measures"]

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from condgen.data.images import LabelledImages
from condgen.evaluation.classifier import NETWORK, ResidualClassifier, check_data, fit_classifier, network_features
from condgen.evaluation.records import Measure, about, plain
from condgen.evaluation.statistics import Values, mean, spread, student
from condgen.io.atomic import read_json, write_atomically
from condgen.io.progress import working
from condgen.random import permutation

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
BLOCK = 512  # images a forward pass
VERSION = 1  # of this protocol; another one makes cached runs worthless


@dataclass(frozen=True)
class Plan:
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
        >>> Plan(seeds=1, steps=10, milestones=4).looks
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


QUICK = Plan(seeds=1, cuts=(), most=3000)
FULL = Plan(seeds=3, steps=600, batch_size=64, width=16, cuts=(20, 100))
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

    Example:
        >>> result = Usefulness((Arm("real", 20, 120, 0),), ("a", "b"), "b", {20: ()}, QUICK, 0, ())
        >>> result.arm("real", cut=20).real, result.name(result.arms[0])
        (120, 'real, 20 b')
    """

    arms: tuple[Arm, ...]
    class_names: tuple[str, ...]
    rare: str
    cuts: Mapping[int, tuple[int, ...]]
    plan: Plan
    seed: int
    notes: tuple[str, ...]

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
        """Everything as plain numbers, lists and dictionaries, every single run included."""
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
                    **plain(asdict(arm)),
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


def usefulness(
    draw: Draw,
    data: LabelledImages,
    *,
    plan: Literal["quick", "full"] | Plan = "quick",
    seed: int = 0,
    rare: str | None = None,
    saw: int | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> Usefulness:
    """Train classifiers on real images, on generated ones and on both, and see what they do on real test images.

    The arms, all of one architecture, one number of steps and the same seeds:

    - "real": the train split as it is;
    - "oversampled": the train split, every class drawn equally often;
    - "synthetic": generated images alone, as many of each class as the train split has (the classification
      accuracy score);
    - "balanced": the train split and generated images that fill every class up to the largest one;
    - for every cut n of the plan "real", "oversampled" and "balanced" again, with n training images of the rare class.

    Each classifier is the best of a few along its training by macro-F1 on the validation split (accuracy decides
    ties, then the earlier one), and is measured on the test split once.

    Args:
        draw: (labels, seed) → uint8 images (n, channels, height, width) of these classes. Called once a class and
            seed; arms of a seed share images.
        data: images with one class label each, and splits.
        plan: "quick", "full" or one of your own.
        seed: of everything: run k has the seed `seed + k`, the cuts have `seed`.
        rare: the class to cut; by default the rarest in training.
        saw: to how many images of the rare class the generator's own training was limited, by :func:`cut_class`
            with this seed; None: it saw them all.
        cache: folder to keep what depends on real images alone in.
        progress: show a progress bar.

    Raises:
        ValueError: if labels are not classes, a split is missing or empty, a class has no training images, or
            the generator does not give the images asked for.
        TypeError: if the generated images are not uint8.

    Warns:
        UserWarning: if a file in the cache is damaged (its classifiers are trained again) or cannot be written.

    References:
        Classification accuracy score for conditional generative models (Ravuri & Vinyals, 2019),
        https://arxiv.org/abs/1905.10887

    Example:
        >>> from condgen import load_smears
        >>> cells = load_smears(200, size=16, balance="equal")
        >>> def draw(labels, seed):  # a perfect generator that knows four images of each class
        ...     return cells.images[np.argsort(cells.labels, kind="stable").reshape(8, -1)[labels, seed % 4]]
        >>> result = usefulness(draw, cells, plan=Plan(seeds=1, steps=2, width=4, cuts=(5,), milestones=1))
        >>> [result.name(arm) for arm in result.arms][3:5], result.arm("balanced", cut=5).generated
        (['balanced', 'real, 5 lymphocyte'], 22)
    """
    plan = PLANS[plan] if isinstance(plan, str) else plan
    check_data(data, ("train", "validation", "test"))
    train, names = data.train, tuple(data.class_names)
    rare = rarest(train) if rare is None else rare
    cuts = {n: cut_class(train, rare, n, seed) for n in plan.cuts if n < class_count(train, rare)}
    kept = {None: np.arange(len(train)), **cuts}
    arms = [empty_arm(kind, None, train.labels, plan.most) for kind in KINDS]
    arms += [empty_arm(kind, n, train.labels[kept[n]], plan.most) for n in cuts for kind in CUT_KINDS]
    runs: dict[tuple[str, int | None], list[Run]] = {(arm.kind, arm.cut): [] for arm in arms}
    remembered = Remembered(cache, data, plan, seed, rare)
    with working("training classifiers", len(arms) * plan.seeds, progress) as advance:
        for run_seed in range(seed, seed + plan.seeds):
            pool = draw_pool(draw, data, [train.labels[indices] for indices in kept.values()], run_seed, plan.most)
            for arm in arms:
                run = remembered.get(arm, run_seed)
                if run is None:
                    real = train.subset(kept[arm.cut])
                    run = train_and_test(
                        training_set(arm.kind, real.images, real.labels, pool, plan.most), data, plan, run_seed
                    )
                    remembered.put(arm, run)
                runs[arm.kind, arm.cut].append(run)
                advance(after=arm_name(arm.kind, arm.cut, rare))
    label = names.index(rare)
    return Usefulness(
        tuple(replace(arm, runs=tuple(runs[arm.kind, arm.cut])) for arm in arms),
        names,
        rare,
        {n: tuple(indices[train.labels[indices] == label].tolist()) for n, indices in cuts.items()},
        plan,
        seed,
        tuple(remarks(data, plan, rare, cuts, saw)),
    )


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


def remarks(
    data: LabelledImages, plan: Plan, rare: str, cuts: Mapping[int, np.ndarray], saw: int | None
) -> Iterator[str]:
    """What to keep in mind, a sentence each."""
    if plan.most is not None and plan.most < len(data.train):
        yield (
            f"Quick: {plan.most:,} generated images stand against {len(data.train):,} real ones, and rows have "
            f"{plan.seeds} seed{'s' if plan.seeds > 1 else ''}. The full plan is surer."
        )
    known = [str(n) for n in cuts if saw is None or saw > n]
    if known:
        yield (
            f"The generator was trained on more images of {rare} than the cut sets ({' and '.join(known)}) hold and "
            "knows more than they do: what it adds there is more than it could add had so few images existed."
        )
    have = class_count(data.train, rare)
    for n in plan.cuts:
        if n not in cuts:
            yield f"{rare} has {have} training images: there is no cut to {n}."
    if cuts:
        yield "The images that stay in a cut are the same for all arms and seeds; the spread does not include them."
    for split, consequence in (
        (data.validation, "classifiers are chosen without it"),
        (data.test, "its recall is unknown and macro-F1 is a mean over the other classes"),
    ):
        for name, count in split.class_counts.items():
            if not count:
                yield f"{split.name} has no images of {name}: {consequence}."


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


def training_set(kind: Kind, images: Images, labels: Labels, pool: Pool, most: int | None = None) -> TrainingSet:
    """The set of an arm, from real images and enough generated ones of each class."""
    counts = np.bincount(labels, minlength=len(pool))
    if kind == "real":
        return TrainingSet(images, labels, None)
    if kind == "oversampled":
        return TrainingSet(images, labels, 1 / counts[labels])
    wanted = limited(counts if kind == "synthetic" else filling(labels, len(pool)), most)
    generated = [of_class[:n] for of_class, n in zip(pool, wanted.tolist(), strict=True)]
    generated_labels = np.repeat(np.arange(len(pool)), wanted)
    if kind == "synthetic":
        return TrainingSet(np.concatenate(generated), generated_labels, None)
    return TrainingSet(np.concatenate([images, *generated]), np.concatenate([labels, generated_labels]), None)


class Scores(NamedTuple):
    """What a classifier does on a split."""

    accuracy: float
    macro_f1: float
    recall: tuple[float | None, ...]


def scores(network: nn.Module, split: LabelledImages) -> Scores:
    """Accuracy, macro-F1 over the classes that are there, and recall of each class."""
    from sklearn.metrics import f1_score

    guesses = network_features(network, split.images, BLOCK).argmax(1).numpy()
    there, right = np.unique(split.labels), guesses == split.labels
    recall = {label: float(right[split.labels == label].mean()) for label in there.tolist()}
    return Scores(
        float(right.mean()),
        float(f1_score(split.labels, guesses, labels=there, average="macro")),
        tuple(recall.get(label) for label in range(split.num_classes)),
    )


def train_and_test(training: TrainingSet, data: LabelledImages, plan: Plan, seed: int) -> Run:
    """One classifier: trained, chosen on the validation split, measured on the test split."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ResidualClassifier(data.image_shape, data.num_classes, plan.width).float()
    validation = data.validation
    best: tuple[tuple[float, float], int, dict[str, Tensor]] | None = None

    def look(step: int, network: nn.Module) -> None:
        nonlocal best
        found = scores(network, validation)
        rank = (found.macro_f1, found.accuracy)
        if best is None or rank > best[0]:
            best = rank, step, {name: tensor.clone() for name, tensor in network.state_dict().items()}

    fit_classifier(
        network,
        training.images,
        training.labels,
        steps=plan.steps,
        batch_size=plan.batch_size,
        seed=seed,
        weights=training.weights,
        milestones=plan.looks,
        on_milestone=look,
    )
    assert best is not None, "a plan has at least one milestone"  # noqa: S101
    (macro_f1, accuracy), step, weights = best
    network.load_state_dict(weights)
    result = scores(network, data.test)
    return Run(seed, step, macro_f1, accuracy, result.accuracy, result.macro_f1, result.recall)


class Remembered:
    """The runs that depend on real images alone, kept in a file by the content of everything they depend on.

    Args:
        cache: folder; None: nothing is kept.
        data: images with splits.
        plan: of the training.
        seed: of the first run and the cuts.
        rare: the class that is cut.
    """

    def __init__(self, cache: str | Path | None, data: LabelledImages, plan: Plan, seed: int, rare: str) -> None:
        self.path = None
        self.runs: dict[str, Any] = {}
        if cache is not None:
            prints = [data.content_hash(split) for split in ("train", "validation", "test")]
            settings = [VERSION, NETWORK, prints, asdict(plan), seed, list(data.class_names).index(rare)]
            name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
            self.path = Path(cache) / f"usefulness-{name}.json"
            self.runs = read_runs(self.path)

    def get(self, arm: Arm, seed: int) -> Run | None:
        """The run of an arm and a seed, where it is known."""
        run = self.runs.get(f"{arm.kind}/{arm.cut}/{seed}")
        return Run(**run) if run is not None else None

    def put(self, arm: Arm, run: Run) -> None:
        """Keep a run, unless it depends on generated images."""
        if self.path is None or arm.kind not in REAL_ONLY:
            return
        self.runs[f"{arm.kind}/{arm.cut}/{run.seed}"] = asdict(run)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(self.runs).encode())
        except OSError as error:
            warnings.warn(
                f"Classifiers of real images could not be kept in {self.path.parent} ({error}) and will be trained "
                "again next time. Name a folder that can be written to.",
                stacklevel=3,
            )
            self.path = None


def read_runs(path: Path) -> dict[str, Any]:
    """The runs in a file; none where it is missing or damaged."""
    if not path.exists():
        return {}
    try:
        runs = read_json(path)
        for run in runs.values():
            run["recall"] = tuple(run["recall"])
            Run(**run)
        return runs
    except (OSError, ValueError, TypeError) as error:
        warnings.warn(f"{error} Training its classifiers again.", stacklevel=4)
        return {}


def usefulness_measures(result: Usefulness) -> dict[str, Measure]:
    """The measures of usefulness, each a mean over seeds, with Student's 95 % interval.

    For "synthetic" and "balanced", and as "rare_20" for the balanced arm of a cut to 20: `_accuracy`, `_macro_f1` and
    `_rare_recall`, all in [0, 1], with what the arm "real" reaches as ceiling. For the last two also `_gain`, in
    macro-F1, and `_recall_gain`, in the recall of the rare class, over the better of "real" and "oversampled" by mean
    macro-F1 on the validation split; a difference within each seed. The ceiling of a gain after a cut is what the
    real images that were cut away would add.

    Example:
        >>> runs = [(Run(0, 9, f1, f1, f1, f1, (f1, f1)),) for f1 in (0.75, 0.5, 0.625, 0.875)]
        >>> arms = [Arm(kind, None, 10, 0, run) for kind, run in zip(KINDS, runs)]
        >>> found = usefulness_measures(Usefulness(tuple(arms), ("a", "b"), "b", {}, QUICK, 0, ()))
        >>> found["synthetic_accuracy"].overall, found["synthetic_accuracy"].floor, found["balanced_gain"].overall
        (0.625, 0.75, 0.125)
    """
    names = result.class_names
    rare, real, found = names.index(result.rare), result.arm("real"), {}
    filled = "generated ones that fill every class up"
    arms = {"synthetic": (result.arm("synthetic"), "generated images alone")}
    arms["balanced"] = (result.arm("balanced"), f"real images and {filled} to the largest")
    for n in result.cuts:
        arms[f"rare_{n}"] = (result.arm("balanced", n), f"real images with only {n} of {result.rare}, and {filled}")
    for prefix, (arm, learnt) in arms.items():
        how = f"of a classifier trained on {learnt}; the ceiling is training on all real images as they are."
        for name, quantity in (("accuracy", "accuracy"), ("macro_f1", "macro_f1"), ("rare_recall", rare)):
            key = f"{prefix}_{name}"
            ceiling = {"": real.mean(quantity)} | {n: real.mean(k) for k, n in enumerate(names) if name == "accuracy"}
            values = {"": arm.values(quantity)} | {n: arm.values(k) for k, n in enumerate(names) if name == "accuracy"}
            found[key] = over_seeds(values, ceiling, **about(key, meaning=f"{about(key)['meaning']} {how}"))
        if arm.kind == "balanced":
            baseline = result.baseline(arm.cut)
            for name, quantity in (("gain", "macro_f1"), ("recall_gain", rare)):
                key = f"{prefix}_{name}"
                values = {"": paired(arm, baseline, quantity)}
                values |= {n: paired(arm, baseline, k) for k, n in enumerate(names)}
                ceiling = {} if arm.cut is None else {"": mean(paired(real, baseline, quantity))}
                meaning = (
                    f"{about(key)['meaning']} of a classifier, compared with {result.name(baseline)!r}, the better on "
                    "validation images of real images as they are and oversampled; by class: to the recall."
                )
                found[key] = over_seeds(values, ceiling, **about(key, meaning=meaning))
    return found


def over_seeds(values: Mapping[str, Values], ceiling: Mapping[str, float | None], **described: Any) -> Measure:
    """Means over seeds, overall ("") and per class, with Student's intervals."""
    n, classes = len(values[""]), {name: own for name, own in values.items() if name}
    said = f" Mean over {n} seeds, with Student's interval." if n > 1 else " From one seed, without an interval."
    return Measure(
        overall=mean(values[""]),
        per_class={name: mean(own) for name, own in classes.items()},
        floor=ceiling.get(""),
        interval=student(values[""]),
        per_class_floor={name: ceiling[name] for name in classes if name in ceiling},
        per_class_interval={name: student(own) for name, own in classes.items()},
        reason="The test split has no images of this class." if mean(values[""]) is None else "",
        **{**described, "meaning": described["meaning"] + said},
    )


def paired(arm: Arm, baseline: Arm, quantity: str | int) -> Values:
    """Differences between two arms, seed by seed."""
    pairs = zip(arm.values(quantity), baseline.values(quantity), strict=True)
    return tuple(None if a is None or b is None else a - b for a, b in pairs)


def arm_name(kind: str, cut: int | None, rare: str) -> str:
    """What an arm is called."""
    return kind if cut is None else f"{kind}, {cut} {rare}"


def plus_minus(arm: Arm, quantity: str | int) -> str:
    """Mean and standard deviation over seeds, in print."""
    centre, deviation = arm.mean(quantity), arm.spread(quantity)
    if centre is None:
        return "-"
    return f"{centre:.3f}" if deviation is None else f"{centre:.3f} ± {deviation:.3f}"
