"""Export: graphs that give condgen's images without condgen, for batches of any size."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import condgen
from condgen.apps.export import graphs
from condgen.cli import main
from condgen.distributions.priors.standard import Levels, StandardNormal

SCRIPT = """
import json, sys
import numpy as np
import torch
import condgen
from condgen.nn.conditioners import MultiLabel
from condgen.apps.export import export
from condgen.training.fit_prior import fit_prior
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.nn.velocities import ResNetVelocity

torch.manual_seed(0)
torch.set_num_threads(1)
kind, to, folder = sys.argv[1:]
cells = condgen.load_smears(200, size=16)
model = condgen.conditional_vae(cells.image_shape, 8, latent=(2, 4, 4) if kind != "flat" else 4, width=8)
if kind == "radius":
    from condgen.nn.conditioners import Continuous

    model = condgen.conditional_vae((3, 16, 16), 0, latent=4, width=8, conditioner=Continuous([0.5], [0.3]))
if kind == "gan":
    model = condgen.conditional_gan(cells.image_shape, 8, latent=4, width=8)
if kind == "pixels":
    model = condgen.conditional_flow(cells.image_shape, 8, widths=(8, 8), steps=2, path="cosine")
model.class_names = cells.class_names
if kind == "mixture":
    fit_prior(model, cells, GaussianMixture((2, 4, 4), 8, 2), progress=False)
if kind == "flow":
    velocity = ResNetVelocity((2, 4, 4), 8, components=16, width=16, depth=1)
    prior = FlowMatching((2, 4, 4), 8, GaussianMixture((2, 4, 4), 8, 2), velocity, steps=1, guidance=0.5)
    fit_prior(model, cells, prior, epochs=1, progress=False)
if kind == "grain":
    condgen.fit_grain(model, cells, progress=False)
    assert float(model.grain.kernel.abs().max()) > 0.01
model.eval()
export(model, folder, to)
worst = {}
for n in (1, 2, 7):
    noise = torch.randn(n, *model.sampling_noise_shapes["z"])
    labels = torch.rand(n) if kind == "radius" else torch.arange(n) % 8
    images = torch.rand(n, 3, 16, 16)
    grain = {"grain": torch.randn(n, 3, 16, 16)} if kind == "grain" else {}
    with torch.no_grad():
        ours = {"draw": [model.draw(labels, {"z": noise, **grain})]}
        if hasattr(model, "posterior"):
            q = model.posterior(images, labels)
            ours["encode"] = [q.mean, q.stddev]
    asked = {"draw": {"noise": noise, "labels": labels, **grain}, "encode": {"images": images, "labels": labels}}
    for name in ours:
        inputs = asked[name]
        if to == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(f"{folder}/{name}.onnx")
            theirs = session.run(None, {key: value.numpy() for key, value in inputs.items()})
        else:
            found = torch.export.load(f"{folder}/{name}.pt2").module()(**inputs)
            theirs = found if isinstance(found, tuple) else [found]
        for one, other in zip(ours[name], theirs, strict=True):
            assert one.shape == tuple(other.shape), (name, one.shape, other.shape)
            worst[name] = max(worst.get(name, 0), float((one - torch.as_tensor(other)).abs().max()))
if to == "onnx" and kind not in ("radius", "pixels", "grain"):
    session, noise = onnxruntime.InferenceSession(f"{folder}/draw.onnx"), noise.numpy()
    drawn = [session.run(None, {"noise": noise, "labels": np.full(7, label)})[0] for label in (99, 7, -3, 0)]
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[2], drawn[3])
print(json.dumps(worst))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "to"),
    [
        *(("mixture", "torch-export"), ("flow", "onnx"), ("gan", "onnx"), ("pixels", "onnx"), ("radius", "onnx")),
        *(("grain", "torch-export"), ("grain", "onnx")),
    ],
)
def test_graphs_give_the_same_images(kind, to, tmp_path):
    """In a process of its own: a graph cannot be traced through the type checks that tests run under."""
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    source = str(Path(importlib.util.find_spec("condgen").origin).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", SCRIPT, kind, to, str(tmp_path / "graphs")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    worst = json.loads(done.stdout.strip().splitlines()[-1])
    assert max(worst.values()) < 1e-5, worst
    card = json.loads((tmp_path / "graphs" / "export.json").read_text())
    expected = {"dtype": "float32" if kind == "radius" else "int64", "shape": ["batch"]}
    assert card["graphs"]["draw"]["inputs"]["labels"] == expected
    assert len(card["class_names"]) == 8


def test_what_cannot_be_exported():
    model = condgen.conditional_vae((1, 8, 8), 2, latent=4)
    model.sampler = Levels([StandardNormal(4), StandardNormal(2)])
    with pytest.raises(ValueError, match="one level of latents"):
        graphs(model)


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = condgen.conditional_vae((1, 8, 8), 2, latent=4)
    condgen.save(model, tmp_path / "run")
    assert main(["export", str(tmp_path / "run")]) == 1
    assert "pip install onnx onnxscript" in capsys.readouterr().err
    assert not (tmp_path / "run" / "export").exists()
