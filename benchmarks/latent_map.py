"""A latent map and a mixture fitted to it, in ten minutes on two cores: no discriminator, one pass to sample.

    python benchmarks/latent_map.py --data bloodmnist --out runs/latent_map --minutes 9

Trains residual networks with a map of 4x7x7 latents and a Laplace likelihood (bf16, averaged weights, flips and quarter
turns) within the budget, fits a mixture of 16 Gaussians per class to the latents of all symmetries of the training
images, saves the model and says how long each took. `condgen evaluate runs/latent_map` then judges it.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import condgen
from condgen.distributions.likelihoods import Laplace
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.io.pictures import save_grid
from condgen.recipes import RECIPES
from condgen.sampling.grids import per_class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--out", type=Path, default=Path("runs/latent_map"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    data = condgen.load_data(options.data)
    height, width = (-(-size // 4) for size in data.image_shape[1:])
    latent = (options.channels, height, width)
    torch.manual_seed(options.seed)
    model = condgen.conditional_vae(data.image_shape, data.num_classes, latent=latent, likelihood=Laplace("optimal"))
    started = time.perf_counter()
    about = {"data": options.data, "recipe": "latent_map"}
    settings = {"minutes": options.minutes, "seed": options.seed, "sampler": "none"}
    RECIPES["latent_map"].fit(data, options.out, model=model, overwrite=True, about=about, **settings)
    trained = time.perf_counter()
    prior = GaussianMixture(latent, condition_dim=data.num_classes, components=options.components)
    condgen.fit_prior(model, data, prior, symmetries=True, seed=options.seed)
    fitted = time.perf_counter()
    condgen.save(model, options.out)
    images = per_class(model, 10, seed=options.seed)
    drawn = time.perf_counter()
    save_grid(images, options.out / "samples.png", data.class_names)
    seconds = {"train": trained - started, "fit_prior": fitted - trained, "samples_per_second": 80 / (drawn - fitted)}
    print(json.dumps({name: round(value, 1) for name, value in seconds.items()}))


if __name__ == "__main__":
    main()
