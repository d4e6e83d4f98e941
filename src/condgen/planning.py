"""How far training is, when the budget is a number of epochs or one of minutes."""

__all__ = ["Plan"]

import math
import time
from collections.abc import Mapping
from typing import Any

PROBED = 20  # steps whose rate a budget of time is planned from


class Plan:
    """How far training is: epochs are given, or follow from a budget of minutes and the rate so far.

    The first steps give a plan. Later ones may be slower, since a phase began or the machine got busy: at the end of an
    epoch that no longer fits the plan, the rest is planned anew. What schedules go by, the share of training that is
    done, never jumps: `anchors` says from which epoch and share on the rest is counted.

    Args:
        epochs: passes over the data; None if they follow from the minutes.
        minutes: a budget of time instead.
        steps: of an epoch.

    Example:
        >>> plan = Plan(epochs=8, minutes=None, steps=94)
        >>> [plan.share(epoch) for epoch in (0, 2, 8)]
        [0.0, 0.25, 1.0]
    """

    TOLERANCE = 0.1  # of the epochs left, by which a plan may be wrong

    def __init__(self, epochs: int | None, minutes: float | None, steps: int) -> None:
        self.epochs, self.minutes, self.steps = epochs, minutes, steps
        self.started, self.times = time.perf_counter(), [time.perf_counter()]
        self.epoch_began = self.started
        self.anchors: list[tuple[float, float]] = [(0.0, 0.0)]

    def state(self) -> dict[str, Any]:
        """What a resumed run goes by."""
        spent = time.perf_counter() - self.started
        return {"epochs": self.epochs, "minutes": self.minutes, "anchors": self.anchors, "spent": spent}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on by the plan there was; a budget that no number of epochs follows from yet is what is left of it."""
        self.epochs, self.anchors = state["epochs"], list(state["anchors"])
        self.minutes = None if self.epochs else state["minutes"]
        self.started = time.perf_counter() - state["spent"]

    def share(self, epoch: float) -> float:
        """Of the training that is done; 0 as long as that is not known."""
        begun, done = self.anchors[-1]
        return done + (1 - done) * (epoch - begun) / (self.epochs - begun) if self.epochs else 0.0

    def stepped(self) -> None:
        """Count a step; after the first ones, plan."""
        if self.epochs is None:
            self.times.append(time.perf_counter())
            if len(self.times) > PROBED:
                self.settle()

    def settle(self) -> None:
        """The number of epochs that fit into what is left of the budget, at the rate of the last steps seen."""
        if self.epochs is None:
            late = self.times[-1 - min(PROBED - 5, len(self.times) - 1) :]
            seconds = (late[-1] - late[0]) / max(len(late) - 1, 1)
            left = 60 * float(self.minutes or 0) - (self.times[-1] - self.started)
            done = (len(self.times) - 1) / self.steps
            # Validation, files and whatever else an epoch costs besides its steps: a twelfth.
            self.epochs = max(1, math.floor(done + left / (1.08 * seconds * self.steps)))

    def epoch_ended(self, epoch: int) -> None:
        """Plan the rest anew after so many epochs, if at the rate of this one it would miss the budget."""
        now = time.perf_counter()
        seconds, self.epoch_began = now - self.epoch_began, now
        if self.minutes is None or self.epochs is None or epoch >= self.epochs:
            return
        fitting = max(1, math.floor((60 * self.minutes - (now - self.started)) / seconds))
        if abs(fitting - (self.epochs - epoch)) > max(1, self.TOLERANCE * (self.epochs - epoch)):
            self.anchors.append((float(epoch), self.share(epoch)))
            self.epochs = epoch + fitting
