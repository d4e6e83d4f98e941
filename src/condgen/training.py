"""Training: one readable loop on Lightning Fabric, the same call on CPU and GPU."""

__all__ = ["History", "check_free", "fit"]

import csv
import hashlib
import io
import json
import math
import platform
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import condgen
from condgen.checkpoints import WEIGHTS, save
from condgen.cvae import ConditionalVAE
from condgen.data import LabelledImages, batches
from condgen.elbo import ELBO
from condgen.files import check_writable, undisturbed, write_atomically
from condgen.noise import Use, normals
from condgen.parts import keeping_modes

TERMS = {"log_likelihood": "log-likelihood", "kl": "KL"}  # as people write them


@dataclass
class History:
    """What training recorded: one row an epoch, terms in nats per image.

    Attributes:
        rows: name → number, per epoch.
        best_epoch: the one with the lowest validation loss; without validation the last.

    Example:
        >>> History([{"epoch": 1, "train_loss": 3.0}, {"epoch": 2, "train_loss": 2.0}])["train_loss"]
        [3.0, 2.0]
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0

    def __getitem__(self, name: str) -> list[float]:
        return [row[name] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: dict[str, float]) -> None:
        """Add an epoch.

        Raises:
            FloatingPointError: if its loss is not finite; the row is kept, the best epoch stays.
        """
        self.rows.append(row)
        loss = row.get("validation_loss", row["train_loss"])
        if not math.isfinite(row["train_loss"]) or not math.isfinite(loss):
            kept = f"; the model of epoch {self.best_epoch} stays" if self.best_epoch else ""
            raise FloatingPointError(
                f"The loss is no longer finite in epoch {row['epoch']} ({loss}){kept}. Lower the learning rate, or "
                "look for damaged images."
            )
        if loss <= min(r.get("validation_loss", math.inf) for r in self.rows):
            self.best_epoch = int(row["epoch"])

    def to_csv(self) -> str:
        """The rows as CSV text with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


class Step(nn.Module):
    """Model and objective as one module, so that whatever Fabric wraps around it sees every call."""

    def __init__(self, model: nn.Module, objective: Any) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.frozen = frozen(model)

    def train(self, mode: bool = True) -> "Step":
        """Training mode, but for what the user froze."""
        super().train(mode)
        for module in self.frozen:
            module.training = False
        return self

    def forward(self, x: Tensor, y: Tensor, noise: dict[str, Tensor], *beta: Tensor) -> dict[str, Tensor]:
        """The objective's terms for a batch."""
        return self.objective.loss(self.model, x, y, noise, *beta)


def frozen(model: nn.Module) -> list[nn.Module]:
    """Modules that do not learn: in evaluation mode inside a model that is not, or without a weight that may change."""
    chosen = [module for module in model.modules() if model.training and not module.training]
    fixed = [m for m in model.modules() if any(True for _ in m.parameters())]
    return chosen + [m for m in fixed if not any(p.requires_grad for p in m.parameters())]


