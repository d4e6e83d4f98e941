"""The command line: demo, train, sample, reconstruct, evaluate, compare, balance, explore, export, benchmark."""

__all__ = [
    "balance",
    "benchmark",
    "compare",
    "demo",
    "evaluate",
    "explore",
    "export",
    "main",
    "reconstruct",
    "sample",
    "train",
]

import inspect
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jsonargparse import ArgumentParser

import condgen
from condgen import likelihoods
from condgen.augmentations import Augmentation
from condgen.benchmarking import NETWORKS, cells, grid, imported, machine, markdown, plot
from condgen.benchmarking import benchmark as time_variants
from condgen.checkpoints import WEIGHTS, load, read_config
from condgen.conditioners import Continuous, Embedding, MultiLabel
from condgen.data import LabelledImages
from condgen.evaluation import evaluate as evaluate_images
from condgen.evaluation import read_evaluation
from condgen.evaluation.judge import load_judge
from condgen.evaluation.report import apart, comparison_page, comparison_table
from condgen.evaluation.run import PARTS
from condgen.explorer import explore as open_page
from condgen.export import export as export_model
from condgen.figures import check_png, curves, save_grid, write_figure
from condgen.files import check_writable, read_json, write_atomically
from condgen.generator import Generator
from condgen.layers import FiLM
from condgen.priors import FlowMatching, LabelNormal
from condgen.readers import load_data, medmnist_folder
from condgen.rebalancing import balance as rebalance
from condgen.rebalancing import write_balanced
from condgen.recipes import RECIPES
from condgen.runs import check_free, read_history
from condgen.sampling import class_names, num_classes, pairs, write_samples
from condgen.sampling import per_class as sample_per_class

LIKELIHOODS = {
    "laplace": likelihoods.Laplace,
    "bernoulli": likelihoods.Bernoulli,
    "continuous_bernoulli": likelihoods.ContinuousBernoulli,
    "gaussian": likelihoods.Gaussian,
    "discretized_logistic": likelihoods.DiscretizedLogistic,
}
LikelihoodName = Literal["bernoulli", "continuous_bernoulli", "gaussian", "laplace", "discretized_logistic"]
Latent = int | tuple[int, int, int]
Labels = list[int | str | list[float]]
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
Split = Literal["train", "validation", "test"]
UsefulnessPlan = Literal["full", "quick", "none"]
EvaluationPart = Literal["fidelity", "privacy", "model", "usefulness"]
SWITCHES = ("--quick", "--include_real", "--overwrite")  # may stand without a value, which is then true
LISTS = ("--labels", "--networks", "--widths", "--sizes", "--batches", "--precisions", "--modes", "--layouts")
LONGEST = 300  # characters of an error
RUN = {"data": str, "fingerprint": str, "size": int, "images": int, "seed": int, "train": str}  # read of run.json
BOUNDS = {
    **dict.fromkeys(("epochs", "batch_size", "images", "size", "latent", "width", "per_class", "count"), (1, 10**9)),
    **{"seed": (0, 2**64 - 1), "start": (0, 2**62), "learning_rate": (1e-9, 10), "temperature": (0, 100)},
    **dict.fromkeys(("beta", "warmup", "free_bits", "adversarial", "matching", "guidance"), (0, 10**6)),
    **dict.fromkeys(("depth", "components", "steps"), (1, 1000)),
    **{
        "seconds": (1e-3, 3600),
        "minutes": (1e-3, 10**6),
        "sampler_minutes": (1e-3, 10**6),
        "clip": (1e-9, 10**9),
        "ema": (1e-9, 1 - 1e-9),
        "weight_decay": (0, 10),
    },
    **dict.fromkeys(("rise", "decay"), (0, 1)),
}


