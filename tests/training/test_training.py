"""Training: a loss that falls, numbers that repeat, and a run folder one can trust."""

import csv
import json
import math
import random
import re
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import condgen
from condgen import training
from condgen.data.batches import batches
from condgen.data.images import LabelledImages
from condgen.io.progress import working
from condgen.losses.elbo import ELBO, Cyclical, LinearWarmup
from condgen.nn import conditioners
from condgen.random import Use, normals
from condgen.training.budget import Forecast, Plan
from condgen.training.fit import fit
from condgen.training.history import History
from condgen.training.loop import Trainer
from condgen.training.progress import Progress
from condgen.training.run_folder import repr_of
from condgen.training.set_up import schedule_of
from condgen.training.state import TrainingState


def toy(n=48, shape=(1, 8, 8), classes=2, **settings):
    """Bright squares on the left (class 0), in the middle or on the right; not one image like another."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 10, (n, *shape), dtype=np.uint8), np.arange(n) % classes
    width = shape[2] // classes
    for image, label in zip(images, labels, strict=True):
        image[:, 2:-2, label * width : (label + 1) * width] += np.uint8(240)
    return LabelledImages(images, labels, **settings)


def small(shape=(1, 8, 8), classes=2, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return condgen.conditional_vae(shape, classes, **{"latent": 4, "width": 4, **options})


quiet = partial(fit, progress=False, accelerator="cpu", batch_size=16)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


class Scripted(ELBO):
    """An objective whose validation loss is as told, epoch by epoch."""

    def __init__(self, *losses):
        super().__init__()
        self.losses = list(losses)

    def loss(self, model, x, y, noise, beta=None):
        terms = super().loss(model, x, y, noise, beta)
        if not self.training:
            terms["loss"] = torch.tensor(self.losses.pop(0))
        return terms


class Recorder(ELBO):
    """An objective that remembers what it was asked."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def loss(self, model, x, y, noise, beta=None):
        self.seen.append((self.training, x.clone(), y.clone(), noise["z"].clone(), float(beta)))
        return super().loss(model, x, y, noise, beta)

    def of(self, training):
        return [batch[1:] for batch in self.seen if batch[0] == training]


class TestLearning:
    @pytest.mark.parametrize(
        ("data", "options"),
        [
            (toy(), {}),
            (toy(shape=(3, 8, 8), classes=3), {"output_labels": True}),
            (toy(shape=(1, 9, 13)), {"prior": condgen.distributions.priors.StandardNormal(4)}),
        ],
        ids=["grey, two classes", "colour, label planes", "not square"],
    )
    def test_the_loss_falls(self, data, options):
        model = small(data.image_shape, data.num_classes, **options)
        history = quiet(model, data, epochs=12, optimizer=partial(training.adam, lr=1e-2))
        assert history["train_loss"][-1] < 0.8 * history["train_loss"][0]
        assert history["train_elbo"][-1] > history["train_elbo"][0]

    def test_several_labels_and_continuous_ones(self):
        data = toy()
        rows = np.stack([data.labels, 1 - data.labels, data.labels], 1)
        continuous = data.with_labels(data.labels[:, None] + 0.5, ["side"])
        for labelled, conditioner in (
            (data.with_labels(rows), conditioners.MultiLabel(3)),
            (continuous, conditioners.Continuous.of(torch.as_tensor(continuous.labels))),
        ):
            history = quiet(small(conditioner=conditioner), labelled, epochs=3)
            assert history["train_loss"][-1] < history["train_loss"][0]

    def test_dropped_labels_train_the_column_that_says_so(self):
        model = small(conditioner=conditioners.LabelDropout(conditioners.OneHot(2), 0.5))
        before = model.decoder.linear.weight.detach().clone()
        quiet(model, toy(), epochs=1)
        assert not torch.equal(before[:, -1], model.decoder.linear.weight[:, -1])

    def test_in_double_precision(self):
        model = small().double()
        history = quiet(model, toy(), epochs=3)
        assert history["train_loss"][-1] < history["train_loss"][0]
        assert model.dtype == torch.float64

    def test_a_loop_of_ones_own_needs_no_fit(self):
        model, objective, data = small(), ELBO(), toy()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        images, labels, losses = torch.as_tensor(data.images), torch.as_tensor(data.labels), []
        for epoch in range(12):
            for index, x, y in batches(images, labels, 16, epoch=epoch):
                terms = objective(model(x, y, normals(model.noise_shapes, 0, index, Use.TRAINING, epoch)))
                optimizer.zero_grad()
                terms["loss"].backward()
                optimizer.step()
                losses.append(terms["loss"].item())
        assert losses[-1] < 0.8 * losses[0]


