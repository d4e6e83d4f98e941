"""Reconstruction: how much of an image comes back."""

__all__ = ["PSNR_LIMIT", "feature_distance", "psnr", "reconstruction_measures", "ssim"]

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.evaluation.records import Measure, about, average
from condgen.random import permutation

Embed = Callable[[Tensor], Tensor]
PSNR_LIMIT = 10 * math.log10(12 * 255**2)  # of images whose only error is rounding to 256 grey levels, 58.9 dB
BATCH = 128
PAIRED = 1000  # images among which pairs are taken
LEAST = 10  # images of which anything is said


def psnr(
    x: Float[Tensor, "batch channels height width"], reconstruction: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, " batch"]:
    r"""Peak signal-to-noise ratio of each image, in dB: :math:`-10 \log_{10}` of the mean squared error.

    At most `PSNR_LIMIT`, 58.9 dB: the error of images that were merely rounded to 256 grey levels, beyond which nothing
    could be seen in a file. So equal images have a finite value.

    Args:
        x: images in [0, 1].
        reconstruction: the same images again.

    Raises:
        ValueError: if shapes differ.

    Example:
        >>> x = torch.zeros(1, 1, 8, 8)
        >>> psnr(x, x + 0.1), psnr(x, x)
        (tensor([20.]), tensor([58.9...]))
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    check_pair(x, reconstruction)
    ratio = peak_signal_noise_ratio(reconstruction, x, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return ratio.clamp(max=PSNR_LIMIT)


def ssim(
    x: Float[Tensor, "batch channels height width"], reconstruction: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, " batch"]:
    """Structural similarity of each image, in [-1, 1]; 1 for equal images.

    The usual Gaussian window of 1.5 pixels, cut off to 11 by 11, images reflected at their borders. In images of fewer
    than 11 pixels a side it is narrowed to the largest that fits, in proportion.

    Args:
        x: images in [0, 1], at least 3 pixels a side.
        reconstruction: the same images again.

    Raises:
        ValueError: if shapes differ, images are too small or there are none.

    References:
        Image quality assessment: from error visibility to structural similarity (Wang, Bovik, Sheikh & Simoncelli,
        2004), https://doi.org/10.1109/TIP.2003.819861

    Example:
        >>> x = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
        >>> ssim(x, x), bool(ssim(x, 1 - x) < 0)
        (tensor([1.]), True)
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(x, reconstruction)
    reach = min(5, (min(x.shape[2:]) - 1) // 2)
    if reach < 1 or not len(x):
        raise ValueError(f"Expected images of at least 3 pixels a side; got {tuple(x.shape)}.")
    sigma = 0.3 * reach  # of which the window reaches 3.5 to either side, rounded
    parts = []
    for own, again in zip(x.split(BATCH), reconstruction.split(BATCH), strict=True):
        # The map, since versions differ in whether they average the borders too.
        _, similarity = structural_similarity_index_measure(
            again, own, sigma=sigma, data_range=1.0, reduction="none", return_full_image=True
        )
        parts.append(similarity.flatten(1).mean(1))
    return torch.cat(parts)


def feature_distance(
    real: Float[Tensor, "batch features"], other: Float[Tensor, "batch features"]
) -> Float[Tensor, " batch"]:
    """Euclidean distance of each pair, in mean distances between two different real images.

    Args:
        real: features of real images.
        other: features of the same images, reconstructed.

    Returns:
        0 for equal features, about 1 for unrelated images.

    Raises:
        ValueError: if shapes differ, there are fewer than two images, or all real ones have the same features.

    Example:
        >>> feature_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [3.0]]))
        tensor([0.0000, 0.5000])
    """
    return paired_distance(real, other) / spread(real)


def reconstruction_measures(
    model: Any,
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    names: Sequence[str] = (),
    embed: Embed | None = None,
    train: LabelledImages | None = None,
) -> dict[str, Measure]:
    """How well images come back from their latents.

    Args:
        model: that infers latents (`infer`).
        images: real images (n, channels, height, width), uint8 or floats in [0, 1].
        labels: of each, what the model takes.
        names: of the classes, where labels are classes; none: nothing is said of single classes.
        embed: images (n, channels, height, width) in [0, 1] → features (n, d), such as
            `lambda x: judge.embed(x).late`; without it there is no `reconstruction_distance`.
        train: training images; what showing the mean one of each class reaches is the floor.

    Returns:
        `psnr` (dB), `ssim` and `reconstruction_distance`.

    Raises:
        ValueError: if there are not as many labels as images, or images and model do not fit.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(20, size=16)
        >>> model = condgen.conditional_vae((3, 16, 16), num_classes=8, latent=4, width=8)
        >>> found = reconstruction_measures(model, cells.images, cells.labels, cells.class_names, train=cells)
        >>> found["psnr"].overall < found["psnr"].floor  # an untrained model
        True
    """
    x = pictures(images)
    check_labels(x, labels)
    reconstruction = torch.cat(
        [model.reconstruct(x[at], labels[at.start : at.stop]).float().cpu() for at in slices(len(x))]
    )
    mean = None if train is None else class_means(train, labels)
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim}
    if embed is not None:
        real = embed(x)
        scale = spread(real)
        functions["reconstruction_distance"] = lambda _, other: paired_distance(real, embed(other)) / scale
    found = {
        name: average(
            function(x, reconstruction),
            labels,
            names,
            None if mean is None else function(x, mean.clamp(0, 1)),
            **about(name),
        )
        for name, function in functions.items()
    }
    if embed is None:
        why = "No features were given to measure distances in."
        found["reconstruction_distance"] = Measure(None, reason=why, **about("reconstruction_distance"))
    return found


def class_means(train: LabelledImages, labels: np.ndarray | Tensor) -> Float[Tensor, "batch channels height width"]:
    """For each label the mean training image of its class; NaN for a class without one."""
    means = torch.full((train.num_classes, *train.image_shape), math.nan)
    for label in np.unique(train.labels):
        own = train.images[train.labels == label]
        means[label] = torch.as_tensor(own.mean(0, dtype=np.float64) / 255)
    return means[torch.as_tensor(labels)]


def paired_distance(
    first: Float[Tensor, "batch features"], second: Float[Tensor, "batch features"]
) -> Float[Tensor, " batch"]:
    """Euclidean distance of each row of one from the same row of the other."""
    check_pair(first, second)
    return (first - second).square().sum(1).sqrt()


def spread(real: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    """Mean distance between two different rows, among a thousand of them at most."""
    some = real[permutation(len(real), 0, 0)[:PAIRED]]
    distance = torch.pdist(some).mean() if len(some) > 1 else torch.zeros(())
    if not distance > 0:
        raise ValueError(
            f"Expected features of two different images or more; got {len(real)} rows without a distance between them."
        )
    return distance


def pictures(images: np.ndarray | Tensor) -> Float[Tensor, "batch channels height width"]:
    """Images in [0, 1] on the CPU."""
    return image_tensor(images).float().cpu()


def slices(n: int) -> Iterator[slice]:
    """Where each batch is."""
    return (slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH))


def check_pair(first: Tensor, second: Tensor) -> None:
    """Raise unless shapes agree."""
    if first.shape != second.shape:
        raise ValueError(f"Expected two sets of one shape; got {tuple(first.shape)} and {tuple(second.shape)}.")


def check_labels(x: np.ndarray | Tensor, labels: Any) -> None:
    """Raise unless there is one label an image, and at least one image."""
    if not len(x) or len(x) != len(labels):
        raise ValueError(f"Expected one label for each image; got {len(x)} images and {len(labels)} labels.")
