"""Resuming: a run stopped anywhere ends as if it never had been, to the last bit; what changed meanwhile is named."""

import itertools
import json
import signal
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import condgen
from condgen.cli import main
from condgen.data.augmentation import Augmentation
from condgen.distributions.likelihoods import Gaussian
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.losses.elbo import ELBO, LinearWarmup
from condgen.losses.vaegan import VAEGANLoss
from condgen.nn.discriminators import ConvDiscriminator
from condgen.recipes import RECIPES
from condgen.training.callbacks import LambdaCallback, Log
from condgen.training.checkpoints import Checkpoints, pack, unpack
from condgen.training.fit_prior import fit_prior
from condgen.training.optimizers import WarmupDecay, adam, adamw
from tests.training.test_training import same, small, toy, weights

STEPS = 5  # of an epoch: 40 images, eight a step
quiet = partial(condgen.fit, progress=False, accelerator="cpu", batch_size=8)


def critic():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return VAEGANLoss(ConvDiscriminator((1, 8, 8), 2), weight=0.1, matching=0.1, start=0.3)


class Dropping(nn.Module):
    """An encoder with randomness of its own."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, c):
        return nn.functional.dropout(self.encoder(x, c), 0.3, self.training)


def dropping():
    model = small()
    model.encoder, model.likelihood = Dropping(model.encoder), Gaussian("optimal")
    return model


KINDS = {
    "the bound": ({}, small),
    "everything": (
        {
            "objective": lambda: ELBO(LinearWarmup(2)),
            "optimizer": adamw,
            "schedule": WarmupDecay(0.2, 0.5),
            "clip": 0.5,
            "ema": 0.9,
            "augment": Augmentation(flips=True),
            "precision": "bf16-mixed",
        },
        small,
    ),
    "two phases": ({"objective": critic, "optimizer": {"": adam, "discriminator": adam}, "ema": 0.9}, small),
    "dropout": ({}, dropping),
    "added up and balanced": ({"accumulate": 2, "balance": True, "clip": 1.0}, small),
}


def arguments(kind):
    """Fresh ones: an objective has weights of its own."""
    options, build = KINDS[kind]
    return build(), {name: value() if name == "objective" else value for name, value in options.items()}


def stopper(at, act):
    """Acts at the given step, counted over all epochs."""
    seen = []

    def on_step(*_):
        seen.append(None)
        if len(seen) == at:
            act()

    return on_step


def on(hook):
    """A callback after every step."""
    return LambdaCallback(on_step=hook)


def noting(steps):
    """Notes the epoch and the number of every step that is taken."""
    return on(lambda state: steps.append((state.epoch, state.step - 1)))


def interrupted():
    raise RuntimeError("pulled out")


pytestmark = pytest.mark.filterwarnings("ignore:The code of encoder is not stored")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs of three epochs."""
    found = {}
    for kind in KINDS:
        model, options = arguments(kind)
        out = tmp_path_factory.mktemp("whole")
        history = quiet(model, toy(40), validation=toy(16), epochs=3, out=out, **options)
        found[kind] = weights(model), history, out
    return found


