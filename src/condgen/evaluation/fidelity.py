"""Fidelity: distances between generated and real images in any features, variety, sharpness, truth to the label.

Late features of a classifier tell what an image shows, early ones how it looks; a generator that draws one good
picture of each class is close in the first and far in the second, and has no diversity within its classes.
"""

__all__ = [
    "FIDELITY",
    "LabelTruth",
    "diversity",
    "fidelity",
    "frechet_distance",
    "kernel_distance",
    "label_measures",
    "label_truth",
    "precision_recall_density_coverage",
    "relative_sharpness",
    "repeats",
    "sharpness",
]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from condgen.evaluation.records import Measure, Unmeasurable, about
from condgen.evaluation.statistics import Interval, mean, unbiased_mmd, wilson

FEWEST = 10  # images among which repeats are looked for
RARELY = 0.01  # share of the real images that have another one so near as to count for the same picture
FIDELITY = ("fid", "kid", "precision", "recall", "density", "coverage")


class Given(nn.Module):
    """Features as they are, in the place of a network that makes them."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return x


def frechet_distance(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"]) -> float:
    r"""FID in given features: the Fréchet distance between Gaussians fitted to both sets.

    .. math:: |\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})

    Args:
        real: features of real images.
        generated: features of generated images.

    Raises:
        Unmeasurable: unless both sets have more images than features: the covariances are singular.

    References:
        GANs trained by a two time-scale update rule converge to a local Nash equilibrium (Heusel et al., 2017),
        https://arxiv.org/abs/1706.08500

    Example:
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(x, x + 1), 4)  # 1 in each of four features
        4.0
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    features, fewest = real.shape[1], min(len(real), len(generated))
    if fewest <= features:
        raise Unmeasurable(f"FID in {features} features needs more than {features} images; there are {fewest}: see KID")
    metric = FrechetInceptionDistance(feature=Given(features)).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(generated.double(), real=False)
    return max(float(metric.compute()), 0.0)  # rounding may leave the distance of a set from itself below 0


def kernel_distance(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"]) -> float:
    """KID in given features: unbiased squared maximum mean discrepancy with a cubic kernel.

    Its average over sets from one distribution is 0, whatever their size; it may be negative.

    Args:
        real: features of real images.
        generated: features of generated images.

    Raises:
        Unmeasurable: for fewer than two images in a set.

    References:
        Demystifying MMD GANs (Bińkowski et al., 2018), https://arxiv.org/abs/1801.01401

    Example:
        >>> x = torch.eye(4)
        >>> kernel_distance(x, x + 1) > kernel_distance(x, x + 0.5) > 0
        True
    """
    from torchmetrics.image.kid import poly_kernel

    if (fewest := min(len(real), len(generated))) < 2:
        raise Unmeasurable(f"KID needs two images or more; there are {fewest}")
    x, y = real.double(), generated.double()
    return unbiased_mmd(poly_kernel(x, x), poly_kernel(y, y), poly_kernel(x, y))


def precision_recall_density_coverage(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], k: int = 5
) -> dict[str, float]:
    """How the two sets lie among each other, by balls that reach to the k-th neighbour within a set.

    Args:
        real: features of real images.
        generated: features of generated images.
        k: neighbours.

    Returns:
        precision, recall and coverage in [0, 1], density from 0 up (1 for one distribution).

    Raises:
        Unmeasurable: unless both sets have more than k images.

    References:
        Improved precision and recall metric for assessing generative models (Kynkäänniemi et al., 2019),
        https://arxiv.org/abs/1904.06991; Reliable fidelity and diversity metrics for generative models
        (Naeem et al., 2020), https://arxiv.org/abs/2002.09797

    Example:
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> precision_recall_density_coverage(x, x + 100)
        {'precision': 0.0, 'recall': 0.0, 'density': 0.0, 'coverage': 0.0}
    """
    if min(len(real), len(generated)) <= k:
        raise Unmeasurable(f"{k} neighbours need more than {k} images; there are {min(len(real), len(generated))}")
    x, y = real.double(), generated.double()
    between, radius_x, radius_y = distances(x, y), radii(x, k), radii(y, k)
    among_real = between < radius_x[:, None]
    return {
        "precision": float(among_real.any(0).double().mean()),
        "recall": float((between < radius_y).any(1).double().mean()),
        "density": float(among_real.double().sum(0).mean()) / k,
        "coverage": float((between.min(1).values < radius_x).double().mean()),
    }


def radii(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, " n"]:
    """Distance of each point to its k-th neighbour; the nearest of all is itself."""
    return distances(x, x).kthvalue(k + 1, dim=1).values


def distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Euclidean distances."""
    return torch.cdist(x, y)


def fidelity(
    real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"], k: int = 5
) -> dict[str, float | Unmeasurable]:
    """FID, KID, precision, recall, density and coverage; in the place of an FID of too few images the reason.

    Args:
        real: features of real images.
        generated: features of generated images.
        k: neighbours for the last four.

    Raises:
        Unmeasurable: where there are too few images for the others too.

    Example:
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> sorted(fidelity(x, x))
        ['coverage', 'density', 'fid', 'kid', 'precision', 'recall']
        >>> fidelity(torch.randn(9, 20), torch.randn(9, 20))["fid"]
        Unmeasurable('FID in 20 features needs more than 20 images; there are 9: see KID')
    """
    found: dict[str, float | Unmeasurable] = {**precision_recall_density_coverage(real, generated, k)}
    found["kid"] = kernel_distance(real, generated)
    try:
        found["fid"] = frechet_distance(real, generated)
    except Unmeasurable as reason:
        found["fid"] = reason
    return found


def diversity(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"]) -> dict[str, float]:
    """Mean distance between two generated images, as a share of that between two real ones.

    Meant for images of one class: distances between classes would hide what happens inside them.

    Args:
        real: pixels or features of real images.
        generated: the same of generated images.

    Raises:
        Unmeasurable: for fewer than two images in a set, or real ones that are all alike.

    Example:
        >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        >>> round(diversity(x, x / 2)["diversity"], 4)
        0.5
    """
    if min(len(real), len(generated)) < 2:
        raise Unmeasurable(f"diversity needs two images or more; there are {min(len(real), len(generated))}")
    theirs, own = spread(real), spread(generated)
    if theirs == 0:
        raise Unmeasurable("the real images are all alike")
    return {"diversity": own / theirs}


def spread(x: Float[Tensor, "n d"]) -> float:
    """Mean distance between two different images."""
    return float(distances(x.double(), x.double()).sum()) / (len(x) * (len(x) - 1))


def repeats(real: Float[Tensor, "n d"], generated: Float[Tensor, "m d"]) -> dict[str, float]:
    """Share of generated images with a near-duplicate among the generated images.

    "Near" is closer than the 1st percentile of nearest-neighbour distances between real images.

    A generator with favourite pictures may cover real images well, and neither its FID nor the mean distance between
    its images need show them. Sets of one distribution have 0.01. Both are taken in one number, the larger one thinned
    out evenly, since neighbours come nearer the more there are. Of fewer than 100 images those count that are nearer
    than half of the nearest two real ones.

    Args:
        real: pixels or features of real images.
        generated: the same of generated images.

    Raises:
        Unmeasurable: for fewer than 10 images in a set, or if more than 1 in 100 real images come twice.

    Example:
        >>> x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        >>> repeats(x, x)
        {'repeats': 0.01}
        >>> repeats(x, torch.cat([x[:300], x[:100] + 0.01]))  # a quarter comes again
        {'repeats': 0.5}
    """
    if (fewest := min(len(real), len(generated))) < FEWEST:
        raise Unmeasurable(f"repeats need {FEWEST} images or more; there are {fewest}")
    theirs, own = (nearest(x[torch.linspace(0, len(x) - 1, fewest).round().long()]) for x in (real, generated))
    # Of few images there is no percentile: only what is nearer than half of the nearest real ones counts.
    near = theirs.quantile(RARELY, interpolation="higher") if fewest * RARELY >= 1 else theirs.min() / 2
    if near <= 1e-5 * theirs.median():
        raise Unmeasurable("real images come twice, more than 1 in 100 of them")
    return {"repeats": float((own < near).double().mean())}


def nearest(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Distance of each image to the nearest other one."""
    return distances(x.double(), x.double()).fill_diagonal_(math.inf).min(1).values


def sharpness(images: Float[Tensor, "n channels height width"]) -> float:
    """Mean energy of the finest detail: squared difference of each pixel from the mean of its four neighbours.

    Args:
        images: in [0, 1].

    Raises:
        Unmeasurable: if there are no images, or pixels have no four neighbours.

    Example:
        >>> sharpness(torch.full((1, 1, 8, 8), 0.5))
        0.0
    """
    if not len(images) or min(images.shape[2:]) < 3:
        raise Unmeasurable(f"sharpness needs images of 3 x 3 pixels or more; got {tuple(images.shape)}")
    x = images.double()
    around = (x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]) / 4
    return float((x[..., 1:-1, 1:-1] - around).square().mean())


def relative_sharpness(
    real: Float[Tensor, "n channels height width"], generated: Float[Tensor, "m channels height width"]
) -> dict[str, float]:
    """Sharpness of generated images as a share of that of real ones, as an amplitude: the root of the energies' ratio.

    Raises:
        Unmeasurable: if there are no images, they are under 3 x 3 pixels, or the real ones have no detail.

    Example:
        >>> x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> round(relative_sharpness(x, x / 2)["sharpness"], 4)
        0.5
    """
    theirs, own = sharpness(real), sharpness(generated)
    if theirs == 0:
        raise Unmeasurable("the real images have no detail")
    return {"sharpness": (own / theirs) ** 0.5}


