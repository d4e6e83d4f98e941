"""A normalizing flow as prior, trained by its likelihood."""

__all__ = ["Flow"]

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from condgen.distributions.priors.scale import ChannelScale, shape_of
from condgen.nn.parts import Part


class Flow(Part, registered="priors.Flow"):
    """A normalising flow, an invertible network between latents and noise, conditional on c; needs the extra `flows`.

    Fitting standardises each channel first; then the flow is trained by its likelihood (:func:`condgen.fit_prior`).

    Args:
        latent: number of latents, or the shape of z.
        condition_dim: width of c.
        kind: of zuko's flows: "NSF" (neural spline), "MAF" (masked autoregressive), "NICE" (coupling), …
        transforms: layers of the flow.
        hidden: widths of each layer's network.

    Raises:
        ImportError: if zuko is not installed.
        ValueError: for an unknown kind.

    References:
        Neural spline flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032; zuko: https://zuko.readthedocs.io

    Example:
        >>> prior = Flow(2, condition_dim=3, transforms=1, hidden=(8,))
        >>> prior(torch.zeros(5, 3)).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        latent: int | Sequence[int],
        condition_dim: int,
        kind: str = "NSF",
        transforms: int = 3,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        try:
            import zuko
        except ImportError as error:
            raise ImportError('A flow as prior needs zuko. Install it: pip install "condgen[flows]".') from error
        if not hasattr(zuko.flows, kind):
            raise ValueError(f"Expected one of zuko's flows, such as NSF, MAF or NICE; got {kind!r}.")
        self.noise_shape = shape_of(latent)
        # Its masks are computed, which the device without memory cannot.
        with torch.device("cpu"):
            self.flow = getattr(zuko.flows, kind)(
                math.prod(self.noise_shape), condition_dim, transforms=transforms, hidden_features=tuple(hidden)
            )
        self.scale = ChannelScale(self.noise_shape)

    def standardise(self, z: Float[Tensor, "n *latent"]) -> None:
        """Take each channel's mean and spread from latents, before training."""
        self.scale.fit(z)

    def forward(self, c: Float[Tensor, "batch dim"]) -> "Flowing":
        """(batch, dim) → a distribution over z."""
        return Flowing(self.flow(c), self.scale, len(c))

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch *latent"]:
        """The noise through the flow, backwards."""
        return self.scale.restored(self.flow(c).transform.inv(noise.flatten(1)).unflatten(1, self.noise_shape))


class Flowing(Distribution):
    """The distribution of :class:`Flow`."""

    arg_constraints: ClassVar = {}  # type: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, flow: Any, scale: "ChannelScale", n: int) -> None:
        self.flow, self.scale = flow, scale
        super().__init__(torch.Size([n]), torch.Size(scale.shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each latent, in nats."""
        return self.flow.log_prob(self.scale(value).flatten(1)) - self.scale.log_volume()
