"""Train the judge that comes with condgen for a data set, and put it into the package.

    python benchmarks/ship_judge.py bloodmnist

The same images, versions and threads give the same judge. Its accuracy on the test split is printed, for its card.
"""

import argparse
import time

import condgen
from condgen.apps.timing import machine
from condgen.evaluation.judge import SHIPPED_JUDGES, train_judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--name", help="by default that of the data")
    options = parser.parse_args()
    data, started = condgen.load_data(options.data), time.perf_counter()
    judge = train_judge(data, progress=True)
    file = judge.save(SHIPPED_JUDGES / f"{options.name or options.data}.safetensors")
    guesses = judge.embed(data.test.images).probabilities.argmax(1).numpy()
    right = guesses == data.test.labels
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB after {time.perf_counter() - started:.0f} s; {judge}")
    print(f"test accuracy {right.mean():.4f} on {len(right)} images; training images {judge.fingerprint[:12]}")
    for label, name in enumerate(data.class_names):
        print(f"  {name}: {right[data.test.labels == label].mean():.3f}")
    print(", ".join(f"{key} {value}" for key, value in machine().items()))


if __name__ == "__main__":
    main()
