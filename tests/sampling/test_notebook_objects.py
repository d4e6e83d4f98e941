"""What notebooks show: figures that are pictures of themselves, tables that say what matters; data sets of torch."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import condgen
from condgen.data.adapters import as_labelled
from condgen.data.images import LabelledImages
from condgen.evaluation.records import Measure
from condgen.evaluation.run import Evaluation
from condgen.evaluation.verdict import judge_measures
from condgen.io.pictures import class_grid, html_table
from condgen.training.history import History

NAMES = ("round <1>", "lobed")


@pytest.fixture(scope="module")
def cells():
    labels = np.repeat([0, 1], [30, 3])
    images = np.random.default_rng(0).integers(0, 256, (33, 3, 8, 8), dtype=np.uint8)
    return LabelledImages(images, labels, NAMES, name="cells")


def seen(figure):
    """The pixels that a notebook shows."""
    return np.asarray(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"))


class TestFigures:
    def test_a_figure_is_its_own_picture(self):
        grid = class_grid(torch.rand(2, 3, 3, 8, 8), zoom=1)
        assert seen(grid).shape == (2 * 9 - 1 + 8, 3 * 9 - 1 + 8, 3)

    def test_data_show_their_own_images(self, cells):
        """Each picture is one of the class in its row; a class with fewer leaves white."""
        shown, names = cells._rows(5, seed=0)
        assert names == ["round <1> (30)", "lobed (3)"]
        for row, label in ((0, 0), (1, 1)):
            own = torch.as_tensor(cells.images[cells.labels == label]) / 255
            for column in range(5 if row == 0 else 3):
                assert (own == shown[row, column]).flatten(1).all(1).any()
        assert (shown[1, 3:] == 1).all()
        assert seen(cells.show(5)).shape[0] > 84 * 2
        other = cells._rows(5, seed=1)[0]
        assert not torch.equal(other, shown)

    @pytest.mark.parametrize("labels", [np.eye(33, 2, dtype=np.uint8), np.linspace(0, 1, 66).reshape(33, 2)])
    def test_data_with_other_labels_show_images_as_they_come(self, cells, labels):
        kind = "multi-label" if labels.dtype == np.uint8 else "continuous"
        shown, names = cells.with_labels(labels, kind=kind)._rows(4, seed=0)
        assert shown.shape[:2] == (4, 4)
        assert names == []

    def test_nothing_to_show(self, cells):
        for asked in (cells[:0].show, lambda: cells.show(0)):
            with pytest.raises(ValueError, match="Expected images to show"):
                asked()

    def test_a_model_shows_the_samples_of_each_class(self, cells):
        model = condgen.conditional_vae(cells.image_shape, 2, latent=4, width=4)
        model.class_names = NAMES
        whole = seen(model.show(3, seed=2))
        images = model.sample([0, 0, 0, 1, 1, 1], seed=2)
        expected = seen(class_grid(images.unflatten(0, (2, 3)), NAMES))
        assert np.array_equal(whole, expected)

    def test_a_history_is_plotted_and_tabled(self):
        rows = [{"epoch": k, "train_loss": 3.0 / k, "validation_loss": 4.0 / k} for k in (1, 2, 3)]
        history = History(rows, best_epoch=3)
        (axes,) = history.plot().axes
        assert [line.get_ydata().tolist() for line in axes.lines] == [[3.0, 1.5, 1.0], [4.0, 2.0, 4 / 3]]
        assert history.to_frame()["train_loss"].tolist() == [3.0, 1.5, 1.0]
        assert repr(history).startswith("History: 3 epochs, the best of them 3; the last: train_loss 1, ")
        with pytest.raises(ValueError, match="nothing was recorded"):
            History().plot()

    def test_an_evaluation_shows_its_measures_beside_real_images(self):
        found = {"coverage": Measure(0.9, floor=0.96), "sharpness": Measure(0.94), "fid": Measure(3.0, floor=1.0)}
        evaluation = Evaluation(found, judge_measures(found), {"name": "mine"})
        (axes,) = evaluation.show().axes
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.9 / 0.96, 0.94])
        assert [text.get_text() for text in axes.texts] == ["0.9 (real 0.96)", "0.94"]
        assert repr(evaluation).startswith(f"Evaluation of mine: {evaluation.verdict.answer.upper()}")
        with pytest.raises(ValueError, match="none of them was taken"):
            Evaluation({"fid": found["fid"]}, judge_measures(found), {}).show()


class TestTables:
    def test_cells_are_escaped(self):
        assert html_table([["<b>", 1]], ["&"]) == (
            "<table><tr><th>&amp;</th></tr><tr><td>&lt;b&gt;</td><td>1</td></tr></table>"
        )

    def test_they_say_what_matters(self, cells):
        model = condgen.conditional_vae(cells.image_shape, 2, latent=4, width=4)
        assert "Not trained yet" in model._repr_html_()
        history = condgen.fit(model, cells, epochs=1, batch_size=8, progress=False, accelerator="cpu")
        told = model._repr_html_()
        assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in told
        assert all(part in told for part in ("ConvEncoder", "z (4)", cells.fingerprint))
        assert "33 images of 3 × 8 × 8, 2 class labels" in cells._repr_html_()
        assert "train 7" in cells.split(0.4, 0.4)._repr_html_()
        found = {"coverage": Measure(0.1, floor=0.97)}
        evaluation = Evaluation(found, judge_measures(found), {})
        assert f"<b>{evaluation.verdict.answer.upper()}" in evaluation._repr_html_()
        assert "<td>0.1</td><td>0.97</td>" in evaluation._repr_html_()
        for shown in (cells, history):
            assert 'src="data:image/png;base64,' in shown._repr_html_()
        assert "no epoch" in History()._repr_html_()


class TestDataSets:
    def test_torch_reads_it(self, cells):
        loader = DataLoader(cells, batch_size=33)  # type: ignore[arg-type]
        ((images, labels),) = loader
        assert torch.equal(images, torch.as_tensor(cells.images) / 255)
        assert labels.tolist() == cells.labels.tolist()
        assert labels.dtype == torch.int64

    def test_other_labels_are_tensors(self, cells):
        _, label = cells.with_labels(np.linspace(0, 1, 66).reshape(33, 2))[1]
        torch.testing.assert_close(label, torch.tensor([2 / 65, 3 / 65]))

    def test_slices_and_masks_are_sets(self, cells):
        assert cells[3:9].labels.tolist() == cells.labels[3:9].tolist()
        assert len(cells[cells.labels == 1]) == 3
        with pytest.raises(IndexError):
            cells[33]

    def test_columns_of_pandas(self, cells):
        kinds = np.array(["a", "b"])[cells.labels]
        frame = pd.DataFrame({"image": list(np.moveaxis(cells.images, 1, 3)), "kind": kinds})
        with pytest.warns(UserWarning, match="taken for the channels"):
            found = as_labelled((frame["image"], frame["kind"]))
        assert np.array_equal(found.images, cells.images)
        assert found.class_counts == {"a": 30, "b": 3}

    def test_medmnists_own(self):
        class Like:
            """What `medmnist.BloodMNIST` yields: pictures of Pillow, and labels in arrays of one."""

            info = {"label": {"0": "round", "1": "lobed"}}  # noqa: RUF012 - as theirs

            def __len__(self):
                return 4

            def __getitem__(self, k):
                return Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)), np.array([k % 2])

        found = as_labelled(Like())
        assert found.class_counts == {"round": 2, "lobed": 2}
        assert found.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30]

    def test_a_loader_is_told_what_to_give(self, cells):
        inner = TensorDataset(torch.as_tensor(cells.images), torch.as_tensor(cells.labels))
        with pytest.raises(TypeError, match=r"Give its data set: loader\.dataset"):
            condgen.fit(condgen.conditional_vae((3, 8, 8), 2, latent=4, width=4), DataLoader(inner))
        assert np.array_equal(as_labelled(inner).images, cells.images)


class TestTogether:
    def test_one_behind_the_other(self, cells):
        both = cells + cells[cells.labels == 1]
        assert both.class_counts == {"round <1>": 30, "lobed": 6}
        assert np.array_equal(both.images[33:], cells.images[30:])

    def test_names_decide(self, cells):
        other = LabelledImages(cells.images[:2], np.array([0, 1]), ("lobed", "spiked"))
        both = cells + other
        assert both.class_names == ("round <1>", "lobed", "spiked")
        assert both.labels[33:].tolist() == [1, 2]

    def test_split_by_split(self, cells):
        split = cells.split(0.2, 0.2)
        both = split + split
        for name in ("train", "validation", "test"):
            one, twice = getattr(split, name), getattr(both, name)
            assert np.array_equal(twice.images, np.concatenate([one.images, one.images]))
            assert twice.labels.tolist() == 2 * one.labels.tolist()

    def test_factors_that_both_have_stay(self, cells):
        column = np.arange(33)
        size = LabelledImages(cells.images, cells.labels, NAMES, factors={"size": column, "other": column})
        alone = LabelledImages(cells.images, cells.labels, NAMES, factors={"size": column})
        assert list((size + alone).factors) == ["size"]

    def test_sets_that_do_not_fit(self, cells):
        grey = LabelledImages(cells.images[:, :1], cells.labels, NAMES)
        for other in (grey, cells.split(0.2, 0.2), cells.with_labels(np.zeros((33, 2)), kind="continuous")):
            with pytest.raises(ValueError, match="Expected images of one shape with labels of one kind"):
                cells + other
        conditions = [cells.with_labels(np.zeros((33, 1)), [name], "continuous") for name in ("size", "hue")]
        with pytest.raises(ValueError, match="Expected the same conditions; got size and hue"):
            conditions[0] + conditions[1]


class TestSaving:
    @pytest.mark.parametrize("split", [False, True])
    @pytest.mark.parametrize("grey", [False, True])
    def test_what_is_saved_is_read_back(self, cells, split, grey, tmp_path):
        given = cells.split(0.2, 0.2) if split else cells
        given = LabelledImages(given.images[:, : 1 if grey else 3], given.labels, NAMES, given.splits)
        again = condgen.load_npz(given.save(tmp_path / "new" / "cells.npz"))
        for name in given.splits:
            assert np.array_equal(getattr(again, name).images, getattr(given, name).images)
            assert np.array_equal(getattr(again, name).labels, getattr(given, name).labels)
        assert again.class_names == NAMES
        assert len(again) == len(given)

    def test_other_labels(self, cells, tmp_path):
        given = cells.with_labels(np.linspace(0, 1, 66).reshape(33, 2), ("size", "hue")).split(0.2, 0.2)
        again = condgen.load_npz(given.save(tmp_path / "cells.npz"))
        assert again.kind == "continuous"
        assert np.array_equal(again.test.labels, given.test.labels)

    def test_another_ending(self, cells, tmp_path):
        with pytest.raises(ValueError, match=r"ending in \.npz"):
            cells.save(tmp_path / "cells.zip")
