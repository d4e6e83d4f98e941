"""Classifier: a small residual network and how it is trained, for the judge and for what classifiers learn from images.

Order, turns and weights are functions of a seed; no global generator is read or moved.
"""

__all__ = ["Embedded", "ResidualClassifier", "fit_classifier", "network_features"]

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from condgen.data.augmentation import symmetries, turned
from condgen.data.batches import image_tensor
from condgen.data.images import LabelledImages
from condgen.io.archives import weights_hash
from condgen.nn.layers import SMALLEST_IMAGE
from condgen.nn.parts import Part, evaluating, keeping_modes
from condgen.random import Use, permutation, stream, uniform
from condgen.training.checkpoints import Checkpoints

NETWORK = 1  # of the architecture and its training: another number trains every judge anew
COMFORTABLE = 32  # pixels along a side that the stages see, about
WEIGHT_DECAY = 0.02
SAMPLING_LEVEL, SYMMETRY_LEVEL = 1, 255  # of the streams ORDER and TRAINING; condgen.training.loop starts from 0


class Embedded(NamedTuple):
    """What a classifier makes of a batch: features after its last and its first stage, and logits."""

    late: Float[Tensor, "batch late"]
    early: Float[Tensor, "batch early"]
    logits: Float[Tensor, "batch classes"]


class ResidualClassifier(Part):
    """Images in [0, 1] → class logits: a stem, three residual stages, global average pooling and a linear layer.

    Stages have width, 2 * width and 4 * width channels, one block each and the last one two; the second and the third
    halve the map.
    The stem's stride brings large images down to about 32 pixels, with a kernel that overlaps, so that no pixel is
    skipped. With width 32, a colour image of 28x28 takes 52 million multiply-adds.

    Args:
        image_shape: (channels, height, width) of the images, at least 8x8.
        num_classes: number of logits.
        width: channels of the first stage.

    Raises:
        ValueError: if the images are too small, or there are no classes or channels.

    References:
        Deep residual learning for image recognition (He et al., 2016), https://arxiv.org/abs/1512.03385

    Example:
        >>> network = ResidualClassifier((3, 28, 28), num_classes=8)
        >>> [tuple(part.shape) for part in network.eval().embed(torch.rand(2, 3, 28, 28))]
        [(2, 128), (2, 64), (2, 8)]
    """

    def __init__(self, image_shape: Sequence[int], num_classes: int, width: int = 32) -> None:
        super().__init__()
        channels, height, across = image_shape
        if min(height, across) < SMALLEST_IMAGE:
            raise ValueError(
                f"Expected images of at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE}; got {height}x{across}. "
                "Enlarge them first."
            )
        if min(channels, num_classes, width) < 1:
            raise ValueError(
                f"Expected at least one channel, class and feature map; got {channels}, {num_classes} and {width}."
            )
        self.image_shape, self.num_classes, self.width = (channels, height, across), num_classes, width
        stride = stem_stride(height, across)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 2 * stride + 1, stride, padding=stride, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        last = nn.Sequential(ResidualBlock(2 * width, 4 * width, 2), ResidualBlock(4 * width, 4 * width))
        self.stages = nn.ModuleList([ResidualBlock(width, width), ResidualBlock(width, 2 * width, 2), last])
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Class logits of images in [0, 1]."""
        first = self.first_stage(x)
        return self.head(self.late(first))

    def embed(self, x: Float[Tensor, "batch channels height width"]) -> Embedded:
        """Features and logits of images in [0, 1].

        `late` (batch, 4 * width) are the means of the last stage's maps; `early` (batch, 2 * width) the means, then
        the standard deviations over positions, of the first stage's maps.
        """
        first = self.first_stage(x)
        late = self.late(first)
        means = first.mean((2, 3), keepdim=True)
        spreads = (first - means).square().mean((2, 3)).sqrt()
        return Embedded(late, torch.cat([means[:, :, 0, 0], spreads], dim=1), self.head(late))

    def first_stage(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch maps rows columns"]:
        """Feature maps after the first stage."""
        return self.stages[0](self.stem(2 * x - 1))

    def late(self, first: Float[Tensor, "batch maps rows columns"]) -> Float[Tensor, "batch late"]:
        """Means of the last stage's maps."""
        return self.stages[2](self.stages[1](first)).mean((2, 3))


