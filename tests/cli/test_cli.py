"""The command line, called as `main([...])`: what it writes, what it says, and how it fails."""

import csv
import inspect
import json
import re
import shlex
import shutil
import warnings
from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

import condgen
from condgen import cli
from condgen.cli import main
from condgen.cli.parser import spelled_out
from condgen.cli.settings import TRAIN, LikelihoodName
from condgen.io.archives import weights_hash
from condgen.sampling.grids import to_uint8
from condgen.training.history import read_history
from condgen.training.set_up import set_up

SMALL = ["--size", "16", "--images", "200", "--width", "4", "--latent", "4", "--epochs", "1", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on smears."""
    out = tmp_path_factory.mktemp("runs") / "smears"
    assert main(["train", *SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A grey two-class set of one's own, in two files: class labels, and several labels an image."""
    generator, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    labels = np.arange(60) % 2
    images = generator.integers(0, 60, (60, 16, 16), dtype=np.uint8) + (190 * labels).astype(np.uint8)[:, None, None]
    np.savez(folder / "cells.npz", images=images, labels=labels, class_names=np.array(["dim", "bright"]))
    np.savez(folder / "unnamed.npz", images=images, labels=labels)
    np.savez(folder / "several.npz", images=images, labels=np.stack([labels, 1 - labels, labels], 1))
    np.savez(folder / "continuous.npz", images=images, labels=labels[:, None] + 0.5)
    np.savez(folder / "numbers.npz", images=images, labels=labels, class_names=np.array(["1", "0"]))
    return folder


def size_of(path):
    """(width, height) of a picture."""
    with Image.open(path) as image:
        return image.size


def weights(run):
    """What tells two trained models apart, whatever their runs are called."""
    return weights_hash(condgen.load(run).state_dict())


def grid_size(rows, columns, zoom, side=16, left=190):
    return (zoom * (columns * (side + 1) - 1) + left + 4, zoom * (rows * (side + 1) - 1) + 8)


class TestTrain:
    def test_a_run_is_a_folder_with_model_numbers_and_pictures(self, run):
        names = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
        models, pictures = ["model.safetensors", "last/model.safetensors"], ["curves.png", "samples.png"]
        assert names == sorted([*models, *pictures, "metrics.csv", "run.json"])
        assert size_of(run / "samples.png") == grid_size(rows=8, columns=10, zoom=5)
        with (run / "metrics.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 1
        model = condgen.load(run)
        assert model.class_names == condgen.load_smears(10, size=16).class_names

    def test_run_json_tells_what_was_asked(self, run):
        about = json.loads((run / "run.json").read_text())
        expected = {"recipe": "default", "data": "smears", "size": 16, "images": 200, "epochs": 1, "seed": 0}
        assert expected.items() <= about.items()

    def test_it_says_what_it_does(self, tmp_path, capsys):
        assert main(["train", *SMALL, "--out", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert "LabelledImages 'smears': 200 images of (3, 16, 16)" in out
        assert "ConditionalVAE: " in out
        assert f"Best epoch 1 of 1 is in {tmp_path}" in out
        chosen, first = err.strip().splitlines()
        assert chosen.startswith("precision 32-true: ")
        assert first.startswith("epoch 1/1")

    def test_labels_can_be_left_out_for_comparison(self, tmp_path):
        assert main(["train", *SMALL, "--conditional", "false", "--out", str(tmp_path)]) == 0
        model = condgen.load(tmp_path)
        assert model.conditioner.dim == 0
        reference = ["--recipe", "bloodmnist_reference", "--data", "smears", "--images", "100", "--epochs", "1"]
        out = str(tmp_path / "reference")
        assert main(["train", *reference, "--conditional", "false", "--output_labels", "false", "--out", out]) == 0
        assert condgen.load(out).conditioner.dim == 0

    def test_the_same_call_gives_the_same_model(self, run, tmp_path):
        main(["train", *SMALL, "--out", str(tmp_path)])
        assert weights(tmp_path) == weights(run)

    def test_another_seed_gives_another(self, run, tmp_path):
        main(["train", *SMALL, "--seed", "1", "--out", str(tmp_path)])
        assert weights(tmp_path) != weights(run)

    @pytest.mark.parametrize("recipe", ["default", "bloodmnist_reference"])
    def test_recipes_train_on_data_of_ones_own(self, recipe, grey, tmp_path):
        out = ["--out", str(tmp_path), "--epochs", "1", "--batch-size", "32"]
        assert main(["train", "--data", str(grey / "cells.npz"), "--recipe", recipe, *out]) == 0
        model = condgen.load(tmp_path)
        assert (model.image_shape, model.class_names) == ((1, 16, 16), ("dim", "bright"))
        assert model.output_labels is (recipe == "bloodmnist_reference")

    def test_a_folder_of_pictures(self, run, tmp_path):
        assert main(["sample", str(run), "--per-class", "5", "--out", str(tmp_path / "cells")]) == 0
        assert main(["train", "--data", str(tmp_path / "cells"), *SMALL, "--out", str(tmp_path / "run")]) == 0
        assert set(condgen.load(tmp_path / "run").class_names) == set(condgen.load(run).class_names)

    @pytest.mark.parametrize(
        ("data", "conditioner"),
        [("several", "MultiLabel"), ("continuous", "Continuous")],
        ids=["several", "continuous"],
    )
    def test_other_labels_than_classes(self, data, conditioner, grey, tmp_path, capsys):
        assert main(["train", "--data", str(grey / f"{data}.npz"), *SMALL, "--out", str(tmp_path)]) == 0
        assert type(condgen.load(tmp_path).conditioner).__name__ == conditioner
        assert not (tmp_path / "samples.png").exists()
        assert "samples.png" not in capsys.readouterr().out

    def test_options_reach_model_and_objective(self, tmp_path):
        options = "--likelihood gaussian --output-labels true --batch-size 50 --learning-rate 0.01 --beta 0.5"
        options += " --warmup 3 --free-bits 0.1 --seed 4"
        assert main(["train", *SMALL, *options.split(), "--out", str(tmp_path)]) == 0
        model, about = condgen.load(tmp_path), json.loads((tmp_path / "run.json").read_text())
        assert type(model.likelihood).__name__ == "Gaussian"
        assert model.output_labels
        assert model.noise_shapes == {"z": (4,)}
        assert model.encoder.blocks[0].conv.out_channels == 4
        assert about["objective"] == "ELBO(beta=LinearWarmup(epochs=3.0, beta=0.5), free_bits=0.1)"
        assert "lr=0.01" in about["optimizer"]
        assert (about["batch_size"], about["seed"]) == (50, 4)

    @pytest.mark.parametrize("likelihood", get_args(LikelihoodName))
    def test_every_likelihood_by_name(self, likelihood, grey, tmp_path):
        data = ["--data", str(grey / "cells.npz"), "--epochs", "1", "--width", "4", "--latent", "4"]
        assert main(["train", *data, "--likelihood", likelihood, "--out", str(tmp_path)]) == 0
        assert type(condgen.load(tmp_path).likelihood).__name__.lower() == likelihood.replace("_", "")

    def test_demo(self, tmp_path, capsys):
        assert main(["demo", "--images", "200", "--epochs", "1", "--out", str(tmp_path)]) == 0
        assert json.loads((tmp_path / "run.json").read_text())["recipe"] == "smears_demo"
        assert (tmp_path / "samples.png").is_file()
        out = capsys.readouterr().out
        assert f"condgen sample {tmp_path} --per-class 20 --out cells.png" in out
        assert "condgen train --data FOLDER" in out


class TestSample:
    def test_by_default_a_grid_in_the_run(self, run, capsys):
        before = (run / "samples.png").read_bytes()
        assert main(["sample", str(run), "--seed", "5"]) == 0
        assert size_of(run / "drawn.png") == grid_size(rows=8, columns=10, zoom=5)
        assert capsys.readouterr().out.strip() == f"Wrote 80 images to {run / 'drawn.png'}."
        assert (run / "samples.png").read_bytes() == before  # the training's stays

    @pytest.mark.parametrize("option", ["--per-class=3", "--per_class=3"])
    def test_dashes_and_underscores(self, option, run, tmp_path):
        assert main(["sample", str(run), option, "--out", str(tmp_path / "new" / "grid.PNG")]) == 0
        assert size_of(tmp_path / "new" / "grid.PNG") == grid_size(rows=8, columns=3, zoom=5)

    def test_npz_is_what_the_model_samples(self, run, tmp_path):
        options = ["--per-class", "9", "--seed", "5", "--start", "2", "--temperature", "0.5"]
        assert main(["sample", str(run), *options, "--out", str(tmp_path / "cells.npz")]) == 0
        images, labels = condgen.load_npz(tmp_path / "cells.npz"), np.repeat(np.arange(8), 9)
        assert images.labels.tolist() == labels.tolist()
        expected = condgen.load(run).sample(labels, seed=5, start=2, temperature=0.5)
        assert np.array_equal(images.images, to_uint8(expected).numpy())

    def test_data_that_have_moved(self, grey, tmp_path, capsys):
        first, then = tmp_path / "cells.npz", tmp_path / "moved.npz"
        first.write_bytes((grey / "cells.npz").read_bytes())
        short = ["--width", "4", "--latent", "4", "--epochs", "1", "--accelerator", "cpu"]
        assert main(["train", "--data", str(first), *short, "--out", str(tmp_path / "run")]) == 0
        first.rename(then)
        show = ["reconstruct", str(tmp_path / "run"), "--count", "1"]
        assert main(show) == 1
        assert (
            f"{first}, which {tmp_path / 'run'} was trained on, is no longer there. Pass --data"
            in capsys.readouterr().err
        )
        assert main([*show, "--data", str(then)]) == 0

    def test_a_teachers_probabilities(self, run, tmp_path, capsys):
        cells = condgen.load_smears(200, size=16)
        classifier = condgen.train_classifier(cells, epochs=1, width=4)
        teacher, out = classifier.save(tmp_path / "teacher.safetensors"), tmp_path / "cells.npz"
        options = ["--per-class", "3", "--teacher", str(teacher)]
        assert main(["sample", str(run), *options, "--out", str(out)]) == 0
        read = condgen.load_npz(out)
        assert np.abs(read.factors["probabilities"] - condgen.label(read.images, classifier)).max() < 1e-5
        assert main(["balance", str(run), "--teacher", str(teacher), "--out", str(tmp_path / "more.npz")]) == 0
        assert condgen.load_npz(tmp_path / "more.npz").factors["probabilities"].shape[1] == 8
        assert main(["sample", str(run), *options, "--out", str(tmp_path / "cells.png")]) == 1
        assert "Expected an .npz file for --teacher" in capsys.readouterr().err

    def test_variations_of_given_images(self, run, tmp_path, capsys):
        cells = condgen.load_smears(40, size=16)
        np.savez(tmp_path / "some.npz", images=np.moveaxis(cells.images, 1, -1), labels=cells.labels)
        options = ["--images", str(tmp_path / "some.npz"), "--per-image", "3", "--strength", "0.4", "--seed", "2"]
        out = tmp_path / "varied.npz"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert main(["vary", str(run), *options, "--out", str(out)]) == 0
            given_ = condgen.load_npz(tmp_path / "some.npz")  # all of them: the file has no splits
        model, number = condgen.load(run), np.repeat(np.arange(len(given_)), 3)
        given_ = given_.ordered(model.class_names)
        expected = condgen.vary(model, given_.images[number], given_.labels[number], strength=0.4, seed=2)
        with np.load(out) as found:
            apart = np.moveaxis(found["images"], -1, 1).astype(int) - to_uint8(expected).numpy()
            assert np.abs(apart).max() <= 1
            assert np.array_equal(found["labels"], given_.labels[number])
        with (tmp_path / "varied.provenance.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["of"]) for row in rows] == number.tolist()
        assert {(row["kind"], row["strength"], row["seed"]) for row in rows} == {("variation", "0.4", "2")}
        assert {row["of_set"] for row in rows} == {given_.fingerprint}
        splits = {
            f"{name}_{what}": array
            for name in ("train", "test")
            for what, array in zip(("images", "labels"), (np.moveaxis(cells.images, 1, -1), cells.labels), strict=True)
        }
        np.savez(tmp_path / "split.npz", **splits)
        few = ["--images", str(tmp_path / "split.npz"), "--per-image", "1", "--out", str(tmp_path / "part.npz")]
        assert main(["vary", str(run), *few]) == 0
        assert len(condgen.load_npz(tmp_path / "part.npz")) == len(cells)  # the training images alone
        assert main(["vary", str(run), *few, "--strength", "1", "--max-copies", "0.5"]) == 0
        assert "are near copies, to" in capsys.readouterr().out
        assert main(["vary", str(run), *few, "--max-copies", "2"]) == 1
        assert "Expected --max-copies from 0 to 1; got 2" in capsys.readouterr().err
        few = ["--images", "smears", "--out", str(tmp_path / "x.txt")]
        assert main(["vary", str(run), *few]) == 1
        assert "an .npz file or a .png grid" in capsys.readouterr().err

    @pytest.mark.parametrize("listed", ["[neutrophil,platelet,6,0]", '["neutrophil", "platelet", "6", 0]'])
    def test_labels_by_name_and_number(self, listed, run, tmp_path):
        assert main(["sample", str(run), "--labels", listed, "--out", str(tmp_path / "cells.npz")]) == 0
        with np.load(tmp_path / "cells.npz") as file:
            assert file["labels"].tolist() == [6, 7, 6, 0]

    def test_labels_as_a_row_of_pictures(self, run, tmp_path):
        assert main(["sample", str(run), "--labels", "[monocyte,2,2]", "--out", str(tmp_path / "row.png")]) == 0
        assert size_of(tmp_path / "row.png") == grid_size(rows=1, columns=3, zoom=5, left=4)

    def test_a_folder_has_a_subfolder_per_class(self, run, tmp_path):
        assert main(["sample", str(run), "--per-class", "2", "--out", str(tmp_path / "cells")]) == 0
        assert sorted(p.name for p in (tmp_path / "cells").iterdir() if p.is_dir()) == sorted(
            condgen.load(run).class_names
        )

    def test_a_class_called_by_a_number_is_found_by_its_name(self, grey, tmp_path):
        main(["train", "--data", str(grey / "numbers.npz"), *SMALL, "--out", str(tmp_path / "run")])
        assert main(["sample", str(tmp_path / "run"), "--labels", "[1,0,0]", "--out", str(tmp_path / "n.npz")]) == 0
        with np.load(tmp_path / "n.npz") as file:
            assert file["class_names"][file["labels"]].tolist() == ["1", "0", "0"]


class TestOtherLabels:
    """Models of several or continuous labels sample and are evaluated as they train."""

    @pytest.fixture(scope="class", params=["several", "continuous"])
    @staticmethod
    def other(request, grey, tmp_path_factory):
        out = tmp_path_factory.mktemp("other") / "run"
        assert main(["train", "--data", str(grey / f"{request.param}.npz"), *SMALL, "--out", str(out)]) == 0
        return out

    def test_samples_have_the_labels_of_validation_images(self, other, tmp_path):
        assert main(["sample", str(other), "--per-class", "5", "--out", str(tmp_path / "row.png")]) == 0
        assert size_of(tmp_path / "row.png") == grid_size(rows=1, columns=5, zoom=5, left=4)
        assert main(["sample", str(other), "--per-class", "5", "--out", str(tmp_path / "five.npz")]) == 0
        with np.load(tmp_path / "five.npz") as file:
            assert file["images"].shape[0] == file["labels"].shape[0] == 5

    def test_labels_of_ones_own(self, grey, other, tmp_path):
        columns = condgen.load(other).conditioner.columns
        wanted = json.dumps([[1] * columns, [0] * columns])
        assert main(["sample", str(other), "--labels", wanted, "--out", str(tmp_path / "two.npz")]) == 0
        with np.load(tmp_path / "two.npz") as file:
            assert file["labels"].reshape(2, -1).tolist() == [[1] * columns, [0] * columns]

    def test_what_needs_no_classes_is_evaluated(self, other, tmp_path):
        assert main(["evaluate", str(other), "--out", str(tmp_path), "--accelerator", "cpu"]) == 0
        found = json.loads((tmp_path / "evaluation.json").read_text())
        assert {"psnr", "elbo", "active_latents", "near_copies", "sharpness", "membership_auc"} <= set(
            found["measures"]
        )
        assert "label_accuracy" not in found["measures"]
        assert "no classes" in found["warnings"][0]


class TestMoreOfTraining:
    def test_a_sharp_model_from_the_command_line(self, tmp_path):
        options = (
            "--latent 2,4,4 --likelihood laplace --optimizer adamw --lr-warmup 0.1 --lr-decay 0.4 --clip 1 --ema 0.9"
        )
        options += " --precision bf16-mixed --augment.flips true --augment.quarter-turns true --sampler mixture"
        options += " --components 2 --beta 0.25 --size 16 --images 200 --width 4 --epochs 1 --accelerator cpu"
        assert main(["train", *options.split(), "--out", str(tmp_path)]) == 0
        model, about = condgen.load(tmp_path), json.loads((tmp_path / "run.json").read_text())
        assert type(model.sampler).__name__ == "GaussianMixture"
        assert model.noise_shapes == {"z": (2, 4, 4)}
        assert model.provenance["run"] == about["id"]
        assert (about["ema"], about["clip"], about["precision"]) == (0.9, 1.0, "bf16-mixed")
        assert about["augment"].startswith("AugmentationSettings(flips=True, quarter_turns=True")
        assert (about["lr_warmup"], about["lr_decay"]) == (0.1, 0.4)
        assert main(["sample", str(tmp_path), "--accelerator", "cpu"]) == 0

    def test_the_recipe_of_sharp_images(self, grey, tmp_path):
        options = [
            "--recipe",
            "latent_map",
            "--epochs",
            "1",
            "--width",
            "4",
            "--components",
            "2",
            "--accelerator",
            "cpu",
        ]
        assert main(["train", "--data", str(grey / "cells.npz"), *options, "--out", str(tmp_path)]) == 0
        model, about = condgen.load(tmp_path), json.loads((tmp_path / "run.json").read_text())
        assert model.noise_shapes == {"z": (4, 8, 8)}
        assert type(model.sampler).__name__ == "GaussianMixture"
        assert (about["epochs"], about["batch_size"], about["ema"], about["precision"]) == (1, 64, 0.998, "32-true")
        assert "Augmentation(flips=True, quarter_turns=True" in about["augment"]

    def test_that_steps_are_not_to_be_recorded_is_passed_on(self, tmp_path, monkeypatch):
        """To both trainings, of the model and of its prior."""
        seen = []

        def spy(model, loss, example, images, training, hardware, **options):
            seen.append(hardware.cuda_graphs)
            return set_up(model, loss, example, images, training, hardware, **options)

        monkeypatch.setattr("condgen.training.fit.set_up", spy)
        monkeypatch.setattr("condgen.training.fit_prior.set_up", spy)
        options = "--images 60 --size 16 --latent 2,4,4 --width 4 --epochs 1 --sampler flow_matching --components 1"
        options += " --sampler-epochs 1 --accelerator cpu --cuda-graphs false"
        assert main(["train", *options.split(), "--out", str(tmp_path)]) == 0
        assert seen == [False, False]

    @pytest.mark.filterwarnings("ignore:The distilled network")
    @pytest.mark.slow
    def test_the_recipe_with_discriminator_and_flow(self, grey, tmp_path, capsys):
        options = "--recipe sharp --epochs 2 --width 4 --components 2 --sampler-epochs 1 --accelerator cpu"
        data, out = str(grey / "cells.npz"), tmp_path / "run"
        assert main(["train", "--data", data, *options.split(), "--out", str(out)]) == 0
        model, about = condgen.load(out), json.loads((out / "run.json").read_text())
        assert type(model.sampler).__name__ == "FlowMatching"
        assert model.provenance["objective"] == "VAEGANLoss"
        assert "weight=0.05, matching=0.5, start=0.25" in about["objective"]
        assert (out / "last" / "objective.safetensors").is_file()
        more = ["--steps", "3", "--guidance", "0.5", "--per-class", "2", "--accelerator", "cpu"]
        assert main(["sample", str(out), *more, "--out", str(tmp_path / "a.png")]) == 0
        capsys.readouterr()
        plain = condgen.conditional_vae((1, 8, 8), 2, latent=4)
        condgen.save(plain, tmp_path / "plain")
        assert main(["sample", str(tmp_path / "plain"), "--steps", "2"]) == 1
        assert "a model that samples by flow matching for --steps" in capsys.readouterr().err

    def test_parts_by_name(self, tmp_path):
        options = "--conditioner embedding --prior label_normal --modulation film --minutes 0.01"
        assert main(["train", *SMALL[:-4], *options.split(), "--accelerator", "cpu", "--out", str(tmp_path)]) == 0
        model = condgen.load(tmp_path)
        assert [type(p).__name__ for p in (model.conditioner, model.prior)] == ["Embedding", "LabelNormal"]
        assert model.encoder.blocks[0].modulation is not None

    def test_from_yaml(self, tmp_path):
        (tmp_path / "train.yaml").write_text(
            "images: 60\nsize: 16\nwidth: 4\nlatent: [2, 4, 4]\nepochs: 1\nema: 0.9\naugment:\n  rotation: 10\n"
            f"out: {tmp_path / 'run'}\n"
        )
        assert main(["train", "--config", str(tmp_path / "train.yaml"), "--accelerator", "cpu"]) == 0
        assert "rotation=10" in json.loads((tmp_path / "run" / "run.json").read_text())["augment"]

    def test_a_mixture_needs_classes(self, grey, tmp_path, capsys):
        arguments = ["--data", str(grey / "continuous.npz"), *SMALL, "--sampler", "mixture", "--out", str(tmp_path)]
        assert main(["train", *arguments]) == 1
        assert "Expected class labels for a mixture" in capsys.readouterr().err

    def test_a_device_that_is_not_there(self, run, capsys):
        if torch.cuda.is_available():
            pytest.skip("there is one")
        assert main(["sample", str(run), "--accelerator", "cuda"]) == 1
        assert "Expected --accelerator among cpu here; got cuda" in capsys.readouterr().err

    def test_too_few_to_validate(self, tmp_path, capsys):
        given = {"width": 4, "latent": 4, "epochs": 1, "accelerator": "cpu"}
        with pytest.warns(UserWarning, match="5 images are too few to validate on"):
            cli.train(images=5, size=16, out=tmp_path, given=given)


class TestReconstruct:
    def test_pairs_class_by_class(self, run, capsys):
        assert main(["reconstruct", str(run), "--split", "train", "--count", "3"]) == 0
        assert size_of(run / "reconstructions.png") == grid_size(rows=16, columns=3, zoom=5)
        assert capsys.readouterr().out.strip() == f"Wrote 24 pairs to {run / 'reconstructions.png'}."

    def test_the_pictures_are_the_images_and_their_reconstructions(self, run, tmp_path):
        main(["reconstruct", str(run), "--split", "train", "--count", "2", "--out", str(tmp_path / "pairs.png")])
        data, model = condgen.load_smears(200, size=16).train, condgen.load(run)
        with Image.open(tmp_path / "pairs.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))[4:, 190:][::5, ::5]
        for label in range(8):
            image = data.images[(data.labels == label).nonzero()[0][1]][None]
            expected = to_uint8(model.reconstruct(image, [label])).numpy()
            for row, one in ((2 * label, image), (2 * label + 1, expected)):
                found = pixels[row * 17 : row * 17 + 16, 17 : 17 + 16].transpose(2, 0, 1)
                assert np.abs(found.astype(int) - one[0]).max() <= 1

    @pytest.mark.filterwarnings("default:.*unnamed.npz is not what")
    def test_other_data_of_the_same_kind(self, grey, tmp_path):
        main(["train", "--data", str(grey / "cells.npz"), *SMALL, "--out", str(tmp_path)])
        other = ["--data", str(grey / "unnamed.npz"), "--split", "test", "--count", "2"]
        assert main(["reconstruct", str(tmp_path), *other]) == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--count", "10"], "Expected --count 10 images of every class; 'smears validation' has 1 of"),
        ],
    )
    def test_too_few_images(self, options, message, run, capsys):
        assert main(["reconstruct", str(run), *options]) == 1
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("labels", ["several", "continuous"])
    def test_labels_that_are_no_classes(self, labels, grey, tmp_path):
        main(["train", "--data", str(grey / f"{labels}.npz"), *SMALL, "--out", str(tmp_path)])
        assert main(["reconstruct", str(tmp_path), "--count", "4"]) == 0
        assert size_of(tmp_path / "reconstructions.png") == grid_size(rows=2, columns=4, zoom=5)

    def test_a_run_that_does_not_tell_its_data(self, tmp_path, capsys):
        condgen.save(condgen.conditional_vae((3, 16, 16), 8, latent=4, width=4), tmp_path)
        assert main(["reconstruct", str(tmp_path)]) == 1
        assert "run.json does not tell what data the run was trained on. Pass --data." in capsys.readouterr().err


class TestConfigFiles:
    def test_a_commands_options_from_yaml(self, tmp_path):
        file = tmp_path / "train.yaml"
        file.write_text(
            f"data: smears\nsize: 16\nimages: 50\nwidth: 4\nepochs: 2\nlatent: 4\nout: {tmp_path / 'run'}\n"
        )
        assert main(["train", "--config", str(file), "--epochs", "1"]) == 0
        about = json.loads((tmp_path / "run" / "run.json").read_text())
        assert (about["images"], about["epochs"]) == (50, 1)

    def test_an_unknown_option_in_yaml(self, tmp_path, capsys):
        (tmp_path / "train.yaml").write_text("epoch: 1\n")
        with pytest.raises(SystemExit, match="2"):
            main(["train", "--config", str(tmp_path / "train.yaml")])
        assert "epoch" in capsys.readouterr().err


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["sample", "nowhere"], "No model in nowhere: expected the file model.safetensors there. Check the path."),
            (
                ["train", "--recipe", "mine"],
                "Expected a recipe among default, bloodmnist_reference, latent_map, fast, sharp",
            ),
            (["train", "--data", "nowhere"], 'Expected "smears", a MedMNIST flag'),
            (
                ["train", *SMALL, "--recipe", "bloodmnist_reference"],
                "bloodmnist_reference fixes latent, width; it leaves open: output_labels.",
            ),
            (["train", "--size", "4"], "Expected"),
        ],
    )
    def test_one_line_without_traceback(self, arguments, message, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(arguments) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"condgen: {message}")
        assert err.count("\n") == 1
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--labels", "[oval]"], "Expected class names among basophil, "),
            (["--labels", "[8]"], "Expected labels in [0, 8); got 8"),
            (["--labels", "[-1]"], "Expected labels in [0, 8); got -1"),
            (["--labels", "[]"], "Expected at least one label; got none"),
            (["--out", "cells.zip"], "Expected a path ending in .npz, or a folder"),
        ],
    )
    def test_what_cannot_be_sampled(self, arguments, message, run, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["sample", str(run), "--out", "cells.npz", *arguments]) == 1
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_debug_shows_where_it_came_from(self):
        with pytest.raises(FileNotFoundError, match="No model in nowhere"):
            main(["sample", "nowhere", "--debug"])

    def test_an_error_without_words_has_its_name(self, monkeypatch, capsys):
        def silent(*_, **__):
            raise ZeroDivisionError

        monkeypatch.setattr("condgen.data.readers.load_data", silent)
        assert main(["train"]) == 1
        assert capsys.readouterr().err == "condgen: ZeroDivisionError\n"

    def test_interrupting_says_what_is_left(self, monkeypatch, capsys):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("condgen.data.readers.load_data", interrupt)
        assert main(["train"]) == 130
        assert capsys.readouterr().err.startswith("condgen: stopped; ")

    def test_warnings_are_one_line_too_and_settings_stay(self, monkeypatch, capsys):
        before = warnings.showwarning, list(warnings.filters)

        def warn(*_, **__):
            warnings.simplefilter("always")
            warnings.warn("not the official file", stacklevel=2)
            raise ValueError("stop")

        monkeypatch.setattr("condgen.data.readers.load_data", warn)
        assert main(["train"]) == 1
        assert capsys.readouterr().err == "condgen: warning: not the official file\ncondgen: stop\n"
        assert (warnings.showwarning, list(warnings.filters)) == before

    @pytest.mark.parametrize(
        "arguments",
        [
            ["paint"],
            ["sample"],
            ["train", "--colour", "red"],
            ["train", "--epochs", "many"],
            ["train", "--likelihood", "poisson"],
            ["reconstruct", "run", "--split", "all"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage_exits_with_2(self, arguments, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        out, err = capsys.readouterr()
        assert out == ""
        assert "--help" in err


class TestHelp:
    @pytest.mark.parametrize("command", ["demo", "train", "sample", "reconstruct"])
    def test_every_option_is_listed_and_described(self, command, capsys):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help-all"])
        listed = " ".join(capsys.readouterr().out.split())
        for name in set(inspect.signature(getattr(cli, command)).parameters) - {"given"}:
            described = re.search(rf"^ +{name}: (\S+ \S+)", getattr(cli, command).__doc__, re.MULTILINE)
            assert name in listed
            assert described[1] in listed
        for kind in TRAIN if command == "train" else ():
            assert kind.__doc__.split("\n")[0].split(",")[0] in listed
            for entry in fields(kind):
                assert (f"--{entry.name} " in listed) == bool(entry.metadata["option"])

    def test_the_help_of_training_fits_on_two_screens(self, capsys):
        """The settings that it leaves out can be given all the same."""
        with pytest.raises(SystemExit, match="0"):
            main(["train", "--help"])
        out = capsys.readouterr().out
        assert len(out.splitlines()) <= 100
        assert "--epochs" in out
        assert "--teacher_guidance" not in out
        assert "--help-all" in out

    @pytest.mark.parametrize("command", sorted(set(cli.COMMANDS) - {"demo"}))
    def test_examples_stand_on_top_and_are_commands(self, command, capsys):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        said = capsys.readouterr().out
        examples = getattr(cli, command).examples
        assert said.index(examples[0]) < said.index("options:")
        for example in examples:
            words = cli.spelled_out(shlex.split(example)[1:])
            parsed = cli.parser_for(cli.COMMANDS, command, "0").parse_args(words)
            assert parsed.subcommand == command

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["trian"], "There is no command 'trian'. Did you mean train?"),
            (["train", "--epoch", "3"], "There is no option --epoch. Did you mean --epochs?"),
            (["sample", "run", "--per-clas", "3"], "There is no option --per-clas. Did you mean --per-class?"),
            (["train", "--zzz", "3"], "There is no option --zzz. See"),
            (["sample", "run", "--overwrite"], "There is no option --overwrite. See"),
        ],
    )
    def test_a_word_that_is_mistyped_suggests_the_nearest(self, arguments, said, capsys):
        """And is never taken for an option that begins so."""
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert said in capsys.readouterr().err

    def test_completion_knows_the_options(self, capsys):
        pytest.importorskip("shtab", reason="shtab is not installed")
        with pytest.raises(SystemExit, match="0"):
            main(["--print_completion", "shtab-bash"])
        out = capsys.readouterr().out
        assert "--per_class" in out
        assert "complete " in out

    def test_without_a_command_all_are_listed(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        out = capsys.readouterr().out
        assert all(command in out for command in ("demo", "train", "sample", "reconstruct", "--config", "--debug"))

    def test_the_example_of_the_labels_works(self, run, tmp_path, capsys):
        """The line that users copy."""
        with pytest.raises(SystemExit):
            main(["sample", "--help"])
        assert "[neutrophil,platelet,6]" in capsys.readouterr().out
        assert main(["sample", str(run), "--labels", "[neutrophil,platelet,6]", "--out", str(tmp_path / "a.npz")]) == 0


def test_arguments_come_from_the_process(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["condgen", "sample", "nowhere"])
    assert main() == 1
    assert "No model in nowhere" in capsys.readouterr().err


def test_a_run_is_not_overwritten_unasked(tmp_path, capsys):
    command = ["train", "--images", "60", "--size", "16", "--epochs", "1", "--width", "4", "--out", str(tmp_path)]
    assert main(command) == 0
    before = (tmp_path / "model.safetensors").read_bytes()
    assert main([*command, "--seed", "1"]) == 1
    assert "already holds a run. Choose another folder (--out), or pass --overwrite." in capsys.readouterr().err
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert main([*command, "--seed", "1", "--overwrite", "true"]) == 0
    assert (tmp_path / "model.safetensors").read_bytes() != before


def test_the_best_epoch_is_read_back(run):
    history = read_history(run)
    assert (history.best_epoch, len(history)) == (1, 1)


def test_a_run_that_stopped_on_nan_is_read_up_to_there(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,train_loss\n1,3.0\n2,nan\n")
    assert read_history(tmp_path).best_epoch == 1


def test_no_command_shows_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 0
    assert "condgen demo" in capsys.readouterr().out


class TestEvaluate:
    @pytest.fixture(scope="class")
    @staticmethod
    def evaluated(run, tmp_path_factory):
        """The run, evaluated without classifiers and with a judge of its own."""
        cache = tmp_path_factory.mktemp("cache")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("condgen.evaluation.judge.LEAST_STEPS", 30)  # a judge of little training is enough here
            patch.setenv("CONDGEN_CACHE", str(cache))
            assert main(["evaluate", str(run), "--usefulness", "none"]) == 0
            yield run, cache

    def test_it_writes_a_page_and_the_figures(self, evaluated):
        run, cache = evaluated
        assert (run / "evaluation.html").read_text().startswith("<!doctype html>")
        content = json.loads((run / "evaluation.json").read_text())
        assert content["measures"]["kid_early"]["overall"] is not None
        assert content["history"]["epoch"] == [1.0]
        assert content["name"] == str(run)
        assert [path.suffix for path in cache.iterdir()] == [".safetensors"]

    def test_images_from_elsewhere_are_judged_against_data(self, evaluated, tmp_path, capsys):
        run, _ = evaluated
        cells = condgen.load_smears(200, size=16)  # what the run was trained on
        np.savez(tmp_path / "real.npz", images=cells.images.transpose(0, 2, 3, 1), labels=cells.labels)
        assert main(["sample", str(run), "--per-class", "6", "--out", str(tmp_path / "drawn.npz")]) == 0
        arguments = ["--data", str(tmp_path / "real.npz"), "--usefulness", "none"]
        assert main(["evaluate", str(tmp_path / "drawn.npz"), *arguments, "--include-real"]) == 0
        assert (tmp_path / "drawn_evaluation" / "evaluation.json").is_file()
        assert list((tmp_path / ".condgen").glob("judge-*.safetensors"))  # beside the data
        assert "Wrote" in capsys.readouterr().out
        assert main(["evaluate", str(tmp_path / "drawn.npz")]) == 1
        assert "--data" in capsys.readouterr().err

    def test_runs_are_compared(self, evaluated, tmp_path, capsys):
        run, _ = evaluated
        assert main(["compare", str(run), str(run), "--out", str(tmp_path / "both.html")]) == 0
        assert "FID" in capsys.readouterr().out
        assert (tmp_path / "both.html").read_text().count('class="verdict') == 2
        assert main(["compare", str(tmp_path)]) == 1
        assert "condgen evaluate" in capsys.readouterr().err

    @pytest.mark.filterwarnings("default:.*outdated")
    def test_an_evaluation_of_other_weights_is_outdated(self, evaluated, tmp_path, capsys):
        run, _ = evaluated
        copy = Path(shutil.copytree(run, tmp_path / "copy"))
        assert main(["compare", str(copy)]) == 0
        assert "outdated" not in capsys.readouterr().err
        model = condgen.load(copy)
        with torch.no_grad():
            model.decoder.last.bias.add_(1.0)
        condgen.save(model, copy)
        assert main(["compare", str(copy)]) == 0
        assert f"{copy} is outdated: its evaluation is of other weights." in capsys.readouterr().err

    def test_switches_need_no_value(self):
        assert spelled_out(["evaluate", "a", "--quick"]) == ["evaluate", "a", "--quick", "true"]
        assert spelled_out(["evaluate", "a", "--quick", "false"]) == ["evaluate", "a", "--quick", "false"]
        assert spelled_out(["train", "--overwrite", "--out", "x"]) == ["train", "--overwrite", "true", "--out", "x"]
        assert spelled_out(["compare", "[a,b]"]) == ["compare", "[a,b]"]
        assert spelled_out(["compare"]) == ["compare"]
        assert spelled_out([]) == []


class TestClassNames:
    """Names first, then a beginning that one name alone has, then numbers: one rule for all commands."""

    @pytest.fixture(scope="class")
    @staticmethod
    def numbered(tmp_path_factory):
        folder = tmp_path_factory.mktemp("numbered")
        generator = np.random.default_rng(0)
        names = np.array(["2", "10", "immature (myelocytes, and others)"])
        images, labels = generator.integers(0, 256, (60, 8, 8), np.uint8), np.repeat([0, 1, 2], [30, 20, 10])
        np.savez(folder / "cells.npz", images=images, labels=labels, class_names=names)
        command = ["train", "--data", str(folder / "cells.npz"), "--epochs", "1", "--width", "4", "--latent", "2"]
        assert main([*command, "--accelerator", "cpu", "--out", str(folder / "run")]) == 0
        return folder

    @pytest.mark.parametrize(("typed", "number"), [("2", 0), ("10", 1), ("imm", 2), ("1", 1)])
    def test_sample(self, numbered, typed, number, tmp_path):
        assert main(["sample", str(numbered / "run"), "--labels", typed, "--out", str(tmp_path / "a.npz")]) == 0
        with np.load(tmp_path / "a.npz") as file:
            assert file["labels"].ravel().tolist() == [number]

    def test_balance(self, numbered, tmp_path):
        command = ["balance", str(numbered / "run"), "--counts", "[10=25,imm=12]", "--out", str(tmp_path / "b.npz")]
        assert main(command) == 0
        counts = condgen.load_npz(tmp_path / "b.npz").train.class_counts
        assert list(counts.values())[1:] == [25, 12]

    def test_what_several_names_begin_with(self, run, capsys):
        assert main(["sample", str(run), "--labels", "e"]) == 1
        assert "got e, which eosinophil, erythroblast begin with" in capsys.readouterr().err
