"""
Which likelihood?
=================

What a model calls noise decides what it draws. Four likelihoods on the same network, compared where they can be: in
bits per dimension on held-out images. Needs ``pip install condgen``.
"""

import sys

import torch

import condgen
from condgen.distributions import likelihoods
from condgen.io.pictures import class_grid

SMOKE = "--smoke" in sys.argv
IMAGES, EPOCHS, SAMPLES = (200, 1, 2) if SMOKE else (6000, 15, 64)
blood = condgen.load_smears(IMAGES)
held_out = blood.test.subset(slice(0, 100))

CHOICES = {
    "Bernoulli": likelihoods.Bernoulli(),
    "continuous Bernoulli": likelihoods.ContinuousBernoulli(),
    "Gaussian, optimal scale": likelihoods.Gaussian("optimal"),
    "discretised logistic": likelihoods.DiscretizedLogistic(),
}

# %%
# Binary cross-entropy on grey pixels is no probability of an image, so its bits per dimension are refused.
rows = []
for name, likelihood in CHOICES.items():
    torch.manual_seed(0)
    model = condgen.conditional_vae(blood.image_shape, blood.num_classes, latent=16, likelihood=likelihood)
    history = condgen.fit(model, blood, epochs=EPOCHS, progress=False)
    try:
        bits = model.bits_per_dimension(held_out.images, held_out.labels, samples=SAMPLES).mean()
        print(f"{name:<24} KL {history['validation_kl'][-1]:6.1f} nats, {bits:.2f} bits per dimension")
    except ValueError as refusal:
        print(f"{name:<24} KL {history['validation_kl'][-1]:6.1f} nats, {refusal}")
    rows.append(model.sample([1, 3, 5, 6, 7] * 2, seed=0))

# %%
# The same seed and labels from each. The densities put more nats into the latents and keep more of an image, but a
# standard normal prior matches what their decoders have seen less well: after a training this short they draw worse.
figure = class_grid(torch.stack(rows), list(CHOICES))
