"""Readers: every layout in, the same images out; whatever is wrong is said with the file's name."""

import os
import pickle
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from condgen.cli.shared import beside
from condgen.data.images import LabelledImages
from condgen.data.readers import load_data, load_folder, load_medmnist, load_npz

RNG = np.random.default_rng(0)
REAL = Path(os.environ.get("CONDGEN_DATA", "/no/folder"))


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def medmnist_arrays(channels=(), classes=2, size=8, n=(12, 6, 4), prefixes=("train", "val", "test")):
    """Arrays in MedMNIST's layout, labels cycling through the classes."""
    arrays = {}
    for prefix, count in zip(prefixes, n, strict=True):
        arrays[f"{prefix}_images"] = pixels(count, size, size, *channels)
        arrays[f"{prefix}_labels"] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    return arrays


@pytest.fixture
def save(tmp_path):
    """Saves arrays as cells.npz and returns the path."""

    def saved(**arrays):
        np.savez_compressed(tmp_path / "cells.npz", **arrays)
        return tmp_path / "cells.npz"

    return saved


class TestNpz:
    @pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
    def test_medmnist_layout(self, save, channels):
        arrays = medmnist_arrays(channels)
        images = load_npz(save(**arrays), class_names=("round", "lobed"))
        assert images.name == "cells"
        assert images.image_shape == (channels[0] if channels else 1, 8, 8)
        assert images.images.flags.c_contiguous
        for part, prefix in ((images.train, "train"), (images.validation, "val"), (images.test, "test")):
            expected = arrays[f"{prefix}_images"].reshape(-1, 8, 8, images.image_shape[0])
            assert np.array_equal(part.images.transpose(0, 2, 3, 1), expected)
            assert np.array_equal(part.labels, arrays[f"{prefix}_labels"][:, 0])
            assert np.shares_memory(part.images, images.images)
        assert images.train.class_counts == {"round": 6, "lobed": 6}

    def test_validation_and_test_may_be_absent(self, save):
        arrays = medmnist_arrays(n=(12, 6), prefixes=("train", "val"))
        images = load_npz(save(**arrays))
        assert (len(images.train), len(images.validation)) == (12, 6)
        with pytest.raises(ValueError, match="has train, validation, not 'test'"):
            _ = images.test

    @pytest.mark.parametrize(
        ("shape", "moved"),
        [
            ((30, 8, 6), lambda a: a[:, None]),
            ((30, 8, 6, 3), lambda a: a.transpose(0, 3, 1, 2)),
            ((30, 3, 8, 6), lambda a: a),
            ((30, 1, 8, 6), lambda a: a),
            ((30, 3, 8, 3), lambda a: a.transpose(0, 3, 1, 2)),  # both possible: channels last
        ],
    )
    def test_one_array_is_split_by_class(self, save, shape, moved):
        array, labels = pixels(*shape), np.arange(30) % 3
        images = load_npz(save(images=array, labels=labels))
        assert np.array_equal(images.images, moved(array))
        assert images.validation.class_counts == {f"class {k}": 1 for k in range(3)}
        assert (len(images.train), len(images.test)) == (24, 3)

    def test_names_in_the_file_unless_given(self, save):
        path = save(images=pixels(20, 8, 8), labels=np.arange(20) % 2, class_names=np.array(["round", "lobed"]))
        assert load_npz(path).class_names == ("round", "lobed")
        assert load_npz(str(path), class_names=["a", "b"]).class_names == ("a", "b")

    def test_several_labels_an_image_need_not_all_occur(self, save):
        labels = np.zeros((20, 3), np.uint8)
        labels[:10, 1] = 1
        images = load_npz(save(images=pixels(20, 8, 8), labels=labels))
        assert images.kind == "multi-label"
        assert images.class_counts == {"class 0": 0, "class 1": 10, "class 2": 0}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"train_images": None}, "Expected an array 'train_images'; got train_labels, val_images"),
            ({"val_labels": None}, "Expected an array 'val_labels'"),
            ({"train_images": None, "train_labels": None}, "Expected train_images and train_labels, or images"),
            ({"train_images": np.full((12, 8, 8), 0.3)}, "Expected uint8 train_images .* no multiples of 1/255.*Pass"),
            ({"test_images": np.full((4, 8, 8), np.nan)}, "test_images in .*; got NaN or infinity"),
            ({"train_images": np.full((12, 8, 8), 300)}, "train_images in .*; got values from 300 to 300"),
            ({"val_images": np.zeros((0, 8, 8), np.uint8), "val_labels": np.zeros((0, 1), int)}, "val_images is empty"),
            ({"val_images": pixels(6, 8, 8, 3)}, r"one shape in every split.*\(1, 8, 8\); got \(3, 8, 8\) in val"),
            ({"test_images": pixels(4, 9, 8)}, r"got \(1, 9, 8\) in test_images"),
            ({"train_images": pixels(12, 8, 8, 8)}, r"train_images of shape .* C of 1, 3 or 4; got \(12, 8, 8, 8\)"),
            ({"train_images": pixels(12, 8)}, r"got \(12, 8\)"),
            ({"train_images": pixels(12, 0, 8)}, r"got \(12, 0, 8, 1\)"),
            ({"train_labels": np.zeros((11, 1), int)}, r"for each of 12 images; got labels of shape \(11, 1\)"),
            ({"train_labels": np.array(3)}, "for each of 12 images"),
            ({"train_labels": np.array(["a"] * 12)}, "labels of one kind and width in every split"),
            ({"val_labels": np.linspace(0, 1, 6)}, "labels of one kind and width in every split"),
            ({"val_labels": np.eye(6, dtype=int)}, "labels of one kind and width in every split"),
            ({"train_labels": 2 * (np.arange(12) % 2)}, "training images of every class; got none of 'class 1'"),
            ({"test_labels": np.full(4, 3)}, "labels are 0, 1, 3: read as 3 classes"),
            ({"class_names": np.array(["a", "b", "c"])}, "none of 'c'"),
            ({"class_names": np.array(["a"])}, r"Expected labels in \[0, 1\), one class per name; got 1"),
            ({"class_names": np.array([b"a", b"b"])}, r"class_names as a list of text; got \|S1 of shape \(2,\)"),
        ],
    )
    def test_wrong_arrays(self, save, changes, message):
        arrays = medmnist_arrays() | changes
        path = save(**{key: array for key, array in arrays.items() if array is not None})
        with pytest.raises(ValueError, match=rf"cells\.npz: .*{message}"):
            load_npz(path)

    def test_too_small_to_split(self, save):
        with pytest.raises(ValueError, match=r"cells\.npz: 2 images are too few to split"):
            load_npz(save(images=pixels(2, 8, 8), labels=np.array([0, 1])))

    def test_no_file_and_no_arrays(self, tmp_path, save):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.npz"):
            load_npz(tmp_path / "absent.npz")
        with pytest.raises(ValueError, match="got no arrays"):
            load_npz(save())


