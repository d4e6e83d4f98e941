"""The training loop: epochs, steps of phases, and what a checkpoint holds."""

__all__ = []

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from condgen.data.augmentation import Augmentation
from condgen.data.batches import Batch, batches
from condgen.io.atomic import undisturbed
from condgen.losses.phases import schedules_of
from condgen.nn.cuda_graphs import Replays
from condgen.nn.parts import keeping_modes
from condgen.nn.precision import Precision
from condgen.random import Use, normals
from condgen.training.budget import Plan
from condgen.training.ema import Averaged
from condgen.training.progress import Display, display
from condgen.training.run_folder import History
from condgen.training.state import States
from condgen.training.step import Step, Totals, plain, stacked, step_seed

WATCHED = 50  # steps after which losses are looked at
FIRST_STEPS = (5, 20)  # after which the time that validation will take is estimated
AHEAD = 16  # batches made ready at once on a GPU, where many small operations take longer than a large one
MOST_AHEAD = 2**24  # numbers of their images


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
