"""Records: a measure beside what real images reach, and the one table of what every measure is."""

__all__ = ["GROUPS", "Measure", "Unmeasurable", "about", "average"]

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.evaluation.statistics import Interval, mean, members, normal

Better = Literal["lower", "higher", "floor"]
SHARE, NATS, TIMES = "share of images", "nats per image", "times that of real images"

# Group → title and what it is about, in the order of the page.
GROUPS: Mapping[str, tuple[str, str]] = {
    "usefulness": (
        "Usefulness",
        "Classifiers trained on generated images and measured on real test images; the ceiling is training on all real "
        "images.",
    ),
    "fidelity": (
        "Fidelity and diversity",
        "How close the generated images are, as a set, to real ones they have never met, in what the judge sees last "
        "(kinds of cell) and first (texture, colour). The floor is what held-out real images reach.",
    ),
    "early": (
        "The same in early features",
        "Late features say which class an image shows; early ones still tell two images of a class apart.",
    ),
    "other": (
        "The same in other features",
        "What another network sees, or the pixels themselves: a second look that the judge has no part in.",
    ),
    "variety": (
        "Variety",
        "Mean distance between two images of a class, as a share of that between two real ones: near 0 the generator "
        "draws one picture again and again, however good it is. And how many images have a twin.",
    ),
    "labels": (
        "Truth to the label",
        "Whether an image shows the class it was asked for, as the judge sees it; the ceiling is the judge's accuracy "
        "on real images.",
    ),
    "reconstruction": (
        "Reconstruction",
        "How well an image comes back from its latents; the floor is what showing the mean image of the class would "
        "reach.",
    ),
    "likelihood": ("Likelihood", "What the model itself thinks of held-out images, in nats per image."),
    "latents": ("Latents", "Whether the latents are used, and whether the prior draws where images lie."),
    "privacy": (
        "Privacy",
        "Whether images of the training set are handed out again, or can be told from others.",
    ),
}
MEAN_IMAGE = "The floor is what showing the mean training image of the class reaches; a model must"
# Measure → title, group, which values are better, unit, meaning.
TABLE: Mapping[str, tuple[str, str, Better, str, str]] = {
    "fid": (
        *("FID", "fidelity", "lower", "squared distance"),
        "Distance between the generated and the real images as two clouds of points; blur, wrong colours and missing "
        "kinds of image all raise it.",
    ),
    "kid": (
        *("KID", "fidelity", "lower", "MMD²"),
        "The same idea as FID without its bias for few images; 0 is what two sets of real images average.",
    ),
    "precision": ("Precision", "fidelity", "higher", SHARE, "Share of generated images that lie among real ones."),
    "recall": ("Recall", "fidelity", "higher", SHARE, "Share of real images that lie among generated ones."),
    "density": (
        *("Density", "fidelity", "floor", "times what one distribution gives"),
        "How many real images each generated one lies among; above the real figure, images are too typical.",
    ),
    "coverage": ("Coverage", "fidelity", "higher", SHARE, "Share of real images that have a generated one close by."),
    "sharpness": (
        *("Sharpness", "fidelity", "floor", TIMES),
        "Fine detail of the images as a share of that of real ones; below 1 blurred, above 1 noisy.",
    ),
    "diversity": (
        *("Diversity", "variety", "floor", TIMES),
        "How much images of a class differ from each other, as a share of how much real ones do; near 0 the same "
        "picture comes again and again.",
    ),
    "repeats": (
        *("Repeats", "variety", "lower", SHARE),
        "Share of generated images with a near-duplicate among them (closer than 99 in 100 real images are): pictures "
        "that come again, beside whatever else there is.",
    ),
    "label_accuracy": (
        *("Label accuracy", "labels", "higher", SHARE),
        "Share of generated images that the judge takes for the class asked for; above the real figure, the images are "
        "clearer cases than real ones.",
    ),
    "label_macro": (
        *("Label macro", "labels", "higher", SHARE),
        "The same, every class counted alike however many images it has.",
    ),
    "psnr": (
        *("PSNR", "reconstruction", "higher", "dB"),
        f"Peak signal-to-noise ratio of reconstructions: how small the error of single pixels is. {MEAN_IMAGE} exceed "
        "it.",
    ),
    "ssim": (
        *("SSIM", "reconstruction", "higher", ""),
        "Structural similarity of reconstructions, 1 for equal images: whether edges and texture are where they were. "
        f"{MEAN_IMAGE} exceed it.",
    ),
    "reconstruction_distance": (
        *("Reconstruction distance", "reconstruction", "lower", "mean distances of two real images"),
        "Distance between image and reconstruction in what the judge sees; 1 is as far as two real images taken at "
        f"random. {MEAN_IMAGE} stay below it.",
    ),
    "elbo": (
        *("ELBO", "likelihood", "higher", NATS),
        "Evidence lower bound of real images, the quantity that training raises: log_likelihood - kl.",
    ),
    "log_likelihood": (
        *("Log likelihood", "likelihood", "higher", NATS),
        "How probable an image is, given latents inferred from it. The ceiling, if any, is each image predicted by "
        "itself.",
    ),
    "kl": (
        *("KL", "likelihood", "lower", NATS),
        "How much the latents tell about an image. It is the price of a good reconstruction: near 0 the latents are "
        "not used.",
    ),
    "label_log_likelihood": (
        *("Label log likelihood", "likelihood", "higher", NATS),
        "How well the label planes are redrawn; it is no part of the other figures.",
    ),
    "importance_weighted": (
        *("Importance weighted", "likelihood", "higher", NATS),
        "A tighter bound on how probable a real image is under the model.",
    ),
    "bits_per_dimension": (
        *("Bits per dimension", "likelihood", "lower", "bits per pixel and channel"),
        "Length of a real image in a code made from the model; 8 is no compression at all.",
    ),
    "active_latents": (
        *("Active latents", "latents", "higher", ""),
        "Latents whose posterior mean varies over images; the others say nothing about an image.",
    ),
    "aggregate_mismatch": (
        *("Aggregate mismatch", "latents", "lower", "MMD²"),
        "How far the latents of real images are, all together, from where the prior draws; the floor is the largest "
        "value between two sets of prior draws in ten, and shrinks with the number of images.",
    ),
    "aggregate_mismatch_nats": (
        *("Aggregate mismatch nats", "latents", "lower", "nats"),
        "The same from mean and variance of each latent, summed over latents; the floor is that of as many prior "
        "draws. What exceeds it does not depend on the number of images: 3 nats mean that about one in twenty draws "
        "comes from where images have taught the decoder.",
    ),
    "near_copies": (
        *("Near copies", "privacy", "lower", SHARE),
        "Images that lie much nearer to one training image than to the next ones, flips, quarter turns, small shifts "
        "and brightness left out of account. The floor is how often held-out real images do.",
    ),
    "nearest_distance_ratio": (
        *("Nearest distance ratio", "privacy", "floor", "times that of held-out images"),
        "Median distance from the nearest training image, of generated images over held-out real ones: below 1 they "
        "keep closer to the training images than real ones do, as copies and blurred images both would.",
    ),
    "membership_auc": (
        *("Membership AUC", "privacy", "floor", ""),
        "Chance that the model finds a training image more probable than another real image of its class: 0.5 is "
        "guessing, 1 gives every training image away.",
    ),
    "accuracy": ("accuracy", "usefulness", "higher", "", "Share of real test images right"),
    "macro_f1": ("macro-F1", "usefulness", "higher", "", "Macro-F1 on real test images"),
    "rare_recall": ("recall of the rare class", "usefulness", "higher", "", "Recall of the rare class in test images"),
    "gain": ("gain in macro-F1", "usefulness", "higher", "", "What generated images add to macro-F1"),
    "recall_gain": ("gain in recall of the rare class", "usefulness", "higher", "", "What they add to its recall"),
}
SUFFIXES = {"early": ", early features", "late": ", late features", "other": ", other features"}
ARMS = r"(synthetic|balanced|rare_\d+)_(accuracy|macro_f1|rare_recall|gain|recall_gain)"


