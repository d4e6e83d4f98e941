"""The recipes on other data than they were made for: built-in smears at 64x64, and grey images of two classes.

    python benchmarks/other_data.py --minutes 4 --sampler-minutes 3 --out benchmarks/results/other_data

Nothing but the data changes. Measures by a judge of these data (`benchmarks/quality.py`), with held-out real images in
the place of generated ones as the floor. With less time than the recipes ask for, figures are lower bounds.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from quality import COLUMNS, measured, number

import condgen
from condgen.apps.timing import machine
from condgen.data.images import LabelledImages
from condgen.evaluation.judge import load_judge
from condgen.io.pictures import save_grid
from condgen.recipes import RECIPES
from condgen.sampling.grids import per_class, to_uint8


def grey(n: int) -> LabelledImages:
    """Grey smears of two classes: cells with a round nucleus, and others."""
    cells = condgen.load_smears(n)
    images = cells.images.mean(1, keepdims=True).round().astype(np.uint8)
    kinds = [cells.class_names.index(name) for name in ("erythroblast", "lymphocyte", "platelet")]
    round_ = np.isin(cells.labels, kinds)
    return LabelledImages(images, round_.astype(np.int64), ("lobed", "round"), name="grey smears").split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=6.0, help="of all stages of a recipe")
    parser.add_argument("--recipes", nargs="+", default=["fast", "sharp"])
    parser.add_argument("--sets", nargs="+", default=["grey", "smears64"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sets = {"grey": lambda: grey(options.images), "smears64": lambda: condgen.load_smears(options.images, size=64)}
    rows: dict[str, dict[str, float]] = {}
    for name in options.sets:
        data = sets[name]()
        with tempfile.TemporaryDirectory() as folder:
            judge = load_judge(data, cache=folder, epochs=6)
        real, floor = data.test, data.validation
        rows[f"{name}: real"] = measured(judge, data, real, floor.images, floor.labels, floor)
        for recipe in options.recipes:
            model, _ = RECIPES[recipe].fit(data, minutes=options.minutes, progress=False)
            images = to_uint8(model.sample(real.labels)).numpy()
            rows[f"{name}: {recipe}"] = measured(judge, data, real, images, real.labels, floor)
            print(f"{name}: {recipe}", rows[f"{name}: {recipe}"], flush=True)
            if options.out:
                save_grid(per_class(model, 10), Path(f"{options.out}_{name}_{recipe}.png"), data.class_names)
    about = ", ".join(f"{key} {value}" for key, value in machine().items())
    command = f"python benchmarks/other_data.py --images {options.images} --minutes {options.minutes}"
    lines = ["# The recipes on other data", "", f"{about}.", "", f"    {command}", ""]
    lines += [f"| images | {' | '.join(column.replace('_', ' ') for column in COLUMNS)} |"]
    lines += [f"|---{'|---' * len(COLUMNS)}|"]
    lines += [f"| {name} | {' | '.join(number(row.get(column)) for column in COLUMNS)} |" for name, row in rows.items()]
    print("\n".join(lines))
    if options.out:
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
        options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
