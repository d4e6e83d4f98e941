"""Sets of variations: near copies are drawn again, and every variation can be drawn again by its number."""

import csv

import numpy as np
import pytest
import torch

import condgen
from condgen.apps import variations as module
from condgen.apps.variations import variations
from condgen.io.pictures import to_uint8


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(40, size=16).subset(slice(0, 12))


@pytest.fixture(scope="module")
def model(cells):
    return condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)


def copying(until):
    """A way to vary that returns the images themselves up to a number, and noise from it on."""

    def vary(_model, images, _labels, *, start, **_):
        own = torch.as_tensor(images).float() / 255
        noise = torch.rand(own.shape, generator=torch.Generator().manual_seed(start))
        return torch.where(torch.arange(start, start + len(own))[:, None, None, None] < until, own, noise)

    return vary


def test_each_is_what_vary_draws_by_its_number(model, cells):
    found = variations(model, cells, per_image=3, strength=0.6, seed=4)
    assert found.of.tolist() == np.repeat(np.arange(12), 3).tolist()
    assert found.number.tolist() == list(range(36))
    assert found.copies is None
    for place in (0, 7, 35):
        of = [found.of[place]]
        alone = condgen.vary(model, cells.images[of], cells.labels[of], strength=0.6, seed=4, start=place)
        assert np.abs(to_uint8(alone)[0].numpy().astype(int) - found.images[place]).max() <= 1


def test_near_copies_are_drawn_again(monkeypatch, model, cells):
    monkeypatch.setattr(module, "vary", copying(until=50))
    found = variations(model, cells, per_image=2, max_copies=0.0)
    assert found.copies == 0
    # 24 to begin with, 24 again of which 24 to 47 are copies still, and the same once more: 48 and 49 are.
    assert found.number.tolist() == [72, 73, *range(50, 72)]
    few = variations(model, cells, per_image=2, max_copies=0.1)
    assert few.copies == 2 / 24
    assert few.number.tolist() == list(range(48, 72))


def test_more_than_may_be_are_refused(monkeypatch, model, cells):
    monkeypatch.setattr(module, "vary", copying(until=10**9))
    with pytest.raises(ValueError, match="after 8 rounds it is 1"):
        variations(model, cells, max_copies=0.5)
    assert variations(model, cells, max_copies=1.0).copies == 1


def test_the_table_has_the_number_of_each(monkeypatch, model, cells, tmp_path):
    monkeypatch.setattr(module, "vary", copying(until=12))
    found = variations(model, cells, per_image=1, max_copies=0.0, strength=0.3, seed=9)
    with found.write(tmp_path / "deep" / "near.npz").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == list(range(12, 24))
    assert [row["class"] for row in rows] == [cells.class_names[k] for k in cells.labels]
    assert {(row["strength"], row["seed"], row["of_set"]) for row in rows} == {("0.3", "9", cells.fingerprint)}
    with np.load(tmp_path / "deep" / "near.npz") as file:
        assert np.array_equal(np.moveaxis(file["images"], -1, 1), found.images)
        assert np.array_equal(file["labels"], cells.labels)


@pytest.mark.parametrize("wrong", [{"per_image": 0}, {"max_copies": 1.5}, {"max_copies": -0.1}])
def test_wrong_input(wrong, model, cells):
    with pytest.raises(ValueError, match="Expected per_image of 1 or more and max_copies from 0 to 1"):
        variations(model, cells, **wrong)
