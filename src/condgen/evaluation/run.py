"""Run: one evaluation, from a model or a set of images to measures, verdict and page.

Generated images are compared with the test split. The same is done with held-out real images in their place, as many
and of the same classes (from the validation split): what those reach is the floor, or the ceiling, of a measure.
"""

__all__ = ["Evaluation", "evaluate", "read_evaluation"]

import datetime
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.evaluation import fidelity, model, privacy, usefulness
from condgen.evaluation.classifier import check_data, network_features
from condgen.evaluation.comparison import compare
from condgen.evaluation.judge import Judge, cache_folder, check_judge, load_judge, open_judge
from condgen.evaluation.model import LatentHealth
from condgen.evaluation.records import GROUPS, Measure, about, listed
from condgen.evaluation.report import page
from condgen.evaluation.verdict import Verdict, judge_measures
from condgen.io.archives import weights_hash
from condgen.io.atomic import read_json, write_atomically
from condgen.io.progress import working
from condgen.random import permutation
from condgen.sampling import figures
from condgen.sampling.grids import num_classes, pairs, to_uint8
from condgen.training.run_folder import History

FORMAT = 2
SHOWN = 10  # images of each class on the page
PIXELS = 32  # a side that images are brought down to where pixels are compared
MODEL_IMAGES = 512  # on which reconstruction, likelihood and latents are measured
DRAWS, ATTACK_DRAWS = 8, 4  # of z an image, for the importance-weighted likelihood and the membership attack
PAIRS = 12  # near copies listed
Part = Literal["fidelity", "privacy", "model", "usefulness"]
PARTS: tuple[Part, ...] = ("fidelity", "privacy", "model", "usefulness")


