"""Waits: long work says what is being done, how far it is and how long it will still take."""

__all__ = ["NotebookBar", "duration", "working"]

import html
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE, EVERY = 5.0, 25.0  # seconds before the first line about a wait, and between two of them
REDRAWN = 0.2  # seconds between two looks of a notebook's bar


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


class NotebookBar:
    """A bar under the cell of a notebook, which needs no widgets.

    Example:
        >>> bar = NotebookBar()
        >>> bar.markup(0.25, "epoch 5/20")
        "<progress value='0.250' style='width:16em'></progress> <code>epoch 5/20</code>"
    """

    def __init__(self) -> None:
        self.handle: Any = None
        self.drawn = float("-inf")

    def markup(self, share: float | None, text: str) -> str:
        """The bar as HTML; one without an end for a share that is not known."""
        value = "" if share is None else f" value='{min(max(share, 0.0), 1.0):.3f}'"
        return f"<progress{value} style='width:16em'></progress> <code>{html.escape(text)}</code>"

    def update(self, share: float | None, text: str, at_once: bool = False) -> None:
        """Draw the bar at this share with a text beside it; calls too soon after the last one are passed over."""
        if at_once or time.monotonic() - self.drawn >= REDRAWN:
            self.show({"text/html": self.markup(share, text), "text/plain": text})

    def close(self) -> None:
        """Take the bar away."""
        if self.handle:
            self.show({"text/html": "", "text/plain": ""})

    def show(self, content: dict[str, str]) -> None:
        """Display this content, by type, in the place of what the cell shows."""
        from IPython.display import display  # type: ignore[import-not-found]

        self.drawn = time.monotonic()
        if self.handle:
            self.handle.update(content, raw=True)
        else:
            self.handle = display(content, raw=True, display_id=True)


@contextmanager
def working(title: str, total: float | None = None, progress: bool = True) -> Iterator[Callable[..., None]]:
    """Tell about work that may take long: what is done, how far it is and how long it will still take.

    On a terminal and in a notebook a bar; elsewhere nothing for five seconds, then a line, and another at least every
    half minute. A thread of its own tells, so that single calls that take minutes are told of.

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
    if console.is_jupyter:
        shown, parts = NotebookBar(), 0.0

        def drawn(by: float = 1.0, after: str = "") -> None:
            nonlocal parts
            parts += by
            shown.update(parts / total if total else None, f"{title}: {after}" if after else title)

        shown.update(0.0 if total else None, title)
        try:
            yield drawn
        finally:
            shown.close()
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
