"""Files that are whole or not there, whatever is pulled out meanwhile: a signal, the power, the space on the disk."""

__all__ = ["check_writable", "flush_all", "read_json", "replacing", "undisturbed", "write_atomically"]

import json
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: flushed to disk without a name, then put in the place of what was there.

    Signals wait until it is done, and where the system knows files without a name (Linux) not even a killed
    process leaves a part of one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "a.txt", b"whole or not at all")
        ...     os.listdir(folder)
        ['a.txt']
    """
    with undisturbed(), naming(path):
        try:
            descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
        except (AttributeError, OSError):  # another system, or a file system without them
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            return
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
            temporary = hidden(path)
            try:
                # A name can only be replaced by a name. Python follows the link in /proc only if told a folder, too.
                os.link(f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=descriptor, follow_symlinks=True)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of the system name the file, which a full disk's do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def replacing(path: Path, flush: bool = True) -> Iterator[Path]:
    """A temporary name in the same folder to write to; flushed to disk and renamed to `path` if all went well.

    Without `flush` it survives whatever happens to the process, but not a power cut before :func:`flush_all`.
    """
    temporary = hidden(path)
    try:
        yield temporary
        if flush:
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flush_all() -> None:
    """Flush to disk whatever was written, where the system can; for many small files, instead of one by one."""
    getattr(os, "sync", lambda: None)()


def hidden(path: Path) -> Path:
    """A name beside `path` that nothing else has."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex}"


@contextmanager
def undisturbed() -> Iterator[Callable[[], None]]:
    """Hold back signals that stop the process until what is inside is done; they arrive then.

    For work that must not stop half way, and for loops that choose where to stop: they call what is yielded, which
    lets a waiting signal arrive. The same signal a second time arrives at once. Handlers belong to the main thread; in
    another one no signal interrupts, and nothing is held back.

    Example:
        >>> try:
        ...     with undisturbed():
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("done")
        ... except KeyboardInterrupt:
        ...     print("then interrupted")
        done
        then interrupted
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    waiting: list[int] = []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def hold(number: int, _: FrameType | None) -> None:
        waiting.append(number)
        if waiting.count(number) > 1:
            arrive()

    def arrive() -> None:
        if waiting:
            number = waiting[0]
            waiting.clear()
            if not callable(before[number]):  # the system's own way: the process ends
                raise SystemExit(128 + number)
            before[number](number, None)

    try:
        for number in before:
            signal.signal(number, hold)
        yield arrive
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        arrive()


def check_writable(folder: Path) -> None:
    """Raise OSError unless a file can be written in this folder, or it can be made; nothing is left there.

    Called before work whose result goes there.

    Example:
        >>> check_writable(Path("/proc/no/such/place"))
        Traceback (most recent call last):
            ...
        OSError: Cannot write to /proc/no/such/place: ... Choose another folder (out=).
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    probe = hidden(existing / "probe")
    try:
        probe.touch()
    except OSError as error:
        raise OSError(f"Cannot write to {folder}: {error.strerror}. Choose another folder (out=).") from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def read_json(path: Path, kinds: dict[str, type | tuple[type, ...]] | None = None) -> dict[str, Any]:
    """A JSON object from a file, its named entries of these kinds where they are there.

    Raises:
        ValueError: if the file is damaged, which the message names; NaN and infinity are no JSON.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(path := Path(folder) / "run.json", b'{"epochs": "many"}')
        ...     read_json(path, {"epochs": int})
        Traceback (most recent call last):
            ...
        ValueError: .../run.json is damaged: expected 'epochs' as int; got str.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        content = json.loads(path.read_bytes(), parse_constant=refuse)
        if not isinstance(content, dict):
            raise ValueError(f"expected an object; got {type(content).__name__}")
        for name, kind in (kinds or {}).items():
            value = content.get(name)
            if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is int)):
                wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
                raise ValueError(f"expected {name!r} as {wanted}; got {type(value).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    return content
