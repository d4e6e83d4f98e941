"""Training: one readable loop on Lightning Fabric, the same call on CPU and GPU."""

__all__ = ["WarmupDecay", "adam", "adamw", "fit"]

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from condgen.cvae import ConditionalVAE
from condgen.data import LabelledImages, batches
from condgen.elbo import ELBO
from condgen.files import undisturbed
from condgen.memory import keep_freed_memory
from condgen.noise import Use, normals
from condgen.objectives import Phase, phases_of, schedules_of, selection_of
from condgen.parts import keeping_modes
from condgen.runs import History, RunFolder, check_free, environment, repr_of
from condgen.trimming import trim as trim_weights

PROBED = 20  # steps whose rate a budget of time is planned from
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
TERMS = {"log_likelihood": "log-likelihood", "kl": "KL"}  # as people write them


class Step(nn.Module):
    """Model and objective as one module, so that whatever Fabric wraps around it sees every call."""

    def __init__(self, model: nn.Module, objective: Any) -> None:
        super().__init__()
        self.model, self.objective, self.phases = model, objective, phases_of(objective)
        self.frozen = frozen(model)

    def train(self, mode: bool = True) -> "Step":
        """Training mode, but for what the user froze."""
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def forward(
        self, phase: int, x: Tensor, y: Tensor, noise: dict[str, Tensor], **scheduled: Tensor
    ) -> dict[str, Tensor]:
        """A phase's terms for a batch."""
        return self.phases[phase].loss(self.model, x, y, noise, **scheduled)


def frozen(model: nn.Module) -> list[nn.Module]:
    """Modules that do not learn: in evaluation mode inside a model that is not, or without a weight that may change."""
    chosen = [module for module in model.modules() if model.training and not module.training]
    fixed = [m for m in model.modules() if any(True for _ in m.parameters())]
    return chosen + [m for m in fixed if not any(p.requires_grad for p in m.parameters())]


def adam(parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> Optimizer:
    """Adam, all parameters updated in one pass."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def adamw(
    parameters: Iterable[nn.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99), decay: float = 1e-3
) -> Optimizer:
    """Adam with decoupled weight decay, all parameters updated in one pass."""
    return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=decay, fused=True)


@dataclass(frozen=True)
class WarmupDecay:
    """A learning rate that rises from 0, stays, and falls to a hundredth: a factor by the share of training done.

    Args:
        warmup: share of training over which it rises.
        decay: share of training, at its end, over which it falls.

    Raises:
        ValueError: unless both are shares whose sum is at most 1.

    Example:
        >>> rate = WarmupDecay(warmup=0.1, decay=0.5)
        >>> [round(rate(share), 3) for share in (0.0, 0.05, 0.3, 0.75, 1.0)]
        [0.0, 0.5, 1.0, 0.505, 0.01]
    """

    warmup: float = 0.05
    decay: float = 0.4

    def __post_init__(self) -> None:
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise ValueError(f"Expected shares with a sum of at most 1; got {self.warmup} and {self.decay}.")

    def __call__(self, share: float) -> float:
        """The factor."""
        rise = share / self.warmup if self.warmup else 1.0
        fall = (1 - share) / self.decay if self.decay else 1.0
        return min(1.0, rise, 0.01 + 0.99 * max(fall, 0.0))


class Averaged:
    """An exponential moving average of a model's weights; buffers are the latest.

    The decay rises to its value with the number of steps n, as (1 + n) / (10 + n), so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = AveragedModel(model, multi_avg_fn=self.move)

    @torch.no_grad()
    def move(self, averages: Any, weights: Any, steps: Tensor | int) -> None:
        """Move the averages a little towards the weights, without reading the number of steps back from the device."""
        steps = torch.as_tensor(steps, device=averages[0].device, dtype=torch.float32)
        share = 1 - torch.clamp((1 + steps) / (10 + steps), max=self.decay)
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight.to(average.dtype), share.to(average.dtype))


