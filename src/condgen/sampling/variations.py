"""Variations: new images near given ones."""

__all__ = ["can_vary", "has_surroundings", "vary"]

from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from condgen.data.adapters import as_labelled
from condgen.io.pictures import Images
from condgen.io.progress import working
from condgen.models.latents import gathered, latent_noise, levels, with_border
from condgen.nn.parts import evaluating
from condgen.random import Use, normals, stream, uniform

BLOCK = 64  # images that are varied at once
BACKGROUND_LEVEL = 255  # of the stream VARIATION; latents have those from 0


def vary(
    model: Any,
    images: np.ndarray | Tensor,
    labels: Any,
    *,
    strength: float = 0.5,
    background: Any = None,
    seed: int = 0,
    start: int = 0,
    progress: bool = False,
) -> Float[Tensor, "batch channels height width"]:
    """Draw a new image near each of the given ones, with the same label.

    The result is in [0, 1], in the order of the images.

    A model that samples from a mixture or by flow matching moves the latents of an image within the component that most
    likely drew it; flows and diffusion models of pixels add noise to the image and take it away again. Images need not
    be among those that the model was trained on. For several variations of an image give it several times: variation k
    has noise of its own.

    Args:
        model: with an encoder, or a flow of pixels.
        images: (n, channels, height, width), uint8 or floats in [0, 1].
        labels: one for each.
        strength: how far to go, in [0, 1]: 0 gives what the model makes of the image itself (a reconstruction), and 1
            another image of its component.
        background: images, with labels of any class, from which the surroundings are taken: for each image a random one
            of them, the border of whose map of latents takes the place of its own.
        seed: of the noise, in [0, 2**64).
        start: number of the first variation; its noise depends on seed and number alone.
        progress: tell how far it is.

    Raises:
        ValueError: for a model that only draws (a GAN), a strength out of range, or images and labels that do not fit.

    References:
        SDEdit: guided image synthesis and editing with stochastic differential equations (Meng et al., 2022),
        https://arxiv.org/abs/2108.01073

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(100, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> near = vary(model, cells.images[:3], cells.labels[:3], strength=0.3)
        >>> part = vary(model, cells.images[1:3], cells.labels[1:3], strength=0.3, start=1)
        >>> near.shape, torch.allclose(part, near[1:], atol=1e-5)
        (torch.Size([3, 3, 16, 16]), True)
    """
    if not hasattr(model, "vary") and not hasattr(model, "posterior"):
        raise ValueError(
            f"Expected a model that finds its way back from an image, a VAE, a flow or a diffusion model; got "
            f"{type(model).__name__}, which only draws. Take its samples: model.sample(labels)."
        )
    if not 0 <= strength <= 1:
        raise ValueError(f"Expected a strength from 0 to 1; got {strength}.")
    x, y = model.pair(images, labels)
    if not len(x):
        raise ValueError("Expected at least one image; got none.")
    others = None if background is None else as_labelled(background, "background")
    found = []
    with torch.no_grad(), evaluating(model), working("varying images", len(x), progress) as advance:
        for first in range(0, len(x), BLOCK):
            part = slice(first, first + BLOCK)
            index = torch.arange(start + first, start + first + len(x[part]), device=model.device)
            noise = normals(model.sampling_noise_shapes, seed, index, Use.VARIATION, dtype=model.dtype)
            behind = None
            if others is not None:
                places = background_of(index.cpu(), len(others), seed)
                behind = model.pair(others.images[places], others.labels[places])
            varied = model.vary if hasattr(model, "vary") else partial(vary_latents, model)
            found.append(varied(x[part], y[part], noise, strength, behind))
            advance(len(index))
    return torch.cat(found)


def can_vary(model: Any) -> bool:
    """Whether a model finds its way back from an image: a VAE with a prior that moves latents, or a flow of pixels.

    Example:
        >>> import condgen
        >>> can_vary(condgen.conditional_vae((1, 8, 8), 2)), can_vary(condgen.conditional_gan((1, 8, 8), 2))
        (True, False)
    """
    return hasattr(model, "vary") or (hasattr(model, "posterior") and hasattr(model.source, "vary"))


def has_surroundings(model: Any) -> bool:
    """Whether variations by a model can have the surroundings of other images: it has a map of latents of 3x3 or more.

    Example:
        >>> import condgen
        >>> has_surroundings(condgen.conditional_vae((1, 8, 8), 2, latent=(2, 4, 4)))
        True
    """
    shape: Any = getattr(getattr(model, "prior", None), "noise_shape", ())
    return len(shape) == 3 and isinstance(shape[0], int) and min(shape[1:]) >= 3


def vary_latents(
    model: Any,
    x: Images,
    y: Tensor,
    noise: dict[str, Tensor],
    strength: float,
    background: tuple[Images, Tensor] | None,
) -> Images:
    """Variations by a VAE: the latents of images are moved within the prior that samples come from, and decoded again.

    Args:
        model: a VAE.
        x: images in [0, 1].
        y: their labels.
        noise: standard normal, one tensor for every name in `sampling_noise_shapes`.
        strength: how far latents move, in [0, 1].
        background: as many other images with their labels; the border of their maps of latents takes the place of that
            of x.

    Raises:
        ValueError: for latents that cannot be moved so, or a background without a map of latents.
    """
    if not hasattr(model.source, "vary"):
        raise ValueError(
            f"Expected samples to be drawn from a normal, a mixture or flow matching; {type(model.source).__name__} "
            "has no way back from an image. Fit another one: condgen.fit_prior(model, data, GaussianMixture(...))."
        )
    z, c = gathered([q.mean for q in levels(model.posterior(x, y))]), model.condition(y)
    if background is not None:
        z = with_border(z, gathered([q.mean for q in levels(model.posterior(*background))]))
    moved = model.source.vary(z, c, latent_noise(noise), strength)
    return model.finish(moved, c, noise)


def background_of(index: Int64[Tensor, " n"], others: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Which of so many other images gives each variation its background; a function of seed and number."""
    u = uniform(seed, index, stream(Use.VARIATION, level=BACKGROUND_LEVEL), ())
    return (u * others).long().numpy()
