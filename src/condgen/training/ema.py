"""An exponential moving average (EMA) of a model's weights."""

__all__ = []

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


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
