"""Class names as names of folders, on any system, and back."""

__all__ = ["folder_names", "read_classes", "write_classes"]

import json
import re
from collections.abc import Sequence
from pathlib import Path

from condgen.io.atomic import read_json, write_atomically

CLASSES = "classes.json"  # in a folder of images: which subfolder is which class, in the order of the labels
RESERVED = {"con", "prn", "aux", "nul", *(f"{kind}{k}" for kind in ("com", "lpt") for k in range(1, 10))}  # by Windows
LONGEST = 100  # bytes; a path holds 260 on some systems
NO_FOLDER = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')


def folder_names(names: Sequence[str]) -> list[str]:
    """A folder's name for each class name: the name itself, or one without what some system does not allow.

    No two are the same, not even where capital letters do not count, and none leaves the folder it is put in.

    Example:
        >>> folder_names(["round", "a/b", "../x", "CON", ".hidden", "", "Round"])
        ['round', 'a_b', '_._x', 'CON_', '_hidden', '_', 'Round~2']
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in map(str, names):
        safe = NO_FOLDER.sub("_", name).rstrip(". ") or "_"
        safe = "_" + safe[1:] if safe.startswith(".") else safe
        safe = safe.encode()[:LONGEST].decode(errors="ignore")
        safe = safe + "_" if safe.split(".")[0].lower() in RESERVED else safe
        own, k = safe, 1
        while own.casefold() in taken:
            k += 1
            own = f"{safe}~{k}"
        taken.add(own.casefold())
        found.append(own)
    return found


def write_classes(folder: Path, names: Sequence[str]) -> None:
    """Write down which subfolder is which class, and their order.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_classes(Path(folder), ("zebra", "a/b"))
        ...     read_classes(Path(folder))
        {'zebra': 'zebra', 'a_b': 'a/b'}
    """
    content = dict(zip(folder_names(names), map(str, names), strict=True))
    write_atomically(folder / CLASSES, json.dumps({"classes": content}, indent=1).encode())


def read_classes(folder: Path) -> dict[str, str]:
    """Subfolder → class name, in the order of the labels; empty if nothing is written down.

    Raises:
        ValueError: if what is written down is damaged.

    Example:
        >>> read_classes(Path("/no/such/folder"))
        {}
    """
    if not (folder / CLASSES).is_file():
        return {}
    classes = read_json(folder / CLASSES, {"classes": dict}).get("classes", {})
    if not all(isinstance(name, str) for name in classes.values()) or any(set(f) & set("/\\") for f in classes):
        raise ValueError(f"{folder / CLASSES} is damaged: expected subfolder → class name. Delete it to go by folders.")
    return classes
