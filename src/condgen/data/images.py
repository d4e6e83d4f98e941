"""Labelled images: uint8 arrays in memory or on disk, turned into batches (x, y) on the device.

Images stay uint8 until they are on the device, batches are taken by index, and the order of an epoch is a
function of a seed and an epoch number. There are no worker processes and no per-image Python.
"""

__all__ = ["PROBABILITIES", "SYNTHETIC", "LabelledImages"]

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.data.batches import image_tensor
from condgen.data.checks import check_labels, check_names, check_splits
from condgen.data.convert import KINDS, classes_by_value, forwards, kind_of, labels_as, uint8_images
from condgen.data.names import PROBABILITIES, SYNTHETIC, default_names, numbered, shortened
from condgen.data.together import joined
from condgen.data.writing import write_npz
from condgen.random import permutation

if TYPE_CHECKING:
    import matplotlib.figure

SPLITS = ("train", "validation", "test")
CHUNK = 4096  # images hashed at a time


@dataclass(frozen=True, eq=False, repr=False)
class LabelledImages:
    """Images with labels; a set that knows its own splits offers them as `train`, `validation` and `test`.

    Args:
        images: uint8, shape (images, channels, height, width); an array or a memory map. Channels last, grey images
            without channels, and numbers that are exact grey levels are converted, with a note.
        labels: class labels, whole numbers or text of shape (images,) or (images, 1), or one-hot rows; or several
            labels per image, 0 or 1 of shape (images, classes); or continuous conditions, floats of shape
            (images, conditions).
        class_names: one name per class (per column for multi-label and continuous labels). By default classes are
            called by their values: "class 0", "class 1", and so on, or the text.
        splits: name → slice or indices. The named ones are views where given as slices.
        factors: further columns about each image, such as the drawn factors of built-in images, or a teacher's
            probability of each class (`probabilities`, of shape (images, classes)), or whether it was generated
            (`synthetic`).
        name: what to call the set in messages and files.
        kind: what the labels are, "class", "multi-label" or "continuous"; by default what their type and shape say.

    Raises:
        TypeError: if images or labels are of a type that cannot be read.
        ValueError: if shapes or labels do not fit, or splits share images; the message says what to do.

    Example:
        >>> images, labels = np.zeros((6, 3, 28, 28), np.uint8), np.array([0, 1, 1, 0, 1, 1])
        >>> cells = LabelledImages(images, labels, class_names=("round", "lobed"))
        >>> cells
        LabelledImages 'images': 6 images of (3, 28, 28); round 2, lobed 4
        >>> cells.subset([1, 2]).class_counts
        {'round': 0, 'lobed': 2}
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str] = ()
    splits: Mapping[str, slice | np.ndarray] = field(default_factory=dict)
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = "images"
    kind: str = ""

    def __post_init__(self) -> None:
        images, labels = uint8_images(self.images), forwards(np.asarray(self.labels))
        if labels.ndim not in (1, 2) or len(labels) != len(images) or 0 in labels.shape[1:]:
            raise ValueError(
                f"Expected one label for each of {len(images)} images; got labels of shape {labels.shape}."
            )
        if self.kind and self.kind not in KINDS:
            raise ValueError(f"Expected kind as one of class, multi-label and continuous; got {self.kind!r}.")
        kind: Any = KINDS.get(self.kind) or kind_of(labels, len(self.class_names))
        labels, names = labels_as(kind, labels, len(images), bool(self.kind)), tuple(self.class_names)
        if kind == "class" and not names:
            labels, names = classes_by_value(labels)
        elif kind == "class" and labels.dtype.kind == "U":
            labels = numbered(labels, names)
        names = names or default_names(labels.shape[1] if labels.ndim == 2 else 0)
        check_names(names)
        check_labels(labels, names)
        check_splits(self.splits, len(labels))
        if other := [name for name, column in self.factors.items() if len(column) != len(labels)]:
            raise ValueError(f"Expected factors with a row for each of {len(labels)} images; got others: {other[0]}.")
        for field_, value in (("images", images), ("labels", labels), ("class_names", names), ("kind", kind)):
            object.__setattr__(self, field_, value)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes (of columns for multi-label and continuous labels)."""
        return len(self.class_names)

    @property
    def class_counts(self) -> dict[str, int]:
        """Images per class; with several labels an image, images that carry each label."""
        if self.kind == "continuous":
            raise ValueError("Continuous labels have no classes to count.")
        if self.kind == "class":
            counts = np.bincount(self.labels, minlength=self.num_classes)
        else:
            counts = self.labels.sum(0, dtype=np.int64)
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images, labels, class names and splits, as 64 hexadecimal digits; file names do not count.

        Example:
            >>> images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.array([0, 1, 1, 0])
            >>> named = LabelledImages(images, labels, ("round", "lobed"))
            >>> named.fingerprint == LabelledImages(images, labels, ("round", "lobed"), name="again").fingerprint
            True
            >>> named.fingerprint == LabelledImages(images, labels, ("lobed", "round")).fingerprint
            False
        """
        parts = {name: self.content_hash(name) for name in self.splits} or {"": self.content_hash()}
        about = json.dumps([self.class_names, sorted(parts.items())])
        return hashlib.sha256(about.encode()).hexdigest()

    def content_hash(self, split: str = "") -> str:
        """SHA-256 of the images and labels of a split, or of all; names do not count. Memory maps are read in pieces.

        Raises:
            ValueError: if there is no such split.

        Example:
            >>> images = LabelledImages(np.zeros((50, 1, 8, 8), np.uint8), np.arange(50) % 5).split()
            >>> images.content_hash("train") == images.train.content_hash()
            True
        """
        members = np.arange(len(self))[self._indices(split) if split else slice(None)]
        labels = np.ascontiguousarray(self.labels[members])
        about = [len(members), self.image_shape, self.num_classes, labels.dtype.str, labels.shape]
        digest = hashlib.sha256(json.dumps(about).encode())
        digest.update(labels.tobytes())
        for start in range(0, len(members), CHUNK):
            digest.update(self.images[members[start : start + CHUNK]].tobytes())
        return digest.hexdigest()

    def ordered(self, class_names: Sequence[str]) -> "LabelledImages":
        """The same images with their classes in this order: names decide which class is which, wherever sets meet.

        Classes of `class_names` that this set has no image of stay empty. Where one side has no names of its own
        (they are "class 0", "class 1", …, or none), numbers decide.

        Raises:
            ValueError: if this set has images of a class that is not among `class_names`, or, where numbers decide,
                another number of classes.

        Example:
            >>> images = LabelledImages(np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 1, 1]), ("ant", "zebra"))
            >>> images.ordered(("zebra", "ant")).class_counts
            {'zebra': 2, 'ant': 1}
        """
        names = tuple(class_names)
        if not names or names == tuple(self.class_names) or self.kind == "continuous":
            return self
        own = tuple(self.class_names)
        unnamed = own == default_names(len(own)) or names == default_names(len(names))
        if unnamed and not set(own) <= set(names):
            if self.num_classes != len(names):
                raise ValueError(
                    f"Expected {len(names)} classes ({shortened(names)}); {self.name!r} has {self.num_classes} "
                    "without names that tell which is which. Name its classes."
                )
            return self.with_labels(self.labels, names, self.kind)
        counts = self.class_counts
        if unknown := [name for name in self.class_names if name not in names and counts[name]]:
            raise ValueError(
                f"Expected images of {shortened(names)}; {self.name!r} has others: {shortened(unknown)}. Rename or "
                "leave out these classes."
            )
        if self.kind == "class":
            places = np.array([names.index(name) if name in names else -1 for name in self.class_names], np.int64)
            turned = self.with_labels(places[self.labels], names, self.kind)
            if PROBABILITIES not in self.factors:
                return turned
            soft = np.zeros((len(self), len(names)), np.float32)
            known = places >= 0
            soft[:, places[known]] = self.factors[PROBABILITIES][:, known]
            return replace(turned, factors={**turned.factors, PROBABILITIES: soft})
        columns = [self.labels[:, self.class_names.index(n)] if n in counts else 0 * self.labels[:, 0] for n in names]
        return self.with_labels(np.stack(columns, axis=1), names, self.kind)

    @functools.cached_property
    def train(self) -> "LabelledImages":
        """The images to train on."""
        return self._split("train")

    @functools.cached_property
    def validation(self) -> "LabelledImages":
        """The images to choose by."""
        return self._split("validation")

    @functools.cached_property
    def test(self) -> "LabelledImages":
        """The images to report on."""
        return self._split("test")

    def _split(self, name: str) -> "LabelledImages":
        return self.subset(self._indices(name), name=f"{self.name} {name}")

    def _indices(self, name: str) -> slice | np.ndarray:
        if name not in self.splits:
            have = ", ".join(self.splits) or "no splits"
            raise ValueError(
                f"{self.name!r} has {have}, not {name!r}. Split it into train, validation and test (.split())."
            )
        return self.splits[name]

    def __getitem__(self, index: Any) -> Any:
        """The image and its label at a whole number, as a data set of PyTorch has them; else a :meth:`subset`.

        The image is a float tensor in [0, 1] of shape (channels, height, width). The label is an int for classes, and a
        float tensor for several labels or conditions.

        Example:
            >>> cells = LabelledImages(np.full((3, 1, 8, 8), 255, np.uint8), np.array([0, 1, 0]))
            >>> image, label = cells[1]
            >>> image.max(), label, len(cells[:2])
            (tensor(1.), 1, 2)
        """
        if not isinstance(index, int | np.integer):
            return self.subset(index)
        (image,) = image_tensor(self.images[index][None])
        return image, int(self.labels[index]) if self.kind == "class" else torch.tensor(self.labels[index]).float()

    def __add__(self, other: "LabelledImages") -> "LabelledImages":
        """This set and the other one behind it, split by split; names decide which class is which.

        Raises:
            ValueError: if images have another shape, labels are of another kind, or one of them alone has splits.

        Example:
            >>> one = LabelledImages(np.zeros((2, 1, 8, 8), np.uint8), np.array(["ant", "bee"]))
            >>> other = LabelledImages(np.zeros((3, 1, 8, 8), np.uint8), np.array(["bee", "bee", "fly"]))
            >>> (one + other).class_counts
            {'ant': 1, 'bee': 3, 'fly': 1}
        """
        return joined(self, other)

    def save(self, path: str | Path) -> Path:
        """Write the set to an npz file in MedMNIST's layout, whole or not at all; :func:`condgen.load_npz` reads it.

        Raises:
            ValueError: for another ending than .npz.
            OSError: if it cannot be written.

        Example:
            >>> import condgen, tempfile
            >>> cells = condgen.load_smears(60, size=16)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     condgen.load_npz(cells.save(f"{folder}/cells.npz")).test.class_counts == cells.test.class_counts
            True
        """
        return write_npz(self, path)

    def show(self, per_class: int = 10, *, seed: int = 0) -> "matplotlib.figure.Figure":
        """A picture of some images of every class, a row each with its name and number; as they come for other labels.

        Args:
            per_class: images in a row.
            seed: chooses them.

        Raises:
            ValueError: if there are no images to show, or none are asked for.

        Example:
            >>> import condgen
            >>> figure = condgen.load_smears(60, size=16).show(per_class=5)
        """
        from condgen.io.pictures import class_grid

        return class_grid(*self._rows(per_class, seed))

    def _rows(self, columns: int, seed: int) -> tuple[Float[Tensor, "rows columns channels height width"], list[str]]:
        """Some images of every class, and the names of the rows; where a class has fewer, white ones follow."""
        if not len(self) or columns < 1:
            raise ValueError(f"Expected images to show, one a row at least; got {len(self)} images, {columns} a row.")
        groups, names = list(self._shuffled_classes(seed)), []
        if self.kind == "class":
            names = [f"{self.class_names[int(self.labels[own[0]])]} ({len(own):,})" for own in groups]
        else:
            first: np.ndarray = groups[0]
            groups = [first[k : k + columns] for k in range(0, min(len(first), 4 * columns), columns)]
        shown = torch.ones(len(groups), columns, *self.image_shape)
        for row, own in enumerate(groups):
            shown[row, : len(own[:columns])] = image_tensor(self.images[own[:columns]])
        return shown, names

    def _repr_html_(self) -> str:
        """What a notebook shows: how many images of which size, and a few of every class."""
        import html

        from condgen.io.pictures import grid_png, inline

        parts = ", ".join(f"{name} {len(getattr(self, name)):,}" for name in self.splits if name in SPLITS)
        said = f"{len(self):,} images of {' × '.join(map(str, self.image_shape))}{f' ({parts})' if parts else ''}"
        told = f"<p><b>{html.escape(self.name)}</b>: {said}, {self.num_classes} {self.kind} labels</p>"
        return told + (inline(grid_png(*self._rows(8, 0), zoom=1), "a few of every class") if len(self) else "")

    def subset(self, indices: slice | Sequence[int] | np.ndarray | Tensor, name: str | None = None) -> "LabelledImages":
        """The images at `indices` (a slice, integers or a boolean mask), in that order, without splits."""
        if not isinstance(indices, slice):
            indices = np.asarray(indices)
            if indices.size and indices.dtype.kind not in "iub":
                raise TypeError(f"Expected a slice, integers or a boolean mask; got {indices.dtype}.")
            indices = indices if indices.dtype == bool else indices.astype(np.int64)
        factors = {key: column[indices] for key, column in self.factors.items()}
        return type(self)(
            self.images[indices],
            self.labels[indices],
            self.class_names,
            {},
            factors,
            name or f"{self.name} subset",
            self.kind,
        )

    def stratified(self, share: float, seed: int = 0) -> np.ndarray:
        """Sorted indices of a random `share` of every class, rounded, but at least one of each class present.

        Args:
            share: in (0, 1].
            seed: the same seed takes the same images.

        Raises:
            ValueError: if share is out of range.

        Example:
            >>> images = LabelledImages(np.zeros((30, 1, 8, 8), np.uint8), np.arange(30) // 20)
            >>> images.subset(images.stratified(0.1)).class_counts
            {'class 0': 2, 'class 1': 1}
        """
        if not 0 < share <= 1:
            raise ValueError(f"Expected a share in (0, 1]; got {share}.")
        taken = [members[: max(1, round(share * len(members)))] for members in self._shuffled_classes(seed)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *taken]))

    def split(self, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> "LabelledImages":
        """The same images with stratified `train`, `validation` and `test` splits.

        Every class keeps at least one image in `train`; one of three or more has some in each split.

        Raises:
            ValueError: if a share is not positive, they leave nothing to train on, or images are too few.

        Example:
            >>> images = LabelledImages(np.zeros((50, 1, 8, 8), np.uint8), np.arange(50) % 5).split()
            >>> len(images.train), len(images.validation), len(images.test)
            (40, 5, 5)
        """
        if not (validation > 0 and test > 0 and validation + test < 1):
            raise ValueError(f"Expected positive shares with a sum below 1; got {validation} and {test}.")
        parts = {name: [np.empty(0, np.int64)] for name in SPLITS}
        for members in self._shuffled_classes(seed):
            # At least one for validation and test where the class has three images to give.
            least = 1 if len(members) >= 3 else 0
            cut = min(max(least, round(validation * len(members))), len(members) - 1 - least)
            end = min(cut + max(least, round(test * len(members))), len(members) - 1)
            parts["validation"].append(members[:cut])
            parts["test"].append(members[cut:end])
            parts["train"].append(members[end:])
        splits = {name: np.sort(np.concatenate(parts[name])) for name in SPLITS}
        for name, indices in splits.items():
            if len(indices) == 0:
                raise ValueError(f"{len(self)} images are too few to split: {name} would be empty.")
        return type(self)(self.images, self.labels, self.class_names, splits, self.factors, self.name, self.kind)

    def _shuffled_classes(self, seed: int) -> Iterator[np.ndarray]:
        """The indices of each class present, shuffled; of all images where labels are no classes."""
        groups = self.labels if self.kind == "class" else np.zeros(len(self), np.int64)
        shuffled = permutation(len(self), seed, 0).numpy()
        for group in np.unique(groups):
            yield shuffled[groups[shuffled] == group]

    def with_labels(self, labels: np.ndarray, class_names: Sequence[str] = (), kind: str = "") -> "LabelledImages":
        """The same images and splits under other labels, for instance a factor as a continuous condition.

        A teacher's probabilities are left out, since they are those of the earlier classes.

        Example:
            >>> images = LabelledImages(np.zeros((3, 1, 8, 8), np.uint8), np.array([0, 1, 0]))
            >>> images.with_labels(np.array([[0.1], [0.5], [0.9]]), ["radius"]).kind
            'continuous'
        """
        factors = {name: column for name, column in self.factors.items() if name != PROBABILITIES}
        return type(self)(self.images, labels, class_names, self.splits, factors, self.name, kind)

    def __repr__(self) -> str:
        counted = self.num_classes <= 20 and self.kind != "continuous"
        names = (f"{k} {n}" for k, n in self.class_counts.items()) if counted else self.class_names[:20]
        size = f"{len(self)} images of {self.image_shape}"
        return f"{type(self).__name__} {self.name!r}: {size}; {', '.join(names)}"
