"""A class of few images: other mixtures to draw it from, and generated images beside real ones drawn more often.

    python benchmarks/few_images.py runs/rare/lymphocyte_20 --name lymphocyte --cut 20

The run is one of `benchmarks/rare_cells.py` (a mixture as sampler, trained on the set with that class cut). First
classifiers trained with every class drawn equally often, a share of its draws generated, tested on real images
(macro-F1, recall of the class); then samples of the class from other mixtures, judged beside its real training images.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from notes import keep

import condgen
from condgen.distributions.priors import mixture as fitted
from condgen.distributions.priors.mixture import Clusters, packed
from condgen.evaluation.arms import StudyPlan
from condgen.evaluation.fidelity import diversity, fidelity, label_truth
from condgen.evaluation.judge import load_judge
from condgen.evaluation.sources import drawing
from condgen.evaluation.training_sets import TrainingSet, cut_class, draw_pool, training_set
from condgen.evaluation.usefulness import train_and_test
from condgen.sampling.grids import to_uint8
from condgen.training.fit_prior import encode_latents

OTHERS = 3000  # images of other classes whose covariances are pooled
MIXTURES = [(1, 0.5, 1.0), (1, 1.0, 1.0), (8, 1.0, 1.0), (16, 1.0, 1.0), (16, 1.0, 0.5), (16, 1.0, 0.3), (16, 1.0, 0.1)]
MIXTURES += [(16, 0.0, 0.3), (1, 0.0, 0.3)]  # components, share of all classes' covariance, factor of the variance
SHARES = (0.25, 0.5)


def put(prior: Any, group: int, own: Clusters, covariances: np.ndarray) -> None:
    """These components in the place of a class's."""
    count = len(own.means)
    prior.weights[group] = 0
    prior.weights[group, :count] = torch.as_tensor(own.sizes / own.total).to(prior.weights)
    prior.means[group, :count] = torch.as_tensor(own.means).to(prior.means)
    prior.triangles[group, :count] = packed(torch.as_tensor(np.linalg.cholesky(covariances))).to(prior.triangles)


def shared_out(training: TrainingSet, real: int, share: float) -> TrainingSet:
    """Every class drawn equally often, a share of its draws generated, where there are generated ones."""
    made, weights = np.arange(len(training.labels)) >= real, np.zeros(len(training.labels))
    for label in np.unique(training.labels):
        own, drawn = ((training.labels == label) & kind for kind in (~made, made))
        weights[own] = (1 - share if drawn.any() else 1) / own.sum()
        weights[drawn] = share / max(drawn.sum(), 1)
    return TrainingSet(training.images, training.labels, weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--name", default="lymphocyte")
    parser.add_argument("--cut", type=int, default=20)
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data, model = condgen.load_data(options.data), condgen.load(options.run)
    judge, label = load_judge(data, cache=options.cache), data.class_names.index(options.name)
    few = data.train.subset(cut_class(data.train, options.name, options.cut))
    lines = ["| generated share of each class | macro-F1 | recall |", "|---|---|---|"]
    pools = [draw_pool(drawing(model), data, [few.labels], seed) for seed in range(options.seeds)]
    for share in SHARES:
        filled = (training_set("balanced", few.images, few.labels, pool) for pool in pools)
        sets = [shared_out(training, len(few), share) for training in filled]
        runs = [train_and_test(one, data, StudyPlan(seeds=options.seeds), seed) for seed, one in enumerate(sets)]
        values = [(run.macro_f1, run.recall[label] or 0.0) for run in runs]
        means = np.mean(values, 0)
        lines.append(f"| {share} | {means[0]:.3f} | {means[1]:.3f} |")
        print(lines[-1], flush=True)
    real = data.train.images[data.train.labels == label]
    theirs, others = judge.embed(real), np.flatnonzero(few.labels != label)
    some = np.random.default_rng(0).permutation(others)[:OTHERS]
    z, c = encode_latents(model, few.subset(np.sort(np.r_[np.flatnonzero(few.labels == label), some])), symmetries=True)
    prior: Any = model.sampler
    flat, labels = prior.scale(z).flatten(1).double().numpy(), c.argmax(1).numpy()
    found = [Clusters.of(flat[labels == k], 4, 0) for k in range(data.num_classes) if k != label]
    pooled = np.stack([own.total * own.shared for own in found]).sum(0) / sum(own.total for own in found)
    group = int(prior._groups(model.condition(model.labels([label])))[0])
    fitted.LEAST_MEMBERS = 1  # so that 20 images have 16 components
    lines += ["", "| components | all classes' share | variance | recognised | FID | coverage | diversity |"]
    lines.append("|---|---|---|---|---|---|---|")
    for components, borrowed, variance in [(0, 0.0, 1.0), *MIXTURES]:
        if components:
            own = Clusters.of(flat[labels == label], components, 0)
            put(prior, group, own, own.shrunk(1.0 if borrowed == 1 else 0.3, borrowed, pooled) * variance)
        images = to_uint8(model.sample(np.full(len(real), label), seed=5)).numpy()
        seen = judge.embed(images)
        figures: dict[str, Any] = dict(fidelity(theirs.late, seen.late))
        varied = diversity(*(torch.as_tensor(x).flatten(1) / 255 for x in (real, images)))["diversity"]
        truth = label_truth(seen.probabilities, np.full(len(images), label)).accuracy
        mixture = f"{components} | {borrowed:g} | {variance:g}" if components else "as fitted | |"
        lines.append(f"| {mixture} | {truth:.2f} | {figures['fid']:.0f} | {figures['coverage']:.2f} | {varied:.2f} |")
        print(lines[-1], flush=True)
    keep(options.out, f"{options.cut} images of {options.name}", "\n".join(lines))


if __name__ == "__main__":
    main()
