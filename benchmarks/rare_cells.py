"""Rare cells: three classes have so few images each. What helps a classifier most: drawing them more often, CutMix,
samples of a generator, or variations of the few?

    python benchmarks/rare_cells.py --cuts 20 50 --seeds 3 --work runs/rare --out benchmarks/results/rare_cells

Basophils, monocytes and lymphocytes are cut to 20 (or 50) images each, all others kept, and everything is trained on
the cut set alone: the generator (the recipe `sharp`, or another, with some of its passes) and the classifiers
(`condgen.train_classifier`, classes drawn equally often, half of a class's draws real where it has generated images).
"Labels mixed" are decoded under conditions half-way to those of other classes (`model.label_mixing = 0.5`). With
samples of every other class a generated look says nothing of the class. They are tested on real test images. A run
that is done is kept beside the table (`.json`), a generator in `--work`; the same command goes on with the others.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import condgen
from condgen.apps.timing import machine
from condgen.evaluation.training_sets import cut_class
from condgen.recipes import RECIPES
from condgen.training.checkpoints import Checkpoints

RARE = ("basophil", "monocyte", "lymphocyte")
FILLED = 800  # images of each rare class, generated ones included; or generated images of another class
ARMS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "rare ones drawn more often": {"balance": True},
    "the same with CutMix": {"balance": True, "cutmix": 0.5},
    "filled by samples": {"balance": True, "method": "sample"},
    "filled by variations": {"balance": True, "method": "vary"},
    "filled by samples, CutMix": {"balance": True, "cutmix": 0.5, "method": "sample"},
    "filled by variations, CutMix": {"balance": True, "cutmix": 0.5, "method": "vary"},
    "filled by samples, labels mixed": {"balance": True, "method": "sample", "mixing": 0.5},
    "filled by variations, labels mixed": {"balance": True, "method": "vary", "mixing": 0.5},
    "variations, and samples of every other class": {"balance": True, "method": "auto", "every": True},
    "the same, labels mixed": {"balance": True, "method": "auto", "every": True, "mixing": 0.5},
    "the same, labels mixed, CutMix": {"balance": True, "cutmix": 0.5, "method": "auto", "every": True, "mixing": 0.5},
}


def cut_set(data: condgen.LabelledImages, cut: int, seed: int) -> condgen.LabelledImages:
    """The set whose rare classes have so many training images; validation and test images are all there."""
    places = np.arange(len(data))[data.splits["train"]]
    kept = set(range(len(places)))
    for name in rare(data):
        kept &= set(cut_class(data.train, name, cut, seed=seed).tolist())
    splits = {**data.splits, "train": places[sorted(kept)]}
    return condgen.LabelledImages(data.images, data.labels, data.class_names, splits, name=f"{data.name} {cut}")


def rare(data: condgen.LabelledImages) -> list[str]:
    """The names of the classes that are cut."""
    return [name for name in data.class_names if name.startswith(RARE)]


def generator(small: condgen.LabelledImages, folder: Path, options: argparse.Namespace) -> Any:
    """A model trained on the cut set, or gone on with; not distilled: variations go by the flow itself."""
    if (folder / "done").exists():
        return condgen.load(folder)
    passes = {"epochs": options.epochs}
    if RECIPES[options.recipe].sampler.sampler == "flow_matching":
        passes |= {"sampler_epochs": options.sampler_epochs, "distil_pairs": 0, "steps": 2}
    resume: Any = "auto" if folder.exists() else False
    model, _ = RECIPES[options.recipe].fit(small, folder, resume=resume, seed=options.seed, **passes)
    (folder / "done").touch()
    return model


def run(options: argparse.Namespace, data: Any, cut: int, arm: str, seed: int) -> dict[str, Any]:
    """One classifier: what it does on test images."""
    small, how = cut_set(data, cut, options.seed), dict(ARMS[arm])
    train, method, mixing, every = small.train, how.pop("method", None), how.pop("mixing", 0.0), how.pop("every", False)
    goals = {name: FILLED + (0 if name in rare(data) else count) for name, count in train.class_counts.items()}
    goals = goals if every else {name: goals[name] for name in rare(data)}
    if method:
        model = generator(small, options.work / f"{options.recipe}_{cut}", options)
        model.label_mixing = mixing
        chosen = {"method": method, "strength": options.strength, "seed": seed}
        train = condgen.balance(train, model, goals, **chosen)[0]
    states = Checkpoints(options.work / f"state_{cut}_{list(ARMS).index(arm)}_{seed}", keep=1)
    started, what = time.perf_counter(), f"{arm}, {cut} images, seed {seed}"
    how |= {"steps": options.steps, "batch_size": 128, "seed": seed}
    found = condgen.train_classifier(train, states=states, progress=True, what=what, **how).score(data.test)
    states.clear()
    f1 = [
        2 * r * p / (r + p) if r and p else 0.0 for r, p in ((found.recall[k], found.precision[k]) for k in rare(data))
    ]
    return {
        "cut": cut,
        "arm": arm,
        "seed": seed,
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        "rare_recall": statistics.fmean(found.recall[k] or 0.0 for k in rare(data)),
        "rare_f1": statistics.fmean(f1),
        "recall": list(found.recall.values()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(runs: list[dict[str, Any]], options: argparse.Namespace, data: Any) -> str:
    """Means over seeds, with the lowest and the highest where there are several."""
    lines = ["# Rare cells", "", ", ".join(f"{k} {v}" for k, v in machine().items()), "", f"    {options.command}", ""]
    lines += [
        f"{', '.join(rare(data))} cut to so many images each; {len(data.test):,} real test images of {data.name}; "
    ]
    flow = RECIPES[options.recipe].sampler.sampler == "flow_matching"
    passes = f"{options.epochs} passes over the cut set"
    passes += f" and {options.sampler_epochs} over its latents" if flow else ""
    lines[-1] += f"the generator ({options.recipe}) had {passes}, "
    lines[-1] += f"classifiers {options.steps} updates of 128 images, variations a strength of "
    lines[-1] += f"{options.strength}. Means over seeds; in brackets the lowest and the highest."
    columns = ("accuracy", "macro_f1", "rare_recall", "rare_f1")
    for cut in dict.fromkeys(run["cut"] for run in runs):
        lines += ["", f"## {cut} images each", ""]
        lines += [
            "| trained on | seeds | accuracy | macro-F1 | recall of the three | F1 of the three |",
            "|---" * 6 + "|",
        ]
        for arm in ARMS:
            own = [run for run in runs if (run["cut"], run["arm"]) == (cut, arm)]
            if own:
                shown = [spread([run[column] for run in own]) for column in columns]
                lines.append(f"| {arm} | {len(own)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """A mean, with the lowest and the highest."""
    middle = f"{statistics.fmean(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--cuts", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3, help="classifiers an arm")
    parser.add_argument("--seed", type=int, default=0, help="of the cut and the generator")
    parser.add_argument("--steps", type=int, default=1500, help="updates of each classifier")
    parser.add_argument("--recipe", default="sharp", choices=["fast", "sharp"], help="of the generator")
    parser.add_argument("--epochs", type=int, default=30, help="passes of the generator over the cut set")
    parser.add_argument("--sampler-epochs", type=int, default=10, help="passes of its flow over the latents")
    parser.add_argument("--strength", type=float, default=0.3, help="of variations")
    parser.add_argument("--work", type=Path, default=Path("runs/rare"))
    parser.add_argument("--out", type=Path, help="a name without ending, for .md and .json")
    options = parser.parse_args()
    options.command = f"python benchmarks/rare_cells.py --cuts {' '.join(map(str, options.cuts))} "
    options.command += f"--recipe {options.recipe} --seeds {options.seeds} --steps {options.steps} "
    options.command += f"--epochs {options.epochs} "
    options.command += f"--sampler-epochs {options.sampler_epochs} --strength {options.strength} --out {options.out}"
    data = condgen.load_data(options.data)
    kept = options.out and options.out.with_suffix(".json")
    runs = json.loads(kept.read_text())["runs"] if kept and kept.exists() else []
    for seed in range(options.seeds):
        for cut in options.cuts:
            for arm in options.arms:
                if any((run["cut"], run["arm"], run["seed"]) == (cut, arm, seed) for run in runs):
                    continue
                runs.append(run(options, data, cut, arm, seed))
                print({k: v for k, v in runs[-1].items() if k != "recall"}, flush=True)
                if kept:
                    kept.write_text(json.dumps({"machine": machine(), "runs": runs}) + "\n")
                    kept.with_suffix(".md").write_text(table(runs, options, data) + "\n")
    print(table(runs, options, data))


if __name__ == "__main__":
    main()
