"""
Beta, and latents that nobody uses
==================================

The weight of the KL decides how much a latent may say. Too much weight, and a decoder does without it: posterior
collapse. Needs ``pip install condgen``.
"""

import sys

import torch

import condgen
from condgen.evaluation.latents import latent_health
from condgen.io.pictures import class_grid
from condgen.losses.elbo import ELBO, LinearWarmup
from condgen.sampling.grids import per_class

SMOKE = "--smoke" in sys.argv
IMAGES, SIZE, EPOCHS = (200, 16, 1) if SMOKE else (3000, 28, 15)
cells = condgen.load_smears(IMAGES, size=SIZE)

# %%
# Four objectives for one network: heavy, as the bound has it, light, and as the bound has it after a rise from 0.
objectives = {
    "beta 20": ELBO(beta=20.0),
    "beta 1": ELBO(),
    "beta 0.1": ELBO(beta=0.1),
    "beta 1, risen": ELBO(beta=LinearWarmup(epochs=EPOCHS / 2, beta=1.0)),
}
rows = []
for name, objective in objectives.items():
    torch.manual_seed(0)
    model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=16)
    history = condgen.fit(model, cells, objective=objective, epochs=EPOCHS, progress=False)
    health = latent_health(model, cells.validation.images, cells.validation.labels)
    print(f"{name:14} {history['validation_kl'][-1]:7.2f} nats in the latents   {health.verdict}")
    rows.append(per_class(model, 8)[6])

# %%
# Eight neutrophils of each. A collapsed model draws one and the same blurred cell; under a light KL the prior draws
# latents that no image has. ``condgen.fit_prior`` mends that: see the example of sharp samples.
figure = class_grid(torch.stack(rows), list(objectives))
