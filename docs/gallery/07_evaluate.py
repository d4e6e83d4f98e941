"""
Good enough to train on?
========================

A model is trained on the built-in blood smears, judged against fresh ones, and compared with two generators whose
faults are known: one that draws a single cell of each class again and again, and one that hands out training images.
Needs ``pip install condgen``.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import condgen
from condgen.data.images import LabelledImages
from condgen.evaluation.judge import load_judge

SMOKE = "--smoke" in sys.argv
IMAGES, SIZE, EPOCHS = (400, 16, 1) if SMOKE else (3000, 28, 20)
here = Path(tempfile.mkdtemp())

cells = condgen.load_smears(IMAGES, size=SIZE)
model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=16)
condgen.fit(model, cells, epochs=EPOCHS, progress=False)

# %%
# One call. The judge, a classifier of real images, is trained the first time and kept. Here it is a small one, so that
# the example ends soon; without ``judge=`` it is a larger one. ``usefulness="quick"`` would also train classifiers on
# the generated images.
judge = load_judge(cells, cache=here / "judges", epochs=1 if SMOKE else 10, width=16)
evaluation = condgen.evaluate(model, cells, usefulness="none", judge=judge)
print(evaluation.verdict)

# %%
# Every measure comes with what held-out real images reach, and with an interval.
for name in ("fid", "fid_early", "coverage", "diversity", "label_accuracy", "near_copies"):
    measure = evaluation[name]
    if measure.overall is None:
        print(f"{name:16} {measure.reason}")
    else:
        print(f"{name:16} {measure.overall:8.3f}   real images: {measure.floor:.3f}")

# %%
# The page, and the same figures as JSON; a notebook shows them too.
print(evaluation.write(here / "report"))
figure = evaluation.show()

# %%
# Generators with a known fault are named for it. First, one picture a class, again and again:
train = cells.train
first = np.array([np.flatnonzero(train.labels == label)[0] for label in range(8)])
labels = np.arange(8).repeat(len(cells.validation) // 4)
again = LabelledImages(train.images[first[labels]], labels, cells.class_names)
print(condgen.evaluate(again, cells, usefulness="none", judge=judge).verdict.findings[0])

# %%
# Second, the training images themselves: perfect by every other measure.
copies = LabelledImages(train.images, train.labels, cells.class_names)
print(condgen.evaluate(copies, cells, usefulness="none", judge=judge).verdict.findings[0])
