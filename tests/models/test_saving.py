"""Models on disk: what was saved comes back bit for bit, and nothing a file holds is ever executed."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import condgen
import condgen.cli
import condgen.models.saving
from condgen.distributions import likelihoods, priors, reparameterizers
from condgen.io import places
from condgen.io.atomic import replacing, write_atomically
from condgen.models.checks import check_depths
from condgen.models.saving import build, describe, load, save
from condgen.nn import conditioners
from condgen.nn.encoders import ConvEncoder
from condgen.nn.layers import ChannelNorm, Concatenate, FiLM

SHAPE, LATENT = (1, 8, 8), 4
EXECUTED = []


def small(image_shape=SHAPE, num_classes=3, **options):
    return condgen.conditional_vae(image_shape, num_classes, **{"latent": LATENT, "width": 4, **options})


def plain_encoder(dim):
    return nn.Sequential(nn.Conv2d(1 + dim, 2, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(2 * 3 * 3, 2 * LATENT))


def plain_decoder(dim):
    return nn.Sequential(nn.Linear(LATENT + dim, 64), nn.Unflatten(1, (1, 8, 8)))


def assembled(**parts):
    """A model from parts, any of which can be another."""
    standard = {
        "conditioner": conditioners.OneHot(3),
        "encoder": Concatenate(plain_encoder(3)),
        "reparameterizer": reparameterizers.Gaussian(),
        "prior": priors.StandardNormal(LATENT),
        "decoder": Concatenate(plain_decoder(3)),
        "likelihood": likelihoods.Bernoulli(),
        "image_shape": SHAPE,
    }
    return condgen.ConditionalVAE(**{**standard, **parts})


def observed_gaussian():
    """A likelihood whose running statistics are not those it was built with."""
    likelihood = likelihoods.Gaussian("optimal")
    likelihood.observe(torch.zeros(2, 1, 8, 8), torch.rand(2, 1, 8, 8))
    return likelihood


CLASSES, ROWS = [0, 2, 1], [[1, 0, 1], [0, 0, 0], [1, 1, 1]]
ASSEMBLIES = {
    "one-hot": (small, CLASSES),
    "embedding": (lambda: small(conditioner=conditioners.Embedding(3, 5)), CLASSES),
    "multi-label": (lambda: small(conditioner=conditioners.MultiLabel(3)), ROWS),
    "continuous": (lambda: small(conditioner=conditioners.Continuous([1.0, 2.0], [0.5, 3.0])), [[1.0, 2.0]] * 3),
    "joint": (
        lambda: small(conditioner=conditioners.Joint([conditioners.OneHot(3), conditioners.Continuous([10.0], [2.0])])),
        [[0.0, 9.0], [2.0, 11.0], [1.0, 10.0]],
    ),
    "unconditional": (lambda: small(num_classes=0), CLASSES),
    "label dropout": (lambda: small(conditioner=conditioners.LabelDropout(conditioners.OneHot(3), 0.3)), [0, -1, 2]),
    "output labels": (lambda: small(output_labels=True), CLASSES),
    "label prior": (lambda: small(prior=priors.LabelNormal(LATENT, 3)), CLASSES),
    "FiLM and ChannelNorm": (lambda: small(norm=ChannelNorm, modulation=FiLM), CLASSES),
    "continuous Bernoulli": (lambda: small(likelihood=likelihoods.ContinuousBernoulli()), CLASSES),
    "discretized logistic": (lambda: small(likelihood=likelihoods.DiscretizedLogistic()), CLASSES),
    "Gaussian, fixed": (lambda: small(likelihood=likelihoods.Gaussian(0.1)), CLASSES),
    "Gaussian, shared": (lambda: small(likelihood=likelihoods.Gaussian("shared")), CLASSES),
    "Gaussian, pixel": (lambda: small(likelihood=likelihoods.Gaussian("pixel")), CLASSES),
    "Gaussian, optimal": (lambda: small(likelihood=observed_gaussian()), CLASSES),
    "colour, not square": (lambda: small((3, 9, 13)), CLASSES),
    "float64": (lambda: small().double(), CLASSES),
    "plain networks": (assembled, CLASSES),
}


@pytest.fixture
def folder(tmp_path):
    """A saved model."""
    return save(small(), tmp_path / "model")


def randomised(model):
    """Weights that no constructor could have made."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def images_of(model):
    return torch.rand(3, *model.image_shape, generator=torch.Generator().manual_seed(2))