def demo(out: Path = Path("runs/demo"), epochs: int | None = None, images: int = 6000, seed: int = 0) -> None:
    """Train on built-in blood smears, sample every class, and say what to do next: offline, in under three minutes.

    Args:
        out: folder for the run.
        epochs: passes over the images; by default the recipe's.
        images: number of images to draw.
        seed: of images, weights, order and noise.
    """
    train(data="smears", recipe="smears_demo", out=out, epochs=epochs, images=images, seed=seed, overwrite=True)
    say(f"\nLook at {out / 'samples.png'}: ten new cells of every class.")
    say(f"Next:  condgen sample {out} --per-class 20 --out cells.png")
    say("Then your own images, one subfolder per class:  condgen train --data FOLDER --out runs/mine")


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
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] | None = None,
    augment: Augmentation | None = None,
    adversarial: float | None = None,
    matching: float | None = None,
    sampler: Literal["none", "mixture", "flow", "flow_matching"] | None = None,
    components: int | None = None,
    sampler_minutes: float | None = None,
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
        recipe: default, fast (ten minutes), sharp (half an hour), latent_map (without a discriminator),
            bloodmnist_reference, smears_demo, or another family: gan, flow, diffusion. It says what is not said here.
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
        minutes: a budget of time instead of epochs.
        optimizer: adam, or adamw with weight decay.
        weight_decay: of adamw.
        rise: share of training over which the learning rate rises from 0.
        decay: share of training, at its end, over which it falls to a hundredth.
        clip: the norm that gradients are cut to.
        ema: decay of an average of the weights, such as 0.999, which is then what is validated and kept.
        precision: of the networks; bf16-mixed is about twice as fast on CPUs that know it.
        augment: what changes training images: --augment.flips true, --augment.rotation 10, and so on.
        adversarial: weight of a discriminator's score of the reconstructions; 0 for none.
        matching: weight of its features' error.
        sampler: what samples are drawn from: the prior, or what is fitted to the latents after training: a mixture, a
            normalising flow, or flow matching from a mixture.
        components: of the mixture, for each class.
        sampler_minutes: a budget of time for training a flow.
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
    options |= {"likelihood": LIKELIHOODS[likelihood]() if likelihood else None}
    options |= {"conditioner": conditioner, "prior": prior}
    options = {name: value for name, value in options.items() if value is not None}
    model = build_model(recipe, labelled, options, seed, conditional)
    say(f"{labelled}\n{model}")
    chosen = {"epochs": epochs, "minutes": minutes, "batch_size": batch_size, "learning_rate": learning_rate}
    chosen |= {"beta": beta, "optimizer": optimizer, "weight_decay": weight_decay, "rise": rise, "decay": decay}
    chosen |= {"clip": clip, "ema": ema, "precision": precision, "augment": augment}
    chosen |= {"adversarial": adversarial, "matching": matching, "sampler": sampler, "components": components}
    chosen |= {"sampler_minutes": sampler_minutes, "steps": steps, "guidance": guidance}
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


def sample(
    run: Path,
    out: Path | None = None,
    per_class: int = 10,
    labels: Labels | None = None,
    seed: int = 0,
    start: int = 0,
    temperature: float = 1.0,
    steps: int | None = None,
    guidance: float | None = None,
    shard: str | None = None,
    accelerator: Accelerator = "auto",
) -> None:
    """Draw new images from a trained model: so many of every class, or one for each label you list.

    Args:
        run: folder of a trained model, or the name of one that comes with condgen: bloodmnist.
        out: a .png grid, an .npz file (images and labels), or a folder (one subfolder per class); by default
            samples.png in the run.
        per_class: images of every class; where labels are no classes, images with the labels of validation images.
        labels: class names or numbers, one per image, instead of so many per class, e.g. [neutrophil,platelet,6] or
            neutrophil platelet 6; several labels or conditions an image as [[1,0,1],[0,1,1]].
        seed: of the samples.
        start: number of the first sample, to go on where an earlier call stopped.
        temperature: scales the noise; below 1 is more typical and less varied.
        steps: of flow matching, instead of the model's: more are better and slower.
        guidance: of flow matching, instead of the model's: above 0 labels are truer, at twice the cost.
        shard: k/n, the k-th of n parts, for one of n workers that are called alike; the last to end joins the parts.
        accelerator: where to draw.
    """
    model, out = on(accelerator, load(run)), out or (run if run.exists() else Path()) / "samples.png"
    flow = next((own for own in model.children() if isinstance(own, FlowMatching)), None)
    for name, value in (("steps", steps), ("guidance", guidance)):
        if value is not None and flow is None:
            raise ValueError(f"Expected a model that samples by flow matching for --{name}; {run} does not.")
        if value is not None:
            setattr(flow, name, value)
    classes = num_classes(model) if model.conditioner.columns <= 1 and not continuous(model) else 0
    if classes and labels is None and out.suffix.lower() == ".png":  # before there are as many labels
        check_png(out, classes, per_class, model.image_shape or (0, 1, 1))
    if labels is not None:
        wanted = model.labels([label_number(model, label) for label in labels])
    elif classes:
        wanted = torch.arange(classes).repeat_interleave(per_class)
    else:
        wanted = model.labels(load_run_data(run, None).validation.labels[:per_class])
    rows = (classes, per_class) if classes and labels is None else (1, len(wanted))
    check_writable(out.parent)
    part = shard_of(shard)
    if part is not None and out.suffix.lower() == ".png":
        raise ValueError(f"Expected an .npz file or a folder for --shard; got {out}. Pass --out.")
    if out.suffix.lower() == ".png":
        check_png(out, *rows, model.image_shape or (0, 1, 1))
        drawn = model.sample(wanted, seed=seed, start=start, temperature=temperature).cpu()
        save_grid(drawn.unflatten(0, rows), out, class_names(model) if rows[0] > 1 else ())
    else:
        settings = {"seed": seed, "start": start, "temperature": temperature}
        write_samples(model, wanted, out, **settings, shard=part, progress=True)
    say(f"Wrote {len(wanted)} images to {out}." if part is None else f"Wrote part {shard} of {out}.")


