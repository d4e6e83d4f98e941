"""Numerical precision of the networks: which one training and sampling use when nobody says.

bfloat16 halves the time of a training step on hardware that computes in it, and multiplies it by seven to ten on a CPU
that only emulates it. So `"auto"` is decided for the machine and the network at hand: natively supported or not, and on
a CPU measured once per process.
"""

__all__ = ["PRECISIONS", "Precision", "choose_precision", "heaviest_layer", "multiply_adds", "slowdown"]

import functools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condgen.nn.parts import evaluating

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
HEAVY = 1_000_000  # multiply-adds per image of a layer, below which converting to bfloat16 costs what it saves
PROBE_IMAGES, PROBE_CALLS, MOST_CHANNELS = 16, 4, 96
CLEARLY = 3  # times slower, from which on nothing more has to be measured
LAYERS = nn.Conv2d | nn.ConvTranspose2d | nn.Linear


@dataclass(frozen=True)
class Precision:
    """A precision and why it was chosen.

    Attributes:
        name: "32-true", "bf16-mixed" or "16-mixed", as Lightning Fabric names them.
        reason: a clause for people, such as "bfloat16 is 2.1 times faster than float32 here".

    Example:
        >>> str(Precision("32-true", "this CPU has no bfloat16 arithmetic"))
        'precision 32-true: this CPU has no bfloat16 arithmetic'
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"precision {self.name}: {self.reason}"


def choose_precision(
    precision: str, device: torch.device, trial: Callable[[], Any], network: nn.Module, probe: bool = True
) -> Precision:
    """The precision to train with on a device, and the reason.

    "auto" is bfloat16 (mixed) on a GPU that computes in it natively. On a CPU it is bfloat16 where PyTorch reports
    native support, the network has a layer of at least a million multiply-adds per image, and that layer is measurably
    faster in it; float32 everywhere else. Any other value is obeyed.

    Args:
        precision: "auto", "32-true", "bf16-mixed" or "16-mixed".
        device: where the network will be trained.
        trial: runs the network forward on one image; called only if a layer has to be measured.
        network: what `trial` runs.
        probe: whether a CPU may be measured; several processes that train together need one answer without it.

    Raises:
        ValueError: for another name.

    Warns:
        UserWarning: if "bf16-mixed" is asked for on a CPU where it is slower than float32, with the factor.

    Example:
        >>> layer = nn.Conv2d(3, 4, 3)
        >>> choose_precision("auto", torch.device("cpu"), lambda: layer(torch.zeros(1, 3, 8, 8)), layer).name
        '32-true'
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Expected a precision of {', '.join(PRECISIONS)}; got {precision!r}.")
    if precision != "auto":
        if precision == "bf16-mixed" and device.type == "cpu" and probe:
            warn_if_slow(trial, network)
        return Precision(precision, "as asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16-mixed", "this GPU computes in bfloat16 natively")
        return Precision("32-true", "this GPU does not compute in bfloat16 natively")
    if device.type != "cpu":
        return Precision("32-true", f"bfloat16 is not measured on {device.type}")
    if not native_bfloat16():
        return Precision("32-true", "this CPU does not compute in bfloat16 natively")
    if not probe:
        return Precision("32-true", "several processes on CPUs compute in float32")
    if next((p.dtype for p in network.parameters()), torch.float32) is not torch.float32:
        return Precision("32-true", "the network has its own precision")
    layer, shape = heaviest_layer(trial, network)
    if layer is None or shape is None:
        return Precision("32-true", "the network is too small to gain from bfloat16")
    ratio = slowdown(*kind_of(layer, shape))
    if ratio < 1:
        return Precision("bf16-mixed", f"bfloat16 is {1 / ratio:.1f} times faster than float32 here")
    return Precision("32-true", "bfloat16 is not faster than float32 here")


def warn_if_slow(trial: Callable[[], Any], network: nn.Module) -> None:
    """Warn if the network's heaviest layer takes longer in bfloat16 than in float32 on this CPU."""
    layer, shape = heaviest_layer(trial, network)
    if layer is None or shape is None:
        return
    ratio = slowdown(*kind_of(layer, shape))
    if ratio > 1:
        warnings.warn(
            f'precision="bf16-mixed" is {ratio:.1f} times slower than float32 on this CPU. Pass precision="auto" to '
            "use float32 here.",
            stacklevel=5,
        )


