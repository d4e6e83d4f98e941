"""What a newcomer waits for on this machine, in one table: starting up, drawing, evaluating, testing, training.

    python benchmarks/portable.py --out benchmarks/results/portable
    python benchmarks/portable.py --isa AVX2 --out benchmarks/results/portable_avx2   # oneDNN as on an older machine

Each row is a command in a new process. Starting up is told as multiples of `import torch`, measured in turn with it.
Trainings take a part of the data and are told for a whole pass. Rows that are done are kept beside the table
(`.json`); the same command goes on with those that are missing.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import condgen
from condgen.apps.timing import machine
from condgen.nn.precision import native_bfloat16, slowdown

ROUNDS = 3
PART, LATENTS_PART = 1920, 960  # images of a training that is told for a whole pass
PYTHON = [sys.executable]
CONDGEN = [sys.executable, "-m", "condgen"]
FIRST_DRAW = """import time, condgen; model = condgen.load("bloodmnist"); start = time.perf_counter(); model.sample([0])
print(time.perf_counter() - start)"""


def seconds(command: list[str], expected: int = 0, **options) -> tuple[float, str]:
    """How long a command takes, and what it said."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    taken = time.perf_counter() - started
    if done.returncode != expected:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return taken, done.stdout + done.stderr


def against_torch(command: list[str], expected: int = 0) -> str:
    """A command and `import torch` in turn: seconds, and their ratio."""
    pairs = [(seconds([*PYTHON, "-c", "import torch"])[0], seconds(command, expected)[0]) for _ in range(ROUNDS)]
    base, own = (statistics.median(column) for column in zip(*pairs, strict=True))
    return f"{own:.2f} s, {own / base:.2f} times import torch ({base:.2f} s)"


def first_draw() -> str:
    taken = statistics.median(float(seconds([*PYTHON, "-c", FIRST_DRAW])[1]) for _ in range(ROUNDS))
    return f"{taken:.2f} s"


