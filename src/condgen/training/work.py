"""How much work the stages of a recipe are, to share a budget and to estimate a time."""

__all__ = []

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from condgen.data.augmentation import symmetries
from condgen.data.images import LabelledImages
from condgen.nn.precision import multiply_adds
from condgen.training.budget import CRITIC
from condgen.training.fit_prior import loss_of
from condgen.training.set_up import EPOCHS, tensors, try_once
from condgen.training.settings import Sampler, Training, VAELoss
from condgen.training.step import ModelAndLoss

FLOW_COST = 1.5  # measured: a flow's time per multiply-add, in those of the networks around the latents
MOST_FIRST = 0.75  # share of a budget that training the model may have where a prior is fitted afterwards


@dataclass(frozen=True)
class Work:
    """How much work the stages of a recipe are, in multiply-adds, to share a budget and to estimate a time.

    Attributes:
        per_image: of training the model without a discriminator, per image and step.
        training: of training the model, all passes.
        encoding: of encoding the images and fitting a mixture to their latents.
        flow: of training a flow of latents, all passes.
        student: of distilling it into a network of one step.
    """

    per_image: float
    training: float
    encoding: float
    flow: float
    student: float = 0.0

    def later(self, batch_size: int) -> float:
        """What follows the training of the model, in steps of it."""
        return (self.encoding + self.flow + self.student) / (self.per_image * batch_size)

    @property
    def first_share(self) -> float:
        """The share of a budget for training the model; the rest is for its prior."""
        if not self.encoding + self.flow:
            return 1.0
        return min(MOST_FIRST, self.training / (self.training + self.encoding + self.flow + self.student))

    @property
    def prior_share(self) -> float:
        """The share of what is then left for fitting the prior; the rest is for distilling it."""
        prior = self.encoding + self.flow
        return prior / (prior + self.student) if self.student else 1.0


def work_of(
    model: Any, prior: Any, data: LabelledImages, training: Training, loss: VAELoss | None, sampler: Sampler
) -> Work:
    """The work of a recipe's stages on this data; forward and backward count as three forward passes.

    Args:
        model: that is trained.
        prior: that is fitted afterwards; None for none.
        data: images.
        training: how the model is trained.
        loss: of a VAE; None for other models.
        sampler: how the prior is fitted.
    """
    images = data.train if data.splits else data
    example = tensors(images.subset(slice(0, 1)), torch.device("cpu"))
    forward = forward_work(model, model.objective(), example)
    n, encoding, flow, student = len(images), 0.0, 0.0, 0.0
    if prior is not None:
        latents = n * (symmetries(*data.image_shape[1:]) if learns_turns(training.augment) else 1)
        mixture = getattr(prior, "source", prior)
        encoding = latents * forward / 2
        if hasattr(mixture, "components"):
            encoding += latents * mixture.components * mixture.dim**2 * (mixture.em + 2)
        if not hasattr(prior, "fit"):
            z = torch.zeros(1, *model.prior.noise_shape)
            c = model.conditioner(example[1]).float().cpu()
            own, labels = loss_of(prior, c)
            each = forward_work(prior, own, (z, labels), nn.Identity())
            flow = 3.0 * latents * each * sampler.sampler_epochs
            if sampler.sampler == "flow_matching":
                evaluations = 2 * sampler.teacher_steps * (2 if sampler.teacher_guidance else 1)  # of Heun's method
                student = min(sampler.distil_pairs, latents) * each * (evaluations + 3.0 * sampler.distil_epochs)
    critic = 1.0
    if loss is not None and loss.has_discriminator:
        critic += CRITIC * (1 - loss.discriminator_start)
    whole = 3.0 * forward * critic * n * (training.epochs or EPOCHS)
    return Work(3.0 * forward, whole, encoding, FLOW_COST * flow, FLOW_COST * student)


def forward_work(model: Any, loss: Any, example: tuple[Tensor, Any], prepare: Any = None) -> int:
    """Multiply-adds of a forward pass in training, per image."""
    return max(1, multiply_adds(partial(try_once, ModelAndLoss(model, loss), example, prepare), model))


def learns_turns(augment: Any) -> bool:
    """Whether a model is trained on all flips and quarter turns, so that its prior is fitted to them, too."""
    return bool(getattr(augment, "flips", False) and getattr(augment, "quarter_turns", False))
