"""
Balance a set
=============

Rare classes of the built-in blood smears are filled up with generated cells; a table says which image is what.
Needs ``pip install condgen``.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import condgen
from condgen.apps.provenance import write_balanced
from condgen.evaluation.judge import load_judge
from condgen.io.pictures import class_grid
from condgen.recipes import RECIPES

SMOKE = "--smoke" in sys.argv
IMAGES, SIZE, EPOCHS = (300, 16, 1) if SMOKE else (3000, 28, 10)
here = Path(tempfile.mkdtemp())

cells = condgen.load_smears(IMAGES, size=SIZE)
print(cells.train.class_counts)

# %%
# A generator, trained on the training images alone.
model, history = RECIPES["fast"].fit(cells, epochs=EPOCHS, progress=False)

# %%
# Every class as large as the largest. What a classifier of the real images does not take for its class is drawn again.
# ``method="auto"`` would vary the images of classes that have 100 or fewer.
judge = load_judge(cells, cache=here / "judges", epochs=1 if SMOKE else 10, width=16)
balanced, provenance = condgen.balance(cells, model, seed=0, judge=judge, method="sample")
print(provenance)
print(balanced.train.class_counts)

# %%
# Real images come first and are what they were; validation and test images are real ones alone.
assert np.array_equal(balanced.train.images[: len(cells.train)], cells.train.images)
assert balanced.test.class_counts == cells.test.class_counts

# %%
# The set, and beside it the table: nobody is to mistake a generated image for a patient's.
table = write_balanced(balanced, provenance, here / "balanced.npz")
print(*table.read_text().splitlines()[:: len(balanced.train) // 5], sep="\n")

# %%
# Any generated image can be drawn again from its row.
place = int(np.flatnonzero(provenance.synthetic)[0])
label, number = int(provenance.labels[place]), int(provenance.number[place])
again = model.sample([label], seed=provenance.seed, start=number)
apart = abs(again[0].numpy() * 255 - balanced.train.images[place]).max()
print(f"{apart:.2f} grey levels apart")
assert apart <= 0.51

# %%
# The first generated cells of the classes that gained any.
made = [k for k in range(8) if (provenance.labels[provenance.synthetic] == k).sum() >= 6]
shown = [balanced.train.images[(provenance.labels == k) & provenance.synthetic][:6] for k in made]
figure = class_grid(torch.from_numpy(np.stack(shown)) / 255, [cells.class_names[k] for k in made])
