"""Mixing: images whose labels, and latents, lie between those of their class and those of another."""

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import condgen
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.io.pictures import to_uint8
from condgen.models.mixing import OTHER, OTHER_LATENT, SHARE, mixed, mixing_noise
from condgen.nn.conditioners import OneHot
from condgen.random import Use, normals
from condgen.recipes import latent_map
from condgen.sampling.shards import write_samples

CLASSES = 3


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = latent_map((1, 16, 16), CLASSES, width=4)
        for weight in found.parameters():
            nn.init.normal_(weight, std=0.2)
    return found.eval()


def numbers(model, count, use=Use.SAMPLING):
    return normals(model.sampling_noise_shapes, 0, torch.arange(count), use)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_latents_are_those_of_the_label_and_the_condition_lies_between_two(model, share):
    labels = torch.arange(60) % CLASSES
    z = numbers(model, 60)["z"]
    model.label_mixing = share
    noise = numbers(model, 60)
    assert torch.equal(noise["z"], z)
    other = noise[OTHER].argmax(1)
    eye = torch.eye(CLASSES)
    with torch.no_grad():
        expected = model.decode_from(z, (1 - share) * eye[labels] + share * eye[other]).mean
    assert torch.allclose(model.sample(labels), expected, atol=1e-6)
    assert not torch.allclose(model.sample(labels), model.decode(z, labels).mean, atol=1e-3)


def test_every_class_is_mixed_in_as_often(model):
    model.label_mixing = 0.5
    counts = torch.bincount(numbers(model, 6000)[OTHER].argmax(1), minlength=CLASSES)
    assert (counts - 2000).abs().max() < 5 * (2000 * 2 / 3) ** 0.5


def test_nothing_is_mixed_unless_it_is_asked_for(model):
    assert model.label_mixing == 0
    assert set(model.sampling_noise_shapes) == {"z"}
    with torch.no_grad():
        assert torch.equal(model.draw(torch.tensor([1, 2]), numbers(model, 2)), model.sample([1, 2]))


def test_a_sample_is_a_function_of_its_number(model):
    model.label_mixing = 0.5
    assert torch.equal(model.sample([0, 1, 2, 0])[2:], model.sample([2, 0], start=2))
    data = condgen.as_dataset(model, per_class=2)
    assert torch.equal(torch.stack([image for image, _ in data]), model.sample([0, 0, 1, 1, 2, 2]))


def test_networks_without_labels_have_nothing_to_mix():
    model = latent_map((1, 16, 16), CLASSES, width=4, label_free=True)
    own = model.sample([0, 1, 2])
    model.label_mixing = 1.0
    assert torch.equal(model.sample([0, 1, 2]), own)


def test_variations_are_mixed_too(model):
    x, labels = torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    own = condgen.vary(model, x, labels, strength=0.0)
    model.label_mixing = 1.0
    other = numbers(model, 4, Use.VARIATION)[OTHER].argmax(1)
    with torch.no_grad():
        expected = model.decode(model.encode(x, labels), other).mean
    found = condgen.vary(model, x, labels, strength=0.0)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, own, atol=1e-3)


def test_it_is_saved_and_folders_of_samples_remember_it(model, tmp_path):
    model.label_mixing = 0.5
    condgen.save(model, tmp_path / "run")
    again = condgen.load(tmp_path / "run")
    assert again.label_mixing == 0.5
    assert torch.equal(again.sample([0, 1]), model.sample([0, 1]))
    write_samples(model, [0, 1], tmp_path / "images")
    model.label_mixing = 0.0
    with pytest.raises(ValueError, match="holds samples of other label_mixing"):
        write_samples(model, [0, 1, 2], tmp_path / "images")


@pytest.mark.parametrize(("classes", "share"), [(CLASSES, -0.1), (CLASSES, 1.1), (0, 0.5)])
def test_wrong_values(classes, share):
    model = latent_map((1, 16, 16), classes, width=4)
    model.label_mixing = share
    with pytest.raises(ValueError, match="Expected label_mixing from 0 to 1, and above 0 only where labels are clas"):
        model.sample([0] if classes else [-1])


