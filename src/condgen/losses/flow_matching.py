"""Flow matching and maximum likelihood as losses: of a model of images, or of a prior of latents."""

__all__ = ["Distillation", "FlowMatchingLoss", "PriorFlowMatching", "PriorLikelihood"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from condgen.distributions.priors.flow_matching import one_step

TINY = 1e-12  # below which the gradient of a root has no bound


class FlowMatchingLoss(nn.Module):
    """The flow-matching loss of a model: the mean squared error of its velocity, averaged over the batch.

    The model says what its error is: `model.matching(x, y, noise)`, one number per image.

    References:
        Flow matching for generative modeling (Lipman et al., 2023), https://arxiv.org/abs/2210.02747

    Example:
        >>> import condgen
        >>> from condgen.models.cflow import conditional_flow
        >>> images = condgen.load_smears(32, size=16)
        >>> model = conditional_flow(images.image_shape, images.num_classes, widths=(8, 8), depth=1)
        >>> loss = FlowMatchingLoss()
        >>> condgen.fit(model, images, objective=loss, epochs=1, progress=False).rows[0]["train_loss"] > 0
        True
    """

    def loss(self, model: Any, x: Tensor, y: Tensor, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the batch."""
        return {"loss": model.matching(x, y, noise).mean()}


class PriorFlowMatching(nn.Module):
    """The flow-matching loss of a :class:`~condgen.distributions.priors.flow_matching.FlowMatching` prior of latents.

    The prior is what is trained. Its images are latents; their labels are a pair: the condition of each latent, and the
    number of the mixture component it belongs to.

    Example:
        >>> import torch
        >>> from condgen.distributions.priors import FlowMatching
        >>> prior, loss = FlowMatching(4, condition_dim=2), PriorFlowMatching()
        >>> noise = {name: torch.randn(3, *shape) for name, shape in loss.noise_shapes(prior).items()}
        >>> y = torch.eye(2)[[0, 1, 1]], torch.zeros(3, dtype=torch.int64)
        >>> loss.loss(prior, torch.randn(3, 4), y, noise)["loss"].shape
        torch.Size([])
    """

    def noise_shapes(self, prior: Any) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that one latent needs."""
        return prior.training_noise

    def trial(self, prior: Any, z: Tensor, y: tuple[Tensor, Tensor], noise: Mapping[str, Tensor]) -> Tensor:
        """The error of each latent."""
        return prior.matching(z, *y, noise)

    def loss(self, prior: Any, z: Tensor, y: tuple[Tensor, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the batch."""
        return {"loss": self.trial(prior, z, y, noise).mean()}


class Distillation(nn.Module):
    """The error of a student that is to carry draws of a flow's source in one step to where the flow carries them.

    The student is what is trained, a network of :mod:`condgen.nn.velocities`. Its images are pairs of such a draw and
    what the flow makes of it, in standardised coordinates; their labels are the condition and the component of each.
    The error of a pair is the root of the mean square over latents, which far-off pairs rule less than they would rule
    the mean square.

    References:
        Knowledge distillation in iterative generative models for improved sampling speed (Luhman & Luhman, 2021),
        https://arxiv.org/abs/2101.02388

    Example:
        >>> import torch
        >>> from condgen.nn.velocities import MLPVelocity
        >>> pairs = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])  # a new network stays where it is
        >>> y = torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)
        >>> Distillation().loss(MLPVelocity(2, condition_dim=3), pairs, y, {})["loss"].square()
        tensor(12.5000, grad_fn=<PowBackward0>)
    """

    def noise_shapes(self, student: Any) -> dict[str, tuple[int, ...]]:
        """No noise is needed."""
        return {}

    def trial(self, student: Any, pairs: Tensor, y: tuple[Tensor, Tensor], noise: Mapping[str, Tensor]) -> Tensor:
        """The error of each pair."""
        start, end = pairs.unbind(1)
        apart = (one_step(student, start, *y) - end).float().flatten(1)
        return apart.square().mean(1).clamp(min=TINY).sqrt()

    def loss(
        self, student: Any, pairs: Tensor, y: tuple[Tensor, Tensor], noise: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The mean over the batch."""
        return {"loss": self.trial(student, pairs, y, noise).mean()}


class PriorLikelihood(nn.Module):
    """The loss of a prior that is trained by maximum likelihood: minus its log-density, nats per latent vector.

    The prior is what is trained. Its images are latents; their labels are conditions.

    Example:
        >>> import torch
        >>> from condgen.distributions.priors import StandardNormal
        >>> PriorLikelihood().loss(StandardNormal(2), torch.zeros(3, 2), torch.zeros(3, 1), {})["loss"]  # log 2 pi
        tensor(1.8379)
    """

    def noise_shapes(self, prior: Any) -> dict[str, tuple[int, ...]]:
        """No noise is needed."""
        return {}

    def trial(self, prior: Any, z: Tensor, c: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """The log-density of each latent."""
        return prior(c).log_prob(z)

    def loss(self, prior: Any, z: Tensor, c: Tensor, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean over the batch."""
        return {"loss": -self.trial(prior, z, c, noise).mean()}