class Unmeasurable(ValueError):  # noqa: N818 - it is no error, it stands for a value
    """Too little to measure; the message says why.

    Example:
        >>> raise Unmeasurable("one image has no distances")
        Traceback (most recent call last):
            ...
        condgen.evaluation.records.Unmeasurable: one image has no distances
    """


def about(name: str, **changed: str) -> dict[str, Any]:
    """What a measure is: its title, group, which values are better, unit and meaning, for a :class:`Measure`.

    Args:
        name: of the measure; `_early`, `_late` and `_other` say in which features, `balanced_`, `synthetic_` and
            `rare_20_` which classifier.
        **changed: what is said otherwise this time.

    Example:
        >>> about("fid_early")["title"], about("rare_20_gain")["title"], about("mine")["title"]
        ('FID, early features', 'Rare 20: gain in macro-F1', 'Mine')
    """
    base, _, place = name.rpartition("_")
    if name in TABLE:
        title, group, better, unit, meaning = TABLE[name]
    elif place in SUFFIXES and base in TABLE:
        title, group, better, unit, meaning = TABLE[base]
        title += SUFFIXES[place]
        group = group if group == "variety" else place
    elif found := re.fullmatch(ARMS, name):
        title, group, better, unit, meaning = TABLE[found[2]]
        title = f"{found[1].replace('_', ' ').capitalize()}: {title}"
    else:
        title, group, better, unit, meaning = name.replace("_", " ").capitalize(), "", "lower", "", ""
    return {"title": title, "group": group, "better": better, "unit": unit, "meaning": meaning, **changed}


