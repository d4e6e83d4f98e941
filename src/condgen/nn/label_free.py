"""Networks that are not told the label, inside a model whose prior is."""

__all__ = ["LabelFree"]

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from condgen.nn.parts import Part


class LabelFree(Part):
    """A network without labels in the place of one that has them: the condition is left out before it.

    Of an encoder and a decoder with labels, images carry a trace of the label that real images do not have: textures
    that the decoder draws for one class alone. A classifier that is trained on such images learns the trace. Where the
    prior knows the label, as a mixture or flow matching fitted to the latents does, the networks do not need it.

    Args:
        network: an encoder, a decoder or another network (x, c) → ..., built with `condition_dim=0`.

    Example:
        >>> import torch
        >>> from condgen.nn.encoders import ConvEncoder
        >>> encoder = LabelFree(ConvEncoder((1, 8, 8), condition_dim=0, latent=2, channels=(4,), strides=(2,)))
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.equal(encoder(x, torch.eye(3)[:2]), encoder(x, torch.eye(3)[1:]))
        True
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Float[Tensor, "batch *shape"], c: Float[Tensor, "batch dim"]) -> Tensor:
        """Run the network on x alone, without the condition."""
        return self.network(x, c[:, :0])


def without_labels(network: Any) -> LabelFree:
    """Build a network like this one, with new weights, that is not told the label.

    Args:
        network: an encoder or a decoder of condgen's.
    """
    return LabelFree(type(network)(**{**network.arguments, "condition_dim": 0}))
