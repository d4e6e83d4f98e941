"""The hinge GAN loss, in two phases."""

__all__ = ["HingeGANLoss"]

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from condgen.data.augmentation import NUMBERS as AUGMENTED
from condgen.data.augmentation import Augmentation
from condgen.losses.critics import held_still
from condgen.losses.phases import Phase

GENTLE = Augmentation(shift=0.1, colour=0.1, erasing=0.4)


class HingeGANLoss(nn.Module):
    r"""What a decoder and a discriminator play, without a likelihood: the hinge loss in two phases.

    .. math:: \min_G \; - \mathbb E \, D(G(z, c), c) \qquad
              \min_D \; \mathbb E \, (1 - D(x, c))_+ + \mathbb E \, (1 + D(G(z, c), c))_+
              + \tfrac{r_1}{2} \, \mathbb E \, \| \nabla_x D(x, c) \|^2

    Drawn images have the labels of the batch's real ones. Small sets are learnt by heart by a discriminator; `augment`
    shows it drawn and real images changed in the same ways, with gradients through the change, so that what it learns
    is of no use unless it holds for them all.

    Args:
        augment: see :class:`condgen.data.augmentation.Augmentation`; None for none.
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
        >>> from condgen.models.cgan import conditional_gan
        >>> images = condgen.load_smears(32, size=16)
        >>> model = conditional_gan(images.image_shape, images.num_classes, latent=4, width=8)
        >>> history = condgen.fit(model, images, objective=HingeGANLoss(r1=1.0), epochs=1, progress=False)
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

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        """The number of steps is read from what was saved, not from what this object did before."""
        super()._load_from_state_dict(*arguments, **options)
        self.step = self.drawn = None

    def noise_shapes(self, model: Any) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that training needs: the model's, and that of two augmentations."""
        return model.noise_shapes | {"augmentation": (2, AUGMENTED)}

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
