"""
Take a model elsewhere
======================

A trained model as a graph that runs without condgen, and in the layout of the Hugging Face hub.
Needs ``pip install "condgen[onnx,hub]" onnxruntime``.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import condgen
from condgen.apps.export import export
from condgen.apps.hub import Pretrained
from condgen.io.pictures import class_grid

here = Path(tempfile.mkdtemp())
model = condgen.load("bloodmnist")  # or a run of yours

# %%
# Noise and labels in, images out: ``draw.onnx``, and beside it what it takes. ``encode.onnx`` goes the other way.
export(model, here / "graphs", to="onnx")
about = json.loads((here / "graphs" / "export.json").read_text())
print(json.dumps(about["graphs"], indent=1))

# %%
# From here on no condgen is needed: ONNX Runtime and numpy draw eight neutrophils. This model takes two kinds of noise,
# that of the latents and that of the images' grain.
draw = onnxruntime.InferenceSession(here / "graphs" / about["graphs"]["draw"]["file"])
rng, inputs = np.random.default_rng(0), about["graphs"]["draw"]["inputs"]
given = {name: rng.standard_normal((8, *own["shape"][1:]), dtype=np.float32) for name, own in inputs.items()}
given["labels"] = np.full(8, about["class_names"].index("neutrophil"), np.int64)
(images,) = draw.run(None, given)
print(images.shape, images.min(), images.max())

# %%
# They are condgen's images of the same noise.
with torch.no_grad():
    noise = {"z": torch.as_tensor(given["noise"]), "grain": torch.as_tensor(given["grain"])}
    ours = model.eval().draw(torch.as_tensor(given["labels"]), noise).numpy()
print("the most they differ by:", abs(images - ours).max())
assert abs(images - ours).max() < 1e-3

# %%
# The hub's layout: weights, a description, and a card that says what was and what was not measured.
Pretrained(model).save_pretrained(here / "hub")
again = Pretrained.from_pretrained(here / "hub").model
assert torch.equal(again.sample([6]), model.sample([6]))
print((here / "hub" / "README.md").read_text()[:600])
figure = class_grid(torch.as_tensor(images)[None], ["neutrophil"])
