"""Evaluation: are these images good enough to train on? Every measure beside its floor on real images, in one call.

Generated images are compared with the test split. The same is done with held-out real images in their place, as many
and of the same classes (from the validation split): what those reach is the floor, or the ceiling, of a measure.
"""

__all__ = ["Evaluation", "evaluate", "read_evaluation"]

import datetime
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

import condgen
from condgen import figures
from condgen.data import LabelledImages, image_tensor
from condgen.features import (
    Judge,
    cache_folder,
    check_data,
    check_judge,
    load_judge,
    network_features,
    open_judge,
)
from condgen.files import read_json, write_atomically
from condgen.metrics import fidelity, labels, latents, privacy, reconstruction
from condgen.metrics import usefulness as useful
from condgen.metrics.measures import Measure
from condgen.metrics.measures import compare as compare_sets
from condgen.noise import permutation
from condgen.parts import weights_hash
from condgen.reports import page
from condgen.runs import History
from condgen.sampling import num_classes, pairs, to_uint8
from condgen.verdicts import Verdict, judge_measures

FORMAT = 1
SHOWN = 10  # images of each class on the page
PIXELS = 32  # a side that images are brought down to where pixels are compared
MODEL_IMAGES = 512  # on which reconstruction, likelihood and latents are measured
DRAWS, ATTACK_DRAWS = 8, 4  # of z an image, for the importance-weighted likelihood and the membership attack
PAIRS = 12  # near copies listed
Progress = Callable[[str], object]

GROUPS = (
    (
        "Fidelity and diversity",
        "How close the generated images are, as a set, to real ones they have never met, in what the judge sees last "
        "(kinds of cell) and first (texture, colour). The floor is what held-out real images reach.",
        ("fid", "kid", "precision", "recall", "density", "coverage", "sharpness"),
    ),
    (
        "The same in early features",
        "Late features say which class an image shows; early ones still tell two images of a class apart.",
        ("fid_early", "kid_early", "precision_early", "recall_early", "density_early", "coverage_early"),
    ),
    (
        "Variety within a class",
        "Mean distance between two images of a class, as a share of that between two real ones. Near 0 the generator "
        "draws one picture again and again, however good it is.",
        ("diversity", "diversity_early", "diversity_late"),
    ),
    (
        "Truth to the label",
        "Whether an image shows the class it was asked for, as the judge sees it; the ceiling is the judge's accuracy "
        "on real images.",
        ("label_accuracy", "label_macro"),
    ),
    (
        "Reconstruction",
        "How well an image comes back from its latents; the floor is what showing the mean image of the class would "
        "reach.",
        ("psnr", "ssim", "reconstruction_distance"),
    ),
    (
        "Likelihood",
        "What the model itself thinks of held-out images, in nats per image.",
        (
            "elbo",
            "log_likelihood",
            "kl",
            "label_log_likelihood",
            "importance_weighted",
            "bits_per_dimension",
        ),
    ),
    (
        "Latents",
        "Whether the latents are used, and whether the prior draws where images lie.",
        ("active_latents", "aggregate_mismatch", "aggregate_mismatch_nats"),
    ),
    (
        "Privacy",
        "Whether images of the training set are handed out again, or can be told from others.",
        ("near_copies", "nearest_distance_ratio", "membership_auc"),
    ),
)


