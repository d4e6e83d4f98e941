"""Model: what it keeps of images it has not met: reconstructions, likelihood, latents.

Every figure is taken image by image; overall and per class they are means, with 1.96 standard errors to either side.
Latents are measured in the prior's own units: from each the mean of p(z | c) is taken, and the rest is divided by its
standard deviation. What a prior knows of the label then counts as nothing, and classes can be taken together.
"""

__all__ = [
    "ACTIVE",
    "PSNR_LIMIT",
    "LatentHealth",
    "Mismatch",
    "feature_distance",
    "latent_health",
    "latent_measures",
    "likelihood_measures",
    "mmd",
    "moment_kl",
    "psnr",
    "reconstruction_measures",
    "ssim",
]

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.distributions.likelihoods import Bernoulli
from condgen.evaluation.records import Measure, about, average
from condgen.evaluation.statistics import unbiased_mmd
from condgen.models.latents import latent_noise, levels
from condgen.nn.parts import evaluating
from condgen.random import Use, normals, permutation

Embed = Callable[[Tensor], Tensor]
PSNR_LIMIT = 10 * math.log10(12 * 255**2)  # of images whose only error is rounding to 256 grey levels, 58.9 dB
BATCH = 128
PAIRED = 1000  # images among which pairs are taken
ACTIVE = 0.01  # a latent is active if its posterior mean varies by more than this (variance over images)
USED, TELLING = 0.05, 1.0  # share of active latents, and nats per image, below which latents have collapsed
HOLES = 3.0  # nats beyond the floor: about one draw from the prior in twenty lies where images do
DRAWS = 512  # images whose draws are compared
REPEATS = 5  # comparisons of prior draws with prior draws
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
        model: that infers latents (`infer`).
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
        name: average(torch.cat(values), labels, names, **about(name), **floor_of(name, model, x))
        for name, values in terms.items()
    }
    if unknown:
        found["importance_weighted"] = Measure(None, reason=unknown, **about("importance_weighted"))
    return found | {"bits_per_dimension": bits(model, x, labels, names, samples, seed, chunk)}


def without_inference(family: str) -> dict[str, Measure]:
    """Why a model that only draws has none of these measures."""
    reasons = {
        "it has no encoder, so no image can be drawn back": ("psnr", "ssim", "reconstruction_distance"),
        "it tells no likelihood": ("elbo", "importance_weighted", "bits_per_dimension", "membership_auc"),
        "it infers no latents from images": ("active_latents", "aggregate_mismatch"),
    }
    return {
        name: Measure(None, reason=f"Not available for a {family}: {why}.", **about(name))
        for why, names in reasons.items()
        for name in names
    }


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
        return Measure(None, reason=str(error), **about("bits_per_dimension"))
    reason = "Real images have no code length of their own: no floor."
    return average(torch.cat(parts).double().cpu(), labels, names, reason=reason, **about("bits_per_dimension"))


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


@dataclass(frozen=True)
class Mismatch:
    """How far the latents of images are from the prior's draws, and two sets of prior draws from each other.

    Attributes:
        mmd: squared maximum mean discrepancy, unbiased: 0 on average where both have one distribution.
        mmd_floor: the largest of ten, between prior draws and other prior draws.
        nats: summed over latents, KL of a normal with the latents' moments from one with the prior's.
        nats_floor: the same with prior draws in place of the latents, mean of ten.
    """

    mmd: float
    mmd_floor: float
    nats: float
    nats_floor: float


