r"""Reparameterizers: the encoder's output in, :math:`q(z \mid x, c)` and draws from it out.

Contract: `reparameterizer(parameters) → Distribution` over z; `draw(parameters, noise) → z`, differentiable in the
parameters; `params`, how many parameters it needs per latent. Parameters are (batch, params * latent), or maps
(batch, params * latent, height, width). For several levels everything is a tuple, level by level.
"""

__all__ = ["Gaussian", "Levels"]

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from condgen.nn.layers import bounded, full
from condgen.nn.parts import Part

LOG_VARIANCE_RANGE = (-30.0, 20.0)


class Gaussian(Part):
    r"""A Gaussian with diagonal covariance, from means and log-variances.

    .. math:: q(z \mid x, c) = \mathcal N(\mu, \operatorname{diag} \sigma^2), \qquad
              z = \mu + e^{\frac12 \log \sigma^2} \epsilon, \quad \epsilon \sim \mathcal N(0, I)

    Log-variances are used as they are within [-30, 20]; beyond, they are clamped and can come back.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch
        >>> parameters = torch.tensor([[1.0, 2.0, 0.0, 0.0]])  # means 1 and 2, log-variances 0
        >>> Gaussian()(parameters).mean, Gaussian().draw(parameters, torch.tensor([[0.0, 1.0]]))
        (tensor([[1., 2.]]), tensor([[1., 3.]]))
    """

    params = 2

    def forward(self, parameters: Float[Tensor, "batch parameters *map"]) -> Distribution:
        """(batch, 2 * latent) → a distribution over z (batch, latent)."""
        mean, std = mean_and_std(parameters)
        return Independent(Normal(mean, std, validate_args=False), mean.ndim - 1, validate_args=False)

    def draw(
        self, parameters: Float[Tensor, "batch parameters *map"], noise: Float[Tensor, "batch latent *map"]
    ) -> Float[Tensor, "batch latent *map"]:
        """Mean plus standard deviation times noise."""
        mean, std = mean_and_std(parameters)
        return mean + std * noise


class Levels(Part):
    """Several levels of latents, each with a reparameterizer of its own and independent of the others.

    Args:
        parts: one a level.

    Example:
        >>> import torch
        >>> parameters, noise = (torch.zeros(1, 4), torch.zeros(1, 6, 4, 4)), (torch.ones(1, 2), torch.ones(1, 3, 4, 4))
        >>> [z.shape for z in Levels([Gaussian(), Gaussian()]).draw(parameters, noise)]
        [torch.Size([1, 2]), torch.Size([1, 3, 4, 4])]
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.params: int = self.parts[0].params  # type: ignore[assignment]

    def forward(self, parameters: tuple[Tensor, ...]) -> tuple[Distribution, ...]:
        """Parameters of each level → a distribution over z of each level."""
        return tuple(part(own) for part, own in zip(self.parts, parameters, strict=True))

    def draw(self, parameters: tuple[Tensor, ...], noise: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Z of each level."""
        return tuple(p.draw(own, n) for p, own, n in zip(self.parts, parameters, noise, strict=True))  # type: ignore[operator]


def mean_and_std(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of the parameters: mean, and standard deviation from the log-variance."""
    mean, log_variance = full(parameters).chunk(2, dim=1)
    return mean, (0.5 * bounded(log_variance, *LOG_VARIANCE_RANGE)).exp()
