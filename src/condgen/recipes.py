"""Recipes: named assemblies with the numbers to train them, as data."""

__all__ = ["RECIPES", "Recipe", "bloodmnist_reference", "latent_map", "smears_demo"]

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from condgen.data.adapters import as_labelled
from condgen.data.augmentation import Augmentation
from condgen.data.augmentation import symmetries as count_symmetries
from condgen.data.images import LabelledImages
from condgen.distributions.likelihoods import Bernoulli, Laplace
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.distributions.priors.moments import MomentMatched
from condgen.distributions.priors.normalizing_flow import Flow
from condgen.distributions.priors.standard import StandardNormal
from condgen.distributions.reparameterizers import Gaussian
from condgen.losses.elbo import ELBO, LinearWarmup
from condgen.losses.vaegan import VAEGANLoss
from condgen.models.cflow import conditional_flow
from condgen.models.cgan import conditional_gan
from condgen.models.cvae import ConditionalVAE, conditional_vae
from condgen.models.saving import load_like, save
from condgen.nn.conditioners import OneHot, Unconditional
from condgen.nn.decoders import DeconvDecoder
from condgen.nn.discriminators import ConvDiscriminator
from condgen.nn.encoders import ConvEncoder
from condgen.nn.label_free import without_labels
from condgen.nn.layers import halvings
from condgen.nn.parts import seeded
from condgen.training.budget import Budget
from condgen.training.checkpoints import Checkpoints
from condgen.training.distil import USUAL as STUDENT_TRAINING
from condgen.training.distil import distil
from condgen.training.fit import Stage, fit_as_stage
from condgen.training.fit_grain import IMAGES, fit_grain
from condgen.training.fit_prior import USUAL as PRIOR
from condgen.training.fit_prior import fit_prior
from condgen.training.history import History
from condgen.training.match_moments import SHARE, match_moments
from condgen.training.run_folder import budget_for
from condgen.training.settings import Hardware, Sampler, Training, VAELoss, changed, check_useful, recorded
from condgen.training.work import learns_turns, work_of

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
    width: int | None = None,
    depth: int = 1,
    conditioner: nn.Module | None = None,
    label_free: bool = False,
) -> ConditionalVAE:
    """Residual networks with a map of latents and a Laplace likelihood: sharp, once a prior is fitted to the latents.

    The fitted prior is what knows the labels. Until it is fitted, samples of networks without labels are of no class.

    Args:
        image_shape: (channels, height, width), from 8x8 up.
        num_classes: 0 leaves labels out.
        channels: of the map, which is the first of at most 8x8 that halving the image leads to.
        width: channels of the first map of features; by default 96 divided by the number of halvings, 48 at most.
        depth: residual blocks on each map.
        conditioner: instead of one-hot labels.
        label_free: whether encoder and decoder do without labels, so that images carry no trace of them
            (:class:`condgen.nn.label_free.LabelFree`).

    Example:
        >>> latent_map().noise_shapes, latent_map((1, 64, 48), 2).noise_shapes
        ({'z': (4, 7, 7)}, {'z': (4, 8, 6)})
    """
    sizes = halvings(image_shape[1:])
    place = next((size for size in sizes[1:] if max(size) <= 8), sizes[-1])
    model = conditional_vae(
        image_shape,
        num_classes,
        latent=(channels, *place),
        width=width or min(48, 96 // sizes.index(place)),
        depth=depth,
        conditioner=conditioner,
        likelihood=Laplace("optimal"),
    )
    if label_free and model.conditioner.dim:
        model.encoder, model.decoder = without_labels(model.encoder), without_labels(model.decoder)
    return model


FLOW_MATCHING = Training(
    batch_size=128,
    optimizer="adamw",
    learning_rate=2e-3,
    betas=(0.9, 0.95),
    weight_decay=1e-2,
    lr_warmup=0.02,
    lr_decay=0.5,
    clip=1.0,
    ema=0.9995,
)  # how a velocity field of latents is trained
SAMPLER_STATE = "sampler_state"  # folder of the sampler's checkpoints in the folder of a run
SMALL = 32  # pixels: sides up to which a spectrally normalised discriminator tells fine texture
STUDENT = Path("student")  # folder in that one, of what is distilled from it


@dataclass(frozen=True)
class Recipe:
    """A model, how it is trained, and what its samples are drawn from.

    Attributes:
        model: called with image_shape, num_classes and the options it names.
        training: how the model is trained.
        loss: what the training of a VAE minimises; None for models of other families, which have a loss of their own.
        sampler: what samples are drawn from.

    Example:
        >>> RECIPES["default"].build((1, 8, 8), 2, latent=4).noise_shapes
        {'z': (4,)}
        >>> RECIPES["sharp"].changed(epochs=3).training.epochs
        3
    """

    model: Callable[..., Any]
    training: Training
    loss: VAELoss | None = None
    sampler: Sampler = field(default_factory=Sampler)

    def build(self, image_shape: tuple[int, int, int], num_classes: int, **options: Any) -> Any:
        """The model for images of this shape with this many classes.

        Raises:
            ValueError: for options that the recipe fixes.
        """
        known = set(inspect.signature(self.model).parameters)
        if options.get("label_free") and self.sampler.sampler == "none":
            raise ValueError(
                "Expected a fitted prior for networks without labels, such as sampler='mixture'; got none."
            )
        if fixed := sorted(set(options) - known):
            open_ = ", ".join(sorted(known - {"image_shape", "num_classes"})) or "nothing"
            raise ValueError(f"{self.model.__name__} fixes {', '.join(fixed)}; it leaves open: {open_}.")
        return self.model(image_shape=image_shape, num_classes=num_classes, **options)

    def changed(self, **changes: Any) -> "Recipe":
        """The recipe with some settings changed. A budget of `minutes` replaces its passes.

        Raises:
            ValueError: for a setting that this kind of model has no use for, or for passes and a budget together.
            TypeError: for a setting that does not exist.
        """
        if self.loss is None:
            idle = {entry.name for kind in (VAELoss, Sampler) for entry in fields(kind)}
            check_useful(self.model, idle & set(changes))
        changes = {"epochs": None, **changes} if changes.get("minutes") is not None else changes
        training, loss, sampler = changed(self.training, self.loss or VAELoss(), self.sampler, **changes)
        return replace(self, training=training, loss=None if self.loss is None else loss, sampler=sampler)

    def fit(
        self,
        data: Any,
        out: str | Path | None = None,
        *,
        model: Any = None,
        validation: Any = None,
        hardware: Hardware | None = None,
        overwrite: bool = False,
        resume: bool | Literal["auto"] = False,
        callbacks: Sequence[Any] = (),
        progress: bool = True,
        about: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> tuple[Any, History]:
        """Train as the recipe says, and fit the prior it samples from: the model to use, and what training recorded.

        Args:
            data: images; of a set with splits its `train` part, with its `validation` part to choose by.
            out: folder of the run; see :func:`condgen.fit`. The model there has its fitted prior.
            model: the model to train instead of one that the recipe builds.
            validation: images that choose the best epoch; by default the `validation` part of a set with splits.
            hardware: where to train.
            overwrite: whether `out` may hold an earlier run.
            resume: go on with the run in `out`; see :func:`condgen.fit`.
            callbacks: what listens to the training of the model; see :func:`condgen.fit`.
            progress: show it.
            about: further entries for `run.json`.
            **changes: settings of :class:`~condgen.training.settings.Training`,
                :class:`~condgen.training.settings.VAELoss`, :class:`~condgen.training.settings.Sampler` and
                :class:`~condgen.training.settings.Hardware` instead of the recipe's; None is a value as any other. A
                budget of `minutes` replaces all numbers of passes and covers all stages.

        Example:
            >>> import condgen
            >>> images = condgen.load_smears(200, size=16)
            >>> model, history = RECIPES["latent_map"].fit(images, epochs=1, components=2, progress=False)
            >>> type(model.sampler).__name__
            'GaussianMixture'
        """
        machine = {entry.name for entry in fields(Hardware)}
        (where,) = changed(hardware or Hardware(), **{name: changes.pop(name) for name in machine & set(changes)})
        data = as_labelled(data)
        own, seed = self.changed(**changes), changes.get("seed", self.training.seed)
        if model is None:
            with seeded(seed):
                model = own.build(data.image_shape, data.num_classes)
        for name in ("steps", "guidance"):  # of a flow of pixels; that of latents is built later
            if hasattr(model, "flow") and name in changes:
                setattr(model.flow, name, changes[name])
        budget = budget_for(own.training.minutes, out, resume)
        with seeded(seed):
            prior = own.prior_for(model, data)
        work = work_of(model, prior, data, own.training, own.loss, own.sampler)
        (training,) = changed(own.training, minutes=budget and budget.part(work.first_share))
        history = fit_as_stage(
            model,
            data,
            training,
            where,
            validation=validation,
            objective=own.loss_for(model),
            out=out,
            overwrite=overwrite,
            resume=resume,
            callbacks=callbacks,
            progress=progress,
            stage=Stage(
                later=work.later(training.batch_size),
                about={**(about or {}), **({} if own.loss is None else recorded(own.loss, own.sampler))},
            ),
        )
        if torch.distributed.is_initialized() and torch.distributed.get_rank():
            return model, history  # the first process goes on alone
        if out is not None:
            model = load_like(out, model).to(model.device)
        if overwrite and out is not None:
            for kept in (STUDENT / "pairs", STUDENT, Path()):
                Checkpoints(Path(out) / SAMPLER_STATE / kept).clear()
        if prior is not None:
            done = bool(resume) and model.sampler is not None
            where_to = {"hardware": where, "progress": progress}
            own.fit_sampler(model, data, None if done else prior, out, budget, work.prior_share, **where_to)
        if own.sampler.grain and not (resume and model.grain is not None):
            fit_grain(model, data, images=IMAGES if budget is None else IMAGES // 4, seed=seed, progress=progress)
            if out is not None:
                save(model, out)
        return model, history

    def fit_sampler(
        self,
        model: Any,
        data: LabelledImages,
        prior: nn.Module | None,
        out: str | Path | None,
        budget: Budget | None,
        share: float,
        **shared: Any,
    ) -> None:
        """Fit what a trained model samples from, distil it and match moments, if the recipe says so; saved after each.

        Args:
            model: to be fitted in place.
            data: what it was trained on.
            prior: that is fitted; None if the model has its fitted one.
            out: folder of the run.
            budget: what is left of it.
            share: of it, for the prior.
            **shared: `hardware` and `progress`.
        """
        folder, turns = None if out is None else Path(out) / SAMPLER_STATE, learns_turns(self.training.augment)
        if prior is not None:
            chosen = self.prior_training(budget and budget.part(share))
            fit_prior(model, data, prior, chosen, symmetries=turns, checkpoints=folder, **shared)
            if out is not None:
                save(model, out)
        if self.distils and model.sampler.student is None:
            own_budget = budget and (budget.part(1 - SHARE) if self.sampler.moments else budget)
            chosen, train = self.student_training(own_budget), data.train if data.splits else data
            latents = len(train) * (count_symmetries(*train.image_shape[1:]) if turns else 1)
            teacher = replace(self.sampler, distil_pairs=min(self.sampler.distil_pairs, latents))
            distil(model, data, teacher, chosen, checkpoints=folder and folder / STUDENT, **shared)
            if self.sampler.steps > 1:
                model.sampler.steps, model.sampler.guidance = self.sampler.steps, self.sampler.guidance
            if out is not None:
                save(model, out)
        student = getattr(model.sampler, "student", None)
        if self.sampler.moments and student is not None and not isinstance(student, MomentMatched):
            how = {"minutes": budget, "seed": self.training.seed, "progress": shared["progress"]}
            match_moments(model, data, symmetries=turns, **how)
            if out is not None:
                save(model, out)

    def loss_for(self, model: Any) -> nn.Module | None:
        """The loss of a VAE: the ELBO, or with a discriminator beside it; None for models with a loss of their own.

        Raises:
            ValueError: for a discriminator of images whose shape is not known.
        """
        if self.loss is None:
            return None
        loss, shape = self.loss, model.image_shape
        beta = LinearWarmup(loss.warmup, loss.beta) if loss.warmup else loss.beta
        if not loss.has_discriminator:
            return ELBO(beta, loss.free_bits)
        if shape is None:
            raise ValueError("Expected a model that knows its image_shape, for the discriminator.")
        spectral = max(shape[1:]) <= SMALL if loss.spectral is None else loss.spectral
        with seeded(self.training.seed):
            critic = ConvDiscriminator(shape, model.conditioner.dim, spectral=spectral)
        weights = (loss.free_bits, loss.adversarial, loss.matching)
        return VAEGANLoss(critic, beta, *weights, loss.discriminator_start, relative=not spectral)

    def prior_for(self, model: Any, data: LabelledImages) -> nn.Module | None:
        """The prior to be fitted to the model's latents; None if none is asked for, or a mixture without classes."""
        own = self.sampler
        if self.loss is None or own.sampler == "none" or (own.sampler == "mixture" and data.kind != "class"):
            return None
        latent, dim = model.prior.noise_shape, model.conditioner.dim
        if own.sampler == "flow":
            return Flow(latent, dim)
        mixture = None
        if data.kind == "class":
            classes = data.num_classes if dim else 1
            mixture = GaussianMixture(latent, dim, own.components, classes, em=own.em)
        if own.sampler == "mixture":
            return mixture
        return FlowMatching(latent, dim, mixture, steps=own.steps, guidance=own.guidance)

    @property
    def distils(self) -> bool:
        """Whether flow matching is distilled into a network of one step."""
        return self.loss is not None and self.sampler.sampler == "flow_matching" and self.sampler.distil_pairs > 0

    def prior_training(self, budget: Budget | None) -> Training:
        """How the prior is trained."""
        usual = FLOW_MATCHING if self.sampler.sampler == "flow_matching" else PRIOR
        return self.of_stage(usual, self.sampler.sampler_epochs, budget)

    def student_training(self, budget: Budget | None) -> Training:
        """How the network of one step is trained."""
        return self.of_stage(STUDENT_TRAINING, self.sampler.distil_epochs, budget)

    def of_stage(self, usual: Training, epochs: int, budget: Budget | None) -> Training:
        """The usual training of a later stage, with its passes or the rest of the budget."""
        passes = {"epochs": None if budget else epochs, "minutes": budget}
        return changed(usual, **passes, seed=self.training.seed, precision=self.training.precision)[0]


TURNS = Augmentation(flips=True, quarter_turns=True)
LATENT_MAP = Training(
    epochs=50,
    batch_size=64,
    optimizer="adamw",
    learning_rate=8e-4,
    discriminator_rate=0.5,
    betas=(0.5, 0.95),
    lr_warmup=0.1,
    lr_decay=0.4,
    clip=1.0,
    ema=0.998,
    augment=TURNS,
)
SHARP_LOSS = VAELoss(beta=0.25, adversarial=0.05, matching=0.5)
PIXELS = Training(epochs=45, batch_size=64, optimizer="adamw", lr_warmup=0.02, ema=0.999, augment=TURNS)
GAN = replace(PIXELS, learning_rate=4e-4, discriminator_rate=2.0, betas=(0.0, 0.99), weight_decay=0.0, lr_decay=0.3)
FLOW = replace(PIXELS, learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=1e-2, lr_decay=0.5, clip=1.0)
FAST = Recipe(latent_map, replace(LATENT_MAP, epochs=20), SHARP_LOSS, Sampler("mixture", em=5))
SHARP = Recipe(
    latent_map,
    replace(LATENT_MAP, epochs=30),
    SHARP_LOSS,
    Sampler(
        "flow_matching", components=8, em=5, sampler_epochs=10, steps=1, distil_pairs=20_000, moments=True, grain=True
    ),
)
diffusion = partial(conditional_flow, path="cosine")
diffusion.__name__ = "conditional_flow"  # type: ignore[attr-defined]
RECIPES = {
    "default": Recipe(conditional_vae, Training(epochs=50, discriminator_rate=0.5), VAELoss()),
    "bloodmnist_reference": Recipe(bloodmnist_reference, Training(epochs=300, discriminator_rate=0.5), VAELoss()),
    "latent_map": Recipe(latent_map, LATENT_MAP, VAELoss(beta=0.25), Sampler("mixture")),
    "fast": FAST,
    "sharp": SHARP,
    "bloodmnist_fast": FAST,
    "bloodmnist_sharp": SHARP,
    "gan": Recipe(conditional_gan, GAN),
    "flow": Recipe(conditional_flow, FLOW),
    "diffusion": Recipe(diffusion, FLOW),
    "bloodmnist_gan": Recipe(conditional_gan, GAN),
    "bloodmnist_diffusion": Recipe(diffusion, FLOW),
    "smears_demo": Recipe(smears_demo, Training(epochs=20, discriminator_rate=0.5), VAELoss()),
}