class TestRoundTrip:
    @pytest.mark.parametrize("name", ASSEMBLIES)
    def test_weights_samples_and_densities_are_bit_equal(self, name, tmp_path):
        make, y = ASSEMBLIES[name]
        model = randomised(make())
        again = load(save(model, tmp_path))
        ours, theirs = model.state_dict(), again.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in ours)
        assert torch.equal(model.sample(y), again.sample(y))
        x = images_of(model)
        assert torch.equal(model.log_likelihood(x, y, samples=2), again.log_likelihood(x, y, samples=2))
        assert repr(model) == repr(again)

    def test_in_a_new_process(self, tmp_path):
        """And there, loading brings in nothing beside condgen, torch and what these two import."""
        model = randomised(assembled())
        save(model, tmp_path)
        np.save(tmp_path / "samples.npy", model.sample([0, 1, 2, 0]).numpy())
        script = """if True:
            import sys, numpy as np, torch, condgen.models.saving
            before = set(sys.modules)
            model = condgen.load(sys.argv[1])
            assert np.array_equal(model.sample([0, 1, 2, 0]).numpy(), np.load(sys.argv[1] + "/samples.npy"))
            new = {name.split(".")[0] for name in set(sys.modules) - before}
            assert new <= {"condgen", "einops", "torch"} | set(sys.stdlib_module_names), new
            heavy = {"lightning_fabric", "matplotlib", "medmnist", "torchvision", "jsonargparse", "rich"}
            assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """
        subprocess.run([sys.executable, "-W", "error", "-c", script, str(tmp_path)], check=True, env=environment())

    def test_what_is_shipped_is_loaded_without_the_compiler(self):
        """PyTorch's compiler takes a second to import, and SymPy with it: what is made without memory asks for it."""
        script = """if True:
            import sys, condgen
            from pathlib import Path
            for model in ("bloodmnist", "bloodmnist64"):
                condgen.load(model)
            judges = list(Path(condgen.__file__).parent.glob("models/weights/judges/*.safetensors"))
            assert judges
            for judge in judges:
                condgen.load_classifier(judge)
            assert not {"torch._dynamo", "sympy"} & set(sys.modules)
        """
        subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, env=environment())

    def test_what_else_a_model_knows(self, tmp_path):
        model = small()
        model.class_names = ("lobed", "round", "ηλεκτρόνιο")
        again = load(save(model, tmp_path))
        assert (again.class_names, again.image_shape) == (model.class_names, SHAPE)
        assert torch.equal(again.sample(["round"]), model.sample([1]))

    def test_a_loaded_model_is_ready_for_use_and_for_training(self, folder):
        model = load(folder)
        assert not model.training
        assert model.device == torch.device("cpu")
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert load(str(folder)).device == torch.device("cpu")

    def test_loaded_weights_lie_in_memory_like_any_others(self, folder):
        """Aligned: sums over tensors that begin anywhere else may differ in a bit."""
        assert all(tensor.data_ptr() % 64 == 0 for tensor in load(folder).state_dict().values())

    def test_saving_changes_nothing_about_the_model(self, tmp_path):
        model = small().train()
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save(model, tmp_path)
        assert model.training
        assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())

    def test_saving_again_replaces_the_earlier_model(self, folder):
        other = randomised(small())
        assert torch.equal(load(save(other, folder)).sample([0]), other.sample([0]))
        assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors"]

    def test_numpy_numbers_are_numbers(self, tmp_path, unchecked):
        """Such as classes counted by numpy."""
        model = small((np.int64(1), 8, 8), num_classes=np.int64(3), likelihood=likelihoods.Gaussian(np.float32(0.5)))
        again = load(save(model, tmp_path))
        assert torch.equal(again.sample(CLASSES), model.sample(CLASSES))
        assert again.likelihood.scale == 0.5

    def test_a_list_of_the_user_is_theirs(self, tmp_path):
        channels, strides = [4, 8], [2, 2]
        model = assembled(encoder=ConvEncoder(SHAPE, 3, LATENT, channels=channels, strides=strides))
        channels.append(16)
        load(save(model, tmp_path))
        assert (channels, strides) == ([4, 8, 16], [2, 2])

    def test_weights_tied_between_layers_are_saved(self, tmp_path):
        linear = nn.Linear(8, 8)
        net = nn.Sequential(nn.Linear(LATENT + 3, 8), linear, nn.SiLU(), linear, nn.Linear(8, 64))
        model = assembled(decoder=Concatenate(nn.Sequential(net, nn.Unflatten(1, (1, 8, 8)))))
        assert torch.equal(load(save(model, tmp_path)).sample([0]), model.sample([0]))


