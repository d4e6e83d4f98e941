"""The benchmark: counts that can be checked, every variant timed or a reason given, a guard in ratios."""

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import condgen
from condgen import recipes
from condgen.apps import benchmarking
from condgen.apps.benchmarking import Variant, benchmark, build, grid, markdown, multiply_adds
from condgen.cli import main
from condgen.losses.elbo import ELBO
from condgen.random import Use, normals
from condgen.training.optimizers import adam

OPERATIONS, NUMBERS = 340, 9_000_000  # of a step of the trimmed reference on 16 images
TINY = {"widths": [4], "batches": [8], "precisions": ["float32"]}


def test_multiply_adds_by_hand():
    """A convolution of 3x3 from 3 to 4 channels on 4x4 places, two heads, a linear layer, the way back."""
    model = condgen.conditional_vae((3, 8, 8), 2, latent=6, width=4)
    expected = 9 * 3 * 4 * 16 + 2 * 64 * 6 + (6 + 2) * 64 + 9 * 4 * 3 * 16
    assert multiply_adds(model) == expected


def test_trimming_leaves_less_to_do():
    full, less = recipes.bloodmnist_reference(), recipes.bloodmnist_reference()
    condgen.trim(less)
    assert multiply_adds(less) < multiply_adds(full)


@pytest.mark.parametrize("network", ["reference", "reference_untrimmed", "conv", "resnet", "resnet_map"])
def test_every_network_is_timed(network):
    (result,) = benchmark(grid([network], **TINY), seconds=0.01)
    assert result.reason == ""
    assert min(result.training, result.sampling, result.rate, result.of_product, result.of_layers) > 0
    assert result.parameters == sum(p.numel() for p in build(result.variant).parameters())
    assert result.memory is None or result.memory > 0.05


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"layout": "channels_last", "width": 16}, {"size": 64}])
def test_other_settings(changes):
    (result,) = benchmark([Variant("conv", **{"width": 4, "batch": 4, **changes})], seconds=0.01)
    assert result.training or "slower than float32" in result.reason  # bfloat16 where it is emulated


def test_what_cannot_run_says_why():
    (result,) = benchmark([Variant("conv", 4, mode="graphs", batch=4)], seconds=0.01)
    if not torch.cuda.is_available():
        assert result.training is None
        assert "CUDA graphs need a CUDA device" in markdown([result], {}, "")


class Mine(nn.Module):
    def __init__(self, image_shape, condition_dim, latent):
        super().__init__()
        self.linear = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2] + condition_dim, 2 * latent)

    def forward(self, x, c):
        return self.linear(torch.cat([x.flatten(1), c], 1))


def test_an_encoder_of_ones_own(monkeypatch):
    monkeypatch.setattr(benchmarking, "imported", {"mine:Mine": Mine}.get)
    (result,) = benchmark([Variant("own", batch=4)], encoder="mine:Mine", seconds=0.01)
    assert result.training > 0


def test_a_module_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "networks_of_mine.py").write_text("class Thing: pass\n")
    monkeypatch.chdir(tmp_path)
    assert benchmarking.imported("networks_of_mine:Thing").__name__ == "Thing"
    with pytest.raises(ValueError, match=r"Expected a class as my\.module:MyEncoder; got 'nowhere:Thing'"):
        benchmarking.imported("nowhere:Thing")


def test_combinations():
    assert len(grid(["conv", "resnet"], [8, 16], [28, 64])) == 2 * 2 * 2 * 2
    assert len(grid(["reference"], [8, 16], precisions=["float32"])) == 1
    with pytest.raises(ValueError, match=r"Expected networks= among reference, .*; got mlp"):
        grid(["mlp"])


def test_from_the_command_line(tmp_path, capsys):
    options = ["--networks", "conv", "reference", "--widths", "4", "--batches", "8", "--precisions", "float32"]
    assert main(["benchmark", *options, "--seconds", "0.01", "--out", str(tmp_path / "fast")]) == 0
    out, err = capsys.readouterr()
    assert "1/2 conv 4" in err
    assert "variant" in out
    assert "sample" in out
    content = json.loads((tmp_path / "fast.json").read_text())
    assert [result["variant"]["network"] for result in content["results"]] == ["conv", "reference"]
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert (tmp_path / "fast.md").read_text().startswith("# Throughput")
    assert (tmp_path / "fast.png").is_file()


class Counting(TorchDispatchMode):
    """How many operations are dispatched, and how many numbers they write."""

    def __init__(self):
        super().__init__()
        self.operations, self.numbers = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.operations += 1
        self.numbers += sum(t.numel() for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, torch.Tensor))
        return found


def test_a_step_does_no_more_than_it_did():
    """The guard against regressions: counts, not seconds. A larger number wants a reason."""
    model = recipes.bloodmnist_reference()
    condgen.trim(model)
    optimizer, x, y = adam(model.parameters()), torch.rand(16, 3, 28, 28), torch.arange(16) % 8
    noise = normals(model.noise_shapes, 0, torch.arange(16), Use.TRAINING)

    def step():
        optimizer.zero_grad()
        ELBO().loss(model, x, y, noise)["loss"].backward()
        optimizer.step()

    step()
    with Counting() as counted:
        step()
    assert sum(p.numel() for p in model.parameters()) == 923_979
    assert counted.operations <= OPERATIONS
    assert counted.numbers <= NUMBERS
