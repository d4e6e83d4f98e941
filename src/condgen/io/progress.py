"""Waits: long work says what is being done, how far it is and how long it will still take."""

__all__ = ["duration", "working"]

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE, EVERY = 5.0, 25.0  # seconds before the first line about a wait, and between two of them


def duration(seconds: float) -> str:
    """A time to come, in words.

    Example:
        >>> [duration(s) for s in (4, 75, 2300, 9000)]
        ['about 4 s', 'about 75 s', 'about 38 min', 'about 2.5 h']
    """
    if seconds < 100:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def console_for_errors() -> Any:
    """Standard error, as rich writes to it."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def working(title: str, total: float | None = None, progress: bool = True) -> Iterator[Callable[..., None]]:
    """Tell about work that may take long: what is done, how far it is and how long it will still take.

    On a terminal a bar (or a spinner, where no total is known); elsewhere nothing for five seconds, then a line, and
    another at least every half minute. A thread of its own tells, so that single calls that take minutes are told of.

    Args:
        title: what is being done, such as "training the judge".
        total: parts of the work; None if that is not known.
        progress: whether anything is told.

    Yields:
        To be called after each part (or so many), with what comes next where that has a name.

    Example:
        >>> with working("drawing", total=2, progress=False) as advance:
        ...     advance()
        ...     advance(after="the last")
    """
    if not progress:
        yield lambda *_, **__: None
        return
    console = console_for_errors()
    if console.is_terminal:
        from rich.progress import Progress

        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)

            def moved(by: float = 1.0, after: str = "") -> None:
                bar.update(task, advance=by, description=f"{title}: {after}" if after else title)

            yield moved
        return
    began, done, doing, ended = time.monotonic(), 0.0, "", threading.Event()

    def advance(by: float = 1.0, after: str = "") -> None:
        nonlocal done, doing
        done, doing = done + by, after

    def tell() -> None:
        wait = PATIENCE
        while not ended.wait(wait):
            spent = time.monotonic() - began
            text = f"{title}{f': {doing}' if doing else ''}, {spent:.0f} s so far"
            if total and done:
                text += f", {done / total:.0%} done, {duration(spent * (total / done - 1))} left"
            console.print(text, highlight=False, soft_wrap=True, markup=False)
            wait = EVERY

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()