@dataclass(frozen=True)
class Evaluation:
    """Everything an evaluation found.

    Attributes:
        measures: name → value, value per class, floor and interval.
        verdict: what they say, in sentences.
        details: what was evaluated, tables behind the measures, settings, and what could not be measured.
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
        members = {key: [name for name, m in self.measures.items() if m.group == key] for key in GROUPS}
        return {
            "format": FORMAT,
            "condgen": condgen.__version__,
            **self.details,
            "verdict": asdict(self.verdict),
            "groups": [
                {"title": title, "text": text, "measures": members[key]}
                for key, (title, text) in GROUPS.items()
                if members[key]
            ],
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


def evaluate(
    generated: Any,
    data: LabelledImages,
    *,
    measure: Sequence[Part] = PARTS,
    judge: Judge | str | Path | None = None,
    features: nn.Module | Literal["pixels"] | None = None,
    images: int | None = None,
    usefulness: Literal["full", "quick", "none"] = "full",
    seed: int = 0,
    judge_seed: int = 0,
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
        measure: which parts: "fidelity" (with variety, sharpness and truth to the label), "privacy" (copies), "model"
            (reconstruction, likelihood, latents, membership) and "usefulness". One that fails leaves the others alone,
            and the reason among the warnings.
        judge: of these very images, or its file; by default the one in `cache`, trained where there is none.
        features: a second look beside the judge's: another network, images in [0, 1] → (n, d), or "pixels".
        images: number of generated images; by default as many as validation images (and no more than test images).
        usefulness: how much is trained to see what a classifier learns from generated images: "full" (three seeds, and
            a rare class cut down), "quick" (one seed, smaller and shorter) or "none".
        seed: of samples, subsamples and classifiers.
        judge_seed: of the judge: another one is another feature space, in which figures cannot be compared.
        cache: folder of judges and of classifiers of real images; see
            :func:`condgen.evaluation.judge.cache_folder`.
        history: of the training, to be drawn.
        include_real: whether the page may show real images.
        name: of what is evaluated, for the page.
        progress: tell what is being done.

    Returns:
        Measures, verdict and pictures; `.write(folder)` makes one page and one JSON file.

    Raises:
        ValueError: if generated images are none, have another shape or range, or lack a class; if the judge was
            trained on other images; if data have no splits or other labels than classes; if nothing could be measured.

    Example:
        >>> from condgen.evaluation.judge import train_judge
        >>> cells = condgen.load_smears(400, size=16, balance="equal")
        >>> fresh = condgen.load_smears(200, size=16, seed=1)  # a perfect generator
        >>> judge = train_judge(cells, epochs=1, width=8)  # left out, a better one is trained
        >>> evaluation = evaluate(fresh, cells, judge=judge, usefulness="none")
        >>> evaluation["diversity"].overall > 0.8
        True
    """
    started, tell = time.perf_counter(), teller(progress)
    if unknown := sorted(set(measure) - set(PARTS)) or not measure:
        raise ValueError(f"Expected parts among {', '.join(PARTS)}; got {unknown if measure else 'none'}.")
    draws = hasattr(generated, "sample")
    data = data.ordered(getattr(generated, "class_names", ()) if draws else ())
    if data.kind == "class" or not draws:
        check_data(data)
    source = as_source(generated, data)
    held_out = data.validation.subset(chosen(data, source, images, seed))
    if data.kind == "class":
        judge = resolve_judge(judge, data, judge_seed, cache, progress, tell)
    else:
        judge, usefulness = None, "none"
    tell(f"drawing {len(held_out):,} images")
    look, labelled = looker(judge, features), source.labelled and data.kind == "class"
    with working("drawing and looking at images", progress=progress):
        sets = compared(look, source, data, held_out, labelled, seed)
    found = Found(warnings=[*cautions(sets, source, data, held_out, images, judge), *origins(source.model, data)])
    found.pictures["samples"] = grid(sets.generated, sets)
    if include_real:
        found.pictures["real"] = grid(sets.held_out, sets)
    parts: dict[Part, tuple[str, Callable[[], None]]] = {
        "fidelity": ("comparing them with real ones", lambda: of_images(sets, found)),
        "privacy": ("looking for copies of training images", lambda: of_copies(sets, data.train, found, include_real)),
        "model": (
            "asking the model for reconstructions, likelihood and latents",
            lambda: of_model(source, judge, data, seed, found, include_real),
        ),
        "usefulness": (
            f"training classifiers on generated and on real images ({usefulness})",
            lambda: of_usefulness(source, data, usefulness, seed, cache, progress, found),
        ),
    }
    skipped = {"model": source.model is None, "usefulness": usefulness == "none"}
    wanted: list[Part] = [part for part in PARTS if part in measure and not skipped.get(part)]
    failed: dict[str, str] = {}
    for part in wanted:
        tell(parts[part][0])
        try:
            with working(parts[part][0], progress=progress and part != "usefulness"):  # which tells more of itself
                parts[part][1]()
        except Exception as error:  # what it has to say goes on the page, and hours of the others' work are kept
            failed[part] = f"{part} could not be measured: {error}"
            if len(failed) == len(wanted):
                raise
    if history is not None and history.rows:
        finite = {key: [v if math.isfinite(v) else None for v in history[key]] for key in history.rows[0]}
        found.details["history"] = finite
        found.pictures["curves"] = figures.png(figures.curves(history))
    details = {
        "name": name or data.name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": about_data(data),
        "model": source.about,
        "judge": about_judge(judge, sets),
        "settings": {
            "images": len(held_out),
            "seed": seed,
            "usefulness": usefulness if "usefulness" in wanted else "none",
            **({"parts": ", ".join(measure)} if set(measure) != set(PARTS) else {}),
        },
        "include_real": include_real,
        "warnings": [*found.warnings, *failed.values()],
        "failed": failed,
        **found.details,
    }
    weaknesses = [] if judge is None else judge.weaknesses()
    verdict = judge_measures(found.measures, weaknesses=weaknesses, latents=found.latents, useful=found.useful)
    return Evaluation(found.measures, verdict, {**details, "seconds": time.perf_counter() - started}, found.pictures)


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


def from_model(generator: Any, data: LabelledImages) -> Source:
    """Images drawn from a model as they are asked for."""
    labelled = generator.conditioner.columns > 0
    if data.kind == "class" and labelled and (classes := num_classes(generator)) != data.num_classes:
        raise ValueError(
            f"Expected a model of {data.num_classes} classes, as {data.name!r} has; this one knows {classes}. "
            "Evaluate it on the data it was trained on."
        )
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    described = {"parameters": parameters, "description": repr(generator)}
    described["weights"] = weights_hash(generator.state_dict())
    return Source(drawing(generator), labelled, generator, None, described)


def drawing(generator: Any) -> Callable[[np.ndarray, int], np.ndarray]:
    """(labels, seed) → uint8 images, from a model."""

    def draw(labels: np.ndarray, seed: int) -> np.ndarray:
        blocks = []
        for block in generator.sample_blocks(torch.as_tensor(labels), seed=seed):
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
class ImageSet:
    """Images and what the measures look at.

    Attributes:
        images: uint8.
        labels: of each.
        small: in [0, 1], brought down to 32 pixels a side.
        seen: features of the judge; None where there is none.
        other: (n, d), what the second look sees; None where none was asked for.
    """

    images: UInt8[np.ndarray, "n channels height width"]
    labels: Any
    small: Float[Tensor, "n channels rows columns"]
    seen: Any
    other: Any