class Plan:
    """How far training is: epochs are given, or follow from a budget of minutes and the rate so far.

    The first steps give a plan. Later ones may be slower, since a phase began or the machine got busy: at the end of an
    epoch that no longer fits the plan, the rest is planned anew. What schedules go by, the share of training that is
    done, never jumps: `anchors` says from which epoch and share on the rest is counted.
    """

    TOLERANCE = 0.1  # of the epochs left, by which a plan may be wrong

    def __init__(self, epochs: int | None, minutes: float | None, steps: int) -> None:
        self.epochs, self.minutes, self.steps = epochs, minutes, steps
        self.started, self.times = time.perf_counter(), [time.perf_counter()]
        self.epoch_began = self.started
        self.anchors: list[tuple[float, float]] = [(0.0, 0.0)]

    def share(self, epoch: float) -> float:
        """Of the training that is done; 0 as long as that is not known."""
        begun, done = self.anchors[-1]
        return done + (1 - done) * (epoch - begun) / (self.epochs - begun) if self.epochs else 0.0

    def stepped(self) -> None:
        """Count a step; after the first ones, plan."""
        if self.epochs is None:
            self.times.append(time.perf_counter())
            if len(self.times) > PROBED:
                self.settle()

    def settle(self) -> None:
        """The number of epochs that fit into what is left of the budget, at the rate of the last steps seen."""
        if self.epochs is None:
            late = self.times[-1 - min(PROBED - 5, len(self.times) - 1) :]
            seconds = (late[-1] - late[0]) / max(len(late) - 1, 1)
            left = 60 * float(self.minutes or 0) - (self.times[-1] - self.started)
            done = (len(self.times) - 1) / self.steps
            # Validation, files and whatever else an epoch costs besides its steps: a twelfth.
            self.epochs = max(1, math.floor(done + left / (1.08 * seconds * self.steps)))

    def epoch_ended(self, epoch: int) -> None:
        """Plan the rest anew after so many epochs, if at the rate of this one it would miss the budget."""
        now = time.perf_counter()
        seconds, self.epoch_began = now - self.epoch_began, now
        if self.minutes is None or self.epochs is None or epoch >= self.epochs:
            return
        fitting = max(1, math.floor((60 * self.minutes - (now - self.started)) / seconds))
        if abs(fitting - (self.epochs - epoch)) > max(1, self.TOLERANCE * (self.epochs - epoch)):
            self.anchors.append((float(epoch), self.share(epoch)))
            self.epochs = epoch + fitting


