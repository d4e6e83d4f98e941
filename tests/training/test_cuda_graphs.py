"""Recorded steps: with a recording of Python calls in place of a GPU's, everything but the replaying itself."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import condgen
from condgen.data.augmentation import Augmentation
from condgen.losses.gan import HingeGANLoss
from condgen.losses.vaegan import VAEGANLoss
from condgen.nn import cuda_graphs as graphs
from condgen.nn.cuda_graphs import MOST, SETTLING, Replays, replayable
from condgen.nn.discriminators import ConvDiscriminator
from condgen.training.callbacks import LambdaCallback
from condgen.training.checkpoints import Checkpoints
from condgen.training.fit import fit
from condgen.training.optimizers import WarmupDecay, adamw

RATE = 2.0**-10  # in single precision what it is in double
MODELS = {
    "cvae": partial(condgen.conditional_vae, latent=(2, 4, 4), width=8),
    "cgan": partial(condgen.conditional_gan, latent=4, width=8),
    "cflow": partial(condgen.conditional_flow, widths=(8, 8), depth=1),
}


class Operations(TorchDispatchMode):
    """Notes every operation on tensors, and what lay in those that are written to."""

    def __init__(self):
        super().__init__()
        self.noted, self.before = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert "_local_scalar_dense" not in str(function), "a value is read back"
        if function._schema.is_mutable:
            for tensor in (own for own in tree_leaves((args, kwargs)) if isinstance(own, torch.Tensor)):
                self.before.setdefault(tensor.data_ptr(), (tensor, tensor.clone()))
        result = function(*args, **kwargs)
        self.noted.append((function, args, kwargs, result))
        return result


class Recorder:
    """In place of a GPU: operations are noted once, and done again on the same tensors, without Python's decisions."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, work, inputs):
        self.recorded += 1
        with Operations() as operations:
            outputs = work(inputs)
        with torch.no_grad():
            for tensor, was in operations.before.values():  # noting did the work; recording does not
                tensor.copy_(was)

        def replay():
            self.replayed += 1
            with torch.no_grad():
                for function, args, kwargs, result in operations.noted:
                    again = function(*args, **kwargs)
                    for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new)

        return replay, outputs


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(graphs, "record", made)
    return made


@pytest.fixture
def recording(recorder, monkeypatch):
    """Training that records on the CPU."""
    monkeypatch.setattr("condgen.training.set_up.Replays", lambda *_, **__: Replays(enabled=True))
    return recorder


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(110, size=16)


def trained(kind, cells, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[kind](cells.image_shape, cells.num_classes)
    settings = {"epochs": 3, "batch_size": 24, "clip": 1.0, "ema": 0.9, "optimizer": partial(adamw, lr=RATE)}
    settings |= {"augment": Augmentation(flips=True, quarter_turns=True), "accelerator": "cpu", "progress": False}
    history = fit(model, cells, **{**settings, **options})
    return model, [{k: v for k, v in row.items() if "second" not in k} for row in history.rows]


@pytest.mark.parametrize("kind", MODELS)
class TestTraining:
    def test_a_recorded_run_has_the_bits_of_one_that_is_not(self, kind, cells, request):
        plain, rows = trained(kind, cells)
        recorder = request.getfixturevalue("recording")
        recorded, others = trained(kind, cells)
        assert rows == others
        for name, weight in plain.state_dict().items():
            assert torch.equal(weight, recorded.state_dict()[name]), name
        steps = -(-len(cells.train) // 24)
        assert recorder.recorded == 1  # the last, smaller batch comes too seldom
        assert recorder.replayed == 3 * (steps - 1) - SETTLING

    def test_the_learning_rate_follows_its_schedule(self, kind, cells, request):
        schedule = WarmupDecay(0.2, 0.5)
        rows = trained(kind, cells, schedule=schedule)[1]
        request.getfixturevalue("recording")
        others = trained(kind, cells, schedule=schedule)[1]
        for ours, theirs in zip(rows, others, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3)
        still = trained(kind, cells)[1]
        assert still[-1]["train_loss"] != pytest.approx(rows[-1]["train_loss"], rel=1e-3)

    @pytest.mark.slow
    @pytest.mark.usefixtures("recording")
    def test_it_goes_on_where_it_stopped(self, kind, cells, tmp_path):
        whole, rows = trained(kind, cells)

        def stop(state):
            if (state.epoch, state.step) == (1, 3):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(kind, cells, callbacks=[LambdaCallback(on_step=stop)], out=tmp_path, save_every=0.0)
        again, others = trained(kind, cells, out=tmp_path, resume=True)
        assert rows == others
        assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))