@dataclass(frozen=True)
class Evaluation:
    """Everything an evaluation found.

    Attributes:
        measures: name → value, value per class, floor and interval.
        verdict: what they say, in sentences.
        details: what was evaluated, tables behind the measures, settings.
        pictures: name → PNG.

    Example:
        >>> found = {"fid": Measure(2.0, floor=1.0)}
        >>> Evaluation(found, judge_measures(found), {"name": "mine"}).to_json()["measures"]["fid"]["overall"]
        2.0
    """

    measures: Mapping[str, Measure]
    verdict: Verdict
    details: Mapping[str, Any]
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Measure:
        return self.measures[name]

    def to_json(self) -> dict[str, Any]:
        """As it is written to `evaluation.json`."""
        return {
            "format": FORMAT,
            "condgen": condgen.__version__,
            **self.details,
            "verdict": asdict(self.verdict),
            "groups": groups(self.measures),
            "measures": {name: measure.to_json() for name, measure in self.measures.items()},
        }

    def write(self, folder: str | Path) -> Path:
        """Write `evaluation.html` and `evaluation.json`, each whole or not at all.

        Returns:
            The page.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = self.to_json()
        text = json.dumps(content, indent=1, allow_nan=False)
        html = page(content, self.pictures)
        write_atomically(folder / "evaluation.json", text.encode())
        write_atomically(folder / "evaluation.html", html.encode())
        return folder / "evaluation.html"


@dataclass(frozen=True)
class ImageSet:
    """Images and what the measures look at.

    Attributes:
        images: uint8.
        labels: of each; None where images have none.
        pixels: (n, d) in [0, 1], brought down to about 32 pixels a side.
        features: of the judge; None where there is none.
        late: what fidelity is measured in: the judge's late features, or a network's that the user gave, (n, d).
    """

    images: UInt8[np.ndarray, "n channels height width"]
    labels: Int64[np.ndarray, " n"] | None
    pixels: Float[Tensor, "n pixels"]
    features: Any
    late: Any


def evaluate(
    generated: Any,
    data: LabelledImages,
    *,
    judge: Judge | str | Path | None = None,
    features: nn.Module | None = None,
    images: int | None = None,
    usefulness: Literal["full", "quick", "none"] = "full",
    seed: int = 0,
    cache: str | Path | None = None,
    history: History | None = None,
    include_real: bool = False,
    name: str = "",
    progress: bool = False,
) -> Evaluation:
    """Say whether generated images are good enough to train on.

    Args:
        generated: a model that samples (its latents, likelihood and reconstructions are then measured too), or
            `LabelledImages` that were generated elsewhere. Class names decide which class is which.
        data: the real images, with train, validation and test splits and one class label an image. The generator may
            have seen the training split; generated images are compared with the test split. Of a model with several
            labels an image, or continuous ones, only what needs no classes is measured.
        judge: of these very images, or its file; by default the one in `cache`, trained where there is none.
        features: another network, images in [0, 1] → (n, d), in whose features fidelity is measured instead of the
            judge's last ones.
        images: number of generated images; by default as many as validation images (and no more than test images).
        usefulness: whether classifiers are trained on generated images and tested on real ones: "full" (half an hour
            on two cores for BloodMNIST), "quick" (under five minutes) or "none".
        seed: of samples, judge, subsamples and classifiers.
        cache: folder of judges and of classifiers of real images; see :func:`condgen.features.cache_folder`.
        history: of the training, to be drawn.
        include_real: whether the page may show real images.
        name: of what is evaluated, for the page.
        progress: tell what is being done.

    Returns:
        Measures, verdict and pictures; `.write(folder)` makes one page and one JSON file.

    Raises:
        ValueError: if generated images are none, have another shape or range, or lack a class; if the judge was
            trained on other images; if data have no splits or other labels than classes.

    Example:
        >>> cells = condgen.load_smears(400, size=16, balance="equal")
        >>> fresh = condgen.load_smears(200, size=16, seed=1)  # a perfect generator
        >>> judge = condgen.features.train_judge(cells, epochs=1, width=8)  # left out, a better one is trained
        >>> evaluation = evaluate(fresh, cells, judge=judge, usefulness="none")
        >>> evaluation["diversity"].overall > 0.8
        True
    """
    started, tell = time.perf_counter(), teller(progress)
    data = data.ordered(getattr(generated, "class_names", ()) if hasattr(generated, "sample") else ())
    if data.kind != "class" and hasattr(generated, "sample"):
        return without_classes(generated, data, images, seed, history, include_real, name, tell)
    check_data(data)
    source = as_source(generated, data)
    held_out = data.validation.subset(chosen(data, source, images, seed))
    judge = resolve_judge(judge, data, seed, cache, progress, tell)
    tell(f"drawing {len(held_out):,} images and comparing them with real ones")
    look = looker(judge, features)
    sets = Sets(
        real=look(data.test.images, data.test.labels),
        held_out=look(held_out.images, held_out.labels),
        generated=look(source.draw(held_out.labels, seed), held_out.labels),
        names=tuple(data.class_names),
        labelled=source.labelled,
        seed=seed,
    )
    found = Found()
    of_images(sets, found)
    tell("looking for copies of training images")
    of_copies(sets, data.train, found, include_real)
    if source.model is not None:
        tell("asking the model for reconstructions, likelihood and latents")
        of_model(source, judge, data, seed, found, include_real)
    if include_real:
        found.pictures["real"] = grid(sets.held_out, sets)
    if usefulness != "none":
        of_usefulness(source, data, usefulness, seed, cache, progress, tell, found)
    add_history(history, found)
    found.details |= {
        "name": name or data.name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": about_data(data),
        "model": source.about,
        "judge": about_judge(judge, sets),
        "settings": {"images": len(held_out), "seed": seed, "usefulness": usefulness},
        "include_real": include_real,
        "warnings": [*cautions(sets, source, held_out), *origins(source.model, data)],
    }
    verdict = judge_measures(found.measures, judge.weaknesses(), found.latents)
    return Evaluation(
        found.measures, verdict, {**found.details, "seconds": time.perf_counter() - started}, found.pictures
    )


def add_history(history: History | None, found: "Found") -> None:
    """The curves of the training, where they are known."""
    if history is not None and history.rows:
        finite = {key: [v if math.isfinite(v) else None for v in history[key]] for key in history.rows[0]}
        found.details["history"] = finite
        found.pictures["curves"] = figures.png(figures.curves(history))


# What is evaluated.


@dataclass(frozen=True)
class Source:
    """Where generated images come from.

    Attributes:
        draw: (labels, seed) → uint8 images of these labels.
        labelled: whether images have labels.
        model: that draws them; None for images that are there already.
        available: how many images of each class there are; None: as many as asked for.
        about: of the model, for the page.
    """

    draw: Callable[[np.ndarray, int], UInt8[np.ndarray, "n channels height width"]]
    labelled: bool = True
    model: Any = None
    available: Int64[np.ndarray, " classes"] | None = None
    about: Mapping[str, Any] | None = None


def as_source(generated: Any, data: LabelledImages) -> Source:
    """A model or a set of images as a source of generated images for the classes of `data`.

    Raises:
        ValueError: if they do not fit the data.
    """
    shape = getattr(generated, "image_shape", None)
    if shape is not None and tuple(shape) != data.image_shape:
        raise ValueError(
            f"Expected generated images of {data.image_shape}, as {data.name!r} has; got {tuple(shape)}. Resize them, "
            "or load the real images in that size."
        )
    if isinstance(generated, LabelledImages):
        return from_images(generated, data)
    if not hasattr(generated, "sample"):
        raise TypeError(
            f"Expected a model or LabelledImages that were generated; got {type(generated).__name__}. "
            "Arrays: pass LabelledImages(images, labels)."
        )
    return from_model(generated, data)


def from_model(model: Any, data: LabelledImages) -> Source:
    """Images drawn from a model as they are asked for."""
    classes = num_classes(model)
    labelled = model.conditioner.columns > 0
    if labelled and classes != data.num_classes:
        raise ValueError(
            f"Expected a model of {data.num_classes} classes, as {data.name!r} has; this one knows {classes}. "
            "Evaluate it on the data it was trained on."
        )

    return Source(drawing(model), labelled, model, None, about_model(model))


def about_model(model: Any) -> dict[str, Any]:
    """Of the model, for the page."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "description": repr(model), "weights": weights_hash(model.state_dict())}


