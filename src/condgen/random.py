r"""Noise as an argument: normal numbers that are a function of (seed, index, stream, shape).

Nothing in condgen draws from a global generator. Every random number comes from the counter-based generator
Philox-4x32-10, whose output is a function of a key (the seed) and a counter (image index, stream, block).
So image ``i`` of seed ``s`` gets the same numbers in any batch, in any order, on any number of machines, and
resuming needs no generator state.

References:
    Parallel random numbers: as easy as 1, 2, 3 (Salmon, Moraes, Dror & Shaw, 2011),
    https://doi.org/10.1145/2063384.2063405
"""

__all__ = ["Use", "normal", "normals", "permutation", "philox", "stream", "uniform"]

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum

import torch
from jaxtyping import Float, Int64
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF  # 32 bits; words are kept in int64 tensors, torch has no arithmetic on uint32


class Use(IntEnum):
    """What a stream of random numbers is for; two uses never share a number."""

    ORDER = 0
    TRAINING = 1
    VALIDATION = 2
    SAMPLING = 3
    POSTERIOR = 4
    DEQUANTIZATION = 5
    DATA = 6
    AUGMENTATION = 7
    VARIATION = 8
    DISTILLATION = 9


def stream(use: Use, step: int = 0, level: int = 0) -> int:
    """The 32-bit stream number of a use, a step (an epoch, the number of a draw) and a latent level.

    Args:
        use: what the numbers are for.
        step: epoch or draw, in [0, 2**20).
        level: latent level or any further division, in [0, 256).

    Raises:
        ValueError: if step or level is out of range.

    Example:
        >>> stream(Use.TRAINING, step=3) != stream(Use.TRAINING, step=4)
        True
    """
    if not (0 <= step < 2**20 and 0 <= level < 2**8):
        raise ValueError(f"Expected step in [0, {2**20}) and level in [0, 256); got {step} and {level}.")
    return (use << 28) | (step << 8) | level


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Ten rounds of Philox-4x32: four words in, four scrambled words out.

    Args:
        counter: four int64 tensors of one shape (or shapes that broadcast) with values in [0, 2**32).
        key: two words in [0, 2**32).

    Returns:
        Four int64 tensors with values in [0, 2**32).

    Example:
        >>> words = philox([torch.zeros(1, dtype=torch.int64)] * 4, (0, 0))
        >>> [f"{int(word):08x}" for word in words]  # the first published test vector
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two words wraps around in int64; its upper and lower words are exact all the same.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & WORD) ^ c1 ^ k0,
            p1 & WORD,
            ((p0 >> 32) & WORD) ^ c3 ^ k1,
            p0 & WORD,
        )
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & WORD, (k1 + KEY_INCREMENTS[1]) & WORD
    return [c0, c1, c2, c3]


def words(seed: int, index: Int64[Tensor, " batch"], stream: int, count: int) -> Int64[Tensor, "batch count"]:
    """`count` random 32-bit words for every index."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"Expected a seed in [0, 2**64); got {seed}. Pass a non-negative integer.")
    block = torch.arange(-(-count // 4), device=index.device)
    index = index[:, None]
    counter = (block, index & WORD, (index >> 32) & WORD, torch.full_like(block, stream))
    return torch.stack(philox(counter, (seed & WORD, seed >> 32)), dim=-1).flatten(1)[:, :count]


def uniform(
    seed: int, index: Int64[Tensor, " batch"], stream: int, shape: Sequence[int]
) -> Float[Tensor, "batch *shape"]:
    """Uniform numbers in the open interval (0, 1), float64, one row of `shape` for every index, on its device.

    Example:
        >>> u = uniform(0, torch.arange(1000), stream(Use.DATA), (4,))
        >>> u.shape, bool((0 < u).all() and (u < 1).all())
        (torch.Size([1000, 4]), True)
    """
    bits = words(seed, index, stream, math.prod(shape))
    return ((bits.double() + 0.5) * 2.0**-32).unflatten(1, tuple(shape) or (1,)).reshape(-1, *shape)


def normal(
    seed: int,
    index: Int64[Tensor, " batch"],
    stream: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "batch *shape"]:
    r"""Standard normal noise of shape (batch, \*shape), one row for every index, on the device of `index`.

    Row r depends on `seed`, `index[r]`, `stream` and `shape` alone: the same bits on CPU for any batch, equal
    to 1e-6 on another device. Words become normals by Box-Muller in float64.

    Args:
        seed: in [0, 2**64).
        index: which images (or samples) the noise is for.
        stream: see :func:`stream`.
        shape: shape of one image's noise.
        dtype: of the result.

    Example:
        >>> whole = normal(0, torch.arange(100), stream(Use.SAMPLING), (128,))
        >>> part = normal(0, torch.arange(40, 60), stream(Use.SAMPLING), (128,))
        >>> torch.equal(whole[40:60], part)
        True
    """
    if index.device.type == "mps":  # which has no float64
        return normal(seed, index.cpu(), stream, shape, dtype).to(index.device)
    count = math.prod(shape)
    u = uniform(seed, index, stream, (-(-count // 2), 2))
    radius, angle = torch.sqrt(-2.0 * torch.log(u[..., 0])), 2.0 * math.pi * u[..., 1]
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pairs.flatten(1)[:, :count].to(dtype).reshape(-1, *shape)


def permutation(n: int, seed: int, epoch: int, device: torch.device | str = "cpu") -> Int64[Tensor, " n"]:
    """An order of n images as a function of a seed and an epoch number.

    Example:
        >>> permutation(5, seed=0, epoch=0).sort().values
        tensor([0, 1, 2, 3, 4])
    """
    index = torch.arange(n, device=device)
    high, low = words(seed, index, stream(Use.ORDER, epoch), 2).unbind(1)
    return torch.argsort((high << 31) | (low >> 1), stable=True)


def normals(
    shapes: Mapping[str, Sequence[int]],
    seed: int,
    index: Int64[Tensor, " batch"],
    use: Use,
    step: int = 0,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The noise a model asks for by name (its `noise_shapes`), each name on a level of its own.

    Example:
        >>> noise = normals({"z": (16,)}, seed=0, index=torch.arange(4), use=Use.SAMPLING)
        >>> noise["z"].shape
        torch.Size([4, 16])
    """
    dtype = dtype or torch.get_default_dtype()
    return {
        name: normal(seed, index, stream(use, step, level), shape, dtype)
        for level, (name, shape) in enumerate(shapes.items())
    }
