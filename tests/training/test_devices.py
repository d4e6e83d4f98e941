"""Several processes: the same curve as one, each image once an epoch, one folder."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from condgen.data.batches import batches

SCRIPT = """
import atexit, json, os, sys
from functools import partial
import torch
last = lambda: os.write(1, f"left behind: {torch.distributed.is_initialized()} ".encode())
atexit.register(last)  # what comes first is done last
import condgen
from condgen.losses.vaegan import VAEGANLoss
from condgen.nn.discriminators import ConvDiscriminator
from condgen.losses.elbo import ELBO
from condgen.training.optimizers import adam

torch.set_num_threads(1)
devices, out = int(sys.argv[1]), sys.argv[2]
cells = condgen.load_smears(200, size=16).train
images, held_out = cells.subset(range(97)), cells.subset(range(97, 130))  # the last batch is of one image
for kind in ("accumulated", "adversarial"):
    torch.manual_seed(0)
    model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=16).double()
    objective = ELBO()
    if kind == "adversarial":
        objective = VAEGANLoss(ConvDiscriminator(images.image_shape, 8).double(), weight=0.1, start=0.0)
    history = condgen.fit(
        model, images, validation=held_out, epochs=8, batch_size=16, out=f"{out}/{kind}", objective=objective,
        optimizer=partial(adam, lr=1e-3), accelerator="cpu", devices=devices,
        accumulate=2 if kind == "accumulated" else 1, progress=False,
    )
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        rows = [{k: v for k, v in row.items() if "second" not in k} for row in history.rows]
        json.dump(rows, open(f"{out}/{kind}.json", "w"))
"""


def curves(devices, folder):
    """Rows of the histories, by kind, trained by so many processes."""
    out = folder / str(devices)
    source = str(Path(importlib.util.find_spec("condgen").origin).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices)] if devices > 1 else []
    command = [sys.executable, *launcher, str(script), str(devices), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("left behind: False") == devices  # or gloo's threads may abort a process that ends
    return {kind: json.loads((out / f"{kind}.json").read_text()) for kind in ("accumulated", "adversarial")}


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(tmp_path):
    """56 steps in float64."""
    one, two = (curves(devices, tmp_path) for devices in (1, 2))
    for kind, rows in one.items():
        assert len(rows) == len(two[kind]) == 8
        for row, other in zip(rows, two[kind], strict=True):
            assert row.keys() == other.keys()
            for name, value in row.items():
                assert other[name] == pytest.approx(value, rel=1e-6, abs=1e-6), (kind, name)
        assert rows[-1]["train_loss"] < rows[0]["train_loss"]
        assert json.loads((tmp_path / "2" / kind / "run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_each_image_is_seen_once_an_epoch(devices):
    images, labels = torch.zeros(103, 1, 8, 8, dtype=torch.uint8), torch.zeros(103)
    kept = {"epoch": 4, "seed": 1}
    parts = [list(batches(images, labels, 16, part=(k, devices), **kept)) for k in range(devices)]
    whole = list(batches(images, labels, 16, **kept))
    for step, batch in enumerate(whole):
        seen = torch.cat([part[step].index for k, part in enumerate(parts) if k < len(batch.index)])
        assert seen.sort().values.tolist() == batch.index.sort().values.tolist()