class ResidualBlock(Part):
    """Two 3x3 convolutions around which the input is added, through a 1x1 convolution where the shape changes.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution.

    Example:
        >>> ResidualBlock(4, 8, stride=2)(torch.rand(2, 4, 7, 7)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.around = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, h: Float[Tensor, "batch inputs rows columns"]) -> Float[Tensor, "batch outputs _ _"]:
        """Convolve and add."""
        return F.relu(self.around(h) + self.inner(h))


def stem_stride(height: int, width: int) -> int:
    """The stride that brings images down to about 32 pixels, and none below 8.

    Example:
        >>> [stem_stride(size, size) for size in (8, 28, 64, 128, 224)], stem_stride(8, 200)
        ([1, 1, 2, 4, 7], 1)
    """
    return max(1, min(round(math.sqrt(height * width) / COMFORTABLE), min(height, width) // SMALLEST_IMAGE))


def fit_classifier(
    network: nn.Module,
    images: Tensor | np.ndarray,
    labels: Tensor | np.ndarray,
    *,
    steps: int,
    batch_size: int = 128,
    seed: int = 0,
    learning_rate: float = 3e-3,
    weights: Tensor | np.ndarray | None = None,
    milestones: Collection[int] = (),
    on_milestone: Callable[[int, nn.Module], object] | None = None,
    on_step: Callable[..., object] = lambda *_: None,
    states: Checkpoints | None = None,
) -> None:
    """Train a classifier in place, on the device and back in the mode it came in.

    AdamW under a one-cycle learning rate, cross-entropy, every image turned and flipped at random. Order and turns
    are functions of (seed, step); no global generator is read or moved. Every step takes `batch_size` images: a
    batch that begins at the end of one pass over the images ends in the next.

    Args:
        network: images in [0, 1] → logits (batch, classes).
        images: uint8 of shape (n, channels, height, width), an array, memory map or tensor; or floats in [0, 1].
        labels: integers in [0, classes), shape (n,).
        steps: updates, at least 1.
        batch_size: images an update, at least 2.
        seed: in [0, 2**64).
        learning_rate: the highest of the cycle.
        weights: one an image, not negative: images are drawn with replacement in proportion to them. Without them
            every pass takes every image once.
        milestones: steps in [1, steps] after which `on_milestone` is called.
        on_milestone: called with the number of steps taken and the network, lent in evaluation mode.
        on_step: called after every step (with a number of steps, where it goes on from a state).
        states: where the state of the training is kept from time to time; from one of this very training that is there
            it goes on, and ends with the weights of one that was never stopped.

    Raises:
        ValueError: if images, labels and weights do not fit together, or a number is out of range.
        FloatingPointError: when the loss is no longer finite.

    References:
        Super-convergence: very fast training of neural networks using large learning rates (Smith & Topin, 2018),
        https://arxiv.org/abs/1708.07120

    Example:
        >>> dark_or_light = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(0))
        >>> images = (200 * dark_or_light[:, None, None, None]).expand(64, 1, 8, 8).to(torch.uint8)
        >>> network = ResidualClassifier((1, 8, 8), num_classes=2, width=4)
        >>> fit_classifier(network, images, dark_or_light, steps=40, batch_size=16)
        >>> bool((network.eval()(images / 255).argmax(1) == dark_or_light).all())
        True
    """
    images, labels = as_tensors(images, labels)
    check_training(images, labels, steps, batch_size, milestones)
    if states is not None and milestones:
        raise ValueError("Expected states or milestones, not both: what milestones found is not kept in a state.")
    order = passes(len(images), batch_size, seed) if weights is None else draws(weights, len(images), batch_size, seed)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    # A network's own randomness, such as dropout, is a function of the seed as well.
    with torch.random.fork_rng(), keeping_modes(network):
        torch.manual_seed(seed)
        network.train()
        identity = training_identity(network, images, labels, steps, batch_size, seed, learning_rate, weights)
        done = go_on(states, identity, network, optimizer, schedule)
        if done:
            on_step(done)
        for step, index in zip(range(1, steps + 1), order, strict=False):
            if step <= done:
                continue
            x = turned(image_tensor(images[index]).float(), symmetry_codes(seed, step, images.shape, batch_size))
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x.to(device)), labels[index].to(device))
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


def training_identity(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    steps: int,
    batch_size: int,
    seed: int,
    rate: float,
    weights: Any,
) -> dict[str, Any]:
    """What tells one training of a classifier from another; its network is as it was built."""
    drawn = None if weights is None else weights_hash({"weights": torch.as_tensor(weights)})
    numbers = {"steps": steps, "batch_size": batch_size, "seed": seed, "learning_rate": rate, "drawn": drawn}
    about = {"images": list(images.shape), "labels": weights_hash({"labels": labels})}
    return {**numbers, **about, "network": weights_hash(network.state_dict())}


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
    """Images as they are, labels as int64; a memory map is only ever read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.as_tensor(images), torch.as_tensor(labels).long()


