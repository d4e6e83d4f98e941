"""One training step: forward, backward, clipping and update of every phase of the loss that is due."""

__all__ = []

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from condgen.losses.phases import noise_shapes_of, phases_of, trial_of
from condgen.nn.cuda_graphs import Replays

SEPARATOR = "\n"  # between the names of terms
Terms = tuple[tuple[str, ...], Tensor]  # names, and the values in one tensor


class ModelAndLoss(nn.Module):
    """Model and loss as one module, so that whatever Fabric wraps around it sees every call."""

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model, self.loss, self.phases = model, loss, phases_of(loss)
        self.frozen = frozen(model)

    @property
    def weights_dtype(self) -> torch.dtype:
        """The number format of the model's weights."""
        return next(self.model.parameters()).dtype

    @property
    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that the loss needs for one image."""
        return noise_shapes_of(self.loss, self.model)

    def trial(self, x: Tensor, y: Any, noise: dict[str, Tensor]) -> object:
        """Run the model forward as training does."""
        return trial_of(self.loss, self.model)(x, y, noise)

    def train(self, mode: bool = True) -> "ModelAndLoss":
        """Switch all modules to training mode, except those that the user froze."""
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def forward(
        self, phase: int, x: Tensor, y: Any, noise: dict[str, Tensor], **scheduled: Tensor
    ) -> dict[str, Tensor]:
        """The terms of a phase for a batch."""
        return self.phases[phase].loss(self.model, x, y, noise, **scheduled)


def frozen(model: nn.Module) -> list[nn.Module]:
    """Modules that do not learn: in evaluation mode inside a model that is not, or without a weight that may change."""
    chosen = [module for module in model.modules() if model.training and not module.training]
    fixed = [m for m in model.modules() if any(True for _ in m.parameters())]
    return chosen + [m for m in fixed if not any(p.requires_grad for p in m.parameters())]


@dataclass(frozen=True)
class Place:
    """Where a batch stands among those whose gradients are added up before an optimizer steps.

    Attributes:
        first: whether it is the first of them.
        last: whether it is the last of them, after which the optimizers step.
        together: how many they are; at the end of an epoch there may be fewer than usual.

    Example:
        >>> [Place.of(step, steps=5, accumulate=3) for step in (0, 4)]
        [Place(first=True, last=False, together=3), Place(first=False, last=True, together=2)]
    """

    first: bool
    last: bool
    together: int

    @classmethod
    def of(cls, step: int, steps: int, accumulate: int) -> "Place":
        """The place of a batch.

        Args:
            step: its number in the epoch, from 0.
            steps: batches per epoch.
            accumulate: batches that are added up.
        """
        first = step % accumulate == 0
        last = (step + 1) % accumulate == 0 or step + 1 == steps
        return cls(first, last, min(accumulate, steps - step // accumulate * accumulate))


class Step:
    """Takes the training steps of a loss's phases.

    Args:
        fabric: device and precision.
        network: :class:`ModelAndLoss`, as Fabric wrapped it.
        optimizers: one per phase, as Fabric wrapped them.
        clip: the norm to which the gradients of a phase are clipped; None for no clipping.
        schedule: share of training done → factor of the learning rates; None for constant rates.
        replays: the work of steps, recorded as CUDA graphs where that is of use.
    """

    def __init__(
        self,
        fabric: Any,
        network: Any,
        optimizers: Sequence[Any],
        clip: float | None = None,
        schedule: Callable[[float], float] | None = None,
        replays: Replays | None = None,
    ) -> None:
        self.fabric, self.network, self.optimizers = fabric, network, optimizers
        self.clip, self.schedule, self.replays = clip, schedule, replays or Replays(enabled=False)
        self.rates = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in optimizers]

    @property
    def scaler(self) -> Any:
        """Scaler of the loss, in half precision."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def due(self, share: float, number: int) -> tuple[int, ...]:
        """The phases that run at an optimizer step.

        Args:
            share: of training that is done.
            number: of the step since the beginning.
        """
        phases = enumerate(self.network.phases)
        return tuple(k for k, phase in phases if share >= phase.start and number % phase.every == 0)

    def __call__(
        self,
        phases: tuple[int, ...],
        x: Tensor,
        y: Any,
        noise: dict[str, Tensor],
        scheduled: dict[str, Tensor],
        share: float,
        place: Place,
        weight: float = 1.0,
    ) -> dict[int, Terms]:
        """Take a step of some phases.

        Args:
            phases: their numbers.
            x: images of the batch.
            y: their labels: a tensor, or a tuple of tensors.
            noise: by name.
            scheduled: values of the loss's schedules, by name.
            share: of training that is done, for the learning rate.
            place: of the batch.
            weight: factor of the loss on this device.

        Returns:
            The terms of each phase.
        """
        for number in phases:
            self.set_rate(self.optimizers[number], self.rates[number], share)
        labels = y if isinstance(y, tuple) else (y,)
        inputs = {"x": x, **{f"y {k}": own for k, own in enumerate(labels)}}
        inputs |= {f"noise {name}": value for name, value in noise.items()}
        inputs |= {f"scheduled {name}": value for name, value in scheduled.items()}

        def work(given: dict[str, Tensor]) -> dict[tuple[int, tuple[str, ...]], Tensor]:
            own = tuple(given[f"y {k}"] for k in range(len(labels)))
            batch = given["x"], own if isinstance(y, tuple) else own[0], {n: given[f"noise {n}"] for n in noise}
            times, values = {name: given[f"scheduled {name}"] for name in scheduled}, {}
            for number in phases:
                terms = self.take_phase(number, batch, times, place, weight)
                values[number, tuple(terms)] = stacked(terms)
            return values

        # The next step writes over what a recording gives.
        key = phases, getattr(self.network.loss, "graph_key", None)
        found = self.replays(key, work, inputs).items()
        return {number: (names, values.clone()) for (number, names), values in found}

    def take_phase(
        self, number: int, batch: tuple[Any, ...], scheduled: dict[str, Tensor], place: Place, weight: float
    ) -> dict[str, Tensor]:
        """The step of one phase, or its part of one if gradients are added up: its terms."""
        phase, optimizer = self.network.phases[number], self.optimizers[number]
        if place.first:
            optimizer.zero_grad()
        with self.fabric.no_backward_sync(self.network, enabled=not place.last):
            with record_function("forward"):
                terms = self.network(number, *batch, **scheduled)
            factor = weight / place.together
            with record_function("backward"):
                self.fabric.backward(terms["loss"] if factor == 1 else terms["loss"] * factor)
        if place.last:
            with record_function("optimizer"):
                if self.clip:
                    terms["gradient_norm"] = self.clip_gradients(optimizer, self.clip)
                optimizer.step()
        if phase.after:
            phase.after(self.network.model, batch[0])
        return {f"{phase.name}_{name}" if number else name: value for name, value in terms.items()}

    def clip_gradients(self, optimizer: Any, norm: float) -> Tensor:
        """Clip the gradients of a phase to this norm; returns their norm before that."""
        # Whether the norm is finite is not asked here: that would make the CPU wait for the GPU at every step.
        if not self.scaler:
            return self.fabric.clip_gradients(self.network, optimizer, max_norm=norm, error_if_nonfinite=False)
        # Fabric refuses fused optimizers here, though they take gradients that are unscaled already.
        self.scaler.unscale_(optimizer.optimizer)
        return nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], norm)

    def set_rate(self, optimizer: Any, rates: Sequence[float], share: float) -> None:
        """Set the learning rate of this share of training; a recorded step reads it from a tensor on the device."""
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            now = rate * self.schedule(share) if self.schedule else rate
            if self.replays.enabled and not isinstance(group["lr"], Tensor):
                group.update(capturable=True, lr=torch.full((), now, dtype=torch.float32, device=self.fabric.device))
            elif self.schedule and isinstance(group["lr"], Tensor):
                group["lr"].fill_(now)
            elif self.schedule:
                group["lr"] = now


class Totals:
    """Sums up loss terms over the batches of an epoch, on the device, and gives their means at its end.

    Steps may have different terms: those that come together are added up together, in one operation.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.images: dict[str, int] = {}
        self.sums: dict[str, Tensor] = {}

    def add(self, names: Iterable[str], values: Tensor, images: int) -> None:
        """Add the terms of a batch of so many images, by name and in one tensor."""
        place = SEPARATOR.join(names)
        if place not in self.sums:
            self.images[place], self.sums[place] = 0, torch.zeros_like(values)
        self.images[place] += images
        self.sums[place].add_(values, alpha=images)

    def means(self, fabric: Any = None) -> dict[str, float]:
        """The mean of each term per image, over all devices."""
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

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"images": self.images, "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from such sums."""
        self.images = dict(state["images"])
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}


def stacked(terms: Mapping[str, Tensor]) -> Tensor:
    """Terms in one tensor, in single precision at least."""
    values = [torch.as_tensor(value).detach() for value in terms.values()]
    double = any(value.dtype == torch.float64 for value in values)
    return torch.stack([value.to(torch.float64 if double else torch.float32) for value in values])