def reconstruct(
    run: Path,
    out: Path | None = None,
    data: str | None = None,
    split: Split = "validation",
    count: int = 10,
    accelerator: Accelerator = "auto",
) -> None:
    """Show images beside what the model makes of them: originals above, reconstructions below, class by class.

    Args:
        run: folder of a trained model.
        out: a .png file, which will show the original images; by default reconstructions.png in the run.
        data: as for train; by default what the run was trained on.
        split: which images to take.
        count: images per class; where labels are no classes, images.
        accelerator: where to reconstruct.
    """
    model, out = on(accelerator, load(run)), out or run / "reconstructions.png"
    if not hasattr(model, "encode"):
        raise ValueError(f"Expected a model with an encoder; {run} holds a {type(model).__name__}, which only draws.")
    check_png(out)
    check_writable(out.parent)
    images = getattr(load_run_data(run, data).ordered(model.class_names), split)
    if images.kind != "class":
        some = images.subset(slice(0, count))
        check_png(out, 2, len(some), images.image_shape)
        save_grid(pairs(model, some.images, some.labels).transpose(0, 1).cpu(), out, ["images", "reconstructed"])
        say(f"Wrote {len(some)} pairs to {out}.")
        return
    fewest, name = min((number, name) for name, number in images.class_counts.items())
    if count > fewest:
        advice = f"Pass --count {fewest}" if fewest else "Pass another --split, or --data with images of every class"
        raise ValueError(
            f"Expected --count {count} images of every class; {images.name!r} has {fewest} of {name}. {advice}."
        )
    check_png(out, 2 * images.num_classes, count, images.image_shape)
    rows, names = [], []
    for label, name in enumerate(images.class_names):
        own = images.subset((images.labels == label).nonzero()[0][:count])
        rows += list(pairs(model, own.images, own.labels).transpose(0, 1).cpu())
        names += [name, "reconstructed"]
    save_grid(torch.stack(rows), out, names)
    say(f"Wrote {len(rows) // 2 * count} pairs to {out}.")


