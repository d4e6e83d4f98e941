"""Priors: distributions over z given c, for the KL divergence and for drawing samples.

Contract: `prior(c) → Distribution` over z; `draw(c, noise) → z` with noise of `noise_shape` per latent. A prior that
is fitted afterwards also offers `fit(z, c)` (closed form) or is trained by :func:`condgen.fit_prior`.
"""

__all__ = ["Flow", "FlowMatching", "GaussianMixture", "LabelNormal", "Levels", "MomentMatched", "StandardNormal"]

from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.distributions.priors.moments import MomentMatched
from condgen.distributions.priors.normalizing_flow import Flow
from condgen.distributions.priors.standard import LabelNormal, Levels, StandardNormal
