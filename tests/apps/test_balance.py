"""Rebalancing: exact counts, originals first and untouched, every generated image written down for what it is."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import condgen
from condgen.apps.balance import Balancer, balance, wanted
from condgen.apps.provenance import write_balanced
from condgen.cli import main
from condgen.data.images import LabelledImages
from condgen.sampling.grids import to_uint8
from condgen.training.fit import class_weights

NAMES = ("round", "lobed", "dark")


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = condgen.conditional_vae((1, 8, 8), 3, latent=4, width=4).eval()
    found.class_names = NAMES
    return found


@pytest.fixture(scope="module")
def cells():
    labels = np.repeat([0, 1, 2], [60, 20, 40])
    images = np.random.default_rng(0).integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    return LabelledImages(images, labels, NAMES, name="cells").split(0.1, 0.1)


class Sure:
    """A judge that takes an image for the class that the sum of its pixels says, a third each."""

    class_names = NAMES

    def embed(self, images):
        seen = torch.as_tensor(images).long().sum((1, 2, 3)) % 3
        return type("Seen", (), {"probabilities": 0.7 * torch.eye(3)[seen] + 0.1})()


class TestStrategies:
    """Against imbalanced-learn's definitions."""

    COUNTS = np.array([5, 2, 3])

    @pytest.mark.parametrize(
        ("strategy", "expected"),
        [
            ("auto", {1: 3, 2: 2}),
            ("not majority", {1: 3, 2: 2}),
            ("all", {1: 3, 2: 2}),
            ("minority", {1: 3}),
            ("not minority", {2: 2}),
            ({1: 4, 0: 9}, {0: 4, 1: 2}),
            ({1: 2}, {}),
            (lambda labels: {2: len(labels)}, {2: 7}),
        ],
    )
    def test_what_each_asks_for(self, strategy, expected):
        assert wanted(strategy, self.COUNTS, np.repeat([0, 1, 2], self.COUNTS), int) == expected

    def test_a_share_of_two_classes(self):
        assert wanted(0.5, np.array([100, 20]), np.zeros(120), int) == {1: 30}
        with pytest.raises(ValueError, match="two classes"):
            wanted(0.5, self.COUNTS, np.zeros(10), int)

    def test_no_class_shrinks(self):
        with pytest.raises(ValueError, match="class 0 has 5, not 4"):
            wanted({0: 4}, self.COUNTS, np.zeros(10), int)

    def test_a_class_without_images_is_no_minority(self):
        assert wanted("auto", np.array([5, 0, 3]), np.zeros(8), int) == {2: 2}
        assert wanted({1: 4}, np.array([5, 0, 3]), np.zeros(8), int) == {1: 4}

    def test_another_word(self, unchecked):
        with pytest.raises(ValueError, match="Expected auto, minority"):
            wanted("most", self.COUNTS, np.zeros(10), int)


