"""How often a judge recognises reconstructions, beside the images themselves: where truth to the label is lost.

    python benchmarks/reconstructions.py runs/sharp --out benchmarks/results/reconstructions

What the networks around the latents lose shows here; what is lost beyond that (`benchmarks/quality.py`) the prior
loses.
"""

import argparse
from pathlib import Path

import torch
from notes import keep

import condgen
from condgen.evaluation.fidelity import label_truth
from condgen.evaluation.judge import load_judge
from condgen.sampling.grids import to_uint8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data, model = condgen.load_data(options.data), condgen.load(options.run)
    judge = load_judge(data, cache=options.cache)
    lines = ["| split | images, recognised | macro | reconstructions, recognised | macro |", "|---|---|---|---|---|"]
    for name, part in (("validation", data.validation), ("test", data.test)):
        back = to_uint8(model.reconstruct(torch.as_tensor(part.images), part.labels)).numpy()
        found = [label_truth(judge.embed(images).probabilities, part.labels) for images in (part.images, back)]
        lines.append(f"| {name} | {' | '.join(f'{x:.3f}' for truth in found for x in (truth.accuracy, truth.macro))} |")
    keep(options.out, "Recognised reconstructions", "\n".join(lines))


if __name__ == "__main__":
    main()