@dataclass(frozen=True, eq=False)
class LatentHealth:
    """What the latents of a model hold.

    Attributes:
        latents: how many there are.
        active: how many have a posterior mean that varies over images, by a variance above `ACTIVE`.
        kl_per_latent: mean over images, nats; one number where the KL does not factorise over latents.
        kl: of each image, nats.
        labels: of each image.
        carrying: the least number of latents that hold 99 % of the KL; None where it does not factorise.
        mismatch: between aggregate posterior and prior; None for fewer than 10 images.
        active_per_class: latents that are active within the images of a label; none where labels are no classes.
        mismatch_per_class: of the images of a label; both leave out labels of fewer than 10 images.

    Example:
        >>> # See :func:`latent_health`.
    """

    latents: int
    active: int
    kl_per_latent: Float[Tensor, " terms"]
    kl: Float[Tensor, " n"]
    labels: Tensor
    carrying: int | None
    mismatch: Mismatch | None
    active_per_class: Mapping[int, int]
    mismatch_per_class: Mapping[int, Mismatch]

    @property
    def collapsed(self) -> bool:
        """Fewer than one in twenty latents are active, or all together hold less than one nat."""
        return self.active < max(1.0, USED * self.latents) or float(self.kl.mean()) < TELLING

    @property
    def beyond(self) -> float | None:
        """Nats by which the mismatch exceeds its floor; does not depend on the number of images."""
        return None if self.mismatch is None else self.mismatch.nats - self.mismatch.nats_floor

    @property
    def holes(self) -> bool:
        """Whether most draws from the prior fall where no image lies."""
        return self.beyond is not None and self.beyond > HOLES

    @property
    def verdict(self) -> str:
        """One sentence: posterior collapse, holes, or healthy."""
        used = f"{self.active} of {self.latents} latents used"
        if self.collapsed:
            return f"posterior collapse: {used}, {float(self.kl.mean()):.1f} nats per image"
        if self.holes:
            return (
                f"holes: draws from the prior fall where no image lies ({self.beyond:.1f} nats beyond what as many "
                f"draws from the prior show); {used}"
            )
        return f"healthy: {used}"


@torch.no_grad()
def latent_health(model: Any, images: np.ndarray | Tensor, labels: np.ndarray | Tensor, seed: int = 0) -> LatentHealth:
    """Whether latents are used, and whether images lie where the prior draws.

    An active latent is one whose posterior mean varies over images by a variance of more than 0.01, in the prior's
    units. The aggregate posterior, the average of q(z | x, c) over images, is compared with the prior of the same
    labels in two ways: by a kernel two-sample statistic on one draw an image (of 512 images at most: the floor depends
    on the number), and by the moments of each latent.

    Args:
        model: that infers latents. Latents of several levels, and of maps, are taken in a row. The prior is what
            samples are drawn from: the sampler, where one was fitted.
        images: real images (n, channels, height, width), uint8 or floats in [0, 1].
        labels: of each, what the model takes.
        seed: of the draws.

    Raises:
        ValueError: if there are not as many labels as images.

    References:
        Importance weighted autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519, for
        active latents; Distribution matching in variational inference (Rosca, Lakshminarayanan & Mohamed, 2018),
        https://arxiv.org/abs/1802.06847, for the aggregate posterior

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(50, size=16)
        >>> model = condgen.conditional_vae((3, 16, 16), num_classes=8, latent=4, width=8)
        >>> for parameter in model.encoder.parameters():
        ...     _ = torch.nn.init.zeros_(parameter)
        >>> latent_health(model, cells.images, cells.labels).verdict
        'posterior collapse: 0 of 4 latents used, 0.0 nats per image'
    """
    x = image_tensor(images)
    check_labels(x, labels)
    with evaluating(model):
        batches = [encode(model, x[at], labels[at.start : at.stop], seed, at.start) for at in slices(len(x))]
    found = in_units_of_the_prior(Encoded(*(torch.cat(parts) for parts in zip(*batches, strict=True))))
    labels = torch.as_tensor(labels).cpu()
    classes = labels.unique().tolist() if labels.ndim == 1 and not labels.is_floating_point() else []
    own = {int(label): found.of(labels == label) for label in classes}
    own = {label: part for label, part in own.items() if len(part.z) >= LEAST}
    kl = found.kl.mean(0)
    return LatentHealth(
        latents=found.z.shape[1],
        active=active_latents(found.mean),
        kl_per_latent=kl,
        kl=found.kl.sum(1),
        labels=labels,
        carrying=carrying(kl) if len(kl) == found.z.shape[1] else None,
        mismatch=mismatch(found.z, found.prior, seed) if len(x) >= LEAST else None,
        active_per_class={label: active_latents(part.mean) for label, part in own.items()},
        mismatch_per_class={label: mismatch(part.z, part.prior, seed) for label, part in own.items()},
    )


