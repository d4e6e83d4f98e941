"""
A report's suggestions, one at a time
=====================================

The report that the reference recipe follows suggests augmentation, deeper networks and a larger latent. Here each
is tried alone on built-in images and judged; ``benchmarks/ablation.py`` does the same on BloodMNIST with the recipe
``fast``. Needs ``pip install condgen``.
"""

import sys
import tempfile

import torch

import condgen
from condgen.data.augmentation import Augmentation
from condgen.evaluation.judge import load_judge
from condgen.io.pictures import class_grid
from condgen.sampling.grids import per_class

SMOKE = "--smoke" in sys.argv
IMAGES, SIZE, EPOCHS = (200, 16, 1) if SMOKE else (2000, 28, 15)
cells = condgen.load_smears(IMAGES, size=SIZE)
judge = load_judge(cells, cache=tempfile.mkdtemp(), epochs=1 if SMOKE else 10, width=4 if SMOKE else 16)

# %%
# One change a row: options of the model, augmentation of its training images.
rows = {
    "as it is": ({}, None),
    "flips, quarter turns": ({}, Augmentation(flips=True, quarter_turns=True)),
    "rotation, shift": ({}, Augmentation(rotation=15, shift=0.1)),
    "colour": ({}, Augmentation(colour=0.1)),
    "erasing": ({}, Augmentation(erasing=0.3)),
    "blur, sharpening": ({}, Augmentation(blur=0.5, sharpen=0.5)),
    "wider": ({"width": 64}, None),
    "larger latent": ({"latent": 64}, None),
    "latent map": ({"latent": (4, SIZE // 4, SIZE // 4), "width": 32}, None),
}

# %%
# The same number of epochs and the same seed for all; measured on test images beside what held-out real ones reach.
print(f"{'':22}{'FID':>8}{'label accuracy':>16}{'diversity':>11}{'nats (bound)':>14}")
shown = []
for name, (options, augment) in rows.items():
    torch.manual_seed(0)
    model = condgen.conditional_vae(cells.image_shape, cells.num_classes, **{"latent": 16, **options})
    condgen.fit(model, cells, epochs=EPOCHS, augment=augment, progress=False)
    found = condgen.evaluate(model, cells, judge=judge, measure=("fidelity", "model")).measures
    of = [found[measure].overall for measure in ("fid", "label_accuracy", "diversity", "elbo")]
    text = ["–" if value is None else f"{value:.3g}" for value in of]
    print(f"{name:22}{text[0]:>8}{text[1]:>16}{text[2]:>11}{text[3]:>14}")
    shown.append(per_class(model, 1)[:, 0])
floor = [found[measure].floor for measure in ("fid", "label_accuracy", "diversity")]
print(f"{'held-out real images':22}", *("–" if value is None else f"{value:10.3g}" for value in floor))

# %%
# One cell of each class, by each.
figure = class_grid(torch.stack(shown), list(rows))
