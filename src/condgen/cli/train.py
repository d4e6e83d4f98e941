"""Train: a conditional model on labelled images."""

__all__ = ["train"]

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from condgen.cli.settings import TRAIN, Architecture, plain
from condgen.cli.shared import absolute, say, seconds_so_far
from condgen.data.settings import AugmentationSettings
from condgen.io.atomic import read_json
from condgen.training.settings import RECIPE_NAMES, Hardware

if TYPE_CHECKING:
    from condgen.data.images import LabelledImages
    from condgen.models.generator import Generator
    from condgen.training.history import History


def train(
    data: str = "smears",
    recipe: str = "default",
    out: Path = Path("runs/latest"),
    resume: Path | None = None,
    overwrite: bool = False,
    size: int = 28,
    images: int = 6000,
    logger: list[Literal["csv", "tensorboard"]] | None = None,
    given: Mapping[str, Any] | None = None,
) -> None:
    """Train a conditional model on labelled images; model, metrics and pictures of it go to one folder.

    Args:
        data: smears (built in), a MedMNIST name such as bloodmnist, an .npz file, or a folder with one subfolder of
            images per class.
        recipe: default, fast, sharp (the best images; takes three to five times as long), latent_map (without a
            discriminator), bloodmnist_reference, smears_demo, or another family: gan, flow, diffusion. It decides
            every setting that is not given here.
        out: folder for the run: the best model, last/ (the last one), metrics.csv, run.json, curves.png, samples.png.
        resume: folder of a run to go on with, as if it had never stopped; its options are those it began with.
        overwrite: whether the run may replace an earlier one in the same folder.
        size: height and width of the images of folders, smears and MedMNIST (28, 64, 128 or 224).
        images: number of images to draw, for smears.
        logger: csv or tensorboard; every epoch is also written to the run's folder for these.
        given: settings by name, of :data:`condgen.cli.settings.TRAIN`, instead of the recipe's.
    """
    given = dict(given or {})
    asked = {"data": data, "recipe": recipe, "size": size, "images": images, "logger": logger, **given}
    if resume is not None and out != resume:
        train(**options_of(resume, asked))
        return
    check_recipe(recipe)

    import torch

    from condgen.data.readers import load_data
    from condgen.recipes import RECIPES
    from condgen.training.budget import Budget
    from condgen.training.callbacks import Log
    from condgen.training.run_folder import check_free

    if resume is None:
        check_free(out, overwrite)
    labelled = load_data(data, size=size, n=images, seed=given.get("seed", 0))
    if given.get("sampler") == "mixture" and labelled.kind != "class":
        raise ValueError(f"Expected class labels for a mixture; got {labelled.kind} ones. Pass --sampler flow.")
    if "validation" not in labelled.splits:
        warnings.warn(
            f"{len(labelled)} images are too few to validate on: the last epoch counts as best.", stacklevel=2
        )
    parts = {entry.name: given.pop(entry.name) for entry in fields(Architecture) if entry.name in given}
    model = build_model(recipe, labelled, parts, given.get("seed", 0))
    say(f"{labelled}\n{model}")
    if "minutes" in given:
        given["minutes"] = Budget(given["minutes"], spent=seconds_so_far())
    with hint(out):
        best, history = RECIPES[recipe].fit(
            labelled,
            out,
            model=model,
            overwrite=overwrite,
            resume=resume is not None,
            callbacks=[Log(*loggers_of(logger, out))] if logger else [],
            about={
                **{"recipe": recipe, "data": absolute(data), "size": size, "images": images},
                "options": recorded(asked),
            },
            **given,
        )
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        show_results(best, history, labelled, out, given.get("seed", 0))


train.settings = TRAIN  # type: ignore[attr-defined]
train.examples = (  # type: ignore[attr-defined]
    "condgen train --data bloodmnist --recipe sharp --out runs/sharp",
    "condgen train --data FOLDER --recipe fast --minutes 10 --out runs/mine",
    "condgen train --resume runs/sharp",
)
train.shown = (  # type: ignore[attr-defined] - settings that its help shows; all of them: --help-all
    *("epochs", "minutes", "batch_size", "learning_rate", "precision", "augment", "balance", "seed"),
    *("latent", "width", "likelihood", "accelerator", "devices"),
)


