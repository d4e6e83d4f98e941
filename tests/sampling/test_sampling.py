"""A trained model in use: images per class, on the way between two, under other labels, on disk, in pictures."""

import json
import sys
import warnings
import weakref
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import condgen
from condgen.io.pictures import class_grid, image_rows, png, save_grid, write_figure
from condgen.models.classes import class_names
from condgen.models.generator import BLOCK
from condgen.nn import conditioners
from condgen.sampling import latents, shards
from condgen.sampling.grids import pairs, per_class, to_uint8
from condgen.sampling.latents import interpolate, transfer
from condgen.sampling.shards import write_samples
from condgen.training.history import History

NAMES = ("lobed", "round", "spiked")


def small(shape=(3, 8, 8), classes=3, names=NAMES, **options):
    """A model whose images differ visibly by label and latent."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = condgen.conditional_vae(shape, classes, **{"latent": 4, "width": 4, **options})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)
    model.class_names = names
    return model


@pytest.fixture(scope="module")
def model():
    return small()


@pytest.fixture(scope="module")
def x():
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def without_labels():
    return small(classes=0, names=())


class TestPerClass:
    def test_rows_are_classes_in_order(self, model):
        grid = per_class(model, 5, seed=2)
        assert grid.shape == (3, 5, 3, 8, 8)
        whole = model.sample([0] * 5 + [1] * 5 + [2] * 5, seed=2)
        assert torch.equal(grid.flatten(0, 1), whole)
        assert not torch.allclose(grid[0], grid[1])

    def test_temperature_and_seed_are_passed_on(self, model):
        cold = per_class(model, 2, temperature=0.0)
        assert torch.equal(cold[:, 0], cold[:, 1])
        assert not torch.equal(per_class(model, 2, seed=1), per_class(model, 2, seed=2))

    def test_a_model_without_labels_has_one_row(self):
        assert per_class(without_labels(), 4).shape == (1, 4, 3, 8, 8)

    def test_dropped_labels_are_no_class(self):
        dropped = small(conditioner=conditioners.LabelDropout(conditioners.OneHot(3), 0.1))
        assert per_class(dropped, 2).shape[:2] == (3, 2)

    def test_labels_that_are_no_classes_are_refused(self):
        with pytest.raises(ValueError, match=r"class labels; got MultiLabel. Pass labels to model\.sample"):
            per_class(small(conditioner=conditioners.MultiLabel(3)), 2)

    def test_names(self, model):
        assert class_names(model) == NAMES
        assert class_names(small(names=())) == ("class 0", "class 1", "class 2")
        trained_on_classes = small(classes=0)
        assert class_names(trained_on_classes) == ("class 0",)


class TestInterpolate:
    @pytest.mark.parametrize("spherical", [False, True])
    @pytest.mark.parametrize("kind", ["images", "latents", "one of each", "arrays"])
    def test_the_ends_are_the_ends(self, kind, spherical, model, x):
        z = model.encode(x[:2], [0, 0])
        first, last = {
            "images": (x[0], x[1]),
            "latents": (z[0], z[1]),
            "one of each": (x[0], z[1]),
            "arrays": (z[0].double().numpy(), x[1].numpy()),
        }[kind]
        way = interpolate(model, first, last, 0, steps=5, spherical=spherical)
        assert way.shape == (5, 3, 8, 8)
        torch.testing.assert_close(way[[0, -1]], model.reconstruct(x[:2], [0, 0]))

    def test_the_middle_of_a_straight_line(self, model):
        z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
        middle = interpolate(model, z[0], z[1], "round", steps=3)[1]
        torch.testing.assert_close(middle[None], model.decode(z.mean(0, keepdim=True), torch.tensor([1])).mean)

    def test_the_great_circle_keeps_the_length(self):
        first, last = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
        way = latents.slerp(first, last, torch.linspace(0, 1, 7)[:, None])
        torch.testing.assert_close(way.norm(dim=1), torch.full((7,), 3.0))
        angles = torch.atan2(way[:, 1], way[:, 0])
        torch.testing.assert_close(angles.diff(), torch.full((6,), torch.pi / 12))

    @pytest.mark.parametrize("factor", [3.0, -3.0])
    def test_ends_on_one_line_are_joined_by_it(self, factor):
        """Rounding gives some of them a cosine beyond 1, whose angle would be no number."""
        ends = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
        assert any(abs(torch.dot(z, factor * z) / (z.norm() * (factor * z).norm())) > 1 for z in ends)
        for z in ends:
            way = latents.slerp(z, factor * z, torch.tensor([[0.5]]))
            torch.testing.assert_close(way[0], (1 + factor) / 2 * z, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("last", [[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]])
    def test_where_there_is_no_circle_it_is_straight(self, last):
        first, last = torch.tensor([1.0, 2.0]), torch.tensor(last)
        way = latents.slerp(first, last, torch.tensor([[0.0], [0.5], [1.0]]))
        torch.testing.assert_close(way, torch.stack([first, (first + last) / 2, last]))

    @pytest.mark.parametrize(("steps", "labels"), [(4, [0, 0, 2, 2]), (5, [0, 0, 0, 2, 2]), (2, [0, 2])])
    def test_two_labels_change_in_the_middle(self, steps, labels, model, x):
        way = interpolate(model, x[0], x[1], ("lobed", "spiked"), steps=steps)
        z0, z1 = model.encode(x[:1], [0]), model.encode(x[1:2], [2])
        t = torch.linspace(0, 1, steps)[:, None]
        torch.testing.assert_close(way, model.decode(z0 + t * (z1 - z0), torch.tensor(labels)).mean)

    def test_several_label_columns_are_one_label(self):
        rows = small(conditioner=conditioners.MultiLabel(3))
        z = torch.zeros(4)
        way = interpolate(rows, z, z, [1, 0, 1], steps=2)
        torch.testing.assert_close(way[0], rows.decode(z[None], torch.tensor([[1, 0, 1]])).mean[0])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"steps": 1}, "at least 2 steps, the two ends; got 1"),
            ({"y": (0, 1, 2)}, r"one label or a pair of labels; got \(0, 1, 2\)"),
            ({"y": 3}, r"labels in \[0, 3\); got 3"),
            ({"y": "oval"}, "class names among lobed, round, spiked; got oval"),
            ({"first": torch.zeros(3, 9, 9)}, r"an image of shape .* or a latent of shape"),
        ],
    )
    def test_what_cannot_be_is_refused(self, change, message, model):
        with pytest.raises(ValueError, match=message):
            interpolate(model, **{"first": torch.zeros(4), "last": torch.ones(4), "y": 0, **change})


class TestTransferAndPairs:
    def test_the_own_label_gives_the_reconstruction(self, model, x):
        labels = [0, 1, 2, 0]
        swapped = transfer(model, x, labels, [0, 1, 2])
        assert swapped.shape == (4, 3, 3, 8, 8)
        torch.testing.assert_close(swapped[torch.arange(4), torch.tensor(labels)], model.reconstruct(x, labels))

    def test_another_label_gives_another_image(self, model, x):
        swapped = transfer(model, x, [0, 1, 2, 0], ["round", "spiked"])
        assert (swapped[:, 0] - swapped[:, 1]).abs().amax((1, 2, 3)).min() > 0.01

    def test_an_image_beside_its_reconstruction(self, model, x):
        both = pairs(model, to_uint8(x).numpy(), [0, 1, 2, 0])
        assert both.shape == (4, 2, 3, 8, 8)
        assert torch.equal(both[:, 0], to_uint8(x) / 255)
        torch.testing.assert_close(both[:, 1], model.reconstruct(both[:, 0], [0, 1, 2, 0]))

    @pytest.mark.parametrize("mode", [True, False])
    def test_nothing_changes_the_model(self, mode, x):
        model = small().train(mode)
        for result in (
            per_class(model, 1),
            interpolate(model, x[0], x[1], 0),
            transfer(model, x, [0] * 4, [1]),
            pairs(model, x, [0] * 4),
        ):
            assert not result.requires_grad
            assert model.training is mode


class TestGreyLevels:
    def test_every_level_comes_back(self):
        levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
        assert torch.equal(to_uint8(levels / 255), levels)

    def test_the_nearest_level_is_taken(self):
        images = torch.tensor([-0.1, 0.49 / 255, 0.51 / 255, 100.6 / 255, 254.6 / 255, 1.1]).reshape(1, 1, 1, 6)
        assert to_uint8(images).flatten().tolist() == [0, 0, 1, 101, 255, 255]


class Counting(nn.Module):
    """A model that tells how many blocks were drawn when each was taken."""

    def __init__(self, model):
        super().__init__()
        self.model, self.drawn = model, 0

    def sample_blocks(self, *args, **kwargs):
        for block in self.model.sample_blocks(*args, **kwargs):
            self.drawn += 1
            yield block

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)


def labels_for(n):
    """Labels of `n` images, unbalanced, every class present."""
    return np.arange(n) % 7 % 3


class TestFiles:
    @pytest.mark.parametrize("n", [30, BLOCK, BLOCK + 1, 2 * BLOCK + 5])
    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 9)])
    def test_npz_holds_what_sample_gives(self, n, shape, tmp_path):
        model, labels = small(shape), labels_for(n)
        path = write_samples(model, labels, tmp_path / "new" / "cells.npz", seed=3, start=5)
        again = condgen.load_npz(path)
        assert again.labels.tolist() == labels.tolist()
        assert again.class_names == NAMES
        assert np.array_equal(again.images, to_uint8(model.sample(labels, seed=3, start=5)).numpy())

    def test_npz_is_plain_numpy(self, model, tmp_path):
        with np.load(write_samples(model, labels_for(30), tmp_path / "cells.npz"), allow_pickle=False) as file:
            assert file["images"].shape == (30, 8, 8, 3)
            assert (file["images"].dtype, file["labels"].dtype) == (np.uint8, np.int64)
            assert sorted(file.files) == ["class_names", "images", "labels"]

    def test_npz_of_several_labels_an_image(self, tmp_path):
        rows = small(conditioner=conditioners.MultiLabel(3))
        y = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]] * 10)
        again = condgen.load_npz(write_samples(rows, y, tmp_path / "rows.npz"))
        assert (again.kind, again.labels.tolist()) == ("multi-label", y.tolist())

    def test_a_folder_holds_what_sample_gives(self, tmp_path):
        for shape in ((1, 8, 8), (3, 8, 8)):
            model, labels = small(shape), labels_for(BLOCK + 3)
            folder = write_samples(model, [NAMES[label] for label in labels], tmp_path / str(shape[0]), seed=3)
            again = condgen.load_folder(folder, size=8, class_names=NAMES)
            assert again.class_counts == dict(zip(NAMES, np.bincount(labels).tolist(), strict=True))
            expected = to_uint8(model.sample(labels, seed=3))
            order = np.argsort(labels, kind="stable")  # a folder is read class by class
            assert np.array_equal(again.images, expected[order].numpy())

    def test_files_are_named_by_sample_number(self, model, tmp_path):
        write_samples(model, [2, 0], tmp_path / "cells", start=7)
        write_samples(model, ["spiked"], tmp_path / "cells", start=9)
        files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
        assert files == ["cells/lobed/00000008.png", "cells/spiked/00000007.png", "cells/spiked/00000009.png"]
        assert not (tmp_path / "cells" / "round").exists()

    def test_labels_are_written_exactly(self, model, tmp_path):
        """Label k of the request, not of a permutation of it, belongs to image k."""
        labels = [2, 0, 1, 1, 2, 0, 2] * 5
        with np.load(write_samples(model, labels, tmp_path / "cells.npz")) as file:
            assert file["labels"].tolist() == labels
            for k in (0, 1, 2, 34):
                one = to_uint8(model.sample([labels[k]], start=k))[0].permute(1, 2, 0).numpy()
                assert np.array_equal(file["images"][k], one)

    @pytest.mark.parametrize(("name", "writer"), [("cells.npz", "write_npz"), ("cells", "write_folder")])
    def test_blocks_are_handed_on_as_they_are_drawn(self, name, writer, model, tmp_path, monkeypatch):
        counting, drawn = Counting(model), []
        monkeypatch.setattr(shards, writer, lambda _, blocks, *__: drawn.extend(counting.drawn for _ in blocks))
        write_samples(counting, labels_for(3 * BLOCK), tmp_path / name)
        assert len(drawn) == 3
        assert all(k <= count <= k + 1 for k, count in enumerate(drawn, 1))  # at most one block ahead

    @pytest.mark.parametrize(
        "writer",
        [
            partial(shards.write_npz, shape=(8, 8, 3), mark={}),
            partial(shards.write_folder, start=0, mark={}),
        ],
    )
    def test_blocks_are_let_go_once_written(self, writer, model, tmp_path):
        references = []

        def blocks():
            for _ in range(6):
                block = np.zeros((4, 8, 8, 3), np.uint8)
                references.append(weakref.ref(block))
                assert sum(reference() is not None for reference in references) <= 3
                yield block

        writer(tmp_path / "cells", blocks(), np.zeros(24, int), model)
        assert len(references) == 6

    def test_temperature_is_passed_on(self, model, tmp_path):
        with np.load(write_samples(model, [1, 1], tmp_path / "cold.npz", temperature=0.0)) as file:
            assert np.array_equal(*file["images"])

    def test_an_error_leaves_the_earlier_file(self, model, tmp_path, monkeypatch):
        path = write_samples(model, [0, 1, 2], tmp_path / "cells.npz")
        before = path.read_bytes()

        def fail(*_):
            raise OSError("No space left on device")

        monkeypatch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_samples(model, [0], path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("name", ["cells.zip", "cells.png", "cells.npy", "cells.pkl"])
    def test_other_endings_are_refused(self, name, model, tmp_path):
        with pytest.raises(ValueError, match=r"ending in \.npz, or a folder; got .*cells"):
            write_samples(model, [0], tmp_path / name)

    @pytest.mark.parametrize("name", ["cells.npz", "cells"])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"y": []}, "at least one label; got none"),
            ({"y": [3]}, r"labels in \[0, 3\); got 3"),
            ({"start": -1}, r"start in \[0, 2\*\*62\) and temperature in"),
            ({"seed": -1}, r"seed in \[0, 2\*\*64\)"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(self, change, message, name, model, tmp_path):
        with pytest.raises(ValueError, match=message):
            write_samples(model, **{"y": [0], "path": tmp_path / name, **change})
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_a_folder_needs_one_class_an_image(self, tmp_path):
        rows = small(conditioner=conditioners.Joint([conditioners.OneHot(3), conditioners.OneHot(2)]), names=())
        with pytest.raises(ValueError, match=r"class labels; got Joint"):
            write_samples(rows, [[0, 1]], tmp_path / "cells")
        one_number = small(conditioner=conditioners.Continuous([0.0], [1.0]), names=("radius",))
        with pytest.raises(ValueError, match=r"class labels; got Continuous"):
            write_samples(one_number, [[0.5]], tmp_path / "cells")

    def test_an_image_without_label_gets_into_no_class(self, tmp_path):
        dropped = small(conditioner=conditioners.LabelDropout(conditioners.OneHot(3), 0.1))
        with pytest.raises(ValueError, match=r"one label in \[0, 3\) an image. Write an \.npz"):
            write_samples(dropped, [0, -1], tmp_path / "cells")

    @pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "a\\b", "..", ".", "", "c:d"])
    def test_a_class_name_never_leads_out_of_the_folder(self, name, tmp_path):
        """Class names may come with a model from anywhere."""
        model = small(names=(name, "b", "c"))
        write_samples(model, [0, 1, 2] * 4, tmp_path / "cells")
        assert [path.name for path in tmp_path.iterdir()] == ["cells"]
        assert len(list((tmp_path / "cells").iterdir())) == 5
        assert condgen.load_folder(tmp_path / "cells", 8).class_names == model.class_names


class TestImageRows:
    @pytest.mark.parametrize("gap", [0, 1, 3])
    def test_every_pixel_is_where_it_belongs(self, gap):
        images = torch.rand(2, 3, 3, 4, 5) * 0.9
        whole = image_rows(images, gap)
        assert whole.shape == (3, 2 * 4 + gap, 3 * 5 + 2 * gap)
        covered = torch.zeros(whole.shape[1:], dtype=torch.bool)
        for row in range(2):
            for column in range(3):
                top, left = row * (4 + gap), column * (5 + gap)
                assert torch.equal(whole[:, top : top + 4, left : left + 5], images[row, column])
                covered[top : top + 4, left : left + 5] = True
        assert (whole[:, ~covered] == 1).all()


def read(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


class TestFigures:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(("names", "title"), [((), ""), (("a", "b"), "two rows")])
    def test_pixels_are_enlarged_and_not_smoothed(self, channels, names, title, tmp_path):
        images = torch.rand(2, 3, channels, 28, 28, generator=torch.Generator().manual_seed(0))
        path = save_grid(images, tmp_path / "new" / "grid.png", names, title)
        rows = image_rows(images).permute(1, 2, 0).mul(255).round().numpy().astype(int)
        expected = np.broadcast_to(rows, (*rows.shape[:2], 3)).repeat(3, 0).repeat(3, 1)
        left, top = (190 if names else 4), (30 if title else 4)
        found = read(path)
        height, width = expected.shape[:2]
        assert found.shape == (height + top + 4, width + left + 4, 3)
        assert np.array_equal(found[top : top + height, left : left + width], expected)
        if not names:
            assert (found[:top] == 255).all()

    def test_rows_have_their_names_beside_them(self, tmp_path):
        images = torch.zeros(2, 1, 1, 28, 28)
        for named in (0, 1):
            path = save_grid(images, tmp_path / "grid.png", ["XXX" if row == named else "" for row in (0, 1)])
            ink = (read(path)[:, :180] < 128).any((1, 2))
            middle = np.flatnonzero(ink).mean()
            assert abs(middle - (4 + 84 / 2 + named * 87)) < 4

    def test_long_names_are_not_cut_off(self, tmp_path):
        name = "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"
        ink = read(save_grid(torch.ones(1, 1, 1, 28, 28), tmp_path / "grid.png", [name])) < 128
        assert ink.any()
        assert not ink[:, :2].any()

    def test_zoom(self):
        assert class_grid(torch.zeros(1, 2, 1, 10, 10), zoom=2).get_size_inches() * 100 == pytest.approx([50, 28])
        assert class_grid(torch.zeros(1, 1, 1, 200, 200)).get_size_inches() * 100 == pytest.approx([208, 208])

    def test_a_name_for_every_row_or_none(self):
        with pytest.raises(ValueError, match="a name for each of 2 rows; got 3"):
            class_grid(torch.zeros(2, 1, 1, 8, 8), NAMES)

    def test_other_endings_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"ending in \.png; got .*grid\.pdf"):
            save_grid(torch.zeros(1, 1, 1, 8, 8), tmp_path / "grid.pdf")

    @pytest.mark.parametrize("splits", [("train",), ("train", "validation")])
    def test_curves(self, splits, tmp_path):
        rows = [
            {"epoch": k, **{f"{split}_{term}": -k for split in splits for term in ("elbo", "log_likelihood", "kl")}}
            for k in (1, 2, 3)
        ]
        figure = History(rows).plot()
        assert [axes.get_title() for axes in figure.axes] == ["ELBO", "log-likelihood", "KL"]
        for axes in figure.axes:
            assert [line.get_label() for line in axes.lines] == list(splits)
            assert axes.lines[0].get_xydata().tolist() == [[1, -1], [2, -2], [3, -3]]
        assert write_figure(figure, tmp_path / "curves.PNG").stat().st_size > 1000

    def test_the_users_settings_change_no_pixel(self, tmp_path):
        images = torch.rand(1, 2, 1, 8, 8)
        plain = read(save_grid(images, tmp_path / "plain.png"))
        settings = {"image.origin": "lower", "savefig.dpi": 300, "savefig.bbox": None, "image.interpolation": "bicubic"}
        with mpl.rc_context(settings):
            assert np.array_equal(read(save_grid(images, tmp_path / "set.png")), plain)

    def test_nothing_global_is_set(self, tmp_path):
        before = mpl.rcParams.copy(), "matplotlib.pyplot" in sys.modules
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save_grid(torch.zeros(1, 1, 1, 8, 8), tmp_path / "grid.png", ["a"], "b")
            History([{"epoch": 1, "train_elbo": 1.0, "train_log_likelihood": 1.0, "train_kl": 1.0}]).plot()
            assert (mpl.rcParams.copy(), "matplotlib.pyplot" in sys.modules) == before


def test_a_path_may_be_text(model, tmp_path):
    assert write_samples(model, [0], str(tmp_path / "a.npz")) == Path(tmp_path / "a.npz")
    assert save_grid(torch.zeros(1, 1, 1, 8, 8), str(tmp_path / "a.png")) == Path(tmp_path / "a.png")


class TestFolderOfSamples:
    """A folder holds samples of one model, seed and temperature, and says whether all are there."""

    def test_more_of_the_same_are_taken(self, model, tmp_path):
        write_samples(model, [0, 1], tmp_path / "cells")
        write_samples(model, [2], tmp_path / "cells", start=2)
        assert len(list((tmp_path / "cells").rglob("*.png"))) == 3
        assert json.loads((tmp_path / "cells" / "samples.json").read_text())["complete"] is True

    @pytest.mark.parametrize(("change", "named"), [({"seed": 1}, "seed"), ({"temperature": 0.5}, "temperature")])
    def test_others_are_refused(self, change, named, model, tmp_path):
        write_samples(model, [0, 1], tmp_path / "cells")
        with pytest.raises(ValueError, match=f"holds samples of other {named}. Choose another folder"):
            write_samples(model, [0], tmp_path / "cells", **change)

    def test_another_model_is_refused(self, model, tmp_path):
        write_samples(model, [0, 1], tmp_path / "cells")
        with pytest.raises(ValueError, match="samples of other weights"):
            write_samples(condgen.conditional_vae(model.image_shape, 3, latent=4, width=4), [0], tmp_path / "cells")

    def test_a_used_folder_is_refused(self, model, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match=r"holds other files\. Choose another folder"):
            write_samples(model, [0], tmp_path)


def test_what_is_not_finite_is_no_picture():
    with pytest.raises(ValueError, match="Expected finite images; got NaN"):
        to_uint8(torch.tensor([[[[0.5, float("nan")]]]]))


def test_a_latent_map_of_three_axes_is_no_image(model, monkeypatch):
    """Its shape tells the two apart."""
    monkeypatch.setattr(model.prior, "noise_shape", (2, 1, 2))
    monkeypatch.setattr(latents, "decoded", lambda _, z, __: z)
    z = torch.arange(4.0).reshape(2, 1, 2)
    assert torch.equal(interpolate(model, z, z + 1, 0, steps=2), torch.stack([z, z + 1]))


@pytest.mark.parametrize("name", ["$x^2$", "a_b", "$", "100 % $\\frac", "^"])
def test_names_are_shown_as_they_are(name):
    """Not as formulas, which fail or look like something else."""

    from condgen.evaluation import figures

    names, point = [name, "other"], {"name": name, "precision": 0.5, "recall": 0.5}
    drawn = [
        class_grid(torch.zeros(2, 1, 1, 8, 8), names, title=name),
        figures.confusion(np.eye(2, dtype=np.int64), names),
        figures.precision_recall([{**point, "floor_precision": None, "floor_recall": None}]),
    ]
    for figure in drawn:
        texts = [
            text for text in figure.findobj(lambda artist: hasattr(artist, "get_parse_math")) if name in text.get_text()
        ]
        assert texts
        assert not any(text.get_parse_math() for text in texts)
        png(figure)


class TestShards:
    """Several workers write what one would have written, in any order, whatever happens to some of them."""

    LABELS = np.arange(300) % 3

    @pytest.fixture(scope="class")
    @staticmethod
    def drawer():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = condgen.conditional_vae((1, 8, 8), num_classes=3, latent=4, width=4).eval()
        model.class_names = ("a", "b", "c")
        return model

    @staticmethod
    def content(path):
        """Every byte that is there."""
        if path.is_file():
            return {path.name: path.read_bytes()}
        return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}

    @pytest.mark.parametrize("name", ["cells.npz", "cells"])
    @pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 2, 3, 1, 1)])
    def test_parts_join_to_the_same_bytes(self, drawer, name, order, tmp_path):
        (tmp_path / "one").mkdir(), (tmp_path / "many").mkdir()
        whole = write_samples(drawer, self.LABELS, tmp_path / "one" / name, seed=5, start=7)
        for k in order:
            write_samples(drawer, self.LABELS, tmp_path / "many" / name, seed=5, start=7, shard=(k, 3))
        assert self.content(tmp_path / "many" / name) == self.content(whole)
        assert [path.name for path in (tmp_path / "many").iterdir()] == [name]

    @pytest.mark.parametrize("name", ["cells.npz", "cells"])
    def test_two_workers_that_end_together(self, drawer, name, tmp_path, monkeypatch):
        whole = write_samples(drawer, self.LABELS, tmp_path / "whole" / name, seed=5)
        write_samples(drawer, self.LABELS, tmp_path / "many" / name, seed=5, shard=(1, 2))
        real = shards.Shard.join

        def after_another(shard, *arguments):
            real(shard, *arguments)
            real(shard, *arguments)  # finds that all parts have gone

        monkeypatch.setattr(shards.Shard, "join", after_another)
        write_samples(drawer, self.LABELS, tmp_path / "many" / name, seed=5, shard=(2, 2))
        assert self.content(tmp_path / "many" / name) == self.content(whole)

    def test_bytes_do_not_depend_on_the_time_of_day(self, drawer, tmp_path, monkeypatch):
        import time

        one = write_samples(drawer, self.LABELS[:9], tmp_path / "a.npz").read_bytes()
        monkeypatch.setattr(time, "time", lambda: 1e9)
        monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(1e9))
        assert write_samples(drawer, self.LABELS[:9], tmp_path / "b.npz").read_bytes() == one

    @pytest.mark.parametrize("name", ["cells.npz", "cells"])
    def test_a_killed_worker_is_started_again(self, drawer, name, tmp_path, monkeypatch):
        whole = write_samples(drawer, self.LABELS, tmp_path / f"whole-{name}", seed=5)
        write_samples(drawer, self.LABELS, tmp_path / name, seed=5, shard=(1, 2))
        real = drawer.sample_blocks

        def killed(*arguments, **options):
            for block in real(*arguments, **options):
                yield block
                raise RuntimeError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(drawer, "sample_blocks", killed, raising=False)
            with pytest.raises(RuntimeError, match="killed"):
                write_samples(drawer, self.LABELS, tmp_path / name, seed=5, shard=(2, 2))
        write_samples(drawer, self.LABELS, tmp_path / name, seed=5, shard=(2, 2))
        found, expected = self.content(tmp_path / name), self.content(whole)
        assert list(found.values()) == list(expected.values())

    @pytest.mark.parametrize("name", ["cells.npz", "cells"])
    def test_parts_of_other_samples_are_not_mixed(self, drawer, name, tmp_path):
        write_samples(drawer, self.LABELS, tmp_path / name, seed=5, shard=(1, 2))
        with pytest.raises(ValueError, match="is of other seed"):
            write_samples(drawer, self.LABELS, tmp_path / name, seed=6, shard=(1, 2))
        with pytest.raises(ValueError, match="is of other labels"):
            write_samples(drawer, self.LABELS[::-1].copy(), tmp_path / name, seed=5, shard=(1, 2))
        write_samples(drawer, self.LABELS[::-1].copy(), tmp_path / name, seed=5, shard=(2, 2))
        assert not (tmp_path / "cells.npz").exists()  # no whole comes of halves of two
        assert not (tmp_path / "cells" / "samples.json").exists()

    def test_more_workers_than_blocks(self, drawer, tmp_path):
        whole = write_samples(drawer, self.LABELS[:70], tmp_path / "whole.npz")
        for k in range(1, 6):
            write_samples(drawer, self.LABELS[:70], tmp_path / "parts.npz", shard=(k, 5))
        assert (tmp_path / "parts.npz").read_bytes() == whole.read_bytes()

    def test_a_folder_of_ones_own_images_is_no_place(self, drawer, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "mine.png").touch()
        with pytest.raises(ValueError, match="holds other files"):
            write_samples(drawer, self.LABELS, tmp_path, shard=(1, 2))

    @pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
    def test_wrong_parts(self, drawer, shard, tmp_path):
        with pytest.raises(ValueError, match="k from 1 to n"):
            write_samples(drawer, self.LABELS, tmp_path / "cells.npz", shard=shard)
