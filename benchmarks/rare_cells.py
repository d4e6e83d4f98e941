"""Rare cells: does balancing with generated images help, where a class has 20 or 100 training images?

    python benchmarks/rare_cells.py --data bloodmnist --recipe fast --cuts 20 100 --classes basophil monocyte --out FILE

For every class and cut a generator is trained on the cut set alone, and classifiers on real images, on real images with
that class oversampled, and on real images with every class filled up by generated ones; all are tested on real images,
by that class's recall and by macro-F1, with the spread over seeds. What is done already in `--runs` is not done again,
so the benchmark can be stopped at any time.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import condgen
from condgen.apps.timing import machine
from condgen.evaluation.arms import StudyPlan
from condgen.evaluation.sources import drawing
from condgen.evaluation.training_sets import cut_class
from condgen.evaluation.usefulness import usefulness
from condgen.recipes import RECIPES


def one(data: Any, name: str, cut: int, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one class cut to so many images."""
    folder = options.runs / f"{name.split('(')[0].replace(' ', '_')}_{cut}"
    file = folder / "usefulness.json"
    if file.is_file():
        return json.loads(file.read_text())
    kept = cut_class(data.train, name, cut, seed=options.seed)
    small = data.train.subset(kept)
    if not (folder / "model.safetensors").is_file():
        chosen = {"minutes": options.minutes} if options.minutes else {}
        cut_set = condgen.LabelledImages(small.images, small.labels, small.class_names, name=f"{name} cut to {cut}")
        RECIPES[options.recipe].fit(cut_set, folder, seed=options.seed, **chosen)
    plan = StudyPlan(seeds=options.seeds, cuts=(cut,))
    found = usefulness(
        drawing(condgen.load(folder)), data, plan=plan, seed=options.seed, rare=name, saw=cut, cache=options.cache
    )
    content = {"rows": found.rows(), **found.to_json()}
    file.write_text(json.dumps(content, indent=1))
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="smears")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--minutes", type=float, help="of training each generator, instead of the recipe's")
    parser.add_argument("--cuts", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--classes", nargs="*", help="by name; by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--runs", type=Path, default=Path("runs/rare"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = condgen.load_data(options.data)
    wanted = [n for n in data.class_names if not options.classes or n.startswith(tuple(options.classes))]
    lines = ["# Rare cells", "", ", ".join(f"{k} {v}" for k, v in machine().items()), ""]
    lines += [f"    python benchmarks/rare_cells.py {' '.join(sys.argv[1:])}", ""]
    for name in wanted:
        for cut in options.cuts:
            rows = one(data, name, cut, options)
            shown = [row for row in rows["rows"] if str(cut) in row["arm"]]
            lines += [f"## {name}, cut to {cut}", "", f"| {' | '.join(shown[0])} |", f"|{'---|' * len(shown[0])}"]
            lines += [*(f"| {' | '.join(map(str, row.values()))} |" for row in shown), ""]
            print("\n".join(lines[-len(shown) - 4 :]), file=sys.stderr, flush=True)
            if options.out:
                options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
