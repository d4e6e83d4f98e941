"""The student report's suggestions on the road of the sharp recipes: augmentations, deeper, larger latents; one table.

    python benchmarks/ablation.py --data bloodmnist --epochs 12 --out benchmarks/results/ablation

Each row changes one thing of the recipe `fast` and trains for the same number of epochs, with one seed. Figures are of
generated images against real validation images (`benchmarks/quality.py`). What is done already in `--runs` is not done
again, so the benchmark can be stopped at any time.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from notes import keep
from quality import COLUMNS, measured, number

import condgen
from condgen.data.augmentation import Augmentation
from condgen.evaluation.judge import load_judge
from condgen.recipes import RECIPES
from condgen.sampling.grids import to_uint8

TURNS: dict[str, Any] = {"flips": True, "quarter_turns": True}
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name → options of the model, numbers of the training
    "fast: flips and quarter turns": ({}, {}),
    "no augmentation": ({}, {"augment": Augmentation()}),
    "rotation by up to 15 degrees": ({}, {"augment": Augmentation(**TURNS, rotation=15)}),
    "shift by up to a tenth": ({}, {"augment": Augmentation(**TURNS, shift=0.1)}),
    "colour by up to a tenth": ({}, {"augment": Augmentation(**TURNS, colour=0.1)}),
    "a square erased": ({}, {"augment": Augmentation(**TURNS, erasing=0.3)}),
    "blur and sharpening": ({}, {"augment": Augmentation(**TURNS, blur=0.5, sharpen=0.5)}),
    "deeper: two blocks a map": ({"depth": 2}, {}),
    "larger latent: 8 channels": ({"channels": 8}, {}),
    "without the discriminator": ({}, {"adversarial": 0.0, "matching": 0.0}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", nargs="*", help="rows whose names begin so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = condgen.load_data(options.data)
    judge, real, floor = load_judge(data, cache=options.cache), data.validation, data.test
    rows = {"real images": measured(judge, data, real, floor.images, floor.labels, floor)}
    for number_, (name, (built, trained)) in enumerate(ROWS.items()):
        if options.only and not name.startswith(tuple(options.only)):
            continue
        folder = options.runs / f"{number_:02d}_{options.epochs}"
        file = folder / "quality.json"
        if not file.is_file():
            recipe = RECIPES["fast"]
            torch.manual_seed(options.seed)
            model = recipe.build(data.image_shape, data.num_classes, **built)
            shared = {"epochs": options.epochs, "seed": options.seed, "resume": "auto"}
            model, history = recipe.fit(data, folder, model=model, **shared, **trained)
            images = to_uint8(model.sample(real.labels)).numpy()
            row = measured(judge, data, real, images, real.labels, floor)
            file.write_text(json.dumps(row | {"seconds": sum(history["seconds"])}, indent=1))
        rows[name] = json.loads(file.read_text())
        print(name, rows[name], flush=True)
    columns = [*COLUMNS[:-1], "seconds"]
    lines = [f"| one change | {' | '.join(column.replace('_', ' ') for column in columns)} |"]
    lines += [f"|---{'|---' * len(columns)}|"]
    lines += [f"| {name} | {' | '.join(number(row.get(column)) for column in columns)} |" for name, row in rows.items()]
    keep(options.out, "Suggestions, one at a time", "\n".join(lines))


if __name__ == "__main__":
    main()
