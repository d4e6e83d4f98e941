"""Train: a conditional model on labelled images."""

__all__ = ["train"]

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from condgen.cli.shared import Accelerator, absolute, say, seconds_so_far
from condgen.data.settings import AugmentationSettings
from condgen.io.atomic import read_json
from condgen.training.settings import RECIPE_NAMES

if TYPE_CHECKING:
    from condgen.data.images import LabelledImages
    from condgen.models.generator import Generator

LikelihoodName = Literal["bernoulli", "continuous_bernoulli", "gaussian", "laplace", "discretized_logistic"]
LIKELIHOODS = get_args(LikelihoodName)
Latent = int | tuple[int, int, int]


def train(
    data: str = "smears",
    recipe: str = "default",
    out: Path = Path("runs/latest"),
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    size: int = 28,
    images: int = 6000,
    latent: Latent | None = None,
    width: int | None = None,
    depth: int | None = None,
    network: Literal["conv", "resnet"] | None = None,
    conditioner: Literal["one_hot", "embedding"] | None = None,
    prior: Literal["standard_normal", "label_normal"] | None = None,
    modulation: Literal["film"] | None = None,
    likelihood: LikelihoodName | None = None,
    output_labels: bool | None = None,
    conditional: bool = True,
    beta: float | None = None,
    warmup: float = 0.0,
    free_bits: float = 0.0,
    minutes: float | None = None,
    optimizer: Literal["adam", "adamw"] | None = None,
    weight_decay: float | None = None,
    rise: float | None = None,
    decay: float | None = None,
    clip: float | None = None,
    ema: float | None = None,
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] | None = None,
    augment: AugmentationSettings | None = None,
    adversarial: float | None = None,
    matching: float | None = None,
    sampler: Literal["none", "mixture", "flow", "flow_matching"] | None = None,
    components: int | None = None,
    sampler_epochs: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    accumulate: int = 1,
    balance: bool = False,
    patience: int | None = None,
    logger: list[Literal["csv", "tensorboard"]] | None = None,
    save_every: float = 60.0,
    resume: Path | None = None,
    accelerator: Accelerator = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: str = "auto",
    graphs: bool = True,
    overwrite: bool = False,
) -> None:
    """Train a conditional model on labelled images; model, metrics and pictures of it go to one folder.

    Args:
        data: smears (built in), a MedMNIST name such as bloodmnist, an .npz file, or a folder with one subfolder
            of images per class.
        recipe: default, fast, sharp (the best images, three to five times as long), latent_map (without a
            discriminator), bloodmnist_reference, smears_demo, or another family: gan, flow, diffusion. It says what is
            not said here.
        out: folder for the run: the best model, last/ (the last one), metrics.csv, run.json, curves.png, samples.png.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: of the optimizer.
        seed: of weights, order and noise.
        size: height and width of folders, smears and MedMNIST (28, 64, 128 or 224).
        images: number of images to draw, for smears.
        latent: number of latents, or the shape of a map of them, such as 4,7,7 for 28x28; this and what follows up to
            output_labels where the recipe leaves it open.
        width: channels after the first convolution.
        depth: residual blocks on each map.
        network: plain convolutions or residual networks; by default residual ones for a latent map.
        conditioner: of class labels, one-hot vectors or learned ones of 16 numbers.
        prior: what the KL is taken against, a standard normal or a normal of each label's own.
        modulation: film scales and shifts every block of plain convolutions by the label.
        likelihood: of the pixels.
        output_labels: whether the decoder also redraws the label planes.
        conditional: false leaves the labels out: a plain VAE to compare with.
        beta: weight of the KL.
        warmup: epochs over which beta rises from 0.
        free_bits: nats per latent (per channel of a latent map) that cost nothing.
        minutes: a budget of time for everything, instead of passes; what it leads to depends on the machine.
        optimizer: adam, or adamw with weight decay.
        weight_decay: of adamw.
        rise: share of training over which the learning rate rises from 0.
        decay: share of training, at its end, over which it falls to a hundredth.
        clip: the norm that gradients are cut to.
        ema: decay of an average of the weights, such as 0.999, which is then what is validated and kept.
        precision: of the networks: auto takes bfloat16 where this machine is faster in it, and float32 elsewhere.
        augment: what changes training images: --augment.flips true, --augment.rotation 10, and so on.
        adversarial: weight of a discriminator's score of the reconstructions; 0 for none.
        matching: weight of its features' error.
        sampler: what samples are drawn from: the prior, or what is fitted to the latents after training: a mixture, a
            normalising flow, or flow matching from a mixture.
        components: of the mixture, for each class.
        sampler_epochs: passes over the latents, where the sampler is trained.
        steps: of flow matching, when samples are drawn.
        guidance: of flow matching: above 0 labels are truer, and samples cost twice as much.
        accumulate: batches whose gradients are added up before a step.
        balance: draw every class equally often.
        patience: stop after so many epochs without a better one.
        logger: csv or tensorboard: epochs are written to the run's folder for these, too.
        save_every: seconds between two training states, from which a stopped run goes on.
        resume: folder of a run to go on with, as if it had never stopped; its options are those it began with.
        accelerator: where to train.
        devices: of the accelerator, on each of the nodes.
        nodes: number of machines.
        strategy: how several devices share the work, in Lightning Fabric's words.
        graphs: on a GPU, whether steps are recorded once and replayed; false asks for every operation anew.
        overwrite: whether the run may replace an earlier one in the same folder.
    """
    given = dict(locals())
    if resume is not None and out != resume:
        train(**options_of(resume, given))
        return
    check_recipe(recipe)

    import torch

    from condgen.data.augmentation import Augmentation
    from condgen.data.readers import load_data
    from condgen.nn.layers import FiLM
    from condgen.recipes import RECIPES
    from condgen.sampling.figures import curves, save_grid, write_figure
    from condgen.sampling.grids import class_names
    from condgen.sampling.grids import per_class as sample_per_class
    from condgen.training.budget import Budget
    from condgen.training.run_folder import check_free

    if resume is None:
        check_free(out, overwrite)
    labelled = load_data(data, size=size, n=images, seed=seed)
    if sampler == "mixture" and labelled.kind != "class":
        raise ValueError(f"Expected class labels for a mixture; got {labelled.kind} ones. Pass --sampler flow.")
    if "validation" not in labelled.splits:
        warnings.warn(
            f"{len(labelled)} images are too few to validate on: the last epoch counts as best.", stacklevel=2
        )
    options: dict[str, Any] = {"latent": latent, "width": width, "depth": depth, "network": network}
    options |= {"output_labels": output_labels, "modulation": FiLM if modulation else None}
    options |= {"likelihood": likelihood_of(likelihood)}
    options |= {"conditioner": conditioner, "prior": prior}
    options = {name: value for name, value in options.items() if value is not None}
    model = build_model(recipe, labelled, options, seed, conditional)
    say(f"{labelled}\n{model}")
    budget = None if minutes is None else Budget(minutes, spent=seconds_so_far())
    chosen = {"epochs": epochs, "minutes": budget, "batch_size": batch_size, "learning_rate": learning_rate}
    chosen |= {"beta": beta, "optimizer": optimizer, "weight_decay": weight_decay, "rise": rise, "decay": decay}
    chosen |= {"clip": clip, "ema": ema, "precision": precision}
    chosen["augment"] = Augmentation(**asdict(augment)) if augment else None
    chosen |= {"adversarial": adversarial, "matching": matching, "sampler": sampler, "components": components}
    chosen |= {"sampler_epochs": sampler_epochs, "steps": steps, "guidance": guidance}
    with hint(out):
        best, history = RECIPES[recipe].fit(
            labelled,
            out,
            model=model,
            seed=seed,
            warmup=warmup,
            free_bits=free_bits,
            overwrite=overwrite,
            accelerator=accelerator,
            about={
                **{"recipe": recipe, "data": absolute(data), "size": size, "images": images},
                "options": recorded(given),
            },
            say=say,
            accumulate=accumulate,
            balance=balance,
            patience=patience,
            loggers=loggers_of(logger or (), out),
            save_every=save_every,
            resume=resume is not None,
            devices=devices,
            nodes=nodes,
            strategy=strategy,
            graphs=graphs,
            **chosen,
        )
    if torch.distributed.is_initialized() and torch.distributed.get_rank():
        return
    write_figure(curves(history), out / "curves.png")
    say(f"Best epoch {history.best_epoch} of {len(history)} is in {out}, its curves in {out / 'curves.png'}.")
    if labelled.kind == "class":
        save_grid(sample_per_class(best, 10, seed=seed), out / "samples.png", class_names(best))
        say(f"Ten samples of every class are in {out / 'samples.png'}.")


