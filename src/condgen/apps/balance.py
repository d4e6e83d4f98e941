"""Rebalancing: fill rare classes up with generated images, as imbalanced-learn's users know it.

Real images stay as they are and come first. Of a class with many images new ones are samples; of one with few they are
variations of those that there are.
"""

__all__ = ["Balancer", "balance"]

import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, UInt8

from condgen.apps.provenance import Provenance
from condgen.apps.resampling import Classes, Pixels
from condgen.data.adapters import as_labelled
from condgen.data.images import LabelledImages
from condgen.data.names import SYNTHETIC, class_number
from condgen.evaluation.copies import near_copies
from condgen.io.archives import weights_hash
from condgen.io.pictures import to_uint8
from condgen.models.classes import class_names, num_classes
from condgen.sampling.variations import can_vary, has_surroundings, vary

Strategy = Literal["auto", "minority", "not minority", "not majority", "all"]
Wanted = Strategy | float | Mapping[Any, int] | Callable[[Any], Mapping[Any, int]]
CLASS_SHARE = 2**40  # numbers of samples that each class has to itself
FEW = 100  # real images of a class up to which variations of them taught classifiers more than samples did
STRENGTH = 0.5  # of variations: with other surroundings 1 in 100 of them is a near copy (docs/balancing.md)
PARAMETERS = ("model", "sampling_strategy", "seed", "random_state", "judge", "data", "method", "strength")
ROUNDS = 8  # in which what was turned down is drawn again
Method = Literal["auto", "sample", "vary"]


