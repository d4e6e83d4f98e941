"""Which precision is chosen where nobody says, and what is said and kept of it."""

import json
import warnings

import pytest
import torch
from torch import nn

import condgen
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.nn import precision
from condgen.nn.precision import choose_precision, heaviest_layer, multiply_adds, slowdown
from condgen.recipes import latent_map
from condgen.training.callbacks import LambdaCallback

CPU = torch.device("cpu")


@pytest.fixture
def network():
    """A convolution of 4 million multiply-adds per image."""
    return nn.Conv2d(48, 48, 3, padding=1)


@pytest.fixture
def measured(monkeypatch):
    """Sets what a measurement of this machine would say: native support, and times float32's."""

    def as_if(native, ratio=None):
        def probe(*_):
            assert ratio is not None, "nothing should be measured"
            return ratio

        monkeypatch.setattr(precision, "native_bfloat16", lambda: native)
        monkeypatch.setattr(precision, "slowdown", probe)

    return as_if


def choose(asked, network, **options):
    return choose_precision(asked, CPU, lambda: network(torch.zeros(1, 48, 14, 14)), network, **options)


class TestTheChoice:
    @pytest.mark.parametrize(
        ("native", "ratio", "name", "why"),
        [
            (False, None, "32-true", "does not compute in bfloat16 natively"),
            (True, 0.5, "bf16-mixed", "2.0 times faster than float32"),
            (True, 1.02, "32-true", "not faster"),
            (True, 7.3, "32-true", "not faster"),  # native by its name, emulated in fact
        ],
    )
    def test_on_a_cpu(self, network, measured, native, ratio, name, why):
        measured(native, ratio)
        chosen = choose("auto", network)
        assert chosen.name == name
        assert why in chosen.reason

    def test_small_networks_are_not_measured(self, measured):
        measured(native=True)
        small = nn.Conv2d(3, 16, 3)
        chosen = choose_precision("auto", CPU, lambda: small(torch.zeros(1, 3, 28, 28)), small)
        assert (chosen.name, chosen.reason) == ("32-true", "the network is too small to gain from bfloat16")

    def test_networks_in_double_precision_stay_so(self, measured):
        measured(native=True)
        double = nn.Conv2d(48, 48, 3).double()
        chosen = choose_precision("auto", CPU, lambda: double(torch.zeros(1, 48, 14, 14).double()), double)
        assert chosen.name == "32-true"

    def test_several_processes_do_not_measure(self, network, measured):
        """Each would decide for itself."""
        measured(native=True)
        assert choose("auto", network, probe=False).name == "32-true"

    @pytest.mark.parametrize(("native", "name"), [(True, "bf16-mixed"), (False, "32-true")])
    def test_on_a_gpu(self, network, monkeypatch, native, name):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
        assert choose_precision("auto", torch.device("cuda"), lambda: None, network).name == name

    def test_what_is_asked_for_is_obeyed_with_the_factor(self, network, measured):
        measured(native=False, ratio=7.34)
        with pytest.warns(UserWarning, match=r"7\.3 times slower than float32 on this CPU"):
            assert choose("bf16-mixed", network).name == "bf16-mixed"

    def test_nothing_is_said_where_it_is_faster(self, network, measured):
        measured(native=True, ratio=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert choose("bf16-mixed", network).name == "bf16-mixed"
            assert choose("32-true", network).name == "32-true"

    def test_an_unknown_one(self, network):
        with pytest.raises(ValueError, match="Expected a precision of auto, 32-true, bf16-mixed, 16-mixed; got 'half'"):
            choose("half", network)


class TestTheMeasurement:
    def test_it_is_quick_and_done_once(self, monkeypatch):
        slowdown.cache_clear()
        first = slowdown(8, 8, 7, 7)
        monkeypatch.setattr(precision.time, "thread_time", lambda: pytest.fail("measured again"))
        assert slowdown(8, 8, 7, 7) == first > 0

    def test_it_moves_no_generator_and_no_setting(self):
        slowdown.cache_clear()
        before, threads = torch.get_rng_state(), torch.get_num_threads()
        slowdown(8, 8, 7, 7)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == threads

    def test_the_heaviest_layer_is_found(self):
        layers = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, padding=1), nn.ConvTranspose2d(64, 32, 3))
        layer, shape = heaviest_layer(lambda: layers(torch.zeros(1, 3, 20, 20)), layers)
        assert layer is layers[1]
        assert shape == (1, 64, 20, 20)

    def test_multiply_adds_by_hand(self):
        layers = nn.ModuleList([nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 5, 2, stride=2), nn.Linear(7, 11)])
        conv, deconv, linear = layers

        def run():
            deconv(conv(torch.zeros(1, 2, 6, 8)))
            linear(torch.zeros(1, 7))

        assert multiply_adds(run, layers) == 2 * 3 * 9 * 4 * 6 + 3 * 5 * 4 * 4 * 6 + 7 * 11


@pytest.fixture
def cells():
    return condgen.load_smears(40, size=16)


class TestTraining:
    def quiet(self, model, cells, **options):
        return condgen.fit(model, cells, epochs=1, progress=False, accelerator="cpu", **options)

    def test_the_choice_is_made_and_kept(self, cells, measured, tmp_path, capsys):
        measured(native=True, ratio=0.5)
        model = latent_map(cells.image_shape, cells.num_classes, width=64)
        condgen.fit(model, cells, epochs=1, accelerator="cpu", out=tmp_path)
        run = json.loads((tmp_path / "run.json").read_text())
        assert run["precision"] == "bf16-mixed"
        assert run["precision_reason"] == "bfloat16 is 2.0 times faster than float32 here"
        assert "precision bf16-mixed: bfloat16 is 2.0 times faster than float32 here" in capsys.readouterr().err

    def test_the_reference_stays_in_float32(self, measured):
        """Its layers are so small that bfloat16 gains nothing, and its figures are those of float32."""
        measured(native=True)
        model = condgen.recipes.bloodmnist_reference()
        condgen.fit(model, condgen.load_smears(20), epochs=1, progress=False, accelerator="cpu")

    def test_a_resumed_run_keeps_what_it_began_with(self, cells, measured, tmp_path):
        measured(native=True, ratio=0.5)

        def stop(*_):
            raise KeyboardInterrupt

        model = latent_map(cells.image_shape, cells.num_classes, width=64)
        with pytest.raises(KeyboardInterrupt):
            self.quiet(model, cells, out=tmp_path, callbacks=[LambdaCallback(on_step=stop)])
        measured(native=False, ratio=0.5)  # now on a machine of another kind
        self.quiet(latent_map(cells.image_shape, cells.num_classes, width=64), cells, out=tmp_path, resume=True)
        assert json.loads((tmp_path / "run.json").read_text())["precision"] == "bf16-mixed"

    @pytest.mark.slow
    def test_a_prior_chooses_too(self, cells, measured):
        measured(native=True, ratio=0.5)
        seen = []

        class Looking(FlowMatching):
            def matching(self, z, c, component, noise):
                seen.append(torch.is_autocast_enabled("cpu"))
                return super().matching(z, c, component, noise)

        model = latent_map(cells.image_shape, cells.num_classes, width=8)
        prior = Looking(model.prior.noise_shape, 8)
        condgen.fit_prior(model, cells, prior, epochs=1, progress=False, accelerator="cpu")
        assert not seen[0]  # what is looked at first
        assert seen[-1]
