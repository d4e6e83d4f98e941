"""Conditioners: labels in, the condition c of shape (batch, dim) out.

Contract: `conditioner(y) → c`; `dim`, the width of c; `columns`, how many columns of y it reads (1 for a class
label); `check(y)` raises a ValueError for labels it cannot take. Checks happen once, where labels enter, never in
the training step. A conditioner with a `noise_shape` is also handed noise while training: `conditioner(y, noise)`.
"""

__all__ = [
    "Continuous",
    "Embedding",
    "Joint",
    "LabelDropout",
    "MultiLabel",
    "OneHot",
    "Unconditional",
    "without_dropout",
]

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from condgen.nn.parts import Part


class OneHot(Part):
    r"""Class labels as one-hot vectors, :math:`c_k = [y = k]`.

    Args:
        num_classes: labels are integers in [0, num_classes).

    Example:
        >>> OneHot(3)(torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    columns = 1

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = self.dim = at_least_one(num_classes)

    def forward(self, y: Shaped[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """(batch,) → (batch, num_classes)."""
        # A comparison, not F.one_hot: that one reads the largest label back from the device.
        classes = torch.arange(self.num_classes, device=y.device)
        return (y.reshape(-1, 1) == classes).to(torch.get_default_dtype())

    def check(self, y: Tensor) -> None:
        """Raise ValueError for labels outside [0, num_classes)."""
        check_classes(y, self.num_classes)


class Embedding(Part):
    """Class labels as learned vectors.

    Args:
        num_classes: labels are integers in [0, num_classes).
        dim: length of each vector.

    Example:
        >>> Embedding(8, 16)(torch.tensor([2, 0])).shape
        torch.Size([2, 16])
    """

    columns = 1

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.num_classes, self.dim = at_least_one(num_classes), dim
        self.vectors = nn.Embedding(num_classes, dim)

    def forward(self, y: Shaped[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """(batch,) → (batch, dim)."""
        return self.vectors(y.reshape(-1).long())

    def check(self, y: Tensor) -> None:
        """Raise ValueError for labels outside [0, num_classes)."""
        check_classes(y, self.num_classes)


class MultiLabel(Part):
    """Several labels an image, each present (1) or absent (0), as they are.

    Args:
        num_labels: number of label columns.

    Example:
        >>> MultiLabel(3)(torch.tensor([[1, 0, 1]]))
        tensor([[1., 0., 1.]])
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.dim = self.columns = num_labels

    def forward(self, y: Shaped[Tensor, "batch *labels"]) -> Float[Tensor, "batch dim"]:
        """(batch, num_labels) of 0 and 1 → the same as floats."""
        return y.reshape(y.shape[0], self.columns).to(torch.get_default_dtype())

    def check(self, y: Tensor) -> None:
        """Raise ValueError unless y is (batch, num_labels) of 0 and 1."""
        check_columns(y, self.columns)
        if not bool(((y == 0) | (y == 1)).all()):
            raise ValueError("Expected 0 or 1 in every label column; got other values.")