def adam(parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> Optimizer:
    """Adam, all parameters updated in one pass."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def fit(
    model: ConditionalVAE,
    data: LabelledImages,
    *,
    validation: LabelledImages | None = None,
    epochs: int = 50,
    batch_size: int = 128,
    objective: Any = None,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = adam,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
    progress: bool = True,
    on_epoch: Callable[[int, ConditionalVAE, dict[str, float]], object] | None = None,
    about: Mapping[str, Any] | None = None,
) -> History:
    """Train a model; its weights after the last epoch stay in it, the best on validation are kept in `out`.

    Order, noise and dropout are functions of (seed, epoch, image index or step), so the same call gives the same
    weights on one machine with one number of threads. Validation uses the same objective with its final beta and the
    same noise every epoch. The model comes back on the device and in the mode it had; parts that stand in evaluation
    mode inside a model in training mode, or whose weights all have `requires_grad=False`, stay frozen.

    Args:
        model: what to train; its `class_names` are set from the data where it has none.
        data: images to train on. A set with splits is trained on its `train` part alone, and validated on its
            `validation` part unless another is given.
        validation: images to choose the best epoch by; of a set with splits its `validation` part.
        epochs: passes over the data.
        batch_size: images a step; the last, smaller batch is kept.
        objective: by default `ELBO()`; any module with `loss(model, x, y, noise) → terms`, "loss" among them. One
            with a schedule `.beta` is also given the step's beta, a tensor.
        optimizer: parameters → optimizer, e.g. `functools.partial(torch.optim.AdamW, lr=3e-4)`.
        seed: of order and noise, in [0, 2**64).
        out: folder for `model.safetensors` (best epoch), `last/` (last epoch), `metrics.csv` and `run.json`; nothing
            is written without it. Whenever the run is stopped or killed, what is there is whole.
        overwrite: whether an earlier run in `out` may be replaced, once this one has a model to keep.
        accelerator: "auto", "cpu", "cuda" or "mps".
        progress: show a progress bar, or a line an epoch where there is no terminal.
        on_epoch: called after every epoch with its number, the model and the epoch's row.
        about: further entries for `run.json`.

    Returns:
        One row an epoch: terms of training and validation in nats per image, seconds, images per second.

    Raises:
        ValueError: if data, labels and model do not fit together, epochs or batch_size are not positive, or `out`
            holds another run.
        OSError: if nothing can be written to `out`.
        FloatingPointError: when the loss is no longer finite; what was saved before stays.

    Example:
        >>> images = condgen.load_smears(64, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=8)
        >>> history = fit(model, images, epochs=2, progress=False)
        >>> history["train_loss"][1] < history["train_loss"][0]
        True
    """
    from lightning_fabric import Fabric

    check_free(out, overwrite)
    training, validation = resolve_splits(data, validation)
    training, validation = training.ordered(model.class_names), validation and validation.ordered(model.class_names)
    check_fit(model, training, validation, epochs, batch_size)
    model.class_names = model.class_names or tuple(training.class_names)
    objective = objective or ELBO()
    home, history = model.device, History()
    fabric = Fabric(accelerator=accelerator, devices=1)
    step: Any = Step(model, objective)
    step, optimize = fabric.setup(step, optimizer(step.parameters()))
    train = tensors(training, fabric.device)
    held_out = tensors(validation, fabric.device) if validation else None
    settings = {
        **(about or {}),
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "objective": repr_of(objective),
        "optimizer": repr_of(optimize.optimizer),
        "train": repr(training),
        "validation": repr(validation),
        "fingerprint": data.fingerprint,
        **environment(fabric.device),
    }
    folder = RunFolder(out, settings, {"data": data.fingerprint, "train": training.fingerprint})
    folder.begin(history)
    devices = [fabric.device] if fabric.device.type == "cuda" else []
    try:
        with (
            keeping_modes(model),
            torch.random.fork_rng(devices),
            undisturbed() as stop_if_asked,
            display(epochs, len(training), progress, stop_if_asked) as show,
        ):
            for epoch in range(epochs):
                started = time.perf_counter()
                row = {"epoch": epoch + 1} | train_epoch(fabric, step, optimize, train, batch_size, seed, epoch, show)
                row["seconds"] = time.perf_counter() - started
                row["images_per_second"] = len(training) / row["seconds"]
                if held_out:
                    row |= evaluate_epoch(step, held_out, batch_size, seed, show)
                history.add(row)
                folder.keep(model, history)
                show.epoch(row)
                if on_epoch:
                    on_epoch(epoch + 1, model, row)
        folder.record("finished")
    except BaseException:
        folder.record("stopped")
        raise
    finally:
        model.to(home)
    return history


def train_epoch(
    fabric: Any,
    step: Any,
    optimizer: Any,
    train: tuple[Tensor, Tensor],
    batch_size: int,
    seed: int,
    epoch: int,
    show: Any,
) -> dict[str, float]:
    """One pass over the training images; its mean terms, read back from the device once at the end."""
    step.train()
    total = Totals("train")
    schedule, steps = getattr(step.objective, "beta", None), -(-len(train[0]) // batch_size)
    beta = ()
    for k, (index, x, y) in enumerate(batches(*train, batch_size, seed=seed, epoch=epoch)):
        torch.manual_seed(step_seed(seed, epoch, k))  # of what draws from torch's own generator, such as nn.Dropout
        beta = (torch.full((), schedule(epoch + k / steps), device=fabric.device),) if schedule else ()
        x = x.to(step.model.dtype)
        noise = normals(step.model.noise_shapes, seed, index, Use.TRAINING, epoch, x.dtype)
        optimizer.zero_grad()
        terms = step(x, y, noise, *beta)
        fabric.backward(terms["loss"])
        optimizer.step()
        total.add(terms, len(x))
        show.advance(len(x))
    return {**total.means(), **({"beta": beta[0].item()} if beta else {})}


def step_seed(seed: int, epoch: int, step: int) -> int:
    """A seed for torch's own generator at one step of training."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{step}".encode()).digest()[:8], "little") >> 1


@torch.no_grad()
def evaluate_epoch(
    step: Any, held_out: tuple[Tensor, Tensor], batch_size: int, seed: int, show: Any
) -> dict[str, float]:
    """The validation terms: final beta, and the same noise in every epoch."""
    step.eval()
    total, schedule = Totals("validation"), getattr(step.objective, "beta", None)
    for index, x, y in batches(*held_out, batch_size):
        x = x.to(step.model.dtype)
        noise = normals(step.model.noise_shapes, seed, index, Use.VALIDATION, 0, x.dtype)
        beta = (torch.full((), schedule.final, device=x.device),) if schedule else ()
        total.add(step(x, y, noise, *beta), len(x))
        show.advance(0)
    return total.means()


class Totals:
    """Sums of a batch's mean terms on the device; nothing is read back before the end."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.images, self.sums = prefix, 0, {}

    def add(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Add a batch."""
        self.images += images
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach() * images

    def means(self) -> dict[str, float]:
        """Mean per image."""
        values = torch.stack(list(self.sums.values())).div(self.images).tolist()
        return {f"{self.prefix}_{name}": value for name, value in zip(self.sums, values, strict=True)}


def shown_terms(terms: Iterable[str]) -> list[str]:
    """The terms of an objective to show to people: the bound's where it has them, else its first ones."""
    known = [name for name in ("log_likelihood", "kl") if name in terms]
    return known or list(terms)[:3]


class Display:
    """A progress bar on a terminal; elsewhere a line an epoch; or nothing."""

    def __init__(self, bar: Any, task: Any, console: Any, epochs: int, stop_if_asked: Callable[[], None]) -> None:
        self.bar, self.task, self.console, self.epochs, self.stop_if_asked = bar, task, console, epochs, stop_if_asked

    def advance(self, images: int) -> None:
        """Images done; between two steps is the moment to stop, if that is asked for."""
        self.stop_if_asked()
        if self.bar:
            self.bar.advance(self.task, images)

    def epoch(self, row: Mapping[str, float]) -> None:
        """An epoch done."""
        split = "validation" if "validation_loss" in row else "train"
        own = {name.removeprefix(f"{split}_"): value for name, value in row.items() if name.startswith(f"{split}_")}
        terms = ", ".join(f"{TERMS.get(name, name)} {own[name]:.5g}" for name in shown_terms(own))
        text = f"epoch {row['epoch']}/{self.epochs}  {row['images_per_second']:,.0f} images/s  {split}: {terms}"
        if self.bar:
            self.bar.update(self.task, description=text)
        elif self.console:
            self.console.print(text, highlight=False, soft_wrap=True)


@contextmanager
def display(epochs: int, images: int, progress: bool, stop_if_asked: Callable[[], None]) -> Iterator[Display]:
    """What shows the progress of `epochs` passes over `images`."""
    if not progress:
        yield Display(None, None, None, epochs, stop_if_asked)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Display(None, None, console, epochs, stop_if_asked)
        return
    columns = BarColumn(bar_width=24), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=epochs * images)
        yield Display(bar, task, console, epochs, stop_if_asked)


