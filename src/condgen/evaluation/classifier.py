"""Classifier: a residual network trained on labelled images, its scores and its file.

One thing serves all who look at images: the judge of an evaluation, the classifiers of a usefulness study, the teacher
that labels generated images, and whoever wants to know what a set of images is worth to train on.
"""

__all__ = ["Classifier", "Features", "Scores", "load_classifier", "train_classifier"]

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from condgen.data.adapters import as_labelled
from condgen.data.augmentation import symmetries, turned
from condgen.data.images import LabelledImages
from condgen.data.names import PROBABILITIES
from condgen.evaluation.classifier_training import check_data, fit_classifier
from condgen.evaluation.network import ResidualClassifier, in_batches
from condgen.evaluation.records import listed
from condgen.evaluation.settings import ClassifierTraining
from condgen.io.archives import read_archive, write_archive
from condgen.io.progress import working
from condgen.nn.parts import evaluating
from condgen.training.checkpoints import Checkpoints
from condgen.training.fit import class_weights
from condgen.training.settings import changed

FORMAT = 3  # of the file
TABLES = ("recalls", "counts", "validation_counts")  # in the order of the classes
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


@dataclass(frozen=True)
class Scores:
    """What a classifier does on labelled images.

    Attributes:
        accuracy: share of the images that it recognises, in [0, 1].
        macro_f1: mean over the classes that have images of the harmonic mean of precision and recall, in [0, 1].
        recall: class → share of its images that are recognised; None for a class without images.
        precision: class → share of the images taken for it that are of it; None where none was taken for it.
        loss: cross-entropy, in nats per image.
        guesses: the class that it says of each image.

    Example:
        >>> print(Scores(0.75, 0.73, {"round": 0.5, "lobed": 1.0}, {"round": 1.0, "lobed": 0.67}, 0.5, (0, 1, 1, 1)))
        accuracy 75.0 %, macro-F1 73.0 %, loss 0.500 nats per image
        class  recall  precision
        round    50.0      100.0
        lobed   100.0       67.0
    """

    accuracy: float
    macro_f1: float
    recall: Mapping[str, float | None]
    precision: Mapping[str, float | None]
    loss: float
    guesses: tuple[int, ...] = field(repr=False)

    def __str__(self) -> str:
        width = max(len(name) for name in ("class", *self.recall))
        lines = [f"{'class':<{width}}  recall  precision"]
        for name in self.recall:
            shown = ("–" if s is None else f"{100 * s:.1f}" for s in (self.recall[name], self.precision[name]))
            recall, precision = shown
            lines.append(f"{name:<{width}}  {recall:>6}  {precision:>9}")
        whole = f"accuracy {100 * self.accuracy:.1f} %, macro-F1 {100 * self.macro_f1:.1f} %"
        return "\n".join([f"{whole}, loss {self.loss:.3f} nats per image", *lines])


@dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """A trained classifier and what it was trained on.

    Attributes:
        network: on the CPU.
        class_names: in the order of its logits.
        fingerprint: of the training images; see :meth:`condgen.LabelledImages.content_hash`.
        seed: of its weights and its training.
        epochs: passes over the training images.
        accuracy: share of validation images it recognises, in [0, 1]; None where there were none.
        recalls: the same per class; None for a class without validation images.
        counts: training images per class.
        validation_counts: validation images per class.
        training: the settings of its training, by name.
        validation_losses: step → cross-entropy on the validation images (nats per image) along its training.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(100, size=16)
        >>> classifier = train_classifier(cells, epochs=1, width=4)
        >>> classifier.probabilities(cells.test.images).shape, classifier.predict(cells.test.images).dtype
        (torch.Size([10, 8]), torch.int64)
    """

    network: ResidualClassifier
    class_names: tuple[str, ...]
    fingerprint: str
    seed: int
    epochs: float
    accuracy: float | None
    recalls: Mapping[str, float | None]
    counts: Mapping[str, int]
    validation_counts: Mapping[str, int]
    training: Mapping[str, Any] = field(default_factory=dict)
    validation_losses: Mapping[int, float] = field(default_factory=dict)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images it looks at."""
        return self.network.image_shape

    @property
    def still_falling(self) -> float | None:
        """By which share the validation loss fell over the last tenth of the training; None where nobody looked.

        Example:
            >>> import condgen
            >>> train_classifier(condgen.load_smears(100, size=16), epochs=1, width=4).still_falling > -1
            True
        """
        losses = list(self.validation_losses.values())
        return None if len(losses) < 2 else 1 - losses[-1] / losses[-2]

    def embed(self, images: np.ndarray | Tensor, batch_size: int = 256) -> Features:
        """Features and class probabilities of images, in evaluation mode and without gradients.

        Args:
            images: uint8, or floats in [0, 1], of shape (n, channels, height, width); an array or a tensor.
            batch_size: images at a time; features do not depend on it but for rounding.

        Raises:
            ValueError: if images have another shape, or floats leave [0, 1].
            TypeError: if images are neither uint8 nor floats.
        """
        self.check(images)
        with torch.no_grad(), evaluating(self.network):
            parts = [self.network.embed(x.float().cpu()) for x in in_batches(images, batch_size)]
        late, early, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return Features(late, early, logits.softmax(1))

    def probabilities(
        self, images: np.ndarray | Tensor, *, views: int = 1, batch_size: int = 256
    ) -> Float[Tensor, "n classes"]:
        """The probability of each class, as a mean over several symmetries of each image.

        Args:
            images: uint8, or floats in [0, 1], of shape (n, channels, height, width).
            views: of how many of the eight symmetries (four where images are not square) to take the mean; 1 looks
                at the images as they are.
            batch_size: images at a time.

        Returns:
            float32 on the CPU, of shape (n, classes).

        Raises:
            ValueError: for images of another shape, or another number of views.
        """
        self.check(images)
        most = symmetries(*self.image_shape[1:])
        if not 1 <= views <= most:
            raise ValueError(f"Expected views from 1 to {most}, the symmetries that there are; got {views}.")
        found = []
        with torch.no_grad(), evaluating(self.network):
            for x in in_batches(images, batch_size):
                x = x.float().cpu()
                seen = [self.network(turned(x, torch.full((len(x),), code))).softmax(1) for code in range(views)]
                found.append(torch.stack(seen).mean(0))
        return torch.cat(found)

    def predict(self, images: np.ndarray | Tensor) -> Int64[Tensor, " n"]:
        """The most probable class of each image, as a number."""
        return self.probabilities(images).argmax(1)

    def score(self, data: LabelledImages) -> Scores:
        """How well it recognises labelled images.

        Args:
            data: images with one class label each; their class names decide which class is which.

        Raises:
            ValueError: for images of another shape, labels that are no classes, or a class that it does not know.

        Example:
            >>> import condgen
            >>> cells = condgen.load_smears(100, size=16)
            >>> sorted(vars(train_classifier(cells, epochs=1, width=4).score(cells.test)))[:3]
            ['accuracy', 'guesses', 'loss']
        """
        if data.kind != "class":
            raise ValueError(f"Expected one class label an image; {data.name!r} has {data.kind} labels.")
        data = data.ordered(self.class_names)
        return scores_of(self.probabilities(data.images), data.labels, self.class_names)

    def check(self, images: np.ndarray | Tensor) -> None:
        """Raise unless images have the shape that it was trained on.

        Raises:
            ValueError: for another shape.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"Expected images of shape (n, {', '.join(map(str, self.image_shape))}), as the classifier was trained "
                f"on; got {tuple(images.shape)}. Resize them, or train a classifier on images of that size."
            )

    def weaknesses(self) -> list[str]:
        """Plain sentences about when not to trust it, such as few images of a class; none if all is well.

        Example:
            >>> from condgen import load_smears
            >>> classifier = train_classifier(load_smears(100, size=16), epochs=1, width=4)
            >>> print(classifier.weaknesses()[-1])
            Fewer than 20 validation images of basophil (0), ... and platelet (1): how well it knows them is uncertain.
        """
        unknown = {name: f"{r:.0%}" for name, r in self.recalls.items() if r is not None and r < WEAK_RECALL}
        few = {name: n for name, n in self.counts.items() if n < FEW_TRAINING}
        unsure = {name: n for name, n in self.validation_counts.items() if n < FEW_VALIDATION}

        def of(figures: Mapping[str, object]) -> str:
            return listed([f"{name} ({figure})" for name, figure in figures.items()], most=8)

        sentences = []
        if self.accuracy is not None and self.accuracy < WEAK_ACCURACY:
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
        """Write the classifier to one safetensors file, whole or not at all; its folder is made where it is missing.

        Returns:
            The path, for :func:`load_classifier`.

        Raises:
            OSError: if the file cannot be written.
        """
        kept = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "network"}
        arguments = {**self.network.arguments, "image_shape": list(self.image_shape)}
        # Tables in the order of the classes.
        tables = {name: list(getattr(self, name).values()) for name in TABLES}
        losses = [[step, loss] for step, loss in self.validation_losses.items()]
        names = [str(name) for name in self.class_names]
        about = {"format": FORMAT, "arguments": arguments, **kept, **tables, "class_names": names}
        return write_archive(path, "classifier", {**about, "validation_losses": losses}, self.network.state_dict())

    def __repr__(self) -> str:
        found = "not validated" if self.accuracy is None else f"accuracy on validation images {self.accuracy:.1%}"
        return f"{type(self).__name__} of {len(self.class_names)} classes of {self.image_shape} images; {found}"


