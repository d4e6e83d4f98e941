"""
Moving through the latents
==========================

The same latent drawn as another class, and the way from one cell to another. Needs ``pip install condgen``.
"""

import sys

import torch

import condgen
from condgen.io.pictures import class_grid
from condgen.sampling.grids import pairs
from condgen.sampling.latents import interpolate, transfer

SMOKE = "--smoke" in sys.argv
IMAGES, EPOCHS = (200, 1) if SMOKE else (6000, 20)
blood = condgen.load_smears(IMAGES)
model = condgen.conditional_vae(blood.image_shape, blood.num_classes, latent=16)
condgen.fit(model, blood, epochs=EPOCHS, progress=False)
cells = blood.test.subset(slice(0, 8))

# %%
# Reconstruction: images above, what the model makes of them below.
figure = class_grid(pairs(model, cells.images, cells.labels).transpose(0, 1), ["image", "reconstruction"])

# %%
# Label swap: each row is one cell, drawn as every class. What stays is what the latent carries: size, place, stain.
swapped = transfer(model, cells.images, cells.labels, labels=range(blood.num_classes))
figure = class_grid(swapped, [blood.class_names[label] for label in cells.labels])

# %%
# Interpolation between two draws of the prior, as three classes, along the great circle.
first, last = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
rows = [interpolate(model, first, last, label, steps=10, spherical=True) for label in (1, 6, 7)]
figure = class_grid(torch.stack(rows), [blood.class_names[label] for label in (1, 6, 7)])
