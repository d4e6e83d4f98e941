"""Small trainings of every family, to prove that moving code changed nothing: same seed, same weights.

    python benchmarks/golden.py --out before.json       # before a change
    python benchmarks/golden.py --against before.json   # after it, on the same machine with the same torch

Each run trains for two or three epochs on 64 built-in images. What is compared is a hash of all weights and the last
row of the history, to the last bit.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch

import condgen
from condgen.data.augmentation import Augmentation
from condgen.distributions.likelihoods import Gaussian, Laplace
from condgen.distributions.priors import Flow, FlowMatching, GaussianMixture
from condgen.io.archives import weights_hash
from condgen.recipes import RECIPES
from condgen.training.optimizers import WarmupDecay, adamw

TURNS = Augmentation(flips=True, quarter_turns=True)


def data() -> condgen.LabelledImages:
    return condgen.load_smears(64, size=16)


def built(build, **options):
    images = data()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return images, build(images.image_shape, images.num_classes, **options)


def cvae(likelihood=None, **options):
    images, model = built(condgen.conditional_vae, latent=4, width=8, likelihood=likelihood)
    history = condgen.fit(model, images, epochs=3, batch_size=16, progress=False, accelerator="cpu", **options)
    return model, history.rows[-1]


def recipe(name: str, **options):
    model, history = RECIPES[name].fit(data(), progress=False, accelerator="cpu", precision="32-true", **options)
    return model, history.rows[-1]


def prior(make):
    images, model = built(condgen.conditional_vae, latent=4, width=8)
    condgen.fit(model, images, epochs=1, progress=False, accelerator="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        own = make()
    condgen.fit_prior(model, images, own, epochs=2, symmetries=True, progress=False, accelerator="cpu")
    return model, {}


RUNS = {
    "cvae": cvae,
    "cvae, gaussian of optimal scale": lambda: cvae(Gaussian("optimal")),
    "cvae, accumulated and balanced": lambda: cvae(accumulate=3, balance=True, augment=TURNS),
    "cvae, adamw, ema, clipped": lambda: cvae(
        Laplace("optimal"),
        optimizer=partial(adamw, lr=2e-3, betas=(0.5, 0.9)),
        schedule=WarmupDecay(0.1, 0.5),
        ema=0.9,
        clip=1.0,
    ),
    "fast": lambda: recipe("fast", epochs=2, components=2),
    "sharp": lambda: recipe("sharp", epochs=1, components=2, sampler_epochs=1, distil_pairs=0, steps=2),
    "gan": lambda: recipe("gan", epochs=1),
    "diffusion": lambda: recipe("diffusion", epochs=1),
    "mixture": lambda: prior(lambda: GaussianMixture(4, 8, components=2)),
    "normalizing flow": lambda: prior(lambda: Flow(4, 8)),
    "flow matching": lambda: prior(lambda: FlowMatching(4, 8, GaussianMixture(4, 8, components=2))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name, run in RUNS.items():
        model, row = run()
        timed = ("seconds", "images_per_second")
        found[name] = {"weights": weights_hash(model.state_dict()), **{k: v for k, v in row.items() if k not in timed}}
        print(name, found[name]["weights"][:12], row.get("train_loss", ""), flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if options.against:
        before = json.loads(options.against.read_text())
        if changed := [name for name in found if found[name] != before[name]]:
            sys.exit(f"changed: {', '.join(changed)}")
        print("nothing changed")


if __name__ == "__main__":
    main()
