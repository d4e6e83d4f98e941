"""The judge: a small residual classifier, trained on the real images at hand, whose features images are measured in.

Features of ImageNet say little about cells, and their network has to be downloaded. A classifier trained on the
real training split knows what tells the classes apart; its late features compare what images show, its early ones
texture and sharpness. The judge is a function of the images, the settings and a seed, and is kept by the content of
the images, so that two evaluations of one data set share it.
"""

__all__ = [
    "Embedding",
    "Features",
    "Judge",
    "ResidualClassifier",
    "cache_folder",
    "check_judge",
    "fit_classifier",
    "load_judge",
    "network_features",
    "open_judge",
    "train_judge",
]

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from condgen.augmentations import symmetries, turned
from condgen.data import LabelledImages, image_tensor
from condgen.files import write_atomically
from condgen.layers import SMALLEST_IMAGE
from condgen.noise import Use, permutation, stream, uniform
from condgen.parts import Part, evaluating, keeping_modes, weights_hash

NETWORK = 1  # of the architecture and its training: another number trains every judge anew
FORMAT = 1  # of the file
HEADER = "condgen_judge"
COMFORTABLE = 32  # pixels along a side that the stages see, about
EPOCHS, LEAST_STEPS, MOST_EPOCHS = 12, 600, 200  # of a judge, unless told
WEIGHT_DECAY = 0.02
SAMPLING_LEVEL, SYMMETRY_LEVEL = 1, 255  # of the streams ORDER and TRAINING; condgen.training starts from 0
WEAK_ACCURACY, WEAK_RECALL, FEW_VALIDATION, FEW_TRAINING = 0.8, 0.5, 20, 50


class Embedding(NamedTuple):
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

    def embed(self, x: Float[Tensor, "batch channels height width"]) -> Embedding:
        """Features and logits of images in [0, 1].

        `late` (batch, 4 * width) are the means of the last stage's maps; `early` (batch, 2 * width) the means, then
        the standard deviations over positions, of the first stage's maps.
        """
        first = self.first_stage(x)
        late = self.late(first)
        means = first.mean((2, 3), keepdim=True)
        spreads = (first - means).square().mean((2, 3)).sqrt()
        return Embedding(late, torch.cat([means[:, :, 0, 0], spreads], dim=1), self.head(late))

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
    progress: bool = False,
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
        progress: show a progress bar.

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
    order = passes(len(images), batch_size, seed) if weights is None else draws(weights, len(images), batch_size, seed)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    # A network's own randomness, such as dropout, is a function of the seed as well.
    with torch.random.fork_rng(), keeping_modes(network), display(steps, progress) as advance:
        torch.manual_seed(seed)
        network.train()
        for step, index in zip(range(1, steps + 1), order, strict=False):
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
            advance()
            if on_milestone is not None and step in milestones:
                with evaluating(network):
                    on_milestone(step, network)


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


@contextmanager
def display(steps: int, progress: bool) -> Iterator[Callable[[], object]]:
    """What shows the progress of `steps`; called once a step."""
    if not progress:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training a classifier", total=steps)
        yield lambda: bar.advance(task)


@dataclass(frozen=True, eq=False)
class Features:
    """What a judge makes of n images, float32 on the CPU.

    Attributes:
        late: (n, 4 * width), what the images show.
        early: (n, 2 * width), their texture: means, then standard deviations of the first stage's maps.
        probabilities: (n, classes), how sure the judge is of each class; rows have the sum 1.
    """

    late: Float[Tensor, "n late"]
    early: Float[Tensor, "n early"]
    probabilities: Float[Tensor, "n classes"]

    def __len__(self) -> int:
        return len(self.late)


