"""What each image of a balanced set is, beside the set on disk: real, or generated and from where.

Of every generated image it is written down what it is: nobody is ever to mistake it for a patient's.
"""

__all__ = ["Provenance", "with_probabilities", "write_balanced"]

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from condgen.data.images import LabelledImages
from condgen.data.names import PROBABILITIES
from condgen.data.writing import write_npz
from condgen.io.atomic import check_writable, write_atomically
from condgen.io.names import folder_names, write_classes

TABLE = ("place", "kind", "label", "class", "weights", "seed", "number", "drawing")
VARIED = ("of", "strength")  # further columns, where any image is a variation


@dataclass(frozen=True, eq=False)
class Provenance:
    """What each image of a balanced set is.

    Attributes:
        synthetic: whether it was generated.
        labels: its class.
        number: of the sample; -1 for a real image. `model.sample([label], seed=seed, start=number)` draws it again.
        seed: of the samples.
        weights: hash of the model's weights.
        names: of the classes.
        refused: class → how many samples were turned down: not believed by the judge, or near copies.
        drawn: class → how many were drawn in all.
        teacher: hash of the weights of the classifier whose probabilities stand beside the labels; "" for none.
        of: of a variation, the place of the real image that it is one of; -1 for samples and real images.
        strength: how far variations went.
        drawing: by which settings the model drew (`model.drawing`), as JSON.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(60, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> table = condgen.balance(cells, model, method="sample")[1].table()
        >>> table.splitlines()[:2]
        ['place,kind,label,class,weights,seed,number,drawing', '0,real,...']
    """

    synthetic: Bool[np.ndarray, " images"]
    labels: Int64[np.ndarray, " images"]
    number: Int64[np.ndarray, " images"]
    seed: int
    weights: str
    names: tuple[str, ...]
    refused: Mapping[str, int]
    drawn: Mapping[str, int]
    teacher: str = ""
    of: Int64[np.ndarray, " images"] | None = None
    strength: float = 0.0
    drawing: str = "{}"

    @property
    def varied(self) -> Bool[np.ndarray, " images"]:
        """Whether each image is a variation of a real one."""
        return np.zeros(len(self.labels), bool) if self.of is None else self.of >= 0

    def table(self) -> str:
        """Write down what each image of the set is, as CSV: a header, then a row for each image."""
        text, varied = io.StringIO(), self.varied
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow((*TABLE, *(VARIED if varied.any() else ()), *(("teacher",) if self.teacher else ())))
        for place, (made, label, number) in enumerate(zip(self.synthetic, self.labels, self.number, strict=True)):
            name = self.names[label] if self.names else ""
            row: list[Any] = [place, "variation" if varied[place] else "synthetic" if made else "real", label, name]
            row += [self.weights, self.seed, number, self.drawing] if made else [""] * 4
            if varied.any():
                row += [self.of[place], self.strength] if self.of is not None and varied[place] else ["", ""]
            writer.writerow([*row, self.teacher if made else ""] if self.teacher else row)
        return text.getvalue()

    def __str__(self) -> str:
        made = {name: int((self.labels[self.synthetic] == k).sum()) for k, name in enumerate(self.names)}
        lines = [f"{int(self.synthetic.sum()):,} generated images beside {int((~self.synthetic).sum()):,} real ones:"]
        for name, count in made.items():
            turned = self.refused.get(name, 0) / max(self.drawn.get(name, 0), 1)
            what = " variations" if (self.labels[self.varied] == self.names.index(name)).any() else ""
            down = f" ({turned:.0%} of the drawn ones turned down)" if turned else ""
            lines.append(f"  {name}: {count:,}{what}{down}")
        return "\n".join(lines)


def with_probabilities(data: LabelledImages, provenance: Provenance, teacher: Any) -> tuple[LabelledImages, Provenance]:
    """Add a teacher's probabilities of the classes to a balanced set, for a classifier to learn instead of the labels.

    Of generated training images they are the teacher's; of real images all of it is on their label.

    Args:
        data: from :func:`condgen.balance`.
        provenance: from the same call.
        teacher: images → probabilities; :class:`condgen.evaluation.teacher.Teacher`.

    Returns:
        The set with `factors["probabilities"]`, float32 of shape (n, classes), and a table that names the teacher.

    Example:
        >>> import condgen
        >>> from condgen.evaluation.teacher import Teacher
        >>> cells = condgen.load_smears(60, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> teacher = Teacher(condgen.train_classifier(cells, epochs=1, width=4), cells.class_names)
        >>> soft, provenance = with_probabilities(*condgen.balance(cells, model), teacher)
        >>> soft.train.factors["probabilities"].shape[1], len(provenance.teacher)
        (8, 64)
    """
    probabilities = np.eye(data.num_classes, dtype=np.float32)[data.labels]
    places = np.arange(len(data))[data.splits["train"]] if data.splits else np.arange(len(data))
    made = places[provenance.synthetic]
    if len(made):
        probabilities[made] = teacher(data.images[made])
    soft = replace(data, factors={**data.factors, PROBABILITIES: probabilities})
    return soft, replace(provenance, teacher=teacher.weights)


def write_balanced(data: LabelledImages, provenance: Provenance, path: str | Path) -> Path:
    """Write a balanced set, and beside it a table of which training image is what.

    Args:
        data: from :func:`condgen.balance`.
        provenance: from the same call.
        path: an `.npz` file in MedMNIST's layout, which the `medmnist` package loads under the name of its own file
            (though its `len()` insists on the official number of images), or a folder with a subfolder for each split
            and class. The table is `NAME.provenance.csv`, or `provenance.csv` in the folder; the names of generated
            files begin with "synthetic".

    Returns:
        The table's path.

    Raises:
        ValueError: if the folder holds other files.
        OSError: if nothing can be written there.

    Example:
        >>> import condgen, tempfile
        >>> cells = condgen.load_smears(60, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = write_balanced(*condgen.balance(cells, model), Path(folder) / "cells.npz")
        ...     condgen.load_npz(Path(folder) / "cells.npz").train.class_counts["platelet"] > 0, table.name
        (True, 'cells.provenance.csv')
    """
    path = Path(path)
    check_writable(path.parent)
    table = path.with_suffix(".provenance.csv") if path.suffix == ".npz" else path / "provenance.csv"
    splits = {name: getattr(data, name) for name in data.splits} or {"train": data}
    if path.suffix == ".npz":
        write_npz(replace(data, splits=data.splits or {"train": slice(0, len(data))}), path)
    else:
        if path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} holds other files. Choose another folder.")
        for name, part in splits.items():
            write_images(part, provenance.synthetic if name == "train" else np.zeros(len(part), bool), path / name)
        write_classes(path, data.class_names)
    write_atomically(table, provenance.table().encode())
    return table


def write_images(part: LabelledImages, synthetic: Bool[np.ndarray, " n"], folder: Path) -> None:
    """One PNG an image, in a subfolder for each class; generated ones say so in their names."""
    from PIL import Image

    names = folder_names(part.class_names)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for place, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
        kind = "synthetic" if synthetic[place] else "real"
        array = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
        Image.fromarray(array).save(folder / names[label] / f"{kind}-{place:06d}.png")