def train_classifier(
    data: Any,
    training: ClassifierTraining | None = None,
    *,
    validation: LabelledImages | None = None,
    states: Checkpoints | None = None,
    progress: bool = False,
    what: str = "a classifier",
    **changes: Any,
) -> Classifier:
    """Train a small residual network to tell the classes of labelled images apart, until it has converged.

    Args:
        data: images with one class label each. Of a set with splits the `train` part is learnt, and the `validation`
            part tells how well. Where it holds a teacher's probabilities (`factors["probabilities"]`, as `condgen
            sample --teacher` writes them), those are learnt instead of the labels.
        training: how; by default as :class:`~condgen.evaluation.settings.ClassifierTraining` says.
        validation: other images to tell how well it does.
        states: where the state of the training is kept every minute; from one that is there it goes on.
        progress: tell how far it is.
        what: what to call it when telling how far it is.
        **changes: single settings of :class:`~condgen.evaluation.settings.ClassifierTraining`.

    Returns:
        The classifier. The same images and settings give the same one on one machine with one number of threads.

    Raises:
        ValueError: if labels are no classes, there is one class only, or a class has no training images.
        TypeError: for a setting that there is not.

    Example:
        >>> import condgen
        >>> train_classifier(condgen.load_smears(100, size=16), epochs=1, width=4)
        Classifier of 8 classes of (3, 16, 16) images; accuracy on validation images ...%
    """
    (how,) = changed(training or ClassifierTraining(), **changes)
    data = as_labelled(data)
    if validation is None and "validation" in data.splits:
        validation = data.validation
    images = data.train if data.splits else data
    check_data(images, needed=())
    held_out = None if validation is None or not len(validation) else validation.ordered(images.class_names)
    names = tuple(images.class_names)
    with torch.random.fork_rng():
        torch.manual_seed(how.seed)
        network = ResidualClassifier(images.image_shape, images.num_classes, how.width).float()
    steps, batch_size = how.updates(len(images))
    losses: dict[int, float] = {}

    def look(step: int, _: Any) -> None:
        if held_out is not None:
            losses[step] = blank.score(held_out).loss

    counts = images.class_counts
    known = dict.fromkeys(names, 0) if held_out is None else held_out.class_counts
    epochs, content = steps * batch_size / len(images), images.content_hash()
    blank = Classifier(network, names, content, how.seed, epochs, None, {}, counts, known, asdict(how))
    soft = images.factors.get(PROBABILITIES)
    targets = images.labels if soft is None else np.asarray(soft, np.float32)
    with working(f"training {what}", steps, progress) as advance:
        fit_classifier(
            network,
            images.images,
            targets,
            how,
            weights=class_weights(images) if how.balance else None,
            milestones=() if states is not None or held_out is None else sorted({max(1, steps * 9 // 10), steps}),
            on_milestone=look,
            on_step=advance,
            states=states,
        )
    network.eval()
    if held_out is None:
        return blank
    found = blank.score(held_out)
    return replace(blank, accuracy=found.accuracy, recalls=found.recall, validation_losses=losses)


def scores_of(
    probabilities: Float[Tensor, "n classes"], labels: Int64[np.ndarray, " n"], names: Sequence[str]
) -> Scores:
    """What probabilities say of labelled images."""
    truth, guesses = torch.as_tensor(labels), probabilities.argmax(1)
    confusion = torch.bincount(truth * len(names) + guesses, minlength=len(names) ** 2).view(len(names), -1).double()
    right, of_class, taken = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = (2 * right / (of_class + taken))[of_class > 0]

    def shares(of: Tensor) -> dict[str, float | None]:
        whole = zip(names, right.tolist(), of.tolist(), strict=True)
        return {name: part / count if count else None for name, part, count in whole}

    return Scores(
        accuracy=float(right.sum() / of_class.sum()),
        macro_f1=float(f1.mean()),
        recall=shares(of_class),
        precision=shares(taken),
        loss=float(F.nll_loss(probabilities.clamp(min=1e-12).log(), truth)),
        guesses=tuple(guesses.tolist()),
    )


def load_classifier(path: str | Path) -> Classifier:
    """The classifier in a file that :meth:`Classifier.save` wrote. Nothing in the file is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, of a newer format, or no classifier.

    Example:
        >>> from condgen import load_smears
        >>> import tempfile
        >>> classifier = train_classifier(load_smears(100, size=16), epochs=1, width=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_classifier(classifier.save(Path(folder) / "mine.safetensors")).accuracy == classifier.accuracy
        True
    """
    about, weights = read_archive(path, "classifier", "judge")
    try:
        if about["format"] > FORMAT:
            raise ValueError(
                f"it has format {about['format']}, and this condgen reads up to {FORMAT} (upgrade condgen)"
            )
        if about["accuracy"] is not None and not 0 <= about["accuracy"] <= 1:
            raise ValueError(f"its accuracy is {about['accuracy']}")
        names = tuple(about["class_names"])
        if len(names) != about["arguments"]["num_classes"]:
            raise ValueError("its classes are not as many as its network's")
        with torch.device("meta"):
            network = ResidualClassifier(**about["arguments"])
        network.load_state_dict(weights, assign=True)
        tables = {key: dict(zip(names, about[key], strict=True)) for key in TABLES}
        facts = (about[key] for key in ("fingerprint", "seed", "epochs", "accuracy"))
        later = {"training": about.get("training", {}), "validation_losses": dict(about.get("validation_losses", ()))}
        return Classifier(network.eval(), names, *facts, **tables, **later)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(
            f"No classifier can be read from {path}: {reason}. Delete it, or name another file."
        ) from error
