"""Recipes: named assemblies with the numbers to train them, as data."""

__all__ = ["RECIPES", "Recipe", "bloodmnist_reference", "latent_map", "smears_demo"]

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from condgen.data.augmentation import Augmentation
from condgen.data.images import LabelledImages
from condgen.distributions.likelihoods import Bernoulli, Laplace
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.distributions.priors.normalizing_flow import Flow
from condgen.distributions.priors.standard import StandardNormal
from condgen.distributions.reparameterizers import Gaussian
from condgen.losses.elbo import ELBO, LinearWarmup
from condgen.losses.flow_matching import Matching
from condgen.losses.gan import Game
from condgen.losses.vaegan import Adversarial
from condgen.models.cflow import conditional_flow
from condgen.models.cgan import conditional_gan
from condgen.models.cvae import ConditionalVAE, conditional_vae
from condgen.models.saving import load, save
from condgen.nn.conditioners import OneHot, Unconditional
from condgen.nn.decoders import DeconvDecoder
from condgen.nn.discriminators import ConvDiscriminator
from condgen.nn.encoders import ConvEncoder
from condgen.nn.layers import halvings
from condgen.training.budget import budget_of
from condgen.training.fit import fit
from condgen.training.fit_prior import fit_prior
from condgen.training.optimizers import WarmupDecay, adam, adamw
from condgen.training.run_folder import History, earlier_run
from condgen.training.state import States
from condgen.training.work import turned_in, work_of

REFERENCE_CHANNELS = (16, 32, 64, 128, 256, 512)
REFERENCE_STRIDES = (2, 2, 2, 2, 2, 1)


def bloodmnist_reference(
    output_labels: bool = True, image_shape: tuple[int, int, int] = (3, 28, 28), num_classes: int = 8
) -> ConditionalVAE:
    """The conditional VAE of a student report on BloodMNIST (University of Osijek, 2024), to the last layer.

    Six 3x3 convolutions down to 1x1, 128 latents, the mirror image back up; one-hot label planes join the image,
    and by default the decoder redraws them (11 output channels).

    Args:
        output_labels: False gives the natural variant with image channels alone.
        image_shape: (channels, height, width) of other data sets.
        num_classes: of other data sets; 0 leaves labels out, which makes it a plain VAE.

    Example:
        >>> sum(p.numel() for p in bloodmnist_reference().parameters())
        3348811
        >>> sum(p.numel() for p in bloodmnist_reference(output_labels=False).parameters())
        3347651
    """
    latent, outputs = 128, image_shape[0] + (num_classes if output_labels else 0)
    return ConditionalVAE(
        conditioner=OneHot(num_classes) if num_classes else Unconditional(),
        encoder=ConvEncoder(image_shape, num_classes, latent, channels=REFERENCE_CHANNELS, strides=REFERENCE_STRIDES),
        reparameterizer=Gaussian(),
        prior=StandardNormal(latent),
        decoder=DeconvDecoder(
            (outputs, *image_shape[1:]),
            latent,
            num_classes,
            channels=REFERENCE_CHANNELS[::-1],
            strides=REFERENCE_STRIDES[::-1],
        ),
        likelihood=Bernoulli(),
        output_labels=output_labels and num_classes > 0,
        image_shape=image_shape,
    )


def smears_demo(image_shape: tuple[int, int, int] = (3, 28, 28), num_classes: int = 8) -> ConditionalVAE:
    """A small conditional VAE that learns the built-in images in a minute or two.

    Example:
        >>> smears_demo().image_shape
        (3, 28, 28)
    """
    return conditional_vae(image_shape, num_classes, latent=16, width=32)


