"""Runs killed with SIGKILL at random moments, while training states are written too, and resumed until they end.

    python benchmarks/kills.py --runs 50 --out benchmarks/results/kills

Each must end with the weights of the run that was never killed, bit for bit, best and last; no state may be lost or
damaged, and nothing be left over. A state is written after every step, so that most kills fall into a write.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from notes import keep

import condgen
from condgen.data.augmentation import Augmentation
from condgen.io.archives import weights_hash
from condgen.training.checkpoints import Checkpoints
from condgen.training.optimizers import WarmupDecay, adamw

EPOCHS = 20


def train(folder: str, warned: str = "") -> None:
    """The whole run, or what is left of it; what was said of damaged states is appended to a file."""
    torch.set_num_threads(1)
    images = condgen.load_smears(120, size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        condgen.fit(
            model,
            images,
            epochs=EPOCHS,
            batch_size=16,
            out=folder,
            resume="auto",
            save_every=0.0,
            optimizer=partial(adamw, lr=1e-3),
            schedule=WarmupDecay(0.1, 0.4),
            ema=0.9,
            clip=1.0,
            augment=Augmentation(flips=True, quarter_turns=True),
            progress=False,
            accelerator="cpu",
        )
    if warned:
        with Path(warned).open("a") as file:
            file.writelines(f"{warning.message}\n" for warning in said if "state" in str(warning.message))


def ended(folder: Path) -> tuple[str, ...]:
    """Hashes of the weights that a run left."""
    return tuple(weights_hash(condgen.load(folder / place).state_dict()) for place in ("", "last"))


def killed(context: multiprocessing.context.BaseContext, folder: Path, moments: list[float]) -> dict:
    """A run killed at these moments, then left alone: seconds after a first state, or below 0 after its start."""
    warned, states = folder.with_suffix(".warnings"), []
    for moment in moments:
        process = context.Process(target=train, args=(str(folder), str(warned)))
        process.start()
        while moment > 0 and process.is_alive() and not moved(folder, states):
            time.sleep(0.002)
        time.sleep(abs(moment))
        process.kill()
        process.join()
        files = Checkpoints(folder / "state").files() if folder.exists() else []
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            state = Checkpoints(folder / "state").read() if files else None
        place = (state["epoch"], state["step"]) if state else None
        found = {"after": round(moment, 3), "place": place, "damaged": len(said), "status": process.exitcode}
        states.append({**found, "newest": files[-1].name if files else ""})
    process = context.Process(target=train, args=(str(folder), str(warned)))
    process.start()
    process.join()
    left = [path.name for path in folder.rglob(".*")]
    return {
        "killed": states,
        "status": process.exitcode,
        "warnings": bool(warned.exists() and warned.read_text()),
        "left": left,
    }


def moved(folder: Path, states: list[dict]) -> bool:
    """Whether a state is there that was not when the run was last killed."""
    files = Checkpoints(folder / "state").files() if folder.exists() else []
    return bool(files) and (not states or files[-1].name != states[-1]["newest"])


def kill_test(runs: int, seed: int = 0) -> list[dict]:
    """So many runs, each killed one to three times."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["condgen.training.loop", "condgen.data.smears", "condgen.data.augmentation"])
    rows, chance = [], random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        process = context.Process(target=train, args=(f"{place}/whole",))
        process.start()
        while process.is_alive() and not moved(Path(place) / "whole", []):
            time.sleep(0.002)
        began = time.perf_counter()
        process.join()
        seconds, expected = time.perf_counter() - began, ended(Path(place) / "whole")
        for k in range(runs):
            folder = Path(place) / f"run-{k}"
            # One in eight comes before the first state, while the process starts.
            moments = [
                -chance.uniform(0, 1) if chance.random() < 1 / 8 else chance.uniform(0, 0.9 * seconds)
                for _ in range(chance.choice((1, 1, 2, 3)))
            ]
            row = killed(context, folder, moments)
            row["equal"] = row["status"] == 0 and ended(folder) == expected
            row["well"] = row["equal"] and not any(kill["damaged"] for kill in row["killed"]) and not row["left"]
            rows.append(row)
            print(f"{k + 1:3} {json.dumps(row)}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = kill_test(options.runs, options.seed)
    kills = [kill for row in rows for kill in row["killed"]]
    places = Counter("before the first state" if kill["place"] is None else "under way" for kill in kills)
    alive = sum(kill["status"] == 0 for kill in kills)
    result = (
        f"{sum(row['well'] for row in rows)} of {len(rows)} runs ended with the weights of the run that was never "
        f"killed, bit for bit, without a lost or damaged state or a leftover file; {len(kills)} kills "
        f"({', '.join(f'{n} {what}' for what, n in places.items())}; {alive} came after the end)."
    )
    keep(options.out, "Runs that were killed", result)


if __name__ == "__main__":
    main()
