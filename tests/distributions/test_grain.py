"""Grain: noise with the spectrum that drawn images lack, found from real and drawn images."""

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import condgen
from condgen.distributions.grain import Grain, activity, fine, spectrum, wrapped
from condgen.random import Use, normals
from condgen.recipes import RECIPES

COUNT = 1500


def white(shape, seed=0):
    return torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(seed))


def smooth(shape, seed=1):
    """Cells, as far as grain is concerned: slow changes around the middle of the range."""
    rough = white(shape, seed)
    for _ in range(8):
        for axis in (2, 3):
            rough = (rough + rough.roll(1, axis)) / 2
    return 0.5 + 0.2 * rough


def grained(grain, base, seed=3):
    return grain(base, white(grain.noise_shape, seed))


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 16, 12), (2, 15, 15)])
def test_drawn_images_get_the_spectrum_of_real_ones(shape):
    """Known truth: real images are smooth ones with noise under a kernel that is not symmetric and mixes channels."""
    truth = Grain(shape, size=3)
    truth.kernel.normal_(std=0.03, generator=torch.Generator().manual_seed(5))
    real = smooth(shape) + torch.nn.functional.conv2d(wrapped(white(shape), 1), truth.kernel)
    drawn = smooth(shape)
    found = Grain(shape)
    found.estimate(real, drawn)
    mask = fine(shape[1:]) == 1
    lacking, added = (spectrum(one)[:, :, mask] for one in (real - drawn, grained(found, drawn) - drawn))
    variance = lacking.diagonal().mean(0)
    assert torch.allclose(added.diagonal().mean(0), variance, rtol=0.1)
    assert (added - lacking).abs().mean() < 0.12 * variance.mean()


def test_power_stands_at_its_own_frequency_and_the_mirrored_one():
    waves = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16)[:, None].expand(16, 12)
    found = spectrum(white((1, 1, 1)) * waves)[0, 0]
    assert set(map(tuple, (found > 1e-6).nonzero().tolist())) == {(3, 0), (13, 0)}


def test_channels_of_grey_grain_go_together():
    shape = (3, 16, 16)
    noise = white((1, 16, 16)).expand(-1, 3, -1, -1)
    grain = Grain(shape)
    grain.estimate(smooth(shape) + 0.05 * noise, smooth(shape))
    added = grained(grain, torch.full((COUNT, *shape), 0.5)) - 0.5
    assert np.corrcoef(added.transpose(0, 1).flatten(1).numpy()).min() > 0.98


def test_there_is_none_where_drawn_images_lack_nothing():
    shape = (1, 16, 16)
    real, grain = smooth(shape) + 0.05 * white(shape), Grain(shape)
    for drawn in (real, smooth(shape) + 0.1 * white(shape)):
        grain.estimate(real, drawn)
        assert float((grained(grain, drawn) - drawn.clamp(0, 1)).abs().max()) < 0.002


def test_it_is_strong_where_drawn_images_lack_much():
    """Known truth: noise of 0.02 on a flat half of each image, of 0.06 on a textured one."""
    shape = (1, 16, 32)
    texture = 0.05 * white((1, 16, 32)).sign()
    texture[..., :16] = 0
    drawn = 0.5 + texture
    spread = torch.full((16, 32), 0.02)
    spread[:, 16:] = 0.06
    grain = Grain(shape)
    grain.estimate(drawn + spread * white(shape, 8), drawn)
    added = (grained(grain, drawn) - drawn).square().mean((0, 1)).sqrt()
    share = float(fine(shape[1:]).mean()) ** 0.5  # slow changes of white noise are no grain
    assert float(added[:, 4:12].mean()) == pytest.approx(0.02 * share, rel=0.15)
    assert float(added[:, 20:28].mean()) == pytest.approx(0.06 * share, rel=0.1)


def test_activity_is_that_of_fine_detail():
    x = torch.full((1, 1, 12, 12), 0.5)
    x[..., 6:, 6:] += 0.1 * (torch.arange(6) % 2)
    found = activity(x)[0, 0]
    assert float(found[:3, :3].max()) == 0
    assert float(found[9, 9]) == pytest.approx(
        0.1 * 2 / 3, rel=0.1
    )  # a stripe and the mean of three, two of them others
    assert torch.allclose(activity(x.expand(-1, 3, -1, -1)), activity(x))
    assert torch.allclose(activity(2 * x - 0.3), 2 * activity(x), atol=1e-6)


