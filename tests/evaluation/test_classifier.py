"""The classifier: what it says of images, its scores by another route, CutMix, soft labels, and its file."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score

import condgen
from condgen.apps.balance import balance
from condgen.apps.provenance import with_probabilities, write_balanced
from condgen.data.augmentation import turned
from condgen.data.images import LabelledImages
from condgen.data.names import PROBABILITIES
from condgen.evaluation import classifier as module
from condgen.evaluation.classifier import scores_of
from condgen.evaluation.classifier_training import augmented, mixed_cross_entropy, rectangle
from condgen.evaluation.settings import ClassifierTraining
from condgen.evaluation.teacher import Teacher
from condgen.sampling.grids import to_uint8
from condgen.sampling.shards import write_samples

TINY = {"epochs": 1, "width": 4}


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(120, size=16, balance="equal")


@pytest.fixture(scope="module")
def classifier(cells):
    return condgen.train_classifier(cells, **TINY)


@pytest.fixture(scope="module")
def model(cells):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
    model.class_names = tuple(reversed(cells.class_names))  # another order than the teacher's
    return model


@pytest.fixture(scope="module")
def teacher(classifier, model):
    return Teacher(classifier, model.class_names)


class TestScores:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 60))
    def test_are_those_of_scikit_learn(self, seed, n):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 3, n)  # the fourth class has no images
        probabilities = torch.as_tensor(rng.dirichlet(np.ones(4), n))
        found, guesses = scores_of(probabilities, labels, ("a", "b", "c", "d")), probabilities.argmax(1).numpy()
        there = np.unique(labels)
        assert found.accuracy == pytest.approx(accuracy_score(labels, guesses))
        expected = f1_score(labels, guesses, labels=there, average="macro", zero_division=0)
        assert found.macro_f1 == pytest.approx(expected)
        assert found.loss == pytest.approx(log_loss(labels, probabilities, labels=range(4)))
        options = {"labels": range(4), "average": None, "zero_division": np.nan}
        for own, expected in (
            (found.recall, recall_score(labels, guesses, **options)),
            (found.precision, precision_score(labels, guesses, **options)),
        ):
            assert [np.nan if v is None else v for v in own.values()] == pytest.approx(expected.tolist(), nan_ok=True)
        assert found.guesses == tuple(guesses)

    def test_names_decide_which_class_is_which(self, cells, classifier):
        names = tuple(reversed(cells.class_names))
        other = LabelledImages(cells.test.images, 7 - cells.test.labels, names)
        assert classifier.score(other) == classifier.score(cells.test)

    def test_print_as_a_table(self, cells, classifier):
        lines = str(classifier.score(cells.test)).splitlines()
        assert lines[0].startswith("accuracy ")
        assert len({len(line) for line in lines[1:]}) == 1

    def test_labels_that_are_no_classes(self, cells, classifier):
        several = cells.with_labels(np.eye(8, dtype=np.int64)[cells.labels], cells.class_names, "multi-label")
        with pytest.raises(ValueError, match="one class label an image"):
            classifier.score(several)


class TestProbabilities:
    def test_are_means_over_symmetries(self, cells, classifier):
        images = cells.test.images[:5]
        x = torch.as_tensor(images).float() / 255
        seen = [classifier.network(turned(x, torch.full((5,), code))).softmax(1) for code in (0, 1, 2)]
        found = classifier.probabilities(images, views=3)
        torch.testing.assert_close(found, torch.stack(seen).mean(0).detach())
        assert np.array_equal(condgen.label(images, classifier, views=3), found.numpy())
        assert torch.equal(classifier.probabilities(images), classifier.embed(images).probabilities)

    def test_all_symmetries_see_a_turned_image_as_the_image(self, cells, classifier):
        images = torch.as_tensor(cells.test.images[:4]).float() / 255
        for code in range(8):
            again = classifier.probabilities(turned(images, torch.full((4,), code)), views=8)
            torch.testing.assert_close(again, classifier.probabilities(images, views=8))

    @pytest.mark.parametrize("views", [0, 9])
    def test_views_that_there_are_not(self, cells, classifier, views):
        with pytest.raises(ValueError, match=f"views from 1 to 8.*got {views}"):
            classifier.probabilities(cells.test.images, views=views)


class TestTraining:
    def test_settings_by_name_or_as_an_object(self, cells, classifier):
        again = condgen.train_classifier(cells, ClassifierTraining(**TINY))
        ours, theirs = (c.network.state_dict() for c in (classifier, again))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        with pytest.raises(TypeError, match=r"'epoch'. Did you mean epochs\?"):
            condgen.train_classifier(cells, epoch=1)
        with pytest.raises(ValueError, match="epochs or steps, not both"):
            condgen.train_classifier(cells, epochs=1, steps=3)

    def test_without_splits_all_images_are_learnt(self, cells):
        found = condgen.train_classifier(cells.train, **TINY)
        assert found.counts == cells.train.class_counts
        assert found.fingerprint == cells.content_hash("train")
        assert (found.accuracy, found.still_falling) == (None, None)
        assert repr(found).endswith("images; not validated")
        given_ = condgen.train_classifier(cells.train, validation=cells.validation, **TINY)
        assert given_.accuracy == condgen.train_classifier(cells, **TINY).accuracy
        assert list(given_.validation_losses) == [2, 3]

    def test_a_pair_of_arrays_will_do(self, cells):
        found = condgen.train_classifier((cells.train.images, cells.train.labels), **TINY)
        assert found.image_shape == (3, 16, 16)

    def test_a_teachers_probabilities_are_learnt_instead_of_labels(self, cells):
        """A set whose labels are wrong and whose probabilities are right."""
        dark = cells.train.subset(np.flatnonzero(cells.train.labels < 2))
        flat = np.where(dark.labels[:, None, None, None] > 0, 200, 20).astype(np.uint8)
        images = np.broadcast_to(flat, (len(dark), 3, 16, 16))
        labels = np.arange(len(dark)) % 2
        soft = np.where(dark.labels[:, None] > 0, [[0.1, 0.9]], [[0.9, 0.1]])
        data = LabelledImages(images, labels, ("dark", "light"), factors={PROBABILITIES: soft})
        found = condgen.train_classifier(data, steps=60, batch_size=16, width=4, label_smoothing=0.0)
        probabilities = found.probabilities(images).numpy()
        assert np.abs(probabilities - soft).max() < 0.1

    @pytest.mark.parametrize("wrong", [np.full((4, 2), 0.7), np.array([[1.5, -0.5]] * 4)])
    def test_probabilities_that_are_none(self, wrong):
        images = np.zeros((4, 1, 8, 8), np.uint8)
        data = LabelledImages(images, np.arange(4) % 2, factors={PROBABILITIES: wrong})
        with pytest.raises(ValueError, match="probabilities from 0 to 1 with the sum 1"):
            condgen.train_classifier(data, **TINY)

    def test_balanced_classes_are_drawn_equally_often(self, cells, monkeypatch):
        seen = {}
        monkeypatch.setattr(module, "fit_classifier", lambda *_, **options: seen.update(options))
        condgen.train_classifier(cells.train, balance=True, **TINY)
        sums = np.bincount(cells.train.labels, seen["weights"])
        assert sums == pytest.approx(np.ones(8))


class TestCutMix:
    x, y = torch.rand(6, 3, 9, 12), torch.arange(6)

    @pytest.mark.parametrize("step", range(1, 9))
    def test_pixels_and_labels_come_from_another_image_in_one_share(self, step):
        how = ClassifierTraining(cutmix=1.0, symmetries=False)
        mixed, [(kept, own), (taken, others)] = augmented(self.x, self.y, how, step)
        other = self.x.roll(1, 0)
        assert torch.equal(others, self.y.roll(1))
        assert torch.equal(own, self.y)
        from_other = (mixed == other).all(1)
        assert ((mixed == self.x).all(1) | from_other).all()
        assert from_other.float().mean((1, 2)).tolist() == pytest.approx([taken] * 6)
        assert kept + taken == pytest.approx(1)

    def test_half_of_the_batches(self):
        how = ClassifierTraining(cutmix=0.5, symmetries=False)
        mixed = [len(augmented(self.x, self.y, how, step)[1]) == 2 for step in range(400)]
        assert 160 < sum(mixed) < 240
        none = dataclasses.replace(how, cutmix=0.0)
        assert all(torch.equal(augmented(self.x, self.y, none, step)[0], self.x) for step in range(20))

    @given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.integers(8, 40), st.integers(8, 40))
    def test_rectangles_lie_in_the_image_and_hold_no_more_than_their_share(self, share, down, across, height, width):
        top, bottom, left, right = rectangle(share, down, across, height, width)
        assert 0 <= top <= bottom <= height
        assert 0 <= left <= right <= width
        assert (bottom - top) * (right - left) <= (share**0.5 * height + 1) * (share**0.5 * width + 1)

    def test_the_loss_is_that_of_mixed_targets(self):
        logits, other = torch.randn(6, 8), self.y.roll(1)
        soft = 0.3 * torch.nn.functional.one_hot(self.y, 8) + 0.7 * torch.nn.functional.one_hot(other, 8)
        expected = -(soft * logits.log_softmax(1)).sum(1).mean()
        found = mixed_cross_entropy(logits, [(0.3, self.y), (0.7, other)], 0.0)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(mixed_cross_entropy(logits, [(1.0, soft)], 0.0), expected)


class TestFiles:
    def test_it_comes_back_bit_for_bit(self, cells, classifier, tmp_path):
        again = condgen.load_classifier(classifier.save(tmp_path / "mine.safetensors"))
        assert torch.equal(again.probabilities(cells.images), classifier.probabilities(cells.images))
        ours, theirs = ({**vars(c), "network": None} for c in (classifier, again))
        assert ours == theirs

    def test_the_judge_that_comes_with_condgen_is_one(self):
        shipped = condgen.load_classifier(
            module.Path(condgen.__file__).parent / "models/weights/judges/bloodmnist.safetensors"
        )
        assert shipped.class_names[0] == "basophil"
        assert shipped.training == {}


class TestTeacher:
    """Probabilities beside labels, in files of samples and of balanced sets, and back."""

    def test_columns_are_in_the_order_of_the_model(self, cells, classifier, teacher):
        assert np.array_equal(teacher(cells.images), condgen.label(cells.images, classifier)[:, ::-1])
        with pytest.raises(ValueError, match="does not know unicorn"):
            Teacher(classifier, (*cells.class_names, "unicorn"))
        with pytest.raises(ValueError, match=r"knows .*, too"):
            Teacher(classifier, cells.class_names[:5])

    @pytest.mark.parametrize("parts", [1, 3])
    def test_samples_on_disk(self, model, teacher, parts, tmp_path):
        labels = np.arange(150) % 8
        for k in range(1, parts + 1):
            shard = None if parts == 1 else (k, parts)
            write_samples(model, labels, tmp_path / "cells.npz", seed=3, shard=shard, teacher=teacher)
        with np.load(tmp_path / "cells.npz") as found:
            images = np.moveaxis(found["images"], -1, 1)
            assert np.array_equal(images, to_uint8(model.sample(labels, seed=3)).numpy())
            assert np.abs(found["probabilities"] - teacher(images)).max() < 1e-5
        read = condgen.load_npz(tmp_path / "cells.npz")
        assert np.abs(read.factors[PROBABILITIES] - teacher(read.images)).max() < 1e-5
        assert read.train.factors[PROBABILITIES].shape == (len(read.train), 8)

    def test_other_teachers_are_other_samples(self, cells, model, teacher, tmp_path):
        write_samples(model, [0, 1], tmp_path / "cells.npz", teacher=teacher, shard=(1, 2))
        other = Teacher(condgen.train_classifier(cells, seed=1, **TINY), model.class_names)
        with pytest.raises(ValueError, match="is of other teacher"):
            write_samples(model, [0, 1], tmp_path / "cells.npz", teacher=other, shard=(1, 2))
        with pytest.raises(ValueError, match=r"ending in \.npz for a teacher"):
            write_samples(model, [0, 1], tmp_path / "folder", teacher=teacher)

    def test_a_balanced_set(self, cells, model, teacher, tmp_path):
        few = cells.subset(np.flatnonzero((cells.labels > 0) | (np.arange(len(cells)) < 40))).split()
        balanced, provenance = balance(few, model)
        soft, provenance = with_probabilities(balanced, provenance, teacher)
        table = write_balanced(soft, provenance, tmp_path / "cells.npz").read_text().splitlines()
        assert table[0].endswith(",number,drawing,of,strength,teacher")
        assert [row.endswith(f",{teacher.weights}") for row in table[1:]] == provenance.synthetic.tolist()
        read = condgen.load_npz(tmp_path / "cells.npz")
        assert provenance.synthetic.any()
        made, real = (read.train.subset(np.flatnonzero(provenance.synthetic == kind)) for kind in (True, False))
        assert np.abs(made.factors[PROBABILITIES] - teacher(made.images)).max() < 1e-5
        assert np.array_equal(real.factors[PROBABILITIES], np.eye(8, dtype=np.float32)[real.labels])
        assert np.array_equal(read.test.factors[PROBABILITIES].argmax(1), read.test.labels)

    def test_classes_in_another_order_take_their_columns_along(self, cells, teacher):
        data = LabelledImages(
            cells.images, 7 - cells.labels, cells.class_names[::-1], factors={PROBABILITIES: teacher(cells.images)}
        )
        turned_ = data.ordered(cells.class_names)
        assert np.array_equal(turned_.labels, cells.labels)
        assert np.array_equal(turned_.factors[PROBABILITIES], teacher(cells.images)[:, ::-1])
        assert PROBABILITIES not in data.with_labels(data.labels % 2, ("a", "b")).factors

    @pytest.mark.parametrize(
        ("soft", "message"),
        [
            (np.ones((4, 2), np.float32), r"probabilities of shape \(6, classes\).*\(4, 2\)"),
            (np.ones((6, 2), np.int64), "as floats; got int64"),
            (np.ones((6, 3), np.float32), "of the 2 classes of the labels; got 3 columns"),
        ],
    )
    def test_files_whose_probabilities_do_not_fit(self, soft, message, tmp_path):
        arrays = {"images": np.zeros((6, 8, 8), np.uint8), "labels": np.arange(6) % 2, "probabilities": soft}
        np.savez(tmp_path / "cells.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            condgen.load_npz(tmp_path / "cells.npz")