class Continuous(Part):
    r"""Continuous conditions, standardised: :math:`c = (y - \text{mean}) / \text{std}`.

    Args:
        mean: one value per column; see :meth:`of` to take mean and spread from data.
        std: one positive value per column.

    Raises:
        ValueError: if the lengths differ or a spread is not positive.

    Example:
        >>> Continuous(mean=[10.0], std=[2.0])(torch.tensor([[12.0], [10.0]]))
        tensor([[1.],
                [0.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 and math.isfinite(s) for s in std):
            raise ValueError(f"Expected as many positive spreads as means; got {list(mean)} and {list(std)}.")
        self.dim = self.columns = len(mean)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()))

    @classmethod
    def of(cls, labels: Shaped[Tensor, "images columns"]) -> "Continuous":
        """A conditioner standardised on these labels, e.g. `Continuous.of(torch.as_tensor(data.train.labels))`.

        Example:
            >>> Continuous.of(torch.tensor([[1.0], [3.0]])).arguments
            {'mean': (2.0,), 'std': (1.0,)}
        """
        labels = labels.double().reshape(len(labels), -1)
        return cls(labels.mean(0).tolist(), labels.std(0, unbiased=False).tolist())

    def forward(self, y: Shaped[Tensor, "batch *columns"]) -> Float[Tensor, "batch dim"]:
        """(batch, columns) → (batch, columns)."""
        return (y.reshape(y.shape[0], self.columns) - self.mean) / self.std

    def check(self, y: Tensor) -> None:
        """Raise ValueError unless y is (batch, columns) and finite."""
        check_columns(y, self.columns)
        if not bool(y.double().isfinite().all()):
            raise ValueError("Expected finite conditions; got NaN or infinity.")


class Joint(Part):
    """Several conditions at once: each conditioner reads its own columns of y, the results are joined.

    Args:
        conditioners: in the order of their columns.

    Raises:
        ValueError: for a part that drops labels: all labels of an image are dropped together, or none.

    Example:
        >>> cell_and_radius = Joint([OneHot(3), Continuous([10.0], [2.0])])
        >>> cell_and_radius(torch.tensor([[2.0, 12.0]]))  # class 2, radius 12
        tensor([[0., 0., 1., 1.]])
    """

    def __init__(self, conditioners: Sequence[nn.Module]) -> None:
        super().__init__()
        if any(hasattr(part, "noise_shape") for part in conditioners):
            raise ValueError("Expected conditioners without noise. Pass LabelDropout(Joint([...]), probability).")
        self.conditioners = nn.ModuleList(conditioners)
        self.dim = sum(part.dim for part in conditioners)  # type: ignore[misc]
        self.columns = sum(part.columns for part in conditioners)  # type: ignore[misc]

    def forward(self, y: Shaped[Tensor, "batch *columns"]) -> Float[Tensor, "batch dim"]:
        """(batch, columns) → (batch, dim)."""
        return torch.cat([part(own) for part, own in self._columns(y)], dim=1)

    def check(self, y: Tensor) -> None:
        """Raise ValueError where one of the conditioners does."""
        check_columns(y, self.columns)
        for part, own in self._columns(y):
            part.check(own)  # type: ignore[operator]

    def _columns(self, y: Tensor) -> list[tuple[nn.Module, Tensor]]:
        own = y.reshape(y.shape[0], self.columns).split([part.columns for part in self.conditioners], dim=1)  # type: ignore[misc]
        return [(p, part[:, 0] if p.columns == 1 else part) for p, part in zip(self.conditioners, own, strict=True)]


class Unconditional(Part):
    """No condition: c has no columns. A conditional VAE with it is a plain VAE.

    Example:
        >>> Unconditional()(torch.tensor([3, 1])).shape
        torch.Size([2, 0])
    """

    dim = columns = 0

    def forward(self, y: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch 0"]:
        """Any labels → (batch, 0)."""
        return torch.zeros(y.shape[0], 0, device=y.device)

    def check(self, y: Tensor) -> None:
        """Every label is fine; none is looked at."""


class LabelDropout(Part):
    r"""A conditioner that forgets the label of a random share of the training images.

    One model then knows both :math:`p(x \mid y)` and :math:`p(x)`. The condition gains a column that says whether
    the label is missing; where it is, the others are 0. Outside training a label is missing where y is negative
    (class labels) or NaN (continuous).

    Args:
        conditioner: what to do with the labels that are kept.
        probability: share of labels dropped in training, in [0, 1].

    References:
        Classifier-free diffusion guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598

    Example:
        >>> LabelDropout(OneHot(2), 0.1)(torch.tensor([1, -1]))
        tensor([[0., 1., 0.],
                [0., 0., 1.]])
    """

    noise_shape = ()

    def __init__(self, conditioner: nn.Module, probability: float) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"Expected a probability in [0, 1]; got {probability}.")
        self.conditioner, self.probability = conditioner, probability
        self.dim = conditioner.dim + 1  # type: ignore[operator]
        self.columns = conditioner.columns

    def forward(
        self, y: Shaped[Tensor, "batch ..."], noise: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Labels, and in training standard normal noise that decides which to drop → (batch, dim)."""
        missing = missing_labels(y)
        c = self.conditioner(torch.where(missing.reshape(-1, *[1] * (y.ndim - 1)), torch.zeros_like(y), y))
        if noise is not None and self.training:
            missing = missing | (torch.special.ndtr(noise) < self.probability)
        missing = missing.reshape(-1, 1)
        return torch.cat([torch.where(missing, torch.zeros_like(c), c), missing.to(c.dtype)], dim=1)

    def check(self, y: Tensor) -> None:
        """Raise ValueError where the conditioner does, missing labels aside."""
        self.conditioner.check(y[~missing_labels(y)])  # type: ignore[operator]


def without_dropout(conditioner: Any) -> Any:
    """The conditioner that :class:`LabelDropout` wraps; any other one is itself.

    Example:
        >>> without_dropout(LabelDropout(OneHot(2), 0.1)).num_classes, without_dropout(OneHot(3)).num_classes
        (2, 3)
    """
    return getattr(conditioner, "conditioner", conditioner)


def at_least_one(num_classes: int) -> int:
    """The number itself, once known to be one of classes."""
    if num_classes < 1:
        raise ValueError(f"Expected one class or more; got num_classes={num_classes}. Unconditional takes no labels.")
    return num_classes


def missing_labels(y: Tensor) -> Tensor:
    """(batch,) bool: labels that are NaN, or for integers negative."""
    missing = y.isnan() if y.is_floating_point() else y < 0
    return missing.flatten(1).any(1) if y.ndim > 1 else missing


def check_classes(y: Tensor, num_classes: int) -> None:
    """Raise unless y holds whole numbers in [0, num_classes), one per image."""
    if y.ndim != 1 and y.shape[1:] != (1,):
        raise ValueError(f"Expected one class label per image, shape (batch,); got shape {tuple(y.shape)}.")
    if y.is_floating_point() and not bool((y.isfinite() & (y == y.round())).all()):
        raise ValueError("Expected whole numbers as class labels; got fractions, NaN or infinity.")
    low, high = (int(y.min()), int(y.max())) if y.numel() else (0, 0)
    if low < 0 or high >= num_classes:
        got = low if low < 0 else high
        raise ValueError(
            f"Expected labels in [0, {num_classes}); got {got}. Pass num_classes={got + 1} or remap the labels."
            if got >= 0
            else f"Expected labels in [0, {num_classes}); got {got}."
        )


def check_columns(y: Tensor, columns: int) -> None:
    """Raise unless y is (batch, columns); a single column may come as (batch,)."""
    if y.shape[1:] != (columns,) and not (columns == 1 and y.ndim == 1):
        raise ValueError(f"Expected labels of shape (batch, {columns}); got {tuple(y.shape)}.")
