"""How near variations stay to the images they come from: the share that are near copies, and that keep their class.

    python benchmarks/variations.py bloodmnist --images 400 --out benchmarks/results/variations

Near copies are counted as everywhere (flips, quarter turns, small shifts, brightness), against all training images.
Which class a variation shows is what the judge says; of the images themselves it is the ceiling.
"""

import argparse
from pathlib import Path

import numpy as np
from notes import keep

import condgen
from condgen.evaluation.copies import near_copies
from condgen.evaluation.judge import load_judge
from condgen.io.pictures import to_uint8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bloodmnist")
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--images", type=int, default=400, help="training images that are varied once each")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.3, 0.5, 0.7, 1.0])
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data, model = condgen.load_data(options.data), condgen.load(options.model)
    judge, train = load_judge(data, cache=options.cache), data.train
    some = train.subset(train.stratified(options.images / len(train)))
    held = near_copies(train.images, data.test.images, data.validation.images, invariant=True).share
    right = (judge.predict(some.images).numpy() == some.labels).mean()
    lines = [
        f"{len(some)} training images, each varied once; of held-out real images {held:.2%} count as near copies.",
        "",
    ]
    lines += ["| strength | background | near copies | of those images | shows its class |", "|---|---|---|---|---|"]
    lines += [f"| – | the images themselves | – | – | {right:.3f} |"]
    for strength in options.strengths:
        for around in (None, train):
            made = to_uint8(condgen.vary(model, some.images, some.labels, strength=strength, background=around)).numpy()
            copies = near_copies(train.images, made, data.validation.images, invariant=True)
            near = np.abs(made.astype(float) - some.images).mean((1, 2, 3))
            kept = (judge.predict(made).numpy() == some.labels).mean()
            where = "its own" if around is None else "another image's"
            lines.append(
                f"| {strength} | {where} | {copies.share:.1%} | {near.mean():.1f} grey levels away | {kept:.3f} |"
            )
            print(lines[-1], flush=True)
    keep(options.out, "Variations", "\n".join(lines))


if __name__ == "__main__":
    main()
