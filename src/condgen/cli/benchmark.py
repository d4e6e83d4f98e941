"""Benchmark: how fast encoder and decoder variants are on this machine."""

__all__ = ["benchmark"]

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condgen.cli.shared import Accelerator, kind_of, say, show
from condgen.io.atomic import check_writable, write_atomically
from condgen.training.settings import NETWORKS, Checked, changed, setting


@dataclass(frozen=True)
class OwnNetworks(Checked):
    """Networks of your own, timed as "own" beside the others.

    Args:
        encoder: an encoder as my.module:MyEncoder, called with (image_shape, condition_dim, latent).
        decoder: the same for a decoder, called with (output_shape, latent, condition_dim).
    """

    encoder: str | None = setting(None)
    decoder: str | None = setting(None)


@dataclass(frozen=True)
class Stages(Checked):
    """The stages of a recipe, timed instead of networks: what forward, backward, optimizer and so on take of each.

    Args:
        recipe: its name, such as sharp.
        data: images for it, smears, a MedMNIST set, an npz file or a folder.
    """

    recipe: str | None = setting(None)
    data: str = setting("smears")


def benchmark(
    networks: list[str] = list(NETWORKS),  # noqa: B006 - never changed
    widths: list[int] = [32],  # noqa: B006
    sizes: list[int] = [28],  # noqa: B006
    batches: list[int] = [128],  # noqa: B006
    precisions: list[str] = ["float32", "bfloat16"],  # noqa: B006
    modes: list[str] = ["eager"],  # noqa: B006
    layouts: list[str] = ["contiguous"],  # noqa: B006
    seconds: float = 2.0,
    quick: bool = False,
    out: Path | None = None,
    accelerator: Accelerator = "auto",
    given: Mapping[str, Any] | None = None,
) -> None:
    """Time encoder and decoder variants on this machine: a training step and sampling, and what share of it they use.

    Args:
        networks: reference (trimmed), reference_untrimmed, conv, resnet, resnet_map, gan, flow, own.
        widths: channels of the first map of conv and resnet.
        sizes: height and width of images.
        batches: images a step.
        precisions: float32, bfloat16.
        modes: eager, compiled, graphs (CUDA graphs).
        layouts: contiguous, channels_last.
        seconds: spent on each figure, about.
        quick: a quarter of a second each: the whole of the defaults within two minutes on any two cores. bfloat16 is
            timed where the machine computes in it; elsewhere one convolution says how much slower it is.
        out: a name without ending, for .md, .json and .png; by default the table is only shown.
        accelerator: where to run.
        given: settings by name, of :class:`OwnNetworks` and :class:`Stages`.
    """
    from condgen.apps.benchmarking import benchmark as time_variants
    from condgen.apps.benchmarking import cells, grid, markdown, plot
    from condgen.apps.timing import machine
    from condgen.io.pictures import write_figure

    if out is not None:
        check_writable(out.parent)
    own, stages = changed(OwnNetworks(), Stages(), **(given or {}))
    if stages.recipe is not None:
        benchmark_recipe(stages.recipe, stages.data, precisions, out, accelerator)
        return
    networks = [*networks, "own"] if (own.encoder or own.decoder) and "own" not in networks else networks
    variants = grid(networks, widths, sizes, batches, precisions, modes, layouts)
    device = kind_of(accelerator)
    about = {**machine(device), "multiply-adds": "forward, one image"}
    results = []

    def tell(name: str) -> None:
        print(f"{len(results) + 1}/{len(variants)} {name}", file=sys.stderr)

    for result in time_variants(
        variants, encoder=own.encoder, decoder=own.decoder, seconds=0.25 if quick else seconds, device=device, tell=tell
    ):
        results.append(result)
    command = f"condgen {' '.join(sys.argv[1:])}" if sys.argv[1:2] == ["benchmark"] else "condgen benchmark"
    text = markdown(results, about, command)
    columns = ("variant", "train", "sample", "of product", "of layers", "")
    rows = (cells(result) for result in results)  # images per second, and shares of the machine's own rate
    show([columns, *([row[k] for k in (0, 1, 2, 4, 5, 9)] for row in rows)])
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out.with_suffix(".md"), f"{text}\n".encode())
        content = {"machine": about, "command": command, "results": [asdict(result) for result in results]}
        write_atomically(out.with_suffix(".json"), json.dumps(content, indent=1).encode())
        write_figure(plot(results), out.with_suffix(".png"))
        say(f"Wrote {out.with_suffix('.md')}, .json and .png.")


def benchmark_recipe(name: str, place: str, precisions: list[str], out: Path | None, accelerator: Accelerator) -> None:
    """Time the stages of a recipe, in each precision that this machine computes in natively."""
    from condgen.apps.benchmarking import emulated
    from condgen.apps.stages import stage_times, table
    from condgen.apps.timing import machine
    from condgen.data.readers import load_data
    from condgen.recipes import RECIPES
    from condgen.training.settings import Hardware

    if name not in RECIPES:
        raise ValueError(f"Expected a recipe, one of {', '.join(RECIPES)}; got {name!r}.")
    images, device = load_data(place), kind_of(accelerator)
    command = f"condgen benchmark --recipe {name} --data {place}"
    lines = [f"# Stages of {name}", "", ", ".join(f"{k} {v}" for k, v in machine(device).items()), "", f"    {command}"]
    known = {"float32": "32-true", "bfloat16": "bf16-mixed"}
    for precision in precisions:
        if precision not in known:
            raise ValueError(f"Expected --precisions among {', '.join(known)}; got {precision!r}.")
        if precision == "bfloat16" and device == "cpu" and (factor := emulated()) is not None:
            say(f"bfloat16 is not native here: {factor:.1f} times slower than float32 (one convolution).")
            continue
        where, found = Hardware(accelerator=accelerator), []
        for stage in stage_times(RECIPES[name], images, precision=known[precision], hardware=where):
            found.append(stage)
            say(f"{precision}: {stage.stage}, {stage.rate:,.0f} {stage.unit}/s")
        rows = table(found)
        show(rows)
        lines += ["", f"## {precision}", "", f"| {' | '.join(rows[0])} |", "|" + "---|" * len(rows[0])]
        lines += [f"| {' | '.join(row)} |" for row in rows[1:]]
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out.with_suffix(".md"), ("\n".join(lines) + "\n").encode())
        say(f"Wrote {out.with_suffix('.md')}.")


benchmark.examples = (  # type: ignore[attr-defined]
    "condgen benchmark --quick",
    "condgen benchmark --recipe sharp --data bloodmnist",
)


benchmark.settings = (OwnNetworks, Stages)  # type: ignore[attr-defined]
