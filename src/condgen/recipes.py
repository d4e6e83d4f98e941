"""Recipes: named assemblies with the numbers to train them, as data."""

__all__ = ["RECIPES", "Recipe", "bloodmnist_reference", "latent_map", "smears_demo"]

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from condgen.augmentations import Augmentation
from condgen.conditioners import OneHot, Unconditional
from condgen.cvae import ConditionalVAE, conditional_vae
from condgen.decoders import DeconvDecoder
from condgen.encoders import ConvEncoder
from condgen.layers import halvings
from condgen.likelihoods import Bernoulli, Laplace
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


def latent_map(
    image_shape: tuple[int, int, int] = (3, 28, 28),
    num_classes: int = 8,
    channels: int = 4,
    width: int = 48,
    depth: int = 1,
    conditioner: nn.Module | None = None,
) -> ConditionalVAE:
    """Residual networks with a map of latents and a Laplace likelihood: sharp, once a prior is fitted to the latents.

    Args:
        image_shape: (channels, height, width), from 8x8 up.
        num_classes: 0 leaves labels out.
        channels: of the map, which is the first of at most 8x8 that halving the image leads to.
        width: channels of the first map of features.
        depth: residual blocks on each map.
        conditioner: instead of one-hot labels.

    Example:
        >>> latent_map().noise_shapes, latent_map((1, 64, 48), 2).noise_shapes
        ({'z': (4, 7, 7)}, {'z': (4, 8, 6)})
    """
    sizes = halvings(image_shape[1:])
    place = next((size for size in sizes[1:] if max(size) <= 8), sizes[-1])
    return conditional_vae(
        image_shape,
        num_classes,
        latent=(channels, *place),
        width=width,
        depth=depth,
        conditioner=conditioner,
        likelihood=Laplace("optimal"),
    )


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained.

    Attributes:
        model: called with image_shape, num_classes and the options it names.
        training: numbers for :func:`condgen.fit` that are not the usual ones (`USUAL`).

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

    def numbers(self, **chosen: Any) -> dict[str, Any]:
        """How it is trained: the usual numbers, over them the recipe's, over them those chosen (None: not chosen).

        Example:
            >>> RECIPES["default"].numbers(epochs=3, batch_size=None)["epochs"]
            3
        """
        return {**USUAL, **self.training, **{name: value for name, value in chosen.items() if value is not None}}


USUAL = {
    **{"epochs": 50, "batch_size": 128, "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 1e-3},
    **{"betas": (0.9, 0.99), "rise": 0.0, "decay": 0.0, "clip": None, "ema": None, "precision": "32-true"},
    **{"beta": 1.0, "augment": None, "sampler": "none", "components": 16},
}
RECIPES = {
    "default": Recipe(conditional_vae, {"epochs": 50, "batch_size": 128}),
    "bloodmnist_reference": Recipe(bloodmnist_reference, {"epochs": 300, "batch_size": 128}),
    "latent_map": Recipe(
        latent_map,
        {
            **{"epochs": 50, "batch_size": 64, "optimizer": "adamw", "learning_rate": 8e-4, "betas": (0.5, 0.95)},
            **{"rise": 0.1, "decay": 0.4, "clip": 1.0, "ema": 0.998, "precision": "bf16-mixed", "beta": 0.25},
            **{"augment": Augmentation(flips=True, quarter_turns=True), "sampler": "mixture"},
        },
    ),
    "smears_demo": Recipe(smears_demo, {"epochs": 20, "batch_size": 128}),
}
