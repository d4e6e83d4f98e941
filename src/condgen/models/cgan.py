r"""The conditional GAN: a decoder that a discriminator cannot catch, without an encoder and without a likelihood.

Generative story: a label y gives a condition c, a latent z is drawn from :math:`p(z \mid c)`, an image is
:math:`x = \sigma(\mathrm{decoder}(z, c))`. The discriminator learns to tell drawn images from real ones of the same
condition; the decoder learns to be taken for real (:class:`condgen.losses.gan.HingeGANLoss`).
"""

__all__ = ["ConditionalGAN", "conditional_gan"]

from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from condgen.distributions.priors.standard import StandardNormal
from condgen.losses.gan import HingeGANLoss
from condgen.models.generator import Generator, Images, shape
from condgen.models.latents import latent_noise, latent_shapes
from condgen.nn.conditioners import OneHot, Unconditional
from condgen.nn.decoders import ResNetDecoder, SkipLatent
from condgen.nn.discriminators import ResNetDiscriminator
from condgen.nn.layers import halvings


class ConditionalGAN(Generator):
    """A conditional generative adversarial network assembled from parts that honour the contracts of their shelves.

    It draws images. It has no encoder and no density, so nothing can be asked of it about an image: reconstructions,
    likelihoods and posteriors are a VAE's.

    Args:
        conditioner: y → c.
        prior: c → draws of z.
        decoder: (z, c) → logits of an image.
        discriminator: (x, c) → scores and features; training alone needs it, and files
            keep it so that training can go on.
        image_shape: (channels, height, width); read from the decoder where it tells.

    References:
        Generative adversarial nets (Goodfellow et al., 2014), https://arxiv.org/abs/1406.2661; Conditional generative
        adversarial nets (Mirza & Osindero, 2014), https://arxiv.org/abs/1411.1784

    Example:
        >>> model = conditional_gan((1, 8, 8), num_classes=2, latent=4, width=8)
        >>> model.sample([0, 1, 1], seed=0).shape
        torch.Size([3, 1, 8, 8])
    """

    prior: Any
    decoder: Any
    discriminator: Any

    def __init__(
        self,
        *,
        conditioner: nn.Module,
        prior: nn.Module,
        decoder: nn.Module,
        discriminator: nn.Module,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__(conditioner, image_shape or getattr(decoder, "output_shape", None))
        self.prior, self.decoder, self.discriminator = prior, decoder, discriminator

    def draw(self, y: Shaped[Tensor, "batch ..."], noise: dict[str, Tensor]) -> Images:
        """Labels and noise → images in [0, 1]."""
        return self.draw_from(self.condition(y, noise.get("label")), noise)

    def draw_from(self, c: Float[Tensor, "batch dim"], noise: dict[str, Tensor]) -> Images:
        """Conditions and noise → images in [0, 1]."""
        z = self.prior.draw(c, latent_noise({name: own for name, own in noise.items() if name != "label"}))
        return torch.sigmoid(self.decoder(z, c))

    def objective(self) -> HingeGANLoss:
        """The game of the two networks."""
        return HingeGANLoss()

    def trial(self, x: Images, y: Shaped[Tensor, "batch ..."], noise: dict[str, Tensor]) -> Float[Tensor, " batch"]:
        """The discriminator's mean score of each image."""
        scores, _ = self.discriminator(x, self.condition(y, noise.get("label")))
        return scores.reshape(len(x), -1).mean(1)

    @property
    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that an image drawn in training needs."""
        return latent_shapes(self.prior.noise_shape) | self.label_noise

    @property
    def sampling_noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that drawing one image needs."""
        return latent_shapes(self.prior.noise_shape)

    @property
    def flows(self) -> dict[str, str]:
        """Name of each part → what goes in and comes out."""
        z, c = ", ".join(map(shape, latent_shapes(self.prior.noise_shape).values())), self.condition_text
        x = f"x {shape(self.image_shape or ('?',))}"
        return {
            "conditioner": f"y → {c}",
            "prior": f"{c} → z {z}",
            "decoder": f"z {z}, {c} → {x}",
            "discriminator": f"{x}, {c} → scores",
        }


def conditional_gan(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    latent: int = 64,
    width: int = 32,
    depth: int = 1,
    spectral: bool = True,
    conditioner: nn.Module | None = None,
    prior: nn.Module | None = None,
) -> ConditionalGAN:
    """A conditional GAN from numbers, of residual networks.

    Args:
        image_shape: (channels, height, width), from 8x8 up.
        num_classes: labels are integers in [0, num_classes); 0 leaves labels out.
        latent: number of latents.
        width: channels of the largest map in both networks.
        depth: residual blocks of the decoder on each map.
        spectral: normalise the discriminator's layers by their spectral norm; without it, give the game an `r1`.
        conditioner: instead of one-hot labels.
        prior: instead of the standard normal.

    Raises:
        ValueError: for images smaller than 8x8, no latents or channels.

    Example:
        >>> conditional_gan((3, 28, 28), num_classes=8).noise_shapes["z"]
        (64,)
    """
    if min(latent, width, depth) < 1:
        raise ValueError(f"Expected latent, width and depth of 1 or more; got {latent}, {width} and {depth}.")
    conditioner = conditioner or (OneHot(num_classes) if num_classes else Unconditional())
    widths = [width * min(2**k, 4) for k in range(len(halvings(image_shape[1:])) - 1)]
    dim: int = conditioner.dim  # type: ignore[assignment]
    return ConditionalGAN(
        conditioner=conditioner,
        prior=prior or StandardNormal(latent),
        decoder=SkipLatent(ResNetDecoder(image_shape, latent, dim + latent, widths, depth)),
        discriminator=ResNetDiscriminator(image_shape, dim, widths, spectral),
        image_shape=image_shape,
    )