def drawing(model: Any) -> Callable[[np.ndarray, int], np.ndarray]:
    """(labels, seed) → uint8 images, from a model."""

    def draw(labels: np.ndarray, seed: int) -> np.ndarray:
        blocks = []
        for block in model.sample_blocks(torch.as_tensor(labels), seed=seed):
            low, high = float(block.min()), float(block.max())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"Expected samples in [0, 1]; got values from {low:.4g} to {high:.4g}. Rescale them in the model."
                )
            blocks.append(to_uint8(block).cpu().numpy())
        return np.concatenate(blocks)

    return draw


def from_images(images: LabelledImages, data: LabelledImages) -> Source:
    """Images that are there already: in an order of the seed, and again from the start where more are asked for."""
    if not len(images):
        raise ValueError("Expected generated images; got none.")
    if images.kind != "class":
        raise ValueError(f"Expected generated images of classes; {images.name!r} has {images.kind} labels. Remap them.")
    images = images.ordered(data.class_names)
    members = [np.flatnonzero(images.labels == label) for label in range(data.num_classes)]
    counts = np.array([len(own) for own in members])
    if missing := [name for name, count in zip(data.class_names, counts, strict=True) if not count]:
        raise ValueError(
            f"Expected generated images of every class of {data.name!r}; there are none of {', '.join(missing)}. "
            "Generate some."
        )

    def draw(labels: np.ndarray, seed: int) -> np.ndarray:
        taken = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            places = np.flatnonzero(labels == label)
            order = members[label][permutation(len(members[label]), seed, int(label)).numpy()]
            taken[places] = np.resize(order, len(places))
        return images.images[taken]

    return Source(draw, available=counts)


