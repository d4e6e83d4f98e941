"""Networks from numbers: an encoder and the decoder that fits it, for `conditional_vae`."""

__all__ = ["plain_networks", "residual_networks"]

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from condgen.distributions.reparameterizers import Gaussian
from condgen.nn.decoders import DeconvDecoder, ResNetDecoder
from condgen.nn.encoders import ConvEncoder, ResNetEncoder
from condgen.nn.layers import halvings

Shape = tuple[int, int, int]  # of an image: channels, height, width


def residual_networks(
    image_shape: Shape, output_shape: Shape, dim: int, latent: int | Sequence[int], width: int, depth: int
) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder of residual blocks, which halve the image down to a map of latents, or to 4x4.

    Example:
        >>> encoder, decoder = residual_networks((3, 28, 28), (3, 28, 28), 8, (4, 7, 7), 8, 1)
        >>> type(encoder).__name__, type(decoder).__name__
        ('ResNetEncoder', 'ResNetDecoder')
    """
    places = None if isinstance(latent, int) or len(latent) == 1 else (latent[1], latent[2])
    widths = [width * min(2**k, 4) for k in range(len(halvings(image_shape[1:], places)) - 1)]
    encoder = ResNetEncoder(image_shape, dim, latent, Gaussian.params, widths, depth)
    return encoder, ResNetDecoder(output_shape, latent, dim, widths, depth)


def plain_networks(
    image_shape: Shape, output_shape: Shape, dim: int, latent: int, width: int, **shared: Any
) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder of plain convolutions, which halve the image until the map is 4x4 or smaller.

    Example:
        >>> import torch
        >>> encoder, decoder = plain_networks((3, 28, 28), (3, 28, 28), 8, 16, 4, norm=None, modulation=None)
        >>> decoder(torch.zeros(2, 16), torch.zeros(2, 8)).shape
        torch.Size([2, 3, 28, 28])
    """
    layers = max(1, math.ceil(math.log2(max(image_shape[1:]) / 4)))
    channels, strides = [width * 2**k for k in range(layers)], [2] * layers
    encoder = ConvEncoder(image_shape, dim, latent, Gaussian.params, channels, strides, **shared)
    return encoder, DeconvDecoder(output_shape, latent, dim, channels[::-1], strides, **shared)