@pytest.mark.filterwarnings("ignore:The code of")
class TestOwnParts:
    class Encoder(nn.Module):
        def __init__(self, width=5):
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 2 * LATENT))

        def forward(self, x, c):
            return self.net(x)

    class Unflatten(nn.Module):
        def forward(self, h):
            return h.reshape(-1, 1, 8, 8)

    def test_without_parts_the_message_names_the_place(self, tmp_path):
        save(assembled(encoder=self.Encoder()), tmp_path)
        with pytest.raises(ValueError, match=r"saved with a encoder of your own \(.*Encoder\).*parts=\{'encoder'"):
            load(tmp_path)

    def test_with_parts_the_weights_go_into_them(self, tmp_path):
        model, mine = randomised(assembled(encoder=self.Encoder())), self.Encoder()
        again = load(save(model, tmp_path), parts={"encoder": mine})
        assert again.encoder is mine
        x = images_of(model)
        assert torch.equal(again.reconstruct(x, CLASSES), model.reconstruct(x, CLASSES))

    def test_parts_is_not_changed(self, tmp_path):
        parts = {"encoder": self.Encoder()}
        load(save(assembled(encoder=self.Encoder()), tmp_path), parts=parts)
        assert list(parts) == ["encoder"]

    def test_a_layer_deep_inside_has_a_dotted_place(self, tmp_path):
        net = nn.Sequential(nn.Linear(LATENT + 3, 64), nn.Sequential(self.Unflatten()))
        save(model := assembled(decoder=Concatenate(net)), tmp_path)
        with pytest.raises(ValueError, match=r"'decoder\.net\.1\.0'"):
            load(tmp_path)
        again = load(tmp_path, parts={"decoder.net.1.0": self.Unflatten()})
        assert torch.equal(again.sample([0]), model.sample([0]))

    def test_a_layer_of_torch_that_hides_its_arguments_is_handed_over_too(self, tmp_path):
        class Last(nn.Module):
            def forward(self, h):
                return h[0].unflatten(1, (1, 8, 8))

        make = lambda: nn.Sequential(nn.RNN(LATENT + 3, 64), Last())  # noqa: E731
        model = assembled(decoder=Concatenate(make()))
        rnn, last = make()
        again = load(save(model, tmp_path), parts={"decoder.net.0": rnn, "decoder.net.1": last})
        assert torch.equal(again.sample([0]), model.sample([0]))

    def test_a_part_of_ours_with_a_function_among_its_arguments_is_handed_over_too(self, tmp_path):
        make = lambda: ConvEncoder(SHAPE, 3, LATENT, channels=(4,), strides=(2,), activation=lambda: nn.ELU(0.5))  # noqa: E731
        model = assembled(encoder=make())
        again = load(save(model, tmp_path), parts={"encoder": make()})
        x = images_of(model)
        assert torch.equal(again.encode(x, CLASSES), model.encode(x, CLASSES))

    def test_a_part_is_handed_over_as_a_whole(self, tmp_path, unchecked):
        class Mine(nn.Module):
            dim, columns = 3, 1

        half = Fraction(1, 2)  # which no file describes
        model = assembled(conditioner=conditioners.LabelDropout(Mine(), half), encoder=Concatenate(plain_encoder(4)))
        save(model, tmp_path)
        with pytest.raises(ValueError, match=r"parts=\{'conditioner': LabelDropout"):
            load(tmp_path)
        load(tmp_path, parts={"conditioner": conditioners.LabelDropout(Mine(), half)})

    def test_a_layer_of_torch_with_outdated_arguments_is_handed_over_too(self, tmp_path):
        model = assembled(decoder=Concatenate(nn.Sequential(plain_decoder(3), nn.Hardtanh(-2.0, 2.0))))
        again = load(save(model, tmp_path), parts={"decoder.net.1": nn.Hardtanh(-2.0, 2.0)})
        assert torch.equal(again.sample([0]), model.sample([0]))

    def test_a_part_too_many_is_refused(self, folder):
        with pytest.raises(ValueError, match=r"no part of yours at encoder. Leave it out"):
            load(folder, parts={"encoder": self.Encoder()})

    def test_a_part_that_does_not_fit_is_refused(self, tmp_path):
        save(assembled(encoder=self.Encoder()), tmp_path)
        with pytest.raises(ValueError, match=r"does not fit its description; first differences: .*encoder\.net"):
            load(tmp_path, parts={"encoder": self.Encoder(width=6)})

    def test_a_part_replaced_after_construction_is_saved_as_it_is(self, tmp_path):
        model = assembled()
        model.decoder = Concatenate(nn.Sequential(plain_decoder(3), nn.Conv2d(1, 1, 3, padding=1)))
        again = load(save(model, tmp_path))
        assert isinstance(again.decoder.net[1], nn.Conv2d)
        assert torch.equal(again.sample([0]), model.sample([0]))

    def test_a_setting_changed_after_construction_is_saved_as_it_is(self, tmp_path):
        model = small(likelihood=likelihoods.Gaussian(0.1))
        model.likelihood.scale = 0.3
        assert load(save(model, tmp_path)).likelihood.scale == 0.3

    @pytest.mark.parametrize(
        "replace",
        [
            lambda decoder: setattr(decoder, "last", nn.Conv2d(4, 1, 1)),
            # The same weights, another function.
            lambda decoder: setattr(decoder, "linear", nn.Sequential(decoder.linear, nn.ReLU())),
            lambda decoder: setattr(decoder, "unflatten", nn.Identity()),
            lambda decoder: setattr(decoder, "last", nn.ConvTranspose2d(4, 1, 3, 2, padding=1, output_padding=0)),
        ],
    )
    def test_a_layer_replaced_inside_a_part_is_refused_and_nothing_written(self, replace, folder):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        model = small()
        replace(model.decoder)
        with pytest.raises(ValueError, match=r"Was a layer inside a part replaced\? Wrap your own network"):
            save(model, folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_nothing_is_made_for_a_model_that_is_refused(self, tmp_path):
        model = small()
        model.decoder.last = nn.Conv2d(4, 1, 1)
        with pytest.raises(ValueError, match="layer inside"):
            save(model, tmp_path / "new")
        assert not list(tmp_path.iterdir())

    def test_a_subclass_of_the_model_is_refused(self, tmp_path, unchecked):
        class Mine(condgen.ConditionalVAE):
            pass

        parts = dict(assembled().named_children())
        with pytest.raises(TypeError, match="not a subclass, whose code would not be stored; got Mine"):
            save(Mine(**parts), tmp_path)

    def test_something_else_is_refused(self, tmp_path, unchecked):
        with pytest.raises(TypeError, match=r"Expected a model of condgen.*got Linear"):
            save(nn.Linear(1, 1), tmp_path)


twice = nn.ReLU()
LEAVES = [
    nn.Linear(2, 3),
    nn.Linear(2, 3, bias=False),
    nn.Bilinear(2, 3, 4),
    nn.Conv1d(2, 3, 5),
    nn.Conv2d(2, 4, 3),
    nn.Conv2d(2, 4, (3, 5), stride=(1, 2), padding=(1, 2), bias=False),
    nn.Conv2d(2, 4, 3, padding="same", dilation=2),
    nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect"),
    nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, bias=False),
    nn.BatchNorm2d(4),
    nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=False, track_running_stats=False),
    nn.GroupNorm(2, 4, eps=1e-3),
    nn.GroupNorm(2, 4, affine=False),
    nn.InstanceNorm2d(4, affine=True),
    nn.LayerNorm((4, 8, 8), bias=False),
    nn.LeakyReLU(0.3),
    nn.ELU(0.5),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Hardswish(),
    nn.PReLU(4, init=0.1),
    nn.Softplus(beta=2.0, threshold=10.0),
    nn.Softmax(dim=1),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    nn.Upsample(size=(8, 9)),
    nn.UpsamplingNearest2d(scale_factor=2),
    nn.PixelShuffle(2),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.AvgPool2d(3, stride=2, count_include_pad=False),
    nn.AdaptiveAvgPool2d((None, 4)),
    nn.ZeroPad2d((1, 2, 3, 4)),
    nn.Dropout(0.2),
    nn.Dropout2d(0.3, inplace=True),
    nn.Identity(),
    nn.Flatten(),
    nn.Flatten(2, 3),
    nn.Unflatten(1, (2, 4, 4)),
    nn.Sequential(),
    nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 1))),
    nn.Sequential(OrderedDict(first=nn.Linear(2, 3), then=nn.ReLU())),
    nn.Sequential(nn.Linear(2, 2), twice, nn.Linear(2, 2), twice),
    nn.ModuleList([nn.Linear(2, 3), nn.ModuleList([nn.ReLU()])]),
]