def resolve_splits(
    data: LabelledImages, validation: LabelledImages | None
) -> tuple[LabelledImages, LabelledImages | None]:
    """Training and validation images: a set with splits is never used as a whole."""
    if validation is None and "validation" in data.splits:
        validation = data.validation
    if validation is not None and validation.splits:
        validation = validation.validation
    return data.train if data.splits else data, validation


def check_fit(
    model: ConditionalVAE, data: LabelledImages, validation: LabelledImages | None, epochs: int, batch_size: int
) -> None:
    """Raise unless data, labels and model fit together."""
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"Expected epochs and batch_size of 1 or more; got {epochs} and {batch_size}.")
    for split in (data, validation):
        if split is None:
            continue
        if len(split) == 0:
            raise ValueError(f"{split.name!r} holds no images. Leave it out or fill it.")
        if model.image_shape and model.image_shape != split.image_shape:
            raise ValueError(
                f"Expected images of {model.image_shape}, which the model was built for; {split.name!r} has "
                f"{split.image_shape}. Build the model with image_shape={split.image_shape} or resize the images."
            )
        model.conditioner.check(torch.as_tensor(split.labels))


def tensors(data: LabelledImages, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (uint8) and labels on the device that trains; a memory map is only ever read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(data.images).to(device), torch.as_tensor(data.labels).to(device)


def repr_of(thing: Any) -> str:
    """A class and its settings on one line."""
    if isinstance(thing, Optimizer):
        return f"{type(thing).__name__}({', '.join(f'{k}={v}' for k, v in thing.defaults.items())})"
    return " ".join(repr(thing).split())


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


class RunFolder:
    """Where a run is kept: best model, last model, `run.json` and `metrics.csv`; nowhere if `out` is None.

    What a folder holds belongs to one run: that of its model, which has the run's `id` in its header. An earlier run
    stays as it was until this one has a model to put in its place. Signals wait while files are exchanged.
    """

    OWNED = (
        *("run.json", "metrics.csv", "config.json", "evaluation.json", "evaluation.html"),
        *("curves.png", "samples.png", "reconstructions.png"),
    )

    def __init__(self, out: str | Path | None, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        self.out, self.id = None if out is None else Path(out), uuid.uuid4().hex
        self.settings, self.provenance = settings, {"run": self.id, **provenance}
        self.started, self.best_epoch, self.history = False, 0, History()

    def begin(self, history: History) -> None:
        """Say that there is a run, unless an earlier one still has its model here."""
        self.history = history
        if self.out is not None and not (self.out / WEIGHTS).exists():
            self.out.mkdir(parents=True, exist_ok=True)
            self.take_over(self.out)
            self.record("unfinished")

    def take_over(self, out: Path) -> None:
        """Remove what belonged to an earlier run, but for its model, and parts of files that a killed one left."""
        left = [file for file in out.glob(f".{WEIGHTS}.*") if file.is_file()]
        for file in (*(out / name for name in self.OWNED), *left):
            file.unlink(missing_ok=True)
        shutil.rmtree(out / "last", ignore_errors=True)
        self.started = True

    def keep(self, model: ConditionalVAE, history: History) -> None:
        """Save the model after an epoch, as the last and, if it is, as the best."""
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