class TestRepeatability:
    def test_the_same_seed_gives_the_same_bits(self):
        models = [small(), small()]
        rows = [quiet(model, toy(), validation=toy(20), epochs=2, seed=3).rows for model in models]
        assert same(*map(weights, models))
        for first, second in zip(*rows, strict=True):
            timing = {"seconds", "images_per_second"}
            assert {k: v for k, v in first.items() if k not in timing} == {
                k: v for k, v in second.items() if k not in timing
            }

    def test_another_seed_gives_others(self):
        models = [small(), small()]
        for seed, model in enumerate(models):
            quiet(model, toy(), epochs=1, seed=seed)
        assert not same(*map(weights, models))

    def test_global_generators_are_left_alone(self, unchecked):
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        quiet(small(), toy(), validation=toy(8), epochs=1)
        after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
        assert torch.equal(before[0], after[0])
        assert np.array_equal(before[1], after[1])
        assert before[2] == after[2]

    def test_global_generators_have_no_influence(self):
        models = [small(), small()]
        for seed, model in enumerate(models):
            torch.manual_seed(seed)
            quiet(model, toy(), epochs=1)
        assert same(*map(weights, models))

    def test_every_epoch_has_its_own_order_and_noise(self):
        objective = Recorder()
        quiet(small(), toy(16), epochs=2, objective=objective)
        (first, _, noise, _), (second, _, other, _) = objective.of(training=True)
        assert not torch.equal(first, second)
        assert torch.equal(first.flatten(1).sum(1).sort().values, second.flatten(1).sum(1).sort().values)
        assert not noise[:, 0].sort().values.equal(other[:, 0].sort().values)

    def test_validation_is_the_same_every_epoch(self):
        """The weights stand still, so its numbers do too."""
        objective = Recorder()
        still = partial(torch.optim.SGD, lr=0.0)
        history = quiet(small(), toy(), validation=toy(20), epochs=3, objective=objective, optimizer=still)
        assert len(set(history["validation_loss"])) == 1
        noise = [noise for *_, noise, _ in objective.of(training=False)]
        assert torch.equal(noise[0], noise[2])
        assert not torch.equal(noise[0], objective.of(training=True)[0][2])


class TestObjective:
    def test_training_and_validation_use_the_same_one(self):
        """On the same images, with weights that stand still, they differ by their noise alone."""
        data, still = toy(), partial(torch.optim.SGD, lr=0.0)
        history = quiet(small(), data, validation=data, epochs=1, optimizer=still, objective=ELBO(0.5, free_bits=0.1))
        assert history["train_loss"][0] == pytest.approx(history["validation_loss"][0], rel=0.01)
        assert history["train_kl"][0] == pytest.approx(history["validation_kl"][0], rel=1e-5)

    @pytest.mark.parametrize("schedule", [LinearWarmup(4, beta=0.7), Cyclical(4, beta=0.7)])
    def test_validation_uses_the_final_beta(self, schedule):
        objective = Recorder(schedule)
        history = quiet(small(), toy(32), validation=toy(20), epochs=2, objective=objective)
        assert [beta for *_, beta in objective.of(training=False)] == pytest.approx([0.7] * 4)
        expected = [schedule(epoch) for epoch in (0.0, 0.5, 1.0, 1.5)]
        assert [beta for *_, beta in objective.of(training=True)] == pytest.approx(expected)
        assert history["beta"] == pytest.approx(expected[1::2])
        loss = np.array(history["validation_kl"]) * 0.7 - np.array(history["validation_log_likelihood"])
        assert history["validation_loss"] == pytest.approx(loss.tolist(), rel=1e-5)

    def test_beta_is_used(self):
        """A high price of information leaves less of it."""
        kl = {}
        for beta in (0.01, 20.0):
            model = small()
            history = quiet(model, toy(), epochs=8, objective=ELBO(beta), optimizer=partial(training.adam, lr=1e-2))
            kl[beta] = history["train_kl"][-1]
        assert kl[20.0] < 0.2 * kl[0.01]

    def test_signs(self):
        for row in quiet(small(), toy(), validation=toy(8), epochs=2).rows:
            for split in ("train", "validation"):
                loss, elbo, log_likelihood, kl = (
                    row[f"{split}_{term}"] for term in ("loss", "elbo", "log_likelihood", "kl")
                )
                assert kl >= 0 > log_likelihood
                assert (loss, elbo) == pytest.approx((kl - log_likelihood, log_likelihood - kl), rel=1e-5)

    def test_the_terms_are_means_over_images(self):
        """With a last, smaller batch that counts for no more than it holds."""
        still = partial(torch.optim.SGD, lr=0.0)
        row = fit(small(), toy(20), epochs=1, batch_size=16, optimizer=still, progress=False).rows[0]
        whole = fit(small(), toy(20), epochs=1, batch_size=20, optimizer=still, progress=False).rows[0]
        for term in ("loss", "log_likelihood", "kl", "elbo"):
            assert row[f"train_{term}"] == pytest.approx(whole[f"train_{term}"], rel=1e-5)

    def test_an_optimizer_of_ones_own(self):
        asked = []

        def factory(parameters):
            asked.extend(parameters)
            return torch.optim.SGD(asked, lr=0.0)

        model = small()
        before = weights(model)
        quiet(model, toy(), epochs=1, optimizer=factory)
        assert [id(p) for p in asked] == [id(p) for p in model.parameters()]
        assert same(before, weights(model))


