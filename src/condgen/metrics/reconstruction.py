"""Reconstruction and likelihood: what a model keeps of an image, and what it thinks of it.

Every figure is taken image by image; overall and per class they are means with a 95 % interval,
mean ± 1.96 standard errors over images.
"""

__all__ = [
    "PSNR_LIMIT",
    "average",
    "feature_distance",
    "likelihood_measures",
    "psnr",
    "reconstruction_measures",
    "ssim",
]

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.data import LabelledImages, image_tensor
from condgen.likelihoods import Bernoulli
from condgen.metrics.measures import Interval, Measure, members
from condgen.noise import Use, normals, permutation
from condgen.parts import evaluating

Embed = Callable[[Tensor], Tensor]
PSNR_LIMIT = 10 * math.log10(12 * 255**2)  # of images whose only error is rounding to 256 grey levels, 58.9 dB
BATCH = 128
PAIRED = 1000  # images among which pairs are taken

ABOUT: dict[str, dict[str, Any]] = {
    "psnr": {
        "better": "higher",
        "unit": "dB",
        "meaning": "Peak signal-to-noise ratio of reconstructions: how small the error of single pixels is. The floor "
        "is what showing the mean training image of the class reaches; a model must exceed it.",
    },
    "ssim": {
        "better": "higher",
        "unit": "",
        "meaning": "Structural similarity of reconstructions, 1 for equal images: whether edges and texture are where "
        "they were. The floor is what showing the mean training image of the class reaches; a model must exceed it.",
    },
    "reconstruction_distance": {
        "better": "lower",
        "unit": "mean distances of two real images",
        "meaning": "Distance between image and reconstruction in what the judge sees; 1 is as far as two real images "
        "taken at random. The floor is what showing the mean training image of the class reaches; a model must stay "
        "below it.",
    },
}
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "elbo": {
        "better": "higher",
        "meaning": "Evidence lower bound of real images, the quantity that training raises: log_likelihood - kl.",
    },
    "log_likelihood": {
        "better": "higher",
        "meaning": "How probable an image is, given latents inferred from it. The ceiling, if any, is each image "
        "predicted by itself.",
    },
    "kl": {
        "better": "lower",
        "meaning": "How much the latents tell about an image. It is the price of a good reconstruction: near 0 the "
        "latents are not used.",
    },
    "label_log_likelihood": {
        "better": "higher",
        "meaning": "How well the label planes are redrawn; it is no part of the other figures.",
    },
    "importance_weighted": {
        "better": "higher",
        "meaning": "A tighter bound on how probable a real image is under the model.",
    },
}
BITS: dict[str, Any] = {
    "better": "lower",
    "unit": "bits per pixel and channel",
    "meaning": "Length of a real image in a code made from the model; 8 is no compression at all.",
}


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
        model: any conditional VAE.
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
            **ABOUT[name],
        )
        for name, function in functions.items()
    }
    if embed is None:
        why = "No features were given to measure distances in."
        found["reconstruction_distance"] = Measure(None, reason=why, **ABOUT["reconstruction_distance"])
    return found


@torch.no_grad()
def likelihood_measures(
    model: Any,
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    names: Sequence[str] = (),
    *,
    samples: int = 16,
    seed: int = 0,
    chunk: int = 4,
) -> dict[str, Measure]:
    """What the model thinks of real images: the bound and its terms, tighter bounds, bits per dimension.

    One draw of z an image gives `elbo`, `log_likelihood`, `kl` and, where the model redraws label planes,
    `label_log_likelihood`; `samples` draws give `importance_weighted` and `bits_per_dimension`.

    Args:
        model: any conditional VAE.
        images: real images (n, channels, height, width), uint8 or floats in [0, 1].
        labels: of each, what the model takes.
        names: of the classes, where labels are classes; none: nothing is said of single classes.
        samples: draws of z an image.
        seed: of the draws.
        chunk: draws decoded at once, of 128 images, which bounds memory.

    Returns:
        Measures in nats per image, and `bits_per_dimension`, which has a reason instead of a value where the likelihood
        is no probability of grey levels, as `importance_weighted` has where the sampler only draws. Under binary
        cross-entropy the floor of `log_likelihood` is that of each image predicted by itself, which nothing exceeds;
        the others have none.

    Raises:
        ValueError: if there are not as many labels as images, or images and model do not fit.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(20, size=16)
        >>> model = condgen.conditional_vae((3, 16, 16), num_classes=8, latent=4, width=8)
        >>> found = likelihood_measures(model, cells.images, cells.labels, cells.class_names, samples=2)
        >>> found["elbo"].overall < found["log_likelihood"].floor, found["bits_per_dimension"].reason[:18]
        (True, 'Bits per dimension')
    """
    x = pictures(images)
    check_labels(x, labels)
    terms: dict[str, list[Tensor]] = {}
    unknown = density_unknown(model, labels)
    with evaluating(model):
        for at in slices(len(x)):
            y = labels[at.start : at.stop]
            own = bound(model, x[at], y, seed, at.start)
            if not unknown:
                own["importance_weighted"] = model.log_likelihood(
                    x[at], y, samples=samples, seed=seed, start=at.start, chunk=chunk
                )
            for name, values in own.items():
                terms.setdefault(name, []).append(values.double().cpu())
    found = {
        name: average(
            torch.cat(values), labels, names, unit="nats per image", **LIKELIHOODS[name], **floor_of(name, model, x)
        )
        for name, values in terms.items()
    }
    if unknown:
        found["importance_weighted"] = Measure(
            None, unit="nats per image", reason=unknown, **LIKELIHOODS["importance_weighted"]
        )
    return found | {"bits_per_dimension": bits(model, x, labels, names, samples, seed, chunk)}