@dataclass(frozen=True)
class Sets:
    """Real test images, held-out real images and generated images.

    Attributes:
        real: of the test split.
        held_out: of the validation split.
        generated: as many as held out, of the same labels.
        names: of the classes; none: generated images have no classes, and nothing is said about single ones.
        seed: of subsamples.
    """

    real: ImageSet
    held_out: ImageSet
    generated: ImageSet
    names: tuple[str, ...]
    seed: int


@dataclass
class Found:
    """What has been found so far."""

    measures: dict[str, Measure] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    latents: LatentHealth | None = None
    useful: usefulness.Usefulness | None = None


def compared(
    look: Callable[[np.ndarray, Any], ImageSet],
    source: Source,
    data: LabelledImages,
    held_out: LabelledImages,
    labelled: bool,
    seed: int,
) -> Sets:
    """The three sets that are compared, the generated one drawn now."""
    return Sets(
        real=look(data.test.images, data.test.labels),
        held_out=look(held_out.images, held_out.labels),
        generated=look(source.draw(held_out.labels, seed), held_out.labels),
        names=tuple(data.class_names) if labelled else (),
        seed=seed,
    )


def looker(judge: Judge | None, second: nn.Module | str | None) -> Callable[[np.ndarray, Any], ImageSet]:
    """Images and labels → what the measures look at."""
    if isinstance(second, str) and second != "pixels":
        raise ValueError(f"Expected a network, or 'pixels', for a second look; got {second!r}.")

    def look(images: np.ndarray, labels: Any) -> ImageSet:
        own, other = small(images), None
        if second == "pixels":
            other = F.adaptive_avg_pool2d(own, (min(own.shape[2], 8), min(own.shape[3], 8))).flatten(1)
        elif isinstance(second, nn.Module):
            other = network_features(second, images)
        return ImageSet(images, labels, own, None if judge is None else judge.embed(images), other)

    return look


def small(images: UInt8[np.ndarray, "n channels height width"]) -> Float[Tensor, "n channels rows columns"]:
    """Images in [0, 1], large ones brought down to 32 pixels a side by averaging.

    Example:
        >>> small(np.zeros((2, 3, 64, 28), np.uint8)).shape
        torch.Size([2, 3, 32, 28])
    """
    parts = []
    for start in range(0, len(images), 256):
        x = image_tensor(images[start : start + 256]).float()
        parts.append(F.adaptive_avg_pool2d(x, (min(x.shape[2], PIXELS), min(x.shape[3], PIXELS))))
    return torch.cat(parts)


