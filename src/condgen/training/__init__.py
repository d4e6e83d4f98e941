"""Training: one loop for every loss, from settings to a run folder.

`fit` trains a model, `fit_prior` the prior that samples are drawn from. Noise, order and augmentation are functions of
(seed, epoch, image index), so that a run which was stopped goes on bit for bit.

* `fit`, `fit_prior`: the calls; `set_up`: what comes before the first step; `loop`: epochs and steps of phases;
* `optimizers`: Adam, AdamW, learning-rate schedules; `ema`: the average of the weights; `budget`: passes or minutes;
* `state`: training states on disk; `run_folder`: what a run leaves; `progress`: what it shows; `settings`: names.
"""

__all__ = [
    "Budget",
    "Forecast",
    "History",
    "Plan",
    "RunFolder",
    "States",
    "WarmupDecay",
    "adam",
    "adamw",
    "budget_of",
    "check_free",
    "check_same",
    "earlier_run",
    "environment",
    "load_objective",
    "pack",
    "read_history",
    "repr_of",
    "unpack",
]

from typing import TYPE_CHECKING

from condgen.io.lazy import lazily

if TYPE_CHECKING:
    from condgen.training.budget import Budget, Forecast, Plan, budget_of
    from condgen.training.optimizers import WarmupDecay, adam, adamw
    from condgen.training.run_folder import (
        History,
        RunFolder,
        check_free,
        check_same,
        earlier_run,
        environment,
        load_objective,
        read_history,
        repr_of,
    )
    from condgen.training.state import States, pack, unpack

__getattr__, __dir__ = lazily(
    __name__,
    {
        "optimizers": ["WarmupDecay", "adam", "adamw"],
        "run_folder": [
            "History",
            "RunFolder",
            "check_free",
            "check_same",
            "earlier_run",
            "environment",
            "load_objective",
            "read_history",
            "repr_of",
        ],
        "state": ["States", "pack", "unpack"],
        "budget": ["Budget", "Forecast", "Plan", "budget_of"],
    },
)
