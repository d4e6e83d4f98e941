"""What every part has in common: it remembers what it was built from, and comes back in the mode it was lent in."""

__all__ = ["FAMILIES", "REGISTERED", "Part", "evaluating", "keeping_modes", "seeded"]

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

FAMILIES = (
    "models.cvae",
    "models.cgan",
    "models.cflow",
)  # of models, each in a file of its name that brings its parts with it
REGISTERED: dict[str, type["Part"]] = {}  # the name that files use → the class


class Part(nn.Module):
    """An `nn.Module` that records its constructor arguments in `arguments`.

    A saved model is its parts' class names, their arguments and the weights; nothing executable. Modules among
    the arguments must be kept as attributes of the same name, so that a part replaced later is saved as it
    then is. Nobody has to subclass this: any module that honours a shelf's contract is welcome in a model.

    Files know the parts of condgen by a short name, `likelihoods.Gaussian`: the file, without its folders, and the
    class, as they were when the part first came. A part that moves keeps it:
    `class Flow(Part, registered="priors.Flow")`.

    Example:
        >>> class Scale(Part):
        ...     def __init__(self, factor: float = 2.0) -> None:
        ...         super().__init__()
        ...         self.factor = factor
        >>> Scale(3.0).arguments, Scale().arguments
        ({'factor': 3.0}, {'factor': 2.0})
    """

    arguments: dict[str, Any]
    registered: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()

    def __init_subclass__(cls, registered: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("condgen.") and cls.__qualname__ == cls.__name__:
            cls.registered = registered or f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"
            REGISTERED[cls.registered] = cls
        else:
            cls.registered = ""
        init: Any = cls.__init__
        signature = inspect.signature(init)

        @functools.wraps(init)
        def recording(self: Part, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            init(self, *args, **kwargs)
            if type(self) is cls:
                # Copies of the user's lists: what they do with theirs later is not what we were built from.
                values = {name: value for name, value in bound.arguments.items() if name != "self"}
                self.arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

        cls.__init__ = recording


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, every module of the model comes back in the mode (training or not) it had.

    Example:
        >>> net = nn.Sequential(nn.Dropout().eval(), nn.Dropout())
        >>> with keeping_modes(net):
        ...     _ = net.train()
        >>> [module.training for module in net]
        [False, True]
    """
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, then every module of it back in the mode it had.

    Example:
        >>> net = nn.Dropout()
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    with keeping_modes(model):
        model.eval()
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw the first weights of modules built inside from this seed; torch's generator is as it was afterwards.

    Example:
        >>> with seeded(0):
        ...     one = nn.Linear(2, 1)
        >>> with seeded(0):
        ...     one.weight.equal(nn.Linear(2, 1).weight)
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
