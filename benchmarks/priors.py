"""Four priors to sample one trained model from, in one call: figures of each on validation images.

    python benchmarks/priors.py runs/fast --minutes 5 --out benchmarks/results/priors

The standard normal of its training, a mixture per class, a neural spline flow (if zuko is installed) and flow matching
from the mixture, each fitted to the latents of the training images; see `quality.py` for the columns.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch
from quality import COLUMNS, measured, number

import condgen
from condgen.apps.timing import machine
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.distributions.priors.normalizing_flow import Flow
from condgen.evaluation.judge import load_judge
from condgen.recipes import FLOW_MATCHING
from condgen.sampling.grids import to_uint8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training each of those that are trained")
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data, model = condgen.load_data(options.data), condgen.load(options.run)
    judge, latent, dim = load_judge(data, cache=options.cache), model.prior.noise_shape, model.conditioner.dim
    matching = {"training": FLOW_MATCHING, "minutes": options.minutes}
    mixture = partial(GaussianMixture, latent, dim, options.components, em=5)
    wanted = {"standard normal": (None, {}), "mixture": (mixture(), {})}
    try:
        wanted["neural spline flow"] = (Flow(latent, dim), {"minutes": options.minutes})
    except ImportError as error:
        print(error, file=sys.stderr)
    wanted["flow matching from the mixture"] = (FlowMatching(latent, dim, mixture()), matching)
    lines = [f"| prior | seconds to fit | {' | '.join(COLUMNS)} |", f"|---|---{'|---' * len(COLUMNS)}|"]
    for name, (prior, how) in wanted.items():
        started = time.perf_counter()
        model.sampler = None
        if prior is not None:
            condgen.fit_prior(model, data, prior, symmetries=True, **how)
        seconds, labels = time.perf_counter() - started, data.validation.labels
        model.sample(labels[:64])
        started = time.perf_counter()
        images = to_uint8(model.sample(labels)).numpy()
        rate = {"images_per_second": len(images) / (time.perf_counter() - started)}
        row = measured(judge, data, data.validation, images, labels, data.test) | rate
        lines.append(f"| {name} | {seconds:,.0f} | {' | '.join(number(row.get(column)) for column in COLUMNS)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    about = ["# Four priors for one model", "", ", ".join(f"{k} {v}" for k, v in machine().items()), ""]
    about += [
        f"    python benchmarks/priors.py {' '.join(sys.argv[1:])}",
        "",
        f"{torch.get_num_threads()} threads.",
        "",
    ]
    print("\n".join([*about, *lines]))
    if options.out:
        options.out.with_suffix(".md").write_text("\n".join([*about, *lines]) + "\n")


if __name__ == "__main__":
    main()
