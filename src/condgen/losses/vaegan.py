r"""The bound with a critic beside it: reconstructions are also to look real to a discriminator, which learns to tell.

Means of likelihoods are blurred where the latent leaves something open: the safest guess is an average. A discriminator
sees that at once. Only reconstructions are judged, never free samples, so nothing can collapse: every training image
has to come back.
"""

__all__ = ["VAEGANLoss"]

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from condgen.losses.critics import held_still
from condgen.losses.elbo import ELBO, Inference, Schedule
from condgen.losses.phases import Phase


class VAEGANLoss(nn.Module):
    r"""The negative bound plus what a discriminator thinks of the reconstruction :math:`\hat x`, over any likelihood.

    .. math:: \mathcal L = \mathcal L_{\mathrm{ELBO}} + \pi \left[ - w \, \overline{D(\hat x, c)}
              + m \, \overline{|F(\hat x) - F(x)|} \right]

    with scores D and features F of the discriminator, means over places and features, and :math:`\pi` the pull of the
    likelihood: the sum over pixels of :math:`|\partial \log p / \partial \ell|` at the decoder's output, averaged over
    the batch and not differentiated. So the weights mean the same for every likelihood, scale and image size; for a
    Laplace likelihood :math:`\pi` is D / (2b), and the whole is the mean absolute error on [-1, 1] with weights w and
    m beside it. The discriminator minimises the hinge loss in a phase of its own.

    From its start on the decoder no longer maximises the bound, though its terms are reported all the time.

    Args:
        discriminator: (x, c) → (scores, features); see :mod:`condgen.nn.discriminators`.
        beta: weight of the KL, a number or a schedule in epochs.
        free_bits: see :class:`condgen.losses.elbo.ELBO`.
        weight: w, of the score.
        matching: m, of the features.
        start: share of the training after which the discriminator begins.
        every: the discriminator learns at every so many steps.
        relative: divide the error of each map of features by their mean magnitude in the images, for discriminators
            whose features may be of any size, since nothing normalises them.

    Raises:
        ValueError: for negative weights.

    References:
        Autoencoding beyond pixels using a learned similarity metric (Larsen et al., 2016),
        https://arxiv.org/abs/1512.09300; Taming transformers for high-resolution image synthesis (Esser et al., 2021),
        https://arxiv.org/abs/2012.09841, for a critic of reconstructions and weights relative to the reconstruction's
        gradient; the hinge loss: Geometric GAN (Lim & Ye, 2017), https://arxiv.org/abs/1705.02894

    Example:
        >>> import condgen
        >>> from condgen.nn.discriminators import ConvDiscriminator
        >>> images = condgen.load_smears(32, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=8)
        >>> critic = ConvDiscriminator(images.image_shape, images.num_classes, widths=(8, 16))
        >>> objective = VAEGANLoss(critic, start=0.5)
        >>> history = condgen.fit(model, images, objective=objective, epochs=2, progress=False)
        >>> "train_discriminator_loss" in history.rows[0], "train_discriminator_loss" in history.rows[1]
        (False, True)
    """

    select = ("loss", "last")  # no term says which epoch looks best; the last one's averages do
    begun: Tensor

    def __init__(
        self,
        discriminator: nn.Module,
        beta: float | Schedule = 1.0,
        free_bits: float = 0.0,
        weight: float = 0.05,
        matching: float = 0.5,
        start: float = 0.25,
        every: int = 1,
        relative: bool = False,
    ) -> None:
        super().__init__()
        if min(weight, matching) < 0:
            raise ValueError(f"Expected weights of 0 or more; got weight={weight} and matching={matching}.")
        self.discriminator, self.bound = discriminator, ELBO(beta, free_bits)
        self.weight, self.matching, self.relative = weight, matching, relative
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))  # saved with the networks
        self.active: bool | None = None  # the same, without asking the device at every step
        self.drawn: tuple[Tensor, Tensor] | None = None  # this step's reconstructions and conditions
        self.phases = (
            Phase(self.model_loss, lambda model: model.parameters(), after=self.bound.after_step),
            Phase(self.critic_loss, lambda _: discriminator.parameters(), "discriminator", every, start),
        )

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """Whether the discriminator has begun is read from what was saved, not from what this object did before."""
        super()._load_from_state_dict(*arguments, **options)
        self.active = self.drawn = None

    @property
    def graph_key(self) -> bool:
        """Whether the discriminator has begun, on which a step's work depends besides its inputs."""
        if self.active is None:
            self.active = bool(self.begun)
        return self.active

    @property
    def schedules(self) -> dict[str, Schedule]:
        """What changes over time."""
        return self.bound.schedules

    def extra_repr(self) -> str:
        """As it was built."""
        start, every = self.phases[1].start, self.phases[1].every
        relative = ", relative=True" if self.relative else ""
        return f"weight={self.weight}, matching={self.matching}, start={start}, every={every}{relative}"

    def model_loss(
        self,
        model: Any,
        x: Float[Tensor, "batch channels height width"],
        y: Shaped[Tensor, "batch ..."],
        noise: Mapping[str, Tensor],
        beta: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The bound's terms; in training, once the discriminator has begun, "score" and "matching" in the loss too."""
        inference: Inference = model.infer(x, y, noise)
        terms = self.bound(inference, beta)
        if inference.output is None:
            raise ValueError("Expected a model whose inference has the decoder's output.")
        active = self.graph_key
        if self.training:
            back, c = inference.p.mean, model.condition(y, noise.get("label"))
            self.drawn = back.detach(), c.detach()
            if active:
                terms |= self.judged(x, back, c)
                pull = pull_of(inference)
                terms["loss"] = terms["loss"] + pull * (
                    self.matching * terms["matching"] - self.weight * terms["score"]
                )
        return terms

    def judged(self, x: Tensor, back: Tensor, c: Tensor) -> dict[str, Tensor]:
        """What the discriminator, held still, makes of reconstructions beside images."""
        with held_still(self.discriminator):
            with torch.no_grad():
                _, real = self.discriminator(x, c)
            scores, features = self.discriminator(back, c)
        apart = [F.l1_loss(own, other) for own, other in zip(features, real, strict=True)]
        if self.relative:
            apart = [error / other.abs().mean().clamp_min(1e-6) for error, other in zip(apart, real, strict=True)]
        return {"score": scores.mean(), "matching": torch.stack(apart).mean()}

    def critic_loss(
        self,
        model: Any,
        x: Float[Tensor, "batch channels height width"],
        y: Shaped[Tensor, "batch ..."],
        noise: Mapping[str, Tensor],
        beta: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The hinge loss on images and this step's reconstructions of them."""
        if not self.active:
            self.active = True
            self.begun.fill_(True)
        if self.drawn is None:
            with torch.no_grad():
                self.drawn = model.infer(x, y, noise).p.mean, model.condition(y, noise.get("label"))
        (back, c), self.drawn = self.drawn, None
        scores, _ = self.discriminator(torch.cat([x, back.to(x.dtype)]), torch.cat([c, c]))
        real, drawn = scores.chunk(2)
        return {"loss": (1 - real).relu().mean() + (1 + drawn).relu().mean()}


def pull_of(inference: Inference) -> Float[Tensor, ""]:
    """How strongly the likelihood pulls at the decoder's output, nats per unit of it, summed over an image."""
    (slope,) = torch.autograd.grad(inference.log_likelihood.sum(), inference.output, retain_graph=True)  # type: ignore[arg-type]
    pull = slope.detach().abs().flatten(1).sum(1).mean()
    if torch.distributed.is_available() and torch.distributed.is_initialized():  # one weight on all devices
        torch.distributed.all_reduce(pull)
        pull /= torch.distributed.get_world_size()
    return pull
