"""How classifiers are trained, declared once; nothing here imports torch."""

__all__ = ["ClassifierTraining"]

import math
from dataclasses import dataclass

from condgen.training.settings import Checked, setting

EPOCHS, LEAST_STEPS, MOST_EPOCHS = 16, 1500, 200  # unless told


@dataclass(frozen=True)
class ClassifierTraining(Checked):
    """How a classifier is trained: AdamW under a one-cycle learning rate, for a fixed number of passes.

    Args:
        epochs: passes over the training images; by default 16, and for small sets as many as make 1,500 updates, up to
            200.
        steps: updates, instead of passes.
        batch_size: images an update; by default 128, and for small sets a fiftieth of them, but at least 32.
        learning_rate: the highest of the cycle.
        weight_decay: of AdamW.
        label_smoothing: share of the target that is spread over all classes.
        cutmix: share of the batches in which a rectangle of each image, and as much of its label, comes from another.
        balance: whether images of all classes are drawn equally often.
        symmetries: whether images are flipped and turned by quarters at random.
        width: channels of the network's first stage.
        seed: of the first weights, the order and all else that is random.

    References:
        Super-convergence: very fast training of neural networks using large learning rates (Smith & Topin, 2018),
        https://arxiv.org/abs/1708.07120

        CutMix: regularization strategy to train strong classifiers with localizable features (Yun et al., 2019),
        https://arxiv.org/abs/1905.04899

    Example:
        >>> ClassifierTraining().updates(11_959), ClassifierTraining(epochs=2).updates(12_800)
        ((1500, 128), (200, 128))
        >>> ClassifierTraining(cutmix=1.5)
        Traceback (most recent call last):
        ValueError: Expected cutmix from 0 to 1; got cutmix=1.5.
    """

    epochs: float | None = setting(None, 0, 10**6, above=True)
    steps: int | None = setting(None, 1, 10**9)
    batch_size: int | None = setting(None, 2, 10**6)
    learning_rate: float = setting(3e-3, 0, 10**3, above=True)
    weight_decay: float = setting(0.02, 0, 10**3)
    label_smoothing: float = setting(0.05, 0, 0.999)
    cutmix: float = setting(0.0, 0, 1)
    balance: bool = setting(False)
    symmetries: bool = setting(True)
    width: int = setting(16, 1, 10**4)
    seed: int = setting(0, 0, 2**64 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"Expected epochs or steps, not both; got epochs={self.epochs} and steps={self.steps}.")

    def updates(self, images: int) -> tuple[int, int]:
        """How many updates there are, and of how many images each, for so many training images."""
        batch = self.batch_size or min(max(images // 50, 32), 128)
        if self.steps is not None:
            return self.steps, batch
        epochs = self.epochs or min(max(EPOCHS, LEAST_STEPS * batch / images), MOST_EPOCHS)
        return math.ceil(round(epochs * images / batch, 6)), batch
