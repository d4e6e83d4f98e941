"""What an evaluation says besides its measures: the data, the judge, what to be careful about."""

__all__ = []

from collections.abc import Iterator
from typing import Any

from condgen.data.images import LabelledImages
from condgen.evaluation.classifier import Classifier
from condgen.evaluation.sets import Sets
from condgen.evaluation.sources import Source
from condgen.io.archives import weights_hash


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


def about_judge(judge: Classifier | None, sets: Sets) -> dict[str, Any] | None:
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
    sets: Sets,
    source: Source,
    data: LabelledImages,
    held_out: LabelledImages,
    asked: int | None,
    judge: Classifier | None,
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