def native_bfloat16() -> bool:
    """Whether PyTorch reports that this CPU multiplies bfloat16 numbers itself (AVX-512 BF16 or AMX; Arm with SVE).

    What cannot be asked is answered with True: then the measurement decides.
    """
    questions = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    answers = [bool(question()) for question in questions if question is not None]
    return any(answers) if answers and torch.backends.cpu.get_cpu_capability() != "SVE256" else True


def heaviest_layer(trial: Callable[[], Any], network: nn.Module) -> tuple[nn.Module | None, tuple[int, ...] | None]:
    """The layer with the most multiply-adds per image, and the shape of its input; None if all layers are small.

    Args:
        trial: runs the network forward on one image.
        network: what it runs.

    Example:
        >>> layer = nn.Conv2d(64, 64, 3, padding=1)
        >>> heaviest_layer(lambda: layer(torch.zeros(1, 64, 14, 14)), layer)[1]
        (1, 64, 14, 14)
    """
    work, layer, shape = max(layers_run(trial, network), key=lambda entry: entry[0], default=(0, None, None))
    return (layer, shape) if work >= HEAVY else (None, None)


def multiply_adds(trial: Callable[[], Any], network: nn.Module) -> int:
    """Multiply-adds of a network's convolutions and linear layers in one forward pass.

    Args:
        trial: runs the network forward on one image.
        network: what it runs.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> multiply_adds(lambda: layer(torch.zeros(1, 3)), layer)
        12
    """
    return sum(work for work, _, _ in layers_run(trial, network))


def layers_run(trial: Callable[[], Any], network: nn.Module) -> list[tuple[int, nn.Module, tuple[int, ...]]]:
    """Each layer that multiplies, as often as it is run: multiply-adds per image, layer, shape of its input."""
    found: list[tuple[int, nn.Module, tuple[int, ...]]] = []

    def note(layer: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
        places = (given[0] if isinstance(layer, nn.ConvTranspose2d) else out)[0, 0].numel() if out.ndim > 2 else 1
        found.append((layer.weight.numel() * places, layer, tuple(given[0].shape)))

    handles = [layer.register_forward_hook(note) for layer in network.modules() if isinstance(layer, LAYERS)]
    try:
        with torch.no_grad(), evaluating(network):
            trial()
    finally:
        for handle in handles:
            handle.remove()
    return found


def kind_of(layer: Any, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The 3x3 convolution that stands for a layer in a measurement: channels in and out, rows and columns."""
    if isinstance(layer, nn.Linear):
        side = max(1, math.isqrt(shape[0]))
        return min(layer.in_features, MOST_CHANNELS), min(layer.out_features, MOST_CHANNELS), side, side
    channels = min(layer.in_channels, MOST_CHANNELS), min(layer.out_channels, MOST_CHANNELS)
    return *channels, min(shape[-2], 14), min(shape[-1], 14)


@functools.cache
def slowdown(inputs: int, outputs: int, rows: int, columns: int) -> float:
    """How many times longer a 3x3 convolution takes in bfloat16 than in float32 on this CPU, forward and backward.

    Measured once per process, in under half a second, both in turn: the fastest call of each counts. One thread
    computes, and its own time is taken, not the clock's, so that what else the machine does changes little.

    Args:
        inputs: channels in.
        outputs: channels out.
        rows: height of its input.
        columns: width of its input.

    Example:
        >>> slowdown(8, 8, 8, 8) > 0
        True
    """
    # Numbers from no generator, which would move it.
    weight = torch.linspace(-1, 1, outputs * inputs * 9).reshape(outputs, inputs, 3, 3).requires_grad_()
    x = torch.linspace(0, 1, PROBE_IMAGES * inputs * rows * columns).reshape(PROBE_IMAGES, inputs, rows, columns)
    x.requires_grad_()

    def seconds(enabled: bool) -> float:
        started = time.thread_time()
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            F.conv2d(x, weight, padding=1).float().sum().backward()
        return time.thread_time() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fastest = {enabled: seconds(enabled) for enabled in (False, True)}  # the first call chooses an algorithm
        for _ in range(PROBE_CALLS):
            for enabled in fastest:
                fastest[enabled] = min(fastest[enabled], seconds(enabled))
            if fastest[True] > CLEARLY * fastest[False]:
                break
    finally:
        torch.set_num_threads(threads)
    return fastest[True] / fastest[False]