def check_training(images: Tensor, labels: Tensor, steps: int, batch_size: int, milestones: Collection[int]) -> None:
    """Raise unless there is something to train on, for as long as asked."""
    if images.ndim != 4 or labels.shape != (len(images),) or not len(images):
        raise ValueError(
            "Expected images of shape (n, channels, height, width) and one class label for each, at least one; got "
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)}."
        )
    if steps < 1 or batch_size < 2:
        raise ValueError(f"Expected at least 1 step and a batch_size of 2 or more; got {steps} and {batch_size}.")
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


def network_features(
    module: nn.Module, images: np.ndarray | Tensor, batch_size: int = 256
) -> Float[Tensor, "n features"]:
    """Features of images from any network, lent in evaluation mode, without gradients.

    Args:
        module: images in [0, 1] → features (batch, features).
        images: uint8, or floats in [0, 1], of shape (n, channels, height, width); an array or a tensor.
        batch_size: images at a time.

    Returns:
        float32 on the CPU, of shape (n, features).

    Raises:
        ValueError: if the network returns anything but a finite float tensor with a row an image, or images are no
            batch.
        TypeError: if images are neither uint8 nor floats.

    Example:
        >>> network_features(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), torch.ones(5, 3, 16, 16))[0]
        tensor([1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(
            f"Expected images of shape (n, channels, height, width), at least one; got {tuple(images.shape)}."
        )
    weight = next(module.parameters(), torch.zeros(()))
    found = []
    with torch.no_grad(), evaluating(module):
        for x in in_batches(images, batch_size):
            features = module(x.to(weight))
            check_features(features, len(x))
            found.append(features.float().cpu())
    return torch.cat(found)


def check_features(features: Any, n: int) -> None:
    """Raise unless these are features of n images."""
    if not isinstance(features, Tensor):
        got = type(features).__name__
    elif features.ndim != 2 or len(features) != n or not features.is_floating_point():
        got = f"{features.dtype} of shape {tuple(features.shape)}"
    elif not bool(torch.isfinite(features).all()):
        got = "NaN or infinity"
    else:
        return
    raise ValueError(
        f"Expected the network to turn {n} images into a finite float tensor of shape ({n}, features); got {got}. "
        "Wrap it in a module that returns its features alone, flattened."
    )


def in_batches(images: np.ndarray | Tensor, batch_size: int) -> Iterator[Float[Tensor, "batch channels height width"]]:
    """Images in [0, 1], some at a time; one empty batch where there are none."""
    for start in range(0, max(len(images), 1), batch_size):
        yield image_tensor(images[start : start + batch_size])


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
    empty = [name for name, count in data.train.class_counts.items() if not count]
    if empty:
        raise ValueError(
            f"Expected training images of every class; {data.name!r} has none of {', '.join(empty)}. Leave these "
            "classes out, or split the images again."
        )
