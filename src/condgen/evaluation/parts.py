"""The parts of an evaluation: fidelity, privacy, the model itself, usefulness."""

__all__ = []

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.evaluation import fidelity
from condgen.evaluation.classifier import Classifier
from condgen.evaluation.comparison import compare
from condgen.evaluation.copies import near_copies
from condgen.evaluation.figures import confusion, latent_kl, precision_recall
from condgen.evaluation.judge import cache_folder
from condgen.evaluation.latents import latent_health, latent_measures
from condgen.evaluation.likelihood import likelihood_measures, without_inference
from condgen.evaluation.membership import membership_auc
from condgen.evaluation.privacy import privacy_measures
from condgen.evaluation.reconstruction import reconstruction_measures
from condgen.evaluation.records import Measure, about, listed
from condgen.evaluation.sets import Found, ImageSet, Sets, small, tensor
from condgen.evaluation.sources import Source
from condgen.evaluation.statistics import newcombe
from condgen.evaluation.usefulness import usefulness as study_usefulness
from condgen.evaluation.usefulness import usefulness_measures
from condgen.io.pictures import class_grid, png
from condgen.sampling.grids import pairs

SHOWN = 10  # images of each class on the page
MODEL_IMAGES = 512  # on which reconstruction, likelihood and latents are measured
DRAWS, ATTACK_DRAWS = 8, 4  # of z an image, for the importance-weighted likelihood and the membership attack
PAIRS = 12  # near copies listed


def of_images(sets: Sets, found: Found) -> None:
    """Fidelity at two depths, variety within classes, repeats, sharpness, truth to the label."""
    real, generated, held_out = sets.real, sets.generated, sets.held_out
    classes = {"real_labels": real.labels, "labels": generated.labels, "classes": sets.names} if sets.names else {}

    def compared(function: Any, part: Callable[[ImageSet], Any], *names: str, suffix: str = "", **options: Any) -> None:
        three, called = map(part, (real, generated, held_out)), {name: f"{name}{suffix}" for name in names}
        found.measures |= compare(function, *three, names=called, seed=sets.seed, **classes, **options)

    if generated.seen is not None:
        compared(fidelity.fidelity, lambda part: part.seen.late, *fidelity.FIDELITY)
    compared(fidelity.relative_sharpness, lambda part: image_tensor(part.images), "sharpness")
    if generated.seen is not None:
        compared(fidelity.fidelity, lambda part: part.seen.early, *fidelity.FIDELITY, suffix="_early")
    if generated.other is not None:
        compared(fidelity.fidelity, lambda part: part.other, *fidelity.FIDELITY, suffix="_other")
    compared(fidelity.diversity, lambda part: part.small.flatten(1), "diversity", within=True)
    compared(fidelity.repeats, lambda part: part.small.flatten(1), "repeats")
    found.measures["repeats"] = with_excess(found.measures["repeats"], len(generated.images), len(held_out.images))
    if generated.seen is not None:
        compared(fidelity.diversity, lambda part: part.seen.early, "diversity", suffix="_early", within=True)
        compared(fidelity.diversity, lambda part: part.seen.late, "diversity", suffix="_late", within=True)
    if sets.names:
        truth, ceiling = (fidelity.label_truth(part.seen.probabilities, part.labels) for part in (generated, held_out))
        found.measures |= fidelity.label_measures(truth, ceiling, sets.names)
        found.details["confusion"] = {"rows": truth.confusion.tolist(), "real": ceiling.confusion.tolist()}
        found.pictures["confusion"] = png(confusion(truth.confusion, sets.names))
        found.details["precision_recall"] = {"points": points(found.measures)}
        found.pictures["precision_recall"] = png(precision_recall(points(found.measures)))


def with_excess(measure: Measure, n: int, n_floor: int) -> Measure:
    """A share of n images, with the interval of what it is above its floor, however few they are."""
    if measure.overall is None or measure.floor is None:
        return measure
    counts = round(measure.overall * n), n, round(measure.floor * n_floor), n_floor
    return replace(measure, excess=newcombe(*counts))


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
        return png(class_grid(rows))
    shown, names = [], []
    for label, name in enumerate(sets.names):
        own = part.images[part.labels == label][:SHOWN]
        if len(own):
            blank = np.full((SHOWN - len(own), *own.shape[1:]), 255, np.uint8)
            shown.append(tensor(np.concatenate([own, blank])))
            names.append(name)
    return png(class_grid(torch.stack(shown), names))


def of_copies(sets: Sets, train: LabelledImages, found: Found, include_real: bool) -> None:
    """Training images that are handed out again, as they are or turned, shifted, brightened."""
    copies = near_copies(small(train.images), sets.generated.small, sets.held_out.small, invariant=True)
    own, theirs = (sets.generated.labels, sets.held_out.labels) if sets.names else (None, None)
    found.measures |= privacy_measures(copies, own, theirs, sets.names, seed=sets.seed)
    worst = copies.worst(PAIRS)
    found.details["privacy"] = {"pairs": [asdict(pair) for pair in worst], "threshold": copies.threshold}
    if worst:
        rows = [sets.generated.images[[pair.generated for pair in worst]]]
        rows += [train.images[[pair.training for pair in worst]]] if include_real else []
        names = ["generated", "training image"][: len(rows)]
        found.pictures["copies"] = png(class_grid(torch.stack([tensor(row) for row in rows]), names))


def of_model(
    source: Source, judge: Classifier | None, data: LabelledImages, seed: int, found: Found, include_real: bool
) -> None:
    """What the model itself keeps of images it has not met: reconstructions, likelihood, latents, membership."""
    generator, names = source.model, tuple(data.class_names) if source.labelled and data.kind == "class" else ()
    if not hasattr(generator, "infer"):
        found.measures |= {} if generator is None else without_inference(type(generator).__name__)
        return
    test, train = some(data.test, MODEL_IMAGES, seed), some(data.train, MODEL_IMAGES, seed)
    asked = (generator, test.images, test.labels, names)
    found.measures |= reconstruction_measures(
        *asked,
        embed=None if judge is None else lambda x: judge.embed(x).late,
        train=data.train if data.kind == "class" else None,
    )
    found.measures |= likelihood_measures(*asked, samples=DRAWS, seed=seed)
    found.latents = latent_health(generator, test.images, test.labels, seed)
    found.measures |= latent_measures(found.latents, names)
    per_latent = [float(value) for value in found.latents.kl_per_latent]
    found.details["latents"] = {
        "verdict": found.latents.verdict,
        "kl_per_latent": per_latent,
        "active": found.latents.active,
        "count": found.latents.latents,
    }
    found.pictures["latents"] = png(latent_kl(per_latent))
    found.measures["membership_auc"] = membership_auc(
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
        return png(class_grid(both if include_real else both[1:]))
    for label, name in enumerate(images.class_names):
        own = images.subset(np.flatnonzero(images.labels == label)[:SHOWN])
        if not len(own):
            continue
        back = torch.ones(2, SHOWN, *images.image_shape)
        back[:, : len(own)] = pairs(generator, own.images, own.labels).transpose(0, 1).float().cpu()
        rows += [*back] if include_real else [back[1]]
        names += [name, "reconstructed"] if include_real else [name]
    return png(class_grid(torch.stack(rows), names))


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
    result = study_usefulness(
        lambda labels, own: source.draw(labels, (seed + 1 + own) % 2**64),
        data,
        plan=plan,
        seed=seed,
        cache=cache_folder(cache),
        progress=progress,
    )
    found.useful = result
    found.measures |= usefulness_measures(result)
    found.details["usefulness"] = {"rows": result.rows(), **result.to_json()}