def of_images(sets: Sets, found: Found) -> None:
    """Fidelity at two depths, variety within classes, repeats, sharpness, truth to the label."""
    real, generated, held_out = sets.real, sets.generated, sets.held_out
    classes = {"real_labels": real.labels, "labels": generated.labels, "classes": sets.names} if sets.names else {}

    def compared(function: Any, part: Callable[[ImageSet], Any], *names: str, **options: Any) -> None:
        three = map(part, (real, generated, held_out))
        found.measures |= compare(function, *three, names=names, seed=sets.seed, **classes, **options)

    if generated.seen is not None:
        compared(fidelity.fidelity, lambda part: part.seen.late, *fidelity.FIDELITY)
    compared(fidelity.relative_sharpness, lambda part: image_tensor(part.images), "sharpness")
    if generated.seen is not None:
        compared(fidelity.fidelity, lambda part: part.seen.early, *fidelity.FIDELITY, suffix="_early")
    if generated.other is not None:
        compared(fidelity.fidelity, lambda part: part.other, *fidelity.FIDELITY, suffix="_other")
    compared(fidelity.diversity, lambda part: part.small.flatten(1), "diversity", within=True)
    compared(fidelity.repeats, lambda part: part.small.flatten(1), "repeats")
    if generated.seen is not None:
        compared(fidelity.diversity, lambda part: part.seen.early, "diversity", suffix="_early", within=True)
        compared(fidelity.diversity, lambda part: part.seen.late, "diversity", suffix="_late", within=True)
    if sets.names:
        truth, ceiling = (fidelity.label_truth(part.seen.probabilities, part.labels) for part in (generated, held_out))
        found.measures |= fidelity.label_measures(truth, ceiling, sets.names)
        found.details["confusion"] = {"rows": truth.confusion.tolist(), "real": ceiling.confusion.tolist()}
        found.pictures["confusion"] = figures.png(figures.confusion(truth.confusion, sets.names))
        found.details["precision_recall"] = {"points": points(found.measures)}
        found.pictures["precision_recall"] = figures.png(figures.precision_recall(points(found.measures)))


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
    """The first images of each class as a picture; of a set without classes the first images."""
    if not sets.names:
        images = part.images[: 8 * SHOWN]
        images = images[: len(images) // SHOWN * SHOWN] if len(images) >= SHOWN else images
        rows = rearrange(tensor(images), "(r k) c h w -> r k c h w", k=min(len(images), SHOWN))
        return figures.png(figures.class_grid(rows))
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
    """Training images that are handed out again, as they are or turned, shifted, brightened."""
    copies = privacy.near_copies(small(train.images), sets.generated.small, sets.held_out.small, alike=True)
    own, theirs = (sets.generated.labels, sets.held_out.labels) if sets.names else (None, None)
    found.measures |= privacy.privacy_measures(copies, own, theirs, sets.names, seed=sets.seed)
    worst = copies.worst(PAIRS)
    found.details["privacy"] = {"pairs": [asdict(pair) for pair in worst], "threshold": copies.threshold}
    if worst:
        rows = [sets.generated.images[[pair.generated for pair in worst]]]
        rows += [train.images[[pair.training for pair in worst]]] if include_real else []
        names = ["generated", "training image"][: len(rows)]
        found.pictures["copies"] = figures.png(figures.class_grid(torch.stack([tensor(row) for row in rows]), names))


def of_model(
    source: Source, judge: Judge | None, data: LabelledImages, seed: int, found: Found, include_real: bool
) -> None:
    """What the model itself keeps of images it has not met: reconstructions, likelihood, latents, membership."""
    generator, names = source.model, tuple(data.class_names) if source.labelled and data.kind == "class" else ()
    if not hasattr(generator, "infer"):
        found.measures |= {} if generator is None else model.without_inference(type(generator).__name__)
        return
    test, train = some(data.test, MODEL_IMAGES, seed), some(data.train, MODEL_IMAGES, seed)
    asked = (generator, test.images, test.labels, names)
    found.measures |= model.reconstruction_measures(
        *asked,
        embed=None if judge is None else lambda x: judge.embed(x).late,
        train=data.train if data.kind == "class" else None,
    )
    found.measures |= model.likelihood_measures(*asked, samples=DRAWS, seed=seed)
    found.latents = model.latent_health(generator, test.images, test.labels, seed)
    found.measures |= model.latent_measures(found.latents, names)
    per_latent = [float(value) for value in found.latents.kl_per_latent]
    found.details["latents"] = {
        "verdict": found.latents.verdict,
        "kl_per_latent": per_latent,
        "active": found.latents.active,
        "count": found.latents.latents,
    }
    found.pictures["latents"] = figures.png(figures.latent_kl(per_latent))
    found.measures["membership_auc"] = privacy.membership_auc(
        generator, train.images, train.labels, test.images, test.labels, names, samples=ATTACK_DRAWS, seed=seed
    )
    found.pictures["reconstructions"] = reconstructions(generator, data.validation, include_real)


def some(images: LabelledImages, most: int, seed: int) -> LabelledImages:
    """A stratified part of the images, of about `most`; all where there are no more."""
    return images if len(images) <= most else images.subset(images.stratified(most / len(images), seed))


def reconstructions(generator: Any, images: LabelledImages, include_real: bool) -> bytes:
    """The first images of each class as they come back, below the images themselves where those may be shown."""
    rows, names = [], []
    if images.kind != "class":
        both = pairs(generator, images.images[:SHOWN], images.labels[:SHOWN]).transpose(0, 1).float().cpu()
        return figures.png(figures.class_grid(both if include_real else both[1:]))
    for label, name in enumerate(images.class_names):
        own = images.subset(np.flatnonzero(images.labels == label)[:SHOWN])
        if not len(own):
            continue
        back = torch.ones(2, SHOWN, *images.image_shape)
        back[:, : len(own)] = pairs(generator, own.images, own.labels).transpose(0, 1).float().cpu()
        rows += [*back] if include_real else [back[1]]
        names += [name, "reconstructed"] if include_real else [name]
    return figures.png(figures.class_grid(torch.stack(rows), names))


def of_usefulness(
    source: Source,
    data: LabelledImages,
    plan: Any,
    seed: int,
    cache: str | Path | None,
    progress: bool,
    found: Found,
) -> None:
    """What a classifier learns from the images."""
    if not source.labelled:
        reason = "Images without labels: no classifier can be trained on them."
        found.measures["synthetic_accuracy"] = Measure(None, reason=reason, **about("synthetic_accuracy"))
        return
    counts = np.array(list(data.train.class_counts.values()))
    needed = np.maximum(counts, counts.max() - counts)
    if source.available is not None and (short := source.available < needed).any():
        names = [
            f"{name} ({own:,} of {wanted:,})"
            for name, own, wanted, few in zip(data.class_names, source.available, needed, short, strict=True)
            if few
        ]
        found.warnings.append(
            f"Usefulness needs more generated images than were given, of {listed(names)}: they repeat, and teach less "
            "than as many different ones would."
        )
    # Other images than those compared above: usefulness draws with seeds of its own.
    result = usefulness.usefulness(
        lambda labels, own: source.draw(labels, (seed + 1 + own) % 2**64),
        data,
        plan=plan,
        seed=seed,
        cache=cache_folder(cache),
        progress=progress,
    )
    found.useful = result
    found.measures |= usefulness.usefulness_measures(result)
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


def about_judge(judge: Judge | None, sets: Sets) -> dict[str, Any] | None:
    """Which judge it is, and how well it knows real images."""
    if judge is None:
        return None
    right = sets.real.seen.probabilities.argmax(1).numpy() == sets.real.labels
    return {
        "accuracy": judge.accuracy,
        "test_accuracy": float(right.mean()),
        "fingerprint": judge.fingerprint,
        "seed": judge.seed,
        "weights": weights_hash(judge.network.state_dict()),
        "weaknesses": judge.weaknesses(),
    }


def cautions(
    sets: Sets, source: Source, data: LabelledImages, held_out: LabelledImages, asked: int | None, judge: Judge | None
) -> Iterator[str]:
    """What makes the figures less certain than they look, or others than were asked for."""
    n = len(held_out)
    if judge is not None and judge.fingerprint != data.content_hash("train"):
        yield (
            f"The judge that comes with condgen was trained on {sum(judge.counts.values()):,} images of these classes, "
            "split in another way: some test images may be among them, which makes real and generated images "
            "look better recognised than they are. Pass --judge-seed 1 to train one on this training split."
        )
    if data.kind != "class":
        yield (
            f"Labels are {data.kind}, no classes: truth to the label, usefulness and fidelity in a judge's features "
            "are not available."
        )
    if asked is not None and asked != n:
        yield (
            f"{asked:,} images were asked for and {n:,} compared: as many as there are validation and test images to "
            "compare with, and at least one of each class."
        )
    if n < 200:
        yield f"Only {n} images were compared: floors and intervals are wide."
    counts = {} if data.kind == "continuous" else held_out.class_counts
    few = [name for name, count in counts.items() if 0 < count < 30]
    if few and sets.names:
        yield f"Fewer than 30 images of {', '.join(few)}: figures of these classes are rough."
    if none := [name for name, count in counts.items() if not count]:
        yield f"No validation images of {', '.join(none)}: nothing was generated or measured for them."
    if source.available is not None and source.available.sum() < len(sets.real.images):
        yield f"{int(source.available.sum()):,} generated images were given, fewer than there are test images."


def origins(generator: Any, data: LabelledImages) -> Iterator[str]:
    """What a model knows of its training that figures cannot be read without: other images, more than the bound."""
    provenance = getattr(generator, "provenance", {})
    if provenance.get("train") not in (None, data.train.fingerprint):
        yield (
            "The model was trained on other images than the training split given here: it may have seen test images, "
            "and copies and memory of training images are not looked for where they would be."
        )
    if hasattr(generator, "infer") and provenance.get("objective", "ELBO") != "ELBO":
        yield (
            f"The model was trained by {provenance['objective']}, not by the bound alone: the decoder has left the "
            "bound for sharpness, and its likelihood is lower than it could be."
        )


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
    tell: Callable[[str], object],
) -> Judge:
    """The judge of these images: given, in a file, kept, or trained now."""
    if judge is None:
        tell("looking for the judge of these images, or training it")
        return load_judge(data, cache=cache, seed=seed, progress=progress)
    judge = judge if isinstance(judge, Judge) else open_judge(judge)
    check_judge(judge, data)
    return judge


def teller(progress: bool) -> Callable[[str], object]:
    """What says what is being done, on standard error; or nothing."""
    if not progress:
        return lambda _: None
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return lambda text: console.print(f"{text} …")
