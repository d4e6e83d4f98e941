"""What a converged classifier learns from generated images, with hard labels and with a teacher's.

    python benchmarks/usefulness.py bloodmnist --seeds 3 --work runs/usefulness --out benchmarks/results/usefulness

Classifiers of one kind (`condgen.train_classifier` as it comes: 1,500 updates for BloodMNIST; of more images as many
passes, so more updates) learn from real images as they are, with every class drawn equally often, and the same with
CutMix; and on generated images alone, as many as real ones (of each class) and five times as many, with the labels they
were drawn for, and with a teacher's probabilities: the teacher is the classifier of real images of the same seed.
"Labels mixed" are decoded under conditions half-way to those of other classes (`model.label_mixing = 0.5`), "labels of
others" under the condition of a class drawn at random (`model.label_mixing = 1`). "Latents mixed" are twice as many, of
which every second one's latents, too, lie on the way to a draw of another class (`model.latent_mixing = 0.5`); only a
teacher can say what they are. "Believed" are as many as real ones, of half as many again (three times as many where
labels are mixed), that the teacher takes for the class they were drawn for. All are tested on real test images. A run
that is done is kept beside the table (`.json`); the same command goes on with the others, and a training that was
stopped goes on too.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

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


class Drawn(NamedTuple):
    """How the images of an arm are generated, and what a teacher does for them."""

    times: float = 1  # as many as real ones
    mixing: float = 0.0  # of labels
    latents: float = 0.0  # how far every second image's latents are mixed
    soft: bool = False  # whether a teacher labels them
    believed: bool = False  # whether only as many as real ones are kept, which the teacher takes for their class


GENERATED = {
    "generated": Drawn(),
    f"{MANY} times as many generated": Drawn(MANY),
    "generated, teacher's labels": Drawn(soft=True),
    f"{MANY} times as many, teacher's labels": Drawn(MANY, soft=True),
    "generated, labels mixed": Drawn(mixing=0.5),
    "generated, labels mixed, teacher's labels": Drawn(mixing=0.5, soft=True),
    f"{MANY} times as many, labels mixed, teacher's labels": Drawn(MANY, mixing=0.5, soft=True),
    "twice as many, labels and latents mixed, teacher's labels": Drawn(2, 0.5, 0.5, soft=True),
    "twice as many, labels of others, latents mixed, teacher's labels": Drawn(2, 1.0, 0.5, soft=True),
    "generated, believed": Drawn(SPARE, believed=True),
    "generated, believed, teacher's labels": Drawn(SPARE, soft=True, believed=True),
    "generated, labels mixed, believed": Drawn(2 * SPARE, 0.5, believed=True),
    "generated, labels of others, believed": Drawn(2 * SPARE, 1.0, believed=True),
}


def generated(options: argparse.Namespace, data: Any, seed: int, how: Drawn) -> condgen.LabelledImages:
    """So many times as many images of each class as the training set has, drawn once and kept."""
    more = f"{f'_{how.latents}' if how.latents else ''}{f'_steps{options.flow_steps}' if options.flow_steps else ''}"
    file = options.work / f"{Path(options.model).name}_{seed}_{how.times}_{how.mixing}{more}.npz"
    counts = np.ceil(how.times * np.bincount(data.train.labels)).astype(int)
    labels = np.repeat(np.arange(data.num_classes), counts)
    if not file.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        from condgen.sampling.shards import write_samples

        model = condgen.load(options.model)
        model.label_mixing, model.latent_mixing = how.mixing, how.latents
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
        own = GENERATED[arm]
        images = generated(options, data, seed, own)
        if own.soft or own.believed:
            factors = {PROBABILITIES: condgen.label(images.images, condgen.load_classifier(teacher))}
            judged = condgen.LabelledImages(images.images, images.labels, images.class_names, factors=factors)
            kept = believed(judged, np.bincount(data.train.labels)) if own.believed else slice(None)
            images = (judged if own.soft else images).subset(kept)
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
