"""Latents of one level or several: z is a tensor, or a tuple of tensors, and its noise goes by name.

Shapes are written as a prior's `noise_shape`: (128,) is a vector, (8, 7, 7) a map, ((4,), (2, 4, 4)) are two levels.
"""

__all__ = ["check_latents", "gathered", "latent_noise", "latent_shapes", "levels", "tempered", "with_border"]

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Latent = Tensor | tuple[Tensor, ...]


def levels(z: Any) -> tuple[Any, ...]:
    """One tensor (or distribution) a level.

    Example:
        >>> len(levels(torch.zeros(2, 4))), len(levels((torch.zeros(2, 4), torch.zeros(2, 1))))
        (1, 2)
    """
    return z if isinstance(z, tuple) else (z,)


def gathered(parts: Sequence[Any]) -> Any:
    """The opposite of :func:`levels`: a single level is no tuple.

    Example:
        >>> gathered([1]), gathered([1, 2])
        (1, (1, 2))
    """
    return tuple(parts) if len(parts) > 1 else parts[0]


def latent_shapes(noise_shape: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the noise that a prior asks for.

    Example:
        >>> latent_shapes((8, 7, 7)), latent_shapes(((4,), (2, 4, 4)))
        ({'z': (8, 7, 7)}, {'z0': (4,), 'z1': (2, 4, 4)})
    """
    if any(not isinstance(size, int) for size in noise_shape):
        return {f"z{level}": tuple(shape) for level, shape in enumerate(noise_shape)}
    return {"z": tuple(noise_shape)}


def check_latents(q: Any, noise_shape: Sequence[Any]) -> None:
    """Raise unless prior and posterior agree: a single latent would be broadcast over the others.

    Args:
        q: the posterior, or one for each level.
        noise_shape: of the prior.

    Raises:
        ValueError: telling both shapes.

    Example:
        >>> from torch.distributions import Independent, Normal
        >>> check_latents(Independent(Normal(torch.zeros(3, 4), torch.ones(3, 4)), 1), (4,))
    """
    found = [tuple(own.event_shape) for own in levels(q)]
    expected = [*latent_shapes(noise_shape).values()]
    if found != expected:
        wanted, got = (", ".join(f"({', '.join(map(str, own))})" for own in shapes) for shapes in (expected, found))
        raise ValueError(
            f"Expected an encoder for the prior's z of shape {wanted}; got a posterior of shape {got}. Give encoder "
            "and prior the same latents."
        )


def latent_noise(noise: Mapping[str, Tensor]) -> Latent:
    """The latents' noise, without names.

    Example:
        >>> latent_noise({"z0": torch.zeros(1), "z1": torch.ones(2), "label": torch.ones(3)})
        (tensor([0.]), tensor([1., 1.]))
    """
    return noise["z"] if "z" in noise else tuple(noise[name] for name in noise if name[:1] == "z")


def tempered(noise: Mapping[str, Tensor], temperature: float, choices: int = 0) -> dict[str, Tensor]:
    """Noise scaled by the temperature, except what only chooses: a mixture's first number picks the component.

    Args:
        noise: by name; what is no latent's stays as it is.
        temperature: 1 changes nothing.
        choices: how many leading numbers of a latent's noise are choices.

    Example:
        >>> tempered({"z": torch.ones(1, 3)}, 0.5, choices=1)["z"]
        tensor([[1.0000, 0.5000, 0.5000]])
    """

    def scaled(values: Tensor) -> Tensor:
        return (
            torch.cat([values[:, :choices], temperature * values[:, choices:]], 1) if choices else temperature * values
        )

    return {name: scaled(values) if name[:1] == "z" else values for name, values in noise.items()}


def with_border(z: Latent, other: Latent) -> Tensor:
    """Maps of latents with the border of other maps: a seventh of each side, at least one place.

    Args:
        z: (batch, channels, height, width).
        other: the same.

    Raises:
        ValueError: for latents that are no map of at least 3x3.

    Example:
        >>> found = with_border(torch.ones(1, 1, 7, 7), torch.zeros(1, 1, 7, 7))
        >>> int(found.sum()), int(found[0, 0, 0].sum())
        (25, 0)
    """
    if isinstance(z, tuple) or isinstance(other, tuple) or z.ndim != 4 or min(z.shape[2:]) < 3:
        got = "several levels" if isinstance(z, tuple) else f"latents of shape {tuple(z.shape[1:])}"
        raise ValueError(f"Expected a map of latents of at least 3x3 for a background; got {got}. Leave it out.")
    down, across = (max(1, round(side / 7)) for side in z.shape[2:])
    found = other.clone()
    found[..., down:-down, across:-across] = z[..., down:-down, across:-across]
    return found