def latent_map(
    image_shape: tuple[int, int, int] = (3, 28, 28),
    num_classes: int = 8,
    channels: int = 4,
    width: int = 48,
    depth: int = 1,
    conditioner: nn.Module | None = None,
) -> ConditionalVAE:
    """Residual networks with a map of latents and a Laplace likelihood: sharp, once a prior is fitted to the latents.

    Args:
        image_shape: (channels, height, width), from 8x8 up.
        num_classes: 0 leaves labels out.
        channels: of the map, which is the first of at most 8x8 that halving the image leads to.
        width: channels of the first map of features.
        depth: residual blocks on each map.
        conditioner: instead of one-hot labels.

    Example:
        >>> latent_map().noise_shapes, latent_map((1, 64, 48), 2).noise_shapes
        ({'z': (4, 7, 7)}, {'z': (4, 8, 6)})
    """
    sizes = halvings(image_shape[1:])
    place = next((size for size in sizes[1:] if max(size) <= 8), sizes[-1])
    return conditional_vae(
        image_shape,
        num_classes,
        latent=(channels, *place),
        width=width,
        depth=depth,
        conditioner=conditioner,
        likelihood=Laplace("optimal"),
    )


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained.

    Attributes:
        model: called with image_shape, num_classes and the options it names.
        training: numbers for :func:`condgen.fit` that are not the usual ones (`USUAL`).

    Example:
        >>> RECIPES["default"].build((1, 8, 8), 2, latent=4).noise_shapes
        {'z': (4,)}
    """

    model: Callable[..., Any]
    training: dict[str, Any]

    def build(self, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> Any:
        """The model for images of this shape with this many classes.

        Raises:
            ValueError: for options that the recipe fixes.
        """
        known = set(inspect.signature(self.model).parameters)
        if fixed := sorted(set(options) - known):
            open_ = ", ".join(sorted(known - {"image_shape", "num_classes"})) or "nothing"
            raise ValueError(f"{self.model.__name__} fixes {', '.join(fixed)}; it leaves open: {open_}.")
        return self.model(image_shape=image_shape, num_classes=num_classes, **options)

    def numbers(self, **chosen: Any) -> dict[str, Any]:
        """How it is trained: the usual numbers, over them the recipe's, over them those chosen (None: not chosen).

        Example:
            >>> RECIPES["default"].numbers(epochs=3, batch_size=None)["epochs"]
            3
        """
        return {**USUAL, **self.training, **{name: value for name, value in chosen.items() if value is not None}}

    def fit(
        self,
        data: LabelledImages,
        out: str | Path | None = None,
        *,
        model: Any = None,
        seed: int = 0,
        warmup: float = 0.0,
        free_bits: float = 0.0,
        overwrite: bool = False,
        accelerator: str = "auto",
        progress: bool = True,
        about: Mapping[str, Any] | None = None,
        say: Callable[[str], object] = lambda _: None,
        resume: bool | Literal["auto"] = False,
        **chosen: Any,
    ) -> tuple[Any, History]:
        """Train as the recipe says, and fit the prior it samples from: the model to use, and what training recorded.

        Args:
            data: images; of a set with splits its `train` part, with its `validation` part to choose by.
            out: folder of the run; see :func:`condgen.fit`. The model there has its fitted prior.
            model: to train instead of one that the recipe builds.
            seed: of weights (where the recipe builds them), order, noise and everything else.
            warmup: epochs over which beta rises from 0.
            free_bits: nats per latent, or channel of a map, that cost nothing.
            overwrite: whether `out` may hold an earlier run.
            accelerator: "auto", "cpu", "cuda" or "mps".
            progress: show it.
            about: further entries for `run.json`.
            say: called with what is being done.
            resume: go on with the run in `out`; see :func:`condgen.fit`.
            **chosen: numbers instead of the recipe's (see `USUAL`), and what else :func:`condgen.fit` takes. A budget
                of `minutes` replaces all numbers of passes and covers all stages, the fitting of a prior too.

        Example:
            >>> import condgen
            >>> images = condgen.load_smears(200, size=16)
            >>> model, history = RECIPES["latent_map"].fit(images, epochs=1, components=2, progress=False)
            >>> type(model.sampler).__name__
            'GaussianMixture'
        """
        further = {name: chosen.pop(name) for name in set(chosen) - set(USUAL)}
        numbers = self.numbers(**chosen)
        if numbers["objective"]:
            given = {**chosen, "warmup": warmup or None, "free_bits": free_bits or None}
            check_meaning(self.model, [name for name, value in given.items() if value is not None])
        if model is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = self.build(data.image_shape, data.num_classes)
        for name in ("steps", "guidance"):  # of a flow of pixels; that of latents is built later
            if hasattr(model, "flow") and chosen.get(name) is not None:
                setattr(model.flow, name, chosen[name])
        if chosen.get("epochs") is not None and chosen.get("minutes") is not None:
            raise ValueError(
                f"Expected epochs or minutes, not both; got epochs={chosen['epochs']}, minutes={chosen['minutes']}."
            )
        budget = budget_of(chosen.get("minutes"))
        if budget is not None and resume and out is not None:
            budget.began[0] -= (earlier_run(out, "auto") or {}).get("spent_seconds", 0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            prior = sampler_of(numbers, model, data)
        epochs = numbers["epochs"] if budget is None else None
        stages = work_of(model, prior, data, numbers)
        later = stages.later(numbers["batch_size"])
        history = fit(
            model,
            data,
            epochs=epochs,
            minutes=budget and budget.part(stages.first_share),
            later=later,
            batch_size=numbers["batch_size"],
            objective=objective_of(numbers, model, seed, warmup, free_bits),
            optimizer=optimizer_of(numbers),
            learning_rate=schedule_of(numbers["rise"], numbers["decay"]),
            clip=numbers["clip"],
            ema=numbers["ema"],
            precision=numbers["precision"],
            augment=numbers["augment"],
            seed=seed,
            out=out,
            overwrite=overwrite,
            accelerator=accelerator,
            progress=progress,
            about=about,
            resume=resume,
            **further,
        )
        if torch.distributed.is_initialized() and torch.distributed.get_rank():
            return model, history  # the first process goes on alone
        if out is not None:
            model = load(out).to(model.device)
        if prior is not None and not (resume and model.sampler is not None):
            say(f"Fitting a {numbers['sampler'].replace('_', ' ')} to the latents of the training images.")
            trained: dict[str, Any] = {"minutes": budget, "epochs": numbers["sampler_epochs"]}
            if numbers["sampler"] == "flow_matching":
                trained |= {"optimizer": partial(adamw, **MATCHING), "learning_rate": WarmupDecay(0.02, 0.5)}
                trained |= {"batch_size": MATCHING_BATCH, "clip": 1.0, "ema": 0.9995}
            shared = {"seed": seed, "accelerator": accelerator, "progress": progress, "precision": numbers["precision"]}
            shared |= {name: further[name] for name in ("save_every", "graphs") if name in further}
            keep = None if out is None else Path(out) / SAMPLER_STATE
            if overwrite and keep is not None:
                States(keep).clear()
            fit_prior(model, data, prior, symmetries=turned_in(numbers), keep=keep, **trained, **shared)
            if out is not None:
                save(model, out)
        return model, history


def check_meaning(model: Callable[..., Any], given: Sequence[str]) -> None:
    """Raise if something is given that a model without a bound and without latents has no use for.

    Raises:
        ValueError: naming it.
    """
    if useless := sorted(OF_THE_BOUND & set(given) - set(inspect.signature(model).parameters)):
        raise ValueError(f"{model.__name__} has no use for {', '.join(useless)}. Leave it out.")


def objective_of(numbers: Mapping[str, Any], model: Any, seed: int, warmup: float, free_bits: float) -> nn.Module:
    """The bound, or with a discriminator beside it."""
    if numbers["objective"]:
        return numbers["objective"]()
    beta = LinearWarmup(warmup, numbers["beta"]) if warmup else numbers["beta"]
    if not numbers["adversarial"] and not numbers["matching"]:
        return ELBO(beta, free_bits)
    if model.image_shape is None:
        raise ValueError("Expected a model that knows its image_shape, for the discriminator.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminator = ConvDiscriminator(model.image_shape, model.conditioner.dim)  # type: ignore[arg-type]
    weights = {"weight": numbers["adversarial"], "matching": numbers["matching"], "start": numbers["critic_start"]}
    return Adversarial(discriminator, beta, free_bits, **weights)


def optimizer_of(numbers: Mapping[str, Any]) -> Any:
    """What makes the optimizer of these numbers; a discriminator's learns at a rate of its own."""

    def of(rate: float) -> Any:
        if numbers["optimizer"] == "adam":
            return partial(adam, lr=rate)
        return partial(adamw, lr=rate, betas=numbers["betas"], decay=numbers["weight_decay"])

    rate = numbers["learning_rate"]
    if not numbers["adversarial"] and not numbers["matching"] and numbers["objective"] is not Game:
        return of(rate)
    return {"": of(rate), "discriminator": of(rate * numbers["critic_rate"])}