class TestBalancer:
    @settings(max_examples=20, deadline=None)
    @given(counts=st.lists(st.integers(1, 12), min_size=3, max_size=3), seed=st.integers(0, 3))
    def test_counts_are_exact_and_originals_stay(self, model, counts, seed):
        X, y = np.random.default_rng(1).integers(0, 256, (sum(counts), 1, 8, 8), np.uint8), np.repeat([2, 0, 1], counts)
        before = X.copy()
        images, labels = Balancer(model, seed=seed).fit_resample(X, y)
        assert np.bincount(labels).tolist() == [max(counts)] * 3
        assert np.array_equal(images[: len(X)], before)
        assert np.array_equal(X, before)
        assert np.array_equal(labels[: len(y)], y)
        assert images.dtype == np.uint8

    def test_every_sample_can_be_drawn_again_from_what_is_written_down(self, model, cells):
        balancer = Balancer(model, seed=4, method="sample")
        images, labels = balancer.fit_resample(cells.images, cells.labels)
        kept = balancer.provenance_
        assert kept.synthetic.sum() == len(images) - len(cells)
        for place in np.flatnonzero(kept.synthetic)[::7]:
            again = model.sample([labels[place]], seed=kept.seed, start=int(kept.number[place]))
            assert np.array_equal(to_uint8(again)[0].numpy(), images[place])
        assert len(np.unique(kept.number[kept.synthetic])) == kept.synthetic.sum()

    def test_kinds_of_input_come_back(self, model, cells):
        names = np.array(NAMES)[cells.labels]
        rows = cells.images.reshape(len(cells), -1) / np.float32(255)
        X, y = Balancer(model).fit_resample(rows, names)
        assert X.dtype == np.float32
        assert X.shape[1:] == (64,)
        assert X.max() <= 1
        assert sorted(np.unique(y, return_counts=True)[1]) == [60, 60, 60]
        assert set(y) == set(NAMES)

    def test_what_the_judge_does_not_believe_is_drawn_again(self, model, cells):
        balancer = Balancer(model, {"lobed": 60}, judge=Sure())
        images, labels = balancer.fit_resample(cells.images, cells.labels)
        assert (labels == 1).sum() == 60
        name = "lobed"
        kept = balancer.provenance_
        assert kept.drawn[name] - 40 >= kept.refused[name] > 20
        seen = Sure().embed(images[120:]).probabilities.argmax(1)
        assert (seen == 1).all()
        assert "turned down" in str(balancer.provenance_)
        assert len(images) == 160

    def test_where_none_is_believed_the_least_doubtful_fill_up(self, model, cells):
        class Never(Sure):
            def embed(self, images):
                return type("Seen", (), {"probabilities": torch.eye(3)[torch.zeros(len(images), dtype=torch.int64)]})()

        with pytest.warns(UserWarning, match="of 'lobed' 40 of 40 are still"):
            _, labels = Balancer(model, {"lobed": 60}, judge=Never()).fit_resample(cells.images, cells.labels)
        assert (labels == 1).sum() == 60

    def test_near_copies_are_refused(self, cells):
        class Copying:
            """Draws the training images of the class, every other one with its own noise."""

            image_shape, class_names, device = (1, 8, 8), NAMES, "cpu"

            def __init__(self):
                self.conditioner = condgen.nn.conditioners.OneHot(3)

            def state_dict(self):
                return {}

            def sample(self, labels, seed, start):
                own = cells.train.images[cells.train.labels == labels[0]]
                generator = np.random.default_rng(start)
                fresh = generator.integers(0, 256, (len(labels), 1, 8, 8))
                place = np.arange(start, start + len(labels))
                copied = (place % 2 == 0)[:, None, None, None]
                return torch.as_tensor(np.where(copied, own[place % len(own)], fresh) / 255)

        balancer = Balancer(Copying(), {"lobed": 60}, data=cells)
        images, _ = balancer.fit_resample(cells.train.images, cells.train.labels)
        made = images[len(cells.train) :]
        assert not (made[:, None] == cells.train.images[None]).all((2, 3, 4)).any()
        assert balancer.provenance_.refused["lobed"] > 10

    def test_scikit_learn_can_copy_it(self, model):
        from sklearn.base import clone

        again = clone(Balancer(model, "minority", seed=3))
        assert (again.sampling_strategy, again.seed) == ("minority", 3)
        assert again.set_params(seed=5).seed == 5
        with pytest.raises(ValueError, match="Expected arguments among"):
            again.set_params(sed=5)

    def test_wrong_input(self, model, cells):
        with pytest.raises(ValueError, match="a label for each image; got 5 and 4"):
            Balancer(model).fit_resample(cells.images[:5], cells.labels[:4])
        with pytest.raises(ValueError, match=r"Expected classes in \[0, 3\)"):
            Balancer(model).fit_resample(cells.images, cells.labels + 1)
        with pytest.raises(ValueError, match="Expected class names among round"):
            Balancer(model, {"oval": 9}).fit_resample(cells.images, cells.labels)


