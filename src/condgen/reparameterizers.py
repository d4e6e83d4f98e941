r"""Reparameterizers: the encoder's output in, :math:`q(z \mid x, c)` and draws from it out.

Contract: `reparameterizer(parameters) → Distribution` over z; `draw(parameters, noise) → z`, differentiable in the
parameters; `params`, how many parameters it needs per latent. Parameters are (batch, params * latent), or maps
(batch, params * latent, height, width).
"""

__all__ = ["Gaussian"]

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from condgen.layers import bounded
from condgen.parts import Part

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


def mean_and_std(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of the parameters: mean, and standard deviation from the log-variance."""
    mean, log_variance = parameters.chunk(2, dim=1)
    return mean, (0.5 * bounded(log_variance, *LOG_VARIANCE_RANGE)).exp()
