"""What several commands need: the data of a run, the device, lines and tables for people."""

__all__ = [
    "CLOCK",
    "about_run",
    "absolute",
    "beside",
    "data_for",
    "drawing_as",
    "kind_of",
    "load_run_data",
    "on",
    "say",
    "seconds_so_far",
    "show",
    "teacher_for",
]

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from condgen.io.atomic import read_json

if TYPE_CHECKING:
    from condgen.data.images import LabelledImages
    from condgen.models.generator import Generator

CLOCK: dict[str, float] = {}  # "began": when the command did, which counts towards a budget of time
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
RUN = {"data": str, "fingerprint": str, "size": int, "images": int, "seed": int, "train": str}  # read of run.json


def seconds_so_far() -> float:
    """Seconds since the command began; 0 where a command's function is called by itself."""
    return time.perf_counter() - CLOCK["began"] if "began" in CLOCK else 0.0


def on(accelerator: Accelerator, model: "Generator") -> "Generator":
    """The model on the device of this kind."""
    return model.to(kind_of(accelerator))


def drawing_as(settings: Mapping[str, Any] | None, model: "Generator", run: Path) -> "Generator":
    """Change how a model draws: its steps, guidance or label mixing, as far as they were given on the command line.

    Raises:
        ValueError: for a setting that a model of its kind does not have.
    """
    from condgen.distributions.priors.flow_matching import FlowMatching

    flow = next((own for own in model.children() if isinstance(own, FlowMatching)), None)
    for name, value in (settings or {}).items():
        of_decoder = name.endswith("_mixing")
        part, kind = (model, "decodes latents under a label") if of_decoder else (flow, "samples by flow matching")
        if not hasattr(part, name):
            raise ValueError(f"Expected a model that {kind} for --{name.replace('_', '-')}; {run} does not.")
        setattr(part, name, value)
    return model


def kind_of(accelerator: Accelerator) -> str:
    """The kind of device that is asked for, or the best there is."""
    import torch

    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(name for name, there in kinds.items() if there) if accelerator == "auto" else accelerator
    if not kinds[kind]:
        raise ValueError(f"Expected --accelerator among {', '.join(k for k in kinds if kinds[k])} here; got {kind}.")
    return kind


def about_run(run: Path) -> dict[str, Any]:
    """What `run.json` tells."""
    file = run / "run.json"
    return read_json(file, RUN) if file.is_file() else {}


def load_run_data(run: Path, data: str | None) -> "LabelledImages":
    """The data that a run was trained on, or other data read the same way.

    Raises:
        ValueError: if the data are no longer those the run saw, and were not asked for by name.
    """
    from condgen.data.readers import load_data

    about = about_run(run)
    if "data" not in about and data is None:
        raise ValueError(f"{run / 'run.json'} does not tell what data the run was trained on. Pass --data.")
    recorded = Path(about.get("data", ""))  # a file or a folder is recorded by its absolute path, others by their names
    if data is None and recorded.is_absolute() and not recorded.exists():
        raise ValueError(
            f"{about['data']}, which {run} was trained on, is no longer there. Pass --data with the place it is at now."
        )
    known = {key: about[name] for key, name in (("size", "size"), ("n", "images"), ("seed", "seed")) if name in about}
    labelled = load_data(data or about["data"], **known)
    if about.get("fingerprint") in (None, labelled.fingerprint):
        return labelled
    now, then = repr(labelled.train), about.get("train", "")
    changed = f"now {now}, then {then}" if now != then else "other images, labels or splits of the same number"
    if data is None:
        raise ValueError(
            f"{about['data']} is not what {run} was trained on: {changed}. Its test images may have been trained on. "
            f"Restore it, or pass --data {about['data']} to go on."
        )
    warnings.warn(f"{data} is not what {run} was trained on; some of its images may have been.", stacklevel=2)
    return labelled


def data_for(run: Path, data: str | None) -> "LabelledImages":
    """The data of a run, or those named for a model that comes with condgen.

    Raises:
        ValueError: if neither is known.
    """
    from condgen.data.readers import load_data

    if data is None and not (run / "run.json").is_file():
        raise ValueError(f"Expected --data: {run} does not tell what it was trained on.")
    return load_run_data(run, data) if run.exists() else load_data(str(data))


def beside(data: str) -> Path | None:
    """The folder of judges beside the data, where there is a place for it; None means the user's own cache."""
    from condgen.data.readers import medmnist_folder, sized

    path = Path(data).expanduser()
    if path.exists() and data != "smears":
        folder = path.resolve().parent
    elif sized(data)[0].endswith("mnist"):
        folder = medmnist_folder(None)
    else:
        return None
    return folder / ".condgen" if os.access(folder, os.W_OK) else None


def absolute(data: str) -> str:
    """A path that later commands find from any folder; names stay names."""
    path = Path(data).expanduser()
    return str(path.resolve()) if path.suffix == ".npz" or (path.is_dir() and data != "smears") else data


def teacher_for(name: str, class_names: Sequence[str]) -> Any:
    """The classifier that labels generated images, by its file or the name of one that comes with condgen.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no classifier, or one of other classes.
    """
    from condgen.evaluation.judge import named_classifier
    from condgen.evaluation.teacher import Teacher

    return Teacher(named_classifier(name), class_names)


def say(text: str) -> None:
    """Tell the user."""
    from rich.console import Console

    Console(soft_wrap=True, highlight=False, markup=False).print(text)


def show(rows: Sequence[Sequence[str]]) -> None:
    """A table, headed by its first row."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)