class Balancer:
    """Fills classes up with samples of a model; a sampler for pipelines of imbalanced-learn.

    Args:
        model: that samples by class.
        sampling_strategy: which classes are filled up to the largest: "auto" and "not majority" (all but that one),
            "all", "minority" (the smallest alone), "not minority"; a number for two classes, the smaller one's share of
            the larger; class → count; or a function of the labels that gives the last.
        seed: of the samples.
        random_state: the same under imbalanced-learn's name: a number, or numpy's `RandomState`; it comes first.
        judge: a :class:`condgen.Classifier`, or whatever has its `embed(images).probabilities`: samples that it
            does not take for their class are drawn again, eight times at most.
        data: real images with splits: near copies of its training images (up to flips, turns, small shifts and
            brightness) are drawn again too.
        method: "sample" draws new images of a class; "vary" draws them near its real images, each of which is varied
            equally often, with the surroundings of others where the model has maps of latents
            (:func:`condgen.vary`); "auto" varies classes of at most 100 real images, where the model can, and samples
            the others.
        strength: how far variations go, in [0, 1].

    Attributes:
        provenance_: after `fit_resample`, what each image is.
        sampling_strategy_: class number → generated images.
        varied_: class number → places of its real images, for the classes whose images are varied.
        seed_: the seed of the samples that were drawn.

    References:
        The parameters are those of imbalanced-learn (Lemaitre et al., 2017), https://jmlr.org/papers/v18/16-365.html

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(60, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> X, y = Balancer(model).fit_resample(cells.images, cells.labels)
        >>> np.bincount(y).tolist() == [np.bincount(cells.labels).max()] * 8
        True
    """

    def __init__(
        self,
        model: Any,
        sampling_strategy: Wanted = "auto",
        *,
        seed: int = 0,
        random_state: Any = None,
        judge: Any = None,
        data: LabelledImages | None = None,
        method: Method = "auto",
        strength: float = STRENGTH,
    ) -> None:
        self.model, self.sampling_strategy, self.judge, self.data = model, sampling_strategy, judge, data
        self.seed, self.random_state, self.method, self.strength = seed, random_state, method, strength

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments, for scikit-learn."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def set_params(self, **changed: Any) -> "Balancer":
        """Other arguments, for scikit-learn."""
        if unknown := sorted(set(changed) - set(self.get_params())):
            raise ValueError(f"Expected arguments among {', '.join(self.get_params())}; got {', '.join(unknown)}.")
        for name, value in changed.items():
            setattr(self, name, value)
        return self

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:  # noqa: N803 - scikit-learn's name
        """Real images and labels, then generated ones.

        Args:
            X: images (n, channels, height, width) or channels last, or the same in rows (n, pixels), also as a
                DataFrame: whole numbers from 0 to 255, or floats in [0, 1] or [0, 255].
            y: classes, as numbers or the model's class names, of shape (n,) or (n, 1), as one-hot rows, or as a Series
                or categorical of pandas.

        Returns:
            X and y of the same kinds, types, ranges and layouts; the first n rows are those given.

        Raises:
            ValueError: if images, labels or counts do not fit, a class would have to shrink, or the model has no way
                to vary an image.
        """
        self.seed_ = seed_of(self.seed, self.random_state)
        pixels, classes = Pixels.of(X, tuple(self.model.image_shape)), Classes.of(y, self.number_of)
        if len(pixels.array) != len(classes.numbers):
            raise ValueError(f"Expected a label for each image; got {len(pixels.array)} and {len(classes.numbers)}.")
        labels = classes.numbers
        counts = np.bincount(labels, minlength=num_classes(self.model))
        strategy: Any = self.sampling_strategy
        self.sampling_strategy_ = wanted(strategy, counts, labels, self.number_of)
        made = np.repeat(list(self.sampling_strategy_), list(self.sampling_strategy_.values())).astype(np.int64)
        self.varied_ = self.varied(labels, counts)
        images, number, refused, drawn = self.draw(pixels.uint8() if self.varied_ else None, labels)
        of = [self.origin(label, n) for label, n in zip(made.tolist(), number.tolist(), strict=True)]
        self.provenance_ = Provenance(
            np.r_[np.zeros(len(labels), bool), np.ones(len(images), bool)],
            np.r_[labels, made],
            np.r_[np.full(len(labels), -1), number],
            self.seed_,
            weights_hash(self.model.state_dict()),
            tuple(class_names(self.model)),
            refused,
            drawn,
            of=np.r_[np.full(len(labels), -1), np.array(of, np.int64)],
            strength=self.strength,
            drawing=json.dumps(getattr(self.model, "drawing", {})),
        )
        return pixels.followed_by(images), classes.followed_by(made, class_names(self.model))

    def number_of(self, label: Any) -> int:
        """The number of a class, by number or name."""
        names = class_names(self.model)
        if isinstance(label, str):
            return class_number(label, names)
        if isinstance(label, float) and not label.is_integer():
            raise ValueError(f"Expected classes as whole numbers or names; got {label}.")
        if not 0 <= int(label) < num_classes(self.model):
            raise ValueError(f"Expected classes in [0, {num_classes(self.model)}); got {label}.")
        return int(label)

    def varied(self, labels: Int64[np.ndarray, " n"], counts: Int64[np.ndarray, " classes"]) -> dict[int, np.ndarray]:
        """Choose the classes that are filled up by variations, and find the places of their real images.

        Raises:
            ValueError: for another method, a model that cannot vary, or a class without an image.
        """
        if self.method not in ("auto", "sample", "vary") or not 0 <= self.strength <= 1:
            raise ValueError(
                "Expected method as auto, sample or vary, and a strength from 0 to 1; got "
                f"{self.method!r} and {self.strength}."
            )
        if self.method == "vary" and not can_vary(self.model):
            raise ValueError(
                f"Expected a model that can vary images; {type(self.model).__name__} only draws. Pass method='sample'."
            )
        asked = self.sampling_strategy_ if self.method == "vary" else [k for k in self.sampling_strategy_ if counts[k]]
        if self.method == "sample" or not can_vary(self.model):
            return {}
        if empty := [class_names(self.model)[k] for k in asked if not counts[k]]:
            raise ValueError(f"Expected images of every class to vary; got none of {', '.join(empty)}.")
        return {k: np.flatnonzero(labels == k) for k in asked if self.method == "vary" or counts[k] <= FEW}

    def origin(self, label: int, number: int) -> int:
        """The place of the real image that a generated one is a variation of; -1 for a sample."""
        own = self.varied_.get(label)
        return -1 if own is None else int(own[(number - label * CLASS_SHARE) % len(own)])

    def draw(
        self, real: UInt8[np.ndarray, "m ..."] | None, labels: Int64[np.ndarray, " m"]
    ) -> tuple[UInt8[np.ndarray, "n ..."], Int64[np.ndarray, " n"], dict[str, int], dict[str, int]]:
        """Images of every class that is to be filled up, their numbers, and how many were turned down and drawn."""
        names, parts, numbers = class_names(self.model), [], []
        refused, drawn = {}, {}
        for label, count in self.sampling_strategy_.items():
            images, own, refused[names[label]], drawn[names[label]] = self.of_class(label, count, real, labels)
            parts.append(images)
            numbers.append(own)
        empty = np.zeros((0, *self.model.image_shape), np.uint8)
        return np.concatenate([empty, *parts]), np.concatenate([np.zeros(0, np.int64), *numbers]), refused, drawn

    def numbered(
        self, label: int, numbers: range, real: UInt8[np.ndarray, "m ..."] | None, labels: Int64[np.ndarray, " m"]
    ) -> UInt8[np.ndarray, "n ..."]:
        """The samples or variations of these numbers."""
        chosen: dict[str, Any] = {"seed": self.seed_, "start": numbers.start}
        if real is None or label not in self.varied_:
            return to_uint8(self.model.sample([label] * len(numbers), **chosen)).cpu().numpy()
        of = [self.origin(label, number) for number in numbers]
        around = (real, labels) if has_surroundings(self.model) else None
        made = vary(self.model, real[of], labels[of], strength=self.strength, background=around, **chosen)
        return to_uint8(made).cpu().numpy()

    def of_class(
        self, label: int, count: int, real: UInt8[np.ndarray, "m ..."] | None, labels: Int64[np.ndarray, " m"]
    ) -> tuple[np.ndarray, np.ndarray, int, int]:
        """So many images of a class that nothing speaks against, in the order of their numbers."""
        first, good, bad = label * CLASS_SHARE, [], []
        size, drawn = count, 0
        for _ in range(ROUNDS if self.judge is not None or self.data is not None else 1):
            images = self.numbered(label, range(first + drawn, first + drawn + size), real, labels)
            doubt = self.doubt(images, label)
            found = [(doubt[k], first + drawn + k, image) for k, image in enumerate(images)]
            good += [one for one in found if one[0] < 1]
            bad += [one for one in found if one[0] >= 1]
            drawn += size
            if len(good) >= count:
                break
            # A few more than are missing, at the rate of what was believed so far.
            size = math.ceil(1.2 * (count - len(good)) * min(drawn / max(len(good), 1), 5)) + 2
        refused, missing = len(bad), count - len(good)
        if missing > 0:
            warnings.warn(
                f"After {drawn:,} images of {class_names(self.model)[label]!r} {missing:,} of {count:,} are still "
                "such as the judge does not believe or that are near copies; the least doubtful of these fill it up.",
                stacklevel=4,
            )
            good += sorted(bad, key=lambda one: one[0])[:missing]
        kept = sorted(good[:count], key=lambda one: one[1])
        return np.stack([one[2] for one in kept]), np.array([one[1] for one in kept]), refused, drawn

    def doubt(self, images: UInt8[np.ndarray, "n ..."], label: int) -> np.ndarray:
        """How much speaks against each image: below 1 nothing does, from 2 up it is a copy."""
        doubt = np.zeros(len(images))
        if self.judge is not None:
            probabilities = self.judge.embed(images).probabilities
            wrong = probabilities.argmax(1).numpy() != label
            doubt = wrong + np.where(wrong, 1 - probabilities[:, label].numpy(), 0) / 2
        if self.data is not None:
            train, held_out = self.data.train, self.data.validation
            doubt = doubt + 2 * near_copies(train.images, images, held_out.images, invariant=True).near.numpy()
        return doubt