def evaluate(
    run: Path,
    data: str | None = None,
    out: Path | None = None,
    usefulness: UsefulnessPlan = "full",
    quick: bool = False,
    images: int | None = None,
    judge: Path | None = None,
    judge_seed: int = 0,
    measure: list[EvaluationPart] | None = None,
    features: str | None = None,
    include_real: bool = False,
    seed: int = 0,
    accelerator: Accelerator = "auto",
) -> None:
    """Say whether generated images are good enough to train on: one HTML page and one JSON, offline.

    Args:
        run: folder of a trained model, or images generated elsewhere: an .npz file or a folder with one subfolder per
            class, judged against --data.
        data: as for train; by default what the run was trained on. Needs train, validation and test images.
        out: folder for evaluation.html and evaluation.json; by default the run.
        usefulness: whether classifiers are trained on the images and tested on real ones: full (half an hour on two
            cores), quick (under five minutes) or none (under a minute once the judge is trained).
        quick: the same as --usefulness quick.
        images: number of generated images to judge; by default as many as there are validation images.
        judge: a judge's file, instead of the one kept beside the data, which is trained where there is none.
        judge_seed: of the judge that is trained; figures by another judge cannot be compared.
        measure: some of fidelity, privacy, model and usefulness; by default all.
        features: a second look beside the judge's: pixels, or a network of your own as module:Class, built without
            arguments, images in [0, 1] to features.
        include_real: show real images beside the generated ones; without it none is on the page.
        seed: of samples and classifiers.
        accelerator: where the model draws and is measured.
    """
    trained = (run / WEIGHTS).is_file()
    if not trained and data is None:
        raise ValueError(
            f"{run} is not the folder of a run. To judge images generated elsewhere, pass the --data they stand for."
        )
    page = out or (run if trained else Path(f"{run.with_suffix('')}_evaluation"))
    check_writable(page)
    labelled = load_run_data(run, data) if trained else load_data(str(data))
    result = evaluate_images(
        on(accelerator, load(run)) if trained else load_data(run, size=labelled.image_shape[1]),
        labelled,
        measure=measure or PARTS,
        judge=judge,
        judge_seed=judge_seed,
        features=second_look(features),
        images=images,
        usefulness="quick" if quick else usefulness,
        seed=seed,
        cache=beside(data or about_run(run)["data"]),
        history=read_history(run),
        include_real=include_real,
        name=str(run),
        progress=True,
    )
    page = result.write(page)
    say(f"{result.verdict}\nWrote {page} and {page.with_suffix('.json')}.")


def compare(runs: list[Path], out: Path | None = None) -> None:
    """Put the evaluations of several runs side by side.

    Args:
        runs: folders that `condgen evaluate` has written to.
        out: an .html file for the same table as a page.
    """
    if out is not None and out.suffix != ".html":
        raise ValueError(f"Expected --out as an .html file; got {out}.")
    evaluations = [read_evaluation(run) for run in runs]
    for run, evaluation in zip(runs, evaluations, strict=True):
        if outdated(run, evaluation):
            warnings.warn(f"{run} is outdated: its evaluation is of other weights. Evaluate it again.", stacklevel=1)
    heading, *rows = comparison_table(evaluations)
    show(
        [heading.cells, *([f"{cell} *" if k in row.best else cell for k, cell in enumerate(row.cells)] for row in rows)]
    )
    if note := apart(evaluations):
        say(note)
    if out is not None:
        check_writable(out.parent)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, comparison_page(evaluations).encode())
        say(f"Wrote {out}.")


def balance(
    run: Path,
    out: Path | None = None,
    data: str | None = None,
    strategy: Literal["auto", "minority", "not minority", "not majority", "all"] = "auto",
    counts: list[str] | None = None,
    judge: bool = False,
    refuse_copies: bool = False,
    seed: int = 0,
    accelerator: Accelerator = "auto",
) -> None:
    """Fill rare classes of a set up with generated images; a table says which image is what.

    Args:
        run: folder of a trained model, or the name of one that comes with condgen.
        out: an .npz file in MedMNIST's layout, or a folder with one subfolder for each split and class; by default
            balanced.npz in the run.
        data: as for train; by default what the run was trained on. Only its training images gain any.
        strategy: which classes are filled up to the largest: auto (all others), minority (the smallest alone), "not
            minority", "not majority" or all.
        counts: images that single classes are to have, instead of a strategy, e.g. [platelet=3000,basophil=2000].
        judge: draw samples again that a classifier of the real images does not take for their class.
        refuse_copies: draw near copies of training images again.
        seed: of the samples.
        accelerator: where to draw.
    """
    out = out or (run if run.exists() else Path()) / "balanced.npz"
    if out.suffix == ".npz" and out.exists():
        raise ValueError(f"{out} is there already. Choose another file (out=).")
    model = on(accelerator, load(run))
    labelled = data_for(run, data)
    own = (
        load_judge(labelled.ordered(model.class_names), cache=beside(data or about_run(run)["data"])) if judge else None
    )
    wanted = counted(counts) if counts is not None else strategy
    say(f"Drawing what {labelled.name} lacks.")
    balanced, provenance = rebalance(labelled, model, wanted, seed=seed, judge=own, refuse_copies=refuse_copies)
    table = write_balanced(balanced, provenance, out)
    say(f"{provenance}\nWrote {out}, and what each training image is to {table}.")


