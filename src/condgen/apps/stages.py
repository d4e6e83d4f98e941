"""Stages: where the time of a recipe goes, stage by stage and part by part."""

__all__ = ["StageTime", "stage_times", "table"]

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from condgen.apps.benchmarking import BLOCK, calls
from condgen.apps.timing import layers_seconds, median_seconds
from condgen.data.adapters import as_labelled
from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.losses.flow_matching import Distillation
from condgen.models.latents import latent_noise
from condgen.nn.parts import evaluating
from condgen.random import Use, normals
from condgen.recipes import Recipe
from condgen.training.fit_prior import encode_latents, loss_of
from condgen.training.loop import train
from condgen.training.set_up import set_up, tensors
from condgen.training.settings import Hardware, Training, changed
from condgen.training.step import ModelAndLoss
from condgen.training.work import learns_turns

PARTS = ("forward", "backward", "optimizer", "averages", "augmentation", "noise")  # as the training loop marks them
WARM = 2  # steps that do not count
SAMPLES = 512  # that are drawn to time sampling, in blocks
NAMES = {"32-true": "float32", "bf16-mixed": "bfloat16"}


@dataclass(frozen=True)
class StageTime:
    """Where the time of one stage goes.

    Attributes:
        stage: its name.
        unit: what the rate counts.
        rate: of these per second.
        shares: part → share of the time, in [0, 1]; "rest" is data, sums of terms and the loop itself.
        of_layers: share of the time that the stage's convolutions and matrix products alone take, forward and backward;
            None for sampling.

    Example:
        >>> StageTime("sampling", "images", 100.0, {"decoder": 0.7, "rest": 0.3}).of_layers is None
        True
    """

    stage: str
    unit: str
    rate: float
    shares: dict[str, float] = field(default_factory=dict)
    of_layers: float | None = None


def stage_times(
    recipe: Recipe,
    data: Any,
    *,
    model: Any = None,
    precision: str = "32-true",
    steps: int = 10,
    hardware: Hardware | None = None,
) -> Iterator[StageTime]:
    """Time the stages of a recipe: a few steps of each, under PyTorch's profiler, which slows them by a few per cent.

    Args:
        recipe: whose stages: the training of the model, with its discriminator once more, flow matching of latents, its
            distillation, and sampling.
        data: images; of a set with splits its `train` part. A few of them are used.
        model: of one's own, instead of the recipe's; it stays as it is.
        precision: "32-true" or "bf16-mixed".
        steps: that count, of each stage.
        hardware: where to train; steps are never recorded as CUDA graphs here, which would hide their parts.

    Example:
        >>> import condgen
        >>> from condgen.recipes import RECIPES
        >>> cells = condgen.load_smears(80, size=16)
        >>> model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=4, width=4)
        >>> found = list(stage_times(RECIPES["default"].changed(batch_size=8), cells, model=model, steps=1))
        >>> [stage.stage for stage in found]
        ['autoencoder', 'sampling']
    """
    labelled = as_labelled(data)
    labelled = labelled.train if labelled.splits else labelled
    where = replace(hardware or Hardware(), cuda_graphs=False)
    own = recipe.changed(precision=precision)
    model = copy.deepcopy(model) or own.build(labelled.image_shape, labelled.num_classes)
    timed = partial(time_training, steps=steps, hardware=where)
    images = tensors(repeated(labelled, own.training, steps), torch.device("cpu"))
    if own.loss is None:
        yield timed("training", "images", model, model.objective(), images, own.training)
    else:
        plain = own.changed(adversarial=0.0, matching=0.0)
        yield timed("autoencoder", "images", model, plain.loss_for(model), images, own.training)
        if own.loss.has_discriminator:
            loss = own.changed(discriminator_start=0.0).loss_for(model)
            yield timed("with its discriminator", "images", model, loss, images, own.training)
        yield from prior_times(own, model, labelled, steps, where)
    yield sampling_time(model, labelled.labels[np.arange(SAMPLES) % len(labelled)])


def prior_times(own: Recipe, model: Any, data: LabelledImages, steps: int, hardware: Hardware) -> Iterator[StageTime]:
    """The stages of a prior that is trained, and of its distillation; the model then samples from it."""
    prior: Any = own.prior_for(model, data)
    if prior is None:
        return
    how = own.prior_training(None)
    most = max(how.batch_size * (WARM + steps), 64 * data.num_classes)
    some = data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:most])
    z, c = encode_latents(model, some, symmetries=learns_turns(own.training.augment), most=most)
    if hasattr(prior, "fit"):
        prior.fit(z, c, seed=0)
    else:
        component: Any = prior.prepare(z, c) if hasattr(prior, "matching") else None
        loss, labels = loss_of(prior, c)
        labels = (c, component) if isinstance(labels, tuple) else labels
        pick = torch.arange(how.batch_size * (WARM + steps)) % len(z)
        taken = z[pick], tuple(part[pick] for part in labels) if isinstance(labels, tuple) else labels[pick]
        yield time_training("prior", "latents", prior, loss, taken, how, steps, hardware, nn.Identity())
        if own.distils:
            pairs = torch.stack([z[pick], z[pick].roll(1, 0)], 1)
            taken = pairs, (c[pick], component[pick])
            student, how = prior.velocity, own.student_training(None)
            yield time_training(
                "distillation", "pairs", student, Distillation(), taken, how, steps, hardware, nn.Identity()
            )
            prior.student, prior.steps = student, 1
    model.sampler = prior.eval()


