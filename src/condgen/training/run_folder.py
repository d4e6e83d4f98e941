"""The folder of a run: best and last model, the loss's own networks, metrics and settings.

Everything in a folder belongs to one run, and no file in it is ever half written.
"""

__all__ = [
    "RunFolder",
    "check_free",
    "check_same",
    "earlier_run",
    "environment",
    "load_objective",
    "repr_of",
]

import json
import platform
import shutil
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import nn
from torch.optim import Optimizer

import condgen
from condgen.io.atomic import check_writable, read_json, undisturbed, write_atomically
from condgen.models.generator import Generator
from condgen.models.saving import WEIGHTS, save
from condgen.training.budget import Budget, budget_of
from condgen.training.history import History
from condgen.training.settings import Hardware, differences, plain

OBJECTIVE = "objective.safetensors"


def repr_of(thing: Any) -> str:
    """An object and its settings on one line; a function by its name."""
    if isinstance(thing, Optimizer):
        return f"{type(thing).__name__}({', '.join(f'{k}={v}' for k, v in thing.defaults.items())})"
    return str(plain(thing))


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure needs beside it to be repeated."""
    return {
        "condgen": condgen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }


def check_free(out: str | Path | None, overwrite: bool = False) -> None:
    """Raise unless a run can be kept in this folder; one that never kept a model is in nobody's way.

    Raises:
        ValueError: if it holds the model of another run.
        OSError: if nothing can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_free(folder)
        ...     (Path(folder) / WEIGHTS).touch()
        ...     check_free(folder)
        Traceback (most recent call last):
            ...
        ValueError: ... already holds a run. Choose another folder (out=), or pass overwrite=True.
    """
    if out is None:
        return
    if (Path(out) / WEIGHTS).exists() and not overwrite:
        raise ValueError(f"{out} already holds a run. Choose another folder (out=), or pass overwrite=True.")
    check_writable(Path(out))


def load_objective(objective: nn.Module, folder: str | Path) -> nn.Module:
    """An objective's own networks, as the last epoch of a run left them.

    Args:
        objective: built as for the run; its weights are replaced.
        folder: of the run.

    Raises:
        FileNotFoundError: if the run's objective had no networks, or there is no run.
        RuntimeError: if the networks are others.

    Example:
        >>> load_objective(nn.Identity(), "/no/such/run")
        Traceback (most recent call last):
            ...
        FileNotFoundError: No networks of an objective in /no/such/run: expected last/objective.safetensors there.
    """
    file = Path(folder) / "last" / OBJECTIVE
    if not file.is_file():
        raise FileNotFoundError(f"No networks of an objective in {folder}: expected last/{OBJECTIVE} there.")
    objective.load_state_dict(load_file(file))
    return objective


def holds_run(folder: Path) -> bool:
    """Whether a folder's `run.json` is that of a run, and not a user's own file of this name."""
    try:
        return "state" in read_json(folder / "run.json")
    except (OSError, ValueError):
        return False


class RunFolder:
    """Where a run is kept: best model, last model, `run.json` and `metrics.csv`; nowhere if `out` is None.

    What a folder holds belongs to one run: that of its model, which has the run's `id` in its header. An earlier run
    stays as it was until this one has a model to put in its place. Signals wait while files are exchanged.
    """

    OWNED = (
        *("run.json", "metrics.csv", "evaluation.json", "evaluation.html"),
        *("curves.png", "samples.png", "drawn.png", "reconstructions.png"),
    )

    def __init__(
        self,
        out: str | Path | None,
        settings: Mapping[str, Any],
        provenance: Mapping[str, Any],
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        self.out = None if out is None else Path(out)
        self.id = earlier["id"] if earlier else uuid.uuid4().hex
        self.settings, self.provenance = settings, {"run": self.id, **provenance}
        self.started, self.best_epoch, self.history = earlier is not None, 0, History()

    def begin(self, history: History) -> None:
        """Say that there is a run, unless an earlier one still has its model here."""
        self.history, self.best_epoch = history, history.best_epoch
        if self.out is not None and not self.started and not (self.out / WEIGHTS).exists():
            self.out.mkdir(parents=True, exist_ok=True)
            self.started = True
            if holds_run(self.out):  # one that never kept a model
                self.take_over(self.out)
            self.record("unfinished")

    def take_over(self, out: Path) -> None:
        """Remove what belonged to an earlier run, but for its model, and parts of files that a killed one left."""
        left = [file for file in out.glob(f".{WEIGHTS}.*") if file.is_file()]
        for file in (*(out / name for name in self.OWNED), *left):
            file.unlink(missing_ok=True)
        for folder, mark in (("last", WEIGHTS), ("state", "state-*.safetensors")):
            if any((out / folder).glob(mark)):
                shutil.rmtree(out / folder)
        self.started = True

    def keep(self, model: Generator, history: History, objective: nn.Module) -> None:
        """Save the model after an epoch, as the last and, if it is, as the best, and the objective's own networks."""
        self.history = history
        model.provenance = {**self.provenance, "epoch": len(history)}
        if self.out is None:
            return
        with undisturbed():
            if not self.started:
                self.take_over(self.out)
            if history.best_epoch == len(history):
                save(model, self.out)
                self.best_epoch = history.best_epoch
            save(model, self.out / "last")
            if weights := {name: tensor.detach().cpu().contiguous() for name, tensor in objective.state_dict().items()}:
                write_atomically(self.out / "last" / OBJECTIVE, to_bytes(weights))
            self.record("unfinished")

    def record(self, state: str) -> None:
        """Write `run.json` and `metrics.csv` as they stand; "unfinished" is true of a run that is killed, too."""
        if self.out is None or not self.started:
            return
        run = {"id": self.id, **self.settings, "state": state}
        run |= {"epochs_done": len(self.history), "best_epoch": self.best_epoch}
        with undisturbed():
            if self.history.rows:
                write_atomically(self.out / "metrics.csv", self.history.to_csv().encode())
            write_atomically(self.out / "run.json", json.dumps(run, indent=2).encode())


