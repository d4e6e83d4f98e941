"""What comes before the first step: device, precision, optimizers, checks."""

__all__ = []

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.losses.phases import Phase
from condgen.nn.cuda_graphs import Replays, replayable
from condgen.nn.memory import keep_freed_memory
from condgen.nn.precision import PRECISIONS, choose_precision
from condgen.random import Use, normals
from condgen.training.budget import Budget, Forecast, Plan
from condgen.training.ema import Averaged
from condgen.training.loop import Loop
from condgen.training.optimizers import adam
from condgen.training.state import States
from condgen.training.step import Step


def set_up(
    model: Any,
    objective: Any,
    images: int,
    *,
    epochs: int | None,
    example: tuple[Tensor, Tensor],
    budget: Budget | None = None,
    later: float = 0.0,
    batch_size: int = 128,
    optimizer: Any = adam,
    learning_rate: Callable[[float], float] | None = None,
    clip: float | None = None,
    ema: float | None = None,
    precision: str = "auto",
    augment: Callable[[Tensor, int, Tensor, int], Tensor] | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    accumulate: int = 1,
    balance: Tensor | None = None,
    on_step: Callable[[int, int, dict[str, Tensor]], object] | None = None,
    states: States | None = None,
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    loggers: Any = (),
    graphs: bool = True,
) -> Loop:
    """Device, optimizers and averages for a model that is about to be trained; see :func:`fit`."""
    from lightning_fabric import Fabric

    keep_freed_memory()
    device = Fabric(accelerator=accelerator, devices=1).device
    several = devices * nodes > 1
    chosen = choose_precision(precision, device, partial(try_once, model, example, prepare), model, probe=not several)
    kinds: dict[str, Any] = {"accelerator": accelerator, "precision": chosen.name, "loggers": list(loggers)}
    step = Step(model, objective)
    fabric = Fabric(**kinds, devices=devices, num_nodes=nodes, strategy=strategy_of(strategy, devices * nodes, step))
    if devices * nodes > 1:
        fabric.launch()
    made = [optimizer_of(optimizer, phase)(list(phase.parameters(model))) for phase in step.phases]
    home = model.device
    wrapped, *optimizers = fabric.setup(step, *made)
    recorded = fabric.device.type == "cuda" and devices * nodes == accumulate == 1 and chosen.name != "16-mixed"
    plan = Plan(epochs if epochs or budget else 50, budget, -(-images // batch_size))
    return Loop(
        fabric=fabric,
        step=wrapped,
        optimizers=optimizers,
        plan=plan,
        forecast=Forecast(plan, later),
        precision=chosen,
        batch_size=batch_size,
        seed=seed,
        learning_rate=learning_rate,
        clip=clip,
        averaged=Averaged(model, ema) if ema else None,
        augment=augment,
        prepare=prepare,
        home=home,
        accumulate=accumulate,
        balance=balance,
        on_step=on_step,
        states=states or States(None),
        replays=Replays(graphs and recorded and replayable([model, objective], made)),
    )


def try_once(model: Any, example: tuple[Tensor, Tensor], prepare: Callable[[Tensor], Tensor] | None) -> None:
    """Run a model forward on one image as training does, to see what its layers are asked for."""
    x, y = (tensor.to(model.device) for tensor in example)
    x = (image_tensor if prepare is None else prepare)(x).to(model.dtype)
    index = torch.zeros(1, dtype=torch.int64, device=model.device)
    model.trial(x, y, normals(model.noise_shapes, 0, index, Use.TRAINING, 0, model.dtype))


def strategy_of(strategy: str, processes: int, step: Step) -> Any:
    """By default data parallel training, in which a phase may leave out what another one moves."""
    if strategy != "auto" or processes == 1:
        return strategy
    from lightning_fabric.strategies import DDPStrategy

    return DDPStrategy(find_unused_parameters=len(step.phases) > 1)


def optimizer_of(optimizer: Any, phase: Phase) -> Callable[[list[nn.Parameter]], Optimizer]:
    """The optimizer of a phase: one for all, or one by name."""
    if not isinstance(optimizer, Mapping):
        return optimizer
    if phase.name not in optimizer:
        raise ValueError(f"Expected an optimizer for the phase {phase.name!r}; got {', '.join(optimizer) or 'none'}.")
    return optimizer[phase.name]


def check_numbers(
    *,
    epochs: int | None,
    budget: Budget | None,
    batch_size: int,
    clip: float | None,
    ema: float | None,
    precision: str,
    accelerator: str,
    accumulate: int = 1,
    devices: int = 1,
    nodes: int = 1,
) -> None:
    """Raise unless one can train by these numbers; called before anything is changed."""
    from lightning_fabric import Fabric

    if (epochs is not None and epochs < 1) or batch_size < 1:
        raise ValueError(f"Expected epochs and batch_size of 1 or more; got {epochs} and {batch_size}.")
    if budget is not None and epochs is not None:
        raise ValueError(f"Expected epochs or minutes, not both; got epochs={epochs}, minutes={budget.minutes}.")
    if (clip is not None and not clip > 0) or (ema is not None and not 0 < ema < 1):
        raise ValueError(f"Expected a positive clip and ema in (0, 1), or None; got clip={clip} and ema={ema}.")
    if accumulate < 1 or devices < 1 or nodes < 1:
        raise ValueError(f"Expected accumulate, devices and nodes of 1 or more; got {accumulate}, {devices}, {nodes}.")
    if precision not in PRECISIONS:
        raise ValueError(f"Expected a precision of {', '.join(PRECISIONS)}; got {precision!r}.")
    if precision == "16-mixed" and Fabric(accelerator=accelerator, devices=1).device.type == "cpu":
        raise ValueError('Expected precision "auto", "32-true" or "bf16-mixed" on a CPU; got "16-mixed".')


def tensors(data: LabelledImages, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (uint8) and labels on the device that trains; a memory map is only ever read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(data.images).to(device), torch.as_tensor(data.labels).to(device)
