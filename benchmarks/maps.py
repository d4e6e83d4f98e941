"""Which map of latents suits images of a size: what the networks around the latents keep, and what a prior makes of it.

    python benchmarks/maps.py --data blood64.npz --maps 4,8,8 8,8,8 4,16,16 --epochs 10 --out benchmarks/results/maps

Each row is one autoencoder of the recipe `sharp` with another map, width or depth, trained for some passes over the
training images, with a mixture (and, by `--sampler-epochs`, flow matching) fitted to its latents. Reconstructions of
validation images tell what the networks lose, samples what the prior loses beyond that. A row that is done is kept in
`--work`.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from notes import keep

import condgen
from condgen.data.batches import image_tensor
from condgen.evaluation.fidelity import fidelity, label_truth, relative_sharpness
from condgen.evaluation.judge import load_judge
from condgen.recipes import RECIPES
from condgen.sampling.grids import to_uint8


def measured(judge: Any, real: condgen.LabelledImages, images: np.ndarray) -> dict[str, float]:
    """FID at both depths, truth to the label, coverage and sharpness of images with the labels of the real ones."""
    own, theirs = judge.embed(images), judge.embed(real.images)
    late, early, truth = (fidelity(theirs.late, own.late), fidelity(theirs.early, own.early), own.probabilities)
    sharp = relative_sharpness(image_tensor(torch.as_tensor(real.images)), image_tensor(torch.as_tensor(images)))
    return {
        "FID": late["fid"],
        "FID early": early["fid"],
        "coverage": late["coverage"],
        "macro": label_truth(truth, real.labels).macro,
        "sharpness": sharp["sharpness"],
    }


def row(options: argparse.Namespace, data: Any, judge: Any, latent: str, width: int, depth: int) -> dict[str, Any]:
    """One autoencoder with its prior."""
    folder = options.work / f"{latent.replace(',', 'x')}_{width}_{depth}_{options.epochs}_{options.sampler_epochs}"
    kept, shape = folder / "row.json", tuple(int(n) for n in latent.split(","))
    if kept.exists():
        return json.loads(kept.read_text())
    likelihood = condgen.recipes.Laplace("optimal")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"latent": shape, "width": width, "depth": depth}
        model = condgen.conditional_vae(data.image_shape, data.num_classes, **sizes, likelihood=likelihood)
    asked: dict[str, Any] = {"epochs": options.epochs, "distil_pairs": 0, "sampler": "mixture"}
    if options.sampler_epochs:
        asked |= {"sampler": "flow_matching", "sampler_epochs": options.sampler_epochs, "steps": 2}
    started = time.perf_counter()
    model, history = RECIPES["sharp"].fit(data, folder, model=model, resume="auto", **asked)
    found: dict[str, Any] = {"map": latent, "width": width, "depth": depth}
    found |= {"minutes": (time.perf_counter() - started) / 60, "images/s": history.rows[-1]["images_per_second"]}
    real = data.validation
    back = to_uint8(model.reconstruct(torch.as_tensor(real.images), real.labels)).numpy()
    drawn = to_uint8(model.sample(real.labels)).numpy()
    for name, images in (("back", back), ("drawn", drawn)):
        found |= {f"{measure}, {name}": value for measure, value in measured(judge, real, images).items()}
    kept.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--maps", nargs="+", default=["4,8,8"], help="channels,height,width")
    parser.add_argument("--widths", type=int, nargs="+", default=[48])
    parser.add_argument("--depths", type=int, nargs="+", default=[1])
    parser.add_argument("--epochs", type=int, default=10, help="passes over the images")
    parser.add_argument("--sampler-epochs", type=int, default=0, help="passes of a flow over the latents; 0: a mixture")
    parser.add_argument("--work", type=Path, default=Path("runs/maps"))
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = condgen.load_data(options.data)
    judge = load_judge(data, cache=options.cache, progress=True)
    rows = [{"map": "real test images", **{f"{k}, drawn": v for k, v in floor(judge, data).items()}}]
    for latent, width, depth in itertools.product(options.maps, options.widths, options.depths):
        rows.append(row(options, data, judge, latent, width, depth))
        print(rows[-1], flush=True)
    columns = list(dict.fromkeys(itertools.chain(*rows[::-1])))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(shown(own.get(column, '–')) for column in columns)} |" for own in rows]
    keep(options.out, "Maps of latents", "\n".join(lines))


def floor(judge: Any, data: Any) -> dict[str, float]:
    """Held-out real images in the place of generated ones, as many as there are."""
    most = min(len(data.validation), len(data.test))
    return measured(judge, data.validation.subset(slice(0, most)), data.test.subset(slice(0, most)).images) | {
        "macro": label_truth(judge.embed(data.test.images).probabilities, data.test.labels).macro
    }


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
