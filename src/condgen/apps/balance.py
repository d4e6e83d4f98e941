"""Rebalancing: fill rare classes up with generated images, as imbalanced-learn's users know it.

Real images stay as they are and come first. Of every generated one it is written down what it is: nobody is ever to
mistake it for a patient's.
"""

__all__ = ["Balancer", "Provenance", "balance", "with_probabilities", "write_balanced"]

import csv
import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from condgen.apps.resampling import Classes, Pixels
from condgen.data.images import PROBABILITIES, LabelledImages, class_number
from condgen.evaluation.copies import near_copies
from condgen.io.archives import weights_hash
from condgen.io.atomic import check_writable, replacing, write_atomically
from condgen.io.names import folder_names, write_classes
from condgen.sampling.grids import class_names, num_classes, to_uint8

Strategy = Literal["auto", "minority", "not minority", "not majority", "all"]
Wanted = Strategy | float | Mapping[Any, int] | Callable[[Any], Mapping[Any, int]]
CLASS_SHARE = 2**40  # numbers of samples that each class has to itself
FEW = 100  # real images up to which drawing them more often taught classifiers more (docs/balancing.md)
PARAMETERS = ("model", "sampling_strategy", "seed", "random_state", "judge", "data")
ROUNDS = 8  # in which what was turned down is drawn again
TABLE = ("place", "kind", "label", "class", "weights", "seed", "number")


@dataclass(frozen=True, eq=False)
class Provenance:
    """What each image of a balanced set is.

    Attributes:
        synthetic: whether it was generated.
        labels: its class.
        number: of the sample; -1 for a real image. `model.sample([label], seed=seed, start=number)` draws it again.
        seed: of the samples.
        weights: hash of the model's weights.
        names: of the classes.
        refused: class → how many samples were turned down: not believed by the judge, or near copies.
        drawn: class → how many were drawn in all.
        teacher: hash of the weights of the classifier whose probabilities stand beside the labels; "" for none.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(60, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> table = balance(cells, model)[1].table()
        >>> table.splitlines()[:2]
        ['place,kind,label,class,weights,seed,number', '0,real,...']
    """

    synthetic: Bool[np.ndarray, " images"]
    labels: Int64[np.ndarray, " images"]
    number: Int64[np.ndarray, " images"]
    seed: int
    weights: str
    names: tuple[str, ...]
    refused: Mapping[str, int]
    drawn: Mapping[str, int]
    teacher: str = ""

    def table(self) -> str:
        """A row an image, as CSV with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((*TABLE, "teacher") if self.teacher else TABLE)
        for place, (made, label, number) in enumerate(zip(self.synthetic, self.labels, self.number, strict=True)):
            name = self.names[label] if self.names else ""
            of = (self.weights, self.seed, number) if made else ("", "", "")
            by = (self.teacher if made else "",) if self.teacher else ()
            writer.writerow((place, "synthetic" if made else "real", label, name, *of, *by))
        return text.getvalue()

    def __str__(self) -> str:
        made = {name: int((self.labels[self.synthetic] == k).sum()) for k, name in enumerate(self.names)}
        lines = [f"{int(self.synthetic.sum()):,} generated images beside {int((~self.synthetic).sum()):,} real ones:"]
        for name, count in made.items():
            turned = self.refused.get(name, 0) / max(self.drawn.get(name, 0), 1)
            lines.append(f"  {name}: {count:,}" + (f" ({turned:.0%} of the drawn ones turned down)" if turned else ""))
        real = np.bincount(self.labels[~self.synthetic], minlength=len(self.names))
        if few := [name for name, n in zip(self.names, real, strict=True) if made[name] and n <= FEW]:
            lines.append(f"{', '.join(few)}: {FEW} real images or fewer. Try drawing them more often beside this.")
        return "\n".join(lines)


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

    Attributes:
        provenance_: after `fit_resample`, what each image is.
        sampling_strategy_: class number → generated images.
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
    ) -> None:
        self.model, self.sampling_strategy, self.judge, self.data = model, sampling_strategy, judge, data
        self.seed, self.random_state = seed, random_state

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
            ValueError: if images, labels or counts do not fit, or a class would have to shrink.
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
        images, number, refused, drawn = self.draw()
        self.provenance_ = Provenance(
            np.r_[np.zeros(len(labels), bool), np.ones(len(images), bool)],
            np.r_[labels, made],
            np.r_[np.full(len(labels), -1), number],
            self.seed_,
            weights_hash(self.model.state_dict()),
            tuple(class_names(self.model)),
            refused,
            drawn,
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

    def draw(self) -> tuple[UInt8[np.ndarray, "n ..."], Int64[np.ndarray, " n"], dict[str, int], dict[str, int]]:
        """Images of every class that is to be filled up, their numbers, and how many were turned down and drawn."""
        names, parts, numbers = class_names(self.model), [], []
        refused, drawn = {}, {}
        for label, count in self.sampling_strategy_.items():
            images, own, refused[names[label]], drawn[names[label]] = self.of_class(label, count)
            parts.append(images)
            numbers.append(own)
        empty = np.zeros((0, *self.model.image_shape), np.uint8)
        return np.concatenate([empty, *parts]), np.concatenate([np.zeros(0, np.int64), *numbers]), refused, drawn

    def of_class(self, label: int, count: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        """So many images of a class that nothing speaks against, in the order of their numbers."""
        first, good, bad = label * CLASS_SHARE, [], []
        size, drawn = count, 0
        for _ in range(ROUNDS if self.judge is not None or self.data is not None else 1):
            images = to_uint8(self.model.sample([label] * size, seed=self.seed_, start=first + drawn)).cpu().numpy()
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
                f"After {drawn:,} samples of {class_names(self.model)[label]!r} {missing:,} of {count:,} are still "
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
    data: LabelledImages,
    model: Any,
    strategy: Wanted = "auto",
    *,
    seed: int = 0,
    judge: Any = None,
    refuse_copies: bool = False,
) -> tuple[LabelledImages, Provenance]:
    """A set whose training images are balanced; validation and test images stay as they are.

    Args:
        data: real images with class labels; a set without splits is balanced as a whole.
        model: trained on the same classes; names decide which is which.
        strategy: see :class:`Balancer`.
        seed: of the samples.
        judge: see :class:`Balancer`.
        refuse_copies: draw near copies of training images again; needs a validation split.

    Returns:
        The set, real training images first, and what each of its training images is.

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
    if data.kind != "class":
        raise ValueError(f"Expected class labels to balance; {data.name!r} has {data.kind} ones.")
    data = data.ordered(getattr(model, "class_names", ()))
    train = data.train if data.splits else data
    balancer = Balancer(model, strategy, seed=seed, judge=judge, data=data if refuse_copies else None)
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
        name=f"{data.name} balanced",
    )
    return balanced, balancer.provenance_


