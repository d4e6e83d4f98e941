r"""Decoders: latent and condition in, the parameters of :math:`p(x \mid z, c)` out.

Contract: `decoder(z, c) → parameters`, with z (batch, latent), or a map (batch, channels, height, width), or a tuple of
these for latents of several levels, c (batch, dim) and parameters (batch, channels, height, width), where channels is
what the likelihood needs (plus the label planes, if the assembly reconstructs them). Parameters are logits, or what the
likelihood calls its location: nothing stands between the last layer and the likelihood.
"""

__all__ = ["DeconvDecoder", "ResNetDecoder", "SkipLatent"]

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condgen.nn.encoders import stage_widths
from condgen.nn.layers import (
    ChannelNorm,
    ConvBlock,
    Modulation,
    Norm,
    ResidualBlock,
    check_lengths,
    halvings,
    join,
    map_sizes,
    trimmed,
)
from condgen.nn.parts import Part


class DeconvDecoder(Part):
    """A linear layer and transposed convolutions: the mirror image of a `ConvEncoder`.

    The map sizes are those of the mirrored encoder, so the output has exactly `output_shape`, 28x28 and 33x47
    alike. There is no activation after the linear layer and none after the last convolution.

    Args:
        output_shape: (channels, height, width) of the parameters, any size from 8x8 up.
        latent: number of latents.
        condition_dim: width of c, which is joined to z.
        channels: of each transposed convolution's input.
        strides: of each transposed convolution.
        kernel_size: of every transposed convolution, padded by (kernel_size - 1) // 2.
        activation: class of the activation after every transposed convolution but the last.
        norm: class of a normalisation, called with the number of channels; batch normalisation is refused,
            since a sample must not depend on its batch.
        modulation: class of a layer (h, c) → h in every block, such as `FiLM`, called with (condition_dim, channels).
        trim: leave out the taps of kernels that only ever see padding; see `ConvEncoder`.

    Raises:
        ValueError: if the image is too small for the layers, channels and strides differ in length, or norm is
            batch normalisation.

    Example:
        >>> import torch
        >>> decoder = DeconvDecoder((3, 33, 47), latent=16, condition_dim=8, channels=(32, 16), strides=(2, 2))
        >>> decoder(torch.zeros(2, 16), torch.zeros(2, 8)).shape
        torch.Size([2, 3, 33, 47])
    """

    def __init__(
        self,
        output_shape: tuple[int, int, int],
        latent: int,
        condition_dim: int,
        channels: Sequence[int] = (128, 64, 32),
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
        self.output_shape = tuple(output_shape)
        padding = (kernel_size - 1) // 2
        self.sizes = sizes = map_sizes((output_shape[1], output_shape[2]), strides[::-1], kernel_size)[::-1]
        self.linear = nn.Linear(latent + condition_dim, channels[0] * sizes[0][0] * sizes[0][1])
        self.unflatten = nn.Unflatten(1, (channels[0], *sizes[0]))
        widths = (*channels, output_shape[0])
        deconvs = [
            nn.ConvTranspose2d(
                widths[k],
                widths[k + 1],
                kernel_size,
                stride,
                padding,
                # What the strided convolution rounded away on this side of the map.
                output_padding=tuple(
                    n + 2 * padding - kernel_size - (m - 1) * stride for m, n in zip(*sizes[k : k + 2], strict=True)
                ),
            )
            for k, stride in enumerate(strides)
        ]
        self.blocks = nn.ModuleList(
            ConvBlock(
                deconv,
                checked_norm(norm(deconv.out_channels)) if norm else None,
                modulation(condition_dim, deconv.out_channels) if modulation else None,
                activation(),
            )
            for deconv in deconvs[:-1]
        )
        self.last = deconvs[-1]
        if trim:
            self.trim_()

    def trim_(self) -> None:
        """Leave out the taps that only ever see padding, from now on."""
        self.trim = True
        *earlier, last = pairwise(self.sizes)
        for block, (inside, outside) in zip(self.blocks, earlier, strict=True):
            block.conv = trimmed(block.conv, inside, outside)  # type: ignore[arg-type]
        self.last = trimmed(self.last, *last)

    def forward(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch channels height width"]:
        """(z, c) → (batch, channels, height, width)."""
        h = self.unflatten(self.linear(join(z, c)))
        for block in self.blocks:
            h = block(h, c)
        return self.last(h)


class ResNetDecoder(Part):
    """Residual blocks on maps that double, each modulated by the condition: the mirror of a `ResNetEncoder`.

    Maps grow by pixel shuffle, the image too: the last layer works at half its height and width.

    Args:
        output_shape: (channels, height, width) of the parameters, any size from 8x8 up.
        latent: number of latents, or their shape (channels, height, width); see `ResNetEncoder`.
        condition_dim: width of c.
        widths: channels of each map, the largest map first, as for the encoder.
        depth: residual blocks on each map; the smallest has one more.

    Raises:
        ValueError: as `ResNetEncoder`.

    References:
        Deep residual learning (He et al., 2016), https://arxiv.org/abs/1512.03385; pixel shuffle: Real-time single
        image and video super-resolution (Shi et al., 2016), https://arxiv.org/abs/1609.05158

    Example:
        >>> import torch
        >>> decoder = ResNetDecoder((3, 33, 47), latent=(4, 9, 12), condition_dim=8, widths=(8, 16))
        >>> decoder(torch.zeros(2, 4, 9, 12), torch.zeros(2, 8)).shape
        torch.Size([2, 3, 33, 47])
    """

    def __init__(
        self,
        output_shape: tuple[int, int, int],
        latent: int | Sequence[int],
        condition_dim: int,
        widths: Sequence[int] | None = None,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.output_shape = tuple(output_shape)
        channels, target = (latent, None) if isinstance(latent, int) else (latent[0], (latent[1], latent[2]))
        self.sizes = halvings((output_shape[1], output_shape[2]), target)[::-1]
        widths = stage_widths(len(self.sizes) - 1, widths)[::-1]
        height, width = self.sizes[0]
        self.first = (
            nn.Conv2d(channels, widths[0], 3, padding=1)
            if target
            else nn.Sequential(
                nn.Linear(channels, widths[0] * height * width), nn.Unflatten(1, (widths[0], height, width))
            )
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(ResidualBlock(w, condition_dim) for _ in range(depth + (k == 0)))
            for k, w in enumerate(widths)
        )
        self.ups = nn.ModuleList(nn.Conv2d(i, 4 * o, 3, 1, 1) for i, o in pairwise(widths))
        self.norm = ChannelNorm(widths[-1])
        self.last = nn.Conv2d(widths[-1], 4 * output_shape[0], 3, padding=1)

    def forward(
        self, z: Float[Tensor, "batch latent *map"], c: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch channels height width"]:
        """(z, c) → (batch, channels, height, width)."""
        h = self.first(z)
        for k, blocks in enumerate(self.stages):
            h = grown(self.ups[k - 1](h), self.sizes[k]) if k else h
            for block in blocks:  # type: ignore[union-attr]
                h = block(h, c)
        return grown(self.last(F.silu(self.norm(h))), self.sizes[-1])


class SkipLatent(Part):
    """A decoder whose every block is modulated by the latent as well as by the condition.

    Where nothing asks a decoder to draw an image back, a latent that enters at the first layer alone is easily ignored.

    Args:
        decoder: (z, joined) → parameters, built for a condition as wide as c and z together.

    References:
        Large scale GAN training for high fidelity natural image synthesis (Brock et al., 2019), section 3.1,
        https://arxiv.org/abs/1809.11096

    Example:
        >>> import torch
        >>> decoder = SkipLatent(ResNetDecoder((3, 28, 28), latent=4, condition_dim=8 + 4, widths=(8, 8, 8)))
        >>> decoder(torch.zeros(2, 4), torch.zeros(2, 8)).shape
        torch.Size([2, 3, 28, 28])
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder: Any = decoder

    @property
    def output_shape(self) -> Any:
        """Image shape that the wrapped decoder produces, or None if that decoder does not declare one."""
        return getattr(self.decoder, "output_shape", None)

    def forward(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch channels height width"]:
        """(z, c) → (batch, channels, height, width)."""
        return self.decoder(z, join(c, z))


def grown(
    h: Float[Tensor, "batch channels4 height width"], size: tuple[int, int]
) -> Float[Tensor, "batch channels height2 width2"]:
    """Twice the height and width for a quarter of the channels, cut to what halving had rounded up."""
    return F.pixel_shuffle(h, 2)[:, :, : size[0], : size[1]]


def checked_norm(norm: nn.Module) -> nn.Module:
    """The norm itself, unless it would make an image depend on its batch."""
    if isinstance(norm, _BatchNorm):
        raise ValueError(
            f"Expected a norm over one image in a decoder; got {type(norm).__name__}, which makes a sample depend on "
            "its batch. Use condgen.nn.layers.ChannelNorm."
        )
    return norm
