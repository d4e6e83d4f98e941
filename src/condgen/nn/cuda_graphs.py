"""CUDA graphs: what a training step, or a block of samples, asks of a GPU, recorded once and replayed.

A step of a small network is a thousand launches of a few microseconds' work each, and Python takes longer to ask for
them than the GPU to do them. A graph is all of them in one launch. It holds what was asked for and where in memory it
is done; Python does not run again. So what Python decides must be the same at every step: nothing that goes by a
number that it counts, or by a value read back. condgen's parts and torch's own are like that; one that is not says
`replayable = False`, and a part of somebody else's is believed to be only if it says `replayable = True`.

References:
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

__all__ = ["Replays", "replayable"]

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

SETTLING = 3  # steps taken as they are before one is recorded: optimizers make their states, libraries their plans
MOST = 8  # recordings kept; each holds the memory of a step
OWN = ("condgen", "torch")  # whose parts are known to repeat themselves
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
Work = Callable[[dict[str, Tensor]], dict[Any, Tensor]]


def replayable(modules: Iterable[nn.Module], optimizers: Iterable[Any] = ()) -> bool:
    """Whether a step of these does the same work each time, as far as one can know.

    Args:
        modules: all that take part, with what is inside them.
        optimizers: torch's Adams have a way of stepping that can be recorded.

    Example:
        >>> class Counting(nn.Linear): ...
        >>> Counting.__module__ = "my.layers"
        >>> replayable([nn.Linear(2, 2)]), replayable([nn.Sequential(Counting(2, 2))])
        (True, False)
        >>> Counting.replayable = True
        >>> replayable([nn.Sequential(Counting(2, 2))])
        True
        >>> replayable([nn.Linear(2, 2)], [torch.optim.SGD(nn.Linear(2, 2).parameters())])
        False
    """
    inside = [part for module in modules for part in module.modules()]
    known = (getattr(part, "replayable", type(part).__module__.split(".")[0] in OWN) for part in inside)
    hooked = any(getattr(part, name) for part in inside for name in HOOKS)
    able = (type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) for optimizer in optimizers)
    return all(known) and all(able) and not hooked


def record(work: Work, inputs: dict[str, Tensor]) -> tuple[Callable[[], None], dict[Any, Tensor]]:
    """A graph of the work on these inputs, where they lie: what replays it, and where its outputs will lie."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = work(inputs)
    return graph.replay, outputs


def aside(work: Work, inputs: dict[str, Tensor]) -> dict[Any, Tensor]:
    """The work as it is, on a stream of its own, where what will be recorded later finds nothing to wait for."""
    if not torch.cuda.is_available():
        return work(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outputs = work(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    return outputs


class Replays:
    """Does work: a few times as it is, from then on by replaying what it was recorded as.

    Args:
        enabled: whether anything is recorded at all.

    Example:
        >>> replays = Replays(enabled=False)
        >>> replays("double", lambda inputs: {"twice": 2 * inputs["x"]}, {"x": torch.ones(2)})["twice"]
        tensor([2., 2.])
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.seen: Counter[Hashable] = Counter()
        self.recorded: dict[Hashable, tuple[Callable[[], None], dict[Any, Tensor], dict[str, Tensor]]] = {}

    def __call__(self, key: Hashable, work: Work, inputs: dict[str, Tensor]) -> dict[Any, Tensor]:
        """The outputs of the work, detached; the next call with this key may write over them.

        Args:
            key: what the work goes by besides its inputs; shapes need not be in it.
            work: inputs by name → outputs by some name, and whatever it does on the way.
            inputs: tensors on the device.

        Warns:
            UserWarning: if the work cannot be recorded; it is done as it is from then on.
        """
        key = key, tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        if not self.enabled:
            return work(inputs)
        if key not in self.recorded:
            self.seen[key] += 1
            if self.seen[key] <= SETTLING or len(self.recorded) == MOST:
                return aside(work, inputs)
            own = {name: tensor.clone() for name, tensor in inputs.items()}
            try:
                self.recorded[key] = *record(work, own), own
            except RuntimeError as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(f"Going on without CUDA graphs, more slowly: {reason}", stacklevel=2)
                self.enabled = False
                return work(inputs)
        replay, outputs, own = self.recorded[key]
        for name, tensor in inputs.items():
            own[name].copy_(tensor)
        replay()
        return outputs
