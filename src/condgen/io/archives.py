"""Archives: named tensors and what they are, in one safetensors file that is whole, checked and never executed."""

__all__ = ["read_archive", "weights_hash", "write_archive"]

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condgen.io.atomic import write_atomically

HEADER = "condgen"


def write_archive(path: str | Path, kind: str, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write tensors and what they are to one file, whole or not at all; its folder is made where it is missing.

    Args:
        path: of the file.
        kind: of the content, such as "judge"; reading asks for it.
        about: what JSON holds.
        tensors: on any device; each is copied.

    Returns:
        The path.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if `about` holds NaN or infinity.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_archive(Path(folder) / "a.safetensors", "numbers", {"n": 1}, {"x": torch.ones(2)})
        ...     read_archive(path, "numbers")
        ({'n': 1}, {'x': tensor([1., 1.])})
    """
    from safetensors.torch import save

    path = Path(path)
    # Copies: safetensors refuses tensors that share memory.
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    header = {"kind": kind, "sha256": archive_hash(about, own), "about": about}
    content = save(own, metadata={HEADER: json.dumps(header, allow_nan=False)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def read_archive(path: str | Path, kind: str, *others: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What :func:`write_archive` wrote: what the tensors are, and the tensors, on the CPU. Nothing is executed.

    Args:
        path: of the file.
        kind: of the content that is expected.
        *others: what earlier versions called it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or holds something else.

    Example:
        >>> read_archive("/no/such/file", "numbers")
        Traceback (most recent call last):
            ...
        FileNotFoundError: No numbers at /no/such/file. Check the path.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No {kind} at {path}. Check the path.")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if not isinstance(header, dict) or header.get("kind") not in (kind, *others):
                raise ValueError(f"it holds no {kind}")
            # Copies: the file's tensors start anywhere in memory, and sums may then differ in a bit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if archive_hash(header["about"], tensors) != header["sha256"]:
            raise ValueError("its content is not what it was written with")
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, RuntimeError, OSError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"No {kind} can be read from {path}: {reason}. Delete it, or name another file.") from error
    return header["about"], tensors


def archive_hash(about: Any, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all of it."""
    text = json.dumps(about, sort_keys=True)
    return hashlib.sha256((text + weights_hash(tensors)).encode()).hexdigest()


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, bit for bit, as 64 hexadecimal digits.

    Example:
        >>> from torch import nn
        >>> net = nn.Linear(2, 1)
        >>> before = weights_hash(net.state_dict())
        >>> _ = nn.init.zeros_(net.bias)
        >>> before == weights_hash(net.state_dict())
        False
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
