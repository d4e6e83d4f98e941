"""Recipes: named assemblies with the numbers to train them, as data."""

__all__ = ["RECIPES", "Recipe", "bloodmnist_reference", "smears_demo"]

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from condgen.conditioners import OneHot, Unconditional
from condgen.cvae import ConditionalVAE, conditional_vae
from condgen.decoders import DeconvDecoder
from condgen.encoders import ConvEncoder
from condgen.likelihoods import Bernoulli
from condgen.priors import StandardNormal
from condgen.reparameterizers import Gaussian

REFERENCE_CHANNELS = (16, 32, 64, 128, 256, 512)
REFERENCE_STRIDES = (2, 2, 2, 2, 2, 1)


def bloodmnist_reference(
    output_labels: bool = True, image_shape: tuple[int, int, int] = (3, 28, 28), num_classes: int = 8
) -> ConditionalVAE:
    """The conditional VAE of a student report on BloodMNIST (University of Osijek, 2024), to the last layer.

    Six 3x3 convolutions down to 1x1, 128 latents, the mirror image back up; one-hot label planes join the image,
    and by default the decoder redraws them (11 output channels).

    Args:
        output_labels: False gives the natural variant with image channels alone.
        image_shape: (channels, height, width) of other data sets.
        num_classes: of other data sets; 0 leaves labels out, which makes it a plain VAE.

    Example:
        >>> sum(p.numel() for p in bloodmnist_reference().parameters())
        3348811
        >>> sum(p.numel() for p in bloodmnist_reference(output_labels=False).parameters())
        3347651
    """
    latent, outputs = 128, image_shape[0] + (num_classes if output_labels else 0)
    return ConditionalVAE(
        conditioner=OneHot(num_classes) if num_classes else Unconditional(),
        encoder=ConvEncoder(image_shape, num_classes, latent, channels=REFERENCE_CHANNELS, strides=REFERENCE_STRIDES),
        reparameterizer=Gaussian(),
        prior=StandardNormal(latent),
        decoder=DeconvDecoder(
            (outputs, *image_shape[1:]),
            latent,
            num_classes,
            channels=REFERENCE_CHANNELS[::-1],
            strides=REFERENCE_STRIDES[::-1],
        ),
        likelihood=Bernoulli(),
        output_labels=output_labels and num_classes > 0,
        image_shape=image_shape,
    )


def smears_demo(image_shape: tuple[int, int, int] = (3, 28, 28), num_classes: int = 8) -> ConditionalVAE:
    """A small conditional VAE that learns the built-in images in a minute or two.

    Example:
        >>> smears_demo().image_shape
        (3, 28, 28)
    """
    return conditional_vae(image_shape, num_classes, latent=16, width=32)


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained.

    Attributes:
        model: called with image_shape, num_classes and the options it names.
        training: `epochs` and `batch_size` for :func:`condgen.fit`.

    Example:
        >>> RECIPES["default"].build((1, 8, 8), 2, latent=4).noise_shapes
        {'z': (4,)}
    """

    model: Callable[..., ConditionalVAE]
    training: dict[str, Any]

    def build(self, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> ConditionalVAE:
        """The model for images of this shape with this many classes.

        Raises:
            ValueError: for options that the recipe fixes.
        """
        known = set(inspect.signature(self.model).parameters)
        if fixed := sorted(set(options) - known):
            open_ = ", ".join(sorted(known - {"image_shape", "num_classes"})) or "nothing"
            raise ValueError(f"{self.model.__name__} fixes {', '.join(fixed)}; it leaves open: {open_}.")
        return self.model(image_shape=image_shape, num_classes=num_classes, **options)


RECIPES = {
    "default": Recipe(conditional_vae, {"epochs": 50, "batch_size": 128}),
    "bloodmnist_reference": Recipe(bloodmnist_reference, {"epochs": 300, "batch_size": 128}),
    "smears_demo": Recipe(smears_demo, {"epochs": 20, "batch_size": 128}),
}
