"""Training of classifiers: images and classes, or probabilities of classes, in; weights that are a function of a seed.

Order, turns, mixed rectangles and weights are functions of a seed; no global generator is read or moved.
"""

__all__ = ["fit_classifier"]

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from condgen.data.augmentation import symmetries, turned
from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.evaluation.settings import ClassifierTraining
from condgen.io.archives import weights_hash
from condgen.nn.parts import evaluating, keeping_modes
from condgen.random import Use, permutation, stream, uniform
from condgen.training.checkpoints import Checkpoints

NETWORK = 1  # of the architecture and its training: another number trains every judge anew
SAMPLING_LEVEL, CUTMIX_LEVEL, SYMMETRY_LEVEL = 1, 254, 255  # of the streams ORDER and TRAINING; training.loop has 0


def fit_classifier(
    network: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    training: ClassifierTraining,
    *,
    weights: Tensor | np.ndarray | None = None,
    milestones: Collection[int] = (),
    on_milestone: Callable[[int, nn.Module], object] | None = None,
    on_step: Callable[..., object] = lambda *_: None,
    states: Checkpoints | None = None,
) -> None:
    """Train a classifier in place, on the device and back in the mode it came in.

    AdamW under a one-cycle learning rate, cross-entropy. Every update takes as many images: a batch that begins at the
    end of one pass over the images ends in the next.

    Args:
        network: images in [0, 1] → logits (batch, classes).
        images: uint8 of shape (n, channels, height, width), an array, memory map or tensor; or floats in [0, 1].
        labels: integers in [0, classes), shape (n,); or probabilities of the classes, shape (n, classes).
        training: how. Its `width` is that of networks that are yet to be built, and its `balance` says nothing here:
            give `weights`.
        weights: one an image, not negative: images are drawn with replacement in proportion to them. Without them
            every pass takes every image once.
        milestones: steps after which `on_milestone` is called.
        on_milestone: called with the number of steps taken and the network, lent in evaluation mode.
        on_step: called after every step (with a number of steps, where it goes on from a state).
        states: where the state of the training is kept from time to time; from one of this very training that is there
            it goes on, and ends with the weights of one that was never stopped.

    Raises:
        ValueError: if images, labels and weights do not fit together, or a number is out of range.
        FloatingPointError: when the loss is no longer finite.

    Example:
        >>> dark_or_light = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(0))
        >>> images = (200 * dark_or_light[:, None, None, None]).expand(64, 1, 8, 8).to(torch.uint8)
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> fit_classifier(network, images, dark_or_light, ClassifierTraining(steps=300, batch_size=16))
        >>> bool((network.eval()(images / 255).argmax(1) == dark_or_light).all())
        True
    """
    images, labels = as_tensors(images, labels)
    steps, batch_size = training.updates(len(images)) if len(images) else (1, 2)
    check_training(images, labels, steps, milestones)
    if states is not None and milestones:
        raise ValueError("Expected states or milestones, not both: what milestones found is not kept in a state.")
    seed = training.seed
    order = passes(len(images), batch_size, seed) if weights is None else draws(weights, len(images), batch_size, seed)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    rate, decay = training.learning_rate, training.weight_decay
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    # A network's own randomness, such as dropout, is a function of the seed as well.
    with torch.random.fork_rng(), keeping_modes(network):
        torch.manual_seed(seed)
        network.train()
        identity = identity_of(network, images, labels, training, weights)
        done = go_on(states, identity, network, optimizer, schedule)
        if done:
            on_step(done)
        for step, index in zip(range(1, steps + 1), order, strict=False):
            if step <= done:
                continue
            x, y = augmented(image_tensor(images[index]).float(), labels[index], training, step)
            optimizer.zero_grad()
            loss = mixed_cross_entropy(network(x.to(device)), y, training.label_smoothing)
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(
                    f"The classifier's loss is {loss.item()} in step {step}. Lower the learning rate."
                )
            loss.backward()
            optimizer.step()
            schedule.step()
            on_step()
            if states is not None and states.due():
                states.write(
                    {"of": identity, "step": step, "network": dict(network.state_dict()), "rng": torch.get_rng_state()}
                    | {"optimizer": optimizer.state_dict(), "schedule": plain_schedule(schedule)}
                )
            if on_milestone is not None and step in milestones:
                with evaluating(network):
                    on_milestone(step, network)


