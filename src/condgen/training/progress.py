"""What training shows of itself: a progress bar on a terminal; elsewhere a line at least every half minute."""

__all__ = ["Display", "display"]

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from condgen.io.progress import EVERY, PATIENCE, console_for_errors, duration
from condgen.training.budget import Forecast

TERMS = {"log_likelihood": "log-likelihood", "kl": "KL"}  # as people write them


def shown_terms(terms: Iterable[str]) -> list[str]:
    """The terms of an objective to show to people: the bound's where it has them, else its first ones."""
    known = [name for name in ("log_likelihood", "kl") if name in terms]
    return known or list(terms)[:3]


class Display:
    """What training tells: a bar on a terminal, lines elsewhere, or nothing.

    Args:
        bar: rich's progress bar, if there is a terminal.
        console: where lines go; None for none.
        forecast: of the time that is left.
        images: images per epoch.
        stop_if_asked: called between two steps; may raise.
    """

    def __init__(self, bar: Any, console: Any, forecast: Forecast, images: int, stop_if_asked: Any) -> None:
        self.bar, self.console, self.forecast, self.images = bar, console, forecast, images
        self.stop_if_asked, self.told, self.announced, self.text = stop_if_asked, time.monotonic(), False, "starting"
        self.task = bar.add_task(self.text, total=1.0) if bar else None

    def say(self, text: str) -> None:
        """A line of its own."""
        if self.console:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)
            self.told = time.monotonic()

    def stepped(self, epoch: float, stop: bool = True) -> None:
        """A step done: the moment to stop if that is asked for, and to tell how long it will take.

        Args:
            epoch: passes done, with fractions.
            stop: whether this is a moment at which training may stop.
        """
        if stop:
            self.stop_if_asked()
        self.forecast.stepped()
        if not self.console:
            return
        left = self.forecast.left(epoch)
        if left is not None and self.forecast.known and not self.announced:
            self.announced = True
            if self.forecast.plan.budget is None and left > PATIENCE:
                self.say(f"{duration(left)} on this machine; a budget of minutes (--minutes M, minutes=M) spends less")
        if self.bar:
            share = self.forecast.plan.share(epoch)
            self.bar.update(self.task, completed=share, description=self.described(left))
        elif time.monotonic() - self.told > EVERY:
            self.say(f"pass {epoch:.2f}{self.of_all()}, {'' if left is None else f'{duration(left)} left'}".strip(", "))

    def waiting(self, text: str) -> None:
        """What is being done between two steps, where that has taken long."""
        if not self.bar and time.monotonic() - self.told > EVERY:
            self.say(text)

    def of_all(self) -> str:
        """How many passes there will be, where that is known."""
        return f" of {self.forecast.plan.epochs}" if self.forecast.plan.epochs is not None else ""

    def described(self, left: float | None) -> str:
        """What stands beside the bar."""
        return self.text if left is None else f"{duration(left)} left  {self.text}"

    def epoch(self, row: Mapping[str, float], passes: float) -> None:
        """An epoch done.

        Args:
            row: of the history.
            passes: done, with fractions where a budget ended inside the epoch.
        """
        self.forecast.pause()
        split = "validation" if "validation_loss" in row else "train"
        own = {name.removeprefix(f"{split}_"): value for name, value in row.items() if name.startswith(f"{split}_")}
        terms = ", ".join(f"{TERMS.get(name, name)} {own[name]:.5g}" for name in shown_terms(own))
        done = (
            f"{row['epoch']}/{self.forecast.plan.epochs}" if self.forecast.plan.epochs is not None else f"{passes:.3g}"
        )
        self.text = f"epoch {done}  {row['images_per_second']:,.0f} images/s  {split}: {terms}"
        if self.bar:
            self.bar.update(self.task, description=self.text)
        else:
            self.say(self.text)


@contextmanager
def display(
    forecast: Forecast, images: int, progress: bool, stop_if_asked: Callable[[], None], about: str = ""
) -> Iterator[Display]:
    """What shows the progress of training, on standard error.

    Args:
        forecast: of the time that training takes.
        images: images per epoch.
        progress: whether anything is shown.
        stop_if_asked: called between two steps; may raise.
        about: a line to begin with.

    Example:
        >>> from condgen.training.budget import Plan
        >>> forecast = Forecast(Plan(epochs=1, budget=None, steps=1))
        >>> with display(forecast, 128, progress=False, stop_if_asked=lambda: None) as show:
        ...     show.stepped(1.0)
    """
    if not progress:
        yield Display(None, None, forecast, images, stop_if_asked)
        return
    console = console_for_errors()
    if not console.is_terminal:
        show = Display(None, console, forecast, images, stop_if_asked)
        if about:
            show.say(about)
        yield show
        return
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(bar_width=24), TextColumn("{task.description}"), console=console) as bar:
        show = Display(bar, console, forecast, images, stop_if_asked)
        if about:
            show.say(about)
        yield show
