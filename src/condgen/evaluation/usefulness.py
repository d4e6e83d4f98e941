"""Usefulness: whether a classifier learns from generated images, alone and next to real ones.

The same classifier is trained on different sets for the same number of steps, chosen on the validation split, and
measured once on the test split, which is always real.

References:
    Classification accuracy score for conditional generative models (Ravuri & Vinyals, 2019),
    https://arxiv.org/abs/1905.10887
"""

__all__ = ["usefulness", "usefulness_measures"]

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from condgen.data.images import LabelledImages
from condgen.evaluation.arms import PLANS, REAL_ONLY, Arm, Draw, Run, StudyPlan, Usefulness, arm_name
from condgen.evaluation.bootstrap import image_spreads, widened
from condgen.evaluation.classifier import Scores, scores_of
from condgen.evaluation.classifier_training import NETWORK, check_data, fit_classifier
from condgen.evaluation.network import ResidualClassifier, network_features
from condgen.evaluation.records import Measure, about
from condgen.evaluation.statistics import Interval, Values, mean, student
from condgen.evaluation.training_sets import (
    TrainingSet,
    class_count,
    cut_class,
    draw_pool,
    empty_arm,
    rarest,
    training_set,
)
from condgen.io.atomic import read_json, write_atomically
from condgen.io.progress import working

BLOCK = 512  # images a forward pass
VERSION = 3  # of this protocol; another one makes cached runs worthless


def usefulness(
    draw: Draw,
    data: LabelledImages,
    *,
    plan: Literal["quick", "full"] | StudyPlan = "quick",
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
    - "cutmix": the same with CutMix;
    - "synthetic": generated images alone, as many of each class as the train split has (the classification
      accuracy score);
    - "balanced": the train split and generated images that fill every class up to the largest one;
    - for every cut n of the plan all of them but "synthetic" again, with n training images of the rare class.

    Each classifier is trained to the end of its plan, and measured on the test split once; how far the validation loss
    still fell towards the end says whether it has converged.

    Args:
        draw: (labels, seed) → uint8 images (n, channels, height, width) of these classes. Called once a class and
            seed; arms of a seed share images.
        data: images with one class label each, and splits.
        plan: "quick", "full" or one of your own.
        seed: of everything: run k has the seed `seed + k`, the cuts have `seed`.
        rare: the class to cut; by default the rarest in training.
        saw: to how many images of the rare class the generator's own training was limited, by
            :func:`~condgen.evaluation.training_sets.cut_class`
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
        >>> result = usefulness(draw, cells, plan=StudyPlan(seeds=1, steps=2, width=4, cuts=(5,)))
        >>> [result.name(arm) for arm in result.arms][4:6], result.arm("balanced", cut=5).generated
        (['balanced', 'real, 5 lymphocyte'], 22)
    """
    plan = PLANS[plan] if isinstance(plan, str) else plan
    check_data(data, ("train", "validation", "test"))
    train, names = data.train, tuple(data.class_names)
    rare = rarest(train) if rare is None else rare
    cuts = {n: cut_class(train, rare, n, seed) for n in plan.cuts if n < class_count(train, rare)}
    kept = {None: np.arange(len(train)), **cuts}
    arms = [empty_arm(kind, None, train.labels, plan.most) for kind in plan.kinds()]
    arms += [empty_arm(kind, n, train.labels[kept[n]], plan.most) for n in cuts for kind in plan.kinds(cut=True)]
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
        tuple(data.test.labels.tolist()),
    )


def remarks(
    data: LabelledImages, plan: StudyPlan, rare: str, cuts: Mapping[int, np.ndarray], saw: int | None
) -> Iterator[str]:
    """What to keep in mind, a sentence each."""
    if plan.most is not None and plan.most < len(data.train):
        yield (
            f"Quick: {plan.most:,} generated images stand against {len(data.train):,} real ones, and rows have "
            f"{plan.seeds} seed{'s' if plan.seeds > 1 else ''}. The full plan is surer."
        )
    if plan.shortfall:
        yield plan.shortfall
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


def train_and_test(training: TrainingSet, data: LabelledImages, plan: StudyPlan, seed: int) -> Run:
    """One classifier, trained to the end and measured on the validation and the test split."""
    how = plan.training(seed, training.cutmix)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ResidualClassifier(data.image_shape, data.num_classes, plan.width).float()
    losses = []

    def look(_: int, network: nn.Module) -> None:
        losses.append(scores(network, data.validation).loss)

    fit_classifier(
        network,
        training.images,
        training.labels,
        how,
        weights=training.weights,
        milestones=sorted({max(1, plan.steps * 9 // 10), plan.steps}),
        on_milestone=look,
    )
    chosen, found = scores(network, data.validation), scores(network, data.test)
    recall = tuple(found.recall[name] for name in data.class_names)
    return Run(
        seed,
        chosen.macro_f1,
        chosen.loss,
        1 - losses[-1] / losses[0],
        found.accuracy,
        found.macro_f1,
        recall,
        found.guesses,
    )


def scores(network: nn.Module, split: LabelledImages) -> Scores:
    """What a network says of the images of a split."""
    return scores_of(network_features(network, split.images, BLOCK).softmax(1), split.labels, split.class_names)


class Remembered:
    """The runs that depend on real images alone, kept in a file by the content of everything they depend on.

    Args:
        cache: folder; None: nothing is kept.
        data: images with splits.
        plan: of the training.
        seed: of the first run and the cuts.
        rare: the class that is cut.
    """

    def __init__(self, cache: str | Path | None, data: LabelledImages, plan: StudyPlan, seed: int, rare: str) -> None:
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
            run["recall"], run["guesses"] = tuple(run["recall"]), tuple(run["guesses"])
            Run(**run)
        return runs
    except (OSError, ValueError, TypeError, KeyError) as error:
        warnings.warn(f"{error} Training its classifiers again.", stacklevel=4)
        return {}


def usefulness_measures(result: Usefulness) -> dict[str, Measure]:
    """The measures of usefulness, each a mean over seeds, with a 95 % interval.

    The interval is Student's over seeds, made wider by what other test images could have given (a bootstrap over
    images, the same for all classifiers), and stays within what the figure can be.

    For "synthetic" and "balanced", and as "rare_20" for the balanced arm of a cut to 20: `_accuracy`, `_macro_f1` and
    `_rare_recall`, all in [0, 1], with what the arm "real" reaches as ceiling. For the last two also `_gain`, in
    macro-F1, and `_recall_gain`, in the recall of the rare class, over the best of those without generated images by
    mean macro-F1 on the validation split; a difference within each seed. The ceiling of a gain after a cut is what the
    real images that were cut away would add.

    Example:
        >>> from condgen.evaluation.arms import KINDS, QUICK, Arm, Run
        >>> runs = [(Run(0, f1, 0.5, 0.0, f1, f1, (f1, f1)),) for f1 in (0.75, 0.5, 0.5, 0.625, 0.875)]
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
            spreads = spreads_of(result, arm, None, {"": quantity, **{n: k for k, n in enumerate(names)}})
            meaning = f"{about(key)['meaning']} {how}"
            found[key] = over_seeds(values, ceiling, spreads, 0.0, **about(key, meaning=meaning))
        if arm.kind == "balanced":
            baseline = result.baseline(arm.cut)
            for name, quantity in (("gain", "macro_f1"), ("recall_gain", rare)):
                key = f"{prefix}_{name}"
                values = {"": paired(arm, baseline, quantity)}
                values |= {n: paired(arm, baseline, k) for k, n in enumerate(names)}
                ceiling = {} if arm.cut is None else {"": mean(paired(real, baseline, quantity))}
                meaning = (
                    f"{about(key)['meaning']} of a classifier, compared with {result.name(baseline)!r}, the best on "
                    "validation images of those that learn from real images alone; by class: to the recall."
                )
                spreads = spreads_of(result, arm, baseline, {"": quantity, **{n: k for k, n in enumerate(names)}})
                found[key] = over_seeds(values, ceiling, spreads, -1.0, **about(key, meaning=meaning))
    return found


