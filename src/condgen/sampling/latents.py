"""Paths between latents, and images drawn again under other labels."""

__all__ = ["interpolate", "transfer"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.data.convert import forwards
from condgen.io.pictures import Images
from condgen.nn.parts import evaluating


def interpolate(
    model: Any,
    first: Tensor | np.ndarray,
    last: Tensor | np.ndarray,
    y: Any,
    *,
    steps: int = 8,
    spherical: bool = False,
) -> Float[Tensor, "steps channels height width"]:
    """Images on the way between two images or two latents, ends included.

    Args:
        model: with an encoder and a decoder.
        first: one image of the model's shape (channels, height, width), or one latent of the shape of its z.
        last: the same.
        y: one label for all steps, or a pair of labels with which to encode `first` and `last`; the steps are then
            drawn with the first label up to the middle and the second from there on.
        steps: number of images, at least 2.
        spherical: along the great circle, which keeps the length that a prior's draws have, instead of straight.

    Raises:
        ValueError: for fewer than two steps, a tuple of other than two labels, or ends of another shape.

    Example:
        >>> import condgen
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=3, latent=4)
        >>> interpolate(model, torch.zeros(4), torch.ones(4), 2, steps=5).shape
        torch.Size([5, 1, 8, 8])
    """
    if steps < 2:
        raise ValueError(f"Expected at least 2 steps, the two ends; got {steps}.")
    ends = list(y) if isinstance(y, tuple) else [y, y]
    if len(ends) != 2:
        raise ValueError(f"Expected one label or a pair of labels; got {y}. Several columns go into a list.")
    z0, z1 = (latent_of(model, end, label) for end, label in zip((first, last), ends, strict=True))
    t = torch.linspace(0, 1, steps, device=z0.device, dtype=z0.dtype).reshape(-1, *[1] * z0.ndim)
    z = slerp(z0, z1, t) if spherical else torch.lerp(z0[None].expand(steps, *z0.shape), z1[None], t)
    labels = model.labels([ends[0] if k < (steps + 1) // 2 else ends[1] for k in range(steps)])
    return decoded(model, z, labels)


def latent_of(model: Any, end: Tensor | np.ndarray, label: Any) -> Float[Tensor, "*latent"]:
    """The latent of one image, or the latent itself; where z has the shape of an image, an image is meant."""
    shapes = {"an image": tuple(model.image_shape or ()), "a latent": tuple(model.prior.noise_shape)}
    if tuple(np.shape(end)) == shapes["an image"]:
        return model.encode(torch.as_tensor(forwards(end))[None], [label])[0]
    if tuple(np.shape(end)) != shapes["a latent"]:
        expected = " or ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
        raise ValueError(f"Expected {expected}; got {tuple(np.shape(end))}. Pass one of them, without a batch.")
    return torch.as_tensor(forwards(end), device=model.device, dtype=model.dtype)


def slerp(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    """Interpolate latents along the great circle from z0 to z1; straight where they point the same or opposite ways."""
    cosine = torch.dot(z0.flatten(), z1.flatten()) / (z0.norm() * z1.norm()).clamp(min=1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle.sin() < 1e-3:  # rounding of the cosine in float32 alone makes an angle of 0.0003
        return (1 - t) * z0 + t * z1
    return (torch.sin((1 - t) * angle) * z0 + torch.sin(t * angle) * z1) / angle.sin()


def transfer(model: Any, x: Tensor | np.ndarray, y: Any, labels: Sequence[Any]) -> Float[Tensor, "batch labels c h w"]:
    """Label swap: the latent of each image, drawn again as each of `labels`.

    Args:
        model: with an encoder and a decoder.
        x: images.
        y: their own labels.
        labels: the labels to draw them as.

    Example:
        >>> import condgen
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=3)
        >>> transfer(model, torch.zeros(2, 1, 8, 8), [0, 1], labels=[0, 1, 2]).shape
        torch.Size([2, 3, 1, 8, 8])
    """
    z = model.encode(x, y)
    drawn = [decoded(model, z, model.labels([label] * len(z))) for label in labels]
    return torch.stack(drawn, dim=1)


@torch.no_grad()
def decoded(model: Any, z: Tensor, y: Tensor) -> Images:
    """The mean image of latents on the model's device."""
    with evaluating(model):
        return model.decode(z.to(y.device), y).mean
