"""Training: one loop for every loss, from settings to a run folder.

`fit` trains a model, `fit_prior` the prior that samples are drawn from, and `distil` a network that draws them in one
step; `match_moments` makes these vary as images do, and `fit_grain` finds the fine texture that they lack. Noise, order
and augmentation are functions of (seed, epoch, image index), so that a run which was stopped goes on bit for bit. Four
things are kept apart: settings (fixed), state (what a checkpoint holds), the step of a phase, and the loop over epochs.

* `settings`: everything that can be chosen, declared once; imports no torch;
* `fit`, `fit_prior`, `distil`, `match_moments`, `fit_grain`: the calls; `set_up`: what comes before the first step;
* `loop`: epochs, batches and validation; `step`: forward, backward, clipping and update of one phase; `finite`: looks
  for losses that are not;
* `state`: how far a training is; `checkpoints`: states on disk; `history`: what was recorded; `run_folder`: the files
  of a run;
* `callbacks`: the one way to listen; `progress`: the bar, a callback;
* `optimizers`: Adam, AdamW, learning-rate schedules; `ema`: averaged weights; `budget`: passes or minutes; `work`: how
  much work the stages of a recipe are.
"""

__all__ = [
    "Callback",
    "Checkpoints",
    "EarlyStopping",
    "Hardware",
    "History",
    "LambdaCallback",
    "Log",
    "RunFolder",
    "Sampler",
    "Training",
    "TrainingState",
    "VAELoss",
    "WarmupDecay",
    "adam",
    "adamw",
    "load_objective",
    "read_history",
]

from typing import TYPE_CHECKING

from condgen.io.lazy import lazily

if TYPE_CHECKING:
    from condgen.training.callbacks import Callback, EarlyStopping, LambdaCallback, Log
    from condgen.training.checkpoints import Checkpoints
    from condgen.training.history import History, read_history
    from condgen.training.optimizers import WarmupDecay, adam, adamw
    from condgen.training.run_folder import RunFolder, load_objective
    from condgen.training.settings import Hardware, Sampler, Training, VAELoss
    from condgen.training.state import TrainingState

__getattr__, __dir__ = lazily(
    __name__,
    {
        "callbacks": ["Callback", "EarlyStopping", "LambdaCallback", "Log"],
        "checkpoints": ["Checkpoints"],
        "history": ["History", "read_history"],
        "optimizers": ["WarmupDecay", "adam", "adamw"],
        "run_folder": ["RunFolder", "load_objective"],
        "settings": ["Hardware", "Sampler", "Training", "VAELoss"],
        "state": ["TrainingState"],
    },
)