def test_slow_changes_are_no_grain():
    shape = (1, 32, 32)
    grain = Grain(shape)
    waves = torch.cos(2 * torch.pi * torch.arange(32) / 16)[:, None].expand(32, 32)
    flat = torch.full((COUNT, *shape), 0.5)
    grain.estimate(flat + 0.2 * white((1, 1, 1)) * waves, flat)
    assert float((grained(grain, flat) - flat).abs().max()) < 1e-3


def test_what_is_the_same_in_every_image_is_no_grain():
    pattern = (torch.arange(16) % 2 * 0.2 + 0.4)[:, None].expand(COUNT, 1, 16, 16)
    grain, flat = Grain((1, 16, 16)), torch.full((COUNT, 1, 16, 16), 0.5)
    grain.estimate(pattern, flat)
    assert float((grained(grain, flat) - flat).abs().max()) < 1e-3


@pytest.mark.parametrize("size", [1, 3])
def test_a_small_kernel_is_the_nearest_to_that_of_the_noise(size):
    """Known truth: it is the middle of the large kernel, whatever frequencies lie outside."""
    shape, truth, found = (1, 16, 16), Grain((1, 16, 16), 7), Grain((1, 16, 16), size)
    ridge = torch.tensor([0.01, -0.02, 0.05, -0.1, 0.05, -0.02, 0.01])  # symmetric, of positive transfer, fine detail
    truth.kernel.copy_(-ridge * ridge[:, None] / ridge.min())
    truth.strength.fill_(1.0)
    flat = torch.full((COUNT, *shape), 0.5)
    noise = grained(truth, flat) - flat
    found.estimate(flat + noise, flat)
    middle = truth.kernel[:, :, 3 - size // 2 : 4 + size // 2, 3 - size // 2 : 4 + size // 2]
    added = grained(found, flat) - flat
    assert float(added.square().mean()) == pytest.approx(float(middle.square().sum()), rel=0.1)
    assert torch.allclose(found.kernel / found.kernel.norm(), middle / middle.norm(), atol=0.1)


def test_all_channels_together_get_no_more_than_they_lack():
    """Known truth: grey noise is missing, and drawn images have too much of coloured noise, a third of its power."""
    shape, colour = (2, 16, 16), torch.tensor([1.0, -1.0])[:, None, None]
    grey, coloured = white((1, 16, 16), 5).expand(-1, 2, -1, -1), white((1, 16, 16), 6) * colour
    drawn, grain = smooth(shape) + 0.03 / 3**0.5 * coloured, Grain(shape)
    grain.estimate(smooth(shape) + 0.03 * grey, drawn)
    added = grained(grain, drawn) - drawn
    mask = fine(shape[1:]) == 1
    power = float(spectrum(added).diagonal().sum(-1)[mask].mean())
    assert power == pytest.approx(2 * 0.03**2 * 2 / 3, rel=0.1)
    assert np.corrcoef(added.transpose(0, 1).flatten(1).numpy()).min() > 0.98


def test_it_is_as_strong_at_the_border_as_within():
    shape, grain = (1, 16, 16), Grain((1, 16, 16))
    grain.kernel.normal_(std=0.005, generator=torch.Generator().manual_seed(5))
    grain.strength.fill_(1.0)
    spread = (grained(grain, torch.full((COUNT, *shape), 0.5)) - 0.5).std(0)[0]
    assert torch.allclose(spread, spread.mean().expand(16, 16), rtol=0.12)


@given(st.sampled_from([1, 3, 9]), st.integers(1, 20), st.integers(1, 20))
def test_images_stay_images(size, height, width):
    grain = Grain((1, height, width), size)
    grain.kernel.normal_(std=5.0)
    grain.strength.fill_(1.0)
    x = grain(torch.rand(2, 1, height, width), torch.randn(2, 1, height, width))
    assert x.shape == (2, 1, height, width)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1


def test_what_is_refused():
    with pytest.raises(ValueError, match="Expected an odd size of a kernel; got 4"):
        Grain((1, 8, 8), 4)
    for real, drawn in (((1, 1, 8, 8), (1, 1, 8, 8)), ((4, 1, 8, 8), (3, 1, 8, 8)), ((4, 1, 9, 8), (4, 1, 9, 8))):
        with pytest.raises(ValueError, match=r"Expected two images or more of \(1, 8, 8\), and as many drawn ones"):
            Grain((1, 8, 8)).estimate(torch.zeros(real), torch.zeros(drawn))


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(300, size=16)


@pytest.fixture
def model(cells):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)  # draws next to nothing yet
    found.class_names = cells.class_names
    return found.eval()


