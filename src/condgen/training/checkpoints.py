"""Checkpoints: all that a run needs to go on as if it had never stopped; the last two are kept in its folder.

Noise, order and augmentation are functions of (seed, epoch, image), so that weights, optimizers and a place in the
epoch are all there is to keep.
"""

__all__ = ["Checkpoints", "pack", "unpack"]

import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from condgen.io.archives import read_archive, write_archive

KIND = "training state"


class Checkpoints:
    """The checkpoints in a folder, the newest last.

    Args:
        folder: to keep them in; None if nothing is kept.
        every: seconds between two checkpoints.
        keep: how many stay; the one before the newest is there in case that is damaged.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(Path(folder) / "state", keep=2)
        ...     for step in (1, 2, 3):
        ...         _ = checkpoints.write({"step": step, "weights": {"w": torch.ones(1)}})
        ...     found = checkpoints.read()
        ...     len(list(checkpoints.files())), found["step"], found["weights"]["w"]
        (2, 3, tensor([1.]))
    """

    def __init__(self, folder: str | Path | None, every: float = 60.0, keep: int = 2) -> None:
        if not every >= 0 or keep < 1:
            raise ValueError(f"Expected seconds from 0 up and one state to keep at least; got {every} and {keep}.")
        self.folder, self.every, self.keep = None if folder is None else Path(folder), every, keep
        self.last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another state."""
        return self.folder is not None and time.monotonic() - self.last >= self.every

    def files(self) -> list[Path]:
        """Of states, the oldest first."""
        found = self.folder.glob("state-*.safetensors") if self.folder else ()
        return sorted((file for file in found if file.stem[6:].isdigit()), key=lambda file: int(file.stem[6:]))

    def write(self, state: Mapping[str, Any]) -> Path | None:
        """Keep a state, whole or not at all; then leave out the oldest.

        Raises:
            OSError: if it cannot be written; earlier states stay.
        """
        if self.folder is None:
            return None
        tensors: dict[str, Tensor] = {}
        about = pack(state, tensors)
        earlier = self.files()
        number = int(earlier[-1].stem[6:]) + 1 if earlier else 1
        try:
            path = write_archive(self.folder / f"state-{number:06d}.safetensors", KIND, about, tensors)
        except OSError as error:
            raise OSError(
                f"Cannot keep the training state in {self.folder}: {error.strerror or error}. Earlier states stay; "
                "make room there, and resume."
            ) from error
        for file in earlier[: len(earlier) + 1 - self.keep]:
            file.unlink(missing_ok=True)
        self.last = time.monotonic()
        return path

    def read(self) -> dict[str, Any] | None:
        """The newest whole state; None where there is none.

        Warns:
            UserWarning: of each newer one that is damaged.
        """
        for file in reversed(self.files()):
            try:
                return unpack(*read_archive(file, KIND))
            except (ValueError, KeyError, TypeError) as error:
                warnings.warn(f"{error} Going on from the state before.", stacklevel=2)
        return None

    def clear(self) -> None:
        """Remove all states, when a run is done, and what a process that was killed left of one."""
        left = self.folder.glob(".state-*") if self.folder else ()
        for file in (*self.files(), *left):
            file.unlink(missing_ok=True)
        if self.folder and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def pack(value: Any, tensors: dict[str, Tensor], place: str = "") -> Any:
    """What JSON holds of nested dictionaries, lists and numbers; tensors are put aside under a name of their own.

    Raises:
        TypeError: for anything else.

    Example:
        >>> import torch
        >>> tensors = {}
        >>> pack({"step": 1, "moments": {0: torch.zeros(2)}}, tensors), list(tensors)
        ({'dict': [['step', 1], ['moments', {'dict': [[0, {'tensor': '0 moments/0'}]]}]]}, ['0 moments/0'])
    """
    if isinstance(value, Tensor):
        name = f"{len(tensors)} {place}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        inner = [[key, pack(item, tensors, f"{place}/{key}" if place else str(key))] for key, item in value.items()]
        if all(isinstance(key, (str, int)) for key in value):
            return {"dict": inner}
    if isinstance(value, (list, tuple)):
        items = [pack(item, tensors, f"{place}/{k}") for k, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}  # to the last bit, NaN and infinity too
    raise TypeError(
        f"Expected tensors, numbers, text, lists or dictionaries in a training state; {place} is {value!r}."
    )


def unpack(about: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What :func:`pack` packed.

    Example:
        >>> tensors = {}
        >>> unpack(pack({"rate": 0.1, "betas": (0.9, None)}, tensors), tensors)
        {'rate': 0.1, 'betas': (0.9, None)}
    """
    if isinstance(about, list):
        return [unpack(item, tensors) for item in about]
    if not isinstance(about, Mapping):
        return about
    ((kind, content),) = about.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in content)
    if kind == "float":
        return float.fromhex(content)
    raise ValueError(f"Expected a tensor, dictionary, tuple or float; got {kind!r}.")
