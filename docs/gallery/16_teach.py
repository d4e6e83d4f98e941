"""
From the bound to sharp cells
=============================

A lesson in six steps: what a conditional VAE is trained on, why its images are blurred, and what makes them sharp.
Every number is computed twice, by condgen and by hand. Download it as a notebook at the end of this page; it takes a
minute or two. Needs ``pip install condgen``.
"""

# sphinx_gallery_thumbnail_number = 5
import math
import sys

import torch

import condgen
from condgen.distributions.likelihoods import Bernoulli
from condgen.io.pictures import class_grid
from condgen.losses.elbo import ELBO
from condgen.random import Use, normals
from condgen.sampling.grids import per_class
from condgen.sampling.latents import transfer

SMOKE = "--smoke" in sys.argv
IMAGES, EPOCHS = (300, 2) if SMOKE else (6000, 20)
cells = condgen.load_smears(IMAGES)

# %%
# Step 1. A story of how images come about
# ----------------------------------------
#
# A label :math:`y` says which class. A *latent* :math:`z`, here 16 numbers, says everything else: where the cell lies,
# how it is turned, how strongly it is stained. A decoder makes of both the parameters of a distribution over images,
# :math:`p(x \mid z, y)`. To draw an image of a class is to draw :math:`z` from a standard normal, and to decode.
torch.manual_seed(0)
model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=16, likelihood=Bernoulli())
print(model)
figure = class_grid(per_class(model, 10)[:3], cells.class_names[:3], title="before any training")

# %%
# Step 2. The bound
# -----------------
#
# How probable is a given image under this story? That is an integral over all latents, which nobody can compute. But
# for any distribution :math:`q(z \mid x, y)` over latents
#
# .. math:: \log p(x \mid y) \ge \mathbb E_q \log p(x \mid z, y) - \mathrm{KL}\big(q(z \mid x, y) \,\|\, p(z)\big)
#
# An *encoder* proposes such a :math:`q` for each image: 16 means and 16 standard deviations. The first term asks that
# the image can be read off the latent, the second that the latent does not say more than it has to. Both are in nats
# per image. For a normal :math:`q` the second is a sum of :math:`\frac12 (\mu^2 + \sigma^2 - 1) - \log \sigma`:
some = cells.train.subset(slice(0, 100))
x, y = torch.as_tensor(some.images) / 255, torch.as_tensor(some.labels)
noise = normals(model.noise_shapes, 0, torch.arange(100), Use.TRAINING)
with torch.no_grad():
    found = model.infer(x, y, noise)
    terms = ELBO()(found)
    q = model.posterior(x, y)
    kl = (0.5 * (q.mean**2 + q.stddev**2 - 1) - q.stddev.log()).sum(1).mean()
    z = q.mean + q.stddev * noise["z"]  # the reparameterization trick: gradients pass through mean and deviation
    p = model.decode(z, y).mean
    log_likelihood = (x * p.log() + (1 - x) * (1 - p).log()).sum((1, 2, 3)).mean()
print(f"KL: {terms['kl']:.4f} nats by condgen, {kl:.4f} by hand")
print(f"log-likelihood: {terms['log_likelihood']:.2f} nats by condgen, {log_likelihood:.2f} by hand")
assert math.isclose(terms["kl"], kl, rel_tol=1e-4)
assert math.isclose(terms["log_likelihood"], log_likelihood, rel_tol=1e-4)

# %%
# Step 3. Training raises the bound
# ---------------------------------
history = condgen.fit(model, cells, epochs=EPOCHS, progress=False)
print(history.rows[-1])
figure = history.plot()

# %%
# Step 4. What the latent knows, and what it does not
# ---------------------------------------------------
#
# The same latent under every label: place, size and stain stay, the class changes. Nobody told the model to keep them
# apart. The label is given, so the latent need not say it again, and saying it would cost.
few = cells.test.subset(slice(0, 6))
swapped = transfer(model, few.images, few.labels, labels=range(cells.num_classes))
names = [cells.class_names[label] for label in few.labels]
figure = class_grid(swapped, names, title="each row one latent, as every class")

# %%
# Step 5. Why samples are blurred
# -------------------------------
#
# Pixels are independent given the latent. What the latent does not tell, such as the grain of a granule, the decoder
# can only guess pixel by pixel, and the best guess is the mean of all that could be: a blur. How much the latent tells
# is the KL, a dozen nats; an image of 2,352 grey levels holds thousands. Above: images. Below: what the model makes
# of them.
back = model.reconstruct(torch.as_tensor(few.images), few.labels)
figure = class_grid(torch.stack([torch.as_tensor(few.images) / 255, back.cpu()]), ["image", "reconstruction"])
print(f"nats in the latent: {history['validation_kl'][-1]:.1f}")

# %%
# Step 6. More latents, and a prior that knows where they lie
# -----------------------------------------------------------
#
# The cure has three parts. A *map* of latents (4 numbers at each of 7x7 places) with a Laplace likelihood whose scale
# is learnt tells hundreds of nats, and reconstructions become sharp. But now the standard normal is far from where the
# latents of real images lie, so its draws are of nothing. Therefore a prior is fitted to the latents afterwards: a
# mixture of Gaussians for each class, and from it flow matching, which bends the mixture's draws to where the latents
# are; that flow is then distilled into a single step.
#
# The model that comes with condgen was trained so on BloodMNIST. Here are its own parts, one after the other, on the
# same labels: nothing below is a photograph.
sharp = condgen.load("bloodmnist")
labels, flow = [1, 3, 6, 7] * 3, sharp.sampler
rows = {}
sharp.sampler = None  # samples come from the standard normal that it was trained under
rows["standard normal"] = sharp.sample(labels)
sharp.sampler = flow.source
rows["mixture per class"] = sharp.sample(labels)
sharp.sampler, flow.steps = flow, 2
rows["flow, two steps"] = sharp.sample(labels)
flow.steps = 1
rows["distilled, one step"] = sharp.sample(labels)
figure = class_grid(torch.stack(list(rows.values())), list(rows))

# %%
# Is that good enough to train a classifier on? That is a question of its own, and
# :doc:`it can be answered </evaluation>`.
