"""Latents: whether they are used, and whether images lie where the prior draws."""

__all__ = ["ACTIVE", "LatentHealth", "Mismatch", "latent_health", "latent_measures", "mmd", "moment_kl"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.data.batches import image_tensor
from condgen.evaluation.reconstruction import LEAST, check_labels, slices
from condgen.evaluation.records import Measure, about
from condgen.evaluation.statistics import unbiased_mmd
from condgen.models.latents import latent_noise, levels
from condgen.nn.parts import evaluating
from condgen.random import Use, normals, permutation

ACTIVE = 0.01  # a latent is active if its posterior mean varies by more than this (variance over images)
USED, TELLING = 0.05, 1.0  # share of active latents, and nats per image, below which latents have collapsed
HOLES = 3.0  # nats beyond the floor: about one draw from the prior in twenty lies where images do
DRAWS = 512  # images whose draws are compared
REPEATS = 3  # comparisons of prior draws with prior draws


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
        """A sentence that says whether there is posterior collapse, or holes, or neither."""
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