class TestDamage:
    @pytest.mark.parametrize(
        "content", [b"", b"not an archive", np.lib.format.MAGIC_PREFIX, pickle.dumps([1, 2])], ids=repr
    )
    def test_no_archive_at_all(self, tmp_path, content):
        path = tmp_path / "cells.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cells\.npz: Expected an npz archive; got another kind of file"):
            load_npz(path)

    def test_truncated_archive(self, save):
        path = save(**medmnist_arrays())
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ValueError, match=r"cells\.npz: Expected an npz archive; got .* or part of an archive"):
            load_npz(path)

    def test_flipped_pixels_do_not_pass(self, save):
        path = save(**medmnist_arrays(size=64))
        damaged = bytearray(path.read_bytes())
        damaged[5000] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cells\.npz: ") as caught:
            load_npz(path)
        assert isinstance(caught.value.__cause__, zlib.error | zipfile.BadZipFile)

    def test_a_member_that_is_no_array(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "cells.npz", "w") as archive:
            archive.writestr("images", b"text")
            archive.writestr("labels", b"text")
        with pytest.raises(ValueError, match=r"cells\.npz: Expected images of shape .* got \(\)"):
            load_npz(tmp_path / "cells.npz")

    @pytest.mark.parametrize(("header", "message"), [(b"{{{", "EOF in multi-line"), (b"{}", "Header does not contain")])
    def test_an_array_with_a_broken_header(self, tmp_path, header, message):
        with zipfile.ZipFile(tmp_path / "cells.npz", "w") as archive:
            for member in ("images.npy", "labels.npy"):
                archive.writestr(member, np.lib.format.magic(1, 0) + struct.pack("<H", len(header)) + header)
        with pytest.raises(ValueError, match=rf"cells\.npz: .*{message}"):
            load_npz(tmp_path / "cells.npz")

    @given(data=st.data())
    @settings(deadline=None, max_examples=150)
    def test_any_damage_is_one_error_that_names_the_file(self, data):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy and zipfile warn about some headers
            path = Path(folder, "cells.npz")
            saver = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
            saver(path, images=np.zeros((20, 4, 4), np.uint8), labels=np.arange(20) % 2)
            content = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(1, 3))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            path.write_bytes(
                content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
            )
            try:
                load_npz(path)
            except ValueError as error:
                assert str(error).startswith(f"{path}: ")  # noqa: PT017

    @pytest.mark.parametrize("key", ["images", "labels", "class_names"])
    def test_pickled_objects_are_never_loaded(self, save, tmp_path, key):
        arrays = {"images": pixels(20, 8, 8), "labels": np.arange(20) % 2, "class_names": np.array(["a", "b"])}
        trace = tmp_path / "trace"
        arrays[key] = np.array([Planted(trace), None], dtype=object)
        path = save(**arrays)
        with pytest.raises(ValueError, match=rf"cells\.npz: '{key}' holds pickled Python objects, which are never"):
            load_npz(path)
        assert not trace.exists()
        np.load(path, allow_pickle=True)[key]  # the trap is real
        assert trace.exists()


