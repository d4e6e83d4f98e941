"""Training with one call: `fit`."""

__all__ = ["fit"]

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from condgen.data.images import LabelledImages, default_names, shortened
from condgen.losses.phases import selection_of
from condgen.models.generator import Generator
from condgen.models.saving import load
from condgen.nn.pruning import trim as trim_weights
from condgen.training.budget import Budget, budget_of
from condgen.training.loop import run
from condgen.training.optimizers import adam
from condgen.training.run_folder import (
    History,
    RunFolder,
    check_free,
    check_same,
    earlier_run,
    environment,
    read_history,
    repr_of,
)
from condgen.training.set_up import check_numbers, set_up, tensors
from condgen.training.state import States

STATE = "state"  # folder of training states within a run's


def fit(
    model: Generator,
    data: LabelledImages,
    *,
    validation: LabelledImages | None = None,
    epochs: int | None = None,
    minutes: float | Budget | None = None,
    batch_size: int = 128,
    objective: Any = None,
    optimizer: Any = adam,
    learning_rate: Callable[[float], float] | None = None,
    clip: float | None = None,
    ema: float | None = None,
    precision: str = "auto",
    augment: Callable[[Tensor, int, Tensor, int], Tensor] | None = None,
    trim: bool = True,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
    on_epoch: Callable[[int, Generator, dict[str, float]], object] | None = None,
    on_step: Callable[[int, int, dict[str, Tensor]], object] | None = None,
    accumulate: int = 1,
    balance: bool = False,
    patience: int | None = None,
    loggers: Any = (),
    resume: bool | Literal["auto"] = False,
    save_every: float = 60.0,
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    graphs: bool = True,
    later: float = 0.0,
    about: Mapping[str, Any] | None = None,
) -> History:
    """Train a model; its weights after the last epoch stay in it, the best on validation are kept in `out`.

    Order, noise, augmentation and dropout are functions of (seed, epoch, image index or step), so the same call gives
    the same weights on one machine with one number of threads. Validation uses the same objective with its final beta
    and the same noise every epoch. The model comes back on the device and in the mode it had; parts that stand in
    evaluation mode inside a model in training mode, or whose weights all have `requires_grad=False`, stay frozen.

    Args:
        model: what to train; its `class_names` are set from the data where it has none.
        data: images to train on. A set with splits is trained on its `train` part alone, and validated on its
            `validation` part unless another is given. Class names decide which class is which.
        validation: images to choose the best epoch by; of a set with splits its `validation` part.
        epochs: passes over the data; by default 50.
        minutes: a budget of time instead, for everything this call does. It may end inside an epoch; schedules that go
            by the share of training follow the clock, and `run.json` says how many passes it came to. A budget's
            result depends on the machine; a number of epochs does not.
        batch_size: images a step; the last, smaller batch is kept.
        objective: by default the model's own; see :mod:`condgen.losses.phases` for what it may be.
        optimizer: parameters → optimizer, e.g. `functools.partial(adamw, lr=3e-4)`; for several phases one for all, or
            a dictionary by their names.
        learning_rate: share of training done → factor of the optimizers' rates, e.g. `WarmupDecay()`.
        clip: the norm that each phase's gradients are cut to; the history has the norm before.
        ema: decay of an exponential moving average of the weights, e.g. 0.999. The averaged weights are validated, kept
            and left in the model.
        precision: of the networks: "auto" (bfloat16 where this machine is faster in it, else float32; see
            :func:`condgen.nn.precision.choose_precision`), "32-true", "bf16-mixed" or "16-mixed" (GPU). Probabilities
            are always in float32. What was chosen is in `run.json`, and a resumed run keeps it.
        augment: e.g. :class:`condgen.data.augmentation.Augmentation`, for training images.
        trim: leave out weights that can never matter first (:func:`condgen.trim`): the same function, trained faster.
        seed: of order, noise, augmentation and dropout, in [0, 2**64).
        out: folder for `model.safetensors` (best epoch), `last/` (last epoch), `metrics.csv` and `run.json`; nothing
            is written without it. Whenever the run is stopped or killed, what is there is whole.
        overwrite: whether an earlier run in `out` may be replaced, once this one has a model to keep.
        accelerator: "auto", "cpu", "cuda" or "mps".
        progress: show a progress bar, or a line an epoch where there is no terminal.
        on_epoch: called after every epoch with its number, the model (the averaged one) and the epoch's row.
        on_step: called after every step with the epoch and the step, from 0, and the terms of the first phase.
        accumulate: batches whose gradients are added up before a step, as if they were one.
        balance: draw every class equally often, with replacement, instead of every image once an epoch.
        patience: stop after so many epochs without a better one.
        loggers: of Lightning Fabric, such as `lightning_fabric.loggers.TensorBoardLogger`: each gets every epoch's row.
        resume: go on with the run in `out` where it stopped, bit for bit as if it never had, with the same arguments;
            of a finished run nothing is left to do. "auto" begins a run where there is none.
        save_every: seconds between two training states in `out`, of which the last two stay; also when it is stopped.
        devices: of the accelerator, on each of the nodes. A batch is split over them.
        nodes: machines.
        strategy: of Lightning Fabric, for several devices.
        graphs: on one GPU, record a step as a CUDA graph and replay it, if all parts are condgen's or torch's own, or
            say that they are `replayable` (:mod:`condgen.nn.cuda_graphs`). False asks for every operation anew.
        later: work that follows this training, in steps of it, for the estimate of the time to the end of all of it.
        about: further entries for `run.json`.

    Returns:
        One row an epoch: terms of training and validation in nats per image, seconds, images per second.

    Raises:
        ValueError: if data, labels and model do not fit together, numbers are out of range, `out` holds another run, or
            the run to be resumed had other data or settings.
        FileNotFoundError: if there is no run to resume.
        OSError: if nothing can be written to `out`.
        FloatingPointError: when the loss is no longer finite; what was saved before stays.

    Example:
        >>> import condgen
        >>> images = condgen.load_smears(64, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=8)
        >>> history = fit(model, images, epochs=2, progress=False)
        >>> history["train_loss"][1] < history["train_loss"][0]
        True
    """
    budget = budget_of(minutes)
    earlier = earlier_run(out, resume)
    if earlier is None:
        check_free(out, overwrite)
    elif precision == "auto":
        precision = earlier.get("precision", precision)
    check_numbers(
        epochs=epochs,
        budget=budget,
        batch_size=batch_size,
        clip=clip,
        ema=ema,
        precision=precision,
        accelerator=accelerator,
        accumulate=accumulate,
        devices=devices,
        nodes=nodes,
    )
    training, validation = resolve_splits(data, validation)
    training = training.ordered(model.class_names)
    names = model.class_names or tuple(training.class_names)
    if validation is not None and (model.class_names or names != default_names(len(names))):
        validation = validation.ordered(names)
    check_fit(model, training, validation, names)
    model.class_names = names
    if trim:
        trim_weights(model)
    loop = set_up(
        model,
        objective or model.objective(),
        len(training),
        epochs=epochs,
        budget=budget,
        later=later,
        example=tensors(training.subset(slice(0, 1)), torch.device("cpu")),
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        clip=clip,
        ema=ema,
        precision=precision,
        augment=augment,
        seed=seed,
        accelerator=accelerator,
        accumulate=accumulate,
        balance=class_weights(training) if balance else None,
        on_step=on_step,
        states=States(out and Path(out) / STATE, save_every),
        devices=devices,
        nodes=nodes,
        strategy=strategy,
        loggers=loggers,
        graphs=graphs,
    )
    settings = {
        **(about or {}),
        "epochs": loop.plan.epochs,
        "planned": f"{budget.minutes} minutes" if budget else f"{loop.plan.epochs} epochs",
        "minutes": budget and budget.minutes,
        "batch_size": batch_size,
        "seed": seed,
        "objective": repr_of(loop.step.objective),
        "optimizer": "; ".join(repr_of(optimizer.optimizer) for optimizer in loop.optimizers),
        "learning_rate": repr_of(learning_rate),
        "clip": clip,
        "ema": ema,
        "precision": loop.precision and loop.precision.name,
        "precision_reason": loop.precision and loop.precision.reason,
        "augment": repr_of(augment),
        "accumulate": accumulate,
        "balance": balance,
        "patience": patience,
        "train": repr(training),
        "validation": repr(validation),
        "fingerprint": data.fingerprint,
        **environment(loop.fabric.device),
    }
    provenance = {"data": data.fingerprint, "train": training.fingerprint}
    provenance["objective"] = type(loop.step.objective).__name__
    loop.history.select = selection_of(loop.step.objective)
    main = loop.fabric.is_global_zero
    folder = RunFolder(out if main else None, settings, provenance, earlier)
    if earlier is not None:
        check_same(earlier, settings)
        if state := loop.states.read():
            loop.restore(state)
        elif earlier["state"] == "finished":
            return finished_run(model, Path(str(out)), loop.history)

    def after(row: dict[str, float]) -> None:
        spent = {"spent_seconds": round(budget.spent(), 1)} if budget else {}
        folder.settings = {**settings, "passes": loop.passes, **spent}
        folder.keep(loop.kept, loop.history, loop.step.objective)
        loop.fabric.log_dict({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))
        if on_epoch:
            on_epoch(int(row["epoch"]), loop.kept, row)

    folder.begin(loop.history)
    try:
        device = loop.fabric.device
        held_out = tensors(validation, device) if validation else None
        run(loop, tensors(training, device), held_out, after, progress, patience)
        loop.fabric.barrier()
        folder.record("finished")
        if main:
            loop.states.clear()
        loop.fabric.barrier()
    except BaseException:
        folder.record("stopped")
        raise
    return loop.history


