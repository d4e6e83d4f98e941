"""Standardised latents, the shape of z, and latents between two draws of a normal."""

__all__ = []

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ChannelScale(nn.Module):
    """Latents with mean 0 and spread 1 in every channel, and back; as it starts, it changes nothing.

    Args:
        shape: of z.

    Example:
        >>> scale = ChannelScale((2, 3, 3))
        >>> scale.fit(z := 5 + 2 * torch.randn(500, 2, 3, 3))
        >>> torch.allclose(scale.restored(scale(z)), z, atol=1e-5), bool(abs(scale(z).std() - 1) < 0.05)
        (True, True)
    """

    offset: Tensor
    spread: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("offset", torch.zeros(shape[0]))
        self.register_buffer("spread", torch.ones(shape[0]))

    def fit(self, z: Float[Tensor, "n *latent"]) -> None:
        """Take mean and spread from latents."""
        places = (0, *range(2, z.ndim))
        self.offset.copy_(z.mean(places))
        self.spread.copy_(z.std(places).clamp(min=1e-6))

    def forward(self, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *latent"]:
        """Latents → standardised ones."""
        return (z.to(self.offset) - self.per_channel(self.offset)) / self.per_channel(self.spread)

    def restored(self, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *latent"]:
        """Standardised latents → latents."""
        return z * self.per_channel(self.spread) + self.per_channel(self.offset)

    def log_volume(self) -> Float[Tensor, ""]:
        """What standardising adds to a log-density, nats."""
        return math.prod(self.shape[1:]) * self.spread.log().sum()

    def per_channel(self, values: Float[Tensor, " channels"]) -> Float[Tensor, "channels *ones"]:
        """Of a shape that fits latents."""
        return values.reshape(-1, *[1] * (len(self.shape) - 1))


def shape_of(latent: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of z from a number of latents, or from itself."""
    return (latent,) if isinstance(latent, int) else tuple(latent)


def turned_towards(z: Tensor, other: Tensor, centre: Tensor, strength: float) -> Tensor:
    r"""Latents part of the way from z to another draw of the same normal, which are draws of it themselves.

    .. math:: \mu + (1 - s) (z - \mu) + \sqrt{1 - (1 - s)^2} \, (z' - \mu)

    Args:
        z: latents.
        other: z', as many other draws.
        centre: the normal's mean.
        strength: s in [0, 1]: 0 gives z, and 1 the other draw.

    Example:
        >>> z, other = torch.randn(2, 100_000)
        >>> found = turned_towards(z, other, torch.zeros(()), 0.5)
        >>> abs(float(found.var()) - 1) < 0.02, abs(float((found * z).mean()) - 0.5) < 0.02
        (True, True)
    """
    kept = 1 - strength
    return centre + kept * (z - centre) + math.sqrt(1 - kept**2) * (other - centre)
