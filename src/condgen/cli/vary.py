"""Vary: new images near given ones."""

__all__ = ["vary"]

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condgen.cli.settings import Drawing
from condgen.cli.shared import Accelerator, drawing_as, on, say
from condgen.io.atomic import check_writable
from condgen.io.places import weights_file

if TYPE_CHECKING:
    from condgen.apps.variations import Variations
    from condgen.data.images import LabelledImages


def vary(
    run: Path,
    images: str | None = None,
    out: Path | None = None,
    per_image: int = 5,
    strength: float = 0.5,
    background: str | None = None,
    max_copies: float | None = None,
    seed: int = 0,
    accelerator: Accelerator = "auto",
    given: Mapping[str, Any] | None = None,
) -> None:
    """Draw new images near given ones, of the same class; a table says which image each comes from.

    Args:
        run: folder of a trained model, or the name of one that comes with condgen: bloodmnist, bloodmnist64.
        images: what to vary: a folder with one subfolder per class, an .npz file, or a name, as --data of train. If
            they come in splits, the training images are taken.
        out: an .npz file (images and labels), or a .png grid with a row for each image, the image itself (as the model
            sees it) first; by default varied.npz in the run.
        per_image: variations of every image.
        strength: how far to go: 0 is what the model makes of the image itself, 1 another image of its kind.
        background: images from which the surroundings are taken, of any class, as --images; needs a model with a map of
            latents.
        max_copies: the largest share of variations, from 0 to 1, that may be near copies of the images; these are drawn
            again. By default nothing is compared.
        seed: of the variations.
        accelerator: where to draw.
        given: settings by name, of :class:`condgen.cli.settings.Drawing`, instead of the model's.
    """
    weights_file(run)
    if images is None:
        raise ValueError("Expected --images: a folder with one subfolder per class, an .npz file, or a name.")
    if per_image < 1:
        raise ValueError(f"Expected --per-image of 1 or more; got {per_image}.")
    if not 0 <= (max_copies or 0) <= 1:
        raise ValueError(f"Expected --max-copies from 0 to 1; got {max_copies}.")

    from condgen.apps.variations import variations
    from condgen.io.pictures import check_png
    from condgen.models.saving import load

    model = drawing_as(given, on(accelerator, load(run)), run)
    out = out or (run if run.exists() else Path()) / "varied.npz"
    picture = out.suffix.lower() == ".png"
    if not picture and out.suffix != ".npz":
        raise ValueError(f"Expected --out as an .npz file or a .png grid; got {out}.")
    check_writable(out.parent)
    originals, behind = read_for(model, images), None if background is None else read_for(model, background)
    if picture:
        check_png(out, len(originals), 1 + per_image, originals.image_shape)
    found = variations(
        model,
        originals,
        per_image,
        strength=strength,
        background=behind,
        max_copies=max_copies,
        seed=seed,
        progress=True,
    )
    made = f"Wrote {len(found.images)} variations of {len(originals)} images"
    made += "" if found.copies is None else f", of which {found.copies:.1%} are near copies,"
    if picture:
        save_rows(model, found, out)
        say(f"{made} to {out}.")
        return
    table = found.write(out)
    say(f"{made} to {out}, and which is of which image to {table}.")


vary.examples = (  # type: ignore[attr-defined]
    "condgen vary bloodmnist --images FOLDER --per-image 10 --out varied.npz",
)
vary.settings = (Drawing,)  # type: ignore[attr-defined]


def read_for(model: Any, source: str) -> "LabelledImages":
    """Read images at a model's size, with its classes; of a source in splits, the training images."""
    from condgen.data.readers import in_splits, load_data

    found = load_data(source, size=(model.image_shape or (0, 28, 28))[1]).ordered(model.class_names)
    return found.train if in_splits(source) else found


def save_rows(model: Any, found: "Variations", out: Path) -> None:
    """Save a grid with one row for each varied image: the image as the model sees it, then its variations."""
    import torch

    from condgen.io.pictures import save_grid

    given = found.given
    drawn = torch.as_tensor(found.images).float() / 255
    rows = torch.cat([model.images(given.images).cpu()[:, None], drawn.unflatten(0, (len(given), -1))], 1)
    save_grid(rows, out, [str(given.class_names[label]) for label in given.labels])