def seed_of(seed: int, random_state: Any) -> int:
    """The seed that samples are drawn from: that of `random_state`, if there is one."""
    if random_state is None:
        return seed
    return int(random_state.randint(2**31 - 1) if hasattr(random_state, "randint") else random_state)


def wanted(
    strategy: Wanted, counts: Int64[np.ndarray, " classes"], labels: np.ndarray, number_of: Callable[[Any], int]
) -> dict[int, int]:
    """How many images each class is to gain, by a strategy in imbalanced-learn's words.

    Raises:
        ValueError: for another word, or if a class would have to shrink.

    Example:
        >>> counts = np.array([5, 2, 3])
        >>> wanted("auto", counts, counts, int), wanted({1: 4}, counts, counts, int)
        ({1: 3, 2: 2}, {1: 2})
    """
    most, least = int(counts.max()), int(np.argmin(np.where(counts, counts, counts.max() + 1)))
    largest = int(counts.argmax())
    goals: dict[int, int] = {k: most for k in range(len(counts)) if counts[k]}
    if callable(strategy):
        strategy = dict(strategy(labels))
    if isinstance(strategy, Mapping):
        goals = {number_of(label): int(count) for label, count in strategy.items()}
    elif isinstance(strategy, float):
        if len(goals) != 2 or not 0 < strategy <= 1:
            raise ValueError(f"Expected a share in (0, 1] of two classes; got {strategy} and {len(goals)} classes.")
        goals = {least: int(strategy * most)}
    elif strategy in ("auto", "not majority"):
        goals.pop(largest)
    elif strategy == "minority":
        goals = {least: most}
    elif strategy == "not minority":
        goals.pop(least)
    elif strategy != "all":
        raise ValueError(
            "Expected auto, minority, not minority, not majority, all, a share, counts or a function; got "
            f"{strategy!r}."
        )
    if shrinking := [f"class {k} has {counts[k]}, not {goal}" for k, goal in goals.items() if goal < counts[k]]:
        raise ValueError(f"Expected counts of no fewer images than there are: {'; '.join(shrinking[:3])}.")
    return {k: int(goal - counts[k]) for k, goal in sorted(goals.items()) if goal > counts[k]}


