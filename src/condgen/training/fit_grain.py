"""Estimating the grain of a trained model: the fine random texture that its decoder leaves out of images."""

__all__ = ["fit_grain"]

from typing import Any

import torch

from condgen.data.adapters import as_labelled
from condgen.data.batches import image_tensor
from condgen.distributions.grain import Grain
from condgen.io.progress import working
from condgen.random import permutation
from condgen.training.fit import resolve_splits

BATCH = 64
IMAGES = 2000  # by which grain is estimated, at most
PIXELS = IMAGES * 64**2  # of all of these


def fit_grain(model: Any, data: Any, *, images: int = IMAGES, seed: int = 0, progress: bool = True) -> Grain:
    """Add grain to the samples of a trained model: the fine texture that real images have and reconstructions lack.

    The power spectra of training images and of their reconstructions are compared; the difference, above a quarter of
    a cycle per pixel, is drawn as noise on every sample and variation from now on (`model.grain`), stronger where there
    is more detail around. It takes seconds. It is meant for sharp decoders, whose images lack little else: of a blurred
    decoder it would make noisy blurred images.

    Args:
        model: a trained model with an encoder.
        data: what it was trained on; of a set with splits its `train` part.
        images: that are compared, at most; of images larger than 64x64 fewer, so that memory stays as it is.
        seed: chooses them.
        progress: tell how far it is.

    Returns:
        The grain, now `model.grain`.

    Raises:
        ValueError: for a model without an encoder, or fewer than two images.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(100, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> plain = model.sample([0, 1])
        >>> grain = condgen.fit_grain(model, cells)
        >>> grain is model.grain, torch.equal(model.sample([0, 1]), plain)
        (True, False)
    """
    if not hasattr(model, "reconstruct"):
        raise ValueError(f"Expected a model that reconstructs images, a VAE; got {type(model).__name__}.")
    train = resolve_splits(as_labelled(data), None)[0].ordered(model.class_names)
    if min(images, len(train)) < 2:
        raise ValueError(f"Expected at least two images to compare; got {min(images, len(train))}.")
    most = max(2, PIXELS // (train.image_shape[1] * train.image_shape[2]))
    chosen = permutation(len(train), seed, 0)[: min(images, most)].numpy()
    pairs = []
    with working("estimating the grain", len(chosen), progress) as advance:
        for first in range(0, len(chosen), BATCH):
            some = train.subset(chosen[first : first + BATCH])
            x = image_tensor(some.images)
            pairs.append(torch.stack([x, model.reconstruct(some.images, some.labels).to(x)]))
            advance(len(some))
    real, drawn = torch.cat(pairs, 1)
    grain = Grain(train.image_shape)
    grain.estimate(real, drawn)
    model.grain = grain.to(device=model.device, dtype=model.dtype).eval()
    return model.grain
