"""How often each sentence of a verdict is wrong: said of nothing, or not said of what is there.

    python benchmarks/verdict_errors.py --out benchmarks/results/verdict_errors

Perfect generators are simulated by drawing three sets of real images without overlap (real, held out, "generated"), so
that every fault that is named is a false alarm. The same sets, broken on purpose, must be named. Features are the
judge's own. Gains are simulated image by image: classifiers of two training sets that share their test images.
"""

import argparse
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import condgen
from condgen.apps.timing import machine
from condgen.evaluation.arms import Arm, Run, StudyPlan, Usefulness
from condgen.evaluation.bootstrap import confusions, figure
from condgen.evaluation.judge import load_judge
from condgen.evaluation.parts import of_copies, of_images
from condgen.evaluation.sets import Found, Sets, looker
from condgen.evaluation.usefulness import usefulness_measures
from condgen.evaluation.verdict import judge_measures

Generator = np.random.Generator


def blurred(x: np.ndarray, labels: np.ndarray, train: Any, rng: Generator, strength: float) -> np.ndarray:
    images = torch.as_tensor(x).float()
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return ((1 - strength) * images + strength * soft).round().byte().numpy()


def noisy(x: np.ndarray, labels: np.ndarray, train: Any, rng: Generator, strength: float) -> np.ndarray:
    return np.clip(x + rng.normal(0, strength, x.shape), 0, 255).round().astype(np.uint8)


def mislabelled(x: np.ndarray, labels: np.ndarray, train: Any, rng: Generator, strength: float) -> np.ndarray:
    """A share of images is of another class."""
    out = x.copy()
    wrong = np.flatnonzero(rng.random(len(x)) < strength)
    out[wrong] = x[rng.permutation(wrong)]
    return out


def collapsed(x: np.ndarray, labels: np.ndarray, train: Any, rng: Generator, strength: float) -> np.ndarray:
    """Images of a class are drawn towards one of them."""
    out = x.astype(float)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        out[own] = (1 - strength) * out[own] + strength * x[rng.choice(own)]
    return out.round().astype(np.uint8)