class Planted:
    """Leaves a trace when unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return (os.mkdir, (self.trace,))


@pytest.fixture
def folder(tmp_path):
    """Saves images as name → picture (or bytes) below a folder and returns it."""

    def saved(**classes):
        root = tmp_path / "cells"
        for name, files in classes.items():
            (root / name).mkdir(parents=True)
            for file, picture in files.items():
                if isinstance(picture, bytes):
                    (root / name / file).write_bytes(picture)
                else:
                    picture.save(root / name / file)
        return root

    return saved


def pictures(mode="RGB", n=5, size=(12, 12), suffix=".png"):
    bands = Image.new(mode, size).getbands()
    shape = (size[1], size[0]) if len(bands) == 1 else (size[1], size[0], len(bands))
    return {f"{i}{suffix}": Image.fromarray(pixels(*shape)) for i in range(n)}


def deep_png():
    """A PNG of one RGB pixel with 16 bits per channel, which Pillow cannot write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" + bytes(6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class TestFolder:
    @pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
    def test_images_of_the_size_arrive_unchanged(self, folder, mode, channels):
        lobed, smooth = pictures(mode), pictures(mode, n=10)
        images = load_folder(folder(round=smooth, lobed=lobed), size=12)
        assert images.name == "cells"
        assert images.image_shape == (channels, 12, 12)
        assert images.class_counts == {"lobed": 5, "round": 10}
        assert images.images.dtype == np.uint8
        expected = np.stack([np.atleast_3d(np.asarray(lobed[name])) for name in sorted(lobed)])
        assert np.array_equal(images.images[:5].transpose(0, 2, 3, 1), expected)
        assert images.test.class_counts == {"lobed": 1, "round": 1}

    def test_names_select_and_order_the_classes(self, folder):
        path = folder(a=pictures(), b=pictures(n=6), c=pictures(n=7))
        images = load_folder(str(path), size=8, class_names=("c", "a"))
        assert images.class_counts == {"c": 7, "a": 5}

    def test_hidden_and_other_files_are_passed_over(self, folder):
        path = folder(a=pictures() | {".0.png": b"", "notes.txt": b""}, **{".git": pictures()})
        (path / "list.csv").touch()
        with pytest.warns(UserWarning, match=r"Left out of .*: 1 \.txt files, 1 loose \.csv files"):
            assert load_folder(path, size=8).class_counts == {"a": 5}

    @pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".JPEG", ".tif", ".Tiff"])
    def test_suffixes_in_any_case(self, folder, suffix):
        assert len(load_folder(folder(a=pictures(suffix=suffix)), size=8)) == 5

    @pytest.mark.parametrize("size", [(20, 12), (12, 20), (15, 12), (12, 12)])
    def test_odd_sizes_keep_their_central_square(self, folder, size):
        files = pictures("L", n=3, size=size)
        left, top = (size[0] - 12) // 2, (size[1] - 12) // 2
        expected = np.asarray(files["0.png"])[top : top + 12, left : left + 12]
        assert np.array_equal(load_folder(folder(a=files), size=12).images[0, 0], expected)

    @pytest.mark.parametrize(("size", "box"), [((12, 6), (7, 0, 13, 12)), ((6, 12), (4, 3, 16, 9)), ([12, 20], None)])
    def test_images_that_are_no_square(self, folder, size, box):
        files = pictures("L", n=3, size=(20, 12))
        left, top, right, bottom = box or (0, 0, 20, 12)
        images = load_folder(folder(a=files), size=size)
        assert images.image_shape == (1, *size)
        if box is None or size[0] == 12:  # nothing is resized
            assert np.array_equal(images.images[0, 0], np.asarray(files["0.png"])[top:bottom, left:right])
        else:  # the whole width is 20 for 12 pixels: as many rows again
            expected = files["0.png"].resize((12, 6), Image.Resampling.BICUBIC, (0, 1, 20, 11))
            assert np.array_equal(images.images[0, 0], np.asarray(expected))

    @pytest.mark.parametrize("size", [0, (8,), (8, 8, 8), 8.0, (8, -1), "8"])
    @pytest.mark.usefixtures("unchecked")
    def test_wrong_sizes(self, folder, size):
        with pytest.raises(ValueError, match=r"one number or \(height, width\); got"):
            load_folder(folder(a=pictures()), size=size)

    def test_the_content_of_a_file_counts_and_not_its_ending(self, folder):
        path = folder(a=pictures("RGB"))
        for file in (path / "a").iterdir():
            with Image.open(file) as image:
                image.save(file.with_suffix(".webp"), lossless=True)
            file.with_suffix(".webp").rename(file.with_suffix(".jpg"))
        whole = load_folder(path, size=12).images
        assert len(whole) == 10
        assert np.array_equal(whole[::2], whole[1::2])  # 0.jpg, 0.png, 1.jpg and so on

    def test_shrinking_averages_instead_of_skipping(self, folder):
        stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
        files = {f"{i}.png": Image.fromarray(stripes) for i in range(3)}
        small = load_folder(folder(a=files), size=8).images[:, 0, 1:-1, 1:-1].astype(int)
        assert np.abs(small - 127.5).max() < 3  # every other pixel alone would be 0 or 255

    @pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("P", 3), ("RGBA", 3), ("LA", 1)])
    def test_modes_without_loss(self, folder, mode, channels):
        opaque = Image.new("RGBA", (8, 8), (90, 90, 90, 255)).convert(mode)
        files = {f"{i}.png": opaque for i in range(3)}
        images = load_folder(folder(a=files), size=8)
        assert images.image_shape == (channels, 8, 8)
        assert np.unique(images.images).tolist() == np.unique(np.asarray(opaque.convert("L"))).tolist()

    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            (Image.new("RGBA", (8, 8), (1, 2, 3, 254)), "an opaque image; got transparent pixels. Flatten it"),
            (Image.new("LA", (8, 8), (1, 0)), "an opaque image"),
            (Image.new("I;16", (8, 8)), "8 bits per channel; got more. Rescale"),
            (deep_png(), "8 bits per channel; got more"),
            (b"no image", "cannot identify image file"),
            (b"", "cannot identify image file"),
        ],
    )
    def test_images_that_need_a_choice(self, folder, picture, message):
        path = folder(a=pictures() | {"odd.png": picture})
        with pytest.raises(ValueError, match=rf"odd\.png: .*{message}"):
            load_folder(path, size=8)

    @pytest.mark.parametrize(
        ("mode", "message"), [("F", "8 bits per channel"), ("I", "8 bits"), ("CMYK", "got mode CMYK. Convert it")]
    )
    def test_tiff_modes_that_need_a_choice(self, folder, mode, message):
        with pytest.raises(ValueError, match=rf"odd\.tif: .*{message}"):
            load_folder(folder(a={"odd.tif": Image.new(mode, (8, 8))}), size=8)

    @pytest.mark.parametrize(("mode", "key", "other"), [("L", 3, 4), ("RGB", (3, 3, 3), (4, 4, 4)), ("P", 3, 4)])
    def test_a_transparent_colour_matters_where_it_occurs(self, folder, mode, key, other):
        picture = Image.new(mode, (8, 8), key)
        if mode == "P":
            picture.putpalette([i // 3 for i in range(768)])
        path = folder(a={}, b={})
        for i in range(3):
            picture.save(path / "a" / f"{i}.png", transparency=other)
        picture.save(path / "b" / "clear.png", transparency=key)
        assert np.unique(load_folder(path, size=8, class_names=["a"]).images).tolist() == [3]
        with pytest.raises(ValueError, match=r"clear\.png: .*transparent"):
            load_folder(path, size=8)

    def test_pages(self, folder):
        path = folder(a={})
        pages = [Image.new("L", (8, 8))] * 2
        pages[0].save(path / "a" / "stack.tif", save_all=True, append_images=pages[1:])
        with pytest.raises(ValueError, match=r"stack\.tif: Expected one image per file; got several pages"):
            load_folder(path, size=8)

    def test_truncated_image(self, folder):
        path = folder(a=pictures(size=(64, 64), suffix=".jpg"))
        file = path / "a" / "3.jpg"
        file.write_bytes(file.read_bytes()[:-400])
        with pytest.raises(ValueError, match=r"3\.jpg: .*truncated"):
            load_folder(path, size=8)

    @pytest.mark.parametrize("modes", [("L", "RGB"), ("RGB", "L")])
    def test_mixed_grey_and_colour_names_one_of_each(self, folder, modes):
        path = folder(a=pictures(modes[0]), b=pictures(modes[1]))
        grey, colour = ("a", "b") if modes[0] == "L" else ("b", "a")
        with pytest.raises(ValueError, match=rf"{grey}/0\.png is grey, .*{colour}/0\.png is RGB"):
            load_folder(path, size=8)

    def test_wrong_folders(self, folder, tmp_path):
        path = folder(a=pictures(), empty={"notes.txt": b""})
        with pytest.raises(ValueError, match=r"PNG, JPEG, TIFF or other images in .*empty; got none"):
            load_folder(path, size=8)
        with pytest.raises(ValueError, match=r"Expected subfolders b, c in .*; got a, empty"):
            load_folder(path, size=8, class_names=("a", "b", "c"))
        with pytest.raises(ValueError, match=r"one subfolder per class in .*; got none"):
            load_folder(path / "a", size=8)
        with pytest.raises(ValueError, match=r"0\.png is no folder"):
            load_folder(path / "a" / "0.png", size=8)
        with pytest.raises(ValueError, match=r"size from 1 to 2048 pixels.*; got 0"):
            load_folder(path, size=0)

    def test_too_small_to_split(self, folder):
        with pytest.raises(ValueError, match="cells: 2 images are too few to split"):
            load_folder(folder(a=pictures(n=1), b=pictures(n=1)), size=8)


@pytest.fixture
def no_data_folder(monkeypatch):
    monkeypatch.delenv("CONDGEN_DATA", raising=False)


@pytest.mark.usefixtures("no_data_folder")
class TestMedMNIST:
    @pytest.mark.parametrize(
        ("flag", "channels", "classes", "file", "size"),
        [
            ("bloodmnist", (3,), 8, "bloodmnist.npz", 28),
            ("breastmnist", (), 2, "breastmnist.npz", 28),
            ("retinamnist", (3,), 5, "retinamnist_64.npz", 64),
            ("organamnist", (), 11, "organamnist_128.npz", 128),
        ],
    )
    def test_every_kind_of_set(self, tmp_path, flag, channels, classes, file, size):
        arrays = medmnist_arrays(channels, classes, size)
        np.savez(tmp_path / file, **arrays)
        with pytest.warns(UserWarning, match=f"{file} is not the official file: its md5 checksum") as caught:
            images = load_medmnist(flag, size=size, root=tmp_path)
        assert len(caught) == 1
        assert "12 train images instead of" in str(caught[0].message)
        assert (images.kind, images.num_classes) == ("class", classes)
        assert images.image_shape == (channels[0] if channels else 1, size, size)
        assert (len(images.train), len(images.validation), len(images.test)) == (12, 6, 4)
        assert images.name == file.removesuffix(".npz")

    def test_chest_has_several_labels_an_image(self, tmp_path):
        arrays = medmnist_arrays(size=28)
        for prefix in ("train", "val", "test"):
            arrays[f"{prefix}_labels"] = RNG.integers(0, 2, (len(arrays[f"{prefix}_images"]), 14), dtype=np.uint8)
        np.savez(tmp_path / "chestmnist.npz", **arrays)
        with pytest.warns(UserWarning, match="not the official"):
            images = load_medmnist("chestmnist", root=tmp_path)
        assert images.kind == "multi-label"
        assert images.labels.shape == (22, 14)
        assert images.class_names[0] == "atelectasis"
        assert images.class_names[10] == "emphysema"  # numeric order, not that of text
        assert np.array_equal(images.test.labels, arrays["test_labels"])

    def test_the_official_checksum_is_silent(self, tmp_path, official):
        official("breastmnist", tmp_path)
        assert len(load_medmnist("breastmnist", root=tmp_path)) == 22

    def test_a_split_may_be_absent(self, tmp_path):
        arrays = medmnist_arrays(size=28, n=(12,), prefixes=("train",))
        np.savez(tmp_path / "breastmnist.npz", **arrays)
        with pytest.warns(UserWarning, match="it has 0 validation images instead of 78; it has 0 test"):
            assert len(load_medmnist("breastmnist", root=tmp_path).train) == 12

    def test_the_folder_is_root_then_the_environment(self, tmp_path, monkeypatch, official):
        official("breastmnist", tmp_path)
        monkeypatch.setenv("CONDGEN_DATA", str(tmp_path))
        assert len(load_medmnist("breastmnist")) == 22
        with pytest.raises(FileNotFoundError, match="in the folder /elsewhere"):
            load_medmnist("breastmnist", root="/elsewhere", download=False)
        monkeypatch.delenv("CONDGEN_DATA")
        monkeypatch.setattr("medmnist.info.DEFAULT_ROOT", str(tmp_path / "default"))
        with pytest.raises(FileNotFoundError, match=r"in the folder .*/default;"):
            load_medmnist("breastmnist", download=False)

    def test_wrong_requests(self):
        with pytest.raises(ValueError, match=r"one of pathmnist, .*organsmnist; got 'mnist'"):
            load_medmnist("mnist")
        with pytest.raises(ValueError, match="got the 3D set 'organmnist3d'"):
            load_medmnist("organmnist3d")
        with pytest.raises(ValueError, match="a size of 28, 64, 128 or 224 for MedMNIST; got 32"):
            load_medmnist("bloodmnist", size=32)

    def test_a_file_with_other_images(self, tmp_path):
        np.savez(tmp_path / "breastmnist_64.npz", **medmnist_arrays(size=28))
        with pytest.raises(ValueError, match=r"_64\.npz: Expected images of \(1, 64, 64\); got \(1, 28, 28\)"):
            load_medmnist("breastmnist", size=64, root=tmp_path)

    def test_an_absent_file_without_download(self, tmp_path):
        with pytest.raises(FileNotFoundError) as caught:
            load_medmnist("bloodmnist", size=64, root=tmp_path, download=False)
        for part in ("bloodmnist_64.npz", str(tmp_path), "https://zenodo.org/", "root=", "CONDGEN_DATA"):
            assert part in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.fixture
def official(monkeypatch):
    """Writes a small file and declares its checksum the official one."""
    import hashlib

    import medmnist

    def written(flag, folder):
        path = Path(folder, f"{flag}.npz")
        np.savez(path, **medmnist_arrays(size=28))
        monkeypatch.setitem(medmnist.INFO[flag], "MD5", hashlib.md5(path.read_bytes()).hexdigest())
        return path

    return written


@pytest.mark.usefixtures("no_data_folder")
class TestDownload:
    """Of medmnist's own downloader only the transfer itself is replaced."""

    @pytest.fixture
    def transfer(self, monkeypatch):
        def replaced(function):
            monkeypatch.setattr("torchvision.datasets.utils.download_url", function)

        return replaced

    @pytest.mark.parametrize("root", [".", "new/folder"])
    def test_success_leaves_the_file_alone(self, tmp_path, transfer, official, root):
        asked = []

        def download(url, root, filename, md5):  # noqa: ARG001
            asked.append(url)
            official(filename.removesuffix(".npz"), root)

        transfer(download)
        folder = tmp_path / root
        assert len(load_medmnist("breastmnist", root=folder)) == 22
        assert [file.name for file in folder.iterdir()] == ["breastmnist.npz"]
        assert len(load_medmnist("breastmnist", root=folder)) == 22  # the file is there, nothing is fetched
        assert asked == ["https://zenodo.org/records/10519652/files/breastmnist.npz?download=1"]

    @pytest.mark.parametrize("root", [".", "new/folder"])
    def test_failure_leaves_nothing(self, tmp_path, transfer, root):
        def download(url, root, filename, md5):  # noqa: ARG001
            Path(root, filename).write_bytes(b"half a file")
            raise OSError("the line went dead")

        transfer(download)
        with pytest.raises(FileNotFoundError, match=r"breastmnist\.npz .*and the download failed. Get it") as caught:
            load_medmnist("breastmnist", root=tmp_path / root)
        assert isinstance(caught.value.__cause__, RuntimeError)  # medmnist's
        assert list(tmp_path.iterdir()) == []

    def test_interrupting_is_no_failed_download(self, tmp_path, transfer):
        def download(url, root, filename, md5):  # noqa: ARG001
            raise KeyboardInterrupt

        transfer(download)
        with pytest.raises(KeyboardInterrupt):
            load_medmnist("breastmnist", root=tmp_path)
        assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def blood():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # whether the file is the official one
        return load_medmnist("bloodmnist", root=REAL)


@pytest.mark.skipif(not (REAL / "bloodmnist.npz").is_file(), reason="CONDGEN_DATA names no folder with bloodmnist.npz")
class TestRealFile:
    def test_pixels_and_labels(self, blood):
        assert blood.image_shape == (3, 28, 28)
        assert (len(blood.train), len(blood.validation)) == (11959, 1712)
        assert blood.class_names[7] == "platelet"
        assert min(blood.train.class_counts.values()) > 800
        with np.load(REAL / "bloodmnist.npz") as file:
            assert np.array_equal(blood.validation.images[100], file["val_images"][100].transpose(2, 0, 1))
            assert np.array_equal(blood.test.labels, file["test_labels"][:, 0])

    def test_a_foreign_file_warns_once(self, blood):
        if len(blood.test) == 3421:
            pytest.skip("the file is the official one")
        with pytest.warns(UserWarning, match="md5 checksum .* it has 1712 test images instead of 3421") as caught:
            load_data("bloodmnist")
        assert len(caught) == 1


class TestLoadData:
    def test_smears(self, monkeypatch):
        drawn = LabelledImages(pixels(4, 3, 32, 32), np.arange(4))
        asked = []
        monkeypatch.setattr(
            "condgen.data.readers.load_smears", lambda n, size, seed: asked.append((n, size, seed)) or drawn
        )
        assert load_data("smears", size=32, n=4, seed=7) is drawn
        assert asked == [(4, 32, 7)]

    def test_medmnist(self, tmp_path, monkeypatch, official):
        official("breastmnist", tmp_path)
        monkeypatch.setenv("CONDGEN_DATA", str(tmp_path))
        assert load_data("breastmnist").name == "breastmnist"

    @pytest.mark.parametrize("name", ["bloodmnist64", "bloodmnist_64"])
    def test_a_flag_with_its_size(self, name, tmp_path, monkeypatch):
        asked, drawn = [], LabelledImages(pixels(4, 3, 8, 8), np.arange(4))
        monkeypatch.setattr("condgen.data.readers.load_medmnist", lambda *given: asked.append(given) or drawn)
        assert load_data(name, size=28) is drawn
        assert asked == [("bloodmnist", 64)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("CONDGEN_DATA", str(tmp_path))
        assert beside(name) == tmp_path / ".condgen"

    def test_npz(self, save):
        path = save(**medmnist_arrays())
        assert load_data(path).image_shape == load_data(str(path), size=64).image_shape == (1, 8, 8)

    def test_folder(self, folder, tmp_path, monkeypatch):
        path = folder(a=pictures()).rename(tmp_path / "breastmnist")
        assert load_data(path, size=9).image_shape == (3, 9, 9)
        monkeypatch.chdir(tmp_path)
        assert load_data("./breastmnist", size=9).name == "breastmnist"

    @pytest.mark.parametrize("source", ["bloodmist", "organmnist3d", "no/such/folder"])
    def test_nothing_of_the_kind(self, source):
        with pytest.raises(ValueError, match=rf'"smears", a MedMNIST flag \(pathmnist, .*; got \'{source}\''):
            load_data(source)


CALLER = """
import sys
import condgen.data.readers
assert "medmnist" not in sys.modules, "it takes seconds, with pandas and scikit-learn"
condgen.data.readers.load_medmnist("breastmnist", root=".")
"""


def test_importing_is_cheap_and_the_warning_points_to_the_caller(tmp_path):
    """In a process of its own: run-time shape checks would put their frames in between."""
    np.savez(tmp_path / "breastmnist.npz", **medmnist_arrays(size=28))
    (tmp_path / "mine.py").write_text(CALLER)
    result = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "mine.py:5: UserWarning: breastmnist.npz is not the official file" in result.stderr
