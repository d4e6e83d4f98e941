"""What training shows of itself: a progress bar on a terminal, elsewhere a line an epoch."""

__all__ = ["display"]

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from condgen.planning import Plan

TERMS = {"log_likelihood": "log-likelihood", "kl": "KL"}  # as people write them


def shown_terms(terms: Iterable[str]) -> list[str]:
    """The terms of an objective to show to people: the bound's where it has them, else its first ones."""
    known = [name for name in ("log_likelihood", "kl") if name in terms]
    return known or list(terms)[:3]


class Display:
    """A progress bar on a terminal; elsewhere a line an epoch; or nothing."""

    def __init__(self, bar: Any, task: Any, console: Any, plan: Plan, images: int, stop_if_asked: Any) -> None:
        self.bar, self.task, self.console = bar, task, console
        self.plan, self.images, self.stop_if_asked = plan, images, stop_if_asked

    def advance(self, images: int, stop: bool = True) -> None:
        """Images done; between two steps is the moment to stop, if that is asked for."""
        if stop:
            self.stop_if_asked()
        if self.bar:
            self.bar.advance(self.task, images)

    def epoch(self, row: Mapping[str, float]) -> None:
        """An epoch done."""
        split = "validation" if "validation_loss" in row else "train"
        own = {name.removeprefix(f"{split}_"): value for name, value in row.items() if name.startswith(f"{split}_")}
        terms = ", ".join(f"{TERMS.get(name, name)} {own[name]:.5g}" for name in shown_terms(own))
        text = f"epoch {row['epoch']}/{self.plan.epochs}  {row['images_per_second']:,.0f} images/s  {split}: {terms}"
        if self.bar:
            self.bar.update(self.task, description=text, total=(self.plan.epochs or 1) * self.images)
        elif self.console:
            self.console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def display(plan: Plan, images: int, progress: bool, stop_if_asked: Callable[[], None]) -> Iterator[Display]:
    """What shows the progress of training, on standard error.

    Args:
        plan: how many epochs there will be.
        images: of an epoch.
        progress: whether anything is shown.
        stop_if_asked: called between two steps; may raise.

    Example:
        >>> plan = Plan(epochs=1, minutes=None, steps=1)
        >>> with display(plan, 128, progress=False, stop_if_asked=lambda: None) as show:
        ...     show.advance(128)
    """
    if not progress:
        yield Display(None, None, None, plan, images, stop_if_asked)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Display(None, None, console, plan, images, stop_if_asked)
        return
    columns = BarColumn(bar_width=24), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=(plan.epochs or 1) * images)
        yield Display(bar, task, console, plan, images, stop_if_asked)