def favoured(x: np.ndarray, labels: np.ndarray, train: Any, rng: Generator, strength: float) -> np.ndarray:
    """A share of images is of a few pictures, with a little noise, whatever the class."""
    out = x.copy()
    again = np.flatnonzero(rng.random(len(x)) < strength)
    few = x[rng.choice(len(x), max(1, len(again) // 10), replace=False)]
    pictures = few[rng.integers(len(few), size=len(again))]
    out[again] = np.clip(pictures + rng.normal(0, 3, pictures.shape), 0, 255).round().astype(np.uint8)
    return out


def copied(x: np.ndarray, labels: np.ndarray, train: Any, rng: Generator, strength: float) -> np.ndarray:
    """A share of images is of the training set, turned and shifted."""
    out = x.copy()
    for k in np.flatnonzero(rng.random(len(x)) < strength):
        own = np.flatnonzero(train.labels == labels[k])
        image = np.rot90(train.images[rng.choice(own)], rng.integers(4), (1, 2))
        out[k] = np.roll(image, rng.integers(-1, 2, 2), (1, 2))
    return out


FAULTS = {
    "blurred": (blurred, (0.5, 1.0), {"Blurred"}),
    "noisy": (noisy, (10.0, 30.0), {"Noisy"}),
    "wrong labels": (mislabelled, (0.2, 0.5), {"Labels in doubt", "Not true to the label"}),
    "collapsed": (collapsed, (0.5, 0.9), {"Too little variety", "Collapse"}),
    "favourites": (favoured, (0.1, 0.5), {"The same pictures again"}),
    "copies": (copied, (0.1, 0.5), {"Copies of training images"}),
}


def titles(found: Found, severities: tuple[str, ...]) -> set[str]:
    return {f.title for f in judge_measures(found.measures).findings if f.severity in severities}


def of_sets(options: argparse.Namespace) -> list[dict[str, Any]]:
    """False alarms and faults named, by number of images."""
    data = condgen.load_data(options.data)
    judge, rows = load_judge(data, cache=options.cache), []
    # Images that the judge was not trained on, as evaluations compare them; training images are kept for the copies.
    pool = data.subset(np.flatnonzero(~np.isin(np.arange(len(data)), np.arange(len(data))[data.splits["train"]])))
    look = looker(judge, None)
    for n, trials in zip(options.images, options.trials, strict=True):
        alarms: Counter[str] = Counter()
        said_open: Counter[str] = Counter()
        named: Counter[str] = Counter()
        for trial in range(trials):
            rng = np.random.default_rng([n, trial])
            order = rng.permutation(len(pool))
            n_each = min(n, len(pool) // 3)
            real, held_out, fresh = (pool.subset(order[k * n_each : (k + 1) * n_each]) for k in range(3))
            seen = [look(part.images, part.labels) for part in (real, held_out)]
            cases = {"nothing": fresh.images}
            if trial < options.broken:
                for fault, (function, strengths, _) in FAULTS.items():
                    for strength in strengths:
                        cases[f"{fault}, {strength:g}"] = function(
                            fresh.images, fresh.labels, data.train, rng, strength
                        )
            for case, images in cases.items():
                sets = Sets(seen[0], seen[1], look(images, fresh.labels), tuple(data.class_names), trial)
                found = Found()
                of_images(sets, found)
                if case == "nothing" or case.startswith("copies"):
                    of_copies(sets, data.train, found, include_real=False)
                bad = titles(found, ("bad", "warn"))
                if case == "nothing":
                    alarms.update(bad)
                    alarms["any"] += bool(bad)
                    said_open.update(titles(found, ("open",)))
                else:
                    named[case] += bool(bad & FAULTS[case.split(",")[0]][2])
                print(f"{n_each} images, trial {trial}: {case}: {sorted(bad)}", flush=True)
        rows.append(
            {
                "images": n_each,
                "trials": trials,
                "broken": min(options.broken, trials),
                "false alarms": dict(alarms),
                "said to be open": dict(said_open),
                "named": dict(named),
            }
        )
    return rows


def study(rng: Generator, seeds: int, effect: float, images: int = 600) -> Usefulness:
    """Classifiers of two training sets, image by image.

    Each test image is harder or easier for all of them, each training set makes some images easier and others harder,
    and so does each seed. The effect is added, in logits, to every image of the set with generated images.
    """
    labels = rng.integers(0, 3, images)
    hard = rng.normal(2.0, 1.5, images)

    def arm(kind: str, cut: int | None, gain: float) -> Arm:
        of_set, runs = rng.normal(0, 0.5, images), []
        for seed in range(seeds):
            right = rng.random(images) < 1 / (1 + np.exp(-(hard + of_set + gain + rng.normal(0, 0.2))))
            guesses = np.where(right, labels, (labels + rng.integers(1, 3, images)) % 3)
            recall = tuple(float(right[labels == k].mean()) for k in range(3))
            f1 = float(figure(confusions(np.ones((1, images)), labels, guesses, 3), "macro_f1")[0])
            runs.append(Run(seed, 0.5, 0.5, 0.0, float(right.mean()), f1, recall, tuple(guesses.tolist())))
        return Arm(kind, cut, 9, 0, tuple(runs))

    arms = [arm(kind, None, effect * (kind == "balanced")) for kind in ("real", "synthetic", "balanced")]
    # One baseline: choosing among three is another matter.
    arms += [replace(arms[0], kind=kind) for kind in ("oversampled", "cutmix")]
    return Usefulness(tuple(arms), ("a", "b", "c"), "b", {}, StudyPlan(seeds=seeds), 0, (), tuple(labels.tolist()))


def of_gains(trials: int = 400) -> list[dict[str, Any]]:
    """How often a gain in macro-F1 is called help or harm, of no effect and of one, by number of seeds."""
    rows, rng = [], np.random.default_rng(0)
    for seeds in (2, 3, 5):
        for effect in (0.0, 0.2, 0.5):
            said: Counter[str] = Counter()
            for _ in range(trials):
                useful = study(rng, seeds, effect)
                measure = {"balanced_gain": usefulness_measures(useful)["balanced_gain"]}
                said.update(f.severity for f in judge_measures(measure, useful=useful).findings)
            shares = {key: said[key] / trials for key in ("good", "warn", "open")}
            rows.append({"gain": "macro-F1", "seeds": seeds, "effect": effect, **shares})
    return rows


def markdown(content: dict[str, Any]) -> str:
    about_machine = content["machine"]
    lines = [
        "# How often a verdict is wrong",
        "",
        ", ".join(f"{key} {value}" for key, value in about_machine.items()) + ".",
        "",
        f"    {content['command']}",
        "",
        "## Of sets of images",
        "",
        "False alarms: share of perfect generators (real images in the place of generated ones) of which a fault is "
        "named. Named: share of broken ones whose own fault is.",
        "",
        "| images | trials | any false alarm | which | too few images to tell, said at least once of a perfect one |",
        "|---|---|---|---|---|",
    ]
    for row in content["sets"]:
        wrong = "; ".join(f"{k}: {v}" for k, v in row["false alarms"].items() if k != "any") or "none"
        undecided = "; ".join(f"{k}: {v}" for k, v in row["said to be open"].items()) or "none"
        share = row["false alarms"].get("any", 0) / row["trials"]
        lines.append(f"| {row['images']} | {row['trials']} | {share:.1%} | {wrong} | {undecided} |")
    cases = list(dict.fromkeys(case for row in content["sets"] for case in row["named"]))
    lines += ["", "| fault, strength | " + " | ".join(f"{row['images']} images" for row in content["sets"]) + " |"]
    lines += ["|---" * (1 + len(content["sets"])) + "|"]
    for case in cases:
        shares = " | ".join(f"{row['named'].get(case, 0) / max(row['broken'], 1):.0%}" for row in content["sets"])
        lines.append(f"| {case} | {shares} |")
    lines += [
        "",
        "## Of gains",
        "",
        "| gain | seeds | true effect | said to help | said to harm | said to be open |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["gains"]:
        shares = " | ".join(f"{row[key]:.1%}" for key in ("good", "warn", "open"))
        lines.append(f"| {row['gain']} | {row['seeds']} | {row['effect']} | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300, 1140])
    parser.add_argument("--trials", type=int, nargs="+", default=[60, 40, 20])
    parser.add_argument("--broken", type=int, default=8, help="trials in which broken generators are looked at, too")
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    content = {
        "machine": machine(),
        "command": f"python benchmarks/verdict_errors.py --data {options.data} --images "
        f"{' '.join(map(str, options.images))} --trials {' '.join(map(str, options.trials))} --broken {options.broken}",
        "gains": of_gains(),
        "sets": of_sets(options),
    }
    content["seconds"] = time.perf_counter() - started
    print(markdown(content))
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(markdown(content))


if __name__ == "__main__":
    main()
