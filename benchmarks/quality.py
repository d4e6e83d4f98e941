"""Quick figures of generated images, one row a run and setting: choose on validation, report on test once.

    python benchmarks/quality.py runs/sharp --steps 1 2 4 --guidance 0 0.3 --split validation
    python benchmarks/quality.py runs/reference runs/fast runs/sharp --split test --out benchmarks/results/quality

Fidelity at two depths of one judge's features, truth to the label, variety within classes, sharpness, near copies of
training images (flips and turns counted), and images per second when sampling. Beside them "real": held-out real images
in the place of generated ones. Nothing is trained but the judge, once.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import condgen
from condgen.apps.timing import machine
from condgen.data.batches import image_tensor
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.evaluation.classifier import Classifier
from condgen.evaluation.copies import near_copies
from condgen.evaluation.fidelity import diversity, fidelity, label_truth, relative_sharpness, repeats
from condgen.evaluation.judge import load_judge
from condgen.io.pictures import save_grid
from condgen.sampling.grids import per_class, to_uint8

COLUMNS = (
    *("fid", "kid", "precision", "recall", "coverage", "fid_early", "recall_early", "coverage_early"),
    *("recognised", "macro", "diversity", "least_diversity", "repeats", "sharpness"),
    *("near_copies", "images_per_second"),
)


def measured(
    judge: Classifier, data: Any, real: Any, images: np.ndarray, labels: np.ndarray, floor: Any
) -> dict[str, float]:
    """Every figure of a set of images with the labels they were drawn for."""
    own, theirs = judge.embed(images), judge.embed(real.images)
    found: dict[str, Any] = dict(fidelity(theirs.late, own.late))
    found |= {f"{name}_early": value for name, value in fidelity(theirs.early, own.early).items()}
    truth = label_truth(own.probabilities, labels)
    found |= {"recognised": truth.accuracy, "macro": truth.macro}
    pixels = {name: torch.as_tensor(x).flatten(1) / 255 for name, x in (("own", images), ("real", real.images))}
    within = [
        diversity(pixels["real"][real.labels == k], pixels["own"][labels == k])["diversity"]
        for k in range(data.num_classes)
    ]
    found |= {"diversity": float(np.mean(within)), "least_diversity": min(within)}
    found |= repeats(pixels["real"], pixels["own"])
    found |= relative_sharpness(image_tensor(torch.as_tensor(real.images)), image_tensor(torch.as_tensor(images)))
    copies = near_copies(data.train.images, images, floor.images, invariant=True)
    return found | {"near_copies": copies.share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--steps", type=int, nargs="+", help="of flow matching, instead of the model's own")
    parser.add_argument("--guidance", type=float, nargs="+", help="of flow matching, instead of the model's own")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--mixing", type=float, nargs="+", default=[0.0], help="of labels (model.label_mixing)")
    parser.add_argument("--no-grain", action="store_true", help="leave the grain of models out")
    parser.add_argument("--solver", choices=["heun", "euler"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--pictures", type=Path, help="folder for a grid of each row")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = condgen.load_data(options.data)
    judge = load_judge(data, cache=options.cache)
    real, floor = (data.validation, data.test) if options.split == "validation" else (data.test, data.validation)
    rows: dict[str, dict[str, float]] = {}
    rows["real"] = measured(judge, data, real, floor.images, floor.labels, floor)
    show("real", rows["real"])
    for run in options.runs:
        model = condgen.load(run)
        if options.no_grain and hasattr(model, "grain"):
            model.grain = None
        flow = next((own for own in model.children() if isinstance(own, FlowMatching)), None)
        settings = itertools.product(
            (options.steps or [None]) if flow else [None],
            (options.guidance or [None]) if flow else [None],
            options.temperature,
            options.mixing if hasattr(model, "label_mixing") else [0.0],
        )
        for steps, guidance, temperature, mixing in settings:
            name = f"{run}{f', {steps} steps' if steps else ''}{f', guidance {guidance}' if guidance else ''}"
            name += f", temperature {temperature}" if temperature != 1 else ""
            name += ", without grain" if options.no_grain else ""
            if mixing:
                name += f", labels mixed by {mixing}"
                model.label_mixing = mixing
            if flow:
                flow.steps = steps or flow.steps
                flow.guidance = flow.guidance if guidance is None else guidance
                flow.solver = options.solver or flow.solver
            model.sample(real.labels[:64])
            started = time.perf_counter()
            images = to_uint8(model.sample(real.labels, seed=options.seed, temperature=temperature)).numpy()
            rate = len(images) / (time.perf_counter() - started)
            rows[name] = measured(judge, data, real, images, real.labels, floor) | {"images_per_second": rate}
            show(name, rows[name])
            if options.pictures:
                options.pictures.mkdir(parents=True, exist_ok=True)
                file = options.pictures / f"{name.replace('/', '_').replace(', ', '_').replace(' ', '_')}.png"
                save_grid(per_class(model, 10, seed=options.seed), file, data.class_names)
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    lines = [f"{len(real)} generated against {len(real)} real {options.split} images; {about}.", ""]
    lines += [f"    python benchmarks/quality.py {' '.join(sys.argv[1:])}", ""]
    lines += [f"| images | {' | '.join(column.replace('_', ' ') for column in COLUMNS)} |"]
    lines += [f"|---{'|---' * len(COLUMNS)}|"]
    lines += [f"| {name} | {' | '.join(number(row.get(column)) for column in COLUMNS)} |" for name, row in rows.items()]
    print("\n".join(lines))
    if options.out:
        options.out.with_suffix(".md").write_text("\n".join(["# Quality of generated images", "", *lines]) + "\n")
        options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


def show(name: str, row: dict[str, float]) -> None:
    """A row as soon as it is there."""
    print(name, {column: number(row.get(column)) for column in COLUMNS}, file=sys.stderr, flush=True)


def number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}" if value else "–"


if __name__ == "__main__":
    main()
