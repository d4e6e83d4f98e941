"""How images are drawn, as options of the commands that draw: they change the model of this call alone."""

import numpy as np
import pytest
import torch
from torch import nn

import condgen
from condgen.cli import main
from condgen.recipes import latent_map

SAME = ["--accelerator", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawing")
    cells = condgen.load_smears(60, size=16)
    cells.save(folder / "cells.npz")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = latent_map(cells.image_shape, 8, width=4)
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.2)
    model.class_names = cells.class_names
    condgen.save(model, folder / "run")
    condgen.save(condgen.conditional_gan(cells.image_shape, 8, width=4), folder / "gan")
    return folder


def drawn(run, command, *options):
    out = run / f"{command}_{len(list(run.iterdir()))}.npz"
    assert main([command, str(run / "run"), *options, *SAME, "--out", str(out)]) == 0
    with np.load(out) as found:
        return found["images" if "images" in found else "train_images"].astype(float)


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("sample", ["--per-class", "2"]),
        ("vary", ["--images", "cells.npz", "--per-image", "1"]),
        ("balance", ["--data", "cells.npz", "--method", "sample"]),
    ],
)
def test_labels_are_mixed_where_it_is_asked_for(run, monkeypatch, command, more):
    monkeypatch.chdir(run)
    own, mixed = drawn(run, command, *more), drawn(run, command, *more, "--label-mixing", "1")
    assert own.shape == mixed.shape
    assert not np.array_equal(own, mixed)
    assert np.array_equal(own, drawn(run, command, *more, "--label-mixing", "0"))
    assert condgen.load(run / "run").label_mixing == 0


@pytest.mark.parametrize("command", ["sample", "balance", "vary"])
def test_models_that_have_no_such_setting(run, monkeypatch, capsys, command):
    monkeypatch.chdir(run)
    data = {"balance": ["--data", "cells.npz"], "vary": ["--images", "cells.npz"]}.get(command, [])
    for option, said in (("--label-mixing", "decodes latents under a label"), ("--steps", "samples by flow matching")):
        assert main([command, "gan", *data, option, "1", *SAME, "--out", "none.npz"]) == 1
        assert f"Expected a model that {said} for {option}; gan does not." in capsys.readouterr().err


def test_out_of_range(run, monkeypatch, capsys):
    monkeypatch.chdir(run)
    assert main(["sample", "run", "--label-mixing", "1.5", "--out", "none.npz"]) == 1
    assert "label_mixing" in capsys.readouterr().err.replace("-", "_")
