"""Networks that are not told the label: nothing of it reaches an image but through the latents that are drawn."""

import pytest
import torch
from torch import nn

import condgen
from condgen.nn.encoders import ResNetEncoder
from condgen.nn.label_free import LabelFree
from condgen.recipes import RECIPES, latent_map


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = latent_map((1, 16, 16), 3, width=4, label_free=True)
        for weight in found.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.2)
    return found.eval()


def test_the_label_changes_neither_latent_nor_image(model):
    x, z = torch.rand(3, 1, 16, 16), torch.randn(3, *model.prior.noise_shape)
    assert torch.equal(model.encode(x, [0, 1, 2]), model.encode(x, [2, 0, 1]))
    with torch.no_grad():
        assert torch.equal(model.decode(z, torch.tensor([0, 1, 2])).mean, model.decode(z, torch.tensor([1, 1, 0])).mean)


def test_a_fitted_prior_draws_by_label():
    images = condgen.load_smears(60, size=16)
    own = latent_map(images.image_shape, 8, width=4, label_free=True)
    own, _ = RECIPES["fast"].fit(images, model=own, epochs=1, components=1, progress=False, accelerator="cpu")
    noise = {"z": torch.full((8, *own.sampler.noise_shape), 0.3)}
    with torch.no_grad():
        drawn = own.draw(torch.arange(8), noise)
    assert drawn.flatten(1).unique(dim=0).shape[0] == 8


def test_where_no_prior_is_fitted_networks_are_told():
    small = {"image_shape": (1, 16, 16), "num_classes": 3, "width": 4}
    assert isinstance(RECIPES["latent_map"].build(**small, label_free=True).encoder, LabelFree)
    assert isinstance(RECIPES["latent_map"].build(**small).encoder, ResNetEncoder)
    with pytest.raises(ValueError, match="Expected a fitted prior for networks without labels"):
        RECIPES["latent_map"].changed(sampler="none").build(**small, label_free=True)
    nothing = latent_map((1, 16, 16), 0, width=4, label_free=True)  # there is nothing to leave out
    assert isinstance(nothing.encoder, ResNetEncoder)


def test_it_is_saved_with_what_is_inside(model, tmp_path):
    condgen.save(model, tmp_path)
    again = condgen.load(tmp_path)
    assert isinstance(again.decoder, LabelFree)
    assert torch.equal(again.sample([0, 1]), model.sample([0, 1]))
