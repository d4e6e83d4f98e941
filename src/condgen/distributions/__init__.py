"""Probability: tensors become distributions over z and x.

Contracts: a reparameterizer turns an encoder's parameters into a distribution and draws z from noise; a prior turns c
into a distribution over z and draws from it (`draw(c, noise)`, `noise_shape`); a likelihood turns a decoder's
parameters into a distribution over x with `log_prob` and `mean`. Log-probabilities are sums over pixels and latents,
one per image, in nats.

* `reparameterizers`, `likelihoods`; `grain`: the fine texture of images that no latent decides;
* `priors`: a standard normal, a mixture, a normalizing flow, flow matching.
"""

__all__ = [
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "Grain",
    "Laplace",
    "Levels",
    "Measure",
    "priors",
]

from condgen.distributions import priors
from condgen.distributions.grain import Grain
from condgen.distributions.likelihoods import Bernoulli, ContinuousBernoulli, DiscretizedLogistic, Laplace, Measure
from condgen.distributions.reparameterizers import Gaussian, Levels
