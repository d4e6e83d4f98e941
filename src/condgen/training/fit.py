"""Training with one call: `fit`."""

__all__ = ["fit"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from condgen.data.adapters import as_labelled
from condgen.data.images import LabelledImages
from condgen.data.names import SYNTHETIC, default_names, shortened
from condgen.losses.phases import selection_of
from condgen.models.generator import Generator
from condgen.models.saving import load_like
from condgen.nn.conditioners import without_dropout
from condgen.nn.pruning import trim
from condgen.training.budget import Forecast
from condgen.training.callbacks import Callback, Callbacks, EarlyStopping
from condgen.training.history import History, read_history
from condgen.training.loop import Trainer, train
from condgen.training.progress import Progress
from condgen.training.run_folder import RunFolder, check_free, check_same, earlier_run, environment, repr_of
from condgen.training.set_up import check_hardware, set_up, tensors
from condgen.training.settings import Hardware, Training, changed, recorded
from condgen.training.state import TrainingState

STATE = "state"  # folder of checkpoints in the folder of a run


def fit(
    model: Generator,
    data: Any,
    training: Training | None = None,
    *,
    validation: Any = None,
    objective: Any = None,
    hardware: Hardware | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool | Literal["auto"] = False,
    callbacks: Sequence[Any] = (),
    progress: bool = True,
    **changes: Any,
) -> History:
    """Train a model; its weights after the last epoch stay in it, the best on validation are kept in `out`.

    Order, noise, augmentation and dropout are functions of (seed, epoch, image index or step), so the same call gives
    the same weights on one machine with one number of threads. Validation uses the same loss with its final beta and
    the same noise in every epoch. The model comes back on the device and in the mode it had. Parts that are in
    evaluation mode inside a model in training mode stay frozen, and so do parts whose weights all have
    `requires_grad=False`.

    Args:
        model: the model to train; its `class_names` are set from the data if it has none.
        data: images to train on: :class:`~condgen.data.images.LabelledImages`, a pair (images, labels), or a data set
            of torch (:func:`condgen.data.adapters.as_labelled`). A set with splits is trained on its `train` part
            alone, and validated on its `validation` part unless another is given. Class names decide which class is
            which.
        training: how to train: passes, batch size, optimizer and so on; by default `Training()`.
        validation: images that choose the best epoch; by default the `validation` part of a set with splits.
        objective: the loss; by default the model's own. See :mod:`condgen.losses.phases` for what it may be.
        hardware: where to train; by default `Hardware()`.
        out: folder for `model.safetensors` (best epoch), `last/` (last epoch), `metrics.csv` and `run.json`; nothing
            is written without it. A run that is stopped or killed never leaves half a file.
        overwrite: whether an earlier run in `out` may be replaced, once this one has a model to keep.
        resume: go on with the run in `out` where it stopped, bit for bit as if it never had, with the same arguments;
            a finished run is only read. "auto" begins a run if there is none.
        callbacks: what listens; see :class:`condgen.training.callbacks.Callback`. A function is called after every
            epoch with the training state.
        progress: show a progress bar, or lines if there is no terminal.
        **changes: single settings of :class:`~condgen.training.settings.Training` and
            :class:`~condgen.training.settings.Hardware`, such as `epochs=10`, instead of those given or usual.

    Returns:
        One row per epoch, with the terms of training and validation in nats per image, seconds, images per second.

    Raises:
        ValueError: if data, labels and model do not fit together, settings are out of range, `out` holds another run,
            or the run to be resumed had other data or settings.
        TypeError: for a setting that does not exist, or that is of the wrong kind.
        FileNotFoundError: if there is no run to resume.
        OSError: if nothing can be written to `out`.
        FloatingPointError: if the loss is no longer finite; what was saved before stays.

    Example:
        >>> import condgen
        >>> images = condgen.load_smears(64, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=8)
        >>> history = fit(model, images, epochs=2, progress=False)
        >>> history["train_loss"][1] < history["train_loss"][0]
        True
    """
    how, where = changed(training or Training(), hardware or Hardware(), **changes)
    return fit_as_stage(
        model,
        data,
        how,
        where,
        validation=validation,
        objective=objective,
        out=out,
        overwrite=overwrite,
        resume=resume,
        callbacks=callbacks,
        progress=progress,
    )


@dataclass(frozen=True)
class Stage:
    """What a recipe says about a training that is one of its stages.

    Attributes:
        later: work that follows this training, in steps of it, for the estimate of the time to the end of all of it.
        about: further entries for `run.json`.
    """

    later: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)


