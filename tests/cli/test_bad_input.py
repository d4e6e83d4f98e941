"""Hostile and clumsy input: what is given, what condgen must say of it, and what must not be there afterwards.

Every case of the command line runs in this process on a copy of one small run and its data. It must end with one line
of at most 300 characters (and the name of the program) that matches, exit with 1 or 2, and leave every file as it was.
"""

import io
import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import condgen
from condgen.cli import main
from condgen.data import npz as npz_files
from condgen.data.images import LabelledImages
from condgen.distributions import likelihoods
from condgen.sampling import latents

SMALL = "--width 4 --latent 4 --epochs 1 --batch-size 64 --accelerator cpu"
TRAIN = f"train --data data/cells.npz --out new {SMALL}"


def pictures(n=60, side=16, classes=2):
    labels = np.arange(n) % classes
    images = np.random.default_rng(0).integers(0, 60, (n, side, side)).astype(np.uint8)
    return images + (labels * 150).astype(np.uint8)[:, None, None], labels


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, its data, and a folder of images."""
    home = tmp_path_factory.mktemp("made")
    images, labels = pictures()
    (home / "data").mkdir()
    np.savez(home / "data" / "cells.npz", images=images, labels=labels, class_names=np.array(["dim", "bright"]))
    for image, label in zip(images, labels, strict=True):
        folder = home / "data" / "folder" / ("dim", "bright")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{len(list(folder.iterdir()))}.png")
    before = Path.cwd()
    os.chdir(home)
    try:
        assert main(TRAIN.replace("--out new", "--out run").split()) == 0
    finally:
        os.chdir(before)
    return home


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    # run.json names the data where they were made.
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**about, "data": str(tmp_path / "data" / "cells.npz")}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def refused(here, command, said, capsys):
    """Run a command that must fail: one line, and every file as it was."""
    before = tree(here)
    capsys.readouterr()
    try:
        status = main(command if isinstance(command, list) else command.split())
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert status in (1, 2), out + err
    *before_it, line = err.splitlines()
    assert all(text.startswith(("condgen: warning: ", "drawing ")) for text in before_it), err
    assert line.startswith("condgen: "), err
    assert len(line) <= len("condgen: ") + 300 + 30, line
    assert said.lower() in line.lower(), line
    assert "Traceback" not in err
    assert {name for name, content in tree(here).items() if before.get(name, b"") != content} == set()


# Numbers beyond all bounds, for every option that takes one.

WHOLE = {
    "train": ("epochs", "batch-size", "images", "size", "latent", "width"),
    "sample": ("per-class",),
    "reconstruct": ("count",),
    "evaluate": ("images",),
}
REAL = {"train": ("learning-rate", "beta", "warmup", "free-bits"), "sample": ("temperature",)}
TARGET = {"train": TRAIN, "sample": "sample run", "reconstruct": "reconstruct run", "evaluate": "evaluate run"}
NUMBERS = [
    *[(c, o, v) for c, options in WHOLE.items() for o in options for v in ("0", "-1", "many", "1.5", "99999999999")],
    *[(c, o, v) for c, options in REAL.items() for o in options for v in ("-1", "nan", "1e39", "much")],
    *[("train", "learning-rate", "0"), ("sample", "start", "-1"), ("sample", "start", "9223372036854775808")],
    *[(c, "seed", v) for c in ("train", "sample", "evaluate") for v in ("-1", "18446744073709551616", "x")],
]


@pytest.mark.parametrize(("command", "option", "value"), NUMBERS, ids=map(" ".join, NUMBERS))
def test_numbers(command, option, value, here, capsys):
    refused(here, f"{TARGET[command]} --{option} {value}", f"--{option}", capsys)


# Options and arguments

USAGE = {
    "paint": "no command 'paint'",
    "sample": "Expected RUN; got nothing in its place. See condgen sample --help.",
    "compare": "Expected RUNS; got nothing",
    "train --colour red": "no option --colour",
    "train --likelihood poisson": "Expected one of 'bernoulli'",
    "train --accelerator abacus": "--accelerator; got 'abacus'",
    "train --conditional perhaps": "--conditional",
    "train --recipe mine": "Expected a recipe among default",
    "train --data nowhere": 'Expected "smears", a MedMNIST flag',
    "train --data nowhere.npz": "there is no file nowhere.npz",
    "train --data organmnist3d": "got 'organmnist3d'",
    "train --config nowhere.yaml": "nowhere.yaml",
    "train --size 4": "size",
    "train --size 100000": "size",
    "train --size 256 --images 1000000": "Take fewer or smaller ones",
    f"{TRAIN} --recipe bloodmnist_reference": "fixes latent, width",
    f"{TRAIN} --recipe smears_demo --likelihood gaussian": "fixes",
    f"{TRAIN} --overwrite perhaps": "perhaps",
    "reconstruct run --split all": "--split; got 'all'",
    "reconstruct run --count 50": "Expected --count 50 images of every class",
    "reconstruct run --data nowhere.npz": "nowhere.npz",
    "reconstruct run --out pairs.txt": "ending in .png; got pairs.txt",
    "reconstruct nowhere": "No model in nowhere",
    "sample nowhere": "No model in nowhere: expected the file model.safetensors there.",
    "sample data": "No model in data",
    "sample run --labels oval": "Expected class names among dim, bright; got oval",
    "sample run --labels [oval]": "got oval",
    "sample run --labels 2": "Expected labels in [0, 2)",
    "sample run --labels [-1]": "Expected labels in [0, 2); got -1",
    "sample run --labels []": "Expected at least one label",
    "sample run --out cells.zip": "ending in .npz, or a folder",
    "sample run --out data/cells.npz/x.png": "Cannot write to",
    "sample run --out /proc/nowhere/x.npz": "Choose another folder (--out).",
    "sample run --out data/folder": "data/folder holds other files. Choose another folder (--out).",
    "sample run --per-class 9000 --out grid.png": "at most 50 million pixels",
    "sample run --per-class 1000000000 --out grid.png": "at most 50 million pixels",
    "reconstruct run --split train --out /proc/nowhere/x.png": "Cannot write to",
    "evaluate nowhere": "nowhere is not the folder of a run",
    "evaluate data/cells.npz": "pass the --data",
    "evaluate run --out data/cells.npz": "Cannot write to data/cells.npz",
    "evaluate run --usefulness some": "--usefulness; got 'some'",
    "evaluate run --judge nowhere": "No classifier at nowhere",
    "evaluate run --judge data/cells.npz": "No classifier can be read from data/cells.npz",
    "evaluate run --images 1": "at least 2 images to evaluate; got 1",
    "compare nowhere": "No evaluation at nowhere/evaluation.json. Check the path.",
    "compare run": "No evaluation at run/evaluation.json. Write one: condgen evaluate run",
    "compare run --out x.png": "Expected --out as an .html file; got x.png",
    TRAIN.replace(
        "--out new", "--out run"
    ): "run already holds a run. Choose another folder (--out), or pass --overwrite.",
    TRAIN.replace("--out new", "--out data/cells.npz"): "Cannot write to data/cells.npz",
    TRAIN.replace("--out new", "--out /proc/nowhere"): "Cannot write to /proc/nowhere",
}
EMPTY = ["--out", "--data", "--recipe", "--epochs", "--seed", "--likelihood", "--accelerator"]


@pytest.mark.parametrize(
    ("command", "said"), [(c, s) for c, s in USAGE.items() if s], ids=[c for c, s in USAGE.items() if s]
)
def test_usage(command, said, here, capsys):
    refused(here, command, said, capsys)


@pytest.mark.parametrize("option", EMPTY)
@pytest.mark.parametrize("form", ["words", "="])
def test_empty_values(option, form, here, capsys):
    words = [f"{option}="] if form == "=" else [option, ""]
    refused(here, ["train", *words], f"Expected a value for {option}; got an empty one.", capsys)


# Data files


def npz(**changes):
    """A file of images and labels, changed."""
    images, labels = pictures()
    arrays = {"images": images, "labels": labels, **changes}
    return lambda path: np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def split_npz(**changes):
    images, labels = pictures()
    arrays = {
        f"{split}_{kind}": part
        for split in ("train", "val", "test")
        for kind, part in (("images", images), ("labels", labels))
    }
    arrays |= changes
    return lambda path: np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def claiming(shape):
    """An archive whose array is said to be larger than any memory."""

    def write(path):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("images.npy", header.getvalue() + b"\0" * 100)
            np.lib.format.write_array(file.open("labels.npy", "w"), np.zeros(shape[0] % 1000, int))

    return write


def truncated(path):
    npz()(path)
    path.write_bytes(path.read_bytes()[:2000])


IMAGES, LABELS = pictures()
DATA = {
    "text": (lambda path: path.write_text("not an archive"), "Expected an npz archive"),
    "empty file": (lambda path: path.write_bytes(b""), "Expected an npz archive"),
    "truncated": (truncated, "part of an archive"),
    "a folder": (lambda path: path.mkdir(), "there is no file"),
    "no arrays": (lambda path: np.savez(path), "Expected train_images"),
    "other arrays": (lambda path: np.savez(path, x=IMAGES), "Expected an array 'labels'"),
    "no labels": (npz(labels=None), "'labels'"),
    "pickled labels": (npz(labels=np.array([{}] * 60, object)), "pickled Python objects"),
    "pickled images": (npz(images=np.array([None] * 60, object)), "pickled Python objects"),
    "float images": (npz(images=IMAGES / 301), "no multiples of 1/255"),
    "images with NaN": (npz(images=np.full((60, 16, 16), np.nan)), "NaN"),
    "16-bit images": (npz(images=100 * IMAGES.astype(np.uint16)), "got values from 0 to"),
    "signed images": (npz(images=IMAGES.astype(np.int8)), "got values from -"),
    "flat images": (npz(images=IMAGES.reshape(60, -1)), "of shape"),
    "five channels": (npz(images=np.zeros((60, 5, 16, 16), np.uint8)), "C of 1, 3 or 4"),
    "no pixels": (npz(images=np.zeros((60, 0, 16), np.uint8)), "C of 1, 3 or 4"),
    "no images": (npz(images=IMAGES[:0], labels=LABELS[:0]), "is empty"),
    "too few images": (npz(images=IMAGES[:2], labels=LABELS[:2]), "too few to split"),
    "too few labels": (npz(labels=LABELS[:-1]), "one label for each of 60 images"),
    "too many labels": (npz(labels=np.tile(LABELS, 2)), "one label for each of 60 images"),
    "negative labels": (npz(labels=LABELS - 1), "got -1"),
    "labels without columns": (npz(labels=np.zeros((60, 0), int)), "got labels of shape (60, 0)"),
    "labels of three axes": (npz(labels=np.zeros((60, 1, 1), int)), "got labels of shape"),
    "NaN labels": (npz(labels=np.full((60, 1), np.nan)), "finite continuous labels"),
    "infinite labels": (npz(labels=np.full((60, 1), np.inf)), "finite continuous labels"),
    "labels that are numbers of patients": (npz(labels=np.r_[LABELS[:-1], 100_000]), "got 100000 among 60 images"),
    "labels of 41 bits": (npz(labels=np.r_[LABELS[:-1], 2**40]), "got 1099511627776 among 60 images"),
    "multi-label beyond 1": (npz(labels=np.full((60, 3), 7)), "0 or 1 in every column"),
    "too few names": (npz(class_names=np.array(["dim"])), "Expected labels in [0, 1)"),
    "too many names": (npz(class_names=np.array(["dim", "bright", "other"])), "none of 'other'"),
    "3,000 names": (npz(class_names=np.array([f"a class with the number {k}" for k in range(3000)])), "none of"),
    "the same name twice": (npz(class_names=np.array(["dim", "dim"])), "'dim' more than once"),
    "names in half a pair": (npz(class_names=np.array(["dim", "\ud800"])), "UTF-8"),
    "names that are numbers": (npz(class_names=np.array([1, 2])), "class_names as a list of text"),
    "pickled names": (npz(class_names=np.array(["dim", None], object)), "pickled"),
    "an empty validation split": (split_npz(val_images=IMAGES[:0], val_labels=LABELS[:0]), "val_images is empty"),
    "no labels of a split": (split_npz(test_labels=None), "'test_labels'"),
    "splits of two sizes": (split_npz(val_images=IMAGES[:, :8, :8]), "one shape in every split"),
    "splits of two kinds of label": (split_npz(val_labels=np.zeros((60, 1))), "labels of one kind"),
    "images of 10 TB": (claiming((10_000_000, 1000, 1000)), "images.npy is said to hold 10,000,000,000,000 bytes"),
    "images that wrap around": (claiming((2**40, 2**40, 2**40)), "images.npy is said to hold"),
}


@pytest.mark.parametrize(("make", "said"), DATA.values(), ids=DATA)
def test_data_files(make, said, here, capsys):
    make(here / "data" / "bad.npz")
    refused(here, TRAIN.replace("cells.npz", "bad.npz"), said, capsys)


def test_an_archive_of_nothing_but_zeros(here, capsys, monkeypatch):
    monkeypatch.setattr(npz_files, "BOMB", (2**20, 100))
    np.savez_compressed(
        here / "data" / "bomb.npz", images=np.zeros((10_000, 28, 28), np.uint8), labels=np.zeros(10_000, int)
    )
    refused(here, TRAIN.replace("cells.npz", "bomb.npz"), "that unpack to", capsys)


# Folders of images


def replaced(name, content):
    def change(folder):
        (folder / "dim" / name).write_bytes(content)

    return change


def image_bytes(image, form="PNG"):
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()


def only(*names):
    """A class of nothing but these files, without content that is read."""

    def change(folder):
        shutil.rmtree(folder / "dim")
        (folder / "dim").mkdir()
        for name in names:
            (folder / "dim" / name).parent.mkdir(exist_ok=True)
            (folder / "dim" / name).write_bytes(b"x")

    return change


def pipe(folder):
    only()(folder)
    os.mkfifo(folder / "dim" / "0.png")


def in_latin_1(folder):
    (folder / "dim").rename(os.fsdecode(os.fsencode(folder) + b"/gr\xfcn"))


FOLDERS = {
    "empty": (lambda folder: shutil.rmtree(folder) or folder.mkdir(), "", "one subfolder per class"),
    "a class without images": (only(), "", "got none"),
    "a named pipe": (pipe, "", "got none"),
    "pictures of other kinds": (only("0.svs", "1.dcm"), "", "got none"),
    "an empty image one folder down": (only("deeper/0.png"), "", "dim/deeper/0.png"),
    "text for an image": (replaced("0.png", b"text"), "", "dim/0.png"),
    "half an image": (replaced("0.png", image_bytes(Image.fromarray(IMAGES[0]))[:60]), "", "dim/0.png"),
    "an empty image": (replaced("0.png", b""), "", "dim/0.png"),
    "colour among grey": (replaced("0.png", image_bytes(Image.new("RGB", (16, 16)))), "", "all images grey or all RGB"),
    "16 bits": (replaced("0.png", image_bytes(Image.fromarray(IMAGES[0].astype(np.uint16)))), "", "8 bits per channel"),
    "transparent": (replaced("0.png", image_bytes(Image.new("RGBA", (16, 16), (0, 0, 0, 9)))), "", "opaque"),
    "another code": (in_latin_1, "", "UTF-8"),
    "too large": (
        lambda _: None,
        "--size 100000",
        "one number or (height, width); got 100000",
    ),
}


@pytest.mark.parametrize(("change", "options", "said"), FOLDERS.values(), ids=FOLDERS)
def test_folders(change, options, said, here, capsys):
    change(here / "data" / "folder")
    before = sorted(path.name for path in here.iterdir())
    command = f"train --data data/folder --out new {SMALL} {options or '--size 16'}".split()
    assert main(command) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert said.lower() in line.lower()
    assert len(line) <= 330
    assert sorted(path.name for path in here.iterdir()) == before


@pytest.mark.filterwarnings("default:Left out of")
def test_what_is_passed_over_is_said(here, capsys):
    (here / "data" / "folder" / "dim" / "more.svs").write_bytes(b"x")
    assert main(f"train --data data/folder --out new --size 16 {SMALL}".split()) == 0
    assert "1 .svs files" in capsys.readouterr().err


# Damaged runs


def header(change):
    """Another description in the header of the model."""

    def apply(run):
        file = run / "model.safetensors"
        content = file.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        whole = json.loads(content[8 : 8 + size])
        config = json.loads(whole["__metadata__"]["condgen"])
        config = change(config) or config
        whole["__metadata__"]["condgen"] = config if isinstance(config, str) else json.dumps(config)
        text = json.dumps(whole).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])

    return apply


def entry(**changes):
    return header(lambda config: config.update(changes))


def argument(part, **changes):
    return header(lambda config: config["assembly"]["arguments"][part]["arguments"].update(changes))


def weights(change):
    """Other weights under the same description."""

    def apply(run):
        from safetensors import safe_open

        file = run / "model.safetensors"
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file, metadata)

    return apply


def cut(keep):
    def apply(run):
        content = (run / "model.safetensors").read_bytes()
        (run / "model.safetensors").write_bytes(content[:keep])

    return apply


def flip(run):
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-10] ^= 1
    (run / "model.safetensors").write_bytes(content)


def nameless(run):
    save_file(load_file(run / "model.safetensors"), run / "model.safetensors")


def pickled(run):
    torch.save({"a": 1}, run / "model.safetensors")


MODELS = {
    **{f"{keep} bytes": (cut(keep), "Restore model.safetensors") for keep in (0, 4, 100, 3000, -1)},
    "missing": (lambda run: (run / "model.safetensors").unlink(), "No model in run"),
    "a flipped bit": (flip, "not those it was written with"),
    "a pickle": (pickled, "Restore model.safetensors"),
    "weights alone": (
        lambda run: save_file(load_file(run / "model.safetensors"), run / "model.safetensors"),
        "its header",
    ),
    "whole numbers": (weights(lambda tensor: tensor.long()), "run/model.safetensors does not fit its description"),
    "other shapes": (weights(lambda tensor: tensor.flatten()), "does not fit its description"),
    "no text": (header(lambda _: "]"), "damaged"),
    "a list": (header(lambda _: "[]"), "damaged"),
    "another kind": (header(lambda _: "3"), "damaged"),
    "deep": (header(lambda _: "[" * 100_000), "damaged"),
    "a format of tomorrow": (entry(format=99), "Upgrade condgen"),
    "a format of text": (entry(format="two"), "damaged"),
    "a format of nothing": (
        header(lambda config: json.dumps(config).replace('"format": 2', '"format": NaN')),
        "damaged",
    ),
    "no assembly": (entry(assembly=None), "damaged"),
    "an assembly of nothing": (entry(assembly={}), "model.safetensors"),
    "names that are numbers": (entry(class_names=[1, 2]), "damaged"),
    "a name too few": (entry(class_names=["dim"]), "for each of 2 classes; got 1"),
    "the same name twice": (entry(class_names=["dim", "dim"]), "1 of them different"),
    "no class": (argument("conditioner", num_classes=0), "one class or more; got num_classes=0"),
    "-1 classes": (argument("conditioner", num_classes=-1), "got num_classes=-1"),
    "a class too many": (argument("conditioner", num_classes=3), "for each of 3 classes"),
    "10^9 classes": (argument("conditioner", num_classes=10**9), "a condition of shape"),
    "10^9 latents": (argument("prior", latent=10**9), "a z of shape"),
    "a latent too many": (argument("prior", latent=5), "do not fit together"),
    "no channels": (
        entry(assembly={"module": "cvae.ConditionalVAE", "arguments": {"image_shape": [0, 8, 8]}}),
        "model",
    ),
    "a module of the system": (argument("encoder", activation={"class": "os.system"}), "got 'os.system'"),
    "a class of text": (argument("encoder", activation={"class": "torch.nn.Nothing"}), "Expected the name of a part"),
    "an unknown argument": (argument("decoder", colour="red"), "colour"),
    "a text for a number": (argument("prior", latent="many"), "model.safetensors"),
    "strides of 0": (argument("encoder", strides=[0, 0]), "model.safetensors"),
    "provenance of text": (entry(provenance="yes"), "provenance"),
}


@pytest.mark.parametrize(("change", "said"), MODELS.values(), ids=MODELS)
def test_models(change, said, here, capsys):
    change(here / "run")
    refused(here, "sample run --out cells.npz", said, capsys)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("out", ["grid.png", "cells.npz", "cells"])
def test_weights_that_are_not_finite_draw_nothing(value, out, here, capsys):
    model = condgen.load("run")
    with torch.no_grad():
        model.decoder.last.bias.fill_(value)
        model.decoder.last.weight.fill_(value)
    condgen.save(model, "run")
    refused(here, f"sample run --out {out}", "Expected finite images; got NaN or infinity", capsys)


def written(name, content):
    def apply(run):
        (run / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return apply


def about(**changes):
    def apply(run):
        content = {**json.loads((run / "run.json").read_text()), **changes}
        (run / "run.json").write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return apply


RUNS = {
    "empty": (written("run.json", b""), "run.json is damaged"),
    "text": (written("run.json", b"yes"), "run.json is damaged"),
    "a list": (written("run.json", b"[]"), "run.json is damaged: expected an object; got list"),
    "half": (written("run.json", b'{"data": "smears"'), "run.json is damaged"),
    "another code": (written("run.json", b"\xff\xfe{}"), "run.json is damaged"),
    "deep": (written("run.json", b"[" * 100_000), "run.json is damaged"),
    "NaN": (written("run.json", b'{"size": NaN}'), "run.json is damaged: NaN is no JSON"),
    "missing": (
        lambda run: (run / "run.json").unlink(),
        "does not tell what data the run was trained on. Pass --data.",
    ),
    "no data": (about(data=None), "does not tell what data the run was trained on. Pass --data."),
    "data of numbers": (about(data=3), "run.json is damaged: expected 'data' as str; got int"),
    "a size of text": (about(size="large"), "expected 'size' as int; got str"),
    "a seed of text": (about(seed="x"), "expected 'seed' as int; got str"),
    "a size that is true": (about(size=True), "expected 'size' as int; got bool"),
    "data that are gone": (about(data="gone.npz"), "there is no file gone.npz"),
    "other data": (about(fingerprint="0" * 64), "is not what run was trained on: other images, labels or splits"),
}


@pytest.mark.parametrize(("change", "said"), RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("command", ["reconstruct run", "evaluate run"])
def test_run_json(change, said, command, here, capsys):
    change(here / "run")
    refused(here, command, said, capsys)


def test_data_that_have_changed_since(here, capsys):
    """One image more, and what was a test image may have been trained on."""
    images, labels = pictures(61)
    np.savez("data/cells.npz", images=images, labels=labels, class_names=np.array(["dim", "bright"]))
    refused(here, "evaluate run", "cells.npz is not what run was trained on: now", capsys)
    refused(here, "reconstruct run", "to go on.", capsys)


METRICS = {
    "text": (b"epoch,train_loss\n1,much\n", "metrics.csv is damaged"),
    "another code": (b"\xff\xfe", "metrics.csv is damaged"),
    "a column too few": (b"epoch,train_loss\n1\n", "metrics.csv is damaged"),
    "no loss": (b"epoch\n1\n", "metrics.csv is damaged"),
}


@pytest.mark.parametrize(("content", "said"), METRICS.values(), ids=METRICS)
def test_metrics(content, said, here, capsys):
    (here / "run" / "metrics.csv").write_bytes(content)
    refused(here, "evaluate run", said, capsys)


MEASURE = {"overall": 1.0, "floor": 1.0, "better": "lower"}
WHOLE_EVALUATION = {"format": 1, "name": "run", "verdict": {}, "groups": [], "measures": {"fid": MEASURE}}
EVALUATIONS = {
    "empty": (b"", "evaluation.json is damaged"),
    "text": (b"yes", "evaluation.json is damaged"),
    "a list": ([], "evaluation.json is damaged"),
    "of tomorrow": ({**WHOLE_EVALUATION, "format": 99}, "Upgrade condgen"),
    "a format of text": ({**WHOLE_EVALUATION, "format": "one"}, "expected 'format' as int"),
    "no measures": ({"format": 1, "name": "run"}, "no groups, measures, verdict"),
    "measures of text": ({**WHOLE_EVALUATION, "measures": "good"}, "expected 'measures' as dict"),
    "a measure of text": ({**WHOLE_EVALUATION, "measures": {"fid": "good"}}, "'fid' is no measure"),
    "half a measure": ({**WHOLE_EVALUATION, "measures": {"fid": {"overall": 1}}}, "'fid' is no measure"),
}


@pytest.mark.parametrize(("content", "said"), EVALUATIONS.values(), ids=EVALUATIONS)
def test_evaluations(content, said, here, capsys):
    written("evaluation.json", content)(here / "run")
    refused(here, "compare run", said, capsys)


# What is given to Python


def small(**options):
    return condgen.conditional_vae((1, 8, 8), 2, latent=4, width=4, **options)


X, Y = torch.zeros(3, 1, 8, 8), [0, 1, 1]
ZEROS = np.zeros((4, 1, 8, 8), np.uint8)
CALLS = {
    "encode, a label too few": (lambda: small().encode(X, Y[:2]), "a label for each of 3 images; got 2"),
    "reconstruct, a label too few": (lambda: small().reconstruct(X, Y[:2]), "a label for each of 3 images; got 2"),
    "log_likelihood, a label too few": (lambda: small().log_likelihood(X, Y[:2]), "a label for each of 3 images"),
    "bits, a label too many": (
        lambda: small(likelihood=likelihoods.Gaussian(0.1)).bits_per_dimension(X, [*Y, 0]),
        "a label for each of 3 images; got 4",
    ),
    "interpolate, another shape": (lambda: latents.interpolate(small(), X[0, :, 1:], X[0], 0), "an image of shape"),
    "no latents": (lambda: condgen.conditional_vae((1, 8, 8), 2, latent=0), "width and depth of 1 or more; got 0"),
    "no width": (lambda: condgen.conditional_vae((1, 8, 8), 2, width=0), "width and depth of 1 or more"),
    "no channels": (lambda: condgen.conditional_vae((0, 8, 8), 2), "each at least 1"),
    "temperature": (lambda: small().sample([0], temperature=1e300), r"temperature in \[0, 100\]"),
    "start": (lambda: small().sample([0], start=2**63), r"start in \[0, 2\*\*62\)"),
    "overlapping splits": (
        lambda: LabelledImages(ZEROS, np.arange(4), splits={"train": slice(0, 3), "test": slice(2, 4)}),
        "'test' shares some",
    ),
    "an image twice in a split": (
        lambda: LabelledImages(ZEROS, np.arange(4), splits={"train": np.array([0, 0])}),
        "has them twice",
    ),
    "indices beyond the set": (
        lambda: LabelledImages(ZEROS, np.arange(4), splits={"train": np.array([4])}),
        "Expected indices of 4 images in split 'train'",
    ),
    "3,000 classes for 4 images": (lambda: LabelledImages(ZEROS, np.arange(4) + 2996), "got 2999 among 4 images"),
    "labels without columns": (lambda: LabelledImages(ZEROS, np.zeros((4, 0), int)), "labels of shape"),
    "smears beyond memory": (lambda: condgen.load_smears(10**9, size=256), "Take fewer or smaller ones"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "said"), CALLS.values(), ids=CALLS)
def test_calls(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_there_are_many_cases():
    tables = NUMBERS, USAGE, EMPTY * 2, DATA, FOLDERS, MODELS, RUNS, RUNS, METRICS, EVALUATIONS, CALLS
    assert sum(map(len, tables)) >= 200