@dataclass(frozen=True, eq=False, repr=False)
class Judge:
    """A classifier of real images and what it was trained on.

    Attributes:
        network: on the CPU.
        class_names: in the order of its logits.
        fingerprint: of the training images; see :meth:`condgen.LabelledImages.content_hash`.
        seed: of its weights and its training.
        epochs: passes over the training images.
        accuracy: share of validation images it recognises, in [0, 1].
        recalls: the same per class; None for a class without validation images.
        counts: training images per class.
        validation_counts: validation images per class.

    Example:
        >>> from condgen import load_smears
        >>> cells = load_smears(100, size=16)
        >>> judge = train_judge(cells, epochs=1, width=4)
        >>> features = judge.embed(cells.test.images)
        >>> features.late.shape, features.early.shape, features.probabilities.shape
        (torch.Size([10, 16]), torch.Size([10, 8]), torch.Size([10, 8]))
    """

    network: ResidualClassifier
    class_names: tuple[str, ...]
    fingerprint: str
    seed: int
    epochs: float
    accuracy: float
    recalls: Mapping[str, float | None]
    counts: Mapping[str, int]
    validation_counts: Mapping[str, int]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images it judges."""
        return self.network.image_shape

    def embed(self, images: np.ndarray | Tensor, batch_size: int = 256) -> Features:
        """Features and class probabilities of images, in evaluation mode and without gradients.

        Args:
            images: uint8, or floats in [0, 1], of shape (n, channels, height, width); an array or a tensor.
            batch_size: images at a time; features do not depend on it but for rounding.

        Raises:
            ValueError: if images have another shape, or floats leave [0, 1].
            TypeError: if images are neither uint8 nor floats.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"Expected images of shape (n, {', '.join(map(str, self.image_shape))}), as the judge was trained on; "
                f"got {tuple(images.shape)}. Resize them, or train a judge on images of that size."
            )
        with torch.no_grad(), evaluating(self.network):
            parts = [self.network.embed(x.float().cpu()) for x in in_batches(images, batch_size)]
        late, early, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return Features(late, early, logits.softmax(1))

    def weaknesses(self) -> list[str]:
        """Plain sentences about when not to trust it, such as few images of a class; none if all is well.

        Example:
            >>> from condgen import load_smears
            >>> judge = train_judge(load_smears(100, size=16), epochs=1, width=4)
            >>> print(judge.weaknesses()[-1])
            Fewer than 20 validation images of basophil (0), ... and platelet (1): how well it knows them is uncertain.
        """
        unknown = {name: f"{r:.0%}" for name, r in self.recalls.items() if r is not None and r < WEAK_RECALL}
        few = {name: n for name, n in self.counts.items() if n < FEW_TRAINING}
        unsure = {name: n for name, n in self.validation_counts.items() if n < FEW_VALIDATION}
        sentences = []
        if self.accuracy < WEAK_ACCURACY:
            sentences.append(
                f"The judge recognises only {self.accuracy:.0%} of real validation images: what it says is rough."
            )
        if unknown:
            sentences.append(
                f"It recognises fewer than half of the real images of {listed(unknown)}: do not trust it there."
            )
        if few:
            sentences.append(f"It learnt from fewer than {FEW_TRAINING} training images of {listed(few)}.")
        if unsure:
            sentences.append(
                f"Fewer than {FEW_VALIDATION} validation images of {listed(unsure)}: "
                "how well it knows them is uncertain."
            )
        return sentences

    def save(self, path: str | Path) -> Path:
        """Write the judge to one safetensors file, whole or not at all; its folder is made where it is missing.

        Returns:
            The path, for :func:`open_judge`.

        Raises:
            OSError: if the file cannot be written.
        """
        from safetensors.torch import save

        path = Path(path)
        weights = {name: tensor.detach().contiguous().clone() for name, tensor in self.network.state_dict().items()}
        config = {
            "format": FORMAT,
            "arguments": {**self.network.arguments, "image_shape": list(self.image_shape)},
            "class_names": [str(name) for name in self.class_names],
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "epochs": self.epochs,
            "accuracy": self.accuracy,
            "recalls": list(self.recalls.values()),
            "counts": list(self.counts.values()),
            "validation_counts": list(self.validation_counts.values()),
            "sha256": weights_hash(weights),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(weights, metadata={HEADER: json.dumps(config)}))
        return path

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__} of {len(self.class_names)} classes of {self.image_shape} images; accuracy on "
            f"validation images {self.accuracy:.1%}"
        )


