"""What people really have: images and labels of other kinds, converted exactly or refused."""

import numpy as np
import pytest
import torch
from PIL import Image

import condgen
from condgen.data.adapters import as_labelled
from condgen.data.images import LabelledImages
from condgen.io.names import folder_names, read_classes, write_classes
from condgen.sampling.latents import interpolate

LEVELS = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8), dtype=np.uint8)
LABELS = np.arange(12) % 3


class TestImages:
    @pytest.mark.parametrize("kind", ["int64", "uint16", "float32", "float64"])
    def test_whole_numbers_up_to_255_are_grey_levels(self, kind):
        with pytest.warns(UserWarning, match=f"{kind} from .* read as uint8"):
            images = LabelledImages(LEVELS.astype(kind), LABELS)
        assert np.array_equal(images.images, LEVELS)
        assert images.images.dtype == np.uint8

    @pytest.mark.parametrize("kind", ["float32", "float64"])
    def test_multiples_of_1_255_are_converted_exactly(self, kind):
        with pytest.warns(UserWarning, match="multiples of 1/255"):
            images = LabelledImages(LEVELS.astype(kind) / 255, LABELS)
        assert np.array_equal(images.images, LEVELS)

    @pytest.mark.parametrize(
        ("images", "said"),
        [
            (LEVELS.astype(float) - 128, "values from -128 .*If they were standardised"),
            (LEVELS.astype(float) * 2, "got values from"),
            (LEVELS.astype(float) + 0.5, "fractions|got values from"),
            ((LEVELS > 99).astype(int), "only 0 and 1, which can be grey levels or black and white"),
            (np.random.default_rng(0).random((12, 3, 8, 8)), "no multiples of 1/255"),
            (np.full((12, 3, 8, 8), np.nan), "NaN or infinity"),
        ],
    )
    def test_what_could_be_two_things_or_none_is_refused(self, images, said):
        with pytest.raises(ValueError, match=said):
            LabelledImages(images, LABELS)

    def test_channels_last_and_grey_images(self):
        with pytest.warns(UserWarning, match="last axis is taken for the channels"):
            images = LabelledImages(LEVELS.transpose(0, 2, 3, 1), LABELS)
        assert np.array_equal(images.images, LEVELS)
        assert LabelledImages(LEVELS[:, 0], LABELS).image_shape == (1, 8, 8)
        assert as_labelled((torch.as_tensor(LEVELS), torch.as_tensor(LABELS))).image_shape == (3, 8, 8)

    def test_masks_are_black_and_white(self):
        with pytest.warns(UserWarning, match="white and black"):
            assert np.unique(LabelledImages(LEVELS > 99, LABELS).images).tolist() == [0, 255]


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "numbers", "names"),
        [
            (1 + LABELS, LABELS, ("class 1", "class 2", "class 3")),
            (255 * (LABELS > 0), 1 * (LABELS > 0), ("class 0", "class 255")),
            (1.0 * LABELS, LABELS, ("class 0", "class 1", "class 2")),
            (np.eye(3, dtype=int)[LABELS], LABELS, ("class 0", "class 1", "class 2")),
            (np.eye(3)[LABELS], LABELS, ("class 0", "class 1", "class 2")),
        ],
    )
    def test_classes_by_value_with_a_note(self, labels, numbers, names):
        with pytest.warns(UserWarning, match="read as"):
            images = LabelledImages(LEVELS, labels)
        assert images.kind == "class"
        assert images.class_names == names
        assert np.array_equal(images.labels, numbers)

    def test_text_is_classes(self):
        text = np.array(["round", "lobed", "band"])[LABELS]
        images = LabelledImages(LEVELS, text)
        assert images.class_names == ("band", "lobed", "round")
        assert [images.class_names[label] for label in images.labels] == text.tolist()
        named = LabelledImages(LEVELS, text, ("round", "lobed", "band"))
        assert np.array_equal(named.labels, LABELS)

    def test_the_kind_can_be_said(self):
        onehot = np.eye(3, dtype=int)[LABELS]
        assert LabelledImages(LEVELS, onehot, kind="multi-label").kind == "multi-label"
        assert LabelledImages(LEVELS, 1.0 * LABELS, kind="continuous").labels.shape == (12, 1)
        assert LabelledImages(LEVELS, 1.0 * LABELS, kind="classes").kind == "class"
        with pytest.raises(ValueError, match="kind as one of class"):
            LabelledImages(LEVELS, LABELS, kind="sorts")
        with pytest.raises(ValueError, match="whole numbers as class labels"):
            LabelledImages(LEVELS, LABELS + 0.5, kind="class")

    def test_a_part_of_a_set_is_of_its_kind(self):
        """Whatever its own labels look like."""
        radius = LabelledImages(LEVELS, np.array([[0.5], *[[1.0]] * 11]), ("radius",))
        assert radius.kind == radius.subset(range(1, 12)).kind == radius.split().train.kind == "continuous"
        several = LabelledImages(LEVELS, np.tri(12, 3, dtype=int))
        assert several.kind == several.subset([0, 0]).kind == "multi-label"

    def test_a_set_without_some_class_matches_by_name(self):
        whole = LabelledImages(LEVELS, LABELS)
        with pytest.warns(UserWarning, match="labels are 0, 2"):
            part = LabelledImages(LEVELS, 2 * (LABELS > 0))
        assert part.ordered(whole.class_names).class_counts == {"class 0": 4, "class 1": 0, "class 2": 8}


