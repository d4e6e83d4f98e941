"""Trimming: exact removal of weights that can never matter.

On a map smaller than its kernel most taps of a padded convolution only ever see padding: on 1x1 eight of nine taps of
a 3x3 kernel. They never influence an output, their gradient is always zero, and the optimizer visits them all the same.
"""

__all__ = ["trim"]

from torch import nn


def trim(model: nn.Module) -> int:
    """Leave such taps out of a model's convolutional parts, in place: the same function with fewer weights.

    Outputs and the gradients of the remaining weights are the same up to rounding. Parts know that they are trimmed,
    and files say so. A part that is no convolution of condgen's (`trim_`) stays as it is.

    Args:
        model: any model.

    Returns:
        How many weights were left out.

    Example:
        >>> import condgen
        >>> model = condgen.recipes.bloodmnist_reference()
        >>> trim(model), sum(p.numel() for p in model.parameters())
        (2424832, 923979)
    """
    before = sum(parameter.numel() for parameter in model.parameters())
    for part in list(model.modules()):
        if hasattr(part, "trim_"):
            part.trim_()  # type: ignore[operator]
    return before - sum(parameter.numel() for parameter in model.parameters())