def earlier_run(out: str | Path | None, resume: bool | str) -> dict[str, Any] | None:
    """What `run.json` says of the run to go on with; None where one is to be begun.

    Args:
        out: the run's folder.
        resume: whether there must be a run; "auto" if there may be one.

    Raises:
        ValueError: if there is no folder to resume from.
        FileNotFoundError: if there is no run in it.

    Example:
        >>> earlier_run("runs/not/there", resume="auto") is None
        True
    """
    if not resume:
        return None
    if out is None:
        raise ValueError("Expected the folder of the run to resume; got none. Pass it (out=).")
    if (Path(out) / "run.json").is_file() and holds_run(Path(out)):
        return read_json(Path(out) / "run.json")
    if resume == "auto":
        return None
    raise FileNotFoundError(f"No run to resume in {out}. Check the folder, or begin one there without resume.")


def check_same(earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise if a run is to go on with other data or settings; warn of another machine or version.

    Args:
        earlier: what `run.json` says.
        settings: of the run that is to go on with it.

    Raises:
        ValueError: naming what changed.

    Example:
        >>> check_same({"seed": 0, "planned": "8 epochs"}, {"seed": 1, "planned": "8 epochs"})
        Traceback (most recent call last):
        ValueError: Expected the data and settings that the run began with; changed: seed was 0, now 1. Pass what it...
    """
    now = json.loads(json.dumps(settings))
    machine = ("condgen", "torch", "python", "device", "threads")
    may_change = {*machine, "epochs", "minutes", "precision_reason", *(entry.name for entry in fields(Hardware))}
    if changed := differences(earlier, {name: value for name, value in now.items() if name not in may_change}):
        raise ValueError(
            f"Expected the data and settings that the run began with; changed: {'; '.join(changed[:3])}. Pass what it "
            "had, or begin another run in another folder."
        )
    if other := differences(earlier, {name: now[name] for name in machine if name in now}):
        warnings.warn(
            f"The run goes on under other conditions: {'; '.join(other)}. The last bits may differ.", stacklevel=3
        )


def budget_for(minutes: float | Budget | None, out: str | Path | None, resume: Any) -> Budget | None:
    """The time budget of a whole recipe, from which the time that the run spent before it was stopped is taken."""
    budget = budget_of(minutes)
    if budget is not None and resume and out is not None:
        budget.began[0] -= (earlier_run(out, "auto") or {}).get("spent_seconds", 0.0)
    return budget
