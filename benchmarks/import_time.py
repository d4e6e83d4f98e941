"""What does `import condgen` cost beside `import torch`? Each in new processes, in turn; medians and their ratio.

python benchmarks/import_time.py            print the figures
python benchmarks/import_time.py --check    fail if the ratio is above 1.3
"""

import statistics
import subprocess
import sys

ROUNDS, LIMIT = 7, 1.3
TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def seconds(module: str) -> float:
    return float(subprocess.run([sys.executable, "-c", TIMED.format(module)], capture_output=True, check=True).stdout)


def main() -> None:
    for module in ("torch", "condgen"):  # once without counting, so that both are in the file cache
        seconds(module)
    times = {"torch": [], "condgen": []}
    for _ in range(ROUNDS):
        for module, taken in times.items():
            taken.append(seconds(module))
    medians = {module: statistics.median(taken) for module, taken in times.items()}
    ratio = medians["condgen"] / medians["torch"]
    print(f"import torch {medians['torch']:.2f} s, import condgen {medians['condgen']:.2f} s, ratio {ratio:.2f}")
    if "--check" in sys.argv and ratio > LIMIT:
        sys.exit(f"import condgen costs more than {LIMIT} times import torch")


if __name__ == "__main__":
    main()
