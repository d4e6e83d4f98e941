"""A training step: model and loss as one module, terms added up over steps."""

__all__ = []

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from condgen.losses.phases import phases_of

SEPARATOR = "\n"  # between the names of terms


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