@dataclass(frozen=True)
class Measure:
    """A measure of generated images beside what real ones reach.

    Args:
        overall: the value on all images; None if it could not be taken.
        per_class: class name → value.
        floor: the same measure on held-out real images, as many; for "higher" it is a ceiling.
        interval: of `overall`, about two standard errors either side, or 95 %.
        per_class_floor: class name → floor.
        per_class_interval: class name → interval.
        excess: interval of the difference between `overall` and `floor`, where both are estimates.
        better: "lower" or "higher" values are better, or those nearest to the "floor".
        unit: such as "nats per image".
        meaning: one sentence for readers who do not know the measure.
        title: as it is read.
        group: of `GROUPS`.
        reason: why something is None.

    Raises:
        ValueError: if a number is not finite, or `overall` is None without a reason.

    Example:
        >>> Measure(2.0, floor=1.0, interval=(1.8, 2.2), **about("fid")).to_json()["interval"]
        [1.8, 2.2]
    """

    overall: float | None
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    floor: float | None = None
    interval: Interval | None = None
    per_class_floor: Mapping[str, float | None] = field(default_factory=dict)
    per_class_interval: Mapping[str, Interval | None] = field(default_factory=dict)
    excess: Interval | None = None
    better: Better = "lower"
    unit: str = ""
    meaning: str = ""
    title: str = ""
    group: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        tables = [self.per_class.values(), self.per_class_floor.values()]
        ends = [self.interval, self.excess, *self.per_class_interval.values()]
        numbers = [self.overall, self.floor, *(value for table in tables for value in table)]
        numbers += [end for pair in ends if pair is not None for end in pair]
        if bad := [number for number in numbers if number is not None and not math.isfinite(number)]:
            raise ValueError(f"Expected finite figures; got {bad[0]}. Leave it None, with a reason.")
        if self.overall is None and not self.reason:
            raise ValueError("Expected a reason for a measure without a value; got none.")

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, lists and text that JSON holds."""
        return plain(asdict(self))


def plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts with text for keys, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def average(
    values: Float[Tensor, " n"],
    labels: np.ndarray | Tensor,
    names: Sequence[str] = (),
    floor: Float[Tensor, " n"] | None = None,
    reason: str = "",
    **described: Any,
) -> Measure:
    """Mean over images of a figure, overall and per class, with mean ± 1.96 standard errors.

    Args:
        values: of each image.
        labels: of each image.
        names: of the classes; none: nothing is said of single classes.
        floor: the same figure of each image for the floor; NaN where it has none.
        reason: why something is None, if it is not that a class is absent.
        **described: see :func:`about`.

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
        overall=mean(values.tolist()),
        per_class={name: mean(values[own].tolist()) for name, own in classes.items()},
        floor=mean(floors.tolist()),
        interval=normal(values),
        per_class_floor={name: mean(floors[own].tolist()) for name, own in classes.items()},
        per_class_interval={name: normal(values[own]) for name, own in classes.items()},
        reason=" ".join(reasons) or ("No images." if not len(values) else ""),
        **described,
    )


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names as a phrase, the first few of many.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b", "c", "d"], most=2)
        ('a, b and c', 'a, b and 2 more')
    """
    names = [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
