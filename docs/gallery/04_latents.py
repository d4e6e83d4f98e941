"""
Moving through the latents
==========================

The same latent drawn as another class, the way from one cell to another, and new cells near a given one, by the model
that comes with condgen. Needs ``pip install condgen``.
"""

import torch

import condgen
from condgen.io.pictures import class_grid
from condgen.sampling.latents import interpolate, transfer

model = condgen.load("bloodmnist")
names = [name.split("(")[0] for name in model.class_names]
labels = [0, 1, 2, 4, 5, 6]
cells = model.sample(labels, seed=3)  # images of your own do as well

# %%
# Reconstruction: images above, what the model makes of them below.
figure = class_grid(torch.stack([cells, model.reconstruct(cells, labels)]), ["image", "reconstruction"])

# %%
# Label swap: each row is one cell, decoded under every label. A map of latents says nearly everything itself, so little
# changes; a vector of few latents leaves more to the label (see the lesson at the end of the gallery).
swapped = transfer(model, cells, labels, labels=range(len(names)))
figure = class_grid(swapped, [names[label] for label in labels])

# %%
# The way between two cells of a class, straight through the map of latents.
ends = model.sample([1, 1, 6, 6, 3, 3], seed=5)
rows = [interpolate(model, ends[2 * k], ends[2 * k + 1], label, steps=10) for k, label in enumerate((1, 6, 3))]
figure = class_grid(torch.stack(rows), [names[label] for label in (1, 6, 3)])

# %%
# New cells near a given one: further along the prior from left to right, with the same noise.
near = [condgen.vary(model, cells, labels, strength=strength) for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
figure = class_grid(torch.stack([cells, *near], 1), [names[label] for label in labels], title="image, strength 0 to 1")