class TestBitForBit:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("at", [1, STEPS, 2 * STEPS + 3])
    @pytest.mark.parametrize("how", ["killed", "signalled"])
    def test_stopped_and_resumed_equals_never_stopped(self, kind, at, how, whole, tmp_path):
        """Killed: nothing is kept at the end, the last state is that of the step before. Signalled: the step's own."""
        act = interrupted if how == "killed" else partial(signal.raise_signal, signal.SIGINT)
        model, options = arguments(kind)
        run = {"validation": toy(16), "epochs": 3, "out": tmp_path, "save_every": 0.0 if how == "killed" else 1e9}
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            quiet(model, toy(40), callbacks=[on(stopper(at, act))], **run, **options)
        model, options = arguments(kind)
        if Checkpoints(tmp_path / "state").files():  # else it begins again, with the model that is passed
            for parameter in model.parameters():
                nn.init.zeros_(parameter)
        steps = []
        history = quiet(
            model,
            toy(40),
            resume=True,
            callbacks=[noting(steps)],
            **run,
            **options,
        )
        expected, uninterrupted, out = whole[kind]
        assert same(weights(model), expected)
        # Batches whose gradients are added up come again together.
        kept = [0, 2, 4, 5, 7, 9, 10, 12, 14, 15] if "accumulate" in options else list(range(16))
        done = max(n for n in kept if n < at) if how == "killed" else min(n for n in kept if n >= at)
        assert len(steps) == 3 * STEPS - done
        timed = ("seconds", "images_per_second")
        for row, own in zip(history.rows, uninterrupted.rows, strict=True):
            assert {k: v for k, v in row.items() if k not in timed} == {k: v for k, v in own.items() if k not in timed}
        for place in ("", "last"):
            one, other = (condgen.load(folder / place) for folder in (tmp_path, out)) if kind != "dropout" else (0, 0)
            assert kind == "dropout" or same(weights(one), weights(other))
        assert json.loads((tmp_path / "run.json").read_text())["state"] == "finished"
        assert not (tmp_path / "state").exists()

    def test_stopped_twice_and_in_validation(self, whole, tmp_path):
        run = {"validation": toy(16), "epochs": 3, "out": tmp_path}
        real = condgen.training.loop.validate

        def stopping(*arguments):
            signal.raise_signal(signal.SIGTERM)
            return real(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(condgen.training.loop, "validate", stopping)
            with pytest.raises(SystemExit):
                quiet(small(), toy(40), **run)
        stop = stopper(2, partial(signal.raise_signal, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            quiet(small(), toy(40), resume=True, callbacks=[on(stop)], **run)
        model = small()
        quiet(model, toy(40), resume=True, **run)
        assert same(weights(model), whole["the bound"][0])

    def test_a_budget_goes_on_with_what_is_left_of_it(self, tmp_path, monkeypatch):
        steps, readings = [], itertools.count()  # a step takes a tenth of a second, and all else next to nothing
        clock = SimpleNamespace(perf_counter=lambda: len(steps) / 10 + 1e-6 * next(readings))
        for module in ("budget", "loop"):
            monkeypatch.setattr(f"condgen.training.{module}.time", clock)
        stop, tick = stopper(12, partial(signal.raise_signal, signal.SIGINT)), on(lambda *_: steps.append(None))
        run = {"minutes": 0.05, "out": tmp_path, "schedule": WarmupDecay(0.1, 0.4)}
        with pytest.raises(KeyboardInterrupt):
            quiet(small(), toy(40), callbacks=[tick, on(stop)], **run)
        assert Checkpoints(tmp_path / "state").read()["plan"]["budget"]["spent"] == pytest.approx(1.2, abs=0.1)
        steps.extend([None] * 1000)  # the time between the two does not count
        quiet(small(), toy(40), resume=True, callbacks=[tick], **run)
        assert 28 <= len(steps) - 1000 <= 31  # 30, less what is reserved for the end of an epoch; 42 anew

    @pytest.mark.parametrize(
        ("changed", "said"),
        [({"seed": 1}, "seed was 0, now 1"), ({"batch_size": 16}, "batch_size was 32, now 16")],
    )
    def test_a_strangers_sampler_state_is_refused(self, changed, said, tmp_path):
        data = condgen.load_smears(120, size=16)
        model = condgen.conditional_vae(data.image_shape, data.num_classes, latent=4, width=4)
        shared = {"epochs": 2, "batch_size": 32, "progress": False, "accelerator": "cpu"}

        class Killed(Checkpoints):
            def write(self, state):
                super().write(state)
                raise RuntimeError("pulled out")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("condgen.training.set_up.Checkpoints", Killed)
            with pytest.raises(RuntimeError, match="pulled out"):
                fit_prior(model, data, FlowMatching(4, 8), checkpoints=tmp_path, save_every=0.0, **shared)
        with pytest.raises(ValueError, match=said):
            fit_prior(model, data, FlowMatching(4, 8), checkpoints=tmp_path, **{**shared, **changed})
        other = condgen.load_smears(120, size=16, seed=1)
        with pytest.raises(ValueError, match="what differs: data was"):
            fit_prior(model, other, FlowMatching(4, 8), checkpoints=tmp_path, **shared)

    def test_a_sampler_goes_on_too(self, tmp_path):
        data = condgen.load_smears(120, size=16)
        model = condgen.conditional_vae(data.image_shape, data.num_classes, latent=4, width=4)

        def prior():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return FlowMatching(4, 8, GaussianMixture(4, 8, 2))

        shared = {"epochs": 3, "batch_size": 32, "progress": False, "accelerator": "cpu"}
        whole = fit_prior(model, data, prior(), **shared)
        files = []

        class Killed(Checkpoints):
            def write(self, state):
                files.append(super().write(state))
                if len(files) == 5:
                    raise RuntimeError("pulled out")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("condgen.training.set_up.Checkpoints", Killed)
            with pytest.raises(RuntimeError, match="pulled out"):
                fit_prior(model, data, prior(), checkpoints=tmp_path / "kept", save_every=0.0, **shared)
        again = fit_prior(model, data, prior(), checkpoints=tmp_path / "kept", **shared)
        assert same(weights(again), weights(whole))
        assert not (tmp_path / "kept").exists()


class TestStates:
    @settings(max_examples=60, deadline=None)
    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text()
            | st.integers(0, 5).map(lambda n: torch.arange(n) / 3),
            lambda inner: (
                st.lists(inner)
                | st.tuples(inner, inner)
                | st.dictionaries(st.text() | st.integers(-(2**40), 2**40), inner)
            ),
            max_leaves=12,
        )
    )
    def test_what_is_packed_comes_back(self, value):
        tensors = {}
        again = unpack(json.loads(json.dumps(pack(value, tensors))), tensors)
        assert repr(again) == repr(value)  # NaN is NaN, a tuple is a tuple, 1 is not 1.0

    def test_a_kill_in_the_middle_of_a_write_leaves_nothing_in_the_end(self, tmp_path):
        states = Checkpoints(tmp_path / "state")
        states.write({"epoch": 1})
        (tmp_path / "state" / ".state-000002.safetensors.0123").write_bytes(b"half")
        states.clear()
        assert not (tmp_path / "state").exists()

    def test_what_cannot_be_kept_is_named(self):
        with pytest.raises(TypeError, match=r"optimizers/0/hook is"):
            pack({"optimizers": [{"hook": object()}]}, {})

    def test_two_places_never_share_a_name(self):
        value = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.zeros(2), "1": torch.ones(2)}
        tensors = {}
        assert repr(unpack(pack(value, tensors), tensors)) == repr(value)

    def stopped(self, out, at=7, **options):
        with pytest.raises(RuntimeError, match="pulled out"):
            quiet(
                small(),
                toy(40),
                epochs=3,
                out=out,
                save_every=0.0,
                callbacks=[on(stopper(at, interrupted))],
                **options,
            )
        return Checkpoints(out / "state").files()

    @pytest.mark.parametrize(
        "damage",
        [
            lambda file: file.write_bytes(file.read_bytes()[:-50]),
            lambda file: file.write_bytes(b""),
            lambda file: file.write_bytes(file.read_bytes()[:-9] + b"\x00" * 9),
        ],
        ids=["cut", "emptied", "zeroed"],
    )
    def test_a_damaged_state_gives_way_to_the_one_before(self, damage, whole, tmp_path):
        run = {"validation": toy(16)}
        _, newest = self.stopped(tmp_path, **run)
        damage(newest)
        model, steps = small(), []
        with pytest.warns(UserWarning, match=f"{newest.name}.*Going on from the state before"):
            quiet(
                model,
                toy(40),
                epochs=3,
                out=tmp_path,
                resume=True,
                callbacks=[noting(steps)],
                **run,
            )
        assert steps[0] == (1, 0)  # killed in the seventh step: states after the fifth and the sixth
        assert same(weights(model), whole["the bound"][0])

    def test_with_none_that_is_whole_it_begins_again(self, whole, tmp_path):
        for file in self.stopped(tmp_path, validation=toy(16)):
            file.write_bytes(b"gone")
        model = small()
        with pytest.warns(UserWarning, match="Going on from"):
            quiet(model, toy(40), validation=toy(16), epochs=3, out=tmp_path, resume=True)
        assert same(weights(model), whole["the bound"][0])

    def test_the_last_two_stay(self, tmp_path):
        assert [file.name for file in self.stopped(tmp_path)] == [
            "state-000006.safetensors",  # after the epoch of five steps
            "state-000007.safetensors",
        ]

    def test_a_full_disk_leaves_what_was_there(self, tmp_path, monkeypatch):
        import condgen.io.archives as archives

        whole = archives.write_atomically

        def full(path, content):
            if path.name.endswith("4.safetensors"):
                raise OSError(28, "No space left on device")
            whole(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(archives, "write_atomically", full)
            with pytest.raises(OSError, match=r"Cannot keep the training state in .*: No space left.*and resume"):
                quiet(small(), toy(40), epochs=3, out=tmp_path, save_every=0.0)
        assert [file.name[-18:] for file in Checkpoints(tmp_path / "state").files()][-1] == "000003.safetensors"
        assert len(quiet(small(), toy(40), epochs=3, out=tmp_path, resume=True)) == 3


class TestWhatChanged:
    @pytest.fixture
    def stopped(self, tmp_path):
        TestStates().stopped(tmp_path)
        return tmp_path

    def test_other_data(self, stopped):
        images = toy(40)
        images.images[3, 0, 0, 0] ^= 1
        with pytest.raises(ValueError, match="changed: fingerprint was"):
            quiet(small(), images, epochs=3, out=stopped, resume=True)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 1}, "seed was 0, now 1"),
            ({"epochs": 4}, "planned was 3 epochs, now 4 epochs"),
            ({"objective": ELBO(0.5)}, "objective was"),
            ({"optimizer": partial(adam, lr=0.5)}, "optimizer was"),
            ({"clip": 1.0}, "clip was None, now 1.0"),
        ],
    )
    def test_other_settings(self, change, message, stopped):
        with pytest.raises(ValueError, match=message):
            quiet(small(), toy(40), **{"epochs": 3, "out": stopped, "resume": True, **change})
        assert len(quiet(small(), toy(40), epochs=3, out=stopped, resume=True)) == 3  # and nothing was lost

    def test_another_version_is_said(self, stopped):
        run = json.loads((stopped / "run.json").read_text())
        (stopped / "run.json").write_text(json.dumps({**run, "torch": "1.0", "threads": 64}))
        with pytest.warns(UserWarning, match="torch was 1.0, now.*threads was 64, now.*last bits may differ"):
            quiet(small(), toy(40), epochs=3, out=stopped, resume=True)

    def test_another_model(self, stopped):
        with pytest.raises(RuntimeError, match="size mismatch"):
            quiet(small(width=5), toy(40), epochs=3, out=stopped, resume=True)

    def test_no_run_and_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="No run to resume"):
            quiet(small(), toy(), out=tmp_path, resume=True)
        with pytest.raises(ValueError, match="folder of the run to resume"):
            quiet(small(), toy(), resume=True)
        assert len(quiet(small(), toy(), epochs=1, out=tmp_path, resume="auto")) == 1

    def test_a_finished_run_has_nothing_left_to_do(self, tmp_path):
        first = small()
        history = quiet(first, toy(), epochs=2, out=tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        again = small()
        assert quiet(again, toy(), epochs=2, out=tmp_path, resume=True).rows == history.rows
        assert same(weights(first), weights(again))
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    @pytest.mark.filterwarnings("ignore:The code of")
    @pytest.mark.parametrize("how", [True, "auto"])
    def test_a_finished_run_with_a_part_of_ones_own(self, how, tmp_path):
        first, again = dropping(), dropping()
        history = quiet(first, toy(), epochs=2, out=tmp_path)
        assert quiet(again, toy(), epochs=2, out=tmp_path, resume=how).rows == history.rows
        assert same(weights(first), weights(again))

    @pytest.mark.filterwarnings("ignore:The code of")
    def test_a_finished_recipe_with_a_part_of_ones_own(self, tmp_path):
        def run(**options):
            model = condgen.conditional_vae((1, 8, 8), num_classes=2, latent=(2, 2, 2), width=4)
            model.encoder = Dropping(model.encoder)
            short = {"epochs": 1, "components": 1, "progress": False, "accelerator": "cpu", "batch_size": 8}
            return RECIPES["latent_map"].fit(toy(), tmp_path, model=model, **short, **options)[0]

        torch.manual_seed(0)
        assert same(weights(run()), weights(run(resume="auto")))


class TestSteps:
    def test_gradients_that_are_added_up_are_those_of_one_batch(self):
        """Two batches of eight as one of 16, at the end of an epoch of 40 images one batch of eight alone."""
        one, other = small().double(), small().double()
        start = weights(one)
        other.load_state_dict(start)
        sgd = partial(torch.optim.SGD, lr=1e-3)
        quiet(one, toy(40), epochs=2, optimizer=sgd, accumulate=2)
        condgen.fit(other, toy(40), epochs=2, optimizer=sgd, batch_size=16, progress=False, accelerator="cpu")
        for name, value in weights(one).items():
            torch.testing.assert_close(value, weights(other)[name], rtol=1e-9, atol=1e-12)
        assert not same(start, weights(one))

    def test_balanced_batches_hold_every_class_alike(self):
        data = condgen.LabelledImages(np.zeros((200, 1, 8, 8), np.uint8), (np.arange(200) < 20).astype(int))
        from condgen.data.batches import batches
        from condgen.training.fit import class_weights

        images, labels = torch.as_tensor(data.images), torch.as_tensor(data.labels)
        kept = {"seed": 0, "balance": class_weights(data)}
        drawn = [batch for epoch in range(20) for batch in batches(images, labels, 50, epoch=epoch, **kept)]
        share = torch.cat([batch.y for batch in drawn]).double().mean()
        assert len(drawn) == 80
        assert abs(share - 0.5) < 4 * 0.5 / 4000**0.5
        assert all(len(batch.index.unique()) == 50 for batch in drawn)  # noise of its own for an image drawn twice
        with pytest.raises(ValueError, match="class labels to balance by"):
            class_weights(condgen.LabelledImages(data.images, np.zeros((200, 2))))

    def test_patience(self):
        class Worse(ELBO):
            """Better for three epochs, then ever worse."""

            def loss(self, model, x, y, noise, beta=None):
                terms = super().loss(model, x, y, noise, beta)
                return terms if self.training else {**terms, "loss": 0 * terms["loss"] + abs(len(seen) - 3)}

        seen = []
        history = quiet(
            small(), toy(16), validation=toy(8), epochs=20, objective=Worse(), patience=2,
            callbacks=[lambda _: seen.append(None)],
        )  # fmt: skip
        assert history.best_epoch == 4
        assert len(history) == 6

    def test_loggers_get_every_epoch(self, tmp_path):
        from lightning_fabric.loggers import CSVLogger

        history = quiet(small(), toy(), epochs=2, callbacks=[Log(CSVLogger(tmp_path))])
        (file,) = tmp_path.rglob("metrics.csv")
        lines = file.read_text().splitlines()
        assert len(lines) == 3
        assert str(history["train_loss"][1])[:8] in lines[2]

    @pytest.mark.parametrize("wrong", [{"accumulate": 0}, {"devices": 0}, {"nodes": 0}])
    def test_wrong_numbers(self, wrong):
        with pytest.raises(ValueError, match="of 1 or more"):
            quiet(small(), toy(), **wrong)

    def test_wrong_states(self, tmp_path):
        with pytest.raises(ValueError, match="seconds from 0 up"):
            Checkpoints(tmp_path, every=-1)


class TestCommandLine:
    OPTIONS = ("--size", "16", "--images", "120", "--width", "4", "--latent", "4", "--epochs", "3", "--seed", "2")

    @pytest.mark.slow
    def test_a_run_goes_on_by_its_folder_alone(self, tmp_path, monkeypatch, capsys):
        augment = ("--augment.flips", "true", "--save_every", "0")
        assert main(["train", *self.OPTIONS, *augment, "--out", str(tmp_path / "whole")]) == 0
        real, calls = condgen.training.step.Step.__call__, []

        def take(*arguments):
            calls.append(None)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGTERM)
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(condgen.training.step.Step, "__call__", take)
            with pytest.raises(SystemExit):
                main(["train", *self.OPTIONS, *augment, "--out", str(tmp_path / "stopped")])
        assert f"--resume {tmp_path / 'stopped'}" in capsys.readouterr().err
        assert main(["train", "--resume", str(tmp_path / "stopped")]) == 0
        one, other = (condgen.load(tmp_path / name) for name in ("whole", "stopped"))
        assert same(weights(one), weights(other))
        assert main(["train", "--resume", str(tmp_path / "stopped")]) == 0  # nothing left to do

    def test_options_beside_it_are_refused(self, tmp_path, capsys):
        (tmp_path / "run.json").write_text('{"state": "unfinished", "options": {}}')
        assert main(["train", "--resume", str(tmp_path), "--epochs", "5"]) != 0
        assert "without --epochs" in capsys.readouterr().err
        assert main(["train", "--resume", str(tmp_path / "none")]) != 0
        assert "No run to resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recipe_stopped_in_its_sampler_goes_on_there(tmp_path):
    data = condgen.load_smears(24, size=16)
    chosen = {"epochs": 1, "components": 1, "sampler": "flow_matching", "sampler_epochs": 2}
    chosen |= {"progress": False, "accelerator": "cpu"}
    whole, _ = RECIPES["latent_map"].fit(data, tmp_path / "whole", **chosen)

    def killed(*_, **__):
        raise RuntimeError("pulled out")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condgen.recipes.fit_prior", killed)
        with pytest.raises(RuntimeError, match="pulled out"):
            RECIPES["latent_map"].fit(data, tmp_path / "stopped", **chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, history = RECIPES["latent_map"].fit(data, tmp_path / "stopped", resume=True, **chosen)
    assert same(weights(again), weights(whole))
    assert len(history) == 1


def test_an_objective_that_was_used_before_goes_on_from_what_was_saved(whole, tmp_path):
    """What it did after the state was saved is forgotten: whether its discriminator has begun, too."""
    expected, _, _ = whole["two phases"]
    model, options = arguments("two phases")
    run = {"validation": toy(16), "epochs": 3, "out": tmp_path, **options}
    with pytest.raises(RuntimeError):
        quiet(model, toy(40), save_every=0.0, callbacks=[on(stopper(3, interrupted))], **run)
    assert run["objective"].active is False
    run["objective"].active = True  # as after some more steps, whose states were not saved
    quiet(model, toy(40), resume=True, **run)
    assert same(weights(model), expected)