def test_code_that_is_not_stored_is_said(tmp_path):
    with pytest.warns(UserWarning, match=r"The code of encoder is not stored.*parts=\{"):
        save(assembled(encoder=TestOwnParts.Encoder()), tmp_path)


class TestDescribe:
    @pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: " ".join(repr(leaf).split()))
    def test_a_layer_of_torch_is_built_again(self, leaf):
        external = {}
        described = json.loads(json.dumps(describe(leaf, external=external)))
        again = build(described)
        assert not external
        assert repr(again) == repr(leaf)
        assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in leaf.state_dict().items()}

    @pytest.mark.parametrize("value", [None, True, 3, 0.1, float("inf"), "text", (1, 2), ((1, 2), "a")])
    def test_plain_values_come_back(self, value):
        assert build(json.loads(json.dumps(describe(value)))) == value

    @pytest.mark.parametrize("cls", [nn.ReLU, nn.GroupNorm, FiLM, ChannelNorm])
    def test_classes_come_back(self, cls):
        assert build(describe(cls)) is cls

    @pytest.mark.parametrize("value", [{1: 2}, object(), Path, lambda: 0], ids=["dict", "object", "class", "function"])
    def test_anything_else_is_refused(self, value):
        with pytest.raises(TypeError, match=r"neither a part|Expected a part"):
            describe(value)


