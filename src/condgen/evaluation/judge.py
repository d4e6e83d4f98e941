"""Judge: a small residual classifier, trained on the real images at hand, whose features images are measured in.

Features of ImageNet say little about cells, and their network has to be downloaded. A classifier trained on the
real training split knows what tells the classes apart; its late features compare what images show, its early ones
texture and sharpness. The judge is a function of the images, the settings and a seed, and is kept by the content of
the images, so that two evaluations of one data set share it.
"""

__all__ = ["Features", "Judge", "cache_folder", "check_judge", "load_judge", "open_judge", "train_judge"]

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.data.images import LabelledImages
from condgen.evaluation.classifier import NETWORK, ResidualClassifier, check_data, fit_classifier, in_batches
from condgen.evaluation.records import listed
from condgen.io.archives import read_archive, write_archive
from condgen.io.places import SHIPPED
from condgen.io.progress import working
from condgen.nn.parts import evaluating
from condgen.training.checkpoints import Checkpoints

FORMAT = 2  # of the file
SHIPPED_JUDGES = SHIPPED / "judges"  # that come with the package, one file per data set
TRUSTED = 0.95  # a shipped judge must reach this share of its own accuracy on the validation images at hand
EPOCHS, LEAST_STEPS, MOST_EPOCHS = 12, 600, 200  # of a judge, unless told
TABLES = ("recalls", "counts", "validation_counts")  # in the order of the classes
FEW_LOOKED_AT = 512  # validation images that tell whether a shipped judge knows them
WEAK_ACCURACY, WEAK_RECALL, FEW_VALIDATION, FEW_TRAINING = 0.8, 0.5, 20, 50


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

        def of(figures: Mapping[str, object]) -> str:
            return listed([f"{name} ({figure})" for name, figure in figures.items()], most=8)

        sentences = []
        if self.accuracy < WEAK_ACCURACY:
            sentences.append(
                f"The judge recognises only {self.accuracy:.0%} of real validation images: what it says is rough."
            )
        if unknown:
            sentences.append(
                f"It recognises fewer than half of the real images of {of(unknown)}: do not trust it there."
            )
        if few:
            sentences.append(f"It learnt from fewer than {FEW_TRAINING} training images of {of(few)}.")
        if unsure:
            sentences.append(
                f"Fewer than {FEW_VALIDATION} validation images of {of(unsure)}: how well it knows them is uncertain."
            )
        return sentences

    def save(self, path: str | Path) -> Path:
        """Write the judge to one safetensors file, whole or not at all; its folder is made where it is missing.

        Returns:
            The path, for :func:`open_judge`.

        Raises:
            OSError: if the file cannot be written.
        """
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "network"}
        arguments = {**self.network.arguments, "image_shape": list(self.image_shape)}
        # Tables in the order of the classes.
        tables = {name: list(value.values()) for name, value in kept.items() if isinstance(value, Mapping)}
        names = [str(name) for name in self.class_names]
        about = {"format": FORMAT, "arguments": arguments, **kept, **tables, "class_names": names}
        return write_archive(path, "judge", about, self.network.state_dict())

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__} of {len(self.class_names)} classes of {self.image_shape} images; accuracy on "
            f"validation images {self.accuracy:.1%}"
        )


def train_judge(
    data: LabelledImages,
    *,
    seed: int = 0,
    epochs: float | None = None,
    width: int = 32,
    progress: bool = False,
    states: Checkpoints | None = None,
) -> Judge:
    """A judge trained on the training split alone, its accuracy measured on the validation split.

    The same images, seed and settings give the same judge on one machine with one number of threads.

    Args:
        data: images with one class label each, and splits.
        seed: of weights, order and turns, in [0, 2**64).
        epochs: passes over the training images; by default 12, and more for small sets: about 600 steps, but no
            more than 200 passes.
        width: channels of the network's first stage.
        progress: tell how far it is.
        states: where the state of the training is kept every minute; from one that is there it goes on.

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
    steps = math.ceil(epochs * n / batch_size)
    with working("training the judge", steps, progress) as advance:
        fit_classifier(
            network,
            training.images,
            training.labels,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            on_step=advance,
            states=states,
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
    if (seed, epochs, width) == (0, None, 32) and (judge := shipped_judge(data)) is not None:
        return judge
    states = Checkpoints(path.with_suffix(""), keep=1)
    judge = train_judge(data, seed=seed, epochs=epochs, width=width, progress=progress, states=states)
    try:
        judge.save(path)
    except OSError as error:
        warnings.warn(
            f"The judge could not be kept in {folder} ({error}) and will be trained again next time. "
            "Name a folder that can be written to: cache=, or the environment variable CONDGEN_CACHE.",
            stacklevel=2,
        )
    states.clear()
    return judge


def shipped_judge(data: LabelledImages) -> Judge | None:
    """The judge that comes with condgen for these images, if one does.

    It is taken where class names and image shape are its own and it recognises the validation images as it should. Its
    training images may be others than those of `data`, where the same images were split in another way: then
    `judge.fingerprint` differs from that of the data.

    Args:
        data: images with one class label each, and splits.

    Example:
        >>> from condgen import load_smears
        >>> shipped_judge(load_smears(100, size=16)) is None
        True
    """
    for file in sorted(SHIPPED_JUDGES.glob("*.safetensors")):
        judge = open_judge(file)
        if judge.class_names != tuple(data.class_names) or judge.image_shape != data.image_shape:
            continue
        if judge.fingerprint == data.content_hash("train"):
            return judge
        some = data.validation.subset(slice(0, FEW_LOOKED_AT))
        right = judge.embed(some.images).probabilities.argmax(1).numpy() == some.labels
        if right.mean() >= TRUSTED * judge.accuracy:
            return judge
    return None


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
    about, weights = read_archive(path, "judge")
    try:
        if about["format"] > FORMAT:
            raise ValueError(
                f"it has format {about['format']}, and this condgen reads up to {FORMAT} (upgrade condgen)"
            )
        if not 0 <= about["accuracy"] <= 1:
            raise ValueError(f"its accuracy is {about['accuracy']}")
        names = tuple(about["class_names"])
        if len(names) != about["arguments"]["num_classes"]:
            raise ValueError("its classes are not as many as its network's")
        with torch.device("meta"):
            network = ResidualClassifier(**about["arguments"])
        network.load_state_dict(weights, assign=True)
        tables = {key: dict(zip(names, about[key], strict=True)) for key in TABLES}
        facts = (about[key] for key in ("fingerprint", "seed", "epochs", "accuracy"))
        return Judge(network.eval(), names, *facts, **tables)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"No judge can be read from {path}: {reason}. Delete it, or name another file.") from error


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


def renamed(judge: Judge, names: tuple[str, ...]) -> Judge:
    """The judge with other class names, in the order of its own."""
    tables = {key: dict(zip(names, getattr(judge, key).values(), strict=True)) for key in TABLES}
    return replace(judge, class_names=names, **tables)