def repeated(data: LabelledImages, training: Training, steps: int) -> LabelledImages:
    """Images for so many training steps; those of the set again and again, if it has fewer."""
    return data.subset(torch.arange(training.batch_size * (WARM + steps)) % len(data))


def time_training(
    stage: str,
    unit: str,
    network: Any,
    loss: Any,
    data: tuple[Tensor, Any],
    training: Training,
    steps: int,
    hardware: Hardware,
    prepare: Any = None,
) -> StageTime:
    """Where the time of some steps goes.

    Args:
        stage: its name.
        unit: what is trained on.
        network: that is trained.
        loss: its loss.
        data: what the steps take, and their labels.
        training: how.
        steps: that count.
        hardware: where.
        prepare: makes x of what is stored; by default images become numbers in [0, 1].
    """
    (how,) = changed(training, epochs=1, minutes=None)
    x, y = data
    example = x[:1], tuple(part[:1] for part in y) if isinstance(y, tuple) else y[:1]
    trainer, state = set_up(network, loss, example, len(x), how, hardware, prepare=prepare)
    device = trainer.fabric.device
    y = tuple(part.to(device) for part in y) if isinstance(y, tuple) else y.to(device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as found:
        train(trainer, state, (x.to(device), y))
    marked = [event for event in found.events() or () if event.name in PARTS]
    starts = sorted(event.time_range.start for event in marked if event.name == "noise")
    begin, end = starts[WARM], max(event.time_range.end for event in marked)
    whole = end - begin
    shares = {
        part: sum(
            e.time_range.end - e.time_range.start for e in marked if e.name == part and e.time_range.start >= begin
        )
        / whole
        for part in PARTS
    }
    both = ModelAndLoss(network, loss)
    layers = calls(both, partial(forward, both, trainer.prepare or image_tensor, (x[: how.batch_size], y)))
    alone = layers_seconds(layers, device, NAMES.get(str(how.precision), "float32"), 1.0) * 1e6
    return StageTime(
        stage,
        unit,
        rate=1e6 * how.batch_size * steps / whole,
        shares={**shares, "rest": 1 - sum(shares.values())},
        of_layers=min(alone * steps / whole, 1.0),
    )


def forward(both: ModelAndLoss, prepare: Any, batch: tuple[Tensor, Any]) -> None:
    """Run the losses of all phases of one training step, forward alone."""
    x, n = prepare(batch[0]).to(both.weights_dtype), len(batch[0])
    y = tuple(part[:n] for part in batch[1]) if isinstance(batch[1], tuple) else batch[1][:n]
    index = torch.arange(n, device=x.device)
    noise = normals(both.noise_shapes, 0, index, Use.TRAINING, dtype=both.weights_dtype)
    for phase in both.phases:
        phase.loss(both.model, x, y, noise)


@torch.no_grad()
def sampling_time(model: Any, y: np.ndarray) -> StageTime:
    """The rate of `model.sample` for these labels; of a VAE what noise, prior and decoder take of it."""
    device, index = model.device, torch.arange(BLOCK, device=model.device)
    blocks = len(y) / BLOCK

    def seconds(work: Any) -> float:
        return median_seconds(work, device, 1.0)

    model.sample(y)
    whole = seconds(lambda: model.sample(y))
    draw_noise = partial(normals, model.sampling_noise_shapes, 0, index, Use.SAMPLING, dtype=model.dtype)
    shares = {"noise": seconds(draw_noise) * blocks / whole}
    if hasattr(model, "source"):
        with evaluating(model):
            c, noise = model.condition(model.labels(y[:BLOCK])), latent_noise(draw_noise())
            z = model.source.draw(c, noise)
            shares["prior"] = seconds(lambda: model.source.draw(c, noise)) * blocks / whole
            shares["decoder"] = seconds(lambda: model.decode_from(z, c).mean) * blocks / whole
    return StageTime("sampling", "images", len(y) / whole, {**shares, "rest": max(0.0, 1 - sum(shares.values()))})


def table(stages: list[StageTime]) -> list[tuple[str, ...]]:
    """Rows for a table: stage, rate, and its parts.

    Example:
        >>> table([StageTime("sampling", "images", 100.0, {"noise": 0.1, "decoder": 0.9})])[1]
        ('sampling', '100 images/s', '–', 'decoder 90 %, noise 10 %')
    """
    rows = [("stage", "rate", "convolutions and products alone", "parts")]
    for own in stages:
        parts = sorted(own.shares.items(), key=lambda part: -part[1])
        said = ", ".join(f"{name} {share:.0%}".replace("%", " %") for name, share in parts if share >= 0.005)
        alone = "–" if own.of_layers is None else f"{own.of_layers:.0%}".replace("%", " %")
        rows.append((own.stage, f"{own.rate:,.0f} {own.unit}/s", alone, said))
    return rows
