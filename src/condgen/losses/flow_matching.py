"""The flow-matching loss: what a model says it misses its target velocity by."""

__all__ = ["Matching"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Matching(nn.Module):
    """What a model says it misses its target by (`model.matching(x, y, noise)`, one number an image), on average.

    Example:
        >>> import condgen
        >>> from condgen.models.cflow import conditional_flow
        >>> images = condgen.load_smears(32, size=16)
        >>> model = conditional_flow(images.image_shape, images.num_classes, widths=(8, 8), depth=1)
        >>> condgen.fit(model, images, objective=Matching(), epochs=1, progress=False).rows[0]["train_loss"] > 0
        True
    """

    def loss(self, model: Any, x: Tensor, y: Tensor, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean over the batch."""
        return {"loss": model.matching(x, y, noise).mean()}
