"""
BloodMNIST: balance a rare class, and see whether it helps
==========================================================

From the first line to a balanced set and a measured gain: lymphocytes are cut to 20 training images, as if they were
rare; a generator is trained on what is left; its images fill the class up; classifiers trained without and with them
are tested on real images. About half an hour on two current cores. Needs ``pip install condgen``; ``bloodmnist.npz`` is
downloaded by medmnist, or read from the folder that ``CONDGEN_DATA`` names. Without it, or with ``--smoke``, built-in
images take its place.
"""

import os
import sys
import tempfile
from pathlib import Path

import condgen
from condgen.apps.provenance import write_balanced
from condgen.evaluation.arms import StudyPlan
from condgen.evaluation.sources import drawing
from condgen.evaluation.training_sets import cut_class
from condgen.evaluation.usefulness import usefulness
from condgen.io.pictures import class_grid
from condgen.recipes import RECIPES
from condgen.sampling.grids import per_class

SMOKE = "--smoke" in sys.argv
HERE = Path(os.environ.get("OUT", tempfile.mkdtemp()))
RARE, LEFT = "lymphocyte", 20
REAL = not SMOKE and "CONDGEN_DATA" in os.environ
data = (
    condgen.load_data("bloodmnist") if REAL else condgen.load_smears(300 if SMOKE else 2000, size=16 if SMOKE else 28)
)
print(data.train.class_counts)

# %%
# The set as it would be were lymphocytes rare: 20 of them to train on. Validation and test images stay as they are, and
# the generator never sees the others.
kept = cut_class(data.train, RARE, LEFT)
few = data.train.subset(kept)
few = condgen.LabelledImages(few.images, few.labels, few.class_names, name=f"{data.name}, {LEFT} {RARE}s")
print(few.class_counts)

# %%
# A generator: a latent map with a discriminator of reconstructions, a mixture fitted to its latents.
budget = {"epochs": 1, "components": 2, "em": 1} if SMOKE else {} if REAL else {"epochs": 8}
model, history = RECIPES["fast"].fit(few, HERE / "fast", resume="auto", progress=False, **budget)
print(model)

# %%
# Lymphocytes filled up to the largest class, and a table that says of each image whether it is real.
balanced, provenance = condgen.balance(few, model, seed=0)
print(provenance)
write_balanced(balanced, provenance, HERE / "balanced.npz")

# %%
# Does it help? Classifiers of one architecture, one number of steps and the same seeds, trained on the 20 alone, on the
# 20 drawn more often, and on the 20 filled up by generated ones; all are tested on real images, once. They are small,
# so that the example ends within the hour: ``StudyPlan()`` trains larger ones until they have converged.
small = {"steps": 500, "batch_size": 32, "width": 8, "cuts": (LEFT,), "cutmix": False}
plan = StudyPlan(seeds=1, steps=5, width=4, cuts=(LEFT,)) if SMOKE else StudyPlan(seeds=3 if REAL else 1, **small)
found = usefulness(drawing(model), data, plan=plan, rare=RARE, saw=LEFT)
for row in found.rows():
    if str(LEFT) in row["arm"] or row["arm"] == "real":
        print("   ".join(str(row[column]) for column in ("arm", "accuracy", "macro-F1", f"recall of {RARE}")))

# %%
# Generated cells of every class, the rare one learnt from 20 images.
figure = class_grid(per_class(model, 10), data.class_names)