def train_judge(
    data: LabelledImages, *, seed: int = 0, epochs: float | None = None, width: int = 32, progress: bool = False
) -> Judge:
    """A judge trained on the training split alone, its accuracy measured on the validation split.

    The same images, seed and settings give the same judge on one machine with one number of threads.

    Args:
        data: images with one class label each, and splits.
        seed: of weights, order and turns, in [0, 2**64).
        epochs: passes over the training images; by default 12, and more for small sets: about 600 steps, but no
            more than 200 passes.
        width: channels of the network's first stage.
        progress: show a progress bar.

    Raises:
        ValueError: if labels are not classes, there are no splits, there is one class only, or a class has no
            training images.

    Example:
        >>> from condgen import load_smears
        >>> train_judge(load_smears(100, size=16), epochs=1, width=4)
        Judge of 8 classes of (3, 16, 16) images; accuracy on validation images ...%
    """
    check_data(data)
    training, validation = data.train, data.validation
    # Small sets take smaller batches: as many updates for fewer images.
    n, batch_size = len(training), min(max(len(training) // 50, 32), 128)
    if epochs is None:
        epochs = max(EPOCHS, min(LEAST_STEPS * batch_size / n, MOST_EPOCHS))
    if not epochs > 0:
        raise ValueError(f"Expected a positive number of epochs; got {epochs}.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ResidualClassifier(data.image_shape, data.num_classes, width).float()
    fit_classifier(
        network,
        training.images,
        training.labels,
        steps=math.ceil(epochs * n / batch_size),
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    names = tuple(data.class_names)
    blank = Judge(
        network.eval(),
        names,
        data.content_hash("train"),
        seed,
        epochs,
        accuracy=0.0,
        recalls={},
        counts=training.class_counts,
        validation_counts=validation.class_counts,
    )
    right = (blank.embed(validation.images).probabilities.argmax(1).numpy() == validation.labels).astype(float)
    of_class = [right[validation.labels == k] for k in range(len(names))]
    recalls = {name: float(part.mean()) if len(part) else None for name, part in zip(names, of_class, strict=True)}
    return replace(blank, accuracy=float(right.mean()), recalls=recalls)


def load_judge(
    data: LabelledImages,
    *,
    cache: str | Path | None = None,
    seed: int = 0,
    epochs: float | None = None,
    width: int = 32,
    progress: bool = False,
) -> Judge:
    """The judge of these images: from the cache if these very images have had one, else trained and kept there.

    Class names are those of `data`: the same images under other names share a judge.

    Args:
        data: as for :func:`train_judge`.
        cache: folder of judges; by default the environment variable CONDGEN_CACHE, else ~/.cache/condgen.
        seed: as for :func:`train_judge`.
        epochs: as for :func:`train_judge`.
        width: as for :func:`train_judge`.
        progress: as for :func:`train_judge`.

    Raises:
        ValueError: as :func:`train_judge`.

    Warns:
        UserWarning: if a file in the cache is damaged (the judge is trained again) or the cache cannot be written.

    Example:
        >>> from condgen import load_smears
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = load_judge(load_smears(100, size=16), cache=folder, epochs=1, width=4)
        ...     again = load_judge(load_smears(100, size=16), cache=folder, epochs=1, width=4)  # not trained
        >>> images = torch.rand(5, 3, 16, 16)
        >>> torch.equal(first.embed(images).late, again.embed(images).late)
        True
    """
    check_data(data)
    folder = cache_folder(cache)
    settings = [NETWORK, FORMAT, data.content_hash("train"), data.content_hash("validation"), seed, epochs, width]
    path = folder / f"judge-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}.safetensors"
    try:
        judge = open_judge(path)
        check_judge(judge, data)
        return renamed(judge, tuple(data.class_names))
    except FileNotFoundError:
        pass
    except (ValueError, OSError) as error:
        warnings.warn(f"{error} Training another judge in its place.", stacklevel=2)
    judge = train_judge(data, seed=seed, epochs=epochs, width=width, progress=progress)
    try:
        judge.save(path)
    except OSError as error:
        warnings.warn(
            f"The judge could not be kept in {folder} ({error}) and will be trained again next time. "
            "Name a folder that can be written to: cache=, or the environment variable CONDGEN_CACHE.",
            stacklevel=2,
        )
    return judge


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where judges are kept: `cache`, else the environment variable CONDGEN_CACHE, else ~/.cache/condgen.

    Example:
        >>> cache_folder("judges")
        PosixPath('judges')
    """
    return Path(cache or os.environ.get("CONDGEN_CACHE") or "~/.cache/condgen").expanduser()


def open_judge(path: str | Path) -> Judge:
    """The judge in a file that :meth:`Judge.save` wrote. Nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, of a newer format, or no judge.

    Example:
        >>> from condgen import load_smears
        >>> import tempfile
        >>> judge = train_judge(load_smears(100, size=16), epochs=1, width=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     open_judge(judge.save(Path(folder) / "mine.safetensors")).accuracy == judge.accuracy
        True
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"No judge at {path}: expected a file that Judge.save wrote. Check the path.")
    try:
        with safe_open(path, "pt") as file:
            config = read_config(file.metadata())
            with torch.device("meta"):
                network = ResidualClassifier(**config["arguments"])
            expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if found != expected:
                raise ValueError("its weights do not fit its description")
            # Copies: the file's tensors start anywhere in memory, and sums may then differ in a bit.
            weights = {name: file.get_tensor(name).clone() for name in expected}
        if weights_hash(weights) != config["sha256"]:
            raise ValueError("its weights are not those it was written with")
        network.load_state_dict(weights, assign=True)
        names = tuple(config["class_names"])
        return Judge(
            network.eval(),
            names,
            *(config[key] for key in ("fingerprint", "seed", "epochs", "accuracy")),
            *(dict(zip(names, config[key], strict=True)) for key in ("recalls", "counts", "validation_counts")),
        )
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"No judge can be read from {path}: {reason}. Delete it, or name another file.") from error


def read_config(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The description in the header of a judge's file."""
    if not metadata or HEADER not in metadata:
        raise ValueError("it is not a file that Judge.save wrote")
    config = json.loads(metadata[HEADER])
    if not 0 <= config["accuracy"] <= 1:
        raise ValueError(f"its accuracy is {config['accuracy']}")
    if config["format"] > FORMAT:
        raise ValueError(f"it has format {config['format']}, and this condgen reads up to {FORMAT} (upgrade condgen)")
    if len(config["class_names"]) != config["arguments"]["num_classes"]:
        raise ValueError("its classes are not as many as its network's")
    return config


def check_judge(judge: Judge, data: LabelledImages) -> None:
    """Raise unless the judge was trained on the training images of `data`.

    Raises:
        ValueError: if shape, number of classes or the images themselves differ.

    Example:
        >>> from condgen import load_smears
        >>> judge = train_judge(load_smears(100, size=16), epochs=1, width=4)
        >>> check_judge(judge, load_smears(100, size=16, seed=1))
        Traceback (most recent call last):
            ...
        ValueError: Expected a judge trained on the training images of 'smears'; this one was trained on others...
    """
    if judge.image_shape != data.image_shape:
        raise ValueError(
            f"Expected a judge of images of {data.image_shape}, as {data.name!r} has; this one was trained on "
            f"{judge.image_shape}. Leave the judge out to train one."
        )
    if len(judge.class_names) != data.num_classes:
        raise ValueError(
            f"Expected a judge of {data.num_classes} classes, as {data.name!r} has; this one knows "
            f"{len(judge.class_names)}. Leave the judge out to train one."
        )
    if judge.fingerprint != (fingerprint := data.content_hash("train")):
        raise ValueError(
            f"Expected a judge trained on the training images of {data.name!r}; this one was trained on others "
            f"({judge.fingerprint[:8]}…, not {fingerprint[:8]}…). Leave the judge out to train one, or pass the images "
            "it was trained on."
        )


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


def check_data(data: LabelledImages) -> None:
    """Raise unless a judge can be trained on these images."""
    if data.kind != "class":
        raise ValueError(
            f"Expected one class label per image; {data.name!r} has {data.kind} labels. A judge needs classes: pass "
            "data.with_labels(...) with one."
        )
    missing = [name for name in ("train", "validation") if name not in data.splits]
    if missing or not len(data.train) or not len(data.validation):
        raise ValueError(
            f"Expected images to train a judge on and others to validate it; {data.name!r} lacks "
            f"{' and '.join(missing) or 'images in one of them'}. Split it into train, validation and test (.split())."
        )
    if data.num_classes < 2:
        raise ValueError(f"Expected two classes or more; {data.name!r} has {data.num_classes}. Nothing to tell apart.")
    empty = [name for name, count in data.train.class_counts.items() if not count]
    if empty:
        raise ValueError(
            f"Expected training images of every class; {data.name!r} has none of {', '.join(empty)}. Leave these "
            "classes out, or split the images again."
        )


def renamed(judge: Judge, names: tuple[str, ...]) -> Judge:
    """The judge with other class names, in the order of its own."""
    tables = {
        key: dict(zip(names, getattr(judge, key).values(), strict=True))
        for key in ("recalls", "counts", "validation_counts")
    }
    return replace(judge, class_names=names, **tables)


def listed(figures: Mapping[str, object], most: int = 8) -> str:
    """Names with their figures as a phrase, the first few of many.

    Example:
        >>> listed({"a": 1, "b": 2, "c": 3}), listed({"a": 1, "b": 2, "c": 3}, most=1)
        ('a (1), b (2) and c (3)', 'a (1) and 2 more')
    """
    parts = [f"{name} ({figure})" for name, figure in figures.items()]
    parts = [*parts[:most], f"{len(parts) - most} more"] if len(parts) > most else parts
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