def density_unknown(model: Any, labels: Any) -> str:
    """Why the model cannot tell the likelihood of an image; nothing where it can."""
    try:
        if hasattr(model, "check_density"):
            model.check_density(model.labels(labels[:1]))
    except ValueError as error:
        return f"Not available: {error}"
    return ""


def bound(model: Any, x: Tensor, labels: Any, seed: int, start: int) -> dict[str, Float[Tensor, " batch"]]:
    """The bound of each image and its terms, from one draw of z."""
    images, y = model.images(x), model.labels(labels)
    index = torch.arange(start, start + len(x), device=model.device)
    noise = normals(model.noise_shapes, seed, index, Use.VALIDATION, dtype=model.dtype)
    inference = model.infer(images, y, noise)
    terms = {
        "elbo": inference.log_likelihood - inference.kl,
        "log_likelihood": inference.log_likelihood,
        "kl": inference.kl,
    }
    if inference.label_log_likelihood is not None:
        terms["label_log_likelihood"] = inference.label_log_likelihood
    return terms


def floor_of(name: str, model: Any, x: Tensor) -> dict[str, Any]:
    """Floor of a likelihood, or why there is none."""
    likelihood = type(model.likelihood).__name__
    if name == "log_likelihood" and isinstance(model.likelihood, Bernoulli):
        return {"floor": -entropy(x)}
    return {"reason": f"Real images have no likelihood of their own under {likelihood}: no floor."}


def bits(model: Any, x: Tensor, labels: Any, names: Sequence[str], samples: int, seed: int, chunk: int) -> Measure:
    """Bits per dimension, or the model's reason to refuse."""
    try:
        parts = [
            model.bits_per_dimension(
                x[at], labels[at.start : at.stop], samples=samples, seed=seed, start=at.start, chunk=chunk
            )
            for at in slices(len(x))
        ]
    except ValueError as error:
        return Measure(None, reason=str(error), **BITS)
    reason = "Real images have no code length of their own: no floor."
    return average(torch.cat(parts).double().cpu(), labels, names, reason=reason, **BITS)


def average(
    values: Float[Tensor, " n"],
    labels: np.ndarray | Tensor,
    names: Sequence[str] = (),
    floor: Float[Tensor, " n"] | None = None,
    reason: str = "",
    **about: Any,
) -> Measure:
    """Mean over images of a figure, overall and per class, with mean ± 1.96 standard errors.

    Args:
        values: of each image.
        labels: of each image.
        names: of the classes; none: nothing is said of single classes.
        floor: the same figure of each image for the floor; NaN where it has none.
        reason: why something is None, if it is not that a class is absent.
        **about: `better`, `unit` and `meaning`.

    Example:
        >>> measure = average(torch.tensor([1.0, 2.0, 3.0]), np.array([0, 0, 2]), ["a", "b", "c"])
        >>> measure.overall, measure.per_class, measure.reason
        (2.0, {'a': 1.5, 'b': None, 'c': 3.0}, 'No images of b.')
    """
    classes = {name: members(labels, label) for label, name in enumerate(names)}
    floors = torch.full_like(values, math.nan) if floor is None else floor
    reasons = [reason] * bool(reason)
    if absent := [name for name, own in classes.items() if not len(own)]:
        reasons.append(f"No images of {', '.join(absent)}.")
    if floor is not None and bool(floor.isnan().any()):
        reasons.append("No training images of some classes: no floor for them.")
    return Measure(
        overall=mean(values),
        per_class={name: mean(values[own]) for name, own in classes.items()},
        floor=mean(floors),
        interval=interval(values),
        per_class_floor={name: mean(floors[own]) for name, own in classes.items()},
        per_class_interval={name: interval(values[own]) for name, own in classes.items()},
        reason=" ".join(reasons) or ("No images." if not len(values) else ""),
        **about,
    )


def mean(values: Float[Tensor, " n"]) -> float | None:
    """The mean; None without values or where one of them is NaN."""
    result = float(values.double().mean()) if len(values) else math.nan
    return None if math.isnan(result) else result


def interval(values: Float[Tensor, " n"]) -> Interval | None:
    """Mean ± 1.96 standard errors; None for fewer than two values."""
    if len(values) < 2:
        return None
    centre, error = float(values.double().mean()), float(values.double().std()) / math.sqrt(len(values))
    return centre - 1.96 * error, centre + 1.96 * error


def entropy(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
    """Binary cross-entropy of each image with itself, nats: the least that any prediction has."""
    x = x.double()
    return -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).flatten(1).sum(1)


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
