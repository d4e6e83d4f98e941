"""Mixing: images to train on whose labels, and latents, lie between those of their class and those of another.

A decoder that is told the label draws a texture for it that real images do not have. A classifier that is trained on
such images learns the texture instead of the class, unless labels are mixed. And where two classes meet, draws of
either are few: images in between, labelled by a teacher, show a classifier where one class ends.
"""

__all__ = ["mixed", "mixing_noise"]

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from condgen.models.latents import latent_shapes
from condgen.nn.conditioners import without_dropout

OTHER = "other"  # the noise that chooses the other class
OTHER_LATENT, SHARE = "z_other", "share"  # the noise of its latent, and of how far the way goes


def mixing_noise(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the noise that mixing an image with another class takes; empty for a model that mixes none.

    Args:
        model: with `label_mixing`, `latent_mixing`, `conditioner` and `source`.

    Raises:
        ValueError: for a number out of range, labels that are no classes, or latents of several levels to be mixed.

    Example:
        >>> import condgen
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2, latent=4)
        >>> model.label_mixing = 0.25
        >>> mixing_noise(model)
        {'other': (2,)}
        >>> model.latent_mixing = 0.5
        >>> mixing_noise(model)
        {'other': (2,), 'z_other': (4,), 'share': ()}
    """
    asked = {name: getattr(model, name) for name in ("label_mixing", "latent_mixing") if getattr(model, name)}
    if not asked:
        return {}
    classes = getattr(without_dropout(model.conditioner), "num_classes", 0)
    for name, value in asked.items():
        if not classes or not 0 <= value <= 1:
            raise ValueError(
                f"Expected {name} from 0 to 1, and above 0 only where labels are classes; got {value} and "
                f"{type(model.conditioner).__name__}. Set model.{name} = 0."
            )
    if not model.latent_mixing:
        return {OTHER: (classes,)}
    shapes = latent_shapes(model.source.noise_shape)
    if "z" not in shapes:
        raise ValueError(
            f"Expected latents of one level for latent_mixing; got {len(shapes)}. Set model.latent_mixing = 0."
        )
    return {OTHER: (classes,), OTHER_LATENT: shapes["z"], SHARE: ()}


def mixed(model: Any, z: Any, c: Float[Tensor, "batch dim"], noise: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """Move latents and conditions of images towards those of another class, which the noise chooses for each.

    The condition goes `model.label_mixing` of the way. The latents of every second image go towards a draw of the other
    class, by a share of the way that is uniform from 0 to `model.latent_mixing`; other images keep theirs.

    Args:
        model: with `label_mixing`, `latent_mixing`, `condition` and `source`.
        z: latents.
        c: conditions of the labels.
        noise: standard normal, one tensor for every name in :func:`mixing_noise`.

    Example:
        >>> import condgen
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2)
        >>> model.label_mixing = 0.25
        >>> z, c = mixed(model, torch.zeros(1, 128), torch.tensor([[1.0, 0.0]]), {OTHER: torch.tensor([[-1.0, 1.0]])})
        >>> c
        tensor([[0.7500, 0.2500]])
    """
    if not model.label_mixing and not model.latent_mixing:
        return z, c
    other = model.condition(noise[OTHER].argmax(1))
    if model.latent_mixing:
        share = model.latent_mixing * torch.erf(noise[SHARE] / math.sqrt(2)).clamp(min=0)
        middle = prior_mean(model, z)
        z = middle + towards(z - middle, model.source.draw(other, noise[OTHER_LATENT]) - middle, share)
    return z, torch.lerp(c, other, model.label_mixing)


def towards(
    z: Float[Tensor, "batch *latent"], other: Float[Tensor, "batch *latent"], share: Float[Tensor, " batch"]
) -> Float[Tensor, "batch *latent"]:
    """Move latents, spread about 0, a share of the way to others, without making them less spread.

    Example:
        >>> towards(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))
        tensor([[0.7071, 0.7071]])
    """
    t = share.view(-1, *[1] * (z.ndim - 1)).to(z.dtype)
    return torch.lerp(z, other, t) / (t.square() + (1 - t).square()).sqrt()


def prior_mean(model: Any, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "*latent"]:
    """Mean latent over all classes, by the prior that samples come from; zeros where that prior has no known mean."""
    source = getattr(model.source, "source", model.source)  # of a flow, the start: its field hardly moves the mean
    classes = torch.arange(without_dropout(model.conditioner).num_classes, device=z.device)
    try:
        return source(model.condition(classes)).mean.expand(len(classes), *z.shape[1:]).mean(0)
    except (NotImplementedError, AttributeError):
        return torch.zeros_like(z[0])
