"""Priors that the KL divergence is taken against: a standard normal, a normal per label, several levels."""

__all__ = ["LabelNormal", "Levels", "StandardNormal"]

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from condgen.distributions.priors.scale import shape_of, turned_towards
from condgen.distributions.reparameterizers import Gaussian
from condgen.nn.parts import Part


class StandardNormal(Part, registered="priors.StandardNormal"):
    r"""The standard normal prior, the same for every label: :math:`p(z \mid c) = \mathcal N(0, I)`.

    Args:
        latent: number of latents, or the shape of z.

    Example:
        >>> prior = StandardNormal(128)
        >>> prior(torch.zeros(2, 8)).log_prob(torch.zeros(2, 128))  # -64 log(2 pi)
        tensor([-117.6241, -117.6241])
    """

    def __init__(self, latent: int | Sequence[int]) -> None:
        super().__init__()
        self.noise_shape = shape_of(latent)

    def forward(self, c: Float[Tensor, "batch dim"]) -> Distribution:
        """(batch, dim) → a distribution over z."""
        zeros = torch.zeros(len(c), *self.noise_shape, device=c.device, dtype=c.dtype)
        normal = Normal(zeros, torch.ones_like(zeros), validate_args=False)
        return Independent(normal, len(self.noise_shape), validate_args=False)

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch *latent"]:
        """Latents: the noise itself."""
        return noise

    def vary(self, z: Tensor, c: Tensor, noise: Tensor, strength: float) -> Float[Tensor, "batch *latent"]:
        """Latents near z; see `turned_towards`."""
        return turned_towards(z, noise, torch.zeros_like(z), strength)


class LabelNormal(Part, registered="priors.LabelNormal"):
    r"""A normal prior with a mean and a variance of its own for every condition, trained with the model.

    .. math:: p(z \mid c) = \mathcal N(\mu(c), \operatorname{diag} \sigma^2(c))

    Mean and log-variance are linear in c and start as the standard normal; on a map they are one per channel.

    Args:
        latent: number of latents, or the shape of z.
        condition_dim: width of c.

    References:
        Learning structured output representation using deep conditional generative models
        (Sohn, Lee & Yan, 2015), https://papers.nips.cc/paper/5775

    Example:
        >>> prior = LabelNormal(16, condition_dim=8)
        >>> prior.draw(torch.zeros(1, 8), torch.ones(1, 16)).sum()
        tensor(16., grad_fn=<SumBackward0>)
        >>> LabelNormal((4, 7, 7), condition_dim=8)(torch.zeros(1, 8)).event_shape
        torch.Size([4, 7, 7])
    """

    def __init__(self, latent: int | Sequence[int], condition_dim: int) -> None:
        super().__init__()
        self.noise_shape = shape_of(latent)
        self.gaussian = Gaussian()
        self.linear = nn.Linear(condition_dim, self.gaussian.params * self.noise_shape[0])
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Float[Tensor, "batch dim"]) -> Distribution:
        """(batch, dim) → a distribution over z (batch, latent)."""
        return self.gaussian(self._of_each(c))

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch *latent"]:
        """Mean plus standard deviation of the condition times noise."""
        return self.gaussian.draw(self._of_each(c), noise)

    def vary(self, z: Tensor, c: Tensor, noise: Tensor, strength: float) -> Float[Tensor, "batch *latent"]:
        """Latents near z; see `turned_towards`."""
        return turned_towards(z, self.draw(c, noise), self(c).mean, strength)

    def _of_each(self, c: Tensor) -> Tensor:
        """Parameters of each latent; all positions of a latent map share those of their channel."""
        found = self.linear(c)
        places = self.noise_shape[1:]
        return found.reshape(*found.shape, *[1] * len(places)).expand(*found.shape, *places)


class Levels(Part, registered="priors.Levels"):
    """Several levels of latents, each with a prior of its own and independent of the others.

    Args:
        parts: one a level.

    Example:
        >>> prior = Levels([StandardNormal(4), StandardNormal((2, 4, 4))])
        >>> prior.noise_shape
        ((4,), (2, 4, 4))
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.noise_shape = tuple(tuple(part.noise_shape) for part in parts)  # type: ignore[arg-type]

    def forward(self, c: Float[Tensor, "batch dim"]) -> tuple[Distribution, ...]:
        """(batch, dim) → a distribution over z of each level."""
        return tuple(part(c) for part in self.parts)

    def draw(self, c: Float[Tensor, "batch dim"], noise: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Z of each level."""
        return tuple(part.draw(c, own) for part, own in zip(self.parts, noise, strict=True))  # type: ignore[operator]
