"""What each family of models costs and gives at equal budgets: reference and better CVAEs, GAN, pixel flow, diffusion.

    python benchmarks/families.py --data bloodmnist --minutes 5 15 45 --seeds 3 --out benchmarks/results/families

Minutes are of two free cores: before the first training steps of all recipes are timed in turns, the fastest third of
them counts, and every budget becomes a number of epochs by that rate, whatever else the machine does later (the prior
of `sharp` is trained by the clock, for the share of the budget that its recipe gives it). Each budget is a training of
its own, with its own schedule of the learning rate. What is done already in `--runs` is not done again, so the
benchmark can be stopped at any time. Figures are of generated images against real test images
(`benchmarks/quality.py`), of a small classifier trained on 3,000 generated images alone ("useful": accuracy on real
test images) and of drawing as many images as there are test images. Trainings whose loss is not finite have failed.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from notes import keep
from quality import COLUMNS, measured, number

import condgen
from condgen.data.batches import image_tensor
from condgen.evaluation.classifier_training import fit_classifier
from condgen.evaluation.judge import load_judge
from condgen.evaluation.network import ResidualClassifier
from condgen.evaluation.settings import ClassifierTraining
from condgen.io.pictures import save_grid
from condgen.recipes import RECIPES
from condgen.sampling.grids import per_class, to_uint8
from condgen.training.callbacks import LambdaCallback
from condgen.training.work import work_of

ROUNDS, PROBED = 3, 60  # a budget is turned into epochs by the rates of so many steps, in turns
STEPS, TAUGHT = 500, 3000  # of the classifier, and images it is trained on
# Whose spread over seeds is told.
STABLE = ("fid", "recall", "coverage", "macro", "diversity", "least_diversity", "repeats", "useful")
NAMES = {"bloodmnist_reference": "reference CVAE", "fast": "CVAE, fast", "sharp": "CVAE, sharp"}
NAMES |= {"gan": "GAN", "flow": "pixel flow", "diffusion": "diffusion"}


class EnoughError(Exception):
    """Enough steps were timed."""


def steps_of(recipe: str, data: Any) -> list[float]:
    """Seconds of some training steps, after the first."""
    times: list[float] = []

    def step(*_: Any) -> None:
        times.append(time.perf_counter())
        if len(times) > PROBED:
            raise EnoughError

    chosen: dict[str, Any] = {"discriminator_start": 0.0} if RECIPES[recipe].loss else {}
    with suppress(EnoughError):
        RECIPES[recipe].fit(data, epochs=10, progress=False, callbacks=[LambdaCallback(on_step=step)], **chosen)
    return np.diff(times)[10:].tolist()


def passes(data: Any, file: Path) -> dict[str, float]:
    """Seconds that a pass over the training images takes each recipe on free cores, all measured in turns and kept."""
    if file.is_file():
        return json.loads(file.read_text())
    times: dict[str, list[float]] = {recipe: [] for recipe in NAMES}
    for recipe in ROUNDS * list(NAMES):
        times[recipe] += steps_of(recipe, data)
    seconds = {}
    for recipe, own in times.items():
        steps = -(-len(data.train) // RECIPES[recipe].training.batch_size)
        seconds[recipe] = 1.08 * steps * statistics.fmean(sorted(own)[: len(own) // 3])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(seconds, indent=1) + "\n")
    return seconds


def taken(data: Any) -> Any:
    """Indices of the training images whose labels are drawn for a classifier; some, since a flow takes its time."""
    return data.train.stratified(min(1.0, TAUGHT / len(data.train)), 0)


def taught(images: Any, labels: Any, data: Any) -> float:
    """Accuracy on real test images of a small classifier trained on these images alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResidualClassifier(data.image_shape, data.num_classes, 8).float()
    fit_classifier(network, images, labels, ClassifierTraining(steps=STEPS, batch_size=32, label_smoothing=0.0))
    with torch.no_grad():
        logits = network.eval()(image_tensor(torch.as_tensor(data.test.images)))
    return float((logits.argmax(1).numpy() == data.test.labels).mean())


