"""What does an evaluation cost? Seconds and peak memory of judge, evaluation and usefulness, each in its own process.

    python benchmarks/evaluation_cost.py runs/reference --data bloodmnist \
        --out benchmarks/results/evaluation_cost_cpu_202611.md

The judge is trained into an empty cache, so its figure is that of a first evaluation; the others find it there.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

STEPS = ("judge", "none", "quick")
LIMITS = {"judge": "12 minutes", "none": "60 s, 2 GB", "quick": "5 minutes"}


def measure(step, run, data, cache):
    """One step in this process: wall and CPU seconds, peak memory, and what it found."""
    import torch

    import condgen
    from condgen.evaluation.judge import load_judge

    images = condgen.load_data(data)
    started, cpu = time.perf_counter(), time.process_time()
    if step == "judge":
        judge = load_judge(images, cache=cache)
        result = {"validation": judge.accuracy}
    else:
        found = condgen.evaluate(condgen.load(run), images, usefulness=step, cache=cache)
        result = {
            "images": found.details["settings"]["images"],
            "judge on test": found.details["judge"]["test_accuracy"],
        }
    figures = {
        "step": step,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **result,
    }
    print(json.dumps(figures))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--cache", help="a folder of judges to use; by default an empty one")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.run, options.data, options.cache)
        return
    lines = []
    with tempfile.TemporaryDirectory() as empty:
        cache = options.cache or empty
        for step in options.steps:
            command = [sys.executable, __file__, options.run, "--data", options.data, "--one", step, "--cache", cache]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
            figures = json.loads(done.stdout.splitlines()[-1])
            print(figures, flush=True)
            lines.append((step, figures))
    head = {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "torch": lines[0][1]["torch"],
    }
    load = f"load average at the end {os.getloadavg()[0]:.1f}"
    text = [
        f"Command and meaning: `benchmarks/evaluation_cost.py`. {json.dumps(head)}, {os.cpu_count()} cores, {load}.",
        "",
    ]
    text += ["| step | limit | seconds | CPU seconds | peak memory, GB | |", "|---|---|---|---|---|---|"]
    for step, f in lines:
        rest = ", ".join(
            f"{key} {value:.4g}" for key, value in f.items() if key in ("validation", "images", "judge on test")
        )
        text.append(
            f"| {step} | {LIMITS[step]} | {f['seconds']:.0f} | {f['cpu_seconds']:.0f} | {f['peak_gb']:.2f} | {rest} |"
        )
    print("\n".join(text))
    if options.out:
        options.out.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