def balance(
    data: Any,
    model: Any,
    strategy: Wanted = "auto",
    *,
    seed: int = 0,
    judge: Any = None,
    refuse_copies: bool = False,
    method: Method = "auto",
    strength: float = STRENGTH,
) -> tuple[LabelledImages, Provenance]:
    """A set whose training images are balanced; validation and test images stay as they are.

    Args:
        data: real images with class labels, whatever :func:`condgen.fit` takes; a set without splits is balanced as a
            whole.
        model: trained on the same classes; names decide which is which.
        strategy: see :class:`Balancer`.
        seed: of the samples.
        judge: see :class:`Balancer`.
        refuse_copies: draw near copies of training images again; needs a validation split.
        method: whether new images are samples or variations of the real ones; see :class:`Balancer`.
        strength: how far variations go, in [0, 1].

    Returns:
        The set, real training images first, and what each of its training images is. `factors["synthetic"]` says it,
        too: :func:`condgen.train_classifier` with `balance=True` draws half of the images of a class from the real
        ones.

    Raises:
        ValueError: for labels that are no classes, or classes that the model does not know.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(100, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> balanced, provenance = balance(cells, model)
        >>> len(set(balanced.train.class_counts.values())), balanced.test.class_counts == cells.test.class_counts
        (1, True)
    """
    data = as_labelled(data)
    if data.kind != "class":
        raise ValueError(f"Expected class labels to balance; {data.name!r} has {data.kind} ones.")
    data = data.ordered(getattr(model, "class_names", ()))
    train = data.train if data.splits else data
    near = data if refuse_copies else None
    balancer = Balancer(model, strategy, seed=seed, judge=judge, data=near, method=method, strength=strength)
    images, labels = balancer.fit_resample(train.images, train.labels)
    parts = [(images, labels)]
    splits = {"train": slice(0, len(images))} if data.splits else {}
    for name in ("validation", "test"):
        if name in data.splits:
            part, begin = getattr(data, name), sum(len(own) for own, _ in parts)
            parts.append((part.images, part.labels))
            splits[name] = slice(begin, begin + len(part))
    balanced = LabelledImages(
        np.concatenate([own for own, _ in parts]),
        np.concatenate([own for _, own in parts]),
        data.class_names,
        splits,
        {SYNTHETIC: np.pad(balancer.provenance_.synthetic, (0, sum(len(own) for own, _ in parts[1:])))},
        name=f"{data.name} balanced",
    )
    return balanced, balancer.provenance_
