"""Timing: how long calls take on this machine, what it can do at most, and what it is."""

__all__ = ["machine"]

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import condgen

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRODUCT = 2048  # rows and columns of the matrix product


def median_seconds(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Median time of one call, over at least three calls and about so many seconds.

    Two calls come first, without counting; a call that takes longer than all the time there is, is made twice only.
    """
    first = all_seconds(work, device, 0.0, warm=0, least=1)[0]
    if first > seconds:
        return min(first, *all_seconds(work, device, 0.0, warm=0, least=1))
    return statistics.median(all_seconds(work, device, seconds, warm=1))


def all_seconds(
    work: Callable[[], object], device: torch.device, seconds: float, warm: int = 2, least: int = 3
) -> list[float]:
    """The time of every call.

    Args:
        work: what is timed.
        device: where it is done.
        seconds: for which it is repeated, about.
        warm: calls before the first that counts.
        least: calls that count, at least.
    """
    found: list[float] = []
    for _ in range(warm):
        work()
    synchronise(device)
    end = time.perf_counter() + seconds
    while len(found) < least or (time.perf_counter() < end and len(found) < 1000):
        started = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - started)
    return found


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(precision: str, device: str, seconds: float) -> float:
    """Operations per second of a large matrix product, at its best: what the machine can."""
    a = torch.rand(PRODUCT, PRODUCT, device=device, dtype=PRECISIONS[precision])
    return 2 * PRODUCT**3 / min(all_seconds(lambda: a @ a, torch.device(device), seconds))


def layers_seconds(
    layers: Sequence[tuple[nn.Module, Sequence[Sequence[int]]]], device: torch.device, precision: str, seconds: float
) -> float:
    """Seconds of multiplying layers alone, forward and backward, one after the other.

    Args:
        layers: each with the shapes of its inputs, in the order in which they are run.
        device: where they are.
        precision: "float32" or "bfloat16".
        seconds: spent on all of them, about.
    """
    total = 0.0
    for k, (layer, shapes) in enumerate(layers):
        # No layer before the first one asks for its gradient.
        inputs = [torch.rand(tuple(shape), device=device, requires_grad=k > 0) for shape in shapes]

        def work(layer: nn.Module = layer, inputs: Sequence[Tensor] = inputs) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                out = layer(*inputs)
            out.backward(torch.ones_like(out))

        total += median_seconds(work, device, seconds / len(layers))
    return total


def reset_peak(device: torch.device) -> None:
    """Forget the highest memory so far, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5")


def peak(device: torch.device) -> float | None:
    """The highest memory since, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def machine(device: str = "cpu") -> dict[str, Any]:
    """What figures need beside them.

    Example:
        >>> sorted(machine())
        ['condgen', 'date', 'device', 'python', 'threads', 'torch']
    """
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        cpu = next(named, f":{cpu}").split(":", 1)[1].strip()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "condgen": condgen.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
