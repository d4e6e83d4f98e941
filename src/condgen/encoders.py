r"""Encoders: image and condition in, the parameters of :math:`q(z \mid x, c)` out.

Contract: `encoder(x, c) → parameters`, with x (batch, channels, height, width) in [0, 1], c (batch, dim) and
parameters (batch, params * latent), where `params` is what the reparameterizer needs per latent.
"""

__all__ = ["ConvEncoder"]

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condgen.layers import ConvBlock, LabelChannels, Modulation, Norm, check_lengths, map_sizes
from condgen.parts import Part


class ConvEncoder(Part):
    """Convolutions over the image and its label planes, then one linear head per kind of parameter.

    Args:
        image_shape: (channels, height, width), any size from 8x8 up.
        condition_dim: width of c; its planes join the image (0: no planes).
        latent: number of latents.
        params: parameters per latent; one head each.
        channels: of each convolution's output.
        strides: of each convolution.
        kernel_size: of every convolution, padded by (kernel_size - 1) // 2.
        activation: class of the activation after every convolution.
        norm: class of a normalisation, called with the number of channels.
        modulation: class of a layer (h, c) → h in every block, such as `FiLM`, called with (condition_dim, channels).

    Raises:
        ValueError: if the image is too small for the layers, or channels and strides differ in length.

    Example:
        >>> encoder = ConvEncoder((3, 28, 28), condition_dim=8, latent=16, channels=(16, 32), strides=(2, 2))
        >>> encoder(torch.zeros(2, 3, 28, 28), torch.zeros(2, 8)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        condition_dim: int,
        latent: int,
        params: int = 2,
        channels: Sequence[int] = (32, 64, 128),
        strides: Sequence[int] = (2, 2, 2),
        kernel_size: int = 3,
        activation: Callable[[], nn.Module] = nn.LeakyReLU,
        norm: Norm | None = None,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        check_lengths(channels, strides)
        self.image_shape = tuple(image_shape)
        self.label_channels = LabelChannels()
        widths = (image_shape[0] + condition_dim, *channels)
        self.blocks = nn.ModuleList(
            ConvBlock(
                nn.Conv2d(i, o, kernel_size, stride, padding=(kernel_size - 1) // 2),
                norm(o) if norm else None,
                modulation(condition_dim, o) if modulation else None,
                activation(),
            )
            for i, o, stride in zip(widths, channels, strides, strict=False)
        )
        height, width = map_sizes((image_shape[1], image_shape[2]), strides, kernel_size)[-1]
        self.heads = nn.ModuleList(nn.Linear(channels[-1] * height * width, latent) for _ in range(params))

    def forward(
        self, x: Float[Tensor, "batch channels height width"], c: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch parameters"]:
        """(x, c) → (batch, params * latent)."""
        h = self.label_channels(x, c)
        for block in self.blocks:
            h = block(h, c)
        h = h.flatten(1)
        return torch.cat([head(h) for head in self.heads], dim=1)