class Encoded(NamedTuple):
    """Images as a model encodes them, latents in a row.

    Attributes:
        mean: of the posterior.
        z: drawn from it.
        kl: of each latent; one column where it does not factorise.
        prior: `REPEATS` + 1 draws for the same labels.
        location: the prior's mean; NaN where it has none to tell.
        scale: the prior's standard deviation; NaN where it has none to tell.
    """

    mean: Float[Tensor, "n latents"]
    z: Float[Tensor, "n latents"]
    kl: Float[Tensor, "n terms"]
    prior: Float[Tensor, "n draws latents"]
    location: Float[Tensor, "n latents"]
    scale: Float[Tensor, "n latents"]

    def of(self, which: Tensor) -> "Encoded":
        """Of some of the images."""
        return Encoded(*(part[which] for part in self))


def encode(model: Any, x: Tensor, labels: Any, seed: int, start: int) -> Encoded:
    """One batch."""
    images, y = model.images(x), model.labels(labels)
    index = torch.arange(start, start + len(x), device=model.device)
    noise = normals(model.noise_shapes, seed, index, Use.VALIDATION, dtype=model.dtype)
    inference = model.infer(images, y, noise)
    c, drawing = model.condition(y), model.sampling_noise_shapes
    draws = []
    for k in range(REPEATS + 1):
        numbers = normals(drawing, seed, index, Use.SAMPLING, k, model.dtype)
        draws.append(in_a_row(model.source.draw(c, latent_noise(numbers))))
    location, scale = moments(model.source, c, inference.z)
    means = tuple(q.mean for q in levels(inference.q))
    mean, z, kl = map(in_a_row, (means, inference.z, inference.kl_terms))
    return Encoded(*(part.double().cpu() for part in (mean, z, kl, torch.stack(draws, 1), location, scale)))


def in_a_row(z: Any) -> Float[Tensor, "n latents"]:
    """All latents of all levels, one after the other."""
    return torch.cat([own.flatten(1) for own in levels(z)], 1)


