"""Several processes: the same curve as one, each image once an epoch, one folder."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from condgen.data import batches

SCRIPT = """
import json, sys
from functools import partial
import torch
import condgen
from condgen.adversarial import Adversarial
from condgen.discriminators import ConvDiscriminator
from condgen.elbo import ELBO
from condgen.training import adam

torch.set_num_threads(1)
kind, devices, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
cells = condgen.load_smears(200, size=16).train
images, held_out = cells.subset(range(97)), cells.subset(range(97, 130))  # the last batch is of one image
torch.manual_seed(0)
model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=16).double()
objective, optimizer = ELBO(), partial(adam, lr=1e-3)
if kind == "adversarial":
    objective = Adversarial(ConvDiscriminator(images.image_shape, 8).double(), weight=0.1, start=0.0)
history = condgen.fit(
    model, images, validation=held_out, epochs=8, batch_size=16, out=out, objective=objective, optimizer=optimizer,
    accelerator="cpu",
    devices=devices, accumulate=2 if kind == "accumulated" else 1, progress=False,
)
if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in history.rows]
    json.dump(rows, open(f"{out}.json", "w"))
"""


def curve(kind, devices, folder):
    """Rows of the history, trained by so many processes."""
    out = folder / f"{kind}-{devices}"
    source = str(Path(importlib.util.find_spec("condgen").origin).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)] if devices > 1 else []
    command = [sys.executable, *launcher, str(script), kind, str(devices), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path(f"{out}.json").read_text())


@pytest.mark.parametrize("kind", ["accumulated", "adversarial"])
def test_two_processes_give_the_curve_of_one(kind, tmp_path):
    """56 steps in float64."""
    one, two = (curve(kind, devices, tmp_path) for devices in (1, 2))
    assert len(one) == len(two) == 8
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert other[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    assert one[-1]["train_loss"] < one[0]["train_loss"]
    assert json.loads((tmp_path / f"{kind}-2" / "run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_each_image_is_seen_once_an_epoch(devices):
    images, labels = torch.zeros(103, 1, 8, 8, dtype=torch.uint8), torch.zeros(103)
    kept = {"epoch": 4, "seed": 1}
    parts = [list(batches(images, labels, 16, part=(k, devices), **kept)) for k in range(devices)]
    whole = list(batches(images, labels, 16, **kept))
    for step, batch in enumerate(whole):
        seen = torch.cat([part[step].index for k, part in enumerate(parts) if k < len(batch.index)])
        assert seen.sort().values.tolist() == batch.index.sort().values.tolist()
