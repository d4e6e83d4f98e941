"""
8. Latent maps, two phases and fitted priors
============================================

Residual networks with a map of latents, trained under averaged weights on images in all their flips and
turns, with a critic of the script's own as a second phase; then two priors fitted to where the latents really lie. Some
four minutes; ``--smoke`` takes seconds. Dependencies: ``pip install "condgen[flows]"``.
"""

# sphinx_gallery_thumbnail_number = 1
import subprocess
import sys
import tempfile

import torch
from torch import nn

import condgen
from condgen.data.augmentation import Augmentation
from condgen.distributions.likelihoods import Laplace
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.distributions.priors.normalizing_flow import Flow
from condgen.io.pictures import class_grid
from condgen.losses.elbo import ELBO
from condgen.losses.phases import Phase
from condgen.sampling.grids import per_class

SMOKE = "--smoke" in sys.argv
IMAGES, EPOCHS, LATENT = (300, 1, (4, 7, 7)) if SMOKE else (2000, 10, (4, 7, 7))


# %%
# A loss is a module with phases: the ELBO with a critic's opinion, then the critic itself.
class Sharper(nn.Module):
    def __init__(self):
        super().__init__()
        self.elbo, self.schedules = ELBO(beta=0.25), ELBO(beta=0.25).schedules
        self.critic = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 1, 3)
        )
        self.phases = (
            Phase(self.model_loss, lambda model: model.parameters(), "model", after=self.elbo.after_step),
            Phase(self.critic_loss, lambda _: self.critic.parameters(), "critic", start=0.25),
        )

    def model_loss(self, model, x, y, noise, beta):
        inference = model.infer(x, y, noise)
        terms, realness = self.elbo(inference, beta), self.critic(inference.p.mean).mean()
        return {**terms, "loss": terms["loss"] - 20 * realness, "realness": realness}

    def critic_loss(self, model, x, y, noise, beta):
        with torch.no_grad():
            drawn = model.infer(x, y, noise).p.mean
        return {"loss": (1 - self.critic(x)).relu().mean() + (1 + self.critic(drawn)).relu().mean()}


# %%
cells = condgen.load_smears(IMAGES)
model = condgen.conditional_vae(
    cells.image_shape, cells.num_classes, latent=LATENT, width=32, likelihood=Laplace("optimal")
)
condgen.fit(
    model,
    cells,
    epochs=EPOCHS,
    batch_size=64,
    objective=Sharper(),
    optimizer="adamw",
    learning_rate=8e-4,
    betas=(0.5, 0.95),
    lr_warmup=0.1,
    lr_decay=0.4,
    clip=1.0,
    ema=0.998,
    augment=Augmentation(flips=True, quarter_turns=True),
)

# %%
# The same decoder under three priors: the standard normal of training, a flow, a mixture of Gaussians for every class.
grids = [per_class(model, 8)]
for prior in (Flow(LATENT, 8, kind="NICE", hidden=(128,)), GaussianMixture(LATENT, condition_dim=8, components=8)):
    condgen.fit_prior(model, cells, prior, symmetries=True, epochs=EPOCHS)
    grids.append(per_class(model, 8))
figure = class_grid(torch.cat(grids, 1), cells.class_names, title="standard normal, flow, mixture")

# %%
# Saved with its prior, the model draws the same images in another process.
with tempfile.TemporaryDirectory() as folder:
    condgen.save(model, folder)
    script = f"import condgen; print(condgen.load({folder!r}).sample([6, 7], seed=1).double().sum().item())"
    drawn = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)  # noqa: S603
    assert float(drawn.stdout) == model.sample([6, 7], seed=1).double().sum().item()

# %%
evaluation = condgen.evaluate(model, cells, usefulness="none", images=60 if SMOKE else None)
print(evaluation.verdict)
