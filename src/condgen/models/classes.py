"""Classes: how many kinds of image a model tells apart, what they are called, and images of each."""

__all__ = ["class_names", "per_class"]

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from condgen.data.names import default_names
from condgen.nn.conditioners import without_dropout


def per_class(
    model: Any, count: int, *, seed: int = 0, temperature: float = 1.0
) -> Float[Tensor, "classes count channels height width"]:
    """`count` new images of every class.

    Args:
        model: with class labels.
        count: images a class.
        seed: of the samples; image k of class c is sample `c * count + k`.
        temperature: scales the noise.

    Example:
        >>> import condgen
        >>> per_class(condgen.conditional_vae((1, 8, 8), num_classes=3), 2).shape
        torch.Size([3, 2, 1, 8, 8])
    """
    classes = num_classes(model)
    labels = torch.arange(classes).repeat_interleave(count)
    images = model.sample(labels, seed=seed, temperature=temperature)
    return rearrange(images, "(classes count) c h w -> classes count c h w", classes=classes)


def num_classes(model: Any) -> int:
    """How many classes the model's labels tell apart; 1 for a model without labels.

    Raises:
        ValueError: for models whose labels are not classes.
    """
    if model.conditioner.columns == 0:
        return 1
    inner = without_dropout(model.conditioner)
    if not hasattr(inner, "num_classes"):
        raise ValueError(
            f"Expected a model with class labels; got {type(inner).__name__}. Pass labels to model.sample."
        )
    return inner.num_classes


def class_names(model: Any) -> tuple[str, ...]:
    """A name for each class the model tells apart.

    Example:
        >>> import condgen
        >>> class_names(condgen.conditional_vae((1, 8, 8), num_classes=2))
        ('class 0', 'class 1')
    """
    count = num_classes(model)
    # A model without labels may have been trained on images with them; it still has one kind of image.
    return tuple(model.class_names) if len(model.class_names) == count else default_names(count)
