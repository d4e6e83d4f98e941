"""Moment matching of a model's distilled network: whose moments they are, and how it goes with recipes."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import condgen
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.moments import MomentMatched
from condgen.recipes import RECIPES
from condgen.training.fit_prior import encode_latents
from condgen.training.match_moments import match_moments
from tests.training.test_training import same, weights


class Contracting(nn.Module):
    """Half of the way to a place of the class."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.5))

    def forward(self, z, t, c, component, dropped):
        return -self.rate * z + 3 * c[:, :1]


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(300, size=16)


@pytest.fixture
def model(cells):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
    found.class_names = tuple(cells.class_names)
    found.sampler = FlowMatching(4, 8, steps=1)
    condgen.fit_prior(found, cells, found.sampler, epochs=1, progress=False)
    found.sampler.steps, found.sampler.student = 1, Contracting()
    return found


def drawn(model, data, seed=7):
    """Fresh draws of the sampler, standardised, a thousand of each image's label in turn."""
    c = model.condition(model.labels(np.resize(data.labels, 4000)))
    noise = torch.randn(4000, *model.sampler.noise_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.sampler.scale(model.sampler.draw(c, noise))


def test_draws_have_the_moments_of_latents(model, cells):
    with torch.no_grad():
        z, _ = encode_latents(model, cells.train, symmetries=True)  # 480 a dimension: believed wholly
        z = model.sampler.scale(z)
    before = drawn(model, cells.train)
    flow = match_moments(model, cells, symmetries=True, draws=4000, progress=False)
    assert flow is model.sampler
    after = drawn(model, cells.train)
    assert (before.T.cov() - z.T.cov()).abs().max() > 0.5
    assert (after.mean(0) - z.mean(0)).abs().max() < 0.1
    assert (after.T.cov() - z.T.cov()).abs().max() < 0.15


def test_classes_count_as_among_the_images(model, cells):
    """The mean of the ends is that under the labels of the images: 3 for the first class and 0 for others."""
    few = cells.train.subset(np.flatnonzero(cells.train.labels < 2)[:60])
    match_moments(model, few, draws=3000, progress=False)
    share = float((few.labels == 0).mean())
    assert float(model.sampler.student.centre[0]) == pytest.approx(3 * share, abs=0.05)


def test_again_it_is_found_anew(model, cells):
    first = match_moments(model, cells, draws=500, progress=False).student
    second = match_moments(model, cells, draws=500, progress=False).student
    assert second.network is first.network
    assert isinstance(second.network, Contracting)
    assert torch.equal(first.matrix, second.matrix)
    third = match_moments(model, cells, draws=500, seed=1, progress=False).student
    assert not torch.equal(first.matrix, third.matrix)


def test_the_flow_stays_as_it_is(model, cells):
    before = weights(model.sampler.velocity)
    match_moments(model, cells, draws=200, progress=False)
    assert same(weights(model.sampler.velocity), before)
    assert model.sampler.steps == 1
    assert not model.sampler.student.training


@pytest.mark.parametrize("sampler", [None, "flow"])
def test_what_has_no_distilled_network(sampler, cells):
    model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
    model.sampler = sampler and FlowMatching(4, 8)
    with pytest.raises(ValueError, match="samples from flow matching with a distilled network"):
        match_moments(model, cells, progress=False)


def test_too_few(model, cells):
    with pytest.raises(ValueError, match="at least two draws and two training images; got 1 and 240"):
        match_moments(model, cells, draws=1, progress=False)
    with pytest.raises(ValueError, match="got 30000 and 1"):
        match_moments(model, cells.train.subset(slice(0, 1)), progress=False)


@pytest.mark.parametrize("symmetries", [False, True])
def test_a_budget_takes_what_it_has_time_for(symmetries, model, cells, monkeypatch):
    seen, fit = [], MomentMatched.fit

    def watched(self, ends, latents):
        seen.append((len(ends), len(latents)))
        return fit(self, ends, latents)

    monkeypatch.setattr(MomentMatched, "fit", watched)
    for minutes in (1e-9, 10, None):
        match_moments(model, cells, symmetries=symmetries, minutes=minutes, progress=False)
    images = len(cells.train)
    assert seen[0] == ((120, 30) if symmetries else (500, 240))
    turns = 8 if symmetries else 1
    taken = turns * -(-images // turns)  # an eighth of the images in eight turns
    assert seen[1] == (4 * taken, taken)
    assert seen[2] == (4 * turns * images, turns * images)


CHOSEN = {"epochs": 1, "components": 1, "sampler_epochs": 1, "distil_pairs": 40, "distil_epochs": 1}
CHOSEN |= {"progress": False, "accelerator": "cpu"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The distilled network")
class TestRecipe:
    def test_it_may_be_left_out(self):
        data = condgen.load_smears(24, size=16)
        plain, _ = RECIPES["sharp"].fit(data, **CHOSEN, moments=False)
        assert not isinstance(plain.sampler.student, MomentMatched)

    def test_stopped_before_it_a_recipe_goes_on_there(self, tmp_path):
        data = condgen.load_smears(24, size=16)
        whole, _ = RECIPES["sharp"].fit(data, tmp_path / "whole", **CHOSEN)
        assert isinstance(whole.sampler.student, MomentMatched)

        def killed(*_, **__):
            raise RuntimeError("pulled out")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("condgen.recipes.match_moments", killed)
            with pytest.raises(RuntimeError, match="pulled out"):
                RECIPES["sharp"].fit(data, tmp_path / "stopped", **CHOSEN)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again, _ = RECIPES["sharp"].fit(data, tmp_path / "stopped", resume=True, **CHOSEN)
        assert same(weights(again), weights(whole))
        assert torch.equal(condgen.load(tmp_path / "stopped").sample([0, 1]), whole.sample([0, 1]))
