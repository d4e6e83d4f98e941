r"""Encoders: image and condition in, the parameters of :math:`q(z \mid x, c)` out.

Contract: `encoder(x, c) → parameters`, with x (batch, channels, height, width) in [0, 1], c (batch, dim) and
parameters (batch, params * latent), or maps (batch, params * channels, height, width), where `params` is what the
reparameterizer needs per latent. For latents of several levels: a tuple of these.
"""

__all__ = ["ConvEncoder", "ResNetEncoder"]

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condgen.nn.layers import (
    ChannelNorm,
    ConvBlock,
    LabelConv2d,
    Modulation,
    Norm,
    ResidualBlock,
    check_lengths,
    halvings,
    map_sizes,
    trimmed,
)
from condgen.nn.parts import Part


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
        trim: leave out the taps of kernels that only ever see padding, on maps smaller than a kernel: the same
            function, initialised the same, with fewer weights; see :func:`condgen.trim`.

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
        trim: bool = False,
    ) -> None:
        super().__init__()
        check_lengths(channels, strides)
        self.trim = False
        self.image_shape = tuple(image_shape)
        widths = (image_shape[0] + condition_dim, *channels)
        self.blocks = nn.ModuleList(
            ConvBlock(
                (nn.Conv2d if k else LabelConv2d)(i, o, kernel_size, stride, padding=(kernel_size - 1) // 2),
                norm(o) if norm else None,
                modulation(condition_dim, o) if modulation else None,
                activation(),
            )
            for k, (i, o, stride) in enumerate(zip(widths, channels, strides, strict=False))
        )
        self.sizes = map_sizes((image_shape[1], image_shape[2]), strides, kernel_size)
        height, width = self.sizes[-1]
        self.heads = nn.ModuleList(nn.Linear(channels[-1] * height * width, latent) for _ in range(params))
        if trim:
            self.trim_()

    def trim_(self) -> None:
        """Leave out the taps that only ever see padding, from now on."""
        self.trim = True
        for block, (inside, outside) in zip(self.blocks, pairwise(self.sizes), strict=True):
            block.conv = trimmed(block.conv, inside, outside)  # type: ignore[arg-type]

    def forward(
        self, x: Float[Tensor, "batch channels height width"], c: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch parameters"]:
        """(x, c) → (batch, params * latent)."""
        h = x
        for block in self.blocks:
            h = block(h, c)
        h = h.flatten(1)
        return torch.cat([head(h) for head in self.heads], dim=1)


class ResNetEncoder(Part):
    """Residual blocks on maps that halve, each modulated by the condition; little work is done at full resolution.

    The image goes in as its 2x2 pixels stacked (space to depth), so the first map is half as large. Latents are a map
    that halving leads to, or, flat, what one linear layer makes of the last map.

    Args:
        image_shape: (channels, height, width), any size from 8x8 up.
        condition_dim: width of c.
        latent: number of latents, or their shape (channels, height, width), where halving height and width of the
            image, rounded up, leads to the map: 14x14, 7x7, 4x4 for 28x28.
        params: parameters per latent.
        widths: channels of each map, the largest map first; by default 48, 96, 192, 192, …
        depth: residual blocks on each map.

    Raises:
        ValueError: if the image is too small, halving does not lead to the map, or widths are not as many as maps.

    References:
        Deep residual learning (He et al., 2016), https://arxiv.org/abs/1512.03385; space to depth: Real-time single
        image and video super-resolution (Shi et al., 2016), https://arxiv.org/abs/1609.05158

    Example:
        >>> encoder = ResNetEncoder((3, 28, 28), condition_dim=8, latent=(8, 7, 7), widths=(8, 16))
        >>> encoder(torch.zeros(2, 3, 28, 28), torch.zeros(2, 8)).shape
        torch.Size([2, 16, 7, 7])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        condition_dim: int,
        latent: int | Sequence[int],
        params: int = 2,
        widths: Sequence[int] | None = None,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        channels, target = (latent, None) if isinstance(latent, int) else (latent[0], (latent[1], latent[2]))
        self.sizes = halvings((image_shape[1], image_shape[2]), target)
        widths = stage_widths(len(self.sizes) - 1, widths)
        self.first = nn.Conv2d(4 * image_shape[0], widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(width, condition_dim) for _ in range(depth)) for width in widths
        )
        self.downs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in pairwise(widths))
        self.norm = ChannelNorm(widths[-1])
        height, width = self.sizes[-1]
        self.head = (
            nn.Conv2d(widths[-1], params * channels, 1)
            if target
            else nn.Sequential(nn.Flatten(), nn.Linear(widths[-1] * height * width, params * channels))
        )

    def forward(
        self, x: Float[Tensor, "batch channels height width"], c: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch parameters *map"]:
        """(x, c) → (batch, params * latent), or (batch, params * channels, height, width) for a latent map."""
        x = F.pad(2 * x - 1, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate")
        h = self.first(F.pixel_unshuffle(x, 2))
        for k, blocks in enumerate(self.stages):
            h = self.downs[k - 1](h) if k else h
            for block in blocks:  # type: ignore[union-attr]
                h = block(h, c)
        return self.head(F.silu(self.norm(h)))


def stage_widths(stages: int, widths: Sequence[int] | None) -> tuple[int, ...]:
    """The channels of each map, the largest map first.

    Example:
        >>> stage_widths(4, None), stage_widths(2, (8, 16))
        ((48, 96, 192, 192), (8, 16))
    """
    if widths is not None and len(widths) != stages:
        raise ValueError(f"Expected a width for each of {stages} maps; got {len(widths)}: {tuple(widths)}.")
    return tuple(widths) if widths is not None else tuple(48 * min(2**k, 4) for k in range(stages))