def export(run: Path, out: Path | None = None, to: Literal["onnx", "torch-export", "hub"] = "onnx") -> None:
    """Take a model elsewhere: as graphs that run without condgen, or in the layout of the Hugging Face hub.

    Args:
        run: folder of a trained model, or the name of one that comes with condgen.
        out: folder for what is written; by default export/ in the run.
        to: onnx (for ONNX Runtime; needs the packages onnx and onnxscript) or torch-export (for torch.export.load):
            draw and encode as graphs, and export.json, which says what they take. hub (needs huggingface_hub):
            weights, config.json and a card written from the run and its evaluation.
    """
    out, model = out or (run if run.exists() else Path()) / "export", load(run)
    if to == "hub":
        from condgen.hub import Pretrained

        check_writable(out)
        Pretrained(model, run if run.exists() else None).save_pretrained(out)
    else:
        export_model(model, out, to)
    say(f"Wrote {out}.")


def explore(
    run: Path,
    data: str | None = None,
    judge: bool = False,
    port: int | None = None,
    inbrowser: bool = True,
    accelerator: Accelerator = "auto",
) -> None:
    """Open a page on this machine to play with a model: pick cells, move latents, swap labels, look at an image.

    Args:
        run: folder of a trained model, or the name of one that comes with condgen.
        data: for the judge; as for train, by default what the run was trained on.
        judge: a classifier of the real images tells what it takes your image for; trained once where there is none.
        port: of the page; by default the first free one from 7860 on.
        inbrowser: open it in a browser.
        accelerator: where to draw.
    """
    model, own = on(accelerator, load(run)), None
    if judge:
        labelled = data_for(run, data)
        place = beside(data or about_run(run)["data"])
        own = load_judge(labelled.ordered(model.class_names), cache=place, progress=True)
    open_page(model, own, port=port, title=f"condgen: {run.name}", inbrowser=inbrowser, say=say)


def counted(counts: Sequence[str]) -> dict[Any, int]:
    """Class → count, of class=count.

    Example:
        >>> counted(["platelet=300", "2=50"])
        {'platelet': 300, 2: 50}
    """
    found: dict[Any, int] = {}
    for text in counts:
        name, _, number = text.rpartition("=")
        if not name or not number.isdigit():
            raise ValueError(f"Expected --counts as [class=count,…]; got {text!r}.")
        found[int(name) if name.isdigit() else name] = int(number)
    return found


def on(accelerator: Accelerator, model: Generator) -> Generator:
    """The model on the device of this kind."""
    return model.to(kind_of(accelerator))


def kind_of(accelerator: Accelerator) -> str:
    """The kind of device that is asked for, or the best there is."""
    kinds = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(name for name, there in kinds.items() if there) if accelerator == "auto" else accelerator
    if not kinds[kind]:
        raise ValueError(f"Expected --accelerator among {', '.join(k for k in kinds if kinds[k])} here; got {kind}.")
    return kind


def continuous(model: Generator) -> bool:
    """Whether the model's labels are no classes though they have one column."""
    return isinstance(getattr(model.conditioner, "conditioner", model.conditioner), Continuous | MultiLabel)


