"""What a converged classifier learns from generated images, with hard labels and with a teacher's.

    python benchmarks/usefulness.py bloodmnist --seeds 3 --work runs/usefulness --out benchmarks/results/usefulness

Classifiers of one kind (`condgen.train_classifier` as it comes: 1,500 updates for BloodMNIST; of more images as many
passes, so more updates) learn from real images as they are, with every class drawn equally often, and the same with
CutMix; and on generated images alone, as many as real ones (of each class) and five times as many, with the labels they
were drawn for, and with a teacher's probabilities: the teacher is the classifier of real images of the same seed.
"Labels mixed" are decoded under conditions half-way to those of other classes (`model.label_mixing = 0.5`). "Latents
mixed" are twice as many, of which every second one's latents, too, lie on the way to a draw of another class
(`model.latent_mixing = 0.5`); only a teacher can say what they are. "Labels of others": decoded under
the condition of a class drawn at random (`model.label_mixing = 1`). "Believed" are as many as real ones, of half as
many again, that the teacher takes for the class they were drawn for. All are tested on real test images. A run that is
done is kept beside the table (`.json`); the same command goes on with the others, and a training that was stopped goes
on too.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import condgen
from condgen.apps.timing import machine
from condgen.data.names import PROBABILITIES
from condgen.evaluation.bootstrap import image_spreads, widened
from condgen.evaluation.statistics import student
from condgen.training.checkpoints import Checkpoints

MANY = 5  # times as many generated images as real ones
SPARE = 1.5  # times as many, of which only those are kept that the teacher believes, and no more than real ones
REAL = {
    "real": {},
    "real, rare ones drawn more often": {"balance": True},
    "real, drawn more often, CutMix": {"balance": True, "cutmix": 0.5},
}
GENERATED = {  # times as many images as real ones, how far labels and latents are mixed, whether a teacher labels them
    "generated": (1, 0.0, 0.0, False),
    f"{MANY} times as many generated": (MANY, 0.0, 0.0, False),
    "generated, teacher's labels": (1, 0.0, 0.0, True),
    f"{MANY} times as many, teacher's labels": (MANY, 0.0, 0.0, True),
    "generated, labels mixed": (1, 0.5, 0.0, False),
    "generated, labels mixed, teacher's labels": (1, 0.5, 0.0, True),
    f"{MANY} times as many, labels mixed, teacher's labels": (MANY, 0.5, 0.0, True),
    "twice as many, labels and latents mixed, teacher's labels": (2, 0.5, 0.5, True),
    "twice as many, labels of others, latents mixed, teacher's labels": (2, 1.0, 0.5, True),
    "generated, believed": (SPARE, 0.0, 0.0, False),
    "generated, believed, teacher's labels": (SPARE, 0.0, 0.0, True),
}


def generated(
    options: argparse.Namespace, data: Any, seed: int, times: float, mixing: float, latents: float
) -> condgen.LabelledImages:
    """So many times as many images of each class as the training set has, drawn once and kept."""
    how = f"{f'_{latents}' if latents else ''}{f'_steps{options.flow_steps}' if options.flow_steps else ''}"
    file = options.work / f"{Path(options.model).name}_{seed}_{times}_{mixing}{how}.npz"
    counts = np.ceil(times * np.bincount(data.train.labels)).astype(int)
    labels = np.repeat(np.arange(data.num_classes), counts)
    if not file.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        from condgen.sampling.shards import write_samples

        model = condgen.load(options.model)
        model.label_mixing, model.latent_mixing = mixing, latents
        if options.flow_steps:
            model.sampler.steps = options.flow_steps
        write_samples(model, labels, file, seed=seed, progress=True)
    with np.load(file) as found:
        return condgen.LabelledImages(np.moveaxis(found["images"], -1, 1), found["labels"], data.class_names)


def believed(images: condgen.LabelledImages, counts: np.ndarray) -> np.ndarray:
    """The places of so many images of each class, the first that the teacher takes for it."""
    good = images.factors[PROBABILITIES].argmax(1) == images.labels
    shares = [f"{good[images.labels == k].mean():.3f}" for k in range(len(counts))]
    print(f"believed: {good.mean():.3f}, by class {', '.join(shares)}", flush=True)
    return np.concatenate([np.flatnonzero(good & (images.labels == k))[:count] for k, count in enumerate(counts)])


def run(options: argparse.Namespace, data: Any, arm: str, seed: int) -> dict[str, Any]:
    """One classifier: what it does on validation and test images."""
    folder = options.work
    teacher = folder / f"teacher_{seed}.safetensors"
    images, settings = data.train, REAL.get(arm, {})
    if arm in GENERATED:
        times, mixing, latents, soft = GENERATED[arm]
        images = generated(options, data, seed, times, mixing, latents)
        if soft or times == SPARE:
            factors = {PROBABILITIES: condgen.label(images.images, condgen.load_classifier(teacher))}
            judged = condgen.LabelledImages(images.images, images.labels, images.class_names, factors=factors)
            kept = believed(judged, np.bincount(data.train.labels)) if times == SPARE else slice(None)
            images = (judged if soft else images).subset(kept)
    started = time.perf_counter()
    states = Checkpoints(folder / f"state_{list(REAL | GENERATED).index(arm)}_{seed}", keep=1)
    how = {"seed": seed, **settings, **({"steps": options.steps} if options.steps else {})}
    classifier = condgen.train_classifier(
        images, validation=data.validation, states=states, progress=True, what=f"{arm}, seed {seed}", **how
    )
    states.clear()
    if arm == "real":
        classifier.save(teacher)
    test, chosen = classifier.score(data.test), classifier.score(data.validation)
    return {
        "arm": arm,
        "seed": seed,
        "images": len(images),
        "accuracy": test.accuracy,
        "macro_f1": test.macro_f1,
        "recall": list(test.recall.values()),
        "validation_loss": chosen.loss,
        "seconds": round(time.perf_counter() - started, 1),
        "guesses": list(test.guesses),
    }


def table(runs: list[dict[str, Any]], data: Any, command: str) -> str:
    """Means over seeds with intervals over seeds and test images, and recalls."""
    names = [name.split("(")[0].strip() for name in data.class_names]
    lines = ["# What a converged classifier learns from generated images", ""]
    lines += [", ".join(f"{key} {value}" for key, value in machine().items()), "", f"    {command}", ""]
    lines += [f"Tested on {len(data.test):,} real test images of {data.name}. Intervals hold 95 % over seeds and test "]
    lines[-1] += "images (over test images alone where there is one seed)."
    lines += ["", "| trained on | images | seeds | accuracy | macro-F1 | " + " | ".join(names) + " |"]
    lines += ["|---" * (5 + len(names)) + "|"]
    for arm in REAL | GENERATED:
        own = [run for run in runs if run["arm"] == arm]
        if not own:
            continue
        guesses = [np.array(run["guesses"]) for run in own]
        quantities = {"accuracy": "accuracy", "macro_f1": "macro_f1"}
        spreads = image_spreads(data.test.labels, guesses, quantities=quantities, classes=data.num_classes)
        shown = []
        for name, spread in spreads.items():
            values = [run[name] for run in own]
            middle = statistics.fmean(values)
            low, high = widened(student(values) or (middle, middle), spread, 0.0, 1.0) or (middle, middle)
            shown.append(f"{middle:.4f} ({low:.3f} to {high:.3f})")
        recalls = [f"{statistics.fmean(run['recall'][k] for run in own):.3f}" for k in range(len(names))]
        lines.append(f"| {arm} | {own[0]['images']:,} | {len(own)} | {' | '.join([*shown, *recalls])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bloodmnist")
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--arms", nargs="*", default=[*REAL, *GENERATED], choices=[*REAL, *GENERATED], help="some of them"
    )
    parser.add_argument("--steps", type=int, help="updates of each classifier, instead of those that converge")
    parser.add_argument("--flow-steps", type=int, help="draw along the flow in so many steps, not by its student")
    parser.add_argument("--work", type=Path, default=Path("runs/usefulness"), help="folder of generated images")
    parser.add_argument("--out", type=Path, help="a name without ending, for .md and .json")
    options = parser.parse_args()
    data = condgen.load_data(options.data)
    kept = options.out and options.out.with_suffix(".json")
    runs = json.loads(kept.read_text())["runs"] if kept and kept.exists() else []
    command = shlex.join(["python", "benchmarks/usefulness.py", *sys.argv[1:]])
    for seed in range(options.seeds):
        for arm in options.arms:
            if any((run["arm"], run["seed"]) == (arm, seed) for run in runs):
                continue
            runs.append(run(options, data, arm, seed))
            print(f"{arm}, seed {seed}: {runs[-1]['accuracy']:.4f}, {runs[-1]['macro_f1']:.4f}", flush=True)
            if kept:
                kept.write_text(json.dumps({"machine": machine(), "runs": runs}) + "\n")
                kept.with_suffix(".md").write_text(table(runs, data, command) + "\n")
    print(table(runs, data, command))


if __name__ == "__main__":
    main()
