"""Flow matching and maximum likelihood as losses: of a model of images, or of a prior of latents."""

__all__ = ["FlowMatchingLoss", "PriorFlowMatching", "PriorLikelihood"]

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


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
    """The flow-matching loss of a :class:`~condgen.distributions.priors.FlowMatching` prior of latents.

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