def moments(source: Any, c: Tensor, z: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of what latents like z are drawn from, in a row; NaN where it does not know them."""
    try:
        pairs = list(zip(levels(source(c)), levels(z), strict=True))
        mean, variance = (tuple(getattr(p, name).expand_as(own) for p, own in pairs) for name in ("mean", "variance"))
        return in_a_row(mean), in_a_row(variance).sqrt()
    except (NotImplementedError, AttributeError):
        unknown = torch.full_like(in_a_row(z), math.nan)
        return unknown, unknown


def in_units_of_the_prior(found: Encoded) -> Encoded:
    """Latents less the prior's mean, divided by its standard deviation; where it tells neither, those of its draws."""
    location, scale = found.location, found.scale
    if bool(location.isnan().any()):
        draws = found.prior.flatten(0, 1)
        location, scale = draws.mean(0).expand_as(found.z), draws.std(0).expand_as(found.z)
    scale = scale.clamp(min=1e-12)
    return found._replace(
        mean=(found.mean - location) / scale,
        z=(found.z - location) / scale,
        prior=(found.prior - location[:, None]) / scale[:, None],
    )


def active_latents(mean: Float[Tensor, "n latents"]) -> int:
    """How many posterior means vary over images."""
    return int((mean.var(0, correction=0) > ACTIVE).sum())


def carrying(kl: Float[Tensor, " latents"], share: float = 0.99) -> int:
    """The least number of latents that hold this share of the KL.

    Example:
        >>> carrying(torch.tensor([0.0, 5.0, 5.0]))
        2
    """
    held = kl.sort(descending=True).values.cumsum(0)
    return int((held < share * held[-1]).sum()) + 1 if held[-1] > 0 else 0


def mismatch(z: Float[Tensor, "n latents"], prior: Float[Tensor, "n draws latents"], seed: int = 0) -> Mismatch:
    """How far draws from the posterior are from the prior's, in the prior's units, and those from each other."""
    some = permutation(len(z), seed, 0)[:DRAWS]
    floors = [mmd(prior[some, k], prior[some, k + 1]) for k in range(REPEATS)]
    one = z.new_ones(z.shape[1])
    nats = [float(moment_kl(own.mean(0), own.var(0), 0 * one, one).sum()) for own in (z, *prior[:, :REPEATS].unbind(1))]
    return Mismatch(mmd(z[some], prior[some, 0]), max(floors), nats[0], sum(nats[1:]) / REPEATS)


def mmd(x: Float[Tensor, "n latents"], y: Float[Tensor, "m latents"]) -> float:
    r"""Squared maximum mean discrepancy between two samples, unbiased.

    The kernel is :math:`k(a, b) = \exp(-\lVert a - b \rVert^2 / 2 s^2)`, s the median distance in both samples taken
    together.

    Raises:
        ValueError: if a sample has fewer than two rows, or rows have different widths.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> round(mmd(x, x), 4)  # below 0 where two samples are closer to each other than to themselves
        -0.3935
    """
    if min(len(x), len(y)) < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"Expected two samples of at least two rows of one width; got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    n, both = len(x), torch.cat((x, y))
    square = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").square()
    rows, columns = torch.triu_indices(len(both), len(both), offset=1)
    k = torch.exp(-square / (2 * square[rows, columns].median().clamp(min=1e-12)))
    return unbiased_mmd(k[:n, :n], k[n:, n:], k[:n, n:])


def moment_kl(
    mean: Float[Tensor, " latents"],
    variance: Float[Tensor, " latents"],
    prior_mean: Float[Tensor, " latents"],
    prior_variance: Float[Tensor, " latents"],
) -> Float[Tensor, " latents"]:
    r"""KL of normals with these moments from normals with the prior's, per latent, nats.

    .. math:: \frac12 \left[ \frac{v + (m - m_p)^2}{v_p} - 1 - \log \frac{v}{v_p} \right]

    Example:
        >>> moment_kl(torch.ones(1), torch.ones(1), torch.zeros(1), torch.ones(1))
        tensor([0.5000])
    """
    ratio = variance.clamp(min=1e-12) / prior_variance
    return (ratio + (mean - prior_mean).square() / prior_variance - 1 - ratio.log()) / 2


def latent_measures(health: LatentHealth, names: Sequence[str] = ()) -> dict[str, Measure]:
    """The same as measures.

    Args:
        health: from :func:`latent_health`.
        names: of the classes, where labels are classes; none: nothing is said of single classes.

    Returns:
        `active_latents`, `aggregate_mismatch` (MMD²) and `aggregate_mismatch_nats` (from moments).

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(50, size=16)
        >>> model = condgen.conditional_vae((3, 16, 16), num_classes=8, latent=4, width=8)
        >>> health = latent_health(model, cells.images, cells.labels)
        >>> latent_measures(health, cells.class_names)["active_latents"].unit
        'of 4'
    """
    classes = dict(enumerate(names))
    few = [name for label, name in classes.items() if label not in health.mismatch_per_class]
    reason = f"Fewer than {LEAST} images of {', '.join(few)}." if few else ""
    own = {key: health.mismatch_per_class.get(label) for label, key in classes.items()}
    active = {key: health.active_per_class.get(label) for label, key in classes.items()}
    found = {
        "active_latents": Measure(
            float(health.active), active, reason=reason, **about("active_latents", unit=f"of {health.latents}")
        )
    }
    for name, part in (("aggregate_mismatch", "mmd"), ("aggregate_mismatch_nats", "nats")):
        found[name] = Measure(
            getattr(health.mismatch, part, None),
            {key: getattr(one, part, None) for key, one in own.items()},
            getattr(health.mismatch, f"{part}_floor", None),
            per_class_floor={key: getattr(one, f"{part}_floor", None) for key, one in own.items()},
            reason=reason or f"Fewer than {LEAST} images." * (health.mismatch is None),
            **about(name),
        )
    return found