def chosen(data: LabelledImages, source: Source, images: int | None, seed: int) -> Int64[np.ndarray, " n"]:
    """Which validation images stand for real ones: as many of each class as images will be generated of it.

    No more than there are test images, so that generated and held-out sets have one size and one mixture of classes.
    """
    for split in ("train", "validation", "test"):
        if split not in data.splits or not len(getattr(data, split)):
            raise ValueError(
                f"Expected training, validation and test images; {data.name!r} has none for {split}. Split it."
            )
    validation = data.validation
    most = min(len(validation), len(data.test), len(validation) if images is None else images)
    if most < 2:
        raise ValueError(f"Expected at least 2 images to evaluate; got {most}. Pass a larger number of images.")
    taken = validation.stratified(most / len(validation), seed)
    if source.available is None:
        return taken
    kept = [taken[validation.labels[taken] == label][:count] for label, count in enumerate(source.available)]
    return np.sort(np.concatenate(kept))


# What the measures look at.


@dataclass(frozen=True)
class Sets:
    """Real test images, held-out real images and generated images.

    Attributes:
        real: of the test split.
        held_out: of the validation split.
        generated: as many as held out, of the same labels.
        names: of the classes.
        labelled: whether generated images have labels; without them nothing is said about single classes.
        seed: of subsamples.
    """

    real: ImageSet
    held_out: ImageSet
    generated: ImageSet
    names: tuple[str, ...]
    labelled: bool
    seed: int


def looker(judge: Judge, network: nn.Module | None) -> Callable[[np.ndarray, np.ndarray], ImageSet]:
    """Images and labels → what the measures look at."""

    def look(images: np.ndarray, labels: np.ndarray) -> ImageSet:
        seen = judge.embed(images)
        late = seen.late if network is None else network_features(network, images)
        return ImageSet(images, labels, pixels(images), seen, late)

    return look


