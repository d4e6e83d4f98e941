"""
First cells
===========

Train a conditional VAE on built-in blood smears and draw ten new cells of every class. Needs ``pip install condgen``.
"""

import sys

import condgen
from condgen.io.pictures import class_grid
from condgen.sampling.grids import per_class

SMOKE = "--smoke" in sys.argv
IMAGES, EPOCHS = (200, 1) if SMOKE else (6000, 20)

# %%
# Data: drawn blood smears with eight kinds of cell. ``condgen.load_medmnist("bloodmnist")`` has the real ones.
blood = condgen.load_smears(IMAGES)
print(blood)

# %%
# Model: numbers in, an ordinary ``nn.Module`` out.
model = condgen.conditional_vae(blood.image_shape, blood.num_classes, latent=16)
print(model)

# %%
# Training: progress, and a history of the bound's terms in nats per image.
history = condgen.fit(model, blood.train, validation=blood.validation, epochs=EPOCHS, progress=False)
print(history.rows[-1])

# %%
# Result: ten new cells of every class.
figure = class_grid(per_class(model, 10), blood.class_names)
figure.savefig("first_cells.png")
