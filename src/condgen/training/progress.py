"""The progress of training: a bar on a terminal and in a notebook; elsewhere a line at least every half minute."""

__all__ = []

import time
from collections.abc import Iterable
from typing import Any

from condgen.io.progress import EVERY, PATIENCE, NotebookBar, console_for_errors, duration
from condgen.training.budget import Forecast
from condgen.training.callbacks import Callback
from condgen.training.state import TrainingState

TERMS = {"log_likelihood": "log-likelihood", "kl": "KL"}  # as people write them


def shown_terms(terms: Iterable[str]) -> list[str]:
    """The terms of a loss to show to people: those of the ELBO if it has them, else its first ones."""
    known = [name for name in ("log_likelihood", "kl") if name in terms]
    return known or list(terms)[:3]


class Progress(Callback):
    """The callback that shows how far training is and how long it still takes, as a bar or, without a terminal, lines.

    Args:
        forecast: estimates the time that is left.
        validation_steps: batches of validation images.
    """

    def __init__(self, forecast: Forecast, validation_steps: int = 0) -> None:
        self.forecast, self.validation_steps, self.console = forecast, validation_steps, console_for_errors()
        self.bar: Any = None
        self.notebook = NotebookBar() if self.console.is_jupyter else None
        self.told, self.announced, self.text = time.monotonic(), False, "starting"

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
        self.told = time.monotonic()

    def on_start(self, state: TrainingState) -> None:
        """Open the bar, and say in which precision the networks compute."""
        if self.console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=self.console)
            self.bar.start()
            self.task = self.bar.add_task(self.text, total=1.0)
        if state.precision:
            self.say(str(state.precision))

    def on_step(self, state: TrainingState) -> None:
        """Count a step; after the first twenty, say how long all of it will take."""
        self.forecast.stepped()
        left = self.forecast.left(state.passes)
        if left is not None and self.forecast.known and not self.announced:
            self.announced = True
            if state.plan.budget is None and left > PATIENCE:
                self.say(f"{duration(left)} on this machine; a budget of minutes (--minutes M, minutes=M) spends less")
        text = "" if left is None else f"{duration(left)} left"
        if self.bar:
            self.bar.update(self.task, completed=state.plan.share(state.passes), description=f"{text}  {self.text}")
        elif self.notebook:
            self.notebook.update(state.plan.share(state.passes), f"{text}  {self.text}".strip())
        elif time.monotonic() - self.told > EVERY:
            of_all = "" if state.plan.epochs is None else f" of {state.plan.epochs}"
            self.say(f"pass {state.passes:.2f}{of_all}, {text}".strip(", "))

    def on_validation_step(self, state: TrainingState) -> None:
        """Say how far validation is, if it takes long."""
        if not self.bar and not self.notebook and time.monotonic() - self.told > EVERY:
            self.say(f"validating, {state.validated} of {self.validation_steps} batches")

    def on_epoch(self, state: TrainingState) -> None:
        """Say what the epoch came to."""
        self.forecast.pause()
        row = state.row
        split = "validation" if "validation_loss" in row else "train"
        own = {name.removeprefix(f"{split}_"): value for name, value in row.items() if name.startswith(f"{split}_")}
        terms = ", ".join(f"{TERMS.get(name, name)} {own[name]:.5g}" for name in shown_terms(own))
        epochs = state.plan.epochs
        done = f"{state.passes:.3g}" if epochs is None else f"{row['epoch']}/{epochs}"
        self.text = f"epoch {done}  {row['images_per_second']:,.0f} images/s  {split}: {terms}"
        if self.bar:
            self.bar.update(self.task, description=self.text)
        elif self.notebook:
            self.notebook.update(state.plan.share(state.passes), self.text, at_once=True)
        else:
            self.say(self.text)

    def on_end(self, state: TrainingState) -> None:
        """Close the bar."""
        if self.bar:
            self.bar.stop()
