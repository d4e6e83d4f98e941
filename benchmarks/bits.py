"""Bits per dimension on test images: the reference's network and the latent map under one likelihood, priors compared.

    python benchmarks/bits.py --minutes 6 --out benchmarks/results/bits

Both are trained by the bound alone (beta 1, no discriminator) with a discretised logistic likelihood, a probability of
grey levels. The importance-weighted bound is taken with the prior of training and with a mixture fitted afterwards.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from notes import keep

import condgen
from condgen.data.augmentation import Augmentation
from condgen.distributions.likelihoods import DiscretizedLogistic
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.distributions.priors.standard import StandardNormal
from condgen.distributions.reparameterizers import Gaussian
from condgen.evaluation.statistics import normal
from condgen.models.cvae import ConditionalVAE
from condgen.nn.conditioners import OneHot
from condgen.nn.decoders import DeconvDecoder
from condgen.nn.encoders import ConvEncoder
from condgen.recipes import REFERENCE_CHANNELS, REFERENCE_STRIDES
from condgen.training.fit_prior import fit_prior
from condgen.training.optimizers import WarmupDecay, adamw


def reference(data: Any) -> ConditionalVAE:
    """The reference's encoder and decoder with two outputs a channel: location and scale."""
    channels, strides = REFERENCE_CHANNELS, REFERENCE_STRIDES
    return ConditionalVAE(
        conditioner=OneHot(data.num_classes),
        encoder=ConvEncoder(data.image_shape, data.num_classes, 128, channels=channels, strides=strides),
        reparameterizer=Gaussian(),
        prior=StandardNormal(128),
        decoder=DeconvDecoder(
            (2 * data.image_shape[0], *data.image_shape[1:]),
            128,
            data.num_classes,
            channels=channels[::-1],
            strides=strides[::-1],
        ),
        likelihood=DiscretizedLogistic(),
        image_shape=data.image_shape,
    )


def latent_map(data: Any) -> ConditionalVAE:
    """The networks of the sharp recipe."""
    return condgen.conditional_vae(
        data.image_shape, data.num_classes, latent=(4, 7, 7), width=48, likelihood=DiscretizedLogistic()
    )


def bits(model: Any, data: Any, images: int, samples: int) -> str:
    """Mean over test images, with its interval."""
    x, y = data.test.images[:images], data.test.labels[:images]
    parts = [
        model.bits_per_dimension(x[k : k + 64], y[k : k + 64], samples=samples, start=k) for k in range(0, len(x), 64)
    ]
    values = torch.cat(parts)
    low, high = normal(values) or (0.0, 0.0)
    return f"{statistics.fmean(values.tolist()):.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = condgen.load_data(options.data)
    lines = ["| network | latents | epochs | prior | bits per dimension, test |", "|---|---|---|---|---|"]
    for name, build, latent, turned in (
        ("reference", reference, 128, False),
        ("latent map", latent_map, (4, 7, 7), True),
    ):
        torch.manual_seed(0)
        model = build(data)
        extra: dict[str, Any] = {}
        if turned:
            extra = {
                "augment": Augmentation(flips=True, quarter_turns=True),
                "batch_size": 64,
                "ema": 0.998,
                "clip": 1.0,
            }
            extra |= {"optimizer": adamw, "schedule": WarmupDecay(0.1, 0.4), "precision": "bf16-mixed"}
        history = condgen.fit(model, data, minutes=options.minutes, progress=False, **extra)
        size = 4 * 49 if turned else 128
        rows = [("standard normal", bits(model, data, options.images, options.samples))]
        mixture = GaussianMixture(latent, data.num_classes, 16, data.num_classes)
        fit_prior(model, data, mixture, symmetries=turned, progress=False)
        rows.append(("mixture, 16 a class", bits(model, data, options.images, options.samples)))
        lines += [f"| {name} | {size} | {len(history)} | {prior} | {value} |" for prior, value in rows]
        print(lines[-2:], flush=True)
    keep(options.out, "Bits per dimension", "\n".join(lines))


if __name__ == "__main__":
    main()