def augmented(
    x: Float[Tensor, "batch channels height width"], y: Tensor, training: ClassifierTraining, step: int
) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """Images as a step sees them, and their targets, each with its share of the loss.

    Example:
        >>> x, y = augmented(torch.rand(4, 1, 8, 8), torch.arange(4), ClassifierTraining(cutmix=1.0), step=1)
        >>> x.shape, len(y), sum(share for share, _ in y)
        (torch.Size([4, 1, 8, 8]), 2, 1.0)
    """
    if training.symmetries:
        x = turned(x, symmetry_codes(training.seed, step, x.shape, len(x)))
    chance, share, down, across = uniform(
        training.seed, torch.zeros(1, dtype=torch.int64), stream(Use.TRAINING, step, CUTMIX_LEVEL), (4,)
    )[0].tolist()
    if chance >= training.cutmix:
        return x, [(1.0, y)]
    top, bottom, left, right = rectangle(share, down, across, *x.shape[-2:])
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x.roll(1, 0)[..., top:bottom, left:right]
    taken = (bottom - top) * (right - left) / (x.shape[-2] * x.shape[-1])
    return mixed, [(1 - taken, y), (taken, y.roll(1, 0))]


def rectangle(share: float, down: float, across: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a rectangle that holds a share of the image, cut off at the image's edge.

    Its share is uniform, as CutMix draws it (a Beta distribution with both parameters 1), and so is its centre.

    Args:
        share: of the image, in [0, 1].
        down: place of the centre, in [0, 1].
        across: the same from left to right.
        height: of the image.
        width: of the image.

    Example:
        >>> rectangle(0.25, 0.5, 0.5, 28, 28), rectangle(0.25, 0.0, 0.5, 28, 28)
        ((7, 21, 7, 21), (0, 7, 7, 21))
    """
    side = math.sqrt(share)
    top, bottom = (round(down * height + sign * side * height / 2) for sign in (-1, 1))
    left, right = (round(across * width + sign * side * width / 2) for sign in (-1, 1))
    return max(top, 0), min(bottom, height), max(left, 0), min(right, width)


def mixed_cross_entropy(
    logits: Float[Tensor, "batch classes"], targets: Sequence[tuple[float, Tensor]], smoothing: float
) -> Float[Tensor, ""]:
    """Cross-entropy (nats per image) with classes or probabilities as targets, each with its share."""
    losses = [share * F.cross_entropy(logits, y.to(logits.device), label_smoothing=smoothing) for share, y in targets]
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def identity_of(
    network: nn.Module, images: Tensor, labels: Tensor, training: ClassifierTraining, weights: Any
) -> dict[str, Any]:
    """What tells one training of a classifier from another; its network is as it was built."""
    drawn = None if weights is None else weights_hash({"weights": torch.as_tensor(weights)})
    about = {"images": list(images.shape), "labels": weights_hash({"labels": labels}), "drawn": drawn}
    return {**asdict(training), **about, "network": weights_hash(network.state_dict())}


def plain_schedule(schedule: Any) -> dict[str, Any]:
    """The state of a learning-rate schedule that is numbers and lists."""
    kinds = (int, float, str, bool, list)
    return {key: value for key, value in schedule.state_dict().items() if value is None or isinstance(value, kinds)}


def go_on(
    states: Checkpoints | None, identity: Mapping[str, Any], network: nn.Module, optimizer: Any, schedule: Any
) -> int:
    """Restore the newest state of this very training; how many steps it had done, 0 where there is none."""
    state = states.read() if states is not None else None
    if state is None or state["of"] != identity:
        return 0
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["rng"])
    return int(state["step"])


def as_tensors(images: Tensor | np.ndarray, labels: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """Training images and targets as tensors, classes int64 and probabilities float32; memory maps are not copied."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    return images, labels.float() if labels.ndim == 2 else labels.long()


def check_training(images: Tensor, labels: Shaped[Tensor, "n ..."], steps: int, milestones: Collection[int]) -> None:
    """Raise unless there is something to train on, for as long as asked."""
    if images.ndim != 4 or labels.ndim not in (1, 2) or len(labels) != len(images) or not len(images):
        raise ValueError(
            "Expected images of shape (n, channels, height, width) and one class label for each, or probabilities "
            f"(n, classes), at least one; got images {tuple(images.shape)} and labels {tuple(labels.shape)}."
        )
    if labels.ndim == 2 and not (
        bool((labels >= 0).all()) and torch.allclose(labels.sum(1), torch.ones(()), atol=1e-3)
    ):
        raise ValueError("Expected probabilities from 0 to 1 with the sum 1 in every row; got others.")
    if any(not 1 <= step <= steps for step in milestones):
        raise ValueError(f"Expected milestones in [1, {steps}], the steps there are; got {sorted(milestones)}.")


def passes(n: int, batch_size: int, seed: int) -> Iterator[Int64[Tensor, " batch"]]:
    """Batches of indices, without end: one shuffled pass over n images after another, cut into full batches."""
    rest, epoch = torch.empty(0, dtype=torch.int64), 0
    while True:
        while len(rest) < batch_size:
            rest, epoch = torch.cat([rest, permutation(n, seed, epoch)]), epoch + 1
        yield rest[:batch_size]
        rest = rest[batch_size:]


def draws(weights: Tensor | np.ndarray, n: int, batch_size: int, seed: int) -> Iterator[Int64[Tensor, " batch"]]:
    """Batches of indices, without end, drawn with replacement in proportion to the weights."""
    weights = torch.as_tensor(weights, dtype=torch.float64)
    if weights.shape != (n,) or not bool((weights >= 0).all()) or not 0 < float(weights.sum()) < math.inf:
        raise ValueError(
            f"Expected a weight for each of {n} images, none negative and not all 0; got weights of shape "
            f"{tuple(weights.shape)} with the sum {float(weights.sum()):.4g}."
        )
    cumulative, place, step = weights.cumsum(0), torch.arange(batch_size), 0
    while True:
        u = uniform(seed, place, stream(Use.ORDER, step, SAMPLING_LEVEL), ())
        yield torch.searchsorted(cumulative, u * cumulative[-1], right=True)
        step += 1


def symmetry_codes(seed: int, step: int, shape: Sequence[int], batch_size: int) -> Int64[Tensor, " batch"]:
    """Which symmetry each image of a step's batch is shown in: of eight, or of four where it is not square."""
    u = uniform(seed, torch.arange(batch_size), stream(Use.TRAINING, step, SYMMETRY_LEVEL), ())
    return (u * symmetries(*shape[-2:])).long()


def check_data(data: LabelledImages, needed: Sequence[str] = ("train", "validation")) -> None:
    """Raise unless classifiers can be trained on these images and measured on them."""
    if data.kind != "class":
        raise ValueError(
            f"Expected one class label per image; {data.name!r} has {data.kind} labels. Classifiers need classes: pass "
            "data.with_labels(...) with one."
        )
    missing = [name for name in needed if name not in data.splits or not len(getattr(data, name))]
    if missing:
        raise ValueError(
            f"Expected images to train on and others to measure on; {data.name!r} has none for "
            f"{' and '.join(missing)}. Split it into train, validation and test (.split())."
        )
    if data.num_classes < 2:
        raise ValueError(f"Expected two classes or more; {data.name!r} has {data.num_classes}. Nothing to tell apart.")
    train = data.train if data.splits else data
    empty = [name for name, count in train.class_counts.items() if not count]
    if empty:
        raise ValueError(
            f"Expected training images of every class; {data.name!r} has none of {', '.join(empty)}. Leave these "
            "classes out, or split the images again."
        )
