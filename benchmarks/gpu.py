"""Each family on a GPU: training and sampling rates, and whether launches or arithmetic are what takes the time.

    python benchmarks/gpu.py --data bloodmnist --out benchmarks/results/families_gpu

Training is `fit` with a recipe's own batch, precision and augmentation, images per second of a hundred steps once they
are recorded as CUDA graphs, and beside it of steps whose operations are asked for one by one (`cuda_graphs=False`);
discriminators take part from the first step. "Busy" is the share of a step in which the GPU computes (torch's
profiler); what is missing from 100 % is waiting to be asked. Sampling is `sample` of 16,384 labels, images on the GPU.
"""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from notes import keep
from torch.profiler import ProfilerActivity, profile

import condgen
from condgen.apps.timing import peak, reset_peak, synchronise
from condgen.models.generator import BLOCK
from condgen.recipes import RECIPES
from condgen.training.callbacks import LambdaCallback

NAMES = ("bloodmnist_reference", "fast", "gan", "flow", "diffusion")
FIRST, TIMED, PROFILED = 20, 100, 20  # steps before, and steps that are timed and profiled
DRAWN = 16384


class EnoughError(Exception):
    """Enough steps were seen."""


def steps(recipe: str, data: Any, graphs: bool) -> dict[str, float]:
    """Milliseconds of a step, then of its kernels and how many there are."""
    seen, times, count = profile(activities=[ProfilerActivity.CUDA]), [], 0
    marks = (FIRST, FIRST + TIMED, FIRST + TIMED + PROFILED)

    def step(*_: Any) -> None:
        nonlocal count
        count += 1
        if count in marks:
            torch.cuda.synchronize()
            times.append(time.perf_counter())
        if count == marks[1]:
            seen.start()
        if count == marks[2]:
            seen.stop()
            raise EnoughError

    chosen: dict[str, Any] = {"discriminator_start": 0.0} if RECIPES[recipe].loss else {}
    reset_peak(torch.device("cuda"))
    with suppress(EnoughError):
        chosen |= {"accelerator": "cuda", "cuda_graphs": graphs}
        RECIPES[recipe].fit(data, progress=False, epochs=100, callbacks=[LambdaCallback(on_step=step)], **chosen)
    kernels = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    taken = sum(event.device_time_total for event in kernels) / PROFILED / 1000
    found = {"step": 1000 * (times[1] - times[0]) / TIMED, "kernels": taken, "launches": len(kernels) / PROFILED}
    return found | {"memory": peak(torch.device("cuda")) or 0.0}


def sampling(recipe: str, data: Any) -> float:
    """Images per second, by a model that has learnt nothing: it takes as long."""
    model = RECIPES[recipe].build(data.image_shape, data.num_classes).cuda()
    labels = torch.arange(DRAWN) % data.num_classes
    model.sample(labels[:BLOCK])
    synchronise(torch.device("cuda"))
    started = time.perf_counter()
    model.sample(labels)
    synchronise(torch.device("cuda"))
    return DRAWN / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="smears")
    parser.add_argument("--recipes", nargs="+", default=list(NAMES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = condgen.load_data(options.data, n=6000)
    head = ["recipe", "batch", "precision", "training, images/s", "times one by one", "step, ms", "kernels, ms"]
    head += ["busy", "one by one: step, ms", "launches", "busy", "memory, GiB", "sampling, images/s"]
    rows, kept = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"], {}
    for recipe in options.recipes:
        training = RECIPES[recipe].training
        own, plain = steps(recipe, data, graphs=True), steps(recipe, data, graphs=False)
        cells = [recipe, f"{training.batch_size}", training.precision]
        cells += [f"{1000 * training.batch_size / own['step']:,.0f}", f"{plain['step'] / own['step']:.1f}"]
        cells += [f"{own['step']:.2f}", f"{own['kernels']:.2f}", f"{own['kernels'] / own['step']:.0%}"]
        cells += [f"{plain['step']:.2f}", f"{plain['launches']:.0f}", f"{plain['kernels'] / plain['step']:.0%}"]
        drawn = sampling(recipe, data)
        kept[recipe] = {"graphs": own, "one by one": plain, "sampling": drawn}
        cells += [f"{own['memory']:.2f}", f"{drawn:,.0f}"]
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    keep(options.out, "Families of models on a GPU", "\n".join(rows), "cuda")
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
