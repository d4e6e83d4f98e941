"""Benchmarking: how fast encoder and decoder variants train and sample on this machine, and what share of it they use.

Every figure is the median of repeated steps after a warm-up. Beside it stands what the same machine reaches, in the
same run, on a large matrix product and on the variant's own layers alone, forward and backward.
"""

__all__ = ["Result", "Variant", "benchmark", "grid", "markdown", "multiply_adds", "plot"]

import importlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from condgen.apps.timing import (
    PRECISIONS,
    all_seconds,
    layers_seconds,
    median_seconds,
    peak,
    product_rate,
    reset_peak,
)
from condgen.distributions.likelihoods import Bernoulli
from condgen.distributions.priors.standard import StandardNormal
from condgen.distributions.reparameterizers import Gaussian
from condgen.losses.phases import phases_of
from condgen.models.cflow import conditional_flow
from condgen.models.cgan import conditional_gan
from condgen.models.cvae import ConditionalVAE, conditional_vae
from condgen.models.generator import Generator
from condgen.nn.conditioners import OneHot
from condgen.nn.layers import halvings
from condgen.nn.parts import evaluating
from condgen.nn.precision import LAYERS, slowdown
from condgen.nn.pruning import trim
from condgen.random import Use, normals
from condgen.recipes import bloodmnist_reference
from condgen.training.optimizers import adam
from condgen.training.settings import NETWORKS

if TYPE_CHECKING:
    import matplotlib.figure

CLASSES, CHANNELS, LATENT = 8, 3, 128
MAP_CHANNELS = 8
CONVOLUTION = (48, 48, 14, 14)  # channels in and out, rows, columns, as in the recipes' networks
BLOCK, MOST_SAMPLES = 64, 512  # samples that are drawn at once, and at most, to time them


@dataclass(frozen=True)
class Variant:
    """What is timed.

    Attributes:
        network: "reference" (trimmed), "reference_untrimmed", "conv", "resnet" (both to a vector of latents),
            "resnet_map" (to a map), the other families "gan" and "flow" (pixels), or "own".
        width: channels of the first map; the reference has its own.
        size: height and width of images.
        batch: images a step.
        precision: "float32" or "bfloat16" (autocast).
        mode: "eager", "compiled" (torch.compile) or "graphs" (CUDA graphs through the compiler).
        layout: "contiguous" or "channels_last".

    Example:
        >>> Variant("conv").name
        'conv 32, 28x28, batch 128, float32'
    """

    network: str
    width: int = 32
    size: int = 28
    batch: int = 128
    precision: str = "float32"
    mode: str = "eager"
    layout: str = "contiguous"

    @property
    def name(self) -> str:
        """In words; what is usual is left out."""
        width = "" if self.network.startswith(("reference", "own")) else f" {self.width}"
        rest = [text for text, usual in ((self.mode, "eager"), (self.layout, "contiguous")) if text != usual]
        return ", ".join(
            [f"{self.network}{width}", f"{self.size}x{self.size}", f"batch {self.batch}", self.precision, *rest]
        )


@dataclass(frozen=True)
class Result:
    """What was found of a variant.

    Attributes:
        variant: what was timed.
        parameters: of the model.
        multiply_adds: of one image, forward: through encoder and decoder, or all that a step of training asks for.
        training: images per second; None where the variant cannot run here.
        sampling: images per second of `model.sample`.
        memory: peak of the process while training, GiB (of the device on GPU).
        rate: operations per second of training (6 per multiply-add and image: forward, and twice that backward).
        of_product: `rate` as a share of the matrix product's.
        of_layers: `rate` as a share of what the variant's layers reach alone.
        reason: why there are no figures.
    """

    variant: Variant
    parameters: int = 0
    multiply_adds: int = 0
    training: float | None = None
    sampling: float | None = None
    memory: float | None = None
    rate: float | None = None
    of_product: float | None = None
    of_layers: float | None = None
    reason: str = ""


def grid(
    networks: Sequence[str] = NETWORKS,
    widths: Sequence[int] = (32,),
    sizes: Sequence[int] = (28,),
    batches: Sequence[int] = (128,),
    precisions: Sequence[str] = ("float32", "bfloat16"),
    modes: Sequence[str] = ("eager",),
    layouts: Sequence[str] = ("contiguous",),
) -> list[Variant]:
    """Every combination; the reference has one width.

    Raises:
        ValueError: for a name that is none.

    Example:
        >>> len(grid(networks=["reference", "conv"], widths=[16, 32], precisions=["float32"]))
        3
    """
    known = {"networks": (networks, (*NETWORKS, "own")), "precisions": (precisions, tuple(PRECISIONS))}
    known |= {"modes": (modes, ("eager", "compiled", "graphs")), "layouts": (layouts, ("contiguous", "channels_last"))}
    for option, (given, possible) in known.items():
        if bad := [name for name in given if name not in possible]:
            raise ValueError(f"Expected {option}= among {', '.join(possible)}; got {bad[0]}.")
    every = itertools.product(networks, widths, sizes, batches, precisions, modes, layouts)
    found = (Variant(*one) for one in every)
    return list(dict.fromkeys(replace(variant, width=0) if fixed(variant) else variant for variant in found))


