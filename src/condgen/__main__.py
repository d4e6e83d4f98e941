"""The process behind the command `condgen`: signals, terminals and pipes; what commands do is in `cli.py`."""

__all__ = ["main"]

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any


class Terminated(KeyboardInterrupt):
    """The process is asked to end by another signal than Ctrl-C's: everything is left as tidily as after that."""


def main() -> int:
    """Run the command line; whatever signal ends it, files are left whole and one line says so.

    Returns:
        What :func:`condgen.cli.main` returns; 128 + its number after a signal.
    """
    received = signal.SIGINT

    def terminate(number: int, _: FrameType | None) -> None:
        nonlocal received
        received = signal.Signals(number)
        raise Terminated

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(getattr(signal, name), terminate)
    for name in ("stdout", "stderr"):
        setattr(sys, name, Forgiving(getattr(sys, name)))
    try:
        from condgen.cli import main as run

        status = run()
    except KeyboardInterrupt:
        print("condgen: stopped before it began; nothing was written.", file=sys.stderr)
        status = 130
    return 128 + received if status == 130 else status


class Forgiving:
    """A text stream that replaces what its encoding lacks, and falls silent once nobody reads it any more.

    A run goes on when the terminal or the pipe that it told its progress to is gone.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, or nothing."""
        try:
            return self.stream.write(text)
        except (BrokenPipeError, OSError, ValueError):
            self.hush()
            return len(text)

    def flush(self) -> None:
        """Flush, or nothing."""
        try:
            self.stream.flush()
        except (BrokenPipeError, OSError, ValueError):
            self.hush()

    def hush(self) -> None:
        """What is written from now on goes nowhere; at exit Python flushes once more."""
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
