"""Optimizers and learning-rate schedules."""

__all__ = ["WarmupDecay", "adam", "adamw"]

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer


def adam(parameters: Iterable[nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999)) -> Optimizer:
    """Adam, all parameters updated in one pass."""
    return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)


def adamw(
    parameters: Iterable[nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99), decay: float = 1e-3
) -> Optimizer:
    """Adam with decoupled weight decay, all parameters updated in one pass."""
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=decay, fused=True)


@dataclass(frozen=True)
class WarmupDecay:
    """A learning rate that rises from 0, stays, and falls to a hundredth: a factor by the share of training done.

    Args:
        warmup: share of training over which it rises.
        decay: share of training, at its end, over which it falls.

    Raises:
        ValueError: unless both are shares whose sum is at most 1.

    Example:
        >>> rate = WarmupDecay(warmup=0.1, decay=0.5)
        >>> [round(rate(share), 3) for share in (0.0, 0.05, 0.3, 0.75, 1.0)]
        [0.0, 0.5, 1.0, 0.505, 0.01]
    """

    warmup: float = 0.05
    decay: float = 0.4

    def __post_init__(self) -> None:
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise ValueError(f"Expected shares with a sum of at most 1; got {self.warmup} and {self.decay}.")

    def __call__(self, share: float) -> float:
        """The factor."""
        rise = share / self.warmup if self.warmup else 1.0
        fall = (1 - share) / self.decay if self.decay else 1.0
        return min(1.0, rise, 0.01 + 0.99 * max(fall, 0.0))
