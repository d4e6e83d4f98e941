"""Training: one readable loop on Lightning Fabric, the same call on CPU and GPU."""

__all__ = ["WarmupDecay", "adam", "adamw", "fit"]

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from condgen.augmentations import Augmentation
from condgen.checkpoints import load
from condgen.data import Batch, LabelledImages, batches, image_tensor
from condgen.files import undisturbed
from condgen.generator import Generator
from condgen.graphs import Replays, replayable
from condgen.memory import keep_freed_memory
from condgen.noise import Use, normals
from condgen.objectives import Phase, phases_of, schedules_of, selection_of
from condgen.parts import keeping_modes
from condgen.planning import Budget, Forecast, Plan, budget_of
from condgen.precision import Precision, choose_precision
from condgen.progress import Display, display
from condgen.runs import History, RunFolder, check_free, check_same, earlier_run, environment, read_history, repr_of
from condgen.states import States
from condgen.trimming import trim as trim_weights

STATE = "state"  # folder of training states within a run's
WATCHED = 50  # steps after which losses are looked at
SEPARATOR = "\n"  # between the names of terms
FIRST_STEPS = (5, 20)  # after which the time that validation will take is estimated
AHEAD = 16  # batches made ready at once on a GPU, where many small operations take longer than a large one
MOST_AHEAD = 2**24  # numbers of their images


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
        self.decay, self.steps = decay, 0
        self.average = AveragedModel(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the averages a little towards the weights, without asking the device for the number of steps."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.steps else 0.0
        averages, weights = list(self.average.module.parameters()), list(model.parameters())
        get_ema_multi_avg_fn(decay)(averages, weights, self.steps)  # type: ignore[arg-type]
        for average, latest in zip(self.average.module.buffers(), model.buffers(), strict=True):
            average.copy_(latest)
        self.steps += 1
        self.average.n_averaged.fill_(self.steps)

    def state(self) -> dict[str, Tensor]:
        """What a resumed run goes by."""
        return dict(self.average.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        self.average.load_state_dict(state)
        self.steps = int(self.average.n_averaged)


class Totals:
    """Sums of batches' mean terms on the device; nothing is read back before the end.

    Steps may have different terms: those that come together are added up together, in one operation.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.images: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}

    def add(self, names: Iterable[str], values: Tensor, images: int) -> None:
        """Add a batch's terms, by name and in one tensor."""
        place = SEPARATOR.join(names)
        if place not in self.sums:
            self.images[place], self.sums[place] = 0, torch.zeros_like(values)
        self.images[place] += images
        self.sums[place].add_(values, alpha=images)

    def means(self, fabric: Any = None) -> dict[str, float]:
        """Mean per image, of each term over the images it was taken of, on all devices."""
        sums: dict[str, Any] = {}
        counts: dict[str, int] = {}
        for place, values in self.sums.items():
            for name, value in zip(place.split(SEPARATOR), values.double().reshape(-1), strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + self.images[place]
        if not sums:
            return {}
        total = torch.stack(list(sums.values()))
        images = torch.tensor(list(counts.values()), dtype=torch.float64, device=total.device)
        if fabric is not None and fabric.world_size > 1:
            total, images = (fabric.all_reduce(both, reduce_op="sum") for both in (total, images))
        return {f"{self.prefix}_{name}": value for name, value in zip(sums, (total / images).tolist(), strict=True)}


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
        forecast: of the time that training takes.
        precision: of the networks, and why.
        passes: over the images done so far, with fractions.
        held_out_steps: batches of validation images.
        home: the device that the model comes back to.
        accumulate: batches whose gradients are added up before a step.
        balance: probability of each training image to be drawn; without it every image comes once an epoch.
        on_step: called after every step with the epoch, the number of steps in it, and the first phase's terms.
        states: where training states are kept.
        history: of the epochs done.
        epoch: that is under way, from 0.
        done: steps of it that are done.
        seconds: that it took so far.
        total: of its terms so far.
        whole: between two steps, when what there is can be kept.
        seen: phase, step and terms since these were last looked at: a loss may not be finite.
        replays: the work of steps, recorded where that is of use.
        about: further entries of a training state.
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
    show: Display = None  # type: ignore[assignment]
    forecast: Any = None
    precision: Precision | None = None
    passes: float = 0.0
    held_out_steps: int = 0
    home: Any = "cpu"
    accumulate: int = 1
    balance: Tensor | None = None
    on_step: Callable[[int, int, dict[str, Tensor]], object] | None = None
    states: States = field(default_factory=lambda: States(None))
    history: History = field(default_factory=History)
    epoch: int = 0
    done: int = 0
    seconds: float = 0.0
    total: Totals = field(default_factory=lambda: Totals("train"))
    whole: bool = True
    seen: list[tuple[int, int, tuple[str, ...], Tensor]] = field(default_factory=list)
    replays: Replays = field(default_factory=lambda: Replays(enabled=False))
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self.optimizers]

    @property
    def kept(self) -> Any:
        """The model to validate, keep and sample from: the averaged one, if there is one."""
        return self.averaged.average.module if self.averaged else self.step.model

    def scheduled(self, epoch: float | None) -> dict[str, Tensor]:
        """The values of the objective's schedules at this time, or their final ones."""
        schedules = schedules_of(self.step.objective).items()
        values = {name: schedule.final if epoch is None else schedule(epoch) for name, schedule in schedules}
        return {name: torch.full((), value, device=self.fabric.device) for name, value in values.items()}

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here."""
        return {
            "epoch": self.epoch,
            "done": self.done,
            "seconds": self.seconds,
            "total": {"images": self.total.images, "sums": self.total.sums},
            "history": self.history.rows,
            "plan": self.plan.state(),
            "step": dict(self.step.state_dict()),
            "optimizers": [plain(optimizer.state_dict()) for optimizer in self.optimizers],
            "averaged": self.averaged.state() if self.averaged else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "precision": self.precision and self.precision.name,
            **self.about,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        for name in ("epoch", "done", "seconds"):
            setattr(self, name, state[name])
        device = self.fabric.device
        self.total.images = dict(state["total"]["images"])
        self.total.sums = {name: value.to(device) for name, value in state["total"]["sums"].items()}
        for row in state["history"]:
            self.history.add(row)
        self.plan.restore(state["plan"])
        self.step.load_state_dict(state["step"])
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        if self.averaged:
            self.averaged.restore(state["averaged"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])

    @property
    def scaler(self) -> Any:
        """Of the loss, in half precision."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def keep(self) -> None:
        """Keep a training state, unless a step is under way or a loss was not finite."""
        if self.whole and self.unsound() is None and self.fabric.is_global_zero:
            self.states.write(self.state())

    def share_of(self, images: int) -> int:
        """How many images of a batch are this device's."""
        return len(range(self.fabric.global_rank, images, self.fabric.world_size))

    def train_epoch(self, train: tuple[Tensor, Tensor]) -> dict[str, float]:
        """The rest of a pass over the training images; its mean terms, read back from the device once at the end."""
        self.step.train()
        epoch, steps = self.epoch, -(-len(train[0]) // self.batch_size)
        scheduled = self.scheduled(epoch + max(self.done - 1, 0) / steps)
        began, self.seen = time.perf_counter() - self.seconds, []
        for k, (x, y, noise) in enumerate(self.prepared(train), self.done):
            if k % self.accumulate == 0 and self.plan.over(epoch + k / steps):
                break  # a budget may end inside an epoch
            self.whole = False
            # Of what draws from torch's generator, such as nn.Dropout.
            torch.manual_seed(step_seed(self.seed, epoch, k, self.fabric.global_rank))
            scheduled = self.scheduled(epoch + k / steps)
            share, group = self.plan.share(epoch + k / steps), k // self.accumulate
            groups = -(-steps // self.accumulate)
            images = min(self.batch_size, len(train[0]) - k * self.batch_size)  # on all devices together
            own = self.share_of(images)
            due = tuple(
                number
                for number, phase in enumerate(self.step.phases)
                if share >= phase.start and (epoch * groups + group) % phase.every == 0
            )
            for number in due:
                self.set_rate(self.optimizers[number], self.rates[number], share)
            weight = own * self.fabric.world_size / images  # devices' gradients are averaged
            found = self.take(due, (x, y, noise, scheduled), k, steps, weight)
            for number, (names, values) in found.items():
                self.total.add(names, values, own)
                self.seen.append((number, k, names, values))
                if self.on_step and not number:
                    self.on_step(epoch, k, dict(zip(names, values.unbind(), strict=True)))
            if self.averaged and self.last_of_group(k, steps):
                self.averaged.update(self.step.model)
            self.done, self.seconds, self.whole = k + 1, time.perf_counter() - began, self.last_of_group(k, steps)
            self.read_clock()
            due_state = self.states.due() and self.fabric.world_size == 1  # several devices keep them between epochs
            if due_state or k % WATCHED == WATCHED - 1:
                self.check(train)
            if due_state:
                self.keep()
            self.show.stepped(epoch + self.done / steps, stop=self.whole)  # gradients that are added up are not kept
        self.check(train)
        self.passes = epoch + self.done / steps
        return {**self.total.means(self.fabric), **{name: value.item() for name, value in scheduled.items()}}

    def read_clock(self) -> None:
        """Note what is spent of a budget; all devices follow the clock of the first."""
        if self.plan.budget is None:
            return
        if not self.history.rows and self.done in FIRST_STEPS:  # not known before an epoch has ended: a forward pass
            self.plan.reserve(0.4 * self.seconds / self.done * self.held_out_steps + 0.5)
        self.plan.tick(self.fabric.broadcast if self.fabric.world_size > 1 else lambda share: share)

    def prepared(self, train: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Augmented images, labels and noise of the rest of the epoch's batches; on a GPU some are made at once."""
        model, ahead = self.step.model, 1
        if self.fabric.device.type == "cuda" and self.fabric.world_size == 1:
            ahead = max(1, min(AHEAD, MOST_AHEAD // (self.batch_size * train[0][0].numel())))
        first, skipped = divmod(self.done, ahead)
        for index, images, labels in self.order(train, first, ahead):
            x = images.to(model.dtype)
            noise = normals(model.noise_shapes, self.seed, index, Use.TRAINING, self.epoch, model.dtype)
            if isinstance(self.augment, Augmentation):  # which changes each image by itself
                x = self.augment(x, self.seed, index, self.epoch)
            for start in range(skipped * self.batch_size, len(index), self.batch_size):
                some = slice(start, start + self.batch_size)
                own = x[some]
                if self.augment and not isinstance(self.augment, Augmentation):
                    own = self.augment(own, self.seed, index[some], self.epoch)
                yield own, labels[some], {name: numbers[some] for name, numbers in noise.items()}
            skipped = 0

    def last_of_group(self, k: int, steps: int) -> bool:
        """Whether the gradients added up so far are due for a step."""
        return (k + 1) % self.accumulate == 0 or k + 1 == steps

    def set_rate(self, optimizer: Any, rates: Sequence[float], share: float) -> None:
        """The learning rate at this share of training; one that a recording reads is a number on the device."""
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            now = rate * self.learning_rate(share) if self.learning_rate else rate
            if self.replays.enabled and not isinstance(group["lr"], Tensor):
                group.update(capturable=True, lr=torch.full((), now, dtype=torch.float32, device=self.fabric.device))
            elif self.learning_rate and isinstance(group["lr"], Tensor):
                group["lr"].fill_(now)
            elif self.learning_rate:
                group["lr"] = now

    def take(
        self, due: tuple[int, ...], batch: tuple[Any, ...], k: int, steps: int, weight: float
    ) -> dict[int, tuple[tuple[str, ...], Tensor]]:
        """A step of these phases: the terms of each, by name and in one tensor."""
        x, y, noise, scheduled = batch
        inputs = {"x": x, "y": y, **{f"noise {name}": value for name, value in noise.items()}}
        inputs |= {f"scheduled {name}": value for name, value in scheduled.items()}

        def work(given: dict[str, Tensor]) -> dict[tuple[int, tuple[str, ...]], Tensor]:
            own = given["x"], given["y"], {name: given[f"noise {name}"] for name in noise}
            times, values = {name: given[f"scheduled {name}"] for name in scheduled}, {}
            for number in due:
                terms = self.take_phase(number, own, times, k, steps, weight)
                values[number, tuple(terms)] = stacked(terms)
            return values

        # The next step writes over what a recording gives.
        found = self.replays(due, work, inputs).items()
        return {number: (names, values.clone()) for (number, names), values in found}

    def take_phase(
        self, number: int, batch: tuple[Any, ...], scheduled: dict[str, Tensor], k: int, steps: int, weight: float
    ) -> dict[str, Tensor]:
        """A phase's step, or its share of one where gradients are added up: its terms."""
        phase, optimizer = self.step.phases[number], self.optimizers[number]
        if k % self.accumulate == 0:
            optimizer.zero_grad()
        # The batches of this step; at the end of an epoch there may be fewer.
        added = min(self.accumulate, steps - k // self.accumulate * self.accumulate)
        due = self.last_of_group(k, steps)
        with self.fabric.no_backward_sync(self.step, enabled=not due):
            terms = self.step(number, *batch, **scheduled)
            output = terms.pop("output", None)
            factor = weight / added
            self.fabric.backward(terms["loss"] if factor == 1 else terms["loss"] * factor)
        if due:
            if self.clip:
                terms["gradient_norm"] = self.cut(optimizer, self.clip)
            optimizer.step()
        if output is not None and hasattr(likelihood := self.step.model.likelihood, "observe"):
            likelihood.observe(output, batch[0])
            self.agree(likelihood)
        return {f"{phase.name}_{name}" if number else name: value for name, value in terms.items()}

    def cut(self, optimizer: Any, norm: float) -> Tensor:
        """Cut a phase's gradients to this norm; what it was before."""
        # Whether the norm is finite is not asked here: that would make the CPU wait for the GPU at every step.
        if not self.scaler:
            return self.fabric.clip_gradients(self.step, optimizer, max_norm=norm, error_if_nonfinite=False)
        # Fabric refuses fused optimizers here, though they take gradients that are unscaled already.
        self.scaler.unscale_(optimizer.optimizer)
        return nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)

    def agree(self, likelihood: nn.Module) -> None:
        """Running statistics of all devices, as if one had seen all images."""
        if self.fabric.world_size > 1:
            for buffer in likelihood.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.fabric.all_reduce(buffer, reduce_op="mean"))

    def unsound(self) -> tuple[int, int, dict[str, float]] | None:
        """Phase, step and terms of the first step not looked at yet whose loss or gradient is not finite."""
        # In half precision a scaler leaves out a step whose gradient is too large, and that is as it should be.
        asked = ("loss",) if self.scaler else ("loss", "gradient_norm")
        apart: dict[tuple[str, ...], list[int]] = {}
        for place, (_, _, names, _) in enumerate(self.seen):
            apart.setdefault(names, []).append(place)
        bad: list[int] = []
        for names, places in apart.items():
            columns = [column for column, name in enumerate(names) if name.endswith(asked)]
            rows = torch.stack([self.seen[place][3] for place in places])[:, columns].tolist()
            bad += [place for place, row in zip(places, rows, strict=True) if not all(map(math.isfinite, row))]
        if not bad:
            return None
        number, k, names, values = self.seen[min(bad)]
        return number, k, dict(zip(names, values.tolist(), strict=True))

    def check(self, train: tuple[Tensor, Tensor]) -> None:
        """Raise if a loss or the norm of a gradient was not finite.

        Raises:
            FloatingPointError: with the step, its terms and its images.
        """
        if (found := self.unsound()) is None:
            self.seen = []
            return
        number, step, values = found
        self.whole = False
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        sound = all(math.isfinite(value) for name, value in values.items() if name.endswith("loss"))
        phase = self.step.phases[number].name
        index = next(iter(self.order(train, step))).index
        raise FloatingPointError(
            f"The {'gradient' if sound else 'loss'} is no longer finite in epoch {self.epoch + 1}, step {step + 1}"
            f"{f' of the phase {phase!r}' if phase else ''}: {terms}; images {index[:8].tolist()}"
            f"{f' and {len(index) - 8} more' if len(index) > 8 else ''}. {self.history.kept_words()}"
            "Lower the learning rate, or look for damaged images."
        )

    def order(self, train: tuple[Tensor, Tensor], start: int, together: int = 1) -> Iterator[Batch]:
        """The batches of this epoch from one of them on, or so many together; of several devices, this one's share."""
        return batches(
            *train,
            self.batch_size * together,
            seed=self.seed,
            epoch=self.epoch,
            prepare=self.prepare,
            balance=self.balance,
            start=start,
            part=(self.fabric.global_rank, self.fabric.world_size),
        )

    @torch.no_grad()
    def evaluate_epoch(self, held_out: tuple[Tensor, Tensor]) -> dict[str, float]:
        """The validation terms of the first phase: final schedules, and the same noise in every epoch."""
        step = self.step if self.averaged is None else Step(self.kept, self.step.objective)
        step.eval()
        total, scheduled = Totals("validation"), self.scheduled(None)
        part = (self.fabric.global_rank, self.fabric.world_size)
        for k, (index, x, y) in enumerate(batches(*held_out, self.batch_size, prepare=self.prepare, part=part)):
            own = self.share_of(min(self.batch_size, len(held_out[0]) - k * self.batch_size))
            x = x.to(self.step.model.dtype)
            noise = normals(self.step.model.noise_shapes, self.seed, index, Use.VALIDATION, 0, x.dtype)
            with self.fabric.autocast():
                terms = step(0, x, y, noise, **scheduled)
            terms.pop("output", None)
            total.add(terms, stacked(terms), own)
            self.show.stop_if_asked()
            self.show.waiting(f"validating, {k + 1} of {self.held_out_steps} batches")
        return total.means(self.fabric)


def stacked(terms: Mapping[str, Tensor]) -> Tensor:
    """Terms in one tensor, in single precision at least."""
    values = [torch.as_tensor(value).detach() for value in terms.values()]
    double = any(value.dtype == torch.float64 for value in values)
    return torch.stack([value.to(torch.float64 if double else torch.float32) for value in values])


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with its learning rate as a number, as it is where nothing is recorded."""
    groups = [
        {**group, "lr": float(group["lr"]), "capturable": False} if isinstance(group.get("lr"), Tensor) else group
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """A seed for torch's own generator at one step of training, on one of several devices."""
    place = f"{seed}/{epoch}/{step}" + (f"/{rank}" if rank else "")
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "little") >> 1


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
        objective: by default the model's own; see :mod:`condgen.objectives` for what it may be.
        optimizer: parameters → optimizer, e.g. `functools.partial(adamw, lr=3e-4)`; for several phases one for all, or
            a dictionary by their names.
        learning_rate: share of training done → factor of the optimizers' rates, e.g. `WarmupDecay()`.
        clip: the norm that each phase's gradients are cut to; the history has the norm before.
        ema: decay of an exponential moving average of the weights, e.g. 0.999. The averaged weights are validated, kept
            and left in the model.
        precision: of the networks: "auto" (bfloat16 where this machine is faster in it, else float32; see
            :func:`condgen.precision.choose_precision`), "32-true", "bf16-mixed" or "16-mixed" (GPU). Probabilities are
            always in float32. What was chosen is in `run.json`, and a resumed run keeps it.
        augment: e.g. :class:`condgen.augmentations.Augmentation`, for training images.
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
            say that they are `replayable` (:mod:`condgen.graphs`). False asks for every operation anew.
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
    training, validation = resolve_splits(data, validation)
    training, validation = training.ordered(model.class_names), validation and validation.ordered(model.class_names)
    check_fit(model, training, validation)
    model.class_names = model.class_names or tuple(training.class_names)
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

    check_numbers(epochs, budget, batch_size, clip, ema)
    if accumulate < 1 or devices < 1 or nodes < 1:
        raise ValueError(f"Expected accumulate, devices and nodes of 1 or more; got {accumulate}, {devices}, {nodes}.")
    keep_freed_memory()
    device = Fabric(accelerator=accelerator, devices=1).device
    if precision == "16-mixed" and device.type == "cpu":
        raise ValueError('Expected precision "auto", "32-true" or "bf16-mixed" on a CPU; got "16-mixed".')
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


def run(
    loop: Loop,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor] | None = None,
    after: Callable[[dict[str, float]], object] = lambda _: None,
    progress: bool = False,
    patience: int | None = None,
) -> None:
    """The loop: epoch by epoch until the plan is done; the model comes back on the device and in the mode it had."""
    model, device, images = loop.step.model, loop.fabric.device, len(train[0])
    loop.held_out_steps = -(-len(held_out[0]) // loop.batch_size) if held_out else 0
    shown = progress and loop.fabric.is_global_zero
    try:
        with (
            keeping_modes(model),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            undisturbed() as stop_if_asked,
            display(loop.forecast, images, shown, stop_if_asked, str(loop.precision)) as loop.show,
        ):
            try:
                while not finished(loop, patience):
                    row: dict[str, float] = {"epoch": loop.epoch + 1} | loop.train_epoch(train)
                    ended = time.perf_counter()
                    row["seconds"] = loop.seconds
                    row["images_per_second"] = min(images, loop.done * loop.batch_size) / row["seconds"]
                    if held_out:
                        row |= loop.evaluate_epoch(held_out)
                    loop.whole = False  # until what belongs to the epoch is kept
                    loop.history.add(row)
                    after(row)
                    loop.show.epoch(row, loop.passes)
                    loop.epoch, loop.done, loop.seconds, loop.total = loop.epoch + 1, 0, 0.0, Totals("train")
                    loop.plan.reserve(time.perf_counter() - ended)
                    loop.whole = True
                    if loop.states.due():
                        loop.keep()
            except (KeyboardInterrupt, SystemExit):
                loop.keep()
                raise
    finally:
        if loop.averaged:
            model.load_state_dict(loop.kept.state_dict())
            model.provenance = loop.kept.provenance
        model.to(loop.home)


def finished(loop: Loop, patience: int | None) -> bool:
    """Whether all planned epochs are done, or so many have passed since the best one."""
    waited = len(loop.history) - loop.history.best_epoch
    done = not loop.done and loop.plan.over(loop.epoch)  # what is left of an epoch is first brought to its end
    return done or bool(patience and loop.history.best_epoch and waited >= patience)


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
    epochs: int | None, budget: Budget | None, batch_size: int, clip: float | None, ema: float | None
) -> None:
    """Raise unless one can train by these numbers."""
    if (epochs is not None and epochs < 1) or batch_size < 1:
        raise ValueError(f"Expected epochs and batch_size of 1 or more; got {epochs} and {batch_size}.")
    if budget is not None and epochs is not None:
        raise ValueError(f"Expected epochs or minutes, not both; got epochs={epochs}, minutes={budget.minutes}.")
    if (clip is not None and not clip > 0) or (ema is not None and not 0 < ema < 1):
        raise ValueError(f"Expected a positive clip and ema in (0, 1), or None; got clip={clip} and ema={ema}.")


def check_fit(model: Generator, data: LabelledImages, validation: LabelledImages | None) -> None:
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
