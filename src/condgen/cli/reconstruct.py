"""Reconstruct: images beside what a model makes of them."""

__all__ = ["reconstruct"]

from pathlib import Path
from typing import Literal

from condgen.cli.shared import Accelerator, load_run_data, on, say
from condgen.io.atomic import check_writable
from condgen.io.places import weights_file

Split = Literal["train", "validation", "test"]


def reconstruct(
    run: Path,
    out: Path | None = None,
    data: str | None = None,
    split: Split = "validation",
    count: int = 10,
    accelerator: Accelerator = "auto",
) -> None:
    """Show images beside what the model makes of them: originals above, reconstructions below, class by class.

    Args:
        run: folder of a trained model.
        out: a .png file, which will show the original images; by default reconstructions.png in the run.
        data: as for train; by default what the run was trained on.
        split: which images to take.
        count: images per class; where labels are no classes, images.
        accelerator: where to reconstruct.
    """
    weights_file(run)

    import torch

    from condgen.io.pictures import check_png, save_grid
    from condgen.models.saving import load
    from condgen.sampling.grids import pairs

    model, out = on(accelerator, load(run)), out or run / "reconstructions.png"
    if not hasattr(model, "encode"):
        raise ValueError(f"Expected a model with an encoder; {run} holds a {type(model).__name__}, which only draws.")
    check_png(out)
    check_writable(out.parent)
    images = getattr(load_run_data(run, data).ordered(model.class_names), split)
    if images.kind != "class":
        some = images.subset(slice(0, count))
        check_png(out, 2, len(some), images.image_shape)
        save_grid(pairs(model, some.images, some.labels).transpose(0, 1).cpu(), out, ["images", "reconstructed"])
        say(f"Wrote {len(some)} pairs to {out}.")
        return
    fewest, name = min((number, name) for name, number in images.class_counts.items())
    if count > fewest:
        advice = f"Pass --count {fewest}" if fewest else "Pass another --split, or --data with images of every class"
        raise ValueError(
            f"Expected --count {count} images of every class; {images.name!r} has {fewest} of {name}. {advice}."
        )
    check_png(out, 2 * images.num_classes, count, images.image_shape)
    rows, names = [], []
    for label, name in enumerate(images.class_names):
        own = images.subset((images.labels == label).nonzero()[0][:count])
        rows += list(pairs(model, own.images, own.labels).transpose(0, 1).cpu())
        names += [name, "reconstructed"]
    save_grid(torch.stack(rows), out, names)
    say(f"Wrote {len(rows) // 2 * count} pairs to {out}.")


reconstruct.examples = (  # type: ignore[attr-defined]
    "condgen reconstruct runs/mine --out pairs.png",
)
