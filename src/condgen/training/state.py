"""The state of a training: how far it is, and everything that a checkpoint holds."""

__all__ = ["TrainingState"]

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from condgen.training.budget import Plan
from condgen.training.ema import Averaged
from condgen.training.history import History
from condgen.training.step import Totals


class TrainingState:
    """How far a training is, and everything that it needs to go on from there.

    Args:
        network: model and loss as one module.
        optimizers: one per phase of the loss.
        plan: passes or budget, and how much of it is done.
        averaged: moving averages of the weights, if they are kept.
        scaler: of the loss, in half precision.

    Attributes:
        history: the epochs that are done.
        epoch: number of the epoch under way, from 0.
        step: batches of it that are done.
        seconds: seconds that training took in the epoch under way.
        consistent: True between optimizer steps, the only time at which a checkpoint is consistent.
        validated: batches of validation images that are done, in validation.
        precision: of the networks and the reason for it, if known.

    Example:
        >>> import condgen
        >>> images = condgen.load_smears(32, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=8)
        >>> def tell(state):
        ...     print(state.passes, "passes,", sorted(state.terms))
        >>> _ = condgen.fit(model, images, epochs=1, callbacks=[tell], progress=False)
        1.0 passes, ['elbo', 'kl', 'log_likelihood', 'loss']
    """

    def __init__(
        self,
        network: Any,
        optimizers: Sequence[Any],
        plan: Plan,
        averaged: Averaged | None = None,
        scaler: Any = None,
    ) -> None:
        self.network, self.optimizers, self.plan = network, optimizers, plan
        self.averaged, self.scaler = averaged, scaler
        self.history, self.totals = History(), Totals("train")
        self.epoch, self.step, self.seconds, self.validated = 0, 0, 0.0, 0
        self.last_terms: tuple[tuple[str, ...], Tensor] | None = None
        self.precision: Any = None
        self.consistent, self.stopping = True, False

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return self.plan.steps

    @property
    def passes(self) -> float:
        """Passes over the training images that are done, with fractions."""
        return self.epoch + self.step / self.steps

    @property
    def model(self) -> Any:
        """The model to validate, save and sample from, which is the averaged one if averages are kept."""
        return self.averaged.average.module if self.averaged else self.network.model

    @property
    def row(self) -> dict[str, float]:
        """Terms of the last epoch that is done, by name; with `seconds` and `images_per_second`."""
        return self.history.rows[-1] if self.history.rows else {}

    @property
    def terms(self) -> dict[str, Tensor]:
        """Terms of the loss's first phase in the last step, by name, on the device that trains."""
        if self.last_terms is None:
            return {}
        names, values = self.last_terms
        return dict(zip(names, values.unbind(), strict=True))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; an epoch under way is first brought to its end."""
        return not self.step and (self.stopping or self.plan.over(self.epoch))

    def stop(self) -> None:
        """End training after the epoch under way."""
        self.stopping = True

    def begin_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch, self.step, self.seconds, self.totals = self.epoch + 1, 0, 0.0, Totals("train")

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here: tensors, numbers, text, lists and dictionaries."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "totals": self.totals.state_dict(),
            "history": self.history.rows,
            "plan": self.plan.state(),
            "network": dict(self.network.state_dict()),
            "optimizers": [plain(optimizer.state_dict()) for optimizer in self.optimizers],
            "averaged": self.averaged.state() if self.averaged else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "precision": self.precision and self.precision.name,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from such a state."""
        for name in ("epoch", "step", "seconds"):
            setattr(self, name, state[name])
        self.totals.load_state_dict(state["totals"], next(self.network.parameters()).device)
        for row in state["history"]:
            self.history.add(row)
        self.plan.restore(state["plan"])
        self.network.load_state_dict(state["network"])
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        if self.averaged:
            self.averaged.restore(state["averaged"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer for a checkpoint, with learning rates as numbers (CUDA graphs keep tensors)."""
    groups = [
        {**group, "lr": float(group["lr"]), "capturable": False} if isinstance(group.get("lr"), torch.Tensor) else group
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}