class TestData:
    def test_every_image_is_seen_once_an_epoch(self):
        objective, data = Recorder(), toy(37)
        quiet(small(), data, epochs=1, objective=objective)
        seen = objective.of(training=True)
        assert [len(x) for x, *_ in seen] == [16, 16, 5]
        found = torch.cat([x for x, *_ in seen]).mul(255).round().flatten(1)
        assert sorted(found.tolist()) == sorted(data.images.reshape(37, -1).tolist())

    def test_images_keep_their_labels(self):
        objective, data = Recorder(), toy(20)
        quiet(small(), data, epochs=1, objective=objective)
        labels = {image.tobytes(): int(label) for image, label in zip(data.images, data.labels, strict=True)}
        for x, y, *_ in objective.of(training=True):
            images = x.mul(255).round().to(torch.uint8).numpy()
            assert [labels[image.tobytes()] for image in images] == y.tolist()

    def test_a_set_with_splits_trains_and_validates_on_its_parts(self):
        data, objective = toy(60).split(), Recorder()
        quiet(small(), data, epochs=1, objective=objective)
        for training_mode, split in ((True, data.train), (False, data.validation)):
            found = torch.cat([x for x, *_ in objective.of(training_mode)]).mul(255).round().flatten(1)
            assert sorted(found.tolist()) == sorted(split.images.reshape(len(split), -1).tolist())

    def test_a_validation_set_that_is_given_goes_first(self):
        data, objective = toy(60).split(), Recorder()
        quiet(small(), data, validation=data.test.subset([0]), epochs=1, objective=objective)
        assert sum(len(x) for x, *_ in objective.of(training=False)) == 1

    def test_without_validation_there_is_none(self):
        history = quiet(small(), toy(), epochs=2)
        assert not any(name.startswith("validation") for name in history.rows[0])
        assert history.best_epoch == 2

    def test_a_memory_map_is_read(self, tmp_path):
        data = toy(20)
        np.save(tmp_path / "images.npy", data.images)
        images = np.load(tmp_path / "images.npy", mmap_mode="r")
        models = [small(), small()]
        quiet(models[0], data, epochs=1)
        quiet(models[1], LabelledImages(images, data.labels), epochs=1)
        assert same(*map(weights, models))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"epochs": 0}, r"Expected epochs of 1 or more; got epochs=0"),
            ({"batch_size": 0}, r"Expected batch_size of 1 or more; got batch_size=0"),
            ({"data": toy(8, shape=(1, 9, 9))}, r"images of \(1, 8, 8\).*'images' has \(1, 9, 9\).*resize the images"),
            ({"validation": toy(8, shape=(3, 8, 8))}, r"'images' has \(3, 8, 8\)\. Build the model with image_shape="),
            ({"data": toy(8).subset([])}, r"'images subset' holds no images"),
            ({"validation": toy(8).subset([])}, r"'images subset' holds no images"),
            ({"data": toy(9, classes=3)}, r"labels in \[0, 2\); got 2. Pass num_classes=3 or remap"),
            ({"validation": toy(9, classes=3)}, r"labels in \[0, 2\); got 2"),
            ({"data": LabelledImages(toy(8).images, np.ones((8, 2), int))}, r"one class label per image"),
            ({"seed": -1}, r"Expected seed of 0 or more; got seed=-1"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, change, message, tmp_path):
        model = small()
        before = weights(model)
        with pytest.raises(ValueError, match=message):
            quiet(model, **{"data": toy(8), "epochs": 1, **change})
        assert same(before, weights(model))


