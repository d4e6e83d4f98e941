"""What comes before the first step: device, precision, optimizers, and the state to begin with."""

__all__ = []

import atexit
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from condgen.data.augmentation import Augmentation
from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.data.settings import AugmentationSettings
from condgen.losses.phases import Phase
from condgen.nn.cuda_graphs import Replays, replayable
from condgen.nn.memory import keep_freed_memory
from condgen.nn.precision import choose_precision
from condgen.random import Use, normals
from condgen.training.budget import Plan, budget_of
from condgen.training.checkpoints import Checkpoints
from condgen.training.ema import Averaged
from condgen.training.loop import Trainer
from condgen.training.optimizers import WarmupDecay
from condgen.training.settings import Hardware, Training
from condgen.training.state import TrainingState
from condgen.training.step import ModelAndLoss, Step

EPOCHS = 50  # if neither passes nor minutes are given


def set_up(
    model: Any,
    loss: Any,
    example: tuple[Tensor, Any],
    images: int,
    training: Training,
    hardware: Hardware,
    *,
    checkpoints: str | Path | None = None,
    weights: Tensor | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Trainer, TrainingState]:
    """Bring a model that is about to be trained to its device, with optimizers and averages.

    Args:
        model: the model, or a prior of latents.
        loss: what is minimised.
        example: one image and its label, as they are stored.
        images: number of training images.
        training: how to train.
        hardware: where to train.
        checkpoints: folder of training states; None if none are saved.
        weights: probability of each image to be drawn, for classes that are drawn equally often.
        prepare: makes x of what is stored; by default images become numbers in [0, 1].
    """
    from lightning_fabric import Fabric

    keep_freed_memory()
    network = ModelAndLoss(model, loss)
    device = Fabric(accelerator=hardware.accelerator, devices=1).device
    processes = hardware.devices * hardware.nodes
    trial = partial(try_once, network, example, prepare)
    precision = choose_precision(training.precision, device, trial, model, probe=processes == 1)
    fabric = Fabric(
        accelerator=hardware.accelerator,
        precision=precision.name,  # type: ignore[arg-type]
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=strategy_of(hardware.strategy, processes, network),
    )
    if processes > 1:
        fabric.launch()
        atexit.unregister(leave_group)  # once, however often there is training
        atexit.register(leave_group)
    made = [optimizer_for(phase, training)(list(phase.parameters(model))) for phase in network.phases]
    home = next(model.parameters()).device
    wrapped, *optimizers = fabric.setup(network, *made)
    single = processes == training.accumulate == 1 and precision.name != "16-mixed"
    recorded = hardware.cuda_graphs and fabric.device.type == "cuda" and single
    replays = Replays(recorded and replayable([model, loss], made))
    step = Step(fabric, wrapped, optimizers, training.clip, schedule_of(training), replays)
    budget = budget_of(training.minutes)
    plan = Plan(training.epochs if training.epochs or budget else EPOCHS, budget, -(-images // training.batch_size))
    averaged = Averaged(model, training.ema) if training.ema else None
    state = TrainingState(wrapped, optimizers, plan, averaged, step.scaler)
    state.precision = precision
    trainer = Trainer(
        fabric=fabric,
        network=wrapped,
        take=step,
        batch_size=training.batch_size,
        accumulate=training.accumulate,
        seed=training.seed,
        augment=augmentation_of(training.augment),
        prepare=prepare,
        weights=weights,
        checkpoints=Checkpoints(checkpoints, hardware.save_every),
        home=home,
    )
    return trainer, state


def leave_group() -> None:
    """End this process's part in training on several devices, before Python itself ends.

    Threads of gloo may abort a process that ends while they run: https://github.com/pytorch/pytorch/pull/179291.
    Lightning ends it for NCCL alone.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def try_once(network: Any, example: tuple[Tensor, Any], prepare: Callable[[Tensor], Tensor] | None) -> None:
    """Run a model forward on one image as training does, to see what its layers are asked for."""
    weight = next(network.model.parameters())
    x, y = example[0].to(weight.device), example[1]
    y = tuple(part.to(weight.device) for part in y) if isinstance(y, tuple) else y.to(weight.device)
    x = (prepare or image_tensor)(x).to(weight.dtype)
    index = torch.zeros(1, dtype=torch.int64, device=weight.device)
    network.trial(x, y, normals(network.noise_shapes, 0, index, Use.TRAINING, 0, weight.dtype))


def strategy_of(strategy: str, processes: int, network: ModelAndLoss) -> Any:
    """By default data parallel training, in which a phase may leave out parameters that another one updates."""
    if strategy != "auto" or processes == 1:
        return strategy
    from lightning_fabric.strategies import DDPStrategy

    return DDPStrategy(find_unused_parameters=len(network.phases) > 1)


def optimizer_for(phase: Phase, training: Training) -> Callable[[list[nn.Parameter]], Optimizer]:
    """What makes the optimizer of a phase.

    Raises:
        ValueError: if optimizers are given by the names of phases, and this one is missing.
        TypeError: if the optimizer is neither a name nor a function.
    """
    chosen = training.optimizer
    if isinstance(chosen, Mapping):
        if phase.name not in chosen:
            raise ValueError(f"Expected an optimizer for the phase {phase.name!r}; got {', '.join(chosen) or 'none'}.")
        return chosen[phase.name]
    if not isinstance(chosen, str):
        if not callable(chosen) or isinstance(chosen, Optimizer):
            raise TypeError(
                f"Expected optimizer as adam, adamw or a function from parameters to an optimizer; got "
                f"{type(chosen).__name__}. Pass for example functools.partial(torch.optim.SGD, lr=0.1)."
            )
        return chosen  # type: ignore[return-value]
    rate = training.learning_rate * (training.discriminator_rate if phase.name == "discriminator" else 1.0)
    numbers: dict[str, Any] = {"lr": rate, "betas": training.betas, "eps": training.epsilon, "fused": True}
    if chosen == "adam":
        return partial(torch.optim.Adam, **numbers)
    return partial(torch.optim.AdamW, weight_decay=training.weight_decay, **numbers)


def schedule_of(training: Training) -> Callable[[float], float] | None:
    """The factor of the learning rates as a function of the share of training done; None for constant rates."""
    if training.schedule is not None:
        return training.schedule
    return WarmupDecay(training.lr_warmup, training.lr_decay) if training.lr_warmup or training.lr_decay else None


def augmentation_of(augment: Any) -> Any:
    """The function that augments training images: the one given, or one built from settings of augmentation."""
    plain = isinstance(augment, AugmentationSettings) and not isinstance(augment, Augmentation)
    return Augmentation(**vars(augment)) if plain else augment


def check_hardware(training: Training, hardware: Hardware) -> None:
    """Raise for what the device, or this Python, cannot do; called before anything is changed.

    Raises:
        ValueError: for half precision on a CPU, and for several devices in a notebook or by copies of this process.
    """
    from lightning_fabric import Fabric

    copying = [word for word in ("spawn", "fork", "notebook") if word in str(hardware.strategy)]
    interactive = hasattr(sys, "ps1") or getattr(sys.flags, "interactive", 0)
    if copying or (interactive and hardware.devices * hardware.nodes > 1):
        got = f"strategy={hardware.strategy!r}" if copying else f"devices={hardware.devices} in a notebook"
        raise ValueError(
            f"Expected training on several devices in a script, which is started once for each of them; got {got}. "
            "Put the call into a file and run that with python, strategy='auto', or use devices=1."
        )
    if training.precision == "16-mixed" and Fabric(accelerator=hardware.accelerator, devices=1).device.type == "cpu":
        raise ValueError('Expected precision "auto", "32-true" or "bf16-mixed" on a CPU; got "16-mixed".')


def tensors(data: LabelledImages, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (uint8) and labels on the device that trains; a memory map is only ever read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(data.images).to(device), torch.as_tensor(data.labels).to(device)
