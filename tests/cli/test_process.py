"""The command as a process: what signals, terminals without UTF-8 and closed pipes leave."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import condgen

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--images", "60", "--size", "16", "--width", "4", "--latent", "4", "--accelerator", "cpu"]


def started(*arguments, **environment):
    source = str(Path(importlib.util.find_spec("condgen").origin).parents[1])
    paths = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "condgen", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    images = condgen.load_smears(60, size=16)
    model = condgen.conditional_vae(images.image_shape, 8, latent=4, width=4)
    condgen.fit(model, images, epochs=1, out=out, progress=False, accelerator="cpu")
    return out


def test_ctrl_c_in_the_first_moment_is_one_line():
    process = started("train", *SMALL, "--out", "nowhere")
    maps = Path(f"/proc/{process.pid}/maps")
    while maps.exists() and "libtorch" not in maps.read_text() and process.poll() is None:
        time.sleep(0.01)  # until torch is being imported
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == b""
    assert err.decode().count("\n") == 1
    assert err.startswith(b"condgen: stopped")
    # Python ends by the signal itself where it came inside an import that evaluates code.
    assert process.returncode in (130, -signal.SIGINT)
    assert not Path("nowhere").exists()


@pytest.mark.slow
def test_a_terminal_without_utf_8(tmp_path):
    process = started("train", *SMALL, "--epochs", "1", "--out", tmp_path / "run", PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert b"y ? c (8)" in out


@pytest.mark.slow
def test_a_closed_pipe_stops_no_run(tmp_path):
    process = started("train", *SMALL, "--epochs", "3", "--out", tmp_path / "run")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "finished"


@pytest.mark.slow
def test_a_folder_of_samples_that_was_stopped_says_so_and_is_completed(run, tmp_path):
    command = ["sample", run, "--per-class", "20000", "--out", tmp_path / "cells"]
    process = started(*command)
    while not (tmp_path / "cells" / "samples.json").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert b"completed by the same command" in err
    assert json.loads((tmp_path / "cells" / "samples.json").read_text())["complete"] is False
    assert not list(tmp_path.rglob(".*"))
    less = started("sample", run, "--per-class", "3", "--out", tmp_path / "cells")
    assert less.communicate(timeout=60)[1].count(b"condgen:") == 0
    assert less.returncode == 0


def interrupts():
    """The benchmark's own functions."""
    spec = importlib.util.spec_from_file_location("interrupts", REPOSITORY / "benchmarks" / "interrupts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_an_interrupted_run_is_whole(name, tmp_path):
    found = interrupts().interrupted(tmp_path / "run", signal.Signals[name], 0.3)
    assert found["faults"] == []
    assert found["state"] == ("unfinished" if name == "SIGKILL" else "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("k", range(6))
def test_interrupts_at_other_moments(k, tmp_path):
    """`benchmarks/interrupts.py` tries forty."""
    name = ("SIGINT", "SIGTERM", "SIGKILL")[k % 3]
    assert interrupts().interrupted(tmp_path / "run", signal.Signals[name], 0.35 * k)["faults"] == []