def benchmark(
    networks: list[str] = list(NETWORKS),  # noqa: B006 - never changed
    widths: list[int] = [32],  # noqa: B006
    sizes: list[int] = [28],  # noqa: B006
    batches: list[int] = [128],  # noqa: B006
    precisions: list[str] = ["float32", "bfloat16"],  # noqa: B006
    modes: list[str] = ["eager"],  # noqa: B006
    layouts: list[str] = ["contiguous"],  # noqa: B006
    encoder: str | None = None,
    decoder: str | None = None,
    seconds: float = 2.0,
    quick: bool = False,
    out: Path | None = None,
    accelerator: Accelerator = "auto",
) -> None:
    """Time encoder and decoder variants on this machine: a training step and sampling, and what share of it they use.

    Args:
        networks: reference (trimmed), reference_untrimmed, conv, resnet, resnet_map, gan, flow, own.
        widths: channels of the first map of conv and resnet.
        sizes: height and width of images.
        batches: images a step.
        precisions: float32, bfloat16.
        modes: eager, compiled, graphs (CUDA graphs).
        layouts: contiguous, channels_last.
        encoder: of your own, as my.module:MyEncoder, called with (image_shape, condition_dim, latent); timed as "own".
        decoder: of your own, called with (output_shape, latent, condition_dim).
        seconds: spent on each figure, about.
        quick: half a second each: the whole of the defaults within two minutes on two cores.
        out: a name without ending, for .md, .json and .png; by default the table is only shown.
        accelerator: where to run.
    """
    if out is not None:
        check_writable(out.parent)
    networks = [*networks, "own"] if (encoder or decoder) and "own" not in networks else networks
    variants = grid(networks, widths, sizes, batches, precisions, modes, layouts)
    device = kind_of(accelerator)
    about = {**machine(device), "multiply-adds": "forward, one image"}
    results = []

    def tell(name: str) -> None:
        print(f"{len(results) + 1}/{len(variants)} {name}", file=sys.stderr)

    for result in time_variants(
        variants, encoder=encoder, decoder=decoder, seconds=0.5 if quick else seconds, device=device, tell=tell
    ):
        results.append(result)
    command = f"condgen {' '.join(sys.argv[1:])}" if sys.argv[1:2] == ["benchmark"] else "condgen benchmark"
    text = markdown(results, about, command)
    columns = ("variant", "train", "sample", "of product", "of layers", "")
    rows = (cells(result) for result in results)  # images per second, and shares of the machine's own rate
    show([columns, *([row[k] for k in (0, 1, 2, 4, 5, 9)] for row in rows)])
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out.with_suffix(".md"), f"{text}\n".encode())
        content = {"machine": about, "command": command, "results": [asdict(result) for result in results]}
        write_atomically(out.with_suffix(".json"), json.dumps(content, indent=1).encode())
        write_figure(plot(results), out.with_suffix(".png"))
        say(f"Wrote {out.with_suffix('.md')}, .json and .png.")


def label_number(model: Generator, label: Any) -> Any:
    """The number of a class name; a number is itself, unless a class has it for its name; several are themselves."""
    if isinstance(label, list):
        return label
    return label if isinstance(label, int) and str(label) not in model.class_names else int(model.labels([str(label)]))


def check_recipe(recipe: str) -> None:
    """Raise unless there is such a recipe."""
    if recipe not in RECIPES:
        raise ValueError(f"Expected a recipe among {', '.join(RECIPES)}; got {recipe!r}.")


def build_model(
    recipe: str, data: LabelledImages, options: dict[str, Any], seed: int, conditional: bool = True
) -> Generator:
    """The recipe's model for this data, with weights from this seed and the global generator left as it was."""
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


def about_run(run: Path) -> dict[str, Any]:
    """What `run.json` tells."""
    file = run / "run.json"
    return read_json(file, RUN) if file.is_file() else {}


def load_run_data(run: Path, data: str | None) -> LabelledImages:
    """The data that a run was trained on, or other data read the same way.

    Raises:
        ValueError: if the data are no longer those the run saw, and were not asked for by name.
    """
    about = about_run(run)
    if "data" not in about and data is None:
        raise ValueError(f"{run / 'run.json'} does not tell what data the run was trained on. Pass --data.")
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


def data_for(run: Path, data: str | None) -> LabelledImages:
    """The data of a run, or those named for a model that comes with condgen.

    Raises:
        ValueError: if neither is known.
    """
    if data is None and not (run / "run.json").is_file():
        raise ValueError(f"Expected --data: {run} does not tell what it was trained on.")
    return load_run_data(run, data) if run.exists() else load_data(str(data))


MACHINE = ("accelerator", "devices", "nodes", "strategy", "graphs", "save_every")  # what may change when a run goes on


