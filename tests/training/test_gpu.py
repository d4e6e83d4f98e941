"""On a GPU, where there is one: the same numbers as on the CPU, and nothing read back while it trains."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import condgen
from condgen.apps.benchmarking import benchmark, grid
from condgen.cli import main
from condgen.data.augmentation import Augmentation
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.losses.vaegan import VAEGANLoss
from condgen.nn import cuda_graphs as graphs
from condgen.nn.discriminators import ConvDiscriminator
from condgen.recipes import RECIPES, bloodmnist_reference
from condgen.sampling.grids import to_uint8
from condgen.training.callbacks import LambdaCallback
from condgen.training.fit import fit
from condgen.training.optimizers import WarmupDecay

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")

FAMILIES = {
    "cvae": partial(condgen.conditional_vae, latent=4, width=8),
    "latent map": partial(condgen.conditional_vae, latent=(2, 4, 4), width=8),
    "cgan": partial(condgen.conditional_gan, latent=4, width=8),
    "cflow": partial(condgen.conditional_flow, widths=(8, 8), depth=1, steps=2, guidance=0.5),
    "diffusion": partial(condgen.conditional_flow, widths=(8, 8), depth=1, steps=2, path="cosine"),
}


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(400, size=16)


@pytest.fixture(params=FAMILIES)
def build(request, cells):
    def made(dtype=torch.float32, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return FAMILIES[request.param](cells.image_shape, cells.num_classes, **options).to(dtype)

    return made


train = partial(fit, progress=False, batch_size=32, schedule=WarmupDecay(), clip=1.0, ema=0.9)
TURNS = Augmentation(flips=True, quarter_turns=True)


class TestTraining:
    def test_it_is_the_same_as_on_the_cpu(self, build, cells):
        """Two routes to one number, in double precision: order, noise, augmentation and arithmetic."""
        rows = []
        for accelerator in ("cpu", "cuda"):
            history = train(build(torch.float64), cells, epochs=3, augment=TURNS, accelerator=accelerator)
            rows.append([{k: v for k, v in row.items() if "second" not in k} for row in history.rows])
        for ours, theirs in zip(*rows, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)

    def test_the_gpu_is_taken_and_the_model_comes_home(self, build, cells, tmp_path):
        model = build()
        train(model, cells, epochs=1, out=tmp_path)
        assert model.device.type == "cpu"
        assert "NVIDIA" in json.loads((tmp_path / "run.json").read_text())["device"]
        assert torch.equal(condgen.load(tmp_path / "last").sample([0, 1]), model.sample([0, 1]))

    def test_a_model_that_is_there_stays_there(self, build, cells, tmp_path):
        model = build().cuda()
        train(model, cells, epochs=1, out=tmp_path)
        assert model.device.type == "cuda"
        assert model.sample([0, 1]).is_cuda

    @pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
    def test_in_half_precision(self, build, cells, precision):
        history = train(build(), cells, epochs=3, precision=precision)
        assert all(np.isfinite(history["train_loss"]))

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
    def test_nothing_is_read_back_within_an_epoch(self, build, cells):
        """A value read back makes the CPU wait for the GPU: torch can raise whenever that happens."""
        last = -(-len(cells.train) // 32) - 1
        steps = []

        def watch(state):
            steps.append(state.step - 1)
            torch.cuda.set_sync_debug_mode("error" if state.step <= last and state.epoch else "default")

        try:
            train(build(), cells, epochs=2, callbacks=[LambdaCallback(on_step=watch)], augment=TURNS)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert steps == 2 * list(range(last + 1))

    def test_steps_are_recorded(self, build, cells, monkeypatch, recwarn):
        recorded, record = [], graphs.record
        monkeypatch.setattr(graphs, "record", lambda *given: recorded.append(given) or record(*given))
        rows = []
        for replayed in (True, False):
            history = train(build(torch.float64), cells, epochs=3, augment=TURNS, cuda_graphs=replayed)
            rows.append([{k: v for k, v in row.items() if "second" not in k} for row in history.rows])
        assert len(recorded) == 1
        assert not [w for w in recwarn if "CUDA graphs" in str(w.message)]
        for ours, theirs in zip(*rows, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)

    def test_dropout_has_the_same_numbers(self, cells):
        rows = []
        for replayed in (True, False):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=4, width=8).double()
            model.encoder.blocks[0].activation = torch.nn.Sequential(torch.nn.LeakyReLU(), torch.nn.Dropout(0.5))
            rows.append(train(model, cells, epochs=3, cuda_graphs=replayed)["train_loss"])
        assert rows[0] == pytest.approx(rows[1], rel=1e-6)

    def test_a_stopped_run_goes_on(self, build, cells, tmp_path):
        """Within rounding: sums on a GPU need not come in the same order each time."""
        whole, parts = build(torch.float64), build(torch.float64)

        def stop(state):
            if (state.epoch, state.step) == (1, 4):
                raise KeyboardInterrupt

        train(whole, cells, epochs=3)
        with pytest.raises(KeyboardInterrupt):
            train(parts, cells, epochs=3, out=tmp_path, callbacks=[LambdaCallback(on_step=stop)], save_every=0.0)
        train(parts, cells, epochs=3, out=tmp_path, resume=True)
        for name, weight in whole.state_dict().items():
            assert torch.allclose(weight, parts.state_dict()[name], rtol=1e-5, atol=1e-7), name

    def test_with_a_discriminator(self, cells):
        model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=(2, 4, 4), width=8)
        critic = ConvDiscriminator(cells.image_shape, cells.num_classes, widths=(8, 16))
        history = train(model, cells, epochs=3, objective=VAEGANLoss(critic, start=0.3), precision="bf16-mixed")
        assert np.isfinite(history["train_discriminator_loss"][-1])

    @pytest.mark.parametrize("prior", [GaussianMixture, FlowMatching])
    def test_priors(self, cells, prior):
        model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=(2, 4, 4), width=8).cuda()
        mixture = GaussianMixture((2, 4, 4), cells.num_classes, components=2)
        own = mixture if prior is GaussianMixture else FlowMatching((2, 4, 4), cells.num_classes, mixture)
        condgen.fit_prior(model, cells, own, epochs=2, symmetries=True, seed=0)
        assert model.sampler.draw is not None
        assert model.sample([0, 1, 2]).is_cuda


class TestSamples:
    def test_a_sample_is_its_number_and_seed(self, build):
        model = build().cuda()
        labels = torch.arange(150) % 8
        whole = model.sample(labels, seed=5)
        for first, end in ((0, 1), (3, 7), (60, 70), (149, 150)):
            assert torch.equal(model.sample(labels[first:end], seed=5, start=first), whole[first:end])

    def test_many_at_once_are_the_same(self, build, recwarn):
        """From sixteen blocks on, drawing one is recorded and replayed."""
        model, labels = build().cuda(), torch.arange(20 * 64) % 8
        whole = model.sample(labels, seed=5)
        assert torch.equal(model.sample(labels[1000:1100], seed=5, start=1000), whole[1000:1100])
        assert not [w for w in recwarn if "CUDA graphs" in str(w.message)]

    def test_they_are_those_of_the_cpu(self, build):
        """Within a grey level or two: convolutions there are in TF32 unless that is turned off."""
        model, labels = build(), torch.arange(24) % 8
        ours = to_uint8(model.sample(labels)).int()
        theirs = to_uint8(model.cuda().sample(labels)).cpu().int()
        assert int((ours - theirs).abs().max()) <= 2
        with torch.backends.cudnn.flags(allow_tf32=False):
            exact = model.double().sample(labels).cpu()
        assert torch.allclose(exact, model.cpu().sample(labels), atol=1e-9)

    def test_of_the_reference(self):
        model = bloodmnist_reference()
        ours = model.sample(range(8))
        assert torch.allclose(model.cuda().sample(range(8)).cpu(), ours, atol=5e-3)


def test_the_commands(tmp_path):
    run, data = str(tmp_path / "run"), ["--data", "smears", "--images", "600", "--size", "16"]
    gpu = ["--accelerator", "cuda"]
    assert main(["train", *data, "--recipe", "smears_demo", "--epochs", "2", "--out", run, *gpu]) == 0
    assert main(["sample", run, "--per-class", "3", "--out", str(tmp_path / "cells.npz"), *gpu]) == 0
    assert main(["reconstruct", run, "--count", "3", *gpu]) == 0
    assert main(["evaluate", run, "--usefulness", "none", *gpu]) == 0
    assert main(["balance", run, "--out", str(tmp_path / "balanced"), *gpu]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())


@pytest.mark.parametrize("recipe", ["latent_map", "fast", "sharp", "gan", "flow", "diffusion"])
def test_the_recipes(recipe, cells):
    short = {"sampler_epochs": 1} if recipe == "sharp" else {}
    model, _ = RECIPES[recipe].fit(cells, epochs=1, progress=False, **short)
    assert bool(model.sample(range(8)).isfinite().all())


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("mode", ["eager", "compiled", "graphs"])
def test_the_benchmark(mode):
    (result,) = benchmark(grid(["conv"], [8], precisions=["bfloat16"], modes=[mode]), seconds=0.05, device="cuda")
    assert not result.reason
    assert result.training > 0
    assert result.memory > 0