def test_a_models_images_get_what_reconstructions_lack(model, cells):
    grain = condgen.fit_grain(model, cells, progress=False)
    real = torch.tensor(cells.train.images) / 255
    model.grain = None
    plain = model.reconstruct(cells.train.images, cells.train.labels)
    model.grain = grain
    assert torch.equal(model.reconstruct(cells.train.images, cells.train.labels), plain)
    mask = fine((16, 16)) == 1
    noise = torch.randn(len(plain), *grain.noise_shape, generator=torch.Generator().manual_seed(0))
    want, lacking, got = (spectrum(x).diagonal()[mask].mean() for x in (real, plain, grain(plain, noise)))
    assert lacking < 0.5 * want
    assert 0.85 * want < got < 1.1 * want  # some of it is cut off at black and white


def test_samples_are_the_same_but_for_the_grain(model, cells):
    labels = np.arange(12) % 8
    plain = model.sample(labels, seed=4)
    grain = condgen.fit_grain(model, cells, progress=False)
    whole, part = model.sample(labels, seed=4), model.sample(labels[5:9], seed=4, start=5)
    noise = normals(model.sampling_noise_shapes, 4, torch.arange(12), Use.SAMPLING)
    assert list(noise) == ["z", "grain"]
    assert torch.equal(whole[5:9], part)
    assert torch.allclose(whole, grain(plain, noise["grain"]), atol=1e-6)
    assert not torch.allclose(whole, plain, atol=0.01)


def test_mixed_images_and_variations_have_it_too(model, cells):
    grain, (x, y) = condgen.fit_grain(model, cells, progress=False), (cells.images[:4], cells.labels[:4])
    model.label_mixing = 0.5
    found = model.sample(y), condgen.vary(model, x, y)
    names, model.grain = model.sampling_noise_shapes, None
    for images, without, use in zip(
        found, (model.sample(y), condgen.vary(model, x, y)), (Use.SAMPLING, Use.VARIATION), strict=True
    ):
        noise = normals(names, 0, torch.arange(4), use)["grain"]
        assert torch.allclose(images, grain(without, noise), atol=1e-6)


def test_likelihoods_know_nothing_of_it(model, cells):
    x, y = cells.images[:4], cells.labels[:4]
    before = model.log_likelihood(x, y, samples=2)
    condgen.fit_grain(model, cells, progress=False)
    assert torch.equal(model.log_likelihood(x, y, samples=2), before)


def test_it_is_saved_and_told(model, cells, tmp_path):
    condgen.fit_grain(model, cells, progress=False)
    again = condgen.load(condgen.save(model, tmp_path / "run"))
    assert torch.equal(again.sample([0, 5]), model.sample([0, 5]))
    assert "grain           Grain            x (3, 16, 16) → x (3, 16, 16)" in repr(again)
    again.grain = None
    plain = condgen.load(condgen.save(again, tmp_path / "plain"))
    assert plain.grain is None
    assert list(plain.sampling_noise_shapes) == ["z"]


@pytest.mark.parametrize(
    ("made", "count", "message"),
    [
        (lambda: condgen.conditional_gan((3, 16, 16), 8, latent=4, width=4), 300, "Expected a model that reconstructs"),
        (
            lambda: condgen.conditional_vae((3, 16, 16), 8, latent=4, width=4),
            1,
            "at least two images to compare; got 1",
        ),
    ],
)
def test_what_has_no_grain(made, count, message, cells):
    with pytest.raises(ValueError, match=message):
        condgen.fit_grain(made(), cells, images=count, progress=False)


def test_large_images_are_fewer(model, cells, monkeypatch):
    seen = []
    monkeypatch.setattr(import_module("condgen.training.fit_grain"), "PIXELS", 40 * 16 * 16)
    monkeypatch.setattr(Grain, "estimate", lambda _, real, drawn: seen.extend((len(real), len(drawn))))
    condgen.fit_grain(model, cells, progress=False)
    condgen.fit_grain(model, cells, images=9, progress=False)
    assert seen == [40, 40, 9, 9]


def test_a_recipe_draws_it_if_it_is_asked_to(cells, tmp_path):
    settings = {"epochs": 1, "components": 1, "grain": True, "progress": False}
    model, _ = RECIPES["latent_map"].fit(cells, tmp_path / "run", **settings)
    kept = condgen.load(tmp_path / "run")
    assert torch.equal(kept.grain.kernel, model.grain.kernel)
    again, _ = RECIPES["latent_map"].fit(cells, tmp_path / "run", resume=True, **settings)
    assert torch.equal(again.sample([1, 2]), kept.sample([1, 2]))
    plain, _ = RECIPES["latent_map"].fit(cells, **settings | {"grain": False})
    assert plain.grain is None
