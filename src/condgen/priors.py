r"""Priors: the condition in, :math:`p(z \mid c)` and draws from it out.

Contract: `prior(c) → Distribution` over z; `draw(c, noise) → z`; `noise_shape`, the shape of one image's noise.
c is (batch, dim); a plain prior reads no more of it than the batch size.
"""

__all__ = ["LabelNormal", "StandardNormal"]

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from condgen.parts import Part
from condgen.reparameterizers import Gaussian


class StandardNormal(Part):
    r"""The same for every label: :math:`p(z \mid c) = \mathcal N(0, I)`.

    Args:
        latent: number of latents, or the shape of z.

    Example:
        >>> prior = StandardNormal(128)
        >>> prior(torch.zeros(2, 8)).log_prob(torch.zeros(2, 128))  # -64 log(2 pi)
        tensor([-117.6241, -117.6241])
    """

    def __init__(self, latent: int | Sequence[int]) -> None:
        super().__init__()
        self.noise_shape = (latent,) if isinstance(latent, int) else tuple(latent)

    def forward(self, c: Float[Tensor, "batch dim"]) -> Distribution:
        """(batch, dim) → a distribution over z."""
        zeros = torch.zeros(len(c), *self.noise_shape, device=c.device, dtype=c.dtype)
        normal = Normal(zeros, torch.ones_like(zeros), validate_args=False)
        return Independent(normal, len(self.noise_shape), validate_args=False)

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch *latent"]:
        """The noise itself."""
        return noise


class LabelNormal(Part):
    r"""A Gaussian of its own for every condition.

    .. math:: p(z \mid c) = \mathcal N(\mu(c), \operatorname{diag} \sigma^2(c))

    Mean and log-variance are linear in c and start as the standard normal.

    Args:
        latent: number of latents.
        condition_dim: width of c.

    References:
        Learning structured output representation using deep conditional generative models
        (Sohn, Lee & Yan, 2015), https://papers.nips.cc/paper/5775

    Example:
        >>> prior = LabelNormal(16, condition_dim=8)
        >>> prior.draw(torch.zeros(1, 8), torch.ones(1, 16)).sum()
        tensor(16., grad_fn=<SumBackward0>)
    """

    def __init__(self, latent: int, condition_dim: int) -> None:
        super().__init__()
        self.noise_shape = (latent,)
        self.gaussian = Gaussian()
        self.linear = nn.Linear(condition_dim, self.gaussian.params * latent)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Float[Tensor, "batch dim"]) -> Distribution:
        """(batch, dim) → a distribution over z (batch, latent)."""
        return self.gaussian(self.linear(c))

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch latent"]:
        """Mean plus standard deviation of the condition times noise."""
        return self.gaussian.draw(self.linear(c), noise)
