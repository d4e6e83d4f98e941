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
from condgen.sampling.grids import per_class

SMOKE = "--smoke" in sys.argv
IMAGES, SIZE, EPOCHS = (200, 16, 1) if SMOKE else (2000, 28, 20)
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
# Each knows what it is trained by; any other objective may be passed.
rows = []
for name, model in models.items():
    history = condgen.fit(model, cells, epochs=EPOCHS, batch_size=64, ema=0.99, progress=False)
    print(f"{name:10} {type(model.objective()).__name__:9} {history['images_per_second'][-1]:,.0f} images/s")
    rows.append(per_class(model, 1)[:, 0])

# %%
# One cell of each class, by each.
figure = class_grid(torch.stack(rows), list(models))