@dataclass
class Loop:
    """What a pass over the images needs.

    Attributes:
        fabric: device and precision.
        step: model and objective, wrapped.
        optimizers: one a phase, wrapped.
        plan: how far training is.
        batch_size: images a step.
        seed: of order, noise and dropout.
        learning_rate: share of training done → factor of the optimizers' rates.
        clip: the norm that gradients are cut to.
        averaged: of the weights.
        augment: (x, seed, index, epoch) → x.
        prepare: makes x of what is stored.
        show: progress.
        home: the device that the model comes back to.
    """

    fabric: Any
    step: Any
    optimizers: list[Any]
    plan: Plan
    batch_size: int
    seed: int
    learning_rate: Callable[[float], float] | None = None
    clip: float | None = None
    averaged: Averaged | None = None
    augment: Callable[[Tensor, int, Tensor, int], Tensor] | None = None
    prepare: Callable[[Tensor], Tensor] | None = None
    show: Any = None
    home: Any = "cpu"

    def __post_init__(self) -> None:
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    @property
    def kept(self) -> Any:
        """The model to validate, keep and sample from: the averaged one, if there is one."""
        return self.averaged.average.module if self.averaged else self.step.model

    def scheduled(self, epoch: float | None) -> dict[str, Tensor]:
        """The values of the objective's schedules at this time, or their final ones."""
        schedules = schedules_of(self.step.objective).items()
        values = {name: schedule.final if epoch is None else schedule(epoch) for name, schedule in schedules}
        return {name: torch.full((), value, device=self.fabric.device) for name, value in values.items()}

    def train_epoch(self, train: tuple[Tensor, Tensor], epoch: int) -> dict[str, float]:
        """One pass over the training images; its mean terms, read back from the device once at the end."""
        self.step.train()
        total, steps, scheduled = Totals("train"), -(-len(train[0]) // self.batch_size), {}
        order = batches(*train, self.batch_size, seed=self.seed, epoch=epoch, prepare=self.prepare)
        for k, (index, x, y) in enumerate(order):
            torch.manual_seed(
                step_seed(self.seed, epoch, k)
            )  # of what draws from torch's generator, such as nn.Dropout
            scheduled, x = self.scheduled(epoch + k / steps), x.to(self.step.model.dtype)
            x = self.augment(x, self.seed, index, epoch) if self.augment else x
            noise = normals(self.step.model.noise_shapes, self.seed, index, Use.TRAINING, epoch, x.dtype)
            share = self.plan.share(epoch + k / steps)
            for number, phase in enumerate(self.step.phases):
                if share >= phase.start and (epoch * steps + k) % phase.every == 0:
                    total.add(self.take(number, phase, share, (x, y, noise), scheduled), len(x))
            if self.averaged:
                self.averaged.average.update_parameters(self.step.model)
            self.plan.stepped()
            self.show.advance(len(x))
        self.plan.settle()
        return {**total.means(), **{name: value.item() for name, value in scheduled.items()}}

    def take(
        self, number: int, phase: Phase, share: float, batch: tuple[Any, ...], scheduled: Any
    ) -> dict[str, Tensor]:
        """A phase's step: its terms."""
        optimizer = self.optimizers[number]
        if self.learning_rate:
            for group, rate in zip(optimizer.param_groups, self.rates[number], strict=True):
                group["lr"] = rate * self.learning_rate(share)
        optimizer.zero_grad()
        terms = self.step(number, *batch, **scheduled)
        output = terms.pop("output", None)
        self.fabric.backward(terms["loss"])
        if self.clip:
            terms["gradient_norm"] = self.fabric.clip_gradients(self.step, optimizer, max_norm=self.clip)
        optimizer.step()
        if output is not None and hasattr(self.step.model.likelihood, "observe"):
            self.step.model.likelihood.observe(output, batch[0])
        return {f"{phase.name}_{name}" if number else name: value for name, value in terms.items()}

    @torch.no_grad()
    def evaluate_epoch(self, held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
        """The validation terms of the first phase: final schedules, and the same noise in every epoch."""
        step = self.step if self.averaged is None else Step(self.kept, self.step.objective)
        step.eval()
        total, scheduled = Totals("validation"), self.scheduled(None)
        for index, x, y in batches(*held_out, self.batch_size, prepare=self.prepare):
            x = x.to(self.step.model.dtype)
            noise = normals(self.step.model.noise_shapes, self.seed, index, Use.VALIDATION, 0, x.dtype)
            with self.fabric.autocast():
                terms = step(0, x, y, noise, **scheduled)
            terms.pop("output", None)
            total.add(terms, len(x))
            self.show.advance(0)
        return total.means()


def step_seed(seed: int, epoch: int, step: int) -> int:
    """A seed for torch's own generator at one step of training."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{step}".encode()).digest()[:8], "little") >> 1


def fit(
    model: ConditionalVAE,
    data: LabelledImages,
    *,
    validation: LabelledImages | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    batch_size: int = 128,
    objective: Any = None,
    optimizer: Any = adam,
    learning_rate: Callable[[float], float] | None = None,
    clip: float | None = None,
    ema: float | None = None,
    precision: str = "32-true",
    augment: Callable[[Tensor, int, Tensor, int], Tensor] | None = None,
    trim: bool = True,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
    on_epoch: Callable[[int, ConditionalVAE, dict[str, float]], object] | None = None,
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
        minutes: a budget of time instead: as many epochs as fit, planned after the first 20 steps and again when the
            rate changes. Schedules that go by the share of training follow that plan, which `run.json` keeps.
        batch_size: images a step; the last, smaller batch is kept.
        objective: by default `ELBO()`; see :mod:`condgen.objectives` for what it may be.
        optimizer: parameters → optimizer, e.g. `functools.partial(adamw, lr=3e-4)`; for several phases one for all, or
            a dictionary by their names.
        learning_rate: share of training done → factor of the optimizers' rates, e.g. `WarmupDecay()`.
        clip: the norm that each phase's gradients are cut to; the history has the norm before.
        ema: decay of an exponential moving average of the weights, e.g. 0.999. The averaged weights are validated, kept
            and left in the model.
        precision: "32-true", "bf16-mixed" or "16-mixed" (GPU): of the networks; probabilities are always in float32.
        augment: e.g. :class:`condgen.augmentations.Augmentation`, for training images.
        trim: leave out weights that can never matter first (:func:`condgen.trim`): the same function, trained faster.
        seed: of order, noise, augmentation and dropout, in [0, 2**64).
        out: folder for `model.safetensors` (best epoch), `last/` (last epoch), `metrics.csv` and `run.json`; nothing
            is written without it. Whenever the run is stopped or killed, what is there is whole.
        overwrite: whether an earlier run in `out` may be replaced, once this one has a model to keep.
        accelerator: "auto", "cpu", "cuda" or "mps".
        progress: show a progress bar, or a line an epoch where there is no terminal.
        on_epoch: called after every epoch with its number, the model (the averaged one) and the epoch's row.
        about: further entries for `run.json`.

    Returns:
        One row an epoch: terms of training and validation in nats per image, seconds, images per second.

    Raises:
        ValueError: if data, labels and model do not fit together, numbers are out of range, or `out` holds another run.
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
    check_free(out, overwrite)
    training, validation = resolve_splits(data, validation)
    training, validation = training.ordered(model.class_names), validation and validation.ordered(model.class_names)
    check_fit(model, training, validation)
    model.class_names = model.class_names or tuple(training.class_names)
    if trim:
        trim_weights(model)
    loop = set_up(
        model,
        objective or ELBO(),
        len(training),
        epochs=epochs,
        minutes=minutes,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        clip=clip,
        ema=ema,
        precision=precision,
        augment=augment,
        seed=seed,
        accelerator=accelerator,
    )
    settings = {
        **(about or {}),
        "epochs": loop.plan.epochs,
        "minutes": minutes,
        "batch_size": batch_size,
        "seed": seed,
        "objective": repr_of(loop.step.objective),
        "optimizer": "; ".join(repr_of(optimizer.optimizer) for optimizer in loop.optimizers),
        "learning_rate": repr_of(learning_rate),
        "clip": clip,
        "ema": ema,
        "precision": precision,
        "augment": repr_of(augment),
        "train": repr(training),
        "validation": repr(validation),
        "fingerprint": data.fingerprint,
        **environment(loop.fabric.device),
    }
    provenance = {"data": data.fingerprint, "train": training.fingerprint}
    provenance["objective"] = type(loop.step.objective).__name__
    folder = RunFolder(out, settings, provenance)

    def after(row: dict[str, float], history: History) -> None:
        folder.settings = {**settings, "epochs": loop.plan.epochs, "anchors": loop.plan.anchors}
        folder.keep(loop.kept, history, loop.step.objective)
        if on_epoch:
            on_epoch(int(row["epoch"]), loop.kept, row)

    history = History(select=selection_of(loop.step.objective))
    folder.begin(history)
    try:
        device = loop.fabric.device
        held_out = tensors(validation, device) if validation else None
        run(loop, history, tensors(training, device), held_out, after, progress)
        folder.record("finished")
    except BaseException:
        folder.record("stopped")
        raise
    return history


def set_up(
    model: Any,
    objective: Any,
    images: int,
    *,
    epochs: int | None,
    minutes: float | None = None,
    batch_size: int = 128,
    optimizer: Any = adam,
    learning_rate: Callable[[float], float] | None = None,
    clip: float | None = None,
    ema: float | None = None,
    precision: str = "32-true",
    augment: Callable[[Tensor, int, Tensor, int], Tensor] | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    accelerator: str = "auto",
) -> Loop:
    """Device, optimizers and averages for a model that is about to be trained; see :func:`fit`."""
    from lightning_fabric import Fabric

    check_numbers(epochs, minutes, batch_size, clip, ema, precision)
    keep_freed_memory()
    if precision == "16-mixed" and Fabric(accelerator=accelerator, devices=1).device.type == "cpu":
        raise ValueError('Expected precision "32-true" or "bf16-mixed" on a CPU; got "16-mixed".')
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
    step = Step(model, objective)
    made = [optimizer_of(optimizer, phase)(list(phase.parameters(model))) for phase in step.phases]
    home = model.device
    wrapped, *optimizers = fabric.setup(step, *made)
    return Loop(
        fabric=fabric,
        step=wrapped,
        optimizers=optimizers,
        plan=Plan(epochs if epochs or minutes else 50, minutes, -(-images // batch_size)),
        batch_size=batch_size,
        seed=seed,
        learning_rate=learning_rate,
        clip=clip,
        averaged=Averaged(model, ema) if ema else None,
        augment=augment,
        prepare=prepare,
        home=home,
    )


def optimizer_of(optimizer: Any, phase: Phase) -> Callable[[list[nn.Parameter]], Optimizer]:
    """The optimizer of a phase: one for all, or one by name."""
    if not isinstance(optimizer, Mapping):
        return optimizer
    if phase.name not in optimizer:
        raise ValueError(f"Expected an optimizer for the phase {phase.name!r}; got {', '.join(optimizer) or 'none'}.")
    return optimizer[phase.name]


def run(
    loop: Loop,
    history: History,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor] | None,
    after: Callable[[dict[str, float], History], None],
    progress: bool,
) -> None:
    """The loop: epoch by epoch until the plan is done; the model comes back on the device and in the mode it had."""
    model, device, images = loop.step.model, loop.fabric.device, len(train[0])
    try:
        with (
            keeping_modes(model),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            undisturbed() as stop_if_asked,
            display(loop.plan, images, progress, stop_if_asked) as loop.show,
        ):
            epoch = 0
            while loop.plan.epochs is None or epoch < loop.plan.epochs:
                started = time.perf_counter()
                row = {"epoch": epoch + 1} | loop.train_epoch(train, epoch)
                row["seconds"] = time.perf_counter() - started
                row["images_per_second"] = images / row["seconds"]
                if held_out:
                    row |= loop.evaluate_epoch(held_out)
                history.add(row)
                after(row, history)
                loop.show.epoch(row)
                epoch += 1
                loop.plan.epoch_ended(epoch)
    finally:
        if loop.averaged:
            model.load_state_dict(loop.kept.state_dict())
            model.provenance = loop.kept.provenance
        model.to(loop.home)


class Totals:
    """Sums of a batch's mean terms on the device; nothing is read back before the end."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.images, self.sums = prefix, {}, {}

    def add(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Add a batch."""
        for name, value in terms.items():
            self.images[name] = self.images.get(name, 0) + images
            self.sums[name] = self.sums.get(name, 0.0) + value.detach() * images

    def means(self) -> dict[str, float]:
        """Mean per image, of each term over the images it was taken of."""
        values = torch.stack([value / self.images[name] for name, value in self.sums.items()]).tolist()
        return {f"{self.prefix}_{name}": value for name, value in zip(self.sums, values, strict=True)}


def shown_terms(terms: Iterable[str]) -> list[str]:
    """The terms of an objective to show to people: the bound's where it has them, else its first ones."""
    known = [name for name in ("log_likelihood", "kl") if name in terms]
    return known or list(terms)[:3]


class Display:
    """A progress bar on a terminal; elsewhere a line an epoch; or nothing."""

    def __init__(self, bar: Any, task: Any, console: Any, plan: Plan, images: int, stop_if_asked: Any) -> None:
        self.bar, self.task, self.console = bar, task, console
        self.plan, self.images, self.stop_if_asked = plan, images, stop_if_asked

    def advance(self, images: int) -> None:
        """Images done; between two steps is the moment to stop, if that is asked for."""
        self.stop_if_asked()
        if self.bar:
            self.bar.advance(self.task, images)

    def epoch(self, row: Mapping[str, float]) -> None:
        """An epoch done."""
        split = "validation" if "validation_loss" in row else "train"
        own = {name.removeprefix(f"{split}_"): value for name, value in row.items() if name.startswith(f"{split}_")}
        terms = ", ".join(f"{TERMS.get(name, name)} {own[name]:.5g}" for name in shown_terms(own))
        text = f"epoch {row['epoch']}/{self.plan.epochs}  {row['images_per_second']:,.0f} images/s  {split}: {terms}"
        if self.bar:
            self.bar.update(self.task, description=text, total=(self.plan.epochs or 1) * self.images)
        elif self.console:
            self.console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def display(plan: Plan, images: int, progress: bool, stop_if_asked: Callable[[], None]) -> Iterator[Display]:
    """What shows the progress of as many passes over `images` as are planned."""
    if not progress:
        yield Display(None, None, None, plan, images, stop_if_asked)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Display(None, None, console, plan, images, stop_if_asked)
        return
    columns = BarColumn(bar_width=24), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=(plan.epochs or 1) * images)
        yield Display(bar, task, console, plan, images, stop_if_asked)


def resolve_splits(
    data: LabelledImages, validation: LabelledImages | None
) -> tuple[LabelledImages, LabelledImages | None]:
    """Training and validation images: a set with splits is never used as a whole."""
    if validation is None and "validation" in data.splits:
        validation = data.validation
    if validation is not None and validation.splits:
        validation = validation.validation
    return data.train if data.splits else data, validation


def check_numbers(
    epochs: int | None,
    minutes: float | None,
    batch_size: int,
    clip: float | None,
    ema: float | None,
    precision: str,
) -> None:
    """Raise unless one can train by these numbers."""
    if (epochs is not None and epochs < 1) or batch_size < 1:
        raise ValueError(f"Expected epochs and batch_size of 1 or more; got {epochs} and {batch_size}.")
    if minutes is not None and (epochs is not None or not 0 < minutes < math.inf):
        raise ValueError(f"Expected epochs, or a positive number of minutes; got epochs={epochs}, minutes={minutes}.")
    if (clip is not None and not clip > 0) or (ema is not None and not 0 < ema < 1):
        raise ValueError(f"Expected a positive clip and ema in (0, 1), or None; got clip={clip} and ema={ema}.")
    if precision not in PRECISIONS:
        raise ValueError(f"Expected a precision of {', '.join(PRECISIONS)}; got {precision!r}.")


def check_fit(model: ConditionalVAE, data: LabelledImages, validation: LabelledImages | None) -> None:
    """Raise unless data, labels and model fit together."""
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


def tensors(data: LabelledImages, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (uint8) and labels on the device that trains; a memory map is only ever read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(data.images).to(device), torch.as_tensor(data.labels).to(device)