def recorded(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run as `run.json` keeps them: those that are not the usual ones, but for where it runs."""
    usual = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    left_out = {"out", "resume", "overwrite", *MACHINE}
    chosen = {name: value for name, value in given.items() if name not in left_out and value != usual[name]}
    if "data" in chosen:
        chosen["data"] = absolute(chosen["data"])
    return {name: asdict(value) if isinstance(value, Augmentation) else value for name, value in chosen.items()}


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
        options["augment"] = Augmentation(**options["augment"])
    if unknown := sorted(set(options) - set(inspect.signature(train).parameters)):
        raise ValueError(f"{run} has options that this condgen does not know: {', '.join(unknown)}. Upgrade condgen.")
    return {**options, **{name: given[name] for name in MACHINE}, "out": run, "resume": run}


def loggers_of(names: Sequence[str], out: Path) -> list[Any]:
    """Lightning Fabric's loggers, which write to the run's folder."""
    from lightning_fabric.loggers import CSVLogger, TensorBoardLogger

    kinds: dict[str, Any] = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}
    return [kinds[name](root_dir=str(out), name="logs", version=name) for name in names]


def shard_of(text: str | None) -> tuple[int, int] | None:
    """What --shard names.

    Example:
        >>> shard_of("2/8")
        (2, 8)
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found:
        raise ValueError(f"Expected --shard as k/n, such as 1/4; got {text!r}.")
    return int(found[1]), int(found[2])


@contextmanager
def hint(out: Path) -> Iterator[None]:
    """Say how to go on, where a run is stopped."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if (out / "run.json").is_file():
            print(f"condgen: to go on: condgen train --resume {out}", file=sys.stderr)
        raise


def second_look(features: str | None) -> Any:
    """What --features names."""
    return features if features in (None, "pixels") else imported(str(features))()


def outdated(run: Path, evaluation: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of other weights than the model beside it has now."""
    of = (evaluation.get("model") or {}).get("weights")
    return of is not None and (run / WEIGHTS).is_file() and read_config(run / WEIGHTS)["weights"] != of


def beside(data: str) -> Path | None:
    """The folder of judges beside the data, where there is a place for it; None means the user's own cache."""
    path = Path(data).expanduser()
    if path.exists() and data != "smears":
        folder = path.resolve().parent
    elif data.endswith("mnist"):
        folder = medmnist_folder(None)
    else:
        return None
    return folder / ".condgen" if os.access(folder, os.W_OK) else None


def absolute(data: str) -> str:
    """A path that later commands find from any folder; names stay names."""
    path = Path(data).expanduser()
    return str(path.resolve()) if path.suffix == ".npz" or (path.is_dir() and data != "smears") else data


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


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Arguments as the parser knows them: switches get their value, several runs or labels become one list.

    Raises:
        ValueError: for an option with an empty value, which would be read as the current folder.

    Example:
        >>> spelled_out(["evaluate", "run", "--quick", "--include-real"])
        ['evaluate', 'run', '--quick', 'true', '--include_real', 'true']
        >>> spelled_out(["compare", "a", "b", "--out", "c.html"])
        ['compare', '["a", "b"]', '--out', 'c.html']
        >>> spelled_out(["sample", "run", "--labels", "neutrophil", "6"])
        ['sample', 'run', '--labels', '["neutrophil", 6]']
    """
    words: list[str] = []
    for word, after in pairwise([*map(dashed, arguments), "--"]):
        words.append(word)
        if word in SWITCHES and (after.startswith("--") or after.lower() not in ("true", "false")):
            words.append("true")
        if re.fullmatch(r"\d+(,\d+)+", word) and words[-2:-1] == ["--latent"]:
            words[-1] = f"[{word}]"
        if word.startswith("--") and (after == "" or word.endswith("=")):
            raise ValueError(f"Expected a value for {word.rstrip('=')}; got an empty one.")
    if words[:1] == ["compare"]:
        gather(words, 1, numbers=False)
    for option in LISTS:
        if option in words:
            gather(words, words.index(option) + 1)
    return words


def gather(words: list[str], first: int, numbers: bool = True) -> None:
    """Make the words from `first` to the next option one list, unless they are one; whole numbers as numbers."""
    end = next((k for k in range(first, len(words)) if words[k].startswith("--")), len(words))
    if end > first and not words[first].startswith("["):
        parts: list[Any] = [part for word in words[first:end] for part in word.split(",")]
        if numbers:
            parts = [int(part) if re.fullmatch(r"-?\d+", part) else part for part in parts]
        words[first:end] = [json.dumps(parts)]


def dashed(argument: str) -> str:
    """`--per-class` as the parser knows it, `--per_class`; values stay as they are."""
    return re.sub(r"^--[\w.-]+", lambda name: "--" + name[0][2:].replace("-", "_"), argument)


class Parser(ArgumentParser):
    """Wrong usage is one line, too."""

    command = "condgen"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say which option expected what, and exit with 2."""
        print(f"condgen: {one_line(usage(message))} See {self.command} --help.", file=sys.stderr)
        sys.exit(2)


def usage(message: str) -> str:
    r"""What the parser says of an option, in a sentence.

    Example:
        >>> usage("Parser key \"n\":\n  Expected a <class 'int'>. Got value: many")
        "Expected a value of type int for --n; got 'many'."
    """
    if missing := re.search(r"arguments are required: (?:\w+\.)*(\w+)", message):
        return f"Expected {missing[1].upper()}; got nothing in its place."
    option = re.search(r"[Pp]arser key \"(?:\w+\.)*(\w+)\"", message)
    given = re.search(r"Given value: (.*)|[Gg]ot value: (.*)", message)
    wanted = re.search(r"Expected an? (?:typing\.)?(?:Literal\[([^]]*)\]|<class '(\w+)'>)", message)
    if not (option and given and wanted):
        return f"{f'--{option[1]}: ' if option else ''}{message}".rstrip(".") + "."
    kind = f"one of {wanted[1]}" if wanted[1] else f"a value of type {wanted[2]}"
    return f"Expected {kind} for --{option[1].replace('_', '-')}; got {given[1] or given[2]!r}."


def one_line(message: str) -> str:
    r"""A message on one line, its middle left out where it is too long, in the words of the command line.

    Example:
        >>> one_line("Choose another folder,\n or pass overwrite=True.")
        'Choose another folder, or pass --overwrite.'
    """

    def as_option(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), found[2]
        return f"--{name} {value}" if value and value != "True" else f"--{name}"

    message = re.sub(rf"(?<![\w.])({'|'.join(OPTIONS)})=(\w*)", as_option, " ".join(message.split()))
    end = LONGEST // 3
    return message if len(message) <= LONGEST else f"{message[: LONGEST - end - 3]} … {message[-end:]}"


def bounded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, its numbers known to be within bounds before anything is done."""

    @wraps(command)
    def checked(**options: Any) -> None:
        for name, value in options.items():
            low, high = BOUNDS.get(name, (-math.inf, math.inf))
            if isinstance(value, int | float) and not low <= value <= high:
                raise ValueError(
                    f"Expected a number from {low:,} to {high:,} for --{name.replace('_', '-')}; got {value}."
                )
        command(**options)

    return checked


COMMANDS: dict[str, Any] = {
    command.__name__: bounded(command)
    for command in (demo, train, sample, reconstruct, evaluate, compare, balance, explore, export, benchmark)
}
OPTIONS = sorted({name for command in COMMANDS.values() for name in inspect.signature(command).parameters})
LEFT = {
    "demo": "what the run folder holds is complete up to its last epoch",
    "train": "what the run folder holds is complete up to its last epoch",
    "sample": "a folder that was begun is completed by the same command",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors are one line on standard error, and `--debug` shows where they came from.

    Args:
        arguments: by default those of the process.

    Returns:
        0, or 1 after an error, or 130 when interrupted. Wrong usage exits with 2.
    """
    from jsonargparse import auto_cli

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug, command = "--debug" in arguments, next(iter(arguments), "")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"condgen: warning: {one_line(str(message))}", file=sys.stderr)
        try:
            auto_cli(
                COMMANDS,
                args=spelled_out([argument for argument in arguments if argument != "--debug"]) or ["--help"],
                parser_class=type(
                    "Parser", (Parser,), {"command": f"condgen {command}" if command in COMMANDS else "condgen"}
                ),
                prog="condgen",
                version=condgen.__version__,
                description="Conditional generative models for small labelled image sets. Start with: condgen demo",
                epilog="--debug shows where an error came from; --config FILE reads a command's options from YAML.",
            )
        except KeyboardInterrupt:
            print(f"condgen: stopped; {LEFT.get(command, 'nothing was written')}.", file=sys.stderr)
            return 130
        except Exception as error:
            if debug:
                raise
            print(f"condgen: {one_line(str(error)) or type(error).__name__}", file=sys.stderr)
            return 1
    return 0
