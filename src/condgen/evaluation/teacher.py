"""Teacher: a classifier's probabilities as labels of images, for others to learn from."""

__all__ = ["Teacher", "label"]

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from condgen.evaluation.classifier import Classifier
from condgen.evaluation.records import listed
from condgen.io.archives import weights_hash


def label(
    images: np.ndarray | Tensor, classifier: Classifier, *, views: int = 4, batch_size: int = 256
) -> Float[np.ndarray, "n classes"]:
    """A teacher's soft labels: for each image the probability of every class, as a mean over symmetries.

    A classifier that learns from generated images and these, instead of the classes that the images were drawn as,
    learns what the teacher sees in them, mistakes of the generator included (knowledge distillation through generated
    images). The teacher has seen real images, and some of what it has learnt from them goes along.

    Args:
        images: uint8, or floats in [0, 1], of shape (n, channels, height, width).
        classifier: the teacher.
        views: of how many symmetries of each image to take the mean.
        batch_size: images at a time.

    Returns:
        float32 of shape (n, classes), in the order of the classifier's `class_names`; rows have the sum 1.

    Raises:
        ValueError: for images of another shape than the teacher's.

    References:
        Distilling the knowledge in a neural network (Hinton et al., 2015), https://arxiv.org/abs/1503.02531

        Synthetic image learning: preserving performance and preventing membership inference attacks (Lomurno &
        Matteucci, 2024), https://arxiv.org/abs/2407.15526

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(100, size=16)
        >>> label(cells.test.images, condgen.train_classifier(cells, epochs=1, width=4)).shape
        (10, 8)
    """
    return classifier.probabilities(images, views=views, batch_size=batch_size).numpy()


class Teacher:
    """A classifier that gives images probabilities in the order of somebody else's classes.

    Args:
        classifier: that knows the classes by name.
        class_names: the order that is wanted.
        views: see :func:`label`.

    Attributes:
        weights: SHA-256 of the classifier's weights, by which the labels say whose they are.

    Raises:
        ValueError: for a class that the classifier does not know.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(100, size=16)
        >>> classifier = condgen.train_classifier(cells, epochs=1, width=4)
        >>> teacher = Teacher(classifier, cells.class_names[::-1])
        >>> bool((teacher(cells.images)[:, ::-1] == label(cells.images, classifier)).all())
        True
    """

    def __init__(self, classifier: Classifier, class_names: Sequence[str], views: int = 4) -> None:
        if unknown := sorted(set(class_names) - set(classifier.class_names)):
            raise ValueError(
                f"Expected a teacher that knows {listed(list(class_names), most=8)}; this one does not know "
                f"{listed(unknown, most=8)}. Train it on images of the same classes."
            )
        if len(set(class_names)) < len(classifier.class_names):
            others = sorted(set(classifier.class_names) - set(class_names))
            raise ValueError(
                f"Expected a teacher of the same classes; this one knows {listed(others, most=8)}, too. Train it on "
                "images of the same classes."
            )
        self.classifier, self.views = classifier, views
        self.columns = [classifier.class_names.index(name) for name in class_names]
        self.weights = weights_hash(classifier.network.state_dict())

    def __call__(self, images: np.ndarray | Tensor) -> Float[np.ndarray, "n classes"]:
        """Probabilities of the classes, as :func:`label` gives them."""
        return np.ascontiguousarray(label(images, self.classifier, views=self.views)[:, self.columns])
