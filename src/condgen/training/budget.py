"""How far training is: a number of passes over the data, or a budget of time shared by all stages of a recipe."""

__all__ = ["Budget", "Forecast", "Plan", "budget_of"]

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

FIRST_ESTIMATE = 20  # steps after which the time to the end is first told
RECENT = 50  # steps whose mean time an estimate goes by
CRITIC = 0.9  # measured at 28x28 and 64x64: what a discriminator adds to a step, in steps without it
SLACK = 0.02  # share of a budget left free for what cannot be foreseen


class Budget:
    """A budget of wall-clock time, and what is spent of it.

    Args:
        minutes: the budget, above 0.
        spent: seconds that are spent already, such as those of starting the process.

    Raises:
        ValueError: unless minutes is a positive finite number.

    Example:
        >>> budget = Budget(minutes=2, spent=30)
        >>> round(budget.left()), round(budget.part(0.5).left())
        (90, 45)
    """

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        if not 0 < minutes < math.inf:
            raise ValueError(f"Expected a positive number of minutes; got minutes={minutes}.")
        self.minutes = minutes
        self.began = [time.perf_counter() - spent]  # shared by all parts of a budget
        self.start, self.end = 0.0, 60.0 * minutes  # of this part, in seconds since the whole began

    def spent(self) -> float:
        """Seconds since the whole budget began."""
        return time.perf_counter() - self.began[0]

    def left(self) -> float:
        """Seconds that remain of this part; negative once it is over."""
        return self.end - self.spent()

    def part(self, share: float) -> "Budget":
        """This share of what is left, beginning now, by the same clock."""
        own = Budget(self.minutes)
        own.began, own.start = self.began, self.spent()
        own.end = own.start + max(share * (self.end - own.start), 0.0)
        return own

    def state(self) -> dict[str, float]:
        """What a resumed run continues from."""
        return {"spent": self.spent(), "start": self.start, "end": self.end}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from such a state: the time between is not counted."""
        self.began[0] = time.perf_counter() - state["spent"]
        self.start, self.end = state["start"], state["end"]


def budget_of(minutes: "float | Budget | None") -> Budget | None:
    """The budget that a number of minutes stands for, beginning now.

    Example:
        >>> budget_of(None) is None, budget_of(2.0).minutes
        (True, 2.0)
    """
    return minutes if minutes is None or isinstance(minutes, Budget) else Budget(minutes)


class Plan:
    """How far training is: passes done of those asked for, or time spent of a budget.

    Under a budget the share of training done is the share of time spent, so learning-rate schedules end with the
    budget, wherever in an epoch that is. Time for what follows the last step (validation, files) is set aside, as
    measured at the end of earlier epochs.

    Args:
        epochs: passes over the data; None if there is a budget instead.
        budget: of time.
        steps: steps per epoch.

    Example:
        >>> plan = Plan(epochs=8, budget=None, steps=94)
        >>> [plan.share(epoch) for epoch in (0, 2, 8)], plan.over(7.99), plan.over(8)
        ([0.0, 0.25, 1.0], False, True)
    """

    def __init__(self, epochs: int | None, budget: Budget | None, steps: int) -> None:
        self.epochs, self.budget, self.steps = epochs, budget, steps
        self.reserved = 0.0  # seconds set aside for what follows the last step
        self.reached = 0.0  # share of the budget spent, as all devices know it

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from."""
        budget = self.budget.state() if self.budget else None
        return {"epochs": self.epochs, "budget": budget, "reached": self.reached, "reserved": self.reserved}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from such a state, with the rest of the budget."""
        if self.budget and state["budget"]:
            self.budget.restore(state["budget"])
        self.reached, self.reserved = state["reached"], state["reserved"]

    def tick(self, agree: Callable[[float], float] = lambda share: share) -> None:
        """Read the clock, once per step.

        Args:
            agree: own share → that of the device whose clock counts.
        """
        if self.budget is not None:
            whole = (self.budget.end - self.budget.start) * (1 - SLACK) - self.reserved
            share = (self.budget.spent() - self.budget.start) / max(whole, 1e-3)
            self.reached = max(self.reached, min(1.0, agree(share)))

    def share(self, epoch: float) -> float:
        """Share of training done after so many passes, in [0, 1].

        Args:
            epoch: passes done, with fractions.
        """
        return self.reached if self.epochs is None else epoch / self.epochs

    def over(self, epoch: float) -> bool:
        """Whether training is done after so many passes; a budget allows at least one step."""
        return epoch > 0 and self.share(epoch) >= 1

    def reserve(self, seconds: float) -> None:
        """Set time aside for what follows the last step."""
        self.reserved = seconds


class Forecast:
    """Seconds until all stages of a training are done, from the time that recent steps took.

    Args:
        plan: of the stage under way.
        later: work of the stages that follow, in first steps of this one.
        critic_start: share of this stage from which a discriminator makes its steps dearer; 1 for none.

    Example:
        >>> from condgen.io.progress import duration
        >>> forecast = Forecast(Plan(epochs=2, budget=None, steps=100), later=100)
        >>> for second in range(22):
        ...     forecast.stepped(now=float(second))
        >>> forecast.left(epoch=0.22), duration(forecast.left(epoch=0.22))
        (278.0, 'about 5 min')
    """

    def __init__(self, plan: Plan, later: float = 0.0, critic_start: float = 1.0) -> None:
        self.plan, self.later, self.critic_start = plan, later, critic_start
        self.times: deque[float] = deque(maxlen=RECENT + 1)
        self.count = 0

    def stepped(self, now: float | None = None) -> None:
        """Count a step."""
        self.times.append(time.perf_counter() if now is None else now)
        self.count += 1

    def pause(self) -> None:
        """Forget the last steps, because other work came between them and the next one."""
        self.times.clear()

    @property
    def known(self) -> bool:
        """Whether enough steps have been taken."""
        return self.count >= FIRST_ESTIMATE and len(self.times) > 1

    def left(self, epoch: float) -> float | None:
        """Seconds left after so many passes; None as long as that is not known.

        Args:
            epoch: passes done, with fractions.
        """
        if self.plan.budget is not None:
            return max(self.plan.budget.left(), 0.0)
        if not self.known:
            return None
        epochs = self.plan.epochs or 0
        begins = self.critic_start * epochs
        seconds = (self.times[-1] - self.times[0]) / (len(self.times) - 1) / (1 + CRITIC * (epoch > begins))
        work = epochs - epoch + CRITIC * (epochs - max(epoch, begins))
        return seconds * (work * self.plan.steps + self.later)
