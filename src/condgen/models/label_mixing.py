"""Mixed labels: new images are decoded under a condition between that of their class and that of another.

A decoder that is told the label draws a texture for it that real images do not have. A classifier that is trained on
such images learns the texture instead of the class, unless it is mixed with those of other classes.
"""

__all__ = ["OTHER", "mixed", "mixing_noise"]

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from condgen.nn.conditioners import without_dropout

OTHER = "other"  # the noise that chooses the other class


def mixing_noise(model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of the noise that chooses another class for one image, by its name; empty where labels are not mixed.

    Args:
        model: with `label_mixing` and `conditioner`.

    Raises:
        ValueError: for a `label_mixing` out of range, or labels that are no classes.

    Example:
        >>> import condgen
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2)
        >>> model.label_mixing = 0.25
        >>> mixing_noise(model)
        {'other': (2,)}
    """
    if not model.label_mixing:
        return {}
    classes = getattr(without_dropout(model.conditioner), "num_classes", 0)
    if not classes or not 0 <= model.label_mixing <= 1:
        raise ValueError(
            "Expected label_mixing from 0 to 1, and above 0 only where labels are classes; got "
            f"{model.label_mixing} and {type(model.conditioner).__name__}. Set model.label_mixing = 0."
        )
    return {OTHER: (classes,)}


def mixed(model: Any, c: Float[Tensor, "batch dim"], noise: dict[str, Tensor]) -> Float[Tensor, "batch dim"]:
    """Move each condition by `model.label_mixing` towards the condition of a class that the noise chooses.

    Args:
        model: with `label_mixing` and `condition`.
        c: conditions of the labels.
        noise: standard normal, one tensor for every name in :func:`mixing_noise`.

    Example:
        >>> import condgen
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2)
        >>> model.label_mixing = 0.25
        >>> mixed(model, torch.tensor([[1.0, 0.0]]), {OTHER: torch.tensor([[-1.0, 1.0]])})
        tensor([[0.7500, 0.2500]])
    """
    if not model.label_mixing:
        return c
    return torch.lerp(c, model.condition(noise[OTHER].argmax(1)), model.label_mixing)