def test_tables_tell_how_images_were_drawn(model):
    cells = condgen.load_smears(30, size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = latent_map(cells.image_shape, 8, width=4)
    assert model.drawing == {}
    model.label_mixing = 0.5
    own, provenance = condgen.balance(cells, model, method="sample", seed=3)
    rows = list(csv.DictReader(io.StringIO(provenance.table())))
    made = next(place for place, row in enumerate(rows) if row["kind"] == "synthetic")
    assert rows[0]["kind"] == "real"
    assert rows[0]["drawing"] == ""
    again = latent_map(cells.image_shape, 8, width=4)
    again.load_state_dict(model.state_dict())
    for name, value in json.loads(rows[made]["drawing"]).items():
        setattr(again, name, value)
    drawn = again.sample([int(rows[made]["label"])], seed=3, start=int(rows[made]["number"]))
    assert np.array_equal(to_uint8(drawn)[0].numpy(), own.train.images[made])


class TestLatents:
    def test_every_second_image_is_on_the_way_to_another_class(self, model):
        labels = torch.arange(60) % CLASSES
        model.latent_mixing = 0.6
        noise = numbers(model, 60)
        share = (1.2 * (torch.special.ndtr(noise[SHARE]) - 0.5)).clamp(min=0)[:, None, None, None]
        assert 20 < (share > 0).sum() < 40
        assert 0.5 < share.max() <= 0.6
        z = ((1 - share) * noise["z"] + share * noise[OTHER_LATENT]) / ((1 - share) ** 2 + share**2).sqrt()
        with torch.no_grad():
            expected = model.decode(z, labels).mean
        assert torch.allclose(model.sample(labels), expected, atol=1e-5)

    def test_the_other_class_is_the_one_whose_label_is_mixed_in(self, model):
        model.sampler = GaussianMixture(model.prior.noise_shape, CLASSES, components=1)
        model.sampler.means.copy_(50.0 * torch.arange(1, CLASSES + 1)[:, None, None].expand_as(model.sampler.means))
        model.latent_mixing, model.label_mixing = 1.0, 1.0
        seen = []
        model.decode_from, kept = (lambda z, c: seen.append((z, c)) or kept(z, c)), model.decode_from
        noise = numbers(model, 200)
        with torch.no_grad():
            model.draw(torch.zeros(200, dtype=torch.int64), noise)
        (z, c), far = seen[0], noise[SHARE] > 2
        assert far.sum() > 2
        whole = z.mean((1, 2, 3))[far]  # nearly all of the way: 50, 100 or 150
        assert torch.equal((whole / 50).round().long() - 1, c.argmax(1)[far])

    def test_latents_are_as_spread_as_draws(self, model):
        """Half-way between two draws the variance would fall to a half, and grow about another middle than the mean."""
        model.sampler = GaussianMixture(model.prior.noise_shape, CLASSES, components=1)
        model.sampler.means.fill_(7.0)
        own = []
        for mixing in (0.0, 1.0):
            model.latent_mixing = mixing
            noise = numbers(model, 2000)
            c = model.condition(torch.arange(2000) % CLASSES)
            z = model.source.draw(c, noise["z"])
            z = mixed(model, z, c, noise)[0]
            own.append((z.mean(), z.std()))
        assert torch.allclose(torch.tensor(own[0]), torch.tensor(own[1]), atol=0.02)
        assert abs(own[0][0] - 7) < 0.02

    def test_the_temperature_is_that_of_both_draws(self, model):
        model.latent_mixing = 0.5
        nothing, labels = torch.zeros(2, *model.prior.noise_shape), torch.tensor([0, 1])
        with torch.no_grad():
            assert torch.allclose(model.sample(labels, temperature=0.0), model.decode(nothing, labels).mean)

    def test_variations_are_mixed_too(self, model):
        x, labels = torch.rand(8, 1, 16, 16), torch.tensor([0, 1, 2, 0] * 2)
        own = condgen.vary(model, x, labels, strength=0.0)
        model.latent_mixing = 1.0
        found = condgen.vary(model, x, labels, strength=0.0)
        same = torch.isclose(found, own, atol=1e-5).flatten(1).all(1)
        assert torch.equal(same, numbers(model, 8, Use.VARIATION)[SHARE] <= 0)

    def test_it_is_saved_and_told(self, model, tmp_path):
        model.latent_mixing = 0.5
        condgen.save(model, tmp_path)
        again = condgen.load(tmp_path)
        assert again.drawing == {"latent_mixing": 0.5}
        assert torch.equal(again.sample([0, 1, 2]), model.sample([0, 1, 2]))

    def test_several_levels_are_refused(self):
        source, mixing = SimpleNamespace(noise_shape=((4,), (2, 4, 4))), {"label_mixing": 0.0, "latent_mixing": 0.5}
        with pytest.raises(ValueError, match="Expected latents of one level for latent_mixing; got 2"):
            mixing_noise(SimpleNamespace(conditioner=OneHot(CLASSES), source=source, **mixing))

    @pytest.mark.parametrize(("classes", "share"), [(CLASSES, -0.1), (CLASSES, 1.1), (0, 0.5)])
    def test_wrong_values(self, classes, share):
        model = latent_map((1, 16, 16), classes, width=4)
        model.latent_mixing = share
        with pytest.raises(ValueError, match="Expected latent_mixing from 0 to 1, and above 0 only where labels are"):
            model.sample([0] if classes else [-1])