def schedule_of(rise: float, decay: float) -> WarmupDecay | None:
    """Of the learning rate, unless it stays."""
    return WarmupDecay(rise, decay) if rise or decay else None


def sampler_of(numbers: Mapping[str, Any], model: Any, data: LabelledImages) -> nn.Module | None:
    """The prior to be fitted to the model's latents; none where that is not asked for, or needs classes.

    Raises:
        ValueError: for an unknown name.
    """
    kind = numbers["sampler"]
    if numbers["objective"] or kind == "none" or (kind == "mixture" and data.kind != "class"):
        return None
    latent, dim = model.prior.noise_shape, model.conditioner.dim
    if kind == "flow":
        return Flow(latent, dim)
    mixture = None
    if data.kind == "class":
        classes = data.num_classes if dim else 1
        mixture = GaussianMixture(latent, dim, numbers["components"], classes, em=numbers["em"])
    if kind == "mixture":
        return mixture
    if kind != "flow_matching":
        raise ValueError(f"Expected a sampler among none, mixture, flow and flow_matching; got {kind!r}.")
    return FlowMatching(latent, dim, mixture, steps=numbers["steps"], guidance=numbers["guidance"])


USUAL = {
    **{"epochs": 50, "minutes": None, "batch_size": 128, "optimizer": "adam", "learning_rate": 1e-3},
    **{"weight_decay": 1e-3, "betas": (0.9, 0.99), "rise": 0.0, "decay": 0.0, "clip": None, "ema": None},
    **{"precision": "auto", "beta": 1.0, "augment": None},
    **{"adversarial": 0.0, "matching": 0.0, "critic_start": 0.25, "critic_rate": 0.5, "objective": None},
    **{"sampler": "none", "components": 16, "em": 0, "sampler_epochs": 20},
    **{"steps": 2, "guidance": 0.0},
}
OF_THE_BOUND = {"beta", "warmup", "free_bits", "adversarial", "matching", "critic_start"}  # and of priors fitted later:
OF_THE_BOUND |= {"sampler", "components", "em", "sampler_epochs", "steps", "guidance"}
MATCHING = {"lr": 2e-3, "betas": (0.9, 0.95), "decay": 1e-2}  # of a velocity field's optimizer
MATCHING_BATCH = 128
SAMPLER_STATE = "sampler_state"  # folder of its training states within a run's
LATENT_MAP = {
    **{"epochs": 50, "batch_size": 64, "optimizer": "adamw", "learning_rate": 8e-4, "betas": (0.5, 0.95)},
    **{"rise": 0.1, "decay": 0.4, "clip": 1.0, "ema": 0.998, "beta": 0.25},
    **{"augment": Augmentation(flips=True, quarter_turns=True), "sampler": "mixture"},
}
FAST = {**LATENT_MAP, "epochs": 20, "adversarial": 0.05, "matching": 0.5, "em": 5}
SHARP = {**FAST, "epochs": 30, "sampler": "flow_matching", "components": 8, "sampler_epochs": 10}
TURNS = Augmentation(flips=True, quarter_turns=True)
GAN = {
    **{
        "epochs": 45,
        "batch_size": 64,
        "optimizer": "adamw",
        "learning_rate": 4e-4,
        "betas": (0.0, 0.99),
    },
    **{"weight_decay": 0.0, "rise": 0.02, "decay": 0.3, "ema": 0.999, "augment": TURNS},
    **{"objective": Game, "critic_rate": 2.0},
}
FLOW = {
    **{
        "epochs": 45,
        "batch_size": 64,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "betas": (0.9, 0.99),
    },
    **{"weight_decay": 1e-2, "rise": 0.02, "decay": 0.5, "clip": 1.0, "ema": 0.999},
    **{"objective": Matching, "augment": TURNS},
}
diffusion = partial(conditional_flow, path="cosine")
diffusion.__name__ = "conditional_flow"  # type: ignore[attr-defined]
RECIPES = {
    "default": Recipe(conditional_vae, {"epochs": 50, "batch_size": 128}),
    "bloodmnist_reference": Recipe(bloodmnist_reference, {"epochs": 300, "batch_size": 128}),
    "latent_map": Recipe(latent_map, LATENT_MAP),
    "fast": Recipe(latent_map, FAST),
    "sharp": Recipe(latent_map, SHARP),
    "bloodmnist_fast": Recipe(latent_map, FAST),
    "bloodmnist_sharp": Recipe(latent_map, SHARP),
    "gan": Recipe(conditional_gan, GAN),
    "flow": Recipe(conditional_flow, FLOW),
    "diffusion": Recipe(diffusion, FLOW),
    "bloodmnist_gan": Recipe(conditional_gan, GAN),
    "bloodmnist_diffusion": Recipe(diffusion, FLOW),
    "smears_demo": Recipe(smears_demo, {"epochs": 20, "batch_size": 128}),
}