class Canary(nn.Module):
    """A module that must never be built from a file."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        EXECUTED.append(self)


def read_header(folder):
    """The text that says what the weights are of."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return file.metadata()["condgen"]


def write_header(folder, text):
    """The same weights under another description."""
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", {"condgen": text})


def tampered(folder, change):
    """The folder with its config changed in place."""
    content = json.loads(read_header(folder))
    change(content)
    write_header(folder, json.dumps(content))


NAMES = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "torch.load",
    "torch.hub.Load",
    "torch.nn.modules.module.Module",
    "torch.nn.modules.Linear",
    "torch.nn.functional.relu",
    "torch.nn.Parameter",
    "torch.nn.DataParallel",
    "torch.nn.Nothing",
    "condgen.cli.main",
    "condgen.models.saving.Path",
    "condgen.training.step.ModelAndLoss",
    "condgen.models.saving.nn.Linear",
    "condgen.__main__.Module",
    "condgen.nothing.Module",
    "condgen..os.System",
    "condgen/../os.System",
    "Linear",
    "",
    None,
    3,
    ["torch.nn.Linear"],
    {"module": "torch.nn.Linear"},
]


class TestTampering:
    @pytest.mark.parametrize("name", NAMES, ids=repr)
    @pytest.mark.parametrize("key", ["module", "class"])
    def test_names_of_anything_else_are_refused(self, name, key, folder):
        tampered(folder, lambda config: config["assembly"]["arguments"].update(encoder={key: name}))
        with pytest.raises(ValueError, match=r"Expected the name of a part of condgen or a layer of torch\.nn; got"):
            load(folder)

    def test_a_users_module_is_never_found_by_name(self, folder, monkeypatch):
        monkeypatch.setattr(nn, "Canary", Canary, raising=False)
        monkeypatch.setattr(conditioners, "Canary", Canary, raising=False)
        for name in ("torch.nn.Canary", "condgen.nn.conditioners.Canary", f"{__name__}.Canary"):
            with pytest.raises(ValueError, match="Expected the name of a part"):
                build({"module": name, "arguments": {}})
        assert EXECUTED == []

    def test_names_import_nothing(self, folder):
        before = set(sys.modules)
        for name in ("antigravity.Module", "condgen.__main__.Module", "this.Module"):
            with pytest.raises(ValueError, match="Expected the name"):
                build({"module": name})
        assert set(sys.modules) == before

    @pytest.mark.parametrize(
        "assembly",
        [
            {"module": "torch.nn.Linear", "arguments": {"in_features": 1, "out_features": 1}},
            {"module": "torch.nn.Linear", "arguments": {"wrong": 1}},
            {"module": "torch.nn.Linear", "arguments": {"in_features": -1, "out_features": "x"}},
            {"module": "torch.nn.Linear", "arguments": [1, 2]},
            {"module": "torch.nn.Linear", "children": {}},
            {"module": "torch.nn.Sequential", "children": {"0": 3}},
            {"module": "torch.nn.Sequential", "children": {"a.b": {"module": "torch.nn.ReLU"}}},
            {"module": "torch.nn.Sequential", "children": [1]},
            {"module": "condgen.nn.conditioners.OneHot", "arguments": {"num_classes": 3}},
            {"module": "condgen.nn.conditioners.Joint", "arguments": {"conditioners": [1, 2]}},
            {"module": "condgen.models.cvae.ConditionalVAE", "arguments": {}},
            {"external": ["unhashable"]},
            {"external": ""},
            {},
        ],
        ids=json.dumps,
    )
    def test_assemblies_of_something_else_are_refused(self, assembly, folder):
        tampered(folder, lambda config: config.update(assembly=assembly))
        with pytest.raises(ValueError, match=r"model\.safetensors: |is damaged|Expected|of your own"):
            load(folder)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("assembly", None),
            ("assembly", []),
            ("format", "one"),
            ("format", None),
            ("class_names", None),
            ("class_names", 3),
            ("class_names", [1, 2]),
        ],
    )
    def test_entries_of_another_kind_are_refused(self, key, value, folder):
        tampered(folder, lambda config: config.update({key: value}))
        with pytest.raises(ValueError, match=r"The model in .* is damaged"):
            load(folder)

    def test_a_newer_format_says_so(self, folder):
        tampered(folder, lambda config: config.update(format=99))
        with pytest.raises(ValueError, match=r"format 99, this condgen reads up to 2. Upgrade condgen"):
            load(folder)

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"format": 1}', "\x00", "[" * 100_000])
    def test_a_config_that_is_none_is_refused(self, text, folder):
        write_header(folder, text)
        with pytest.raises(ValueError, match=r"The model in .* is damaged"):
            load(folder)

    @pytest.mark.parametrize("depth", [150, 400, 900])
    def test_deep_nesting_is_refused(self, depth, folder):
        nested = "[" * depth + "]" * depth
        text = read_header(folder).replace('"output_labels": false', f'"output_labels": {nested}')
        write_header(folder, text.replace('"encoder": {', f'"encoder": {nested}, "other": {{', 1))
        with pytest.raises(ValueError, match=r"model\.safetensors|damaged"):
            load(folder)