def pixels(images: UInt8[np.ndarray, "n channels height width"]) -> Float[Tensor, "n pixels"]:
    """Images in [0, 1] as vectors, large ones brought down to 32 pixels a side by averaging.

    Example:
        >>> pixels(np.zeros((2, 3, 64, 64), np.uint8)).shape
        torch.Size([2, 3072])
    """
    parts = []
    for start in range(0, len(images), 256):
        x = image_tensor(images[start : start + 256]).float()
        if max(x.shape[2:]) > PIXELS:
            x = F.adaptive_avg_pool2d(x, (min(x.shape[2], PIXELS), min(x.shape[3], PIXELS)))
        parts.append(x.flatten(1))
    return torch.cat(parts)


@dataclass
class Found:
    """What has been found so far."""

    measures: dict[str, Measure] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    latents: str = ""


def of_images(sets: Sets, found: Found) -> None:
    """Fidelity at two depths, variety within classes, sharpness, truth to the label."""
    real, generated, held_out = sets.real, sets.generated, sets.held_out
    classes = {"real_labels": real.labels, "labels": generated.labels, "names": sets.names} if sets.labelled else {}

    def compared(function: Any, part: Callable[[ImageSet], Any], about: Any, suffix: str = "", **options: Any) -> None:
        results = compare_sets(
            function, *map(part, (real, generated, held_out)), describe=about, seed=sets.seed, **classes, **options
        )
        found.measures |= {f"{name}{suffix}": measure for name, measure in results.items()}

    compared(fidelity.fidelity, lambda part: part.late, fidelity.FIDELITY)
    compared(fidelity.fidelity, lambda part: part.features.early, fidelity.FIDELITY, "_early")
    compared(fidelity.relative_sharpness, lambda part: image_tensor(part.images), fidelity.SHARPNESS)
    compared(fidelity.diversity, lambda part: part.pixels, fidelity.DIVERSITY, within=True)
    compared(fidelity.diversity, lambda part: part.features.early, fidelity.DIVERSITY, "_early", within=True)
    compared(fidelity.diversity, lambda part: part.late, fidelity.DIVERSITY, "_late", within=True)
    if sets.labelled:
        truth, ceiling = (
            labels.label_truth(part.features.probabilities, part.labels) for part in (generated, held_out)
        )
        found.measures |= labels.label_measures(truth, ceiling, sets.names)
        found.details["confusion"] = {"rows": truth.confusion.tolist(), "real": ceiling.confusion.tolist()}
        found.pictures["confusion"] = figures.png(figures.confusion(truth.confusion, sets.names))
        found.details["precision_recall"] = {"points": points(found.measures)}
        found.pictures["precision_recall"] = figures.png(figures.precision_recall(points(found.measures)))
    found.pictures["samples"] = grid(generated, sets)


def points(found: Mapping[str, Measure]) -> list[dict[str, Any]]:
    """Precision and recall of each class that has both."""
    precision, recall = found["precision"], found["recall"]
    rows = [
        {
            "name": name,
            "precision": precision.per_class[name],
            "recall": recall.per_class[name],
            "floor_precision": precision.per_class_floor[name],
            "floor_recall": recall.per_class_floor[name],
        }
        for name in precision.per_class
    ]
    return [row for row in rows if row["precision"] is not None and row["recall"] is not None]


