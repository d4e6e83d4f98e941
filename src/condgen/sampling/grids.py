"""Images per class, reconstruction pairs, and images as grey levels."""

__all__ = ["pairs", "per_class", "to_uint8"]

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.io.pictures import to_uint8
from condgen.models.classes import per_class


def pairs(model: Any, x: Tensor | np.ndarray, y: Any) -> Float[Tensor, "batch 2 channels height width"]:
    """Each image beside its reconstruction.

    Example:
        >>> import condgen
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=3)
        >>> pairs(model, torch.zeros(2, 1, 8, 8), [0, 1]).shape
        torch.Size([2, 2, 1, 8, 8])
    """
    return torch.stack([model.images(x), model.reconstruct(x, y)], dim=1)
