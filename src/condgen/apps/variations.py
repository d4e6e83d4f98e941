"""Sets of variations: several of each given image, none a near copy if that is asked for, and which is of which."""

__all__ = ["Variations", "variations"]

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from condgen.data.adapters import as_labelled
from condgen.data.images import LabelledImages
from condgen.evaluation.copies import near_copies
from condgen.io.archives import weights_hash
from condgen.io.atomic import replacing, write_atomically
from condgen.io.pictures import to_uint8
from condgen.io.progress import working
from condgen.sampling.variations import vary

ROUNDS = 8  # in which near copies are drawn again
# Of the table.
COLUMNS = ["place", "kind", "label", "class", "of", "of_set", "strength", "weights", "seed", "number", "drawing"]


@dataclass(frozen=True, eq=False)
class Variations:
    """Variations of images, in the order of the images.

    Attributes:
        images: the variations.
        of: the place of the image that each is a variation of.
        number: of each, from which its noise follows.
        given: the images that were varied.
        strength: how far each went, in [0, 1].
        seed: of all of them.
        weights: hash of the model's weights.
        drawing: how the model draws, as JSON.
        copies: share of near copies among them, in [0, 1]; None if nobody looked.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(20, size=16).train
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> near = variations(model, cells, per_image=2)
        >>> near.images.shape[0] == 2 * len(cells), near.of[:4].tolist(), near.copies
        (True, [0, 0, 1, 1], None)
    """

    images: UInt8[np.ndarray, "n channels height width"]
    of: Int64[np.ndarray, " n"]
    number: Int64[np.ndarray, " n"]
    given: LabelledImages
    strength: float
    seed: int
    weights: str
    drawing: str
    copies: float | None = None

    def write(self, path: str | Path) -> Path:
        """Write an npz file that `load_npz` reads, and beside it a table of which image each variation comes from.

        Returns:
            The path of the table, `NAME.provenance.csv`.

        Raises:
            OSError: if nothing can be written there.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        labels, names = self.given.labels[self.of], self.given.class_names
        arrays = {"images": np.moveaxis(self.images, 1, -1), "labels": labels, "class_names": np.array(names)}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        text, mark = io.StringIO(), self.given.fingerprint
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for place, (label, of, number) in enumerate(zip(labels.tolist(), self.of, self.number, strict=True)):
            row = (place, "variation", label, names[label], of, mark, self.strength, self.weights, self.seed, number)
            writer.writerow((*row, self.drawing))
        table = path.with_suffix(".provenance.csv")
        write_atomically(table, text.getvalue().encode())
        return table


def variations(
    model: Any,
    data: Any,
    per_image: int = 5,
    *,
    strength: float = 0.5,
    background: Any = None,
    max_copies: float | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Variations:
    """Draw several variations of every image, of which at most a share are near copies of the images.

    Variation k of all is what :func:`condgen.vary` draws with `start=k` of its image. Near copies, up to flips, quarter
    turns, small shifts, brightness and contrast, are drawn again with numbers that follow the last one, until there are
    few enough.

    Args:
        model: that varies images; see :func:`condgen.vary`.
        data: the images, with their labels; all of them, whatever splits there are.
        per_image: variations of every image.
        strength: how far to go, in [0, 1]; see :func:`condgen.vary`.
        background: images from which surroundings are taken; see :func:`condgen.vary`.
        max_copies: the largest share of the variations that may be near copies of `data`, in [0, 1]
            (:func:`condgen.evaluation.copies.near_copies`); None: as many as come.
        seed: of the variations, in [0, 2**64).
        progress: tell how far it is.

    Raises:
        ValueError: as :func:`condgen.vary`; for `max_copies` out of range, or fewer than three different images with
            it; or if after eight rounds more are near copies than may be.

    Example:
        >>> import condgen, tempfile
        >>> cells = condgen.load_smears(20, size=16).train
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> found = variations(model, cells, per_image=2, strength=1, max_copies=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = found.write(Path(folder) / "near.npz")
        ...     found.copies <= 0.1, table.name, len(table.read_text().splitlines()) == 1 + 2 * len(cells)
        (True, 'near.provenance.csv', True)
    """
    if per_image < 1 or not 0 <= (max_copies or 0) <= 1:
        raise ValueError(
            f"Expected per_image of 1 or more and max_copies from 0 to 1; got {per_image} and {max_copies}."
        )
    given = as_labelled(data).ordered(getattr(model, "class_names", ()))
    of = np.repeat(np.arange(len(given)), per_image)
    how: dict[str, Any] = {"strength": strength, "background": background, "seed": seed}

    def draw(places: np.ndarray, start: int, progress: bool = False) -> UInt8[np.ndarray, "n ..."]:
        own = given.subset(of[places])
        return to_uint8(vary(model, own.images, own.labels, start=start, progress=progress, **how)).cpu().numpy()

    number, copies = np.arange(len(of)), None
    images = draw(number, 0, progress)
    if max_copies is not None:
        copies = draw_copies_again(draw, images, number, given, max_copies, progress)
    weights, drawing = weights_hash(model.state_dict()), json.dumps(getattr(model, "drawing", {}))
    return Variations(images, of, number, given, strength, seed, weights, drawing, copies)


def draw_copies_again(
    draw: Callable[[np.ndarray, int], np.ndarray],
    images: UInt8[np.ndarray, "n channels height width"],
    number: Int64[np.ndarray, " n"],
    given: LabelledImages,
    most: float,
    progress: bool,
) -> float:
    """Draw near copies of the given images again, in place, until at most a share of all are such; returns the share.

    Args:
        draw: (places, first number) → images of these places.
        images: all variations.
        number: of each.
        given: the images that were varied.
        most: the share of near copies that may be left.
        progress: tell how far it is.

    Raises:
        ValueError: if there are more after eight rounds.
    """
    places, near, unused = np.arange(len(images)), np.zeros(len(images), bool), len(images)
    with working("drawing near copies again", ROUNDS, progress) as advance:
        for last in (False,) * (ROUNDS - 1) + (True,):
            near[places] = near_copies(given.images, images[places], invariant=True).near.numpy()
            if near.mean() <= most or last:
                break
            places = np.flatnonzero(near)
            images[places], number[places] = draw(places, unused), np.arange(unused, unused + len(places))
            unused += len(places)
            advance()
    if near.mean() > most:
        raise ValueError(
            f"Expected a share of at most {most:g} of near copies; after {ROUNDS} rounds it is {near.mean():.3g}. Pass "
            "a larger strength, or a background of other images."
        )
    return float(near.mean())
