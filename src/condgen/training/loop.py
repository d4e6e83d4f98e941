"""The training loop: epoch by epoch, step by step, and the validation between them."""

__all__ = []

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from condgen.data.augmentation import Augmentation
from condgen.data.batches import Batch, Images, batches
from condgen.io.atomic import undisturbed
from condgen.losses.phases import schedules_of
from condgen.nn.parts import keeping_modes
from condgen.random import Use, normals
from condgen.training.callbacks import Callback
from condgen.training.checkpoints import Checkpoints
from condgen.training.finite import FiniteCheck
from condgen.training.state import TrainingState
from condgen.training.step import ModelAndLoss, Place, Step, Totals, stacked

CHECKED = 50  # steps after which losses are looked at
FIRST_STEPS = (5, 20)  # after which the time that validation will take is estimated
AHEAD = 16  # batches made ready at once on a GPU, where many small operations take longer than a large one
MOST_AHEAD = 2**24  # numbers of their images


@dataclass
class Trainer:
    """What a training goes by: all that stays the same from its first step to its last.

    Attributes:
        fabric: device and precision.
        network: model and loss, as Fabric wrapped them.
        take: takes a step.
        batch_size: images per step, on all devices together.
        accumulate: batches whose gradients are added up before a step.
        seed: of order, noise, augmentation and dropout.
        augment: (x, seed, index, epoch) → x.
        prepare: makes x of what is stored.
        weights: probability of each training image to be drawn; None if every image comes once per epoch.
        checkpoints: where training states are saved.
        identity: what a checkpoint says about itself besides the state.
        home: the device that the model comes back to.
        finite: looks for losses that are no longer finite.
    """

    fabric: Any
    network: Any
    take: Step
    batch_size: int
    accumulate: int
    seed: int
    augment: Callable[[Tensor, int, Tensor, int], Tensor] | None
    prepare: Callable[[Tensor], Tensor] | None
    weights: Tensor | None
    checkpoints: Checkpoints
    identity: dict[str, Any] = field(default_factory=dict)
    home: Any = "cpu"

    def __post_init__(self) -> None:
        self.finite = FiniteCheck(self.network.phases, scaled=bool(self.take.scaler))

    def scheduled(self, epoch: float | None) -> dict[str, Tensor]:
        """The values of the loss's schedules at this time, or their final ones."""
        schedules = schedules_of(self.network.loss).items()
        values = {name: schedule.final if epoch is None else schedule(epoch) for name, schedule in schedules}
        return {name: torch.full((), value, device=self.fabric.device) for name, value in values.items()}

    def share_of(self, images: int) -> int:
        """How many images of a batch are this device's."""
        return len(range(self.fabric.global_rank, images, self.fabric.world_size))

    def save(self, state: TrainingState) -> None:
        """Save a checkpoint, unless a step is under way or a loss was not finite."""
        if state.consistent and self.finite.bad() is None and self.fabric.is_global_zero:
            self.checkpoints.write({**state.state_dict(), **self.identity})

    def order(self, train: Images, epoch: int, start: int, together: int = 1) -> Iterator[Batch]:
        """The batches of an epoch from one of them on, or so many together; of several devices, this one's share."""
        return batches(
            *train,
            self.batch_size * together,
            seed=self.seed,
            epoch=epoch,
            prepare=self.prepare,
            balance=self.weights,
            start=start,
            part=(self.fabric.global_rank, self.fabric.world_size),
        )

    def prepared(self, train: Images, state: TrainingState) -> Iterator[tuple[Tensor, Any, dict[str, Tensor]]]:
        """Augmented images, labels and noise of the rest of the epoch's batches; on a GPU some are made at once."""
        network, ahead = self.network, 1
        if self.fabric.device.type == "cuda" and self.fabric.world_size == 1:
            ahead = max(1, min(AHEAD, MOST_AHEAD // (self.batch_size * train[0][0].numel())))
        first, skipped = divmod(state.step, ahead)
        for index, images, labels in self.order(train, state.epoch, first, ahead):
            x = images.to(network.weights_dtype)
            with record_function("noise"):
                kind = network.weights_dtype
                noise = normals(network.noise_shapes, self.seed, index, Use.TRAINING, state.epoch, kind)
            if isinstance(self.augment, Augmentation):  # which changes each image by itself
                with record_function("augmentation"):
                    x = self.augment(x, self.seed, index, state.epoch)
            for start in range(skipped * self.batch_size, len(index), self.batch_size):
                some = slice(start, start + self.batch_size)
                own = x[some]
                if self.augment and not isinstance(self.augment, Augmentation):
                    with record_function("augmentation"):
                        own = self.augment(own, self.seed, index[some], state.epoch)
                y = tuple(part[some] for part in labels) if isinstance(labels, tuple) else labels[some]
                yield own, y, {name: numbers[some] for name, numbers in noise.items()}
            skipped = 0


def train(
    trainer: Trainer,
    state: TrainingState,
    images: Images,
    validation: Images | None = None,
    callbacks: Callback | None = None,
) -> None:
    """Train until the plan is done; the model comes back on the device and in the mode it had.

    Args:
        trainer: what training goes by.
        state: where it stands; moved on.
        images: images and labels to train on, on the device.
        validation: the same to validate on.
        callbacks: what listens.
    """
    callbacks = callbacks or Callback()
    with running(trainer, state, callbacks) as stop_if_asked:
        while not state.finished:
            row: dict[str, float] = {"epoch": state.epoch + 1}
            row |= train_epoch(trainer, state, images, validation, callbacks, stop_if_asked)
            ended = time.perf_counter()
            row["seconds"] = state.seconds
            row["images_per_second"] = min(len(images[0]), state.step * trainer.batch_size) / state.seconds
            if validation:
                row |= validate(trainer, state, validation, callbacks, stop_if_asked)
            state.consistent = False  # until everything that belongs to the epoch is saved
            state.history.add(row)
            callbacks.on_epoch(state)
            state.begin_epoch()
            state.plan.reserve(time.perf_counter() - ended)
            state.consistent = True
            if trainer.checkpoints.due():
                trainer.save(state)


def train_epoch(
    trainer: Trainer,
    state: TrainingState,
    images: Images,
    validation: Images | None,
    callbacks: Callback,
    stop_if_asked: Callable[[], None],
) -> dict[str, float]:
    """The rest of a pass over the training images; its mean terms, read back from the device once at the end."""
    trainer.network.train()
    scheduled = trainer.scheduled(state.epoch + max(state.step - 1, 0) / state.steps)
    began = time.perf_counter() - state.seconds
    for x, y, noise in trainer.prepared(images, state):
        k, place = state.step, Place.of(state.step, state.steps, trainer.accumulate)
        if place.first and state.plan.over(state.passes):
            break  # a budget may end inside an epoch
        state.consistent = False
        # The seed of whatever draws from torch's generator, such as nn.Dropout.
        torch.manual_seed(step_seed(trainer.seed, state.epoch, k, trainer.fabric.global_rank))
        scheduled, share = trainer.scheduled(state.passes), state.plan.share(state.passes)
        whole = min(trainer.batch_size, len(images[0]) - k * trainer.batch_size)  # images on all devices together
        own = trainer.share_of(whole)
        weight = own * trainer.fabric.world_size / whole  # gradients of devices are averaged
        number = state.epoch * -(-state.steps // trainer.accumulate) + k // trainer.accumulate
        due = trainer.take.due(share, number)
        for phase, (names, values) in trainer.take(due, x, y, noise, scheduled, share, place, weight).items():
            state.totals.add(names, values, own)
            trainer.finite.add(phase, k, names, values)
            if phase == 0:
                state.last_terms = names, values
        if state.averaged and place.last:
            with record_function("averages"):
                state.averaged.update(trainer.network.model)
        state.step, state.seconds, state.consistent = k + 1, time.perf_counter() - began, place.last
        read_clock(trainer, state, validation)
        callbacks.on_step(state)
        save = trainer.checkpoints.due() and trainer.fabric.world_size == 1  # several devices save between epochs
        if save or k % CHECKED == CHECKED - 1:
            check(trainer, state, images)
        if save:
            trainer.save(state)
        if state.consistent:  # a sum of gradients is not saved
            stop_if_asked()
    check(trainer, state, images)
    return {**state.totals.means(trainer.fabric), **{name: value.item() for name, value in scheduled.items()}}


@torch.no_grad()
def validate(
    trainer: Trainer,
    state: TrainingState,
    validation: Images,
    callbacks: Callback,
    stop_if_asked: Callable[[], None],
) -> dict[str, float]:
    """The mean terms of the loss's first phase: final values of schedules, and the same noise in every epoch."""
    network = trainer.network if state.averaged is None else ModelAndLoss(state.model, trainer.network.loss)
    network.eval()
    total, scheduled = Totals("validation"), trainer.scheduled(None)
    part = (trainer.fabric.global_rank, trainer.fabric.world_size)
    ordered = batches(*validation, trainer.batch_size, prepare=trainer.prepare, part=part)
    for k, (index, x, y) in enumerate(ordered):
        own = trainer.share_of(min(trainer.batch_size, len(validation[0]) - k * trainer.batch_size))
        x = x.to(trainer.network.weights_dtype)
        noise = normals(trainer.network.noise_shapes, trainer.seed, index, Use.VALIDATION, 0, x.dtype)
        with trainer.fabric.autocast():
            terms = network(0, x, y, noise, **scheduled)
        total.add(terms, stacked(terms), own)
        state.validated = k + 1
        stop_if_asked()
        callbacks.on_validation_step(state)
    return total.means(trainer.fabric)


@contextmanager
def running(trainer: Trainer, state: TrainingState, callbacks: Callback) -> Iterator[Callable[[], None]]:
    """A training that is under way: signals wait for the end of a step, and everything is put back in the end."""
    model: nn.Module = trainer.network.model
    device = trainer.fabric.device
    try:
        with ExitStack() as stack:
            stack.enter_context(keeping_modes(model))
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            stop_if_asked = stack.enter_context(undisturbed())
            try:
                callbacks.on_start(state)
                yield stop_if_asked
            except (KeyboardInterrupt, SystemExit):
                trainer.save(state)
                raise
    finally:
        if state.averaged:
            model.load_state_dict(state.model.state_dict())
        callbacks.on_end(state)
        model.to(trainer.home)


def read_clock(trainer: Trainer, state: TrainingState, validation: Images | None) -> None:
    """Note how much of a budget is spent; all devices follow the clock of the first."""
    if state.plan.budget is None:
        return
    if not state.history.rows and state.step in FIRST_STEPS:  # not known before an epoch has ended: a forward pass
        steps = -(-len(validation[0]) // trainer.batch_size) if validation else 0
        state.plan.reserve(0.4 * state.seconds / state.step * steps + 0.5)
    several = trainer.fabric.world_size > 1
    state.plan.tick(trainer.fabric.broadcast if several else lambda share: share)


def check(trainer: Trainer, state: TrainingState, images: Images) -> None:
    """Raise if a loss or the norm of a gradient was not finite.

    Raises:
        FloatingPointError: with the step, its terms and the numbers of its images.
    """
    if (found := trainer.finite.bad()) is None:
        trainer.finite.clear()
        return
    state.consistent = False
    index = next(iter(trainer.order(images, state.epoch, found.step))).index
    raise FloatingPointError(
        f"The {found.what} is no longer finite in epoch {state.epoch + 1}, step {found.step + 1}{found.of_phase}: "
        f"{found.terms}; images {index[:8].tolist()}{f' and {len(index) - 8} more' if len(index) > 8 else ''}. "
        f"{state.history.kept_words()}Lower the learning rate, or look for damaged images."
    )


def step_seed(seed: int, epoch: int, step: int, rank: int = 0) -> int:
    """A seed for torch's own generator at one step of training, on one of several devices."""
    place = f"{seed}/{epoch}/{step}" + (f"/{rank}" if rank else "")
    return int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "little") >> 1
