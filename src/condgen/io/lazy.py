"""Packages whose names are imported when they are first asked for."""

__all__ = ["lazily"]

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package that imports its files when they are asked for.

    Args:
        package: its name.
        homes: file of the package → the public names that live there.

    Returns:
        What a public name or a file of the package is, and the list of the public names.

    Example:
        >>> find, names = lazily("condgen.io", {"places": ["shipped"]})
        >>> find("shipped").__name__, names()
        ('shipped', ['shipped'])
    """

    def find(name: str) -> Any:
        for home, names in homes.items():
            if name in names:
                return getattr(import_module(f"{package}.{home}"), name)
        if name.isidentifier() and not name.startswith("_"):
            try:
                return import_module(f"{package}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{package}.{name}":
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted(name for names in homes.values() for name in names)