def finished_run(model: Generator, out: Path, history: History) -> History:
    """A run that has nothing left to do: the last weights in the model, and its history."""
    model.load_state_dict(load(out / "last").state_dict())
    for row in (read_history(out) or History()).rows:
        history.add(row)
    return history


def class_weights(data: LabelledImages) -> Tensor:
    """The weight of each image that gives every class the same share.

    Raises:
        ValueError: for labels that are no classes.
    """
    if data.kind != "class":
        raise ValueError(f"Expected class labels to balance by; {data.name!r} has {data.kind} ones.")
    labels = torch.as_tensor(data.labels)
    return 1 / torch.bincount(labels)[labels].double()


def resolve_splits(
    data: LabelledImages, validation: LabelledImages | None
) -> tuple[LabelledImages, LabelledImages | None]:
    """Training and validation images: a set with splits is never used as a whole."""
    if validation is None and "validation" in data.splits:
        validation = data.validation
    if validation is not None and validation.splits:
        validation = validation.validation
    return data.train if data.splits else data, validation


def check_fit(model: Generator, data: LabelledImages, validation: LabelledImages | None, names: Sequence[str]) -> None:
    """Raise unless data, labels, the names that classes will have, and model fit together."""
    classes = getattr(getattr(model.conditioner, "conditioner", model.conditioner), "num_classes", len(names))
    if names and classes > len(names):
        raise ValueError(
            f"Expected a name for each of the model's {classes} classes; {data.name!r} has {len(names)}: "
            f"{shortened(names)}. Build the model with num_classes={len(names)}, or name the other classes."
        )
    for split in (data, validation):
        if split is None:
            continue
        if len(split) == 0:
            raise ValueError(f"{split.name!r} holds no images. Leave it out or fill it.")
        if model.image_shape and model.image_shape != split.image_shape:
            raise ValueError(
                f"Expected images of {model.image_shape}, which the model was built for; {split.name!r} has "
                f"{split.image_shape}. Build the model with image_shape={split.image_shape} or resize the images."
            )
        model.conditioner.check(torch.as_tensor(split.labels))
