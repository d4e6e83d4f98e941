"""What interrupts at random moments leave: `condgen train` with epochs of some 30 ms, stopped by a signal.

    python benchmarks/interrupts.py --runs 40

Each run must leave a model that loads, a run.json that is true of it, and no temporary file. A run is stopped between
its first epoch and its end, or in its first seconds. One line a run; the counts at the end are the result.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import condgen

SIGNALS = ("SIGINT", "SIGTERM", "SIGKILL")
TRAIN = "train --images 120 --size 16 --width 4 --latent 4 --batch-size 32 --epochs 2000 --accelerator cpu"


def interrupted(folder: Path, number: signal.Signals, moment: float) -> dict:
    """Start a run, let it keep a first model, stop it `moment` seconds later, and look at what it left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "condgen", *TRAIN.split(), "--out", str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (folder / "last" / "model.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(moment)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1].strip().splitlines()
    return {
        "signal": number.name,
        "moment": round(moment, 3),
        "status": process.returncode,
        **left(folder),
        "said": said[-1:],
    }


def left(folder: Path) -> dict:
    """What is wrong with a run's folder: nothing, if all is well."""
    faults = []
    try:
        best, last = condgen.load(folder), condgen.load(folder / "last")
        run = json.loads((folder / "run.json").read_text())
        killed = run["state"] == "unfinished"
        # Where a killed process could not tell any more, run.json may be one epoch behind the model it belongs to.
        behind = last.provenance["epoch"] - run["epochs_done"], best.provenance["epoch"] - run["best_epoch"]
        if {best.provenance["run"], last.provenance["run"]} != {run["id"]}:
            faults.append("of two runs")
        if behind[0] not in (0, 1)[: 1 + killed] or (behind[1] != 0 and not killed):
            faults.append(f"run.json is {behind} epochs behind")
        rows = len((folder / "metrics.csv").read_text().splitlines()) - 1
        if rows not in (run["epochs_done"], run["epochs_done"] + killed):
            faults.append(f"{rows} rows of metrics for {run['epochs_done']} epochs")
        state = run["state"]
    except (OSError, ValueError, KeyError) as error:
        faults.append(repr(error))
        state = "?"
    faults += [f"left {path.name}" for path in folder.rglob(".*")]
    return {"state": state, "faults": faults}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background would ignore
    moments, well = random.Random(options.seed), 0
    for k in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            number = signal.Signals[SIGNALS[k % len(SIGNALS)]]
            found = interrupted(Path(folder) / "run", number, moments.uniform(0, 1.5))
        well += not found["faults"]
        print(f"{k + 1:3} {json.dumps(found)}", flush=True)
    print(f"{well} of {options.runs} left a model that loads, a true run.json and no temporary file.")


if __name__ == "__main__":
    main()
