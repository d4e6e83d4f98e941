"""Judge: a small residual classifier, trained on the real images at hand, whose features images are measured in.

Features of ImageNet say little about cells, and their network has to be downloaded. A classifier trained on the
real training split knows what tells the classes apart; its late features compare what images show, its early ones
texture and sharpness. The judge is a function of the images, the settings and a seed, and is kept by the content of
the images, so that two evaluations of one data set share it.
"""

__all__ = ["cache_folder", "check_judge", "load_judge", "named_classifier", "train_judge"]

import hashlib
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

from condgen.data.images import LabelledImages
from condgen.evaluation.classifier import FORMAT, TABLES, Classifier, load_classifier, train_classifier
from condgen.evaluation.classifier_training import NETWORK, check_data
from condgen.evaluation.settings import ClassifierTraining
from condgen.io.places import SHIPPED
from condgen.training.checkpoints import Checkpoints

SHIPPED_JUDGES = SHIPPED / "judges"  # that come with the package, one file per data set
TRUSTED = 0.95  # a shipped judge must reach this share of its own accuracy on the validation images at hand
EPOCHS, LEAST_STEPS, MOST_EPOCHS = 12, 600, 200  # of a judge, unless told
FEW_LOOKED_AT = 512  # validation images that tell whether a shipped judge knows them


def train_judge(
    data: LabelledImages,
    *,
    seed: int = 0,
    epochs: float | None = None,
    width: int = 32,
    progress: bool = False,
    states: Checkpoints | None = None,
) -> Classifier:
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
        Classifier of 8 classes of (3, 16, 16) images; accuracy on validation images ...%
    """
    check_data(data)
    n, batch_size = len(data.train), ClassifierTraining().updates(len(data.train))[1]
    if epochs is None:
        epochs = max(EPOCHS, min(LEAST_STEPS * batch_size / n, MOST_EPOCHS))
    if not epochs > 0:
        raise ValueError(f"Expected a positive number of epochs; got {epochs}.")
    how = ClassifierTraining(epochs=epochs, width=width, seed=seed, label_smoothing=0.0)
    plain = replace(data, factors={})  # a judge learns the labels, whatever a teacher says of the images
    return train_classifier(plain, how, states=states, progress=progress, what="the judge")


def load_judge(
    data: LabelledImages,
    *,
    cache: str | Path | None = None,
    seed: int = 0,
    epochs: float | None = None,
    width: int = 32,
    progress: bool = False,
) -> Classifier:
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
        >>> images = load_smears(5, size=16).images
        >>> bool((first.embed(images).late == again.embed(images).late).all())
        True
    """
    check_data(data)
    folder = cache_folder(cache)
    settings = [NETWORK, FORMAT, data.content_hash("train"), data.content_hash("validation"), seed, epochs, width]
    path = folder / f"judge-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]}.safetensors"
    try:
        judge = load_classifier(path)
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


def shipped_judge(data: LabelledImages) -> Classifier | None:
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
        judge = load_classifier(file)
        if judge.class_names != tuple(data.class_names) or judge.image_shape != data.image_shape:
            continue
        if judge.fingerprint == data.content_hash("train"):
            return judge
        some = data.validation.subset(slice(0, FEW_LOOKED_AT))
        right = judge.embed(some.images).probabilities.argmax(1).numpy() == some.labels
        if right.mean() >= TRUSTED * (judge.accuracy or 1.0):
            return judge
    return None


def named_classifier(name: str | Path) -> Classifier:
    """The classifier in a file, or the judge that comes with condgen under a name, such as bloodmnist.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if the file is damaged, or no classifier.

    Example:
        >>> named_classifier("bloodmnist").image_shape
        (3, 28, 28)
    """
    shipped = SHIPPED_JUDGES / f"{name}.safetensors"
    if Path(name).name == str(name) and not Path(name).exists() and shipped.is_file():
        return load_classifier(shipped)
    return load_classifier(name)


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where judges are kept: `cache`, else the environment variable CONDGEN_CACHE, else ~/.cache/condgen.

    Example:
        >>> cache_folder("judges")
        PosixPath('judges')
    """
    return Path(cache or os.environ.get("CONDGEN_CACHE") or "~/.cache/condgen").expanduser()


def check_judge(judge: Classifier, data: LabelledImages) -> None:
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


def renamed(judge: Classifier, names: tuple[str, ...]) -> Classifier:
    """The judge with other class names, in the order of its own."""
    tables = {key: dict(zip(names, getattr(judge, key).values(), strict=True)) for key in TABLES}
    return replace(judge, class_names=names, **tables)
