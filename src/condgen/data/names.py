"""Names: of factors with a meaning, of classes that have none, and which class somebody means."""

__all__ = ["PROBABILITIES", "SYNTHETIC", "class_number", "default_names", "shortened"]

from collections.abc import Sequence
from typing import Any

import numpy as np

PROBABILITIES = "probabilities"  # the factor that holds a teacher's probability of each class
SYNTHETIC = "synthetic"  # the factor that says which images of a balanced set were generated


def default_names(count: int) -> tuple[str, ...]:
    """What classes without names are called.

    Example:
        >>> default_names(2)
        ('class 0', 'class 1')
    """
    return tuple(f"class {k}" for k in range(count))


def numbered(labels: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Class names as numbers.

    Raises:
        ValueError: for a label that is not among the names.
    """
    if unknown := sorted(set(labels.tolist()) - set(names)):
        raise ValueError(f"Expected labels among {shortened(names)}; got {shortened(unknown)}. Name every class.")
    return np.array([names.index(label) for label in labels.tolist()], np.int64)


def class_number(label: Any, names: Sequence[str], classes: int | None = None) -> int:
    """The number of a class that somebody typed: by its name, by a beginning that no other name has, or by number.

    Args:
        label: text, or a number.
        names: of all classes; a class that is called "2" is meant by 2, whatever its place.
        classes: number of classes, if they have no names.

    Raises:
        ValueError: for a class that there is not, or a beginning that several names have.

    Example:
        >>> names = ("immature granulocytes(myelocytes, ...)", "lymphocyte", "2", "10")
        >>> [class_number(label, names) for label in ("lymphocyte", "imm", "2", 10, "0")]
        [1, 0, 2, 3, 0]
    """
    text, count = str(label), len(names) or (classes or 0)
    if text in names:
        return tuple(names).index(text)
    if text.isdigit():
        if int(text) < count:
            return int(text)
        raise ValueError(f"Expected labels in [0, {count}); got {text}.")
    begun = [k for k, name in enumerate(names) if text and name.startswith(text)]
    if len(begun) == 1:
        return begun[0]
    several = f", which {shortened([names[k] for k in begun])} begin with" if begun else ""
    raise ValueError(f"Expected class names among {shortened(names)}; got {text}{several}.")


def shortened(names: Sequence[str], most: int = 8) -> str:
    """The first few of many names.

    Example:
        >>> shortened(("a", "b", "c"), most=2)
        'a, b and 1 more'
    """
    some = ", ".join(map(str, names[:most]))
    return f"{some} and {len(names) - most} more" if len(names) > most else some
