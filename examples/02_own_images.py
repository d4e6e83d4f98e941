"""
Your own images
===============

A folder with one subfolder per class becomes a data set; a trained model becomes a balanced one. Needs ``pip install
condgen``.
"""

import sys
import tempfile
from pathlib import Path

from PIL import Image

import condgen
from condgen.io.pictures import class_grid
from condgen.recipes import RECIPES
from condgen.sampling.grids import per_class
from condgen.sampling.shards import write_samples

SMOKE = "--smoke" in sys.argv
IMAGES, EPOCHS = (300, 1) if SMOKE else (3000, 10)
here = Path(tempfile.mkdtemp())

# %%
# A folder as yours may be, made here from drawn smears: ``cells/monocyte/00000017.png`` and so on.
drawn = condgen.load_smears(IMAGES)
for number, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
    folder = here / "cells" / drawn.class_names[label]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{number:08d}.png")

# %%
# Any size, any number of classes; images are cropped to a square and resized. The split is stratified.
cells = condgen.load_folder(here / "cells", size=28)
print(cells.train, cells.validation, cells.test, sep="\n")

# %%
# Train by a recipe; the model, the metrics and the settings stay in the run's folder.
RECIPES["fast"].fit(cells, here / "run", epochs=EPOCHS, progress=False)
model = condgen.load(here / "run")

# %%
# As many new images of each class as the largest class has more than it: together they are balanced.
counts = cells.train.class_counts
missing = [name for name, count in counts.items() for _ in range(max(counts.values()) - count)]
write_samples(model, missing, here / "missing.npz", seed=0)
print(len(missing), "new images, with their labels, in", here / "missing.npz")
figure = class_grid(per_class(model, 8), cells.class_names)