def with_probabilities(data: LabelledImages, provenance: Provenance, teacher: Any) -> tuple[LabelledImages, Provenance]:
    """Add a teacher's probabilities of the classes to a balanced set, for a classifier to learn instead of the labels.

    Of generated training images they are the teacher's; of real images all of it is on their label.

    Args:
        data: from :func:`balance`.
        provenance: from the same call.
        teacher: images → probabilities; :class:`condgen.evaluation.teacher.Teacher`.

    Returns:
        The set with `factors["probabilities"]`, float32 of shape (n, classes), and a table that names the teacher.

    Example:
        >>> import condgen
        >>> from condgen.evaluation.teacher import Teacher
        >>> cells = condgen.load_smears(60, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> teacher = Teacher(condgen.train_classifier(cells, epochs=1, width=4), cells.class_names)
        >>> soft, provenance = with_probabilities(*balance(cells, model), teacher)
        >>> soft.train.factors["probabilities"].shape[1], len(provenance.teacher)
        (8, 64)
    """
    probabilities = np.eye(data.num_classes, dtype=np.float32)[data.labels]
    places = np.arange(len(data))[data.splits["train"]] if data.splits else np.arange(len(data))
    made = places[provenance.synthetic]
    if len(made):
        probabilities[made] = teacher(data.images[made])
    soft = replace(data, factors={**data.factors, PROBABILITIES: probabilities})
    return soft, replace(provenance, teacher=teacher.weights)


def write_balanced(data: LabelledImages, provenance: Provenance, path: str | Path) -> Path:
    """Write a balanced set, and beside it a table of which training image is what.

    Args:
        data: from :func:`balance`.
        provenance: from the same call.
        path: an `.npz` file in MedMNIST's layout, which the `medmnist` package loads under the name of its own file
            (though its `len()` insists on the official number of images), or a folder with a subfolder for each split
            and class. The table is `NAME.provenance.csv`, or `provenance.csv` in the folder; the names of generated
            files begin with "synthetic".

    Returns:
        The table's path.

    Raises:
        ValueError: if the folder holds other files.
        OSError: if nothing can be written there.

    Example:
        >>> import condgen, tempfile
        >>> cells = condgen.load_smears(60, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = write_balanced(*balance(cells, model), Path(folder) / "cells.npz")
        ...     condgen.load_npz(Path(folder) / "cells.npz").train.class_counts["platelet"] > 0, table.name
        (True, 'cells.provenance.csv')
    """
    path = Path(path)
    check_writable(path.parent)
    table = path.with_suffix(".provenance.csv") if path.suffix == ".npz" else path / "provenance.csv"
    splits = {name: getattr(data, name) for name in data.splits} or {"train": data}
    if path.suffix == ".npz":
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, np.ndarray] = {"class_names": np.array(data.class_names)}
        for name, part in splits.items():
            short = {"validation": "val"}.get(name, name)
            images = np.moveaxis(part.images, 1, -1)
            arrays[f"{short}_images"] = images[..., 0] if images.shape[-1] == 1 else images
            kind = np.uint8 if data.num_classes <= 256 else np.int64  # MedMNIST's own, where it suffices
            arrays[f"{short}_labels"] = part.labels[:, None].astype(kind)
            if name == "train" and PROBABILITIES in part.factors:
                arrays["train_probabilities"] = part.factors[PROBABILITIES]
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    else:
        if path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} holds other files. Choose another folder.")
        for name, part in splits.items():
            write_images(part, provenance.synthetic if name == "train" else np.zeros(len(part), bool), path / name)
        write_classes(path, data.class_names)
    write_atomically(table, provenance.table().encode())
    return table


def write_images(part: LabelledImages, synthetic: Bool[np.ndarray, " n"], folder: Path) -> None:
    """One PNG an image, in a subfolder for each class; generated ones say so in their names."""
    from PIL import Image

    names = folder_names(part.class_names)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for place, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
        kind = "synthetic" if synthetic[place] else "real"
        array = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
        Image.fromarray(array).save(folder / names[label] / f"{kind}-{place:06d}.png")
