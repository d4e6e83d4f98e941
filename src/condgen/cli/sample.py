"""Sample: draw new images from a trained model."""

__all__ = ["sample"]

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condgen.cli.settings import Drawing
from condgen.cli.shared import Accelerator, drawing_as, load_run_data, on, say, teacher_for
from condgen.io.atomic import check_writable
from condgen.io.places import weights_file

if TYPE_CHECKING:
    from condgen.models.generator import Generator

Labels = list[int | str | list[float]]


def sample(
    run: Path,
    out: Path | None = None,
    per_class: int = 10,
    labels: Labels | None = None,
    seed: int = 0,
    start: int = 0,
    temperature: float = 1.0,
    shard: str | None = None,
    teacher: str | None = None,
    accelerator: Accelerator = "auto",
    given: Mapping[str, Any] | None = None,
) -> None:
    """Draw new images from a trained model: so many of every class, or one for each label you list.

    Args:
        run: folder of a trained model, or the name of one that comes with condgen: bloodmnist, bloodmnist64.
        out: a .png grid, an .npz file (images and labels), or a folder (one subfolder per class); by default
            drawn.png in the run, beside the samples.png of its training.
        per_class: images of every class; where labels are no classes, images with the labels of validation images.
        labels: class names or numbers, one per image, instead of so many per class, e.g. [neutrophil,platelet,6] or
            neutrophil platelet 6; several labels or conditions an image as [[1,0,1],[0,1,1]].
        seed: of the samples.
        start: number of the first sample, to go on where an earlier call stopped.
        temperature: scales the noise; below 1 is more typical and less varied.
        shard: k/n, the k-th of n parts, for one of n workers that are called alike; the last to end joins the parts.
        teacher: a classifier's file (of condgen.train_classifier), or bloodmnist for the one that comes with condgen;
            its probabilities of the classes are written to the .npz file beside the labels, to train on.
        accelerator: where to draw.
        given: settings by name, of :class:`condgen.cli.settings.Drawing`, instead of the model's.
    """
    weights_file(run)

    import torch

    from condgen.io.pictures import check_png, save_grid
    from condgen.models.classes import class_names, num_classes
    from condgen.models.saving import load
    from condgen.sampling.shards import write_samples

    model = drawing_as(given, on(accelerator, load(run)), run)
    out = out or (run if run.exists() else Path()) / "drawn.png"
    classes = num_classes(model) if model.conditioner.columns <= 1 and not continuous(model) else 0
    if classes and labels is None and out.suffix.lower() == ".png":  # before there are as many labels
        check_png(out, classes, per_class, model.image_shape or (0, 1, 1))
    if labels is not None:
        wanted = model.labels([label_number(model, label) for label in labels])
    elif classes:
        wanted = torch.arange(classes).repeat_interleave(per_class)
    else:
        wanted = model.labels(load_run_data(run, None).validation.labels[:per_class])
    rows = (classes, per_class) if classes and labels is None else (1, len(wanted))
    check_writable(out.parent)
    part = shard_of(shard)
    if teacher is not None and out.suffix.lower() != ".npz":
        raise ValueError(f"Expected an .npz file for --teacher; got {out}. Pass --out.")
    if part is not None and out.suffix.lower() == ".png":
        raise ValueError(f"Expected an .npz file or a folder for --shard; got {out}. Pass --out.")
    if out.suffix.lower() == ".png":
        check_png(out, *rows, model.image_shape or (0, 1, 1))
        drawn = model.sample(wanted, seed=seed, start=start, temperature=temperature).cpu()
        save_grid(drawn.unflatten(0, rows), out, class_names(model) if rows[0] > 1 else ())
    else:
        settings: dict[str, Any] = {"seed": seed, "start": start, "temperature": temperature}
        if teacher is not None:
            settings["teacher"] = teacher_for(teacher, class_names(model))
        write_samples(model, wanted, out, **settings, shard=part, progress=True)
    say(f"Wrote {len(wanted)} images to {out}." if part is None else f"Wrote part {shard} of {out}.")


sample.examples = (  # type: ignore[attr-defined]
    "condgen sample bloodmnist --per-class 10 --out cells.png",
    "condgen sample runs/mine --labels neutrophil basophil --out two.png",
    "condgen sample bloodmnist --per-class 1500 --label-mixing 0.5 --out cells.npz",
)
sample.settings = (Drawing,)  # type: ignore[attr-defined]


def continuous(model: "Generator") -> bool:
    """Whether the model's labels are no classes though they have one column."""
    from condgen.nn.conditioners import Continuous, MultiLabel, without_dropout

    return isinstance(without_dropout(model.conditioner), Continuous | MultiLabel)


def label_number(model: "Generator", label: Any) -> Any:
    """The number of a class, by its name, the beginning of it, or its number; several labels are themselves."""
    from condgen.data.names import class_number
    from condgen.nn.conditioners import without_dropout

    classes = getattr(without_dropout(model.conditioner), "num_classes", None)
    if isinstance(label, list) or classes is None or (isinstance(label, int) and label < 0):  # -1: no label
        return label
    return class_number(label, model.class_names, classes)


def shard_of(text: str | None) -> tuple[int, int] | None:
    """What --shard names.

    Example:
        >>> shard_of("2/8")
        (2, 8)
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found:
        raise ValueError(f"Expected --shard as k/n, such as 1/4; got {text!r}.")
    return int(found[1]), int(found[2])
