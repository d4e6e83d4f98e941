"""Each family on a GPU: training and sampling rates, and whether launches or arithmetic are what takes the time.

    python benchmarks/gpu.py --data bloodmnist --out benchmarks/results/families_gpu

Training is `fit` with a recipe's own batch, precision and augmentation, images per second of its later epochs;
discriminators take part from the first step. "Busy" is the share of a step in which the GPU computes (torch's
profiler, twenty steps), so what is missing from 100 % is waiting for launches. Sampling is `sample` of 4,096 labels,
images on the GPU. Beside each rate is that of the CPU of the same machine where `--cpu` is given.
"""

import argparse
import json
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from notes import keep
from torch.profiler import ProfilerActivity, profile

import condgen
from condgen.benchmarking import peak, reset_peak, synchronise
from condgen.recipes import RECIPES

NAMES = ("bloodmnist_reference", "fast", "gan", "flow", "diffusion")
FIRST, PROFILED = 10, 20  # steps before, and steps that are profiled
DRAWN = 4096


class EnoughError(Exception):
    """Enough steps were seen."""


def trained(recipe: str, data: Any, device: str, **options: Any) -> tuple[Any, Any]:
    """Model and history, without what is fitted to latents afterwards."""
    chosen: dict[str, Any] = {"critic_start": 0.0} if RECIPES[recipe].numbers()["adversarial"] else {}
    chosen |= {"sampler": "none"} if RECIPES[recipe].numbers()["sampler"] != "none" else {}
    return RECIPES[recipe].fit(data, accelerator=device, progress=False, **chosen, **options)


def profiled(recipe: str, data: Any) -> dict[str, float]:
    """Launches a step, and milliseconds of a step and of its kernels."""
    seen, times = profile(activities=[ProfilerActivity.CUDA]), []

    def step(epoch: int, k: int, _: Any) -> None:
        if k == FIRST:
            torch.cuda.synchronize()
            seen.start()
            times.append(time.perf_counter())
        if k == FIRST + PROFILED:
            torch.cuda.synchronize()
            times.append(time.perf_counter())
            seen.stop()
            raise EnoughError

    with suppress(EnoughError):
        trained(recipe, data, "cuda", epochs=1, on_step=step)
    kernels = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    taken = sum(event.device_time_total for event in kernels) / PROFILED / 1000
    return {"launches": len(kernels) / PROFILED, "step": 1000 * (times[1] - times[0]) / PROFILED, "kernels": taken}


def rates(recipe: str, data: Any, device: str, epochs: int) -> dict[str, float]:
    """Images per second of training and sampling, and the highest memory, GiB."""
    reset_peak(torch.device(device))
    model, history = trained(recipe, data, device, epochs=epochs)
    memory, labels = peak(torch.device(device)) or 0.0, torch.arange(DRAWN) % data.num_classes
    model.to(device)
    model.sample(labels)
    synchronise(torch.device(device))
    started = time.perf_counter()
    model.sample(labels)
    synchronise(torch.device(device))
    found = {"training": statistics.median(history["images_per_second"][1:]), "memory": memory}
    return {**found, "sampling": DRAWN / (time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="smears")
    parser.add_argument("--recipes", nargs="+", default=list(NAMES))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="also on the CPU, two epochs each")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = condgen.load_data(options.data, n=6000)
    head = ["recipe", "batch", "precision", "training, images/s", "sampling, images/s", "memory, GiB"]
    head += ["launches a step", "step, ms", "kernels, ms", "busy"]
    head += ["CPU: training, images/s", "sampling, images/s"] if options.cpu else []
    rows, kept = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"], {}
    for recipe in options.recipes:
        numbers = RECIPES[recipe].numbers()
        own = rates(recipe, data, "cuda", options.epochs) | profiled(recipe, data)
        cells = [recipe, f"{numbers['batch_size']}", numbers["precision"]]
        cells += [f"{own['training']:,.0f}", f"{own['sampling']:,.0f}", f"{own['memory']:.2f}"]
        cells += [f"{own['launches']:.0f}", f"{own['step']:.2f}", f"{own['kernels']:.2f}"]
        cells += [f"{own['kernels'] / own['step']:.0%}"]
        if options.cpu:
            own["cpu"] = rates(recipe, data, "cpu", 2)
            cells += [f"{own['cpu']['training']:,.0f}", f"{own['cpu']['sampling']:,.0f}"]
        kept[recipe] = own
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    keep(options.out, "Families of models on a GPU", "\n".join(rows), "cuda")
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
