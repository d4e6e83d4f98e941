"""Two routes to one number: the reference recipe against the loop people write in notebooks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condgen.data.batches import batches
from condgen.losses.elbo import ELBO
from condgen.nn.pruning import trim
from condgen.random import Use, normals
from condgen.recipes import bloodmnist_reference

CLASSES, LATENT, BATCH = 8, 128, 4


class Notebook(nn.Module):
    """The recipe as one class: label planes, convolutions, sigmoid, binary cross-entropy on probabilities."""

    def __init__(self, outputs):
        super().__init__()
        widths = (3 + CLASSES, 16, 32, 64, 128, 256, 512)
        strides = (2, 2, 2, 2, 2, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[k], widths[k + 1], 3, strides[k], padding=1) for k in range(len(strides))
        )
        self.mean, self.log_variance = nn.Linear(512, LATENT), nn.Linear(512, LATENT)
        self.linear = nn.Linear(LATENT + CLASSES, 512)
        outs, pads = (256, 128, 64, 32, 16, outputs), (0, 1, 1, 0, 1, 1)
        self.deconvs = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 3, s, padding=1, output_padding=p)
            for i, o, s, p in zip((512, *outs), outs, strides[::-1], pads, strict=False)
        )

    def forward(self, x, one_hot, noise):
        planes = one_hot[:, :, None, None].expand(-1, -1, 28, 28)
        h = torch.cat([x, planes], 1)
        for conv in self.convs:
            h = F.leaky_relu(conv(h), 0.01)
        h = h.flatten(1)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.exp(log_variance / 2) * noise
        h = self.linear(torch.cat([z, one_hot], 1)).view(-1, 512, 1, 1)
        for deconv in self.deconvs[:-1]:
            h = F.leaky_relu(deconv(h), 0.01)
        probabilities = torch.sigmoid(self.deconvs[-1](h))
        target = torch.cat([x, planes], 1)[:, : probabilities.shape[1]]
        bce = F.binary_cross_entropy(probabilities, target, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
        return (bce + kl) / len(x)


@pytest.mark.slow
@pytest.mark.parametrize(("output_labels", "steps"), [(True, 200), (False, 60)])
def test_the_recipe_trains_as_the_notebook_does(output_labels, steps):
    """Same weights, order and noise: the losses of Adam steps agree in float64, dead weights trimmed and all."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (steps * BATCH, 3, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (steps * BATCH,), generator=generator)
    ours = bloodmnist_reference(output_labels).double()
    theirs = Notebook(11 if output_labels else 3).double()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    trim(ours)
    objective = ELBO()
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (ours, theirs)]
    for index, x, y in batches(images, labels, BATCH, seed=0, epoch=0):
        x, noise = x.double(), normals(ours.noise_shapes, 0, index, Use.TRAINING, 0, torch.float64)
        losses = [objective.loss(ours, x, y, noise)["loss"], theirs(x, F.one_hot(y, CLASSES).double(), noise["z"])]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