class TestModelAfterwards:
    @pytest.mark.parametrize("mode", [True, False])
    def test_mode_and_device_are_as_before(self, mode):
        model = small().train(mode)
        quiet(model, toy(), validation=toy(8), epochs=1)
        assert all(module.training is mode for module in model.modules())
        assert model.device == torch.device("cpu")
        assert type(model) is condgen.ConditionalVAE

    def test_class_names_come_from_the_data(self):
        model = small()
        quiet(model, toy(class_names=["left", "right"]), epochs=1)
        assert model.class_names == ("left", "right")
        assert model.sample(["right"]).shape == (1, 1, 8, 8)

    def test_class_names_of_the_model_stay(self):
        model = small()
        model.class_names = ("a", "b")
        quiet(model, toy(), epochs=1)
        assert model.class_names == ("a", "b")

    def test_the_model_has_the_weights_of_the_last_epoch(self, tmp_path):
        model = small()
        quiet(model, toy(), validation=toy(8), epochs=2, objective=Scripted(1.0, 2.0), out=tmp_path)
        assert same(weights(model), weights(condgen.load(tmp_path / "last")))
        assert not same(weights(model), weights(condgen.load(tmp_path)))


class TestRunFolder:
    def test_the_best_epoch_has_the_lowest_validation_loss(self, tmp_path):
        kept = {}

        def keep(state):
            kept[state.row["epoch"]] = weights(state.model)
            assert state.passes == state.row["epoch"]

        objective = Scripted(3.0, 1.0, 2.0, 5.0)
        history = quiet(
            small(), toy(), validation=toy(8), epochs=4, objective=objective, out=tmp_path, callbacks=[keep]
        )
        assert history.best_epoch == 2
        assert history["validation_loss"] == [3.0, 1.0, 2.0, 5.0]
        assert same(weights(condgen.load(tmp_path)), kept[2])
        assert same(weights(condgen.load(tmp_path / "last")), kept[4])

    def test_files(self, tmp_path):
        history = quiet(small(), toy(), validation=toy(8), epochs=2, out=tmp_path / "new" / "run", seed=7)
        run = tmp_path / "new" / "run"
        names = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
        assert names == ["last/model.safetensors", "metrics.csv", "model.safetensors", "run.json"]
        with (run / "metrics.csv").open(newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        assert rows == history.rows

    def test_run_json_tells_how_to_repeat_it(self, tmp_path):
        objective = ELBO(LinearWarmup(3, 0.5), free_bits=0.1)
        quiet(small(), toy(name="squares"), epochs=2, out=tmp_path, seed=7, objective=objective)
        run = json.loads((tmp_path / "run.json").read_text())
        assert run["objective"] == "ELBO(beta=LinearWarmup(epochs=3, beta=0.5), free_bits=0.1)"
        assert run["optimizer"].startswith("Adam(lr=0.001, betas=(0.9, 0.999)")
        assert "LabelledImages 'squares': 48 images of (1, 8, 8)" in run["train"]
        expected = {"epochs": 2, "batch_size": 16, "seed": 7, "state": "finished", "epochs_done": 2}
        assert expected.items() <= run.items()
        assert {"condgen", "torch", "python", "device", "threads", "best_epoch", "validation"} <= set(run)

    def test_an_objective_of_ones_own_is_named(self, tmp_path):
        class Mine(nn.Module):
            beta, loss = ELBO().beta, ELBO().loss

        assert repr_of(Mine()) == "Mine()"

    def test_while_it_runs_it_says_so(self, tmp_path):
        states = []

        def look(*_):
            states.append(json.loads((tmp_path / "run.json").read_text())["state"])
            condgen.load(tmp_path)

        quiet(small(), toy(), epochs=2, out=tmp_path, callbacks=[look])
        assert states == ["unfinished", "unfinished"]

    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_a_loss_that_is_not_finite_stops_it_and_earlier_saves_stay(self, split, tmp_path):
        class Failing(ELBO):
            epoch = 0

            def loss(self, model, x, y, noise, beta=None):
                terms = super().loss(model, x, y, noise, beta)
                bad = self.epoch == 2 and self.training == (split == "train")
                return {**terms, "loss": terms["loss"] * math.nan} if bad else terms

        objective, model = Failing(), small().eval()
        saved = {}

        def after(state):
            objective.epoch = state.row["epoch"]
            saved.update((path, path.read_bytes()) for path in tmp_path.rglob("*.safetensors"))

        with pytest.raises(
            FloatingPointError,
            match=r"epoch 3.*nan.*The model of epoch 2 stays. Lower",
        ):
            quiet(model, toy(), validation=toy(8), epochs=5, objective=objective, out=tmp_path, callbacks=[after])
        assert len(saved) == 2
        assert all(path.read_bytes() == content for path, content in saved.items())
        assert condgen.load(tmp_path).sample([0]).isfinite().all()
        run = json.loads((tmp_path / "run.json").read_text())
        assert (run["state"], run["best_epoch"]) == ("stopped", 2)
        assert not model.training

    @pytest.mark.parametrize("step", [0, 2])  # of the three of an epoch
    def test_nor_does_a_gradient_that_is_not_finite(self, step, tmp_path):
        """The loss is, and an infinite norm would have made every weight NaN unnoticed at the end of an epoch."""

        class Steep(ELBO):
            def loss(self, model, x, y, noise, beta=None):
                terms = super().loss(model, x, y, noise, beta)
                if self.training:
                    self.steps = getattr(self, "steps", -1) + 1
                    if self.steps == 3 + step:
                        terms["loss"] = terms["loss"] + (0 * terms["loss"]).sqrt()
                return terms

        message = rf"The gradient is no longer finite in epoch 2, step {step + 1}: loss \d.*, gradient_norm nan;"
        with pytest.raises(FloatingPointError, match=message):
            quiet(small(), toy(), epochs=3, objective=Steep(), clip=1.0, out=tmp_path)
        assert condgen.load(tmp_path / "last").sample([0]).isfinite().all()

    def test_interrupting_leaves_a_complete_folder(self, tmp_path):
        def interrupt(state):
            if state.row["epoch"] == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quiet(small(), toy(), epochs=5, out=tmp_path, callbacks=[interrupt])
        run = json.loads((tmp_path / "run.json").read_text())
        assert (run["state"], run["epochs_done"]) == ("stopped", 2)
        condgen.load(tmp_path / "last")

    def test_without_out_nothing_is_written(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        quiet(small(), toy(), epochs=1)
        assert not list(tmp_path.iterdir())


class TestHistory:
    def test_columns_and_length(self):
        history = History([{"epoch": 1, "train_loss": 3.0}, {"epoch": 2, "train_loss": 2.0}])
        assert (history["epoch"], history["train_loss"], len(history)) == ([1, 2], [3.0, 2.0], 2)

    def test_without_rows(self):
        assert (len(History()), History().to_csv(), History()["loss"]) == (0, "\n", [])

    def test_histories_share_nothing(self):
        History().add({"epoch": 1, "train_loss": 1.0})
        assert len(History()) == 0

    @pytest.mark.parametrize(("losses", "best"), [([3, 2, 1], 3), ([1, 2, 3], 1), ([2, 1, 1], 3), ([5, -1, 4], 2)])
    def test_the_best_epoch(self, losses, best):
        history = History()
        for epoch, loss in enumerate(losses, 1):
            history.add({"epoch": epoch, "train_loss": 0.0, "validation_loss": float(loss)})
        assert history.best_epoch == best

    @pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
    def test_a_loss_that_is_not_finite_is_kept_and_reported(self, loss):
        history = History()
        history.add({"epoch": 1, "train_loss": 1.0})
        with pytest.raises(FloatingPointError, match="in epoch 2"):
            history.add({"epoch": 2, "train_loss": loss})
        assert (len(history), history.best_epoch) == (2, 1)


class TestDisplay:
    def test_without_a_terminal_it_prints_a_line_an_epoch(self, capsys):
        fit(small(), toy(), validation=toy(8), epochs=2, progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        chosen, first, second = err.strip().splitlines()
        assert chosen.startswith("precision 32-true: ")
        assert first.startswith("epoch 1/2 ")
        assert second.startswith("epoch 2/2 ")
        assert "images/s  validation: log-likelihood -" in second

    def test_without_validation_it_shows_training(self, capsys):
        fit(small(), toy(), epochs=1, progress=True)
        assert "train: log-likelihood -" in capsys.readouterr().err

    def test_on_a_terminal_it_shows_a_bar(self, capsys, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
        fit(small(), toy(), epochs=1, progress=True)
        err = capsys.readouterr().err
        assert "━" in err
        assert "epoch 1/1" in err

    def test_without_progress_it_is_silent(self, capsys):
        fit(small(), toy(), epochs=1, progress=False)
        assert capsys.readouterr() == ("", "")


def counting(method, calls):
    """The method, adding its name to `calls` whenever it is called."""

    def wrapper(*args, **kwargs):
        calls.append(method.__name__)
        return method(*args, **kwargs)

    return wrapper


def test_a_step_reads_nothing_back_from_the_device(monkeypatch):
    """Each such reading would make the device wait; their number must not grow with the number of steps."""
    counts = {}
    for steps in (2, 6):
        calls = []
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy", "cpu"):
                patch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name), calls))
            fit(small(), toy(8 * steps), validation=toy(8 * steps), epochs=1, batch_size=8, progress=False)
        counts[steps] = len(calls)
    assert counts[2] == counts[6] > 0


def test_validation_images_of_a_set_with_splits_are_its_validation_part():
    images = condgen.load_smears(60, size=16)
    model = condgen.conditional_vae(images.image_shape, 8, latent=2, width=4)
    seen = []
    model.likelihood.register_forward_pre_hook(lambda _, args: seen.append((model.training, len(args[0]))))
    fit(model, images.train, validation=images, epochs=1, progress=False)
    assert sum(n for training, n in seen if not training) == len(images.validation)


class TestClassNamesDecide:
    """Which class is which is told by names wherever both sides have them."""

    def test_data_in_another_order_train_the_same_model(self):
        images = toy(class_names=("left", "middle"))
        swapped = LabelledImages(images.images, 1 - images.labels, ("middle", "left"))
        first, second = small(), small()
        first.class_names = second.class_names = ("left", "middle")
        quiet(first, images, epochs=1)
        quiet(second, swapped, validation=swapped, epochs=1)
        assert same(weights(first), weights(second))

    def test_classes_the_model_does_not_know_are_refused(self):
        model = small()
        model.class_names = ("left", "right")
        with pytest.raises(ValueError, match=r"Expected images of left, right; 'images' has others: middle. Rename"):
            quiet(model, toy(class_names=("left", "middle")), epochs=1)

    def test_classes_without_images_are_no_hindrance(self):
        model = small(classes=3)
        model.class_names = ("left", "middle", "right")
        quiet(model, toy(class_names=("middle", "left")), epochs=1)
        assert model.class_names == ("left", "middle", "right")


class TestOneFolderOneRun:
    def test_a_used_folder_is_refused(self, tmp_path):
        quiet(small(), toy(), epochs=1, out=tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(ValueError, match=r"already holds a run. Choose another folder .*pass overwrite=True"):
            quiet(small(), toy(), epochs=1, out=tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_what_belonged_to_the_earlier_run_goes_with_it(self, tmp_path):
        quiet(small(), toy(), epochs=2, out=tmp_path)
        for name in ("evaluation.json", "evaluation.html", "samples.png", "notes.txt"):
            (tmp_path / name).write_text("of the earlier run")
        quiet(small(), toy(), epochs=1, out=tmp_path, overwrite=True, seed=1)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"last", "metrics.csv", "model.safetensors", "notes.txt", "run.json"}
        self.check_one_run(tmp_path, seed=1)

    def test_an_earlier_run_stays_until_there_is_something_to_keep(self, tmp_path):
        quiet(small(), toy(), epochs=1, out=tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

        class Stopped(ELBO):
            def loss(self, *_, **__):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quiet(small(), toy(), epochs=1, out=tmp_path, overwrite=True, objective=Stopped())
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    def test_files_of_the_users_own_stay(self, tmp_path):
        """In a folder that held no run, nothing is known to be an earlier run's."""
        (tmp_path / "last").mkdir()
        own = ["config.json", "samples.png", "evaluation.json", "last/notes.txt"]
        for name in own:
            (tmp_path / name).write_text("mine")
        quiet(small(), toy(), epochs=1, out=tmp_path)
        assert [(tmp_path / name).read_text() for name in own] == ["mine"] * 4

    def test_a_run_without_a_model_blocks_nothing(self, tmp_path):
        class Failing(ELBO):
            def loss(self, *arguments, **scheduled):
                return {"loss": super().loss(*arguments, **scheduled)["loss"] * math.nan}

        message = r"no longer finite in epoch 1, step 1: loss nan; images \[\d.*\] and 8 more. Lower"
        with pytest.raises(FloatingPointError, match=message):
            quiet(small(), toy(), epochs=1, out=tmp_path, objective=Failing())
        quiet(small(), toy(), epochs=1, out=tmp_path, seed=1)
        self.check_one_run(tmp_path, seed=1)

    def test_model_and_run_know_each_other_and_their_data(self, tmp_path):
        images = toy()
        quiet(small(), images, epochs=1, out=tmp_path)
        model, run = condgen.load(tmp_path), json.loads((tmp_path / "run.json").read_text())
        assert model.provenance == {
            "run": run["id"],
            "data": images.fingerprint,
            "train": images.fingerprint,
            "objective": "ELBO",
            "epoch": 1,
        }
        assert run["fingerprint"] == images.fingerprint

    def check_one_run(self, folder, seed):
        run, model = json.loads((folder / "run.json").read_text()), condgen.load(folder)
        assert (run["seed"], model.provenance["run"]) == (seed, run["id"])
        assert condgen.load(folder / "last").provenance["run"] == run["id"]


class TestDropoutAndFrozenParts:
    def dropping(self, seed=0):
        model = small(seed=seed)
        model.encoder.blocks[0].activation = nn.Sequential(nn.LeakyReLU(), nn.Dropout(0.5))
        return model

    def test_dropout_repeats(self):
        first, second = self.dropping(), self.dropping()
        quiet(first, toy(), epochs=1)
        torch.rand(7)  # whatever the user drew meanwhile
        quiet(second, toy(), epochs=1)
        assert same(weights(first), weights(second))

    def test_dropout_is_not_the_same_at_every_step_and_the_users_generator_is_left_alone(self):
        before = torch.get_rng_state()
        masks = []
        model = self.dropping()
        model.encoder.blocks[0].activation.register_forward_hook(lambda _, __, h: masks.append((h == 0).clone()))
        quiet(model, toy(), epochs=2)
        assert len({mask.numpy().tobytes() for mask in masks}) == len(masks) == 6
        assert torch.equal(torch.get_rng_state(), before)

    def test_what_the_user_froze_stays_frozen(self):
        modes = []
        model = self.dropping().train()
        dropout = model.encoder.blocks[0].activation[1].eval()
        model.decoder.linear.requires_grad_(False)
        watched = dropout, model.decoder.linear, model.encoder
        dropout.register_forward_hook(lambda *_: modes.append([module.training for module in watched]))
        quiet(model, toy(), epochs=1)
        assert modes == [[False, False, True]] * 3

    def test_a_loaded_model_trains(self):
        modes = []
        model = self.dropping().eval()
        model.encoder.register_forward_hook(lambda module, *_: modes.append(module.training))
        quiet(model, toy(), epochs=1)
        assert all(modes)
        assert not model.training


class TestOwnObjective:
    class Plain(nn.Module):
        """No beta, none of the bound's terms."""

        def loss(self, model, x, y, noise):
            error = (model.infer(x, y, noise).p.mean - x).square().mean()
            return {"loss": error, "error": error}

    def test_it_trains_is_shown_and_is_drawn(self, tmp_path, capsys):
        history = fit(small(), toy(), validation=toy(8), epochs=3, objective=self.Plain(), out=tmp_path)
        assert history["train_loss"][-1] < history["train_loss"][0]
        assert "validation: loss 0." in capsys.readouterr().err
        titles = [axes.get_title() for axes in history.plot().axes]
        assert titles == ["loss", "error"]


class TestTheTimeThatIsLeft:
    def forecast(self, later=0.0, epochs=10):
        return Forecast(Plan(epochs=epochs, budget=None, steps=100), later)

    def test_it_is_told_after_twenty_steps_for_all_stages(self, monkeypatch, capsys):
        now = 0.0
        monkeypatch.setattr("condgen.training.budget.time.perf_counter", lambda: now)
        forecast = self.forecast(later=1000.0)
        show, state = Progress(forecast), TrainingState(None, [], forecast.plan)
        for step in range(30):
            now += 1.2
            state.step = step + 1
            show.on_step(state)
        err = capsys.readouterr().err
        assert err.count("on this machine") == 1
        assert "about 40 min on this machine; a budget of minutes" in " ".join(err.split())  # 1.2 s for 1,980 steps

    def test_it_is_corrected_while_it_runs(self):
        forecast = self.forecast()
        for step in range(60):
            forecast.stepped(now=float(step))
        assert forecast.left(0.6) == pytest.approx(940)
        for step in range(60):
            forecast.stepped(now=60.0 + 3 * step)
        assert forecast.left(1.2) == pytest.approx(3 * 880)

    def test_a_discriminator_that_begins_later_is_reckoned_with(self):
        """Plain steps of 1 s, 1.9 s beside the discriminator; what follows has none."""
        forecast = Forecast(Plan(epochs=10, budget=None, steps=100), later=500.0, critic_start=0.5)
        for step in range(60):
            forecast.stepped(now=float(step))
        assert forecast.left(1.0) == pytest.approx(400 + 1.9 * 500 + 500)
        for step in range(60):
            forecast.stepped(now=100 + 1.9 * step)
        assert forecast.left(6.0) == pytest.approx(1.9 * 400 + 500)

    def test_what_comes_between_epochs_is_no_step(self):
        forecast = self.forecast()
        for step in range(30):
            forecast.stepped(now=float(step))
        forecast.pause()
        for step in range(30):
            forecast.stepped(now=500.0 + step)
        assert forecast.left(0.6) == pytest.approx(940)

    def test_short_trainings_say_nothing(self, capsys):
        fit(small(), toy(), epochs=30, progress=True)
        assert "on this machine" not in capsys.readouterr().err

    def test_without_a_terminal_a_line_comes_every_half_minute(self, monkeypatch, capsys):
        now = 0.0
        monkeypatch.setattr("condgen.io.progress.time.monotonic", lambda: now)
        forecast = self.forecast()
        show, state = Progress(forecast), TrainingState(None, [], forecast.plan)
        for step in range(100):
            now += 1.0
            state.step = step + 1
            show.on_step(state)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pass ")]
        assert len(lines) == 3
        assert re.match(r"pass 0\.\d\d of 10, about .* left", lines[0])

    def test_waits_tell_what_is_done_and_how_far_it_is(self, monkeypatch, capsys):
        monkeypatch.setattr("condgen.io.progress.PATIENCE", 0.05)
        monkeypatch.setattr("condgen.io.progress.EVERY", 0.05)
        with working("training the judge", total=4) as advance:
            advance(after="first part")
            time.sleep(0.3)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) >= 2
        assert re.match(r"training the judge: first part, 0 s so far, 25% done, about \d s left", lines[-1])

    def test_short_waits_tell_nothing(self, capsys):
        with working("a moment", total=1) as advance:
            advance()
        assert capsys.readouterr().err == ""


class TestHardwareThatCannotBe:
    @pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
    def test_copies_of_this_process(self, strategy):
        with pytest.raises(ValueError, match=f"in a script.*got strategy='{strategy}'.*strategy='auto'"):
            quiet(small(), toy(), epochs=1, devices=2, strategy=strategy)

    def test_devices_in_a_notebook(self, monkeypatch):
        monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
        with pytest.raises(ValueError, match=r"got devices=2 in a notebook\. Put the call into a file"):
            quiet(small(), toy(), epochs=1, devices=2)
        quiet(small(), toy(), epochs=1, devices=1)


class TestNothingChangesBeforeAllIsChecked:
    @pytest.mark.parametrize(
        "wrong",
        [{"epochs": 0}, {"batch_size": 0}, {"clip": -1.0}, {"precision": "half"}, {"accumulate": 0}, {"ema": 2.0}],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_a_refused_number_leaves_the_model_as_it_was(self, wrong):
        model = condgen.recipes.bloodmnist_reference()
        before = sum(p.numel() for p in model.parameters())
        with pytest.raises(ValueError, match="Expected"):
            fit(model, condgen.load_smears(20), progress=False, **wrong)
        assert sum(p.numel() for p in model.parameters()) == before
        assert model.class_names == ()

    def test_a_model_with_more_classes_than_names_is_refused(self):
        data = toy(class_names=("left", "right"))
        with pytest.raises(ValueError, match=r"a name for each of the model's 5 classes; .* has 2: left, right"):
            fit(small(classes=5), data, epochs=1, progress=False)


class TestClassesOfTheValidationSet:
    """Names decide, on a new model too, which has none of its own yet."""

    def sets(self):
        train = toy(class_names=("left", "right"))
        turned = LabelledImages(train.images, 1 - train.labels, ("right", "left"))
        return train, turned

    def test_another_order_is_the_same_set(self):
        train, turned = self.sets()
        same_, other = (quiet(small(), train, validation=v, epochs=2) for v in (train, turned))
        assert same_["validation_loss"] == other["validation_loss"]

    def test_an_unknown_class_is_named(self):
        train, _ = self.sets()
        strange = LabelledImages(train.images, train.labels, ("left", "middle"))
        with pytest.raises(ValueError, match="has others: middle"):
            quiet(small(), train, validation=strange, epochs=1)


@pytest.mark.parametrize("given", [{"lr_warmup": 0.1}, {"lr_decay": 0.4}])
def test_either_end_of_a_schedule_makes_one(given):
    schedule = schedule_of(training.settings.Training(**given))
    assert schedule(0.5) == 1
    assert min(schedule(0.01), schedule(0.99)) < 1
    assert schedule_of(training.settings.Training()) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_two_devices_has_its_share_of_every_batch(rank):
    fabric = SimpleNamespace(global_rank=rank, world_size=2)
    trainer = SimpleNamespace(batch_size=4, seed=0, prepare=None, weights=None, fabric=fabric)
    images = torch.zeros(10, 1, 2, 2), torch.arange(10)
    found = [batch.index.tolist() for batch in Trainer.order(trainer, images, 0, 0)]
    whole = [index.tolist() for index, _, _ in batches(*images, 4, seed=0, epoch=0)]
    assert found == [index[rank::2] for index in whole]


@pytest.mark.parametrize("name", ["minutes", "learning_rate", "discriminator_rate", "clip", "ema"])
def test_what_has_to_be_above_nought(name):
    with pytest.raises(ValueError, match=f"Expected {name} (above 0|between 0 and 10*); got {name}=0"):
        training.settings.Training(**{name: 0.0})
    assert getattr(training.settings.Training(**{name: 1e-6}), name) == 1e-6


@pytest.mark.parametrize("name", ["epsilon", "weight_decay", "lr_warmup", "lr_decay"])
def test_what_may_be_nought(name):
    assert getattr(training.settings.Training(**{name: 0.0}), name) == 0
    with pytest.raises(ValueError, match=f"Expected {name} from 0 to 10*; got {name}=-0.5"):
        training.settings.Training(**{name: -0.5})
