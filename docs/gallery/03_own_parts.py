"""
Your own encoder and decoder
============================

Any module that honours a shelf's contract fits: an encoder is called ``(x, c)`` and returns two numbers per latent, a
decoder is called ``(z, c)`` and returns logits. Needs ``pip install condgen``.
"""

import sys
import tempfile

import torch
from torch import nn

import condgen
from condgen.distributions import likelihoods, priors, reparameterizers
from condgen.io.pictures import class_grid
from condgen.nn import conditioners, layers
from condgen.sampling.grids import per_class

SMOKE = "--smoke" in sys.argv
IMAGES, EPOCHS, LATENT = (200, 1, 16) if SMOKE else (4000, 15, 16)
blood = condgen.load_smears(IMAGES)


# %%
# An encoder of your own: any ``nn.Module``.
class PatchEncoder(nn.Module):
    def __init__(self, channels, condition_dim, latent):
        super().__init__()
        self.patches = nn.Conv2d(channels, 64, kernel_size=7, stride=7)
        self.head = nn.Sequential(nn.Linear(64 * 16 + condition_dim, 128), nn.SiLU(), nn.Linear(128, 2 * latent))

    def forward(self, x, c):
        return self.head(torch.cat([self.patches(x).flatten(1), c], dim=1))


# %%
# A decoder from ``nn.Sequential``: ``Concatenate`` joins the condition to its input.
decoder = layers.Concatenate(
    nn.Sequential(
        nn.Linear(LATENT + blood.num_classes, 64 * 7 * 7),
        nn.SiLU(),
        nn.Unflatten(1, (64, 7, 7)),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.SiLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(32, 3, 3, padding=1),
    )
)

# %%
# The assembly.
model = condgen.ConditionalVAE(
    conditioner=conditioners.OneHot(blood.num_classes),
    encoder=PatchEncoder(3, blood.num_classes, LATENT),
    reparameterizer=reparameterizers.Gaussian(),
    prior=priors.StandardNormal(LATENT),
    decoder=decoder,
    likelihood=likelihoods.Bernoulli(),
    image_shape=blood.image_shape,
)
print(model)
condgen.fit(model, blood, epochs=EPOCHS, progress=False)

# %%
# Saved files hold no code. The decoder is described layer by layer; the encoder, whose class is yours, is handed over
# again at load.
with tempfile.TemporaryDirectory() as folder:
    condgen.save(model, folder)
    again = condgen.load(folder, parts={"encoder": PatchEncoder(3, blood.num_classes, LATENT)})
print("same samples:", torch.equal(again.sample([0, 1]), model.sample([0, 1])))

# %%
figure = class_grid(per_class(model, 10), blood.class_names)