def fit_as_stage(
    model: Generator,
    data: Any,
    training: Training,
    hardware: Hardware,
    *,
    validation: Any = None,
    objective: Any = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool | Literal["auto"] = False,
    callbacks: Sequence[Any] = (),
    progress: bool = True,
    stage: Stage | None = None,
) -> History:
    """The same as :func:`fit`, for a recipe of which this training is one stage."""
    stage = stage or Stage()
    earlier = earlier_run(out, resume)
    if earlier is None:
        check_free(out, overwrite)
    elif training.precision == "auto" and earlier.get("precision"):
        (training,) = changed(training, precision=earlier["precision"])
    check_hardware(training, hardware)
    data = as_labelled(data)
    images, validation, model.class_names = in_order(model, data, validation)
    weights = class_weights(images) if training.balance else None
    if training.trim:
        trim(model)
    loss = objective or model.objective()
    example = tensors(images.subset(slice(0, 1)), torch.device("cpu"))
    checkpoints = None if out is None else Path(out) / STATE
    trainer, state = set_up(
        model, loss, example, len(images), training, hardware, checkpoints=checkpoints, weights=weights
    )
    state.history.select = selection_of(loss)
    settings = described(trainer, state, training, hardware, loss, images, validation, data, stage.about)
    provenance = {"data": data.fingerprint, "train": images.fingerprint, "objective": type(loss).__name__}
    main = trainer.fabric.is_global_zero
    folder = RunFolder(out if main else None, settings, provenance, earlier)
    if earlier is not None:
        check_same(earlier, settings)
        if found := trainer.checkpoints.read():
            state.load_state_dict(found)
        elif earlier["state"] == "finished":
            return finished_run(model, Path(str(out)), state.history)
    listening: list[Any] = [KeepRun(folder), *callbacks]
    listening += [EarlyStopping(training.patience)] if training.patience else []
    if progress and main:
        steps = -(-len(validation or ()) // training.batch_size)
        begins = max((phase.start for phase in getattr(loss, "phases", ())), default=0.0) or 1.0
        listening.append(Progress(Forecast(state.plan, stage.later, begins), steps))
    device = trainer.fabric.device
    held_out = tensors(validation, device) if validation is not None else None
    train(trainer, state, tensors(images, device), held_out, Callbacks(listening))
    trainer.fabric.barrier()
    folder.record("finished")
    if main:
        trainer.checkpoints.clear()
    trainer.fabric.barrier()
    return state.history


def in_order(
    model: Generator, data: LabelledImages, validation: Any
) -> tuple[LabelledImages, LabelledImages | None, tuple[str, ...]]:
    """Order training and validation images by the model's classes, and check them; returns them and the class names."""
    images, validation = resolve_splits(data, None if validation is None else as_labelled(validation, "validation"))
    images = images.ordered(model.class_names)
    names = model.class_names or tuple(images.class_names)
    if validation is not None and (model.class_names or names != default_names(len(names))):
        validation = validation.ordered(names)
    check_fit(model, images, validation, names)
    return images, validation, names


class KeepRun(Callback):
    """Saves the model after every epoch, as the last one and, if it is, as the best one, and says how the run stands.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.settings = folder, folder.settings

    def on_start(self, state: TrainingState) -> None:
        """Say that there is a run."""
        self.folder.begin(state.history)

    def on_epoch(self, state: TrainingState) -> None:
        """Save the model."""
        budget = state.plan.budget
        spent = {"spent_seconds": round(budget.spent(), 1)} if budget else {}
        self.folder.settings = {**self.settings, "passes": state.passes, **spent}
        self.folder.keep(state.model, state.history, state.network.loss)

    def on_end(self, state: TrainingState) -> None:
        """Say that the run is over; a run that is done says so later, when its checkpoints are gone."""
        self.folder.record("stopped")
        state.network.model.provenance = state.model.provenance


def described(
    trainer: Trainer,
    state: TrainingState,
    training: Training,
    hardware: Hardware,
    loss: Any,
    images: LabelledImages,
    validation: LabelledImages | None,
    data: LabelledImages,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What `run.json` says of a run: all settings, the data and the machine."""
    plan = state.plan
    return {
        **about,
        **recorded(training, hardware),
        "epochs": plan.epochs,
        "planned": f"{plan.budget.minutes} minutes" if plan.budget else f"{plan.epochs} epochs",
        "objective": repr_of(loss),
        "optimizer": "; ".join(repr_of(optimizer.optimizer) for optimizer in state.optimizers),
        "precision": state.precision.name,
        "precision_reason": state.precision.reason,
        "train": repr(images),
        "validation": repr(validation),
        "fingerprint": data.fingerprint,
        **environment(trainer.fabric.device),
    }


def finished_run(model: Generator, out: Path, history: History) -> History:
    """A run that has nothing left to do: the last weights in the model, and its history."""
    model.load_state_dict(load_like(out / "last", model).state_dict())
    for row in (read_history(out) or History()).rows:
        history.add(row)
    return history


def class_weights(data: LabelledImages) -> Tensor:
    """The weight of each image that gives every class the same share, and half of it to its real images.

    Half, where the set says which of its images were generated (`factors["synthetic"]`), of classes that have both.

    Raises:
        ValueError: for labels that are no classes.
    """
    if data.kind != "class":
        raise ValueError(f"Expected class labels to balance by; {data.name!r} has {data.kind} ones.")
    labels, made = torch.as_tensor(data.labels), torch.as_tensor(data.factors.get(SYNTHETIC, data.labels * 0)).bool()
    group = 2 * labels + made
    counts = torch.bincount(group, minlength=2 * data.num_classes)
    kinds = (counts > 0).view(-1, 2).sum(1)  # of images that a class has: real, generated
    return 1 / (counts[group] * kinds[labels]).double()


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
    classes = getattr(without_dropout(model.conditioner), "num_classes", len(names))
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
