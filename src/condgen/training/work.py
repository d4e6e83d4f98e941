"""How much work the stages of a recipe are, to share a budget and to estimate a time."""

__all__ = []

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from condgen.data.augmentation import symmetries
from condgen.data.images import LabelledImages
from condgen.nn.precision import multiply_adds
from condgen.training.fit_prior import Density
from condgen.training.set_up import tensors, try_once

CRITIC, FLOW_COST = 0.3, 1.5  # measured: what a discriminator adds to a step; a flow's time per multiply-add
MOST_FIRST = 0.75  # share of a budget that training the model may have where a prior is fitted afterwards


@dataclass(frozen=True)
class Work:
    """How much work the stages of a recipe are, in multiply-adds, to share a budget and to estimate a time.

    Attributes:
        per_image: of training the model without a discriminator, per image and step.
        training: of training the model, all passes.
        encoding: of encoding the images and fitting a mixture to their latents.
        flow: of training a flow of latents, all passes.
    """

    per_image: float
    training: float
    encoding: float
    flow: float

    def later(self, batch_size: int) -> float:
        """What follows the training of the model, in steps of it."""
        return (self.encoding + self.flow) / (self.per_image * batch_size)

    @property
    def first_share(self) -> float:
        """The share of a budget for training the model; the rest is for its prior."""
        if not self.encoding + self.flow:
            return 1.0
        return min(MOST_FIRST, self.training / (self.training + self.encoding + self.flow))


def work_of(model: Any, prior: Any, data: LabelledImages, numbers: Mapping[str, Any]) -> Work:
    """The work of a recipe's stages on this data; forward and backward count as three forward passes."""
    training = data.train if data.splits else data
    images, labels = tensors(training.subset(slice(0, 1)), torch.device("cpu"))
    forward = max(1, multiply_adds(partial(try_once, model, (images, labels), None), model))
    n, encoding, flow = len(training), 0.0, 0.0
    if prior is not None:
        latents = n * (symmetries(*data.image_shape[1:]) if turned_in(numbers) else 1)
        mixture = getattr(prior, "source", prior)
        encoding = latents * forward / 2
        if hasattr(mixture, "components"):
            encoding += latents * mixture.components * mixture.dim**2 * (mixture.em + 2)
        if not hasattr(prior, "fit"):
            z = torch.zeros(1, *model.prior.noise_shape)
            c = model.conditioner(labels).float().cpu()
            label = torch.cat([c, torch.zeros(1, 1)], 1) if hasattr(prior, "matching") else c
            trained = Density(prior)
            each = multiply_adds(partial(try_once, trained, (z, label), nn.Identity()), trained)
            flow = 3.0 * latents * each * numbers["sampler_epochs"]
    critic = 1 + CRITIC * (1 - numbers["critic_start"]) * bool(numbers["adversarial"] or numbers["matching"])
    whole = 3.0 * forward * critic * n * numbers["epochs"]
    return Work(3.0 * forward, whole, encoding, FLOW_COST * flow)


def turned_in(numbers: Mapping[str, Any]) -> bool:
    """Whether the model is trained on all flips and quarter turns, so that its prior is fitted to them too."""
    augment = numbers["augment"]
    return augment is not None and augment.flips and augment.quarter_turns
