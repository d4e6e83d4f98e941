"""Losses: what training minimises, in phases that follow each other at every step, one optimizer each.

Contract: `loss(model, x, y, noise, **scheduled) → terms`, means over the batch, "loss" among them; or several
:class:`condgen.losses.phases.Phase`. A loss never draws a random number and never averages inside an image.

* `elbo`: the evidence lower bound and schedules of beta;
* `vaegan`: the same with a discriminator of reconstructions; `gan`: the hinge GAN loss; `flow_matching`;
* `phases`: what a phase is, and what the training loop asks a loss for.
"""

__all__ = [
    "ELBO",
    "Constant",
    "Cyclical",
    "FlowMatchingLoss",
    "HingeGANLoss",
    "Inference",
    "LinearWarmup",
    "Phase",
    "PriorFlowMatching",
    "PriorLikelihood",
    "Schedule",
    "VAEGANLoss",
    "bits_per_dimension",
    "dequantize",
    "importance_weighted",
    "kl_per_latent",
    "phases_of",
    "schedules_of",
    "selection_of",
]

from condgen.losses.elbo import (
    ELBO,
    Constant,
    Cyclical,
    Inference,
    LinearWarmup,
    Schedule,
    bits_per_dimension,
    dequantize,
    importance_weighted,
    kl_per_latent,
)
from condgen.losses.flow_matching import FlowMatchingLoss, PriorFlowMatching, PriorLikelihood
from condgen.losses.gan import HingeGANLoss
from condgen.losses.phases import Phase, phases_of, schedules_of, selection_of
from condgen.losses.vaegan import VAEGANLoss