def fixed(variant: Variant) -> bool:
    """Whether the width is the network's own."""
    return variant.network.startswith("reference") or variant.network == "own"


def benchmark(
    variants: Sequence[Variant],
    *,
    encoder: str | None = None,
    decoder: str | None = None,
    seconds: float = 2.0,
    device: str = "cpu",
    tell: Callable[[str], object] = lambda _: None,
) -> Iterator[Result]:
    """Time variants one after the other.

    Args:
        variants: see :func:`grid`.
        encoder: "module:Class" of an encoder of one's own for the network "own", called with (image_shape,
            condition_dim, latent).
        decoder: the same for a decoder, called with (output_shape, latent, condition_dim).
        seconds: spent on each figure, about.
        device: "cpu", "cuda" or "mps".
        tell: called with what is being done.

    Example:
        >>> (result,) = benchmark(grid(["conv"], [4], precisions=["float32"], batches=[8]), seconds=0.01)
        >>> result.training > 0, result.multiply_adds
        (True, ...)
    """
    products: dict[str, float] = {}
    for variant in variants:
        tell(variant.name)
        if device == "cpu" and variant.precision == "bfloat16" and (factor := emulated()) is not None:
            yield Result(variant, reason=f"not native here: {factor:.1f} times slower than float32 (one convolution)")
            continue
        try:
            best = max(products.get(variant.precision, 0.0), product_rate(variant.precision, device, seconds / 2))
            products[variant.precision] = best
            yield timed(variant, build(variant, encoder, decoder).to(device), best, seconds)
        except (RuntimeError, ValueError, ImportError, AttributeError) as error:
            yield Result(variant, reason=" ".join(str(error).split())[:200] or type(error).__name__)


def emulated() -> float | None:
    """How many times slower bfloat16 is than float32 on this CPU, if it is; measured on one convolution."""
    factor = slowdown(*CONVOLUTION)
    return factor if factor > 1 else None


def build(variant: Variant, encoder: str | None = None, decoder: str | None = None) -> Generator:
    """The model of a variant."""
    shape = (CHANNELS, variant.size, variant.size)
    model: Generator
    if variant.network.startswith("reference"):
        model = bloodmnist_reference(True, shape, CLASSES)
        if variant.network == "reference":
            trim(model)
    elif variant.network == "own":
        whole = conditional_vae(shape, CLASSES, latent=LATENT)
        own_encoder = imported(encoder)(shape, CLASSES, LATENT) if encoder else whole.encoder
        own_decoder = imported(decoder)(shape, LATENT, CLASSES) if decoder else whole.decoder
        model = ConditionalVAE(
            conditioner=OneHot(CLASSES),
            encoder=own_encoder,
            reparameterizer=Gaussian(),
            prior=StandardNormal(LATENT),
            decoder=own_decoder,
            likelihood=Bernoulli(),
            image_shape=shape,
        )
    elif variant.network == "gan":
        model = conditional_gan(shape, CLASSES, latent=LATENT, width=variant.width)
    elif variant.network == "flow":
        model = conditional_flow(shape, CLASSES, widths=(variant.width, 2 * variant.width))
    else:
        map_shape = (MAP_CHANNELS, *halvings(shape[1:])[2])
        latent = map_shape if variant.network == "resnet_map" else LATENT
        kind: Literal["conv", "resnet"] = "conv" if variant.network == "conv" else "resnet"
        model = conditional_vae(shape, CLASSES, latent=latent, width=variant.width, network=kind)
    return model.to(memory_format=torch.channels_last) if variant.layout == "channels_last" else model


def imported(place: str) -> Any:
    """A user's class, by "module:Class"; modules in the current folder are found.

    Raises:
        ValueError: if there is none.
    """
    module, _, name = place.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"Expected a class as my.module:MyEncoder; got {place!r} ({error}).") from error
    finally:
        sys.path.remove(str(Path.cwd()))