class TestHandedOver:
    class Pictures(torch.utils.data.Dataset):
        classes = ("round", "lobed", "band")

        def __len__(self):
            return 12

        def __getitem__(self, k):
            return Image.fromarray(LEVELS[k].transpose(1, 2, 0)), int(LABELS[k])

    def test_data_sets_of_torch(self):
        images = as_labelled(self.Pictures())
        assert np.array_equal(images.images, LEVELS)
        assert images.class_names == self.Pictures.classes
        pairs = torch.utils.data.TensorDataset(torch.as_tensor(LEVELS), torch.as_tensor(LABELS))
        assert np.array_equal(as_labelled(pairs).images, LEVELS)

    def test_a_pair_is_trained_on(self):
        model = condgen.conditional_vae((3, 8, 8), 3, latent=2, width=4)
        history = condgen.fit(model, (LEVELS, LABELS), epochs=1, progress=False, accelerator="cpu")
        assert len(history) == 1
        assert model.class_names == ("class 0", "class 1", "class 2")

    def test_reversed_arrays(self):
        """Views with negative strides, of which PyTorch makes no tensors."""
        model = condgen.conditional_vae((3, 8, 8), 3, latent=2, width=4)
        turned = LEVELS[::-1, :, :, ::-1], LABELS[::-1]
        condgen.fit(model, turned, epochs=1, progress=False, accelerator="cpu")
        expected = model.reconstruct(turned[0].copy(), turned[1].copy())
        assert torch.equal(model.reconstruct(*turned), expected)
        assert np.array_equal(LabelledImages(*turned)[::-1].images, LEVELS[:, :, :, ::-1])
        latent = np.arange(2.0)[::-1]
        assert torch.equal(interpolate(model, latent, latent, 0), interpolate(model, latent.copy(), latent.copy(), 0))

    @pytest.mark.parametrize("given", [3, "cells", LEVELS, [1, 2, 3]])
    def test_anything_else_is_refused(self, given):
        with pytest.raises((TypeError, ValueError), match="Expected"):
            as_labelled(given)

    def test_a_set_can_be_indexed(self):
        images = LabelledImages(LEVELS, LABELS)
        assert torch.equal(images[3][0], torch.as_tensor(LEVELS[3]) / 255)
        assert images[3][1] == 0
        assert len(images[2:5]) == 3