def show_results(model: "Generator", history: "History", data: "LabelledImages", out: Path, seed: int) -> None:
    """Save pictures of the training curves and of samples of every class in the run folder, and print where."""
    from condgen.io.pictures import save_grid, write_figure
    from condgen.models.classes import class_names
    from condgen.models.classes import per_class as sample_per_class

    write_figure(history.plot(), out / "curves.png")
    say(f"Best epoch {history.best_epoch} of {len(history)} is in {out}, its curves in {out / 'curves.png'}.")
    if data.kind == "class":
        save_grid(sample_per_class(model, 10, seed=seed), out / "samples.png", class_names(model))
        say(f"Ten samples of every class are in {out / 'samples.png'}.")
    say(f"Next:  condgen evaluate {out}    or    condgen sample {out} --per-class 100 --out images.npz")


def check_recipe(recipe: str) -> None:
    """Raise unless there is such a recipe."""
    if recipe not in RECIPE_NAMES:
        raise ValueError(f"Expected a recipe among {', '.join(RECIPE_NAMES)}; got {recipe!r}.")


def build_model(recipe: str, data: "LabelledImages", parts: dict[str, Any], seed: int) -> "Generator":
    """The recipe's model for this data, with weights from this seed and the global generator left as it was.

    Args:
        recipe: name of the recipe.
        data: images.
        parts: settings of :class:`condgen.cli.settings.Architecture`, as far as they are given.
        seed: of the weights.
    """
    import torch

    from condgen.distributions import likelihoods
    from condgen.distributions.priors.standard import LabelNormal
    from condgen.nn.conditioners import Continuous, Embedding, MultiLabel
    from condgen.nn.layers import FiLM
    from condgen.recipes import RECIPES

    options = dict(parts)
    conditional, named, prior = options.pop("conditional", True), options.pop("conditioner", None), options.get("prior")
    options.pop("prior", None)
    if name := options.get("likelihood"):  # Laplace for "laplace"
        options["likelihood"] = getattr(likelihoods, name.title().replace("_", ""))()
    if "modulation" in options:
        options["modulation"] = FiLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if conditional and data.kind == "multi-label":
            options["conditioner"] = MultiLabel(data.num_classes)
        elif conditional and data.kind == "continuous":
            options["conditioner"] = Continuous.of(torch.as_tensor(data.train.labels))
        elif conditional and named == "embedding":
            options["conditioner"] = Embedding(data.num_classes, 16)
        if prior == "label_normal":
            dim = options["conditioner"].dim if "conditioner" in options else data.num_classes * conditional
            options["prior"] = LabelNormal(options.get("latent", 128), dim)
        return RECIPES[recipe].build(data.image_shape, data.num_classes if conditional else 0, **options)


MACHINE = tuple(entry.name for entry in fields(Hardware))  # what may change when a run goes on


def recorded(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run as `run.json` keeps them: those that are not the usual ones, but for where it runs."""
    usual = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    chosen = {
        name: value
        for name, value in asked.items()
        if name not in MACHINE and (name not in usual or value != usual[name])
    }
    if "data" in chosen:
        chosen["data"] = absolute(chosen["data"])
    return {name: plain(value) for name, value in chosen.items()}


def options_of(run: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a run that is to go on.

    Raises:
        ValueError: if others are given besides, or the run does not tell.
        FileNotFoundError: if there is no run.
    """
    if others := sorted(recorded(asked)):
        raise ValueError(f"Expected --resume without {', '.join(f'--{name}' for name in others)}: a run keeps its own.")
    if not (run / "run.json").is_file():
        raise FileNotFoundError(f"No run to resume in {run}. Check the folder.")
    options = read_json(run / "run.json", {"options": dict}).get("options")
    if options is None:
        raise ValueError(
            f"{run} does not tell its options: it was begun by other means. Resume it by fit(resume=True)."
        )
    if "augment" in options:
        options["augment"] = AugmentationSettings(**options["augment"])
    own = set(inspect.signature(train).parameters) - {"given"}
    known = {entry.name for kind in TRAIN for entry in fields(kind)}
    if unknown := sorted(set(options) - own - known):
        raise ValueError(f"{run} has options that this condgen does not know: {', '.join(unknown)}. Upgrade condgen.")
    given = {name: value for name, value in options.items() if name in known}
    given |= {name: asked[name] for name in MACHINE if name in asked}
    return {**{k: v for k, v in options.items() if k in own}, "given": given, "out": run, "resume": run}


def loggers_of(names: Sequence[str], out: Path) -> list[Any]:
    """Lightning Fabric's loggers, which write to the run's folder."""
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    kinds: dict[str, Any] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
    return [kinds[name](root_dir=str(out), name="logs", version=name) for name in names]


@contextmanager
def hint(out: Path) -> Iterator[None]:
    """Say how to go on, where a run is stopped."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if (out / "run.json").is_file():
            print(f"condgen: to go on: condgen train --resume {out}", file=sys.stderr)
        raise