class TestDamagedWeights:
    @pytest.mark.parametrize("keep", [0, 4, 100, -1])
    def test_truncated(self, keep, folder):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"The model in .* is damaged.*Restore model\.safetensors"):
            load(folder)

    def test_a_flipped_bit_is_noticed(self, folder):
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-10] ^= 1
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights are not those it was written with. Restore"):
            load(folder)

    def test_of_another_model_of_the_same_shape(self, folder, tmp_path):
        text, other = read_header(folder), save(randomised(small()), tmp_path / "other")
        save_file(load_file(other / "model.safetensors"), folder / "model.safetensors", {"condgen": text})
        with pytest.raises(ValueError, match="not those it was written with"):
            load(folder)

    def test_of_another_model(self, folder, tmp_path):
        text, other = read_header(folder), save(small(width=8), tmp_path / "other")
        save_file(load_file(other / "model.safetensors"), folder / "model.safetensors", {"condgen": text})
        with pytest.raises(ValueError, match="does not fit its description; first differences"):
            load(folder)

    def test_of_another_kind_of_number(self, folder):
        text, weights = read_header(folder), load_file(folder / "model.safetensors")
        save_file({k: v.long() for k, v in weights.items()}, folder / "model.safetensors", {"condgen": text})
        with pytest.raises(ValueError, match=r"does not fit its description; first differences: .*I64"):
            load(folder)

    def test_weights_alone(self, folder):
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
        with pytest.raises(ValueError, match="header does not say what it is the weights of"):
            load(folder)

    def test_a_pickle_in_its_place_is_not_opened(self, folder):
        torch.save({"a": Canary}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=r"The model in .* is damaged.*Restore model\.safetensors"):
            load(folder)
        assert EXECUTED == []

    def test_missing(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"No model in .*: expected the file model\.safetensors"):
            load(folder)

    def test_no_model_at_all(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"No model in .*nothing: expected the file model"):
            load(tmp_path / "nothing")

    def test_no_pickle_is_ever_loaded(self, folder, monkeypatch):
        def refuse(*_, **__):
            raise AssertionError("a pickle was opened")

        for module, name in ((torch, "load"), (__import__("pickle"), "load"), (__import__("pickle"), "loads")):
            monkeypatch.setattr(module, name, refuse)
        load(folder)


