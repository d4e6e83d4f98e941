"""Losses and gradients that are no longer finite, found without waiting for the device at every step."""

__all__ = []

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condgen.losses.phases import Phase


@dataclass(frozen=True)
class NotFinite:
    """A step whose loss or gradient was not finite.

    Attributes:
        step: its number in the epoch, from 0.
        what: "loss" or "gradient".
        of_phase: the phase in words, empty if it has no name.
        terms: names and values in words.
    """

    step: int
    what: str
    of_phase: str
    terms: str


class FiniteCheck:
    """The terms of recent steps, to be looked at together.

    Args:
        phases: of the loss.
        scaled: whether a scaler leaves out steps whose gradients are too large, in half precision.

    Example:
        >>> check = FiniteCheck([Phase(lambda *_: {}, lambda _: [])])
        >>> check.add(0, 3, ("loss", "kl"), torch.tensor([math.nan, 1.0]))
        >>> check.bad()
        NotFinite(step=3, what='loss', of_phase='', terms='loss nan, kl 1')
    """

    def __init__(self, phases: Sequence[Phase], scaled: bool = False) -> None:
        self.phases, self.asked = phases, ("loss",) if scaled else ("loss", "gradient_norm")
        self.seen: list[tuple[int, int, tuple[str, ...], Tensor]] = []

    def add(self, phase: int, step: int, names: tuple[str, ...], values: Tensor) -> None:
        """Add the terms of a phase at a step."""
        self.seen.append((phase, step, names, values))

    def clear(self) -> None:
        """Forget the steps that have been looked at."""
        self.seen = []

    def bad(self) -> NotFinite | None:
        """The first step whose loss or gradient is not finite; None if all are."""
        apart: dict[tuple[str, ...], list[int]] = {}
        for place, (_, _, names, _) in enumerate(self.seen):
            apart.setdefault(names, []).append(place)
        bad: list[int] = []
        for names, places in apart.items():
            columns = [column for column, name in enumerate(names) if name.endswith(self.asked)]
            rows = torch.stack([self.seen[place][3] for place in places])[:, columns].tolist()
            bad += [place for place, row in zip(places, rows, strict=True) if not all(map(math.isfinite, row))]
        if not bad:
            return None
        phase, step, names, values = self.seen[min(bad)]
        terms = dict(zip(names, values.tolist(), strict=True))
        sound = all(math.isfinite(value) for name, value in terms.items() if name.endswith("loss"))
        name = self.phases[phase].name
        return NotFinite(
            step,
            "gradient" if sound else "loss",
            f" of the phase {name!r}" if name else "",
            ", ".join(f"{name} {value:.4g}" for name, value in terms.items()),
        )