class TestFolders:
    NAMES = ("../x", "a/b", "CON", ".hidden", "round", "Round", "")

    def test_names_are_safe_and_come_back(self, tmp_path):
        folders = folder_names(self.NAMES)
        assert len({name.casefold() for name in folders}) == len(self.NAMES)
        assert not any(
            set(name) & set('/\\:*?"<>|') or name.startswith(".") or name.lower() == "con" for name in folders
        )
        write_classes(tmp_path, self.NAMES)
        assert list(read_classes(tmp_path).values()) == list(self.NAMES)

    @pytest.mark.parametrize("ending", ["", ".npz"])
    def test_a_balanced_set_comes_back(self, tmp_path, ending):
        names = ("zebra", "../x", "a, b (c)")
        images = LabelledImages(np.tile(LEVELS, (4, 1, 1, 1)), np.tile(LABELS, 4), names).split(0.2, 0.2)
        model = condgen.conditional_vae((3, 8, 8), 3, latent=2, width=4)
        model.class_names = names
        balanced, provenance = condgen.balance(images, model, {"zebra": 12})
        path = tmp_path / f"set{ending}"
        from condgen.apps.provenance import write_balanced

        write_balanced(balanced, provenance, path)
        again = condgen.load_data(path, size=8)
        assert again.class_names == names
        for split in ("train", "validation", "test"):
            assert getattr(again, split).class_counts == getattr(balanced, split).class_counts
        assert sorted(p.name for p in tmp_path.iterdir())[0].startswith("set")
        assert not (tmp_path / "x").exists()

    def test_more_than_256_classes(self, tmp_path):
        from condgen.apps.provenance import Provenance, write_balanced

        n = 300
        images = LabelledImages(np.zeros((n, 1, 8, 8), np.uint8), np.arange(n))
        about = Provenance(np.zeros(n, bool), images.labels, np.full(n, -1), 0, "", images.class_names, {}, {})
        write_balanced(images, about, tmp_path / "many.npz")
        with np.load(tmp_path / "many.npz") as file:
            assert file["train_labels"].ravel().tolist() == list(range(n))

    def test_splits_nested_pictures_links_and_strangers(self, tmp_path):
        for split, n in (("train", 4), ("valid", 2), ("test", 2)):
            for k, name in enumerate(("round", "lobed")):
                folder = tmp_path / split / name / "patient"
                folder.mkdir(parents=True)
                for i in range(n):
                    Image.new("L", (9, 8), 10 * k + i).save(folder / f"{i}.PNG")
        (tmp_path / "train" / "round" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (tmp_path / "train" / "loose.jpg").touch()
        (tmp_path / "notes.txt").touch()
        said = "1 dead links, 1 images that are in no class's folder, 1 loose .txt files"
        with pytest.warns(UserWarning, match=said):
            images = condgen.load_folder(tmp_path, size=8)
        assert images.class_names == ("lobed", "round")
        assert [len(getattr(images, name)) for name in ("train", "validation", "test")] == [8, 4, 4]

    def test_pictures_are_turned_as_a_viewer_shows_them(self, tmp_path):
        picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        (tmp_path / "a").mkdir()
        for i in range(3):
            picture.save(tmp_path / "a" / f"{i}.png", exif=exif)
        assert np.array_equal(condgen.load_folder(tmp_path, 8).images[0, 0], np.rot90(np.asarray(picture), -1))

    @pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".ppm", ".bmp", ".gif", ".webp"])
    def test_whatever_pillow_reads(self, suffix, tmp_path):
        (tmp_path / "a").mkdir()
        for i in range(3):
            form = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "a" / f"{i}{suffix}", format=form)
        assert len(condgen.load_folder(tmp_path, 8)) == 3


class TestNpz:
    @pytest.mark.parametrize(
        "names",
        [
            ("train_images", "train_labels", "validation_images", "validation_labels"),
            ("train_images", "train_labels", "valid_images", "valid_labels"),
            ("x_train", "y_train", "x_val", "y_val"),
            ("train_x", "train_y", "val_x", "val_y"),
        ],
    )
    def test_splits_by_other_names(self, names, tmp_path):
        arrays = dict(zip(names, (LEVELS, LABELS, LEVELS[:3], LABELS[:3]), strict=True))
        np.savez(tmp_path / "cells.npz", **arrays)
        images = condgen.load_npz(tmp_path / "cells.npz")
        assert len(images.train) == 12
        assert len(images.validation) == 3
        assert np.array_equal(images.train.labels, LABELS)
