r"""The bound with a critic beside it: reconstructions are also to look real to a discriminator, which learns to tell.

Means of likelihoods are blurred where the latent leaves something open: the safest guess is an average. A discriminator
sees that at once. Only reconstructions are judged, never free samples, so nothing can collapse: every training image
has to come back.
"""

__all__ = ["AUGMENTED", "Adversarial", "Game"]

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from condgen.augmentations import NUMBERS as AUGMENTED
from condgen.augmentations import Augmentation
from condgen.elbo import ELBO, Inference, Schedule
from condgen.objectives import Phase

GENTLE = Augmentation(shift=0.1, colour=0.1, erasing=0.4)


class Adversarial(nn.Module):
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
        discriminator: (x, c) → (scores, features); see :mod:`condgen.discriminators`.
        beta: weight of the KL, a number or a schedule in epochs.
        free_bits: see :class:`condgen.elbo.ELBO`.
        weight: w, of the score.
        matching: m, of the features.
        start: share of the training after which the discriminator begins.
        every: the discriminator learns at every so many steps.

    Raises:
        ValueError: for negative weights.

    References:
        Autoencoding beyond pixels using a learned similarity metric (Larsen et al., 2016),
        https://arxiv.org/abs/1512.09300; Taming transformers for high-resolution image synthesis (Esser et al., 2021),
        https://arxiv.org/abs/2012.09841, for a critic of reconstructions and weights relative to the reconstruction's
        gradient; the hinge loss: Geometric GAN (Lim & Ye, 2017), https://arxiv.org/abs/1705.02894

    Example:
        >>> import condgen
        >>> from condgen.discriminators import ConvDiscriminator
        >>> images = condgen.load_smears(32, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=8)
        >>> critic = ConvDiscriminator(images.image_shape, images.num_classes, widths=(8, 16))
        >>> objective = Adversarial(critic, start=0.5)
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
    ) -> None:
        super().__init__()
        if min(weight, matching) < 0:
            raise ValueError(f"Expected weights of 0 or more; got weight={weight} and matching={matching}.")
        self.discriminator, self.bound = discriminator, ELBO(beta, free_bits)
        self.weight, self.matching = weight, matching
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))  # saved with the networks
        self.active: bool | None = None  # the same, without asking the device at every step
        self.drawn: tuple[Tensor, Tensor] | None = None  # this step's reconstructions and conditions
        self.phases = (
            Phase(self.model_loss, lambda model: model.parameters()),
            Phase(self.critic_loss, lambda _: discriminator.parameters(), "discriminator", every, start),
        )

    @property
    def schedules(self) -> dict[str, Schedule]:
        """What changes over time."""
        return self.bound.schedules

    def extra_repr(self) -> str:
        """As it was built."""
        start, every = self.phases[1].start, self.phases[1].every
        return f"weight={self.weight}, matching={self.matching}, start={start}, every={every}"

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
        if self.active is None:
            self.active = bool(self.begun)
        if self.training:
            back, c = inference.p.mean, model.condition(y, noise.get("label"))
            self.drawn = back.detach(), c.detach()
            if self.active:
                terms |= self.judged(x, back, c)
                pull = pull_of(inference)
                terms["loss"] = terms["loss"] + pull * (
                    self.matching * terms["matching"] - self.weight * terms["score"]
                )
        return {**terms, "output": inference.output.detach()}

    def judged(self, x: Tensor, back: Tensor, c: Tensor) -> dict[str, Tensor]:
        """What the discriminator, held still, makes of reconstructions beside images."""
        with held_still(self.discriminator):
            with torch.no_grad():
                _, real = self.discriminator(x, c)
            scores, features = self.discriminator(back, c)
        apart = [F.l1_loss(own, other) for own, other in zip(features, real, strict=True)]
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


