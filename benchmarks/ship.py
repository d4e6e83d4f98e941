"""Put a trained model into the package, in half precision, and say how much that changes its images.

    python benchmarks/ship.py runs/sharp --name bloodmnist

`condgen.load("bloodmnist")` finds it afterwards. The card beside it is written by hand.
"""

import argparse

import torch

import condgen
from condgen.io.places import SHIPPED, WEIGHTS
from condgen.sampling.grids import to_uint8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--name", default="bloodmnist")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--moments", metavar="DATA", help="match the moments of its distilled network to these images'")
    parser.add_argument("--grain", metavar="DATA", help="estimate the model's grain first, by these training images")
    options = parser.parse_args()
    model = condgen.load(options.run)
    if options.moments:
        flow = condgen.match_moments(model, condgen.load_data(options.moments), symmetries=True)
        values = torch.linalg.eigvalsh(flow.student.matrix)
        print(f"latents are stretched by {values.min():.3f} to {values.max():.3f}")
    if options.grain:
        condgen.fit_grain(model, condgen.load_data(options.grain))
    folder = condgen.save(model, SHIPPED / options.name, half=True)
    again, labels = condgen.load(folder), torch.arange(options.images) % model.conditioner.dim
    before, after = (to_uint8(m.sample(labels)).int() for m in (model, again))
    apart = (before - after).abs()
    size = (folder / WEIGHTS).stat().st_size / 1e6
    print(f"{folder}: {size:.2f} MB; of {apart.numel():,} values of {options.images} images")
    for levels in (0, 1, 2, 4):
        print(f"  {(apart > levels).double().mean():.4%} change by more than {levels} grey levels")
    print(
        f"  the most is {apart.max()}; {(apart.flatten(1).amax(1) > 1).double().mean():.1%} of images have one above 1"
    )


if __name__ == "__main__":
    main()