@pytest.mark.usefixtures("recording")
def test_terms_that_are_kept_stay_as_they_were(cells):
    kept = []

    def keep(state):
        kept.append((state.terms["loss"], float(state.terms["loss"])))

    trained("cvae", cells, callbacks=[LambdaCallback(on_step=keep)])
    assert all(float(loss) == value for loss, value in kept)
    assert len({value for _, value in kept}) == len(kept)


def test_a_discriminator_that_begins_later(cells, request):
    def run():
        critic = ConvDiscriminator(cells.image_shape, cells.num_classes, widths=(8, 16))
        return trained("cvae", cells, objective=VAEGANLoss(critic, start=0.4), epochs=4)[1]

    torch.manual_seed(3)
    plain = run()
    recorder = request.getfixturevalue("recording")
    torch.manual_seed(3)
    assert run() == plain
    assert recorder.recorded == 2  # before and after
    assert "train_discriminator_loss" in plain[-1]


@pytest.mark.usefixtures("recording")
def test_states_hold_numbers(cells, tmp_path):
    """So that a run can go on where nothing is recorded."""

    def stop(state):
        if (state.epoch, state.step) == (1, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained("cvae", cells, callbacks=[LambdaCallback(on_step=stop)], out=tmp_path, save_every=0.0)
    state = Checkpoints(tmp_path / "state").read()
    assert [(type(g["lr"]), g["capturable"]) for o in state["optimizers"] for g in o["param_groups"]] == [
        (float, False)
    ]


class TestReplays:
    def work(self, inputs):
        return {"sum": inputs["a"] + inputs["b"]}

    def test_outputs_are_of_the_inputs_of_the_call(self, recorder):
        replays = Replays(enabled=True)
        for k in range(10):
            a, b = torch.full((3,), float(k)), torch.arange(3.0)
            assert torch.equal(replays("add", self.work, {"a": a, "b": b})["sum"], a + b)
        assert (recorder.recorded, recorder.replayed) == (1, 10 - SETTLING)

    def test_shapes_types_and_keys_are_recorded_apart(self, recorder):
        replays = Replays(enabled=True)
        for _ in range(SETTLING + 1):
            for key in ("one", "two"):
                for dtype in (torch.float32, torch.float64):
                    for size in (2, 3):
                        a = torch.ones(size, dtype=dtype)
                        assert replays(key, self.work, {"a": a, "b": a})["sum"].shape == (size,)
        assert recorder.recorded == 8

    def test_not_too_many_are_kept(self, recorder):
        replays = Replays(enabled=True)
        for size in range(1, 2 * MOST):
            for _ in range(SETTLING + 2):
                a = torch.ones(size)
                assert torch.equal(replays("add", self.work, {"a": a, "b": a})["sum"], 2 * a)
        assert recorder.recorded == MOST

    def test_what_cannot_be_recorded_is_done_as_it_is(self, monkeypatch):
        def refuse(*_):
            raise RuntimeError("operation not permitted when stream is capturing\nand much more")

        monkeypatch.setattr(graphs, "record", refuse)
        replays, a = Replays(enabled=True), torch.ones(2)
        for _ in range(SETTLING):
            replays("add", self.work, {"a": a, "b": a})
        with pytest.warns(
            UserWarning, match="Going on without CUDA graphs, more slowly: operation not permitted when stream is"
        ):
            assert torch.equal(replays("add", self.work, {"a": a, "b": a})["sum"], 2 * a)
        assert torch.equal(replays("add", self.work, {"a": a, "b": a})["sum"], 2 * a)


class TestReplayable:
    @pytest.mark.parametrize("kind", MODELS)
    def test_condgens_own_models_are(self, kind):
        model = MODELS[kind]((3, 16, 16), 3)
        assert replayable([model, model.objective()], [adamw(model.parameters())])

    def test_a_penalty_at_some_steps_is_not(self):
        assert replayable([HingeGANLoss()])
        assert not replayable([HingeGANLoss(r1=1.0)])

    def test_a_users_part_is_if_it_says_so(self):
        class Mine(nn.Sequential):
            pass

        model = MODELS["cvae"]((3, 16, 16), 3)
        model.encoder.extra = Mine()
        assert not replayable([model])
        model.encoder.extra.replayable = True
        assert replayable([model])

    def test_hooks_are_python(self):
        model = MODELS["cvae"]((3, 16, 16), 3)
        model.decoder.register_forward_hook(lambda *_: None)
        assert not replayable([model])


def test_a_discriminator_that_begins_later_and_learns_seldom(cells, request):
    """A step before it began is another one than a step after it, though the same phases run."""

    def run():
        with torch.random.fork_rng():
            torch.manual_seed(3)
            critic = ConvDiscriminator(cells.image_shape, cells.num_classes, widths=(8, 16))
        return trained("cvae", cells, objective=VAEGANLoss(critic, start=0.4, every=2), epochs=5)[1]

    plain = run()
    request.getfixturevalue("recording")
    assert run() == plain
