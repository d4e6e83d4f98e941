r"""Decoders: latent and condition in, the parameters of :math:`p(x \mid z, c)` out.

Contract: `decoder(z, c) → parameters`, with z (batch, latent), c (batch, dim) and parameters
(batch, channels, height, width), where channels is what the likelihood needs (plus the label planes, if the
assembly reconstructs them). Parameters are logits: nothing stands between the last layer and the likelihood.
"""

__all__ = ["DeconvDecoder"]

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condgen.layers import ConvBlock, Modulation, Norm, check_lengths, join, map_sizes
from condgen.parts import Part


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
    ) -> None:
        super().__init__()
        check_lengths(channels, strides)
        self.output_shape = tuple(output_shape)
        padding = (kernel_size - 1) // 2
        sizes = map_sizes((output_shape[1], output_shape[2]), strides[::-1], kernel_size)[::-1]
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

    def forward(
        self, z: Float[Tensor, "batch latent"], c: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch channels height width"]:
        """(z, c) → (batch, channels, height, width)."""
        h = self.unflatten(self.linear(join(z, c)))
        for block in self.blocks:
            h = block(h, c)
        return self.last(h)


def checked_norm(norm: nn.Module) -> nn.Module:
    """The norm itself, unless it would make an image depend on its batch."""
    if isinstance(norm, _BatchNorm):
        raise ValueError(
            f"Expected a norm over one image in a decoder; got {type(norm).__name__}, which makes a sample depend on "
            "its batch. Use condgen.layers.ChannelNorm."
        )
    return norm
