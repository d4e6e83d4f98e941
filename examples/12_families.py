"""
Other families: GAN, flow, diffusion
====================================

The same words for all: fit, sample, save, evaluate. What each costs and gives at equal budgets is measured in
:doc:`/families`. Needs ``pip install condgen``.
"""

import sys

import torch

import condgen
from condgen.io.pictures import class_grid
from condgen.recipes import RECIPES
from condgen.sampling.grids import per_class

SMOKE = "--smoke" in sys.argv
IMAGES, SIZE, EPOCHS = (200, 16, 1) if SMOKE else (2000, 28, 40)
cells = condgen.load_smears(IMAGES, size=SIZE)
shape, classes = cells.image_shape, cells.num_classes

models = {
    "VAE": condgen.conditional_vae(shape, classes, latent=16),
    "GAN": condgen.conditional_gan(shape, classes, width=32),
    "flow": condgen.conditional_flow(shape, classes, widths=(32, 64), depth=1),
    "diffusion": condgen.conditional_flow(shape, classes, widths=(32, 64), depth=1, path="cosine"),
}
print(models["GAN"])
print(models["diffusion"])

# %%
# Each knows its objective; a recipe has the numbers to train it by, any of which may be passed instead.
rows = []
for (name, model), recipe in zip(models.items(), ("default", "gan", "flow", "diffusion"), strict=True):
    model, history = RECIPES[recipe].fit(cells, model=model, epochs=EPOCHS, progress=False)
    print(f"{name:10} {type(model.objective()).__name__:9} {history['images_per_second'][-1]:,.0f} images/s")
    rows.append(per_class(model, 1)[:, 0])

# %%
# One cell of each class, by each.
figure = class_grid(torch.stack(rows), list(models))