def spreads_of(
    result: Usefulness, arm: Arm, baseline: Arm | None, quantities: Mapping[str, str | int]
) -> dict[str, float]:
    """How much each figure of an arm, or its difference from a baseline, depends on the test images; 0 if unknown."""
    arms = [arm] if baseline is None else [arm, baseline]
    if not result.test_labels or not all(run.guesses for own in arms for run in own.runs):
        return {}
    labels, classes = np.array(result.test_labels), len(result.class_names)
    guesses = [[np.array(run.guesses) for run in own.runs] for own in arms]
    known = {name: k for name, k in quantities.items() if not isinstance(k, int) or (labels == k).any()}
    return image_spreads(labels, *guesses, quantities=known, classes=classes)


def over_seeds(
    values: Mapping[str, Values],
    ceiling: Mapping[str, float | None],
    spreads: Mapping[str, float],
    low: float,
    **described: Any,
) -> Measure:
    """A measure from one value per seed: means, overall and for each class, with 95 % intervals.

    Args:
        values: name of a class, or "" for the overall figure → value of each seed.
        ceiling: name → what real images reach.
        spreads: name → standard deviation over test images.
        low: the least that a value can be; the most is 1.
        **described: what else the measure says.
    """
    n, classes = len(values[""]), {name: own for name, own in values.items() if name}
    alone = n == 1 and low == 0 and bool(spreads)  # of a gain one seed says nothing
    said = (
        " From one seed, with an interval over test images alone." if alone else " From one seed, without an interval."
    )
    if n > 1:
        said = f" Mean over {n} seeds, with an interval over seeds and test images."

    def interval(name: str) -> Interval | None:
        value = mean(values[name])
        over = (value, value) if alone and value is not None and name in spreads else student(values[name])
        return widened(over, spreads.get(name, 0.0), low, 1.0)

    return Measure(
        overall=mean(values[""]),
        per_class={name: mean(own) for name, own in classes.items()},
        floor=ceiling.get(""),
        interval=interval(""),
        per_class_floor={name: ceiling[name] for name in classes if name in ceiling},
        per_class_interval={name: interval(name) for name in classes},
        reason="The test split has no images of this class." if mean(values[""]) is None else "",
        **{**described, "meaning": described["meaning"] + said},
    )


def paired(arm: Arm, baseline: Arm, quantity: str | int) -> Values:
    """Differences between two arms, seed by seed."""
    pairs = zip(arm.values(quantity), baseline.values(quantity), strict=True)
    return tuple(None if a is None or b is None else a - b for a, b in pairs)
