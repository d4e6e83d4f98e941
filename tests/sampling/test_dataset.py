"""Generated images as a data set: the bits of `sample`, drawn when they are asked for."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import condgen
from condgen.nn.conditioners import MultiLabel
from condgen.sampling import dataset
from condgen.sampling.dataset import GeneratedImages
from condgen.sampling.grids import to_uint8

NAMES = ("lobed", "round", "spiked")


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = condgen.conditional_vae((3, 8, 8), 3, latent=4, width=4)
    made.class_names = NAMES
    return made


@pytest.fixture
def drawn(model, monkeypatch):
    """Numbers of the samples that were drawn, call by call."""
    calls, real = [], type(model).sample

    def noting(self, y, **options):
        calls.append((options["start"], len(y)))
        return real(self, y, **options)

    monkeypatch.setattr(type(model), "sample", noting)
    return calls


class TestBits:
    def test_are_those_of_sample(self, model):
        cells = condgen.as_dataset(model, per_class=50, seed=4)
        labels = [0] * 50 + [1] * 50 + [2] * 50
        whole = model.sample(labels, seed=4)
        assert len(cells) == 150
        for k in (149, 0, 64, 63, -1):
            image, label = cells[k]
            assert torch.equal(image, whole[k])
            assert label == labels[k]
        assert isinstance(label, int)
        cells[0][0].zero_()  # what is changed is a copy
        assert torch.equal(cells[0][0], whole[0])

    def test_every_epoch_has_other_images_and_none_twice(self, model):
        cells, labels = condgen.as_dataset(model, per_class=30), np.repeat(range(3), 30)
        seen = []
        for epoch in (0, 1, 5):
            cells.set_epoch(epoch)
            assert torch.equal(cells[70][0], model.sample([2], seed=0, start=epoch * 90 + 70)[0])
            assert [label for _, label in cells] == labels.tolist()
            seen += [image.numpy().tobytes() for image, _ in cells]
        assert len(set(seen)) == 270
        with pytest.raises(ValueError, match="epoch of 0 or more; got -1"):
            cells.set_epoch(-1)

    @pytest.mark.parametrize("workers", [0, min(2, torch.get_num_threads())])
    def test_by_a_loader(self, model, workers):
        cells = condgen.as_dataset(model, per_class=40)
        found = list(DataLoader(cells, batch_size=32, num_workers=workers))
        whole = model.sample(cells.labels)
        assert torch.equal(torch.cat([images for images, _ in found]), whole)
        assert torch.equal(torch.cat([labels for _, labels in found]), cells.labels)


class TestLazily:
    def test_nothing_is_drawn_before_and_no_block_twice(self, model, drawn):
        cells = condgen.as_dataset(model, per_class=100)
        assert drawn == []
        assert cells[70][1] == 0
        assert drawn == [(64, 64)]
        for k in torch.randperm(300).tolist():
            cells[k]
        assert sorted(drawn) == [(first, min(64, 300 - first)) for first in range(0, 300, 64)]

    def test_memory_has_a_limit(self, model, drawn, monkeypatch):
        monkeypatch.setattr(dataset, "KEPT", 2 * 64 * 3 * 8 * 8 * 4)
        cells = condgen.as_dataset(model, per_class=100)
        for k in range(300):
            cells[k]
        assert len(cells.blocks) == 2
        assert len(drawn) == 5


class TestUse:
    def test_counts_by_class(self, model):
        by_name = condgen.as_dataset(model, {"spiked": 3, "lobed": 1})
        assert by_name.labels.tolist() == condgen.as_dataset(model, [1, 0, 3]).labels.tolist() == [0, 2, 2, 2]
        assert GeneratedImages(model, ["spiked", "lobed"]).labels.tolist() == [2, 0]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [({"square": 3}, "classes among lobed, round, spiked; got square"), ([1, 2], "each of 3 classes"), (0, "none")],
    )
    def test_counts_that_cannot_be(self, model, wrong, message):
        with pytest.raises(ValueError, match=message):
            condgen.as_dataset(model, wrong)

    def test_labels_that_are_no_classes(self):
        model = condgen.conditional_vae((1, 8, 8), 2, conditioner=MultiLabel(2))
        with pytest.raises(ValueError, match="class"):
            GeneratedImages(model, [[1, 0], [0, 1]])

    def test_it_can_be_trained_on(self, model):
        cells = condgen.as_dataset(model, per_class=20)
        labelled = cells.labelled_images()
        assert np.array_equal(labelled.images, to_uint8(model.sample(cells.labels)).numpy())
        assert labelled.class_names == NAMES
        classifier = condgen.train_classifier(cells, steps=2, width=4)
        assert classifier.counts == {"lobed": 20, "round": 20, "spiked": 20}
        with pytest.raises(IndexError, match="from 0 to 59; got 60"):
            cells[60]