class TestVariations:
    @pytest.mark.parametrize("latent", [4, (2, 4, 4)])
    def test_each_can_be_made_again_from_what_is_written_down(self, latent, cells):
        """With the surroundings of other images where the model has maps of latents."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = condgen.conditional_vae((1, 8, 8), 3, latent=latent, width=4).eval()
        model.class_names = NAMES
        balancer = Balancer(model, seed=4, method="vary", strength=0.6)
        images, labels = balancer.fit_resample(cells.images, cells.labels)
        kept = balancer.provenance_
        assert np.array_equal(kept.varied, kept.synthetic)
        around = None if latent == 4 else (cells.images, cells.labels)
        for place in np.flatnonzero(kept.synthetic)[::7]:
            of, start = int(kept.of[place]), int(kept.number[place])
            assert cells.labels[of] == labels[place]
            asked = {"strength": 0.6, "background": around, "seed": 4, "start": start}
            again = condgen.vary(model, cells.images[[of]], [labels[place]], **asked)
            assert np.array_equal(to_uint8(again)[0].numpy(), images[place])
        made = images[len(cells) :].reshape(-1, 64)
        assert len(np.unique(made, axis=0)) == len(made)

    def test_every_image_of_a_class_is_varied_equally_often(self, model, cells):
        balancer = Balancer(model, {"lobed": 60}, method="vary")
        balancer.fit_resample(cells.images, cells.labels)
        of = balancer.provenance_.of
        assert np.array_equal(np.bincount(of[of >= 0], minlength=120), np.where(cells.labels == 1, 2, 0))

    def test_by_itself_it_varies_classes_with_few_images(self, model):
        labels = np.repeat([0, 1, 2], [103, 100, 101])
        many = LabelledImages(np.zeros((304, 1, 8, 8), np.uint8), labels, NAMES)
        provenance = balance(many, model)[1]
        assert provenance.labels[provenance.varied].tolist() == [1, 1, 1]
        assert "lobed: 3 variations\n  dark: 2" in str(provenance)
        assert not balance(many, model, method="sample")[1].varied.any()
        assert balance(many, model, method="vary")[1].varied.sum() == 5
        table = list(csv.DictReader(provenance.table().splitlines()))
        assert [row["kind"] for row in table[304:]] == ["variation"] * 3 + ["synthetic"] * 2
        assert {row["strength"] for row in table[304:307]} == {"0.5"}
        assert all(labels[int(row["of"])] == 1 for row in table[304:307])
        assert {row["of"] for row in table[307:]} == {""}

    def test_what_only_draws_is_sampled(self, cells):
        model = condgen.conditional_gan((1, 8, 8), 3)
        model.class_names = NAMES
        assert not balance(cells, model)[1].varied.any()
        with pytest.raises(ValueError, match=r"ConditionalGAN only draws\. Pass method='sample'"):
            balance(cells, model, method="vary")

    def test_a_class_without_images_is_sampled_or_refused(self, model, cells):
        kept = cells.labels != 1
        asked = {"sampling_strategy": {"lobed": 5}}
        balancer = Balancer(model, **asked)
        balancer.fit_resample(cells.images[kept], cells.labels[kept])
        assert not balancer.provenance_.varied.any()
        with pytest.raises(ValueError, match="got none of lobed"):
            Balancer(model, **asked, method="vary").fit_resample(cells.images[kept], cells.labels[kept])

    @pytest.mark.parametrize("wrong", [{"method": "copy"}, {"strength": 1.5}])
    def test_another_method(self, model, cells, wrong, unchecked):
        with pytest.raises(ValueError, match="method as auto, sample or vary, and a strength from 0 to 1"):
            balance(cells, model, **wrong)

    def test_half_of_what_is_learnt_of_a_class_is_real(self, model, cells):
        """Where classes are drawn equally often; of a class without generated images all of it."""
        balanced = balance(cells, model)[0].train
        weights, made = class_weights(balanced).numpy(), balanced.factors["synthetic"]
        for k in range(3):
            assert weights[balanced.labels == k].sum() == pytest.approx(1)
            real = weights[(balanced.labels == k) & ~made].sum()
            assert real == pytest.approx(0.5 if (made & (balanced.labels == k)).any() else 1)
        assert not balance(cells, model)[0].test.factors["synthetic"].any()


class TestSets:
    def test_only_training_images_gain(self, model, cells):
        balanced, provenance = balance(cells, model, seed=2)
        assert len(set(balanced.train.class_counts.values())) == 1
        for part in ("validation", "test"):
            assert np.array_equal(getattr(balanced, part).images, getattr(cells, part).images)
        assert len(provenance.synthetic) == len(balanced.train)
        assert np.array_equal(balanced.train.images[: len(cells.train)], cells.train.images)

    def test_names_decide_which_class_is_which(self, model, cells):
        order = ("dark", "round", "lobed")
        other = cells.ordered(order)
        images = [balance(data, model, seed=2)[0].ordered(NAMES) for data in (cells, other)]
        for name in NAMES:
            one, two = (part.train.images[part.train.labels == NAMES.index(name)] for part in images)
            assert np.array_equal(one, two)

    def test_labels_that_are_no_classes(self, model, cells):
        with pytest.raises(ValueError, match="class labels to balance"):
            balance(cells.with_labels(np.zeros((len(cells), 2))), model)

    def test_npz_in_the_layout_of_medmnist(self, model, cells, tmp_path):
        balanced, provenance = balance(cells, model)
        table = write_balanced(balanced, provenance, tmp_path / "cells.npz")
        again = condgen.load_npz(tmp_path / "cells.npz")
        for part in ("train", "validation", "test"):
            assert np.array_equal(getattr(again, part).images, getattr(balanced, part).images)
            assert np.array_equal(getattr(again, part).labels, getattr(balanced, part).labels)
        rows = list(csv.DictReader(table.read_text().splitlines()))
        assert [row["kind"] for row in rows] == ["variation" if made else "real" for made in provenance.synthetic]
        assert np.array_equal(again.train.factors["synthetic"], provenance.synthetic)
        assert not again.test.factors["synthetic"].any()
        assert {row["class"] for row in rows} == set(NAMES)
        with np.load(tmp_path / "cells.npz") as file:
            assert file["train_labels"].shape == (len(balanced.train), 1)

    def test_the_medmnist_package_loads_it(self, tmp_path):
        from medmnist import BloodMNIST

        cells = condgen.load_smears(80)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawer = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)
        balanced, provenance = balance(cells, drawer)
        write_balanced(balanced, provenance, tmp_path / "bloodmnist.npz")
        found = BloodMNIST(split="train", root=str(tmp_path))
        assert len(found.imgs) == len(balanced.train)  # its own len() insists on the official number of images
        image, label = found[len(found.imgs) - 1]
        assert np.array_equal(np.moveaxis(np.asarray(image), -1, 0), balanced.train.images[-1])
        assert int(label[0]) == balanced.train.labels[-1]

    def test_a_folder_names_what_is_generated(self, model, cells, tmp_path):
        balanced, provenance = balance(cells, model)
        write_balanced(balanced, provenance, tmp_path / "cells")
        files = list((tmp_path / "cells" / "train").rglob("*.png"))
        assert sum(file.name.startswith("synthetic") for file in files) == provenance.synthetic.sum()
        assert not list((tmp_path / "cells" / "test").rglob("synthetic*"))
        place = int(np.flatnonzero(provenance.synthetic)[0])
        name = NAMES[balanced.train.labels[place]]
        with Image.open(tmp_path / "cells" / "train" / name / f"synthetic-{place:06d}.png") as image:
            assert np.array_equal(np.asarray(image), balanced.train.images[place][0])
        with pytest.raises(ValueError, match="holds other files"):
            write_balanced(balanced, provenance, tmp_path / "cells")


def test_the_command_line(tmp_path, capsys):
    small = ["--size", "16", "--images", "120", "--width", "4", "--latent", "4", "--epochs", "1"]
    run, out = tmp_path / "run", tmp_path / "balanced.npz"
    assert main(["train", *small, "--out", str(run)]) == 0
    assert main(["balance", str(run), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "generated images beside" in said
    assert "balanced.provenance.csv" in said
    assert len(set(condgen.load_npz(out).train.class_counts.values())) == 1
    assert main(["balance", str(run), "--out", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err
    counts = ["--counts", "[platelet=30,neutrophil=40]"]
    assert main(["balance", str(run), *counts, "--out", str(tmp_path / "some.npz")]) == 0
    assert condgen.load_npz(tmp_path / "some.npz").train.class_counts["platelet"] == 30
    assert main(["balance", str(run), "--counts", "[platelet]", "--out", str(tmp_path / "x.npz")]) == 1
    assert "class=count" in capsys.readouterr().err


class TestKindsOfInput:
    """What comes back has the type, range and layout that was given, and the very same generated images."""

    @pytest.fixture(scope="class")
    @staticmethod
    def colour():
        cells = condgen.load_smears(40, size=16)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = condgen.conditional_vae((3, 16, 16), 8, latent=4, width=4).eval()
        model.class_names = cells.class_names
        return model, cells, Balancer(model).fit_resample(cells.images, cells.labels)

    @pytest.mark.parametrize(
        ("there", "back"),
        [
            (lambda x: x.astype(np.int64), lambda x: x),
            (lambda x: x.astype(np.float32), lambda x: x),
            (lambda x: (x / 255).astype(np.float64), lambda x: 255 * x),
            (lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2)),
            (lambda x: x.reshape(len(x), -1), lambda x: x.reshape(len(x), 3, 16, 16)),
            (
                lambda x: x.transpose(0, 2, 3, 1).reshape(len(x), -1),
                lambda x: x.reshape(len(x), 16, 16, 3).transpose(0, 3, 1, 2),
            ),
        ],
    )
    def test_images(self, colour, there, back):
        model, cells, (images, _) = colour
        X, _ = Balancer(model).fit_resample(there(cells.images), cells.labels)
        assert X.dtype == there(cells.images).dtype
        assert np.abs(back(X) - images.astype(float)).max() < 1e-3

    @pytest.mark.parametrize(
        ("there", "back"),
        [
            (lambda y, _: y[:, None], lambda y, _: y[:, 0]),
            (lambda y, _: np.eye(8, dtype=np.uint8)[y], lambda y, _: y.argmax(1)),
            (lambda y, _: y.astype(np.float32), lambda y, _: y.astype(int)),
            (lambda y, names: np.array(names)[y], lambda y, names: np.array([names.index(name) for name in y])),
            (
                lambda y, names: np.array(names, dtype=object)[y],
                lambda y, names: np.array([names.index(name) for name in y]),
            ),
        ],
    )
    def test_labels(self, colour, there, back):
        model, cells, (_, labels) = colour
        given = there(cells.labels, list(cells.class_names))
        _, y = Balancer(model).fit_resample(cells.images, given)
        assert y.dtype == given.dtype
        assert y.shape[1:] == given.shape[1:]
        assert np.array_equal(back(y, list(cells.class_names)), labels)

    def test_a_new_class_keeps_its_whole_name(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = condgen.conditional_vae((1, 8, 8), 2, latent=4, width=4).eval()
        model.class_names = ("a", "a long name")
        X, y = np.zeros((5, 1, 8, 8), np.uint8), np.array(["a"] * 5)
        assert set(Balancer(model, {"a long name": 3}).fit_resample(X, y)[1]) == {"a", "a long name"}

    def test_pandas(self, colour):
        pandas = pytest.importorskip("pandas")
        model, cells, (images, labels) = colour
        frame = pandas.DataFrame(cells.images.reshape(len(cells), -1))
        y = pandas.Series(pandas.Categorical(np.array(cells.class_names)[cells.labels]), name="kind")
        X, found = Balancer(model).fit_resample(frame, y)
        assert np.array_equal(X.to_numpy().reshape(images.shape), images)
        assert list(X.columns) == list(frame.columns)
        assert (found.name, str(found.dtype)) == ("kind", "category")
        assert [cells.class_names.index(name) for name in found] == labels.tolist()

    @pytest.mark.parametrize(
        ("X", "y", "said"),
        [
            (lambda x: x - 128.0, lambda y: y, "Balance before you standardise"),
            (lambda x: x[:, :2], lambda y: y, "channels first or last, or rows"),
            (lambda x: x, lambda y: y + 0.5, "whole numbers or names; got 0.5"),
            (lambda x: x, lambda y: np.ones((len(y), 8)), "one 1 in every row"),
            (lambda x: x, lambda y: y + 90, r"classes in \[0, 8\)"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, colour, X, y, said):  # noqa: N803
        model, cells, _ = colour
        with pytest.raises(ValueError, match=said):
            Balancer(model).fit_resample(X(cells.images), y(cells.labels))

    def test_random_state(self, colour):
        model, cells, _ = colour
        one, same = (
            Balancer(model, **kind).fit_resample(cells.images, cells.labels)[0]
            for kind in ({"seed": 7}, {"random_state": 7})
        )
        assert np.array_equal(one, same)
        states = (np.random.RandomState(0), np.random.RandomState(0))
        first, again = (
            Balancer(model, random_state=state).fit_resample(cells.images, cells.labels)[0] for state in states
        )
        assert np.array_equal(first, again)
