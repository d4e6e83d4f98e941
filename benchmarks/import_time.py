"""What does starting up cost beside `import torch`? Each in new processes, in turn; medians and their ratios.

python benchmarks/import_time.py            print the figures
python benchmarks/import_time.py --check    fail if a ratio is above its limit
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5
CONDGEN = [sys.executable, "-m", "condgen"]
PICTURE = str(Path(tempfile.gettempdir()) / "condgen_import_time.png")
LIMITS = {  # command, what it ends with, how many times `import torch` it may take
    "import condgen and torch": ([sys.executable, "-c", "import condgen, torch"], 0, 1.3),
    "condgen --help": ([*CONDGEN, "--help"], 0, 0.25),
    "condgen train --help": ([*CONDGEN, "train", "--help"], 0, 0.25),
    "wrong usage": ([*CONDGEN, "train", "--epochs", "many"], 2, 0.25),
    "condgen sample": ([*CONDGEN, "sample", "bloodmnist", "--per-class", "10", "--out", PICTURE], 0, 2.0),
}


def seconds(command: list[str], expected: int) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode != expected:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return taken


def main() -> None:
    torch = [sys.executable, "-c", "import torch"]
    for command, expected, _ in LIMITS.values():  # once without counting, so that all is in the file cache
        seconds(command, expected)
    times: dict[str, list[float]] = {"import torch": []} | {name: [] for name in LIMITS}
    for _ in range(ROUNDS):
        times["import torch"].append(seconds(torch, 0))
        for name, (command, expected, _) in LIMITS.items():
            times[name].append(seconds(command, expected))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    slow = []
    for name, median in medians.items():
        ratio, limit = median / medians["import torch"], LIMITS.get(name, (None, None, 1.0))[2]
        print(f"{name}: {median:.2f} s, {ratio:.2f} times import torch (at most {limit})")
        if ratio > limit:
            slow.append(name)
    if "--check" in sys.argv and slow:
        sys.exit(f"too slow: {', '.join(slow)}")


if __name__ == "__main__":
    main()