def floors(data: Any, judge: Any, file: Path) -> dict[str, float]:
    """The same figures of held-out real images, and of a classifier trained on real ones; kept."""
    if not file.is_file():
        held_out = data.validation
        real = measured(judge, data, data.test, held_out.images, held_out.labels, held_out)
        real["useful"] = taught(data.train.images[taken(data)], data.train.labels[taken(data)], data)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(real, indent=1) + "\n")
    return json.loads(file.read_text())


def one(recipe: str, minutes: float, seed: int, data: Any, judge: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one training."""
    folder = options.runs / f"{recipe}_{minutes:g}_{seed}"
    file = folder / "quality.json"
    if file.is_file():
        return json.loads(file.read_text())
    row: dict[str, Any] = {"model": NAMES.get(recipe, recipe), "minutes": minutes, "seed": seed}
    own = RECIPES[recipe]
    model = own.build(data.image_shape, data.num_classes)
    work = work_of(model, own.prior_for(model, data), data, own.training, own.loss, own.sampler)
    minutes *= work.training / (work.training + work.encoding + work.flow)  # of the model; its prior has the rest
    if (folder / "run.json").is_file():
        row["epochs"] = json.loads((folder / "run.json").read_text())["epochs"]
    else:
        seconds = passes(data, options.runs / "rates.json")[recipe]
        row["epochs"] = max(1, round(60 * minutes / seconds))
    prior = max(1, round(own.sampler.sampler_epochs * row["epochs"] / own.training.epochs))
    try:
        RECIPES[recipe].fit(data, folder, epochs=row["epochs"], sampler_epochs=prior, seed=seed, resume="auto")
    except FloatingPointError as error:
        row["failed"] = str(error)
    else:
        model, real, floor = condgen.load(folder), data.test, data.validation
        model.sample(real.labels[:64])
        started = time.perf_counter()
        images = to_uint8(model.sample(real.labels, seed=seed)).numpy()
        row["images_per_second"] = len(images) / (time.perf_counter() - started)
        row["parameters"] = sum(p.numel() for name, p in model.named_parameters() if "discriminator" not in name)
        row |= measured(judge, data, real, images, real.labels, floor)
        some = data.train.labels[taken(data)]
        row["useful"] = taught(to_uint8(model.sample(some, seed=seed + 1)).numpy(), some, data)
        save_grid(per_class(model, 10, seed=seed), folder / "samples.png", data.class_names)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(row, indent=1))
    return row


def grouped(rows: list[dict[str, Any]]) -> Iterator[tuple[str, float, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Model, minutes, the rows of all its seeds, and of those that did not fail."""
    for model, minutes in dict.fromkeys((row["model"], row["minutes"]) for row in rows):
        own = [row for row in rows if (row["model"], row["minutes"]) == (model, minutes)]
        yield model, minutes, own, [row for row in own if "failed" not in row]


def table(rows: list[dict[str, Any]], real: dict[str, Any]) -> str:
    """A row for each model and budget, means over seeds."""
    columns = [*(name for name in COLUMNS if name != "kid"), "useful"]
    lines = [f"| model | minutes | seeds | failed | parameters | {' | '.join(c.replace('_', ' ') for c in columns)} |"]
    lines += [f"|---|---|---|---|---{'|---' * len(columns)}|"]
    lines += [f"| real images | | | | | {' | '.join(number(real.get(column)) for column in columns)} |"]
    for model, minutes, own, good in grouped(rows):
        cells = [f"{model}", f"{minutes:g}", f"{len(own)}", f"{len(own) - len(good)}"]
        cells.append(f"{good[0]['parameters']:,}" if good else "–")
        for column in columns:
            values = [row[column] for row in good if column in row]
            cells.append(number(statistics.fmean(values)) if values else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spreads(rows: list[dict[str, Any]]) -> str:
    """How far trainings of several seeds lie apart: the lowest and the highest of each figure."""
    lines = [f"| model | minutes | seeds | failed | {' | '.join(column.replace('_', ' ') for column in STABLE)} |"]
    lines += [f"|---|---|---|---{'|---' * len(STABLE)}|"]
    for model, minutes, own, good in grouped(rows):
        if len(own) > 1:
            ranges = [[row[column] for row in good] for column in STABLE]
            cells = [f"{number(min(values))} to {number(max(values))}" if values else "–" for values in ranges]
            lines.append(f"| {model} | {minutes:g} | {len(own)} | {len(own) - len(good)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], real: dict[str, Any], path: Path) -> None:
    """FID, truth to the label and variety over the budget."""
    mpl.use("agg")
    from matplotlib import pyplot as plt

    shown = {"fid": "FID (log)", "macro": "recognised, mean over classes", "diversity": "variety within classes"}
    shown |= {"repeats": "images that come again"}
    models = Counter(minutes for _, minutes in {(row["model"], row["minutes"]) for row in rows})
    ticks = sorted(minutes for minutes, count in models.items() if count > 1)
    figure, axes = plt.subplots(1, len(shown), figsize=(13, 3.4), layout="constrained")
    for axis, (column, title) in zip(axes, shown.items(), strict=True):
        for model in dict.fromkeys(row["model"] for row in rows):
            own = [row for row in rows if row["model"] == model and column in row]
            budgets = sorted({row["minutes"] for row in own})
            means = [statistics.fmean(r[column] for r in own if r["minutes"] == budget) for budget in budgets]
            (line,) = axis.plot(budgets, means, marker="o", markersize=4, label=model)
            axis.scatter([r["minutes"] for r in own], [r[column] for r in own], s=8, color=line.get_color())
        axis.axhline(real[column], color="0.6", linestyle=":", label="held-out real images")
        axis.set(
            title=title, xlabel="minutes on two cores", xscale="log", yscale="log" if column == "fid" else "linear"
        )
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=110)


def side_by_side(runs: dict[str, Path], names: Any, path: Path) -> None:
    """Three images of each class, none chosen, by the model of each run."""
    parts = [per_class(condgen.load(run), 3, seed=1) for run in runs.values()]
    gap = torch.ones_like(parts[0][:, :1])
    images = torch.cat([image for part in parts for image in (gap, part)][1:], 1)
    save_grid(images, path, names, " | ".join(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--recipes", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 15.0, 45.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--runs", type=Path, default=Path("runs/families"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = condgen.load_data(options.data)
    judge = load_judge(data, cache=options.cache)
    real = floors(data, judge, options.runs / "real.json")
    for minutes in options.minutes:
        for seed in range(options.seeds):
            for recipe in options.recipes:
                row = one(recipe, minutes, seed, data, judge, options)
                print(row, flush=True)
    files = sorted(options.runs.glob("*/quality.json"))
    rows = [json.loads(file.read_text()) | {"run": file.parent.name} for file in files]
    rows.sort(key=lambda row: (list(NAMES.values()).index(row["model"]), row["minutes"], row["seed"]))
    found = f"{table(rows, real)}\n\nOver seeds, from the lowest to the highest:\n\n{spreads(rows)}"
    keep(options.out, "Families of models at equal budgets", found)
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps({"real": real, "rows": rows}, indent=1) + "\n")
        plot(rows, real, options.out.with_suffix(".png"))
        longest = {row["model"]: row for row in rows if row["seed"] == 0 and "failed" not in row}
        runs = {f"{model}, {row['minutes']:g} minutes": options.runs / row["run"] for model, row in longest.items()}
        side_by_side(runs, data.class_names, options.out.with_name(f"{options.out.name}_samples.png"))


if __name__ == "__main__":
    main()