class TestWholeOrNotThere:
    @pytest.mark.parametrize("failing", [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
    def test_a_failing_write_leaves_the_earlier_files_and_nothing_else(self, failing, folder, monkeypatch):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        def fail(*_):
            raise OSError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(*failing, fail)
            with pytest.raises(OSError, match="No space left"):
                save(randomised(small()), folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        load(folder)

    def test_an_error_while_writing_leaves_nothing(self, tmp_path):
        def half():
            with replacing(tmp_path / "file") as temporary:
                temporary.write_bytes(b"half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            half()
        assert not list(tmp_path.iterdir())

    def test_the_temporary_file_is_beside_the_file_and_hidden(self, tmp_path):
        with replacing(tmp_path / "file") as temporary:
            temporary.write_bytes(b"whole")
            assert temporary.parent == tmp_path
            assert temporary.name.startswith(".")
            assert not (tmp_path / "file").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    @pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX systems")
    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
    def test_files_are_as_public_as_the_user_makes_theirs(self, mask, mode, tmp_path):
        earlier = os.umask(mask)
        try:
            write_atomically(tmp_path / "file", b"content")
        finally:
            os.umask(earlier)
        assert (tmp_path / "file").stat().st_mode & 0o777 == mode

    def test_on_a_file_system_without_nameless_files(self, folder, monkeypatch):
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
        save(small(), folder)
        assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
        load(folder)

    def test_signals_wait_for_the_file(self, tmp_path, monkeypatch):
        """The one that arrives while a file is written finds it whole."""
        flush = os.fsync

        def interrupted(descriptor):
            signal.raise_signal(signal.SIGINT)
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(tmp_path / "file", b"content")
        assert (tmp_path / "file").read_bytes() == b"content"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class TestFormatOne:
    """What earlier versions saved, two files a model, still loads, and is replaced as a whole."""

    @pytest.fixture(params=["format_1_modulated", "format_1_planes"])
    def earlier(self, request, tmp_path):
        return Path(shutil.copytree(Path(__file__).parents[1] / "saved" / request.param, tmp_path / "earlier"))

    def test_it_draws_the_same_images(self, earlier):
        expected = json.loads((earlier / "expected.json").read_text())["sample_means"]
        assert load(earlier).sample([0, 1], seed=3).mean((1, 2, 3)).tolist() == pytest.approx(expected, abs=2e-6)

    def test_saved_again_it_is_one_file(self, earlier):
        model = load(earlier)
        assert not (save(model, earlier) / "config.json").exists()
        assert torch.equal(load(earlier).sample([0, 1]), model.sample([0, 1]))

    def test_its_checksum_counts(self, earlier):
        content = bytearray((earlier / "model.safetensors").read_bytes())
        content[-10] ^= 1
        (earlier / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="not those it was written with"):
            load(earlier)

    def test_a_damaged_description_is_named(self, earlier):
        (earlier / "config.json").write_bytes(b"\xff\xfe{}")
        with pytest.raises(ValueError, match=r"config\.json is damaged"):
            load(earlier)


class TestDescriptionsThatLie:
    """Nothing is allocated, and nothing loads, before a description is known to fit."""

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda parts: parts["prior"]["arguments"].update(latent=10**9), "describes a z of shape"),
            (lambda parts: parts["prior"]["arguments"].update(latent=5), "its parts do not fit together"),
            (lambda parts: parts["conditioner"]["arguments"].update(num_classes=10**9), "describes a condition"),
            (lambda parts: parts["conditioner"]["arguments"].update(num_classes=4), "do not fit together"),
            (lambda parts: parts["conditioner"]["arguments"].update(num_classes=-1), "class"),
            (lambda parts: parts.update(image_shape=[0, 8, 8]), "image_shape"),
            (lambda parts: parts.update(image_shape=[1, 10**6, 10**6]), "describes"),
            (lambda parts: parts.update(image_shape=[1, 9, 8]), "do not fit together"),
        ],
    )
    def test_sizes(self, change, said, folder):
        tampered(folder, lambda config: change(config["assembly"]["arguments"]))
        with pytest.raises(ValueError, match=said):
            load(folder)

    @pytest.mark.parametrize("names", [["a", "b", "a"], ["a", "b"], ["a", "b", "c", "d"]])
    def test_names(self, names, folder):
        tampered(folder, lambda config: config.update(class_names=names))
        with pytest.raises(ValueError, match="a name of its own for each of 3 classes"):
            load(folder)

    def test_a_format_that_is_no_number(self, folder):
        write_header(folder, read_header(folder).replace('"format": 2', '"format": NaN'))
        with pytest.raises(ValueError, match="is damaged"):
            load(folder)


def environment():
    """Of a new process that finds the condgen under test."""
    source = str(Path(importlib.util.find_spec("condgen").origin).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}


class TestHalf:
    def test_half_the_space_and_the_same_images_nearly(self, tmp_path):
        torch.manual_seed(0)
        model = condgen.conditional_vae((3, 16, 16), 4, latent=(2, 4, 4), width=16)
        whole, half = condgen.save(model, tmp_path / "whole"), condgen.save(model, tmp_path / "half", half=True)
        sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, whole)]
        assert sizes[0] < 0.6 * sizes[1]
        again = condgen.load(half)
        assert {p.dtype for p in again.parameters()} == {torch.float32}
        y = [0, 1, 2, 3] * 4
        assert (again.sample(y) - condgen.load(whole).sample(y)).abs().max() < 1.5 / 255
        kept = condgen.load(condgen.save(again, tmp_path / "again", half=True))  # nothing is lost a second time
        assert torch.equal(kept.sample(y), again.sample(y))

    def test_damage_is_noticed(self, tmp_path):
        file = condgen.save(condgen.conditional_vae((1, 8, 8), 2, latent=4), tmp_path, half=True) / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-3] ^= 1
        file.write_bytes(bytes(content))
        with pytest.raises(ValueError, match="is damaged"):
            condgen.load(tmp_path)