@dataclass(frozen=True)
class LabelTruth:
    """How often the judge sees the class that was asked for.

    Attributes:
        accuracy: share of all images, in [0, 1].
        macro: mean over the classes that there are.
        recall: per class; None for one without images.
        interval: of the accuracy, 95 %.
        recall_interval: per class.
        confusion: images by class asked for (rows) and class seen (columns).

    Example:
        >>> import torch
        >>> truth = label_truth(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> truth.recall, truth.macro
        ((1.0, 0.5, None), 0.75)
    """

    accuracy: float
    macro: float
    recall: tuple[float | None, ...]
    interval: Interval
    recall_interval: tuple[Interval | None, ...]
    confusion: Int64[np.ndarray, "classes classes"]


def label_truth(probabilities: Float[Tensor, "n classes"], labels: Shaped[Any, " n"]) -> LabelTruth:
    """Compare the judge's most probable class with the label of each image.

    Args:
        probabilities: of the judge.
        labels: asked for, integers in [0, classes).

    Raises:
        ValueError: without images, or if a label is none of the judge's classes.

    Example:
        >>> import torch
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> truth = label_truth(probabilities, torch.tensor([0, 0, 1, 1]))
        >>> truth.accuracy, truth.recall, truth.confusion.tolist()
        (0.75, (1.0, 0.5), [[2, 0], [1, 1]])
    """
    from sklearn.metrics import confusion_matrix

    if not len(probabilities):
        raise ValueError("Expected at least one image; got none.")
    classes, asked_for = probabilities.shape[1], np.asarray(labels)
    if asked_for.min() < 0 or asked_for.max() >= classes:
        # scikit-learn leaves such images out without a word
        raise ValueError(
            f"Expected labels in [0, {classes}), the judge's classes; got {asked_for.min()} to {asked_for.max()}. "
            "Remap them."
        )
    seen = probabilities.argmax(1).cpu().numpy()
    confusion = confusion_matrix(asked_for, seen, labels=range(classes)).astype(np.int64)
    right, asked = confusion.diagonal().tolist(), confusion.sum(1).tolist()
    recall = tuple(r / n if n else None for r, n in zip(right, asked, strict=True))
    return LabelTruth(
        accuracy=sum(right) / sum(asked),
        macro=mean([value for value in recall if value is not None]) or 0.0,
        recall=recall,
        interval=wilson(sum(right), sum(asked)),
        recall_interval=tuple(wilson(r, n) if n else None for r, n in zip(right, asked, strict=True)),
        confusion=confusion,
    )


def label_measures(generated: LabelTruth, real: LabelTruth, names: Sequence[str]) -> dict[str, Measure]:
    """`label_accuracy` and `label_macro`, with what the judge recognises of real images as ceiling.

    Args:
        generated: of generated images.
        real: of real ones that the judge was not trained on.
        names: of the classes.

    Example:
        >>> import torch
        >>> truth = label_truth(torch.eye(2), torch.tensor([0, 1]))
        >>> label_measures(truth, truth, ["round", "lobed"])["label_accuracy"].overall
        1.0
    """
    per_class = {
        "per_class": dict(zip(names, generated.recall, strict=True)),
        "per_class_floor": dict(zip(names, real.recall, strict=True)),
        "per_class_interval": dict(zip(names, generated.recall_interval, strict=True)),
    }
    absent = [name for name, value in zip(names, generated.recall, strict=True) if value is None]
    reason = f"no images of {', '.join(absent)}" if absent else ""
    found = {
        "label_accuracy": (generated.accuracy, real.accuracy, generated.interval),
        "label_macro": (generated.macro, real.macro, macro_interval(generated)),
    }
    return {
        name: Measure(overall, floor=floor, interval=interval, reason=reason, **per_class, **about(name))
        for name, (overall, floor, interval) in found.items()
    }


def macro_interval(truth: LabelTruth) -> Interval:
    """Of the mean recall, from those of the classes, in [0, 1] as they are.

    Distances to the lower ends add up as squares, and so do those to the upper ends: at a recall of 1 all doubt is
    below (Zou & Donner, 2008, https://doi.org/10.1002/sim.3095).
    """
    ends = [
        (value - pair[0], pair[1] - value)
        for value, pair in zip(truth.recall, truth.recall_interval, strict=True)
        if value is not None and pair is not None
    ]
    below, above = (math.hypot(*sides) / len(ends) for sides in zip(*ends, strict=True))
    return max(truth.macro - below, 0.0), min(truth.macro + above, 1.0)