def grid(part: ImageSet, sets: Sets) -> bytes:
    """The first images of each class as a picture; of a set without labels the first images."""
    if not sets.labelled:
        images = part.images[: 8 * SHOWN]
        images = images[: len(images) // SHOWN * SHOWN] if len(images) >= SHOWN else images
        return figures.png(
            figures.class_grid(rearrange(tensor(images), "(r k) c h w -> r k c h w", k=min(len(images), SHOWN)))
        )
    shown, names = [], []
    for label, name in enumerate(sets.names):
        own = part.images[part.labels == label][:SHOWN]
        if len(own):
            blank = np.full((SHOWN - len(own), *own.shape[1:]), 255, np.uint8)
            shown.append(tensor(np.concatenate([own, blank])))
            names.append(name)
    return figures.png(figures.class_grid(torch.stack(shown), names))


def tensor(images: UInt8[np.ndarray, "..."]) -> Float[Tensor, "..."]:
    """Floats in [0, 1]."""
    return image_tensor(images).float()


def of_copies(sets: Sets, train: LabelledImages, found: Found, include_real: bool) -> None:
    """Training images that are handed out again."""
    copies = privacy.near_copies(pixels(train.images), sets.generated.pixels, sets.held_out.pixels)
    own, theirs = (sets.generated.labels, sets.held_out.labels) if sets.labelled else (None, None)
    found.measures |= privacy.privacy_measures(copies, own, theirs, sets.names, seed=sets.seed)
    worst = copies.worst(PAIRS)
    found.details["privacy"] = {"pairs": [asdict(pair) for pair in worst], "threshold": copies.threshold}
    if worst:
        rows = [sets.generated.images[[pair.generated for pair in worst]]]
        rows += [train.images[[pair.training for pair in worst]]] if include_real else []
        names = ["generated", "training image"][: len(rows)]
        found.pictures["copies"] = figures.png(figures.class_grid(torch.stack([tensor(row) for row in rows]), names))


def without_classes(
    model: Any,
    data: LabelledImages,
    images: int | None,
    seed: int,
    history: History | None,
    include_real: bool,
    name: str,
    tell: Progress,
) -> Evaluation:
    """What can be said of a model whose labels are no classes, which no judge can be trained on."""
    started, source, found = time.perf_counter(), Source(drawing(model), labelled=False, model=model), Found()
    held_out = data.validation.subset(chosen(data, source, images, seed))

    def look(images: np.ndarray) -> ImageSet:
        return ImageSet(images, None, pixels(images), None, None)

    tell(f"drawing {len(held_out):,} images and comparing them with real ones")
    generated = look(source.draw(held_out.labels, seed))
    sets = Sets(look(data.test.images), look(held_out.images), generated, (), False, seed)
    for function, part, about, options in (
        (fidelity.relative_sharpness, lambda part: image_tensor(part.images), fidelity.SHARPNESS, {}),
        (fidelity.diversity, lambda part: part.pixels, fidelity.DIVERSITY, {}),
    ):
        parts = map(part, (sets.real, sets.generated, sets.held_out))
        found.measures |= compare_sets(function, *parts, describe=about, seed=seed, **options)
    of_copies(sets, data.train, found, include_real)
    tell("asking the model for reconstructions, likelihood and latents")
    of_model(source, None, data, seed, found, include_real)
    add_history(history, found)
    found.details |= {
        "name": name or data.name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": about_data(data),
        "model": about_model(model),
        "settings": {"images": len(held_out), "seed": seed, "usefulness": "none"},
        "include_real": include_real,
        "warnings": [
            f"Labels are {data.kind}, no classes: truth to the label, usefulness and fidelity in a judge's features "
            "are not available.",
            *origins(model, data),
        ],
    }
    verdict = judge_measures(found.measures, (), found.latents)
    return Evaluation(
        found.measures, verdict, {**found.details, "seconds": time.perf_counter() - started}, found.pictures
    )


def of_model(
    source: Source, judge: Judge | None, data: LabelledImages, seed: int, found: Found, include_real: bool
) -> None:
    """What the model itself keeps of images it has not met: reconstructions, likelihood, latents, membership."""
    model, names = source.model, tuple(data.class_names) if source.labelled else ()
    if not hasattr(model, "infer"):
        return
    test, train = some(data.test, MODEL_IMAGES, seed), some(data.train, MODEL_IMAGES, seed)
    found.measures |= reconstruction.reconstruction_measures(
        model,
        test.images,
        test.labels,
        names,
        embed=None if judge is None else lambda x: judge.embed(x).late,
        train=data.train if data.kind == "class" else None,
    )
    found.measures |= reconstruction.likelihood_measures(
        model, test.images, test.labels, names, samples=DRAWS, seed=seed
    )
    health = latents.latent_health(model, test.images, test.labels, seed)
    found.measures |= latents.latent_measures(health, names)
    found.latents = health.verdict
    found.details["latents"] = {
        "verdict": health.verdict,
        "kl_per_latent": [float(value) for value in health.kl_per_latent],
        "active": health.active,
        "count": health.latents,
    }
    found.pictures["latents"] = figures.png(figures.latent_kl(found.details["latents"]["kl_per_latent"]))
    found.measures["membership_auc"] = privacy.membership_auc(
        model, train.images, train.labels, test.images, test.labels, names, samples=ATTACK_DRAWS, seed=seed
    )
    found.pictures["reconstructions"] = reconstructions(model, data.validation, include_real)


def some(images: LabelledImages, most: int, seed: int) -> LabelledImages:
    """A stratified part of the images, of about `most`; all where there are no more."""
    return images if len(images) <= most else images.subset(images.stratified(most / len(images), seed))


def reconstructions(model: Any, images: LabelledImages, include_real: bool) -> bytes:
    """The first images of each class as they come back, below the images themselves where those may be shown."""
    rows, names = [], []
    if images.kind != "class":
        both = pairs(model, images.images[:SHOWN], images.labels[:SHOWN]).transpose(0, 1).float().cpu()
        return figures.png(figures.class_grid(both if include_real else both[1:]))
    for label, name in enumerate(images.class_names):
        own = images.subset(np.flatnonzero(images.labels == label)[:SHOWN])
        if not len(own):
            continue
        back = torch.ones(2, SHOWN, *images.image_shape)
        back[:, : len(own)] = pairs(model, own.images, own.labels).transpose(0, 1).float().cpu()
        rows += [*back] if include_real else [back[1]]
        names += [name, "reconstructed"] if include_real else [name]
    return figures.png(figures.class_grid(torch.stack(rows), names))


def of_usefulness(
    source: Source,
    data: LabelledImages,
    plan: Literal["full", "quick"],
    seed: int,
    cache: str | Path | None,
    progress: bool,
    tell: Progress,
    found: Found,
) -> None:
    """What a classifier learns from the images."""
    if not source.labelled:
        found.measures["synthetic_accuracy"] = Measure(
            None, better="higher", reason="Images without labels: no classifier can be trained on them."
        )
        return
    tell(f"training classifiers on generated and on real images ({plan})")
    # Other images than those compared above: usefulness draws with seeds of its own.
    result = useful.usefulness(
        lambda labels, own: source.draw(labels, (seed + 1 + own) % 2**64),
        data,
        plan=plan,
        seed=seed,
        cache=cache_folder(cache),
        progress=progress,
    )
    found.measures |= useful.measures(result)
    found.details["usefulness"] = {"rows": result.rows(), **result.to_json()}


# What the page says besides.


def about_data(data: LabelledImages) -> dict[str, Any]:
    """Name, sizes and counts of the real images."""
    return {
        "name": data.name,
        "fingerprint": data.fingerprint,
        "image_shape": list(data.image_shape),
        "class_names": list(data.class_names),
        "train_counts": {} if data.kind == "continuous" else data.train.class_counts,
        "splits": {split: len(getattr(data, split)) for split in ("train", "validation", "test")},
    }


def about_judge(judge: Judge, sets: Sets) -> dict[str, Any]:
    """How well the judge knows real images."""
    right = sets.real.features.probabilities.argmax(1).numpy() == sets.real.labels
    return {
        "accuracy": judge.accuracy,
        "test_accuracy": float(right.mean()),
        "fingerprint": judge.fingerprint,
        "weaknesses": judge.weaknesses(),
    }


def cautions(sets: Sets, source: Source, held_out: LabelledImages) -> list[str]:
    """What makes the figures less certain than they look."""
    said = []
    if len(held_out) < 200:
        said.append(f"Only {len(held_out)} images were compared: floors and intervals are wide.")
    few = [name for name, count in held_out.class_counts.items() if 0 < count < 30]
    if few and sets.labelled:
        said.append(f"Fewer than 30 images of {', '.join(few)}: figures of these classes are rough.")
    none = [name for name, count in held_out.class_counts.items() if not count]
    if none:
        said.append(f"No validation images of {', '.join(none)}: nothing was generated or measured for them.")
    if source.available is not None and source.available.sum() < len(sets.real.images):
        said.append(f"{int(source.available.sum())} generated images were given; where more were needed they repeat.")
    return said


def origins(model: Any, data: LabelledImages) -> list[str]:
    """What a model knows of its training that figures cannot be read without: other images, more than the bound."""
    provenance, said = getattr(model, "provenance", {}), []
    if provenance.get("train") not in (None, data.train.fingerprint):
        said.append(
            "The model was trained on other images than the training split given here: it may have seen test images, "
            "and copies and memory of training images are not looked for where they would be."
        )
    if provenance.get("objective", "ELBO") != "ELBO":
        said.append(
            f"The model was trained by {provenance['objective']}, not by the bound alone: the decoder has left the "
            "bound for sharpness, and its likelihood is lower than it could be."
        )
    return said


def groups(found: Mapping[str, Measure]) -> list[dict[str, Any]]:
    """The measures in the order of the page; a group without any is left out."""
    useful = [name for name in found if name.startswith(("synthetic_", "balanced_", "rare_"))]
    title = "Usefulness"
    text = (
        "Classifiers trained on generated images and measured on real test images; the ceiling is training on all "
        "real images."
    )
    rows = [(title, text, useful), *GROUPS]
    listed = [(title, text, [name for name in names if name in found]) for title, text, names in rows]
    return [{"title": title, "text": text, "measures": names} for title, text, names in listed if names]


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """What an earlier evaluation wrote: a run's folder or its `evaluation.json`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged or of a newer format.

    Example:
        >>> import tempfile
        >>> found = {"fid": Measure(2.0, floor=1.0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = Evaluation(found, judge_measures(found), {"name": "mine"}).write(folder)
        ...     read_evaluation(folder)["measures"]["fid"]["floor"]
        1.0
    """
    path = Path(path)
    path = path if path.suffix == ".json" else path / "evaluation.json"
    if not path.is_file():
        folder = path.parent
        advice = f"Write one: condgen evaluate {folder}" if folder.is_dir() else "Check the path"
        raise FileNotFoundError(f"No evaluation at {path}. {advice}.")
    kinds = {"measures": dict, "verdict": dict, "groups": list, "name": str, "format": int}
    content = read_json(path, kinds)
    if content.get("format", 0) > FORMAT:
        raise ValueError(f"{path} has format {content['format']}; this condgen reads up to {FORMAT}. Upgrade condgen.")
    if missing := sorted(set(kinds) - set(content)):
        raise ValueError(f"{path} is damaged or no evaluation: no {', '.join(missing)}. Evaluate the run again.")
    whole = [isinstance(m, dict) and {"overall", "floor", "better"} <= set(m) for m in content["measures"].values()]
    if broken := [name for name, good in zip(content["measures"], whole, strict=True) if not good]:
        raise ValueError(f"{path} is damaged: {broken[0]!r} is no measure. Evaluate the run again.")
    return content


def resolve_judge(
    judge: Judge | str | Path | None,
    data: LabelledImages,
    seed: int,
    cache: str | Path | None,
    progress: bool,
    tell: Progress,
) -> Judge:
    """The judge of these images: given, in a file, kept, or trained now."""
    if judge is None:
        tell("looking for the judge of these images, or training it")
        return load_judge(data, cache=cache, seed=seed, progress=progress)
    judge = judge if isinstance(judge, Judge) else open_judge(judge)
    check_judge(judge, data)
    return judge


def teller(progress: bool) -> Progress:
    """What says what is being done, on standard error; or nothing."""
    if not progress:
        return lambda _: None
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return lambda text: console.print(f"{text} …")
