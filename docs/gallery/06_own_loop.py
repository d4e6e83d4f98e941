"""
Training without ``fit``
========================

``fit`` is a loop one can do without: an objective is a small callable, noise is an argument. Here is the whole of it.
Needs ``pip install condgen``.
"""

import sys

import torch

import condgen
from condgen.data.batches import batches
from condgen.io.pictures import class_grid
from condgen.losses.elbo import ELBO, LinearWarmup
from condgen.random import Use, normals
from condgen.sampling.grids import per_class

SMOKE = "--smoke" in sys.argv
IMAGES, EPOCHS = (200, 1) if SMOKE else (6000, 20)

blood = condgen.load_smears(IMAGES)
images, labels = torch.as_tensor(blood.train.images), torch.as_tensor(blood.train.labels)
model = condgen.conditional_vae(blood.image_shape, blood.num_classes, latent=16)
objective, warmup = ELBO(), LinearWarmup(epochs=5)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

# %%
# Order and noise are functions of the seed, the epoch and the image, so this repeats bit for bit.
for epoch in range(EPOCHS):
    for index, x, y in batches(images, labels, 128, seed=0, epoch=epoch):
        noise = normals(model.noise_shapes, 0, index, Use.TRAINING, epoch)
        terms = objective(model.infer(x, y, noise), beta=warmup(epoch))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: ELBO {terms['elbo']:.1f}, KL {terms['kl']:.1f} nats per image")

# %%
figure = class_grid(per_class(model, 10), blood.class_names)
