"""Sets of labelled images joined to one."""

__all__ = ["joined"]

from typing import Any

import numpy as np

from condgen.data.names import PROBABILITIES


def joined(one: Any, other: Any) -> Any:
    """The images of one set, then those of the other; split by split, where both have splits.

    Classes are those of the first, then what the other has besides. Factors that both have are kept.

    Args:
        one: the set whose classes come first.
        other: images of the same shape, with labels of the same kind.

    Raises:
        ValueError: if they do not fit each other.

    Example:
        >>> from condgen import LabelledImages
        >>> one = LabelledImages(np.zeros((2, 1, 8, 8), np.uint8), np.array([0, 1]), ("ant", "bee"))
        >>> len(joined(one, one))
        4
    """
    if one.image_shape != other.image_shape or one.kind != other.kind or bool(one.splits) != bool(other.splits):
        got = [f"{own.image_shape}, {own.kind} labels, {len(own.splits) or 'no'} splits" for own in (one, other)]
        raise ValueError(
            f"Expected images of one shape with labels of one kind, both split or neither; got {' and '.join(got)}."
        )
    if one.kind == "continuous" and tuple(one.class_names) != tuple(other.class_names):
        raise ValueError(
            f"Expected the same conditions; got {', '.join(one.class_names)} and {', '.join(other.class_names)}."
        )
    names = tuple(dict.fromkeys((*one.class_names, *other.class_names)))
    sets = [own.ordered(names) for own in (one, other)]
    shared = [name for name in one.factors if name in other.factors]
    if PROBABILITIES in shared and tuple(one.class_names) != tuple(other.class_names):
        shared.remove(PROBABILITIES)
    splits, places = {}, [np.arange(len(one)), np.arange(len(one), len(one) + len(other))]
    for name in dict.fromkeys((*one.splits, *other.splits)):
        members = [own[it.splits[name]] for own, it in zip(places, (one, other), strict=True) if name in it.splits]
        splits[name] = np.concatenate(members)
    return type(one)(
        np.concatenate([own.images for own in sets]),
        np.concatenate([own.labels for own in sets]),
        names,
        splits,
        {name: np.concatenate([own.factors[name] for own in sets]) for name in shared},
        name=one.name if one.name == other.name else f"{one.name} and {other.name}",
        kind=one.kind,
    )