class Game(nn.Module):
    r"""What a decoder and a discriminator play, without a likelihood: the hinge loss in two phases.

    .. math:: \min_G \; - \mathbb E \, D(G(z, c), c) \qquad
              \min_D \; \mathbb E \, (1 - D(x, c))_+ + \mathbb E \, (1 + D(G(z, c), c))_+
              + \tfrac{r_1}{2} \, \mathbb E \, \| \nabla_x D(x, c) \|^2

    Drawn images have the labels of the batch's real ones. Small sets are learnt by heart by a discriminator; `augment`
    shows it drawn and real images changed in the same ways, with gradients through the change, so that what it learns
    is of no use unless it holds for them all.

    Args:
        augment: see :class:`condgen.augmentations.Augmentation`; None for none.
        r1: weight of the gradient penalty on real images; 0: none.
        every: the penalty is taken at every so many steps, that much heavier.

    Raises:
        ValueError: for a negative weight, or `every` below 1.

    References:
        Geometric GAN (Lim & Ye, 2017), https://arxiv.org/abs/1705.02894; Differentiable augmentation for data-efficient
        GAN training (Zhao et al., 2020), https://arxiv.org/abs/2006.10738; the penalty: Which training methods for GANs
        do actually converge? (Mescheder et al., 2018), https://arxiv.org/abs/1801.04406, taken seldom as in Analyzing
        and improving the image quality of StyleGAN (Karras et al., 2020), https://arxiv.org/abs/1912.04958

    Example:
        >>> import condgen
        >>> from condgen.cgan import conditional_gan
        >>> images = condgen.load_smears(32, size=16)
        >>> model = conditional_gan(images.image_shape, images.num_classes, latent=4, width=8)
        >>> history = condgen.fit(model, images, objective=Game(r1=1.0), epochs=1, progress=False)
        >>> [name for name in history.rows[0] if name.startswith("train")]
        ['train_loss', 'train_score', 'train_discriminator_loss', 'train_discriminator_real', ...]
    """

    select = ("loss", "last")  # a game's losses do not say which epoch is best

    def __init__(self, augment: Augmentation | None = GENTLE, r1: float = 0.0, every: int = 8) -> None:
        super().__init__()
        if r1 < 0 or every < 1:
            raise ValueError(f"Expected r1 of 0 or more and every of 1 or more; got {r1} and {every}.")
        self.augment, self.r1, self.every = augment, r1, every
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # of the discriminator
        self.step: int | None = None  # the same, without asking the device at every step
        self.drawn: Tensor | None = None  # this step's images
        self.phases = (
            Phase(self.decoder_loss, lambda model: without(model, "discriminator")),
            Phase(self.critic_loss, lambda model: model.get_submodule("discriminator").parameters(), "discriminator"),
        )

    def extra_repr(self) -> str:
        """As it was built."""
        return f"augment={self.augment}, r1={self.r1}, every={self.every}"

    @property
    def replayable(self) -> bool:
        """A penalty at some steps alone is not the same work at each."""
        return not self.r1

    def changed(self, x: Tensor, noise: Mapping[str, Tensor], which: int) -> Tensor:
        """Augmented by the batch's noise."""
        if self.augment is None:
            return x
        return self.augment.apply(x, torch.special.ndtr(noise["augmentation"][:, which]).to(x.dtype))

    def decoder_loss(
        self, model: Any, x: Tensor, y: Shaped[Tensor, "batch ..."], noise: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """How little the discriminator, held still, believes of what is drawn."""
        c = model.condition(y, noise.get("label"))
        drawn = model.draw_from(c, noise)
        self.drawn = drawn.detach() if self.training else None
        with held_still(model.discriminator):
            scores, _ = model.discriminator(self.changed(drawn, noise, 0), c)
        return {"loss": -scores.mean(), "score": scores.mean().detach()}

    def critic_loss(
        self, model: Any, x: Tensor, y: Shaped[Tensor, "batch ..."], noise: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The hinge loss on images and this step's drawn ones, and the penalty when it is due."""
        if self.step is None:
            self.step = int(self.steps)
        drawn, self.drawn = self.drawn, None
        c = model.condition(y, noise.get("label")).detach()
        if drawn is None:
            with torch.no_grad():
                drawn = model.draw_from(c, noise)
        # Apart, since a score may depend on the images beside it.
        real, _ = model.discriminator(self.changed(x, noise, 0), c)
        false, _ = model.discriminator(self.changed(drawn.to(x.dtype), noise, 1), c)
        loss = (1 - real).relu().mean() + (1 + false).relu().mean()
        terms = {"loss": loss, "real": real.mean().detach(), "drawn": false.mean().detach()}
        if self.r1 and self.step % self.every == 0:
            penalty = self.every * self.r1 / 2 * gradient_norm(model.discriminator, x, c)
            terms |= {"loss": loss + penalty, "penalty": penalty.detach()}
        self.step += 1
        self.steps += 1
        return terms


def gradient_norm(discriminator: nn.Module, x: Tensor, c: Tensor) -> Float[Tensor, ""]:
    """Squared norm of the score's gradient at images, a mean over them."""
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, enabled=False):
        scores = discriminator(x, c)[0].reshape(len(x), -1).mean(1)
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def without(model: nn.Module, part: str) -> list[nn.Parameter]:
    """The parameters of a model that are not a part's."""
    others = set(map(id, model.get_submodule(part).parameters()))
    return [p for p in model.parameters() if id(p) not in others]


def pull_of(inference: Inference) -> Float[Tensor, ""]:
    """How strongly the likelihood pulls at the decoder's output, nats per unit of it, summed over an image."""
    (slope,) = torch.autograd.grad(inference.log_likelihood.sum(), inference.output, retain_graph=True)  # type: ignore[arg-type]
    pull = slope.detach().abs().flatten(1).sum(1).mean()
    if torch.distributed.is_available() and torch.distributed.is_initialized():  # one weight on all devices
        torch.distributed.all_reduce(pull)
        pull /= torch.distributed.get_world_size()
    return pull


@contextmanager
def held_still(network: nn.Module) -> Iterator[None]:
    """No gradients for its weights inside."""
    moving = [p for p in network.parameters() if p.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