class TestShipped:
    def test_a_name_is_a_model_that_comes_with_the_package(self, tmp_path, monkeypatch):
        model = condgen.conditional_vae((1, 8, 8), 2, latent=4)
        condgen.save(model, tmp_path / "weights" / "cells")
        monkeypatch.setattr(places, "SHIPPED", tmp_path / "weights")
        monkeypatch.chdir(tmp_path)
        assert places.shipped() == ["cells"]
        assert torch.equal(condgen.load("cells").sample([0, 1]), model.eval().sample([0, 1]))
        other = condgen.conditional_vae((1, 8, 8), 3, latent=2)
        condgen.save(other, tmp_path / "cells")  # a folder of one's own comes first
        assert condgen.load("cells").conditioner.dim == 3
        with pytest.raises(FileNotFoundError, match="No model in nowhere"):
            condgen.load("nowhere")


class TestTheShippedModels:
    """The models that come with the package."""

    @pytest.mark.parametrize(("name", "side"), [("bloodmnist", 28), ("bloodmnist64", 64)])
    def test_they_draw_what_they_are_asked_for_out_of_the_box(self, name, side):
        assert places.shipped() == ["bloodmnist", "bloodmnist64"]
        model = condgen.load(name)
        assert model.class_names == condgen.load("bloodmnist").class_names
        images = model.sample(["neutrophil", "platelet"], seed=0)
        assert images.shape == (2, 3, side, side)
        neutrophil, platelet = (1 - image.mean(0) for image in images)
        centre = slice(side // 3, side - side // 3)
        assert neutrophil[centre, centre].mean() > neutrophil[: side // 9].mean() + 0.2  # a dark cell on light ground
        assert (neutrophil > 0.5).sum() > 2 * (platelet > 0.5).sum()  # and a large one

    @pytest.mark.parametrize("name", ["bloodmnist", "bloodmnist64"])
    def test_their_files_are_small_and_have_cards(self, name):
        folder = places.SHIPPED / name
        assert (folder / "model.safetensors").stat().st_size < 12e6
        card = (folder / "README.md").read_text(encoding="utf-8")
        for said in ("CC BY 4.0", "Not for clinical use", "Near copies", "ecognised", "seed"):
            assert said in card, said
        assert "FIGURES" not in card

    def test_a_folder_of_the_name_goes_first(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        mine = condgen.conditional_vae((1, 8, 8), num_classes=2, latent=2, width=4)
        condgen.save(mine, "bloodmnist")
        assert condgen.load("bloodmnist").image_shape == (1, 8, 8)
        assert condgen.load(places.SHIPPED / "bloodmnist").image_shape == (3, 28, 28)

    def test_the_command_line_finds_it(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert condgen.cli.main(["sample", "bloodmnist", "--per-class", "2", "--out", "cells.png"]) == 0
        assert (tmp_path / "cells.png").stat().st_size > 5000
        assert "16 images" in capsys.readouterr().out


def test_a_model_by_its_file(tmp_path):
    condgen.save(small(), tmp_path / "run")
    folder, file = condgen.load(tmp_path / "run"), condgen.load(tmp_path / "run" / "model.safetensors")
    assert torch.equal(folder.sample([0, 1]), file.sample([0, 1]))


@pytest.mark.parametrize("changes", [{"depth": 20_000}, {"widths": [8] * 5000}])
def test_what_would_take_minutes_to_build_is_refused_at_once(changes, tmp_path, monkeypatch):
    model = condgen.conditional_flow((1, 8, 8), 2, widths=(8, 8), depth=1)
    model.flow.velocity.arguments |= changes
    with monkeypatch.context() as patch:
        patch.setattr(condgen.models.saving, "check_rebuilt", lambda *_: None)  # a tampered file
        condgen.save(model, tmp_path)
    started = time.process_time()  # whatever else the machine does
    with pytest.raises(ValueError, match="is damaged: it describes"):
        condgen.load(tmp_path)
    assert time.process_time() - started < 1


class TestDepths:
    """A description may repeat a layer as often as there are tensors, and hold lists of a thousand numbers."""

    def file(self, folder, tensors):
        save_file({str(k): torch.zeros(1) for k in range(tensors)}, folder / "weights.safetensors")
        return folder / "weights.safetensors"

    @pytest.mark.parametrize(("tensors", "depth", "numbers"), [(3, 3, 1000), (1001, 2, 1001)])
    def test_what_may_be(self, tensors, depth, numbers, tmp_path):
        check_depths(self.file(tmp_path, tensors), {"part": [{"depth": depth}], "offsets": [0] * numbers})

    @pytest.mark.parametrize(("tensors", "part"), [(3, {"depth": 4}), (3, [0] * 1001), (1001, [[0] * 1002])])
    def test_what_may_not(self, tensors, part, tmp_path):
        with pytest.raises(ValueError, match=f"is damaged: it describes .*, with {tensors} tensors"):
            check_depths(self.file(tmp_path, tensors), {"part": part})
