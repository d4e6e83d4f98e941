"""What a judge makes of reconstructions, beside the images themselves: where truth to the label and texture are lost.

    python benchmarks/reconstructions.py runs/sharp --learn --out benchmarks/results/reconstructions

What the networks around the latents lose shows here; what is lost beyond that (`benchmarks/quality.py`) the prior
loses. Latents of an image that are decoded under the label of another class (`--mixing`) tell how much of a class the
decoder paints by itself. With `--learn` a classifier that converges is trained on reconstructions of the training
images, under their true labels, and tested on real images: what it is short of one trained on the images themselves is
what the networks add or take away that a judge does not see, such as a trace of the label. `--told random` or `first`
tells encoder and decoder a label that says nothing of the image: what a classifier is short of then, no trace explains.
A classifier that is tested on reconstructions of test images, too ("its like"), tells what latents keep of the class.
`--mixing` without a number leaves the judge out.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from maps import measured
from notes import keep

import condgen
from condgen.evaluation.fidelity import label_truth
from condgen.evaluation.judge import load_judge
from condgen.models.mixing import mixed
from condgen.nn.parts import evaluating
from condgen.random import Use, normals
from condgen.sampling.grids import to_uint8


def decoded(model: Any, part: condgen.LabelledImages) -> torch.Tensor:
    """Images through the posterior's mean and back, under conditions that are mixed as for samples."""
    index, y = torch.arange(len(part)), model.labels(part.labels)
    noise = normals(model.sampling_noise_shapes, 0, index, Use.SAMPLING)
    z = model.encode(torch.as_tensor(part.images), part.labels)
    with torch.no_grad(), evaluating(model):
        return model.decode_from(*mixed(model, z, model.condition(y), noise)).mean


def judged(model: Any, data: Any, judge: Any, mixing: list[float]) -> list[str]:
    """A table of what a judge makes of reconstructions whose labels are mixed by so much."""
    columns = ("split", "labels mixed", "images, macro", "reconstructions, macro")
    columns += ("FID", "FID, early", "coverage", "sharpness")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    splits = (("validation", data.validation), ("test", data.test))
    for (name, part), model.label_mixing in itertools.product(splits, mixing):
        back = to_uint8(decoded(model, part)).numpy()
        truth, found = label_truth(judge.embed(part.images).probabilities, part.labels), measured(judge, part, back)
        figures = (truth.macro, *(found[key] for key in ("macro", "FID", "FID early", "coverage", "sharpness")))
        lines.append(f"| {name} | {model.label_mixing} | {' | '.join(f'{figure:.3f}' for figure in figures)} |")
    return lines


def reconstructed(model: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Images through the posterior's mean and back as uint8, encoder and decoder told these labels."""
    parts = (slice(k, k + 512) for k in range(0, len(images), 512))
    return np.concatenate([to_uint8(model.reconstruct(torch.as_tensor(images[k]), labels[k])).numpy() for k in parts])


def told_labels(part: condgen.LabelledImages, told: str) -> np.ndarray:
    """The labels that encoder and decoder are told: an image's own, random ones, or the first for all."""
    if told == "random":
        return np.random.default_rng(0).integers(part.num_classes, size=len(part))
    return part.labels if told == "own" else np.zeros_like(part.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--mixing", type=float, nargs="*", default=[0.0], help="of labels (model.label_mixing)")
    parser.add_argument(
        "--learn", nargs="*", choices=("images", "reconstructions"), help="train a classifier on each; on both if empty"
    )
    parser.add_argument(
        "--told", nargs="+", default=["own"], choices=("own", "random", "first"), help="label, to encoder and decoder"
    )
    parser.add_argument("--updates", type=int, help="of these classifiers, instead of those that converge")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data, model = condgen.load_data(options.data), condgen.load(options.run)
    lines = []
    if options.mixing:
        lines += judged(model, data, load_judge(data, cache=options.cache), options.mixing)
    if options.learn is not None:
        train, test = data.train, data.test
        learnt = {} if options.learn == ["reconstructions"] else {"images": (train.images, test.images)}
        for told in options.told if options.learn != ["images"] else []:
            back, like = (reconstructed(model, part.images, told_labels(part, told)) for part in (train, test))
            learnt[f"reconstructions, told {told}"] = back, like
        how = {"steps": options.updates} if options.updates else {}
        lines += ["", "| trained on | on real test images: accuracy | macro-F1 | recall by class | on its like |"]
        lines += ["|---" * 5 + "|"]
        for name, (images, like) in learnt.items():
            known = condgen.LabelledImages(images, train.labels, train.class_names)
            classifier = condgen.train_classifier(known, validation=data.validation, progress=True, **how)
            found = classifier.score(test)
            own = classifier.score(condgen.LabelledImages(like, test.labels, test.class_names)).accuracy
            recall = ", ".join(f"{value or 0:.2f}" for value in found.recall.values())
            lines.append(f"| {name} | {found.accuracy:.4f} | {found.macro_f1:.4f} | {recall} | {own:.4f} |")
            print(lines[-1], flush=True)
    keep(options.out, "Reconstructions", "\n".join(lines))


if __name__ == "__main__":
    main()