def check_recipe(recipe: str) -> None:
    """Raise unless there is such a recipe."""
    if recipe not in RECIPE_NAMES:
        raise ValueError(f"Expected a recipe among {', '.join(RECIPE_NAMES)}; got {recipe!r}.")


def likelihood_of(name: LikelihoodName | None) -> Any:
    """The likelihood that --likelihood names, such as Laplace for "laplace"."""
    if name is None:
        return None
    from condgen.distributions import likelihoods

    return getattr(likelihoods, name.title().replace("_", ""))()


def build_model(
    recipe: str, data: "LabelledImages", options: dict[str, Any], seed: int, conditional: bool = True
) -> "Generator":
    """The recipe's model for this data, with weights from this seed and the global generator left as it was."""
    import torch

    from condgen.distributions.priors.standard import LabelNormal
    from condgen.nn.conditioners import Continuous, Embedding, MultiLabel
    from condgen.recipes import RECIPES

    named, prior = options.pop("conditioner", None), options.pop("prior", None)
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


MACHINE = ("accelerator", "devices", "nodes", "strategy", "graphs", "save_every")  # what may change when a run goes on


def recorded(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run as `run.json` keeps them: those that are not the usual ones, but for where it runs."""
    usual = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    left_out = {"out", "resume", "overwrite", *MACHINE}
    chosen = {name: value for name, value in given.items() if name not in left_out and value != usual[name]}
    if "data" in chosen:
        chosen["data"] = absolute(chosen["data"])
    return {name: asdict(value) if isinstance(value, AugmentationSettings) else value for name, value in chosen.items()}


def options_of(run: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a run that is to go on.

    Raises:
        ValueError: if others are given besides, or the run does not tell.
        FileNotFoundError: if there is no run.
    """
    if others := sorted(recorded(given)):
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
    if unknown := sorted(set(options) - set(inspect.signature(train).parameters)):
        raise ValueError(f"{run} has options that this condgen does not know: {', '.join(unknown)}. Upgrade condgen.")
    return {**options, **{name: given[name] for name in MACHINE}, "out": run, "resume": run}


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