def timed(*command: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        taken, _ = seconds([part.replace("FOLDER", folder) for part in command])
    return f"{taken:.0f} s"


def tests() -> str:
    taken, said = seconds([*PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"], cwd=Path(__file__).parents[1])
    return f"{taken:.0f} s: {said.strip().splitlines()[-1].strip('= ')}"


def part_of(data, images: int, file: Path) -> Path:
    """A file with a part of the training images, and few to validate on."""
    kept = data.train.subset(data.train.stratified(images / len(data.train)))
    few = data.validation.subset(data.validation.stratified(64 / len(data.validation)))
    arrays = {"class_names": np.array(data.class_names)}
    for prefix, split in (("train", kept), ("val", few), ("test", few)):
        arrays |= {f"{prefix}_images": split.images.transpose(0, 2, 3, 1), f"{prefix}_labels": split.labels}
    np.savez(file, **arrays)
    return file


def one_pass(data, recipe: str, precision: str) -> str:
    """Seconds of a whole pass over images (and over latents), from a part of them."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = part_of(data, PART if recipe == "fast" else LATENTS_PART, Path(folder, "part.npz")), f"{folder}/run"
        options = ["--data", str(file), "--recipe", recipe, "--out", out, "--epochs", "2", "--precision", precision]
        more = ["--sampler", "none"] if recipe == "fast" else ["--sampler-epochs", "1", "--components", "1"]
        _, said = seconds([*CONDGEN, "train", *options, *more])
        rates = [float(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) images/s", said)]
    n = len(data.train)
    if recipe == "fast":
        return f"{n / rates[1]:.0f} s ({rates[1]:,.0f} images/s, with its discriminator)"
    return f"{8 * n / rates[-1]:.0f} s over the latents ({rates[-1]:,.0f} latents/s)"


def announced(data) -> str:
    """What a whole recipe says that it will take, and what it takes."""
    with tempfile.TemporaryDirectory() as folder:
        file = part_of(data, PART, Path(folder, "part.npz"))
        options = ["--data", str(file), "--recipe", "sharp", "--out", f"{folder}/run", "--epochs", "4"]
        taken, said = seconds([*CONDGEN, "train", *options, "--sampler-epochs", "1", "--components", "2"])
    number, unit = re.search(r"about ([\d.]+) (s|min) on this machine", said).groups()
    return f"{float(number) * (60 if unit == 'min' else 1):.0f} s announced, {taken:.0f} s taken (starting up included)"


def budget(data, recipe: str, minutes: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [*CONDGEN, "train", "--data", "bloodmnist", "--recipe", recipe, "--minutes", f"{minutes}"]
        taken, _ = seconds([*command, "--out", f"{folder}/run"])
        passes = json.loads(Path(folder, "run", "run.json").read_text())["passes"]
    return f"{taken:.0f} s of {66 * minutes + 10:.0f} s at most; {passes:.2f} passes over {len(data.train):,} images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a name without ending, for .md and .json")
    parser.add_argument("--isa", help="of oneDNN, such as AVX2: as an older machine would compute")
    parser.add_argument("--skip", nargs="*", default=[], help="parts of names of rows to leave out")
    options = parser.parse_args()
    if options.isa and os.environ.get("ONEDNN_MAX_CPU_ISA") != options.isa:  # read when the library is loaded
        os.environ["ONEDNN_MAX_CPU_ISA"] = options.isa
        os.execv(sys.executable, [sys.executable, *sys.argv])
    data = condgen.load_data("bloodmnist")
    rows = {
        "python -c 'import condgen'": lambda: against_torch([*PYTHON, "-c", "import condgen; condgen.fit"]),
        "condgen --help": lambda: against_torch([*CONDGEN, "--help"]),
        "condgen train --help": lambda: against_torch([*CONDGEN, "train", "--help"]),
        "wrong usage": lambda: against_torch([*CONDGEN, "train", "--epochs", "many"], 2),
        "condgen sample bloodmnist --per-class 10": lambda: against_torch(
            [*CONDGEN, "sample", "bloodmnist", "--per-class", "10", "--out", f"{tempfile.gettempdir()}/cells.png"]
        ),
        "first model.sample([0]) of a loaded model": first_draw,
        "condgen benchmark --quick": lambda: timed(*CONDGEN, "benchmark", "--quick"),
        "condgen evaluate bloodmnist --quick": lambda: timed(
            *CONDGEN, "evaluate", "bloodmnist", "--quick", "--out", "FOLDER"
        ),
        "fast, one pass, float32": lambda: one_pass(data, "fast", "32-true"),
        "fast, one pass, bfloat16": lambda: one_pass(data, "fast", "bf16-mixed"),
        "sharp, one pass, float32": lambda: one_pass(data, "sharp", "32-true"),
        "sharp, one pass, bfloat16": lambda: one_pass(data, "sharp", "bf16-mixed"),
        "sharp on a part, announced and real": lambda: announced(data),
        "fast --minutes 1": lambda: budget(data, "fast", 1),
        "sharp --minutes 2": lambda: budget(data, "sharp", 2),
        "pytest": tests,
    }
    kept = options.out and options.out.with_suffix(".json")
    found = json.loads(kept.read_text())["rows"] if kept and kept.exists() else {}
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    about = {
        **machine(),
        "AVX-512": "avx512f" in flags,
        "AVX-512 BF16": "avx512_bf16" in flags,
        "oneDNN": options.isa or "as it is",
        "bfloat16 reported native": native_bfloat16(),
        "bfloat16 / float32, one convolution": round(slowdown(48, 48, 14, 14), 2),
    }
    for name, measure in rows.items():
        if name in found or any(part in name for part in options.skip):
            continue
        found[name] = measure()
        print(f"{name}: {found[name]}", flush=True)
        if kept:
            kept.write_text(json.dumps({"machine": about, "rows": found}, indent=1) + "\n")
    command = f"python benchmarks/portable.py {' '.join(sys.argv[1:])}"
    lines = ["# What one waits for", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += [f"    {command}", "", "| what | how long |", "|---|---|", *(f"| {k} | {v} |" for k, v in found.items())]
    print("\n".join(lines))
    if options.out:
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