def timed(variant: Variant, model: Generator, product: float, seconds: float) -> Result:
    """All figures of one variant."""
    device, batch = model.device, variant.batch
    if variant.mode == "graphs" and device.type != "cuda":
        raise ValueError("CUDA graphs need a CUDA device.")
    objective, index = model.objective().to(device), torch.arange(batch, device=device)
    phases = phases_of(objective)
    optimizers = [adam(list(phase.parameters(model))) for phase in phases]
    x = torch.rand(batch, *model.image_shape, device=device)  # type: ignore[misc]
    x = x.contiguous(memory_format=torch.channels_last) if variant.layout == "channels_last" else x
    y = index % CLASSES

    def loss(number: int, noise: dict[str, Tensor]) -> Tensor:
        return phases[number].loss(model, x, y, noise)["loss"]

    modes = {"compiled": "default", "graphs": "reduce-overhead"}
    compiled = torch.compile(loss, mode=modes[variant.mode]) if variant.mode in modes else loss

    def step() -> None:
        noise = normals(model.noise_shapes, 0, index, Use.TRAINING)
        for number, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=variant.precision == "bfloat16"):
                value = compiled(number, noise)
            value.backward()
            optimizer.step()

    operations = multiply_adds(model)
    reset_peak(device)
    per_step = median_seconds(step, device, seconds)
    memory = peak(device)
    rate = 6 * operations * batch / per_step
    alone = layers_seconds(calls(model, partial(step_forward, model, batch)), device, variant.precision, seconds)
    few, most = torch.arange(BLOCK) % CLASSES, torch.arange(MOST_SAMPLES) % CLASSES
    model.sample(few)
    block = min(all_seconds(lambda: model.sample(few), device, 0.0, warm=0, least=1))
    labels = most[: BLOCK * max(1, min(MOST_SAMPLES // BLOCK, int(seconds / block)))]
    per_sample = median_seconds(lambda: model.sample(labels), device, seconds) / len(labels)
    return Result(
        variant,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        multiply_adds=operations,
        training=batch / per_step,
        sampling=1 / per_sample,
        memory=memory,
        rate=rate,
        of_product=rate / product,
        of_layers=alone / per_step,
    )


def calls(network: nn.Module, run: Callable[[], object]) -> list[tuple[nn.Module, list[torch.Size]]]:
    """The layers of a network that multiply, in the order in which they are run, and the shapes of their inputs."""
    seen: list[tuple[nn.Module, list[torch.Size]]] = []
    layers = [m for m in network.modules() if isinstance(m, LAYERS)]
    handles = [m.register_forward_pre_hook(lambda m, given: seen.append((m, [t.shape for t in given]))) for m in layers]
    with torch.no_grad(), evaluating(network):
        run()
    for handle in handles:
        handle.remove()
    return seen


def step_forward(model: Generator, batch: int) -> None:
    """Run the losses of one training step on random images, forward alone."""
    index = torch.arange(batch, device=model.device)
    x = torch.rand(batch, *model.image_shape, device=model.device)  # type: ignore[misc]
    for phase in phases_of(model.objective().to(model.device)):
        phase.loss(model, x, index % CLASSES, normals(model.noise_shapes, 0, index, Use.TRAINING))


def multiply_adds(model: Generator) -> int:
    """Multiply-adds of one image in a step of training, forward, of convolutions and linear layers.

    A padded convolution counts as if its padding were read; label planes, which are convolved once a batch, not at all.

    Example:
        >>> multiply_adds(bloodmnist_reference())
        5176192
    """
    total = 0
    for layer, shapes in calls(model, partial(step_forward, model, 1)):
        weights, places = layer.weight.numel(), math.prod(shapes[0][2:])  # type: ignore[union-attr]
        if isinstance(layer, nn.Conv2d):
            with torch.no_grad():
                places = math.prod(layer(*(torch.zeros(shape, device=model.device) for shape in shapes)).shape[2:])
            weights = weights * shapes[0][1] // layer.in_channels if layer.groups == 1 else weights
        total += weights * places
    return total


def markdown(results: Sequence[Result], about: dict[str, Any], command: str) -> str:
    """A table, with hardware, versions and the command above it.

    Example:
        >>> text = markdown([Result(Variant("conv"), reason="no compiler")], {"threads": 2}, "condgen benchmark")
        >>> text.endswith("no compiler |")
        True
    """
    head = ("variant", "training, images/s", "sampling, images/s", "GFLOP/s", "of product", "of layers alone")
    head = (*head, "memory, GiB", "parameters", "multiply-adds", "")
    lines = [
        "# Throughput",
        "",
        ", ".join(f"{name} {value}" for name, value in about.items()),
        "",
        f"    {command}",
        "",
    ]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cells(result))} |" for result in results]
    return "\n".join(lines)


def cells(result: Result) -> list[str]:
    """A result as text."""

    def number(value: float | None, form: str = ",.0f", scale: float = 1.0) -> str:
        return "–" if value is None else format(value / scale, form)

    size = [f"{result.parameters:,}", f"{result.multiply_adds / 1e6:.1f} M"] if result.parameters else ["–", "–"]
    return [
        result.variant.name,
        number(result.training),
        number(result.sampling),
        number(result.rate, ",.0f", 1e9),
        number(result.of_product, ".0%"),
        number(result.of_layers, ".0%"),
        number(result.memory, ".2f"),
        *size,
        result.reason,
    ]


def plot(results: Sequence[Result]) -> "matplotlib.figure.Figure":
    """Bars of training and sampling, the fastest trained first.

    Example:
        >>> figure = plot([Result(Variant("conv"), training=100.0, sampling=500.0)])
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = sorted((r for r in results if r.training), key=lambda result: result.training or 0.0)
    figure = Figure(figsize=(9, 1.2 + 0.4 * len(known)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(known))
    axes.barh([place + 0.2 for place in places], [r.training or 0 for r in known], 0.4, label="training")
    axes.barh([place - 0.2 for place in places], [r.sampling or 0 for r in known], 0.4, label="sampling")
    axes.set_yticks(list(places), [result.variant.name for result in known], fontsize=8)
    axes.set(xlabel="images per second", xscale="log")
    axes.legend()
    return figure
