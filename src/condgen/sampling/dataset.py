"""Generated images as a data set of PyTorch, drawn when they are asked for."""

__all__ = ["GeneratedImages", "as_dataset"]

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from condgen.data.images import LabelledImages
from condgen.io.pictures import to_uint8
from condgen.models.classes import class_names
from condgen.models.generator import BLOCK

KEPT = 2**28  # bytes of images that stay in memory


class GeneratedImages(Dataset):
    """Images that a model draws when they are asked for, as pairs of an image and its class.

    Image k is what `model.sample(labels, seed=seed)` gives at place k, bit for bit. Images are drawn in blocks of 64,
    and the last 256 MB of them stay in memory: a set that fits, or one that is read in order, is drawn once.

    Args:
        model: of any family, with class labels.
        labels: class of each image, as numbers or names.
        seed: of the samples.
        temperature: scales the noise.

    Attributes:
        labels: int64 on the CPU.
        classes: name of each class, as torchvision's data sets have them.
        epoch: which of the many sets of images this is; see :meth:`set_epoch`.

    Example:
        >>> import condgen
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2)
        >>> cells = GeneratedImages(model, [0, 1, 1], seed=3)
        >>> image, label = cells[2]
        >>> len(cells), label, torch.equal(image, model.sample([0, 1, 1], seed=3)[2])
        (3, 1, True)
    """

    def __init__(self, model: Any, labels: Any, *, seed: int = 0, temperature: float = 1.0) -> None:
        self.model, self.seed, self.temperature, self.epoch = model, seed, temperature, 0
        self.labels = model.labels(labels).cpu()
        if self.labels.ndim != 1 or self.labels.is_floating_point():
            raise ValueError(f"Expected one class for each image; got labels of shape {tuple(self.labels.shape)}.")
        if not len(self.labels):
            raise ValueError("Expected at least one image; got none.")
        self.classes = class_names(model)
        self.blocks: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> tuple[Float[Tensor, "channels height width"], int]:
        if not -len(self) <= k < len(self):
            raise IndexError(f"Expected a number from 0 to {len(self) - 1}; got {k}.")
        k = int(k) % len(self)
        return self.block(k // BLOCK)[k % BLOCK].clone(), int(self.labels[k])

    def set_epoch(self, epoch: int) -> None:
        """Take other images of the same classes from now on: sample k + epoch * len(self) stands at place k.

        With a new number before each pass over the images a classifier never sees one twice. It is what
        `torch.utils.data.DistributedSampler` calls so.

        Args:
            epoch: 0 or more; 0 are the images to begin with.

        Raises:
            ValueError: for a negative number.
        """
        if epoch < 0:
            raise ValueError(f"Expected an epoch of 0 or more; got {epoch}.")
        self.epoch = epoch

    def block(self, number: int) -> Float[Tensor, "images channels height width"]:
        """Up to 64 images of this epoch that lie together, drawn unless they are still there."""
        key = (self.epoch, number)
        if key not in self.blocks:
            first = number * BLOCK
            labels = self.labels[first : first + BLOCK]
            start = self.epoch * len(self) + first
            drawn = self.model.sample(labels, seed=self.seed, start=start, temperature=self.temperature).cpu()
            self.blocks[key] = drawn
            while len(self.blocks) > max(1, KEPT // (BLOCK * drawn[0].nbytes)):
                self.blocks.popitem(last=False)
        self.blocks.move_to_end(key)
        return self.blocks[key]

    def labelled_images(self) -> LabelledImages:
        """All images of this epoch as grey levels in memory, to be trained on or written to a file.

        Example:
            >>> import condgen
            >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2)
            >>> as_dataset(model, per_class=2).labelled_images().class_counts
            {'class 0': 2, 'class 1': 2}
        """
        parts = [to_uint8(self.block(k)).numpy() for k in range(-(-len(self) // BLOCK))]
        return LabelledImages(np.concatenate(parts), self.labels.numpy(), self.classes, name="generated", kind="class")

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {len(self):,} images of {len(self.classes)} classes, seed {self.seed}"


def as_dataset(
    model: Any,
    per_class: int | Mapping[str, int] | Sequence[int] = 1000,
    *,
    seed: int = 0,
    temperature: float = 1.0,
) -> GeneratedImages:
    """A PyTorch data set of images that a model draws as they are read; each item is (image in [0, 1], class number).

    Args:
        model: of any family, with class labels.
        per_class: how many images of every class; or a number for each class, in order or by name.
        seed: of the samples.
        temperature: scales the noise; below 1 images are more typical and less varied.

    Returns:
        The set, class after class, drawn as it is read.

    Raises:
        ValueError: for a class that the model does not know, or no images.

    Example:
        >>> import condgen
        >>> from torch.utils.data import DataLoader
        >>> cells = as_dataset(condgen.conditional_vae((1, 8, 8), num_classes=2), per_class=100)
        >>> images, labels = next(iter(DataLoader(cells, batch_size=16, shuffle=True)))
        >>> images.shape, labels.dtype
        (torch.Size([16, 1, 8, 8]), torch.int64)
    """
    names = class_names(model)
    if isinstance(per_class, Mapping):
        if unknown := sorted(set(per_class) - set(names)):
            raise ValueError(f"Expected classes among {', '.join(names)}; got {', '.join(unknown)}.")
        counts = [per_class.get(name, 0) for name in names]
    else:
        counts = list(per_class) if isinstance(per_class, Sequence) else [int(per_class)] * len(names)
    if len(counts) != len(names) or min(counts) < 0:
        raise ValueError(f"Expected a number of 0 or more for each of {len(names)} classes; got {counts}.")
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return GeneratedImages(model, labels, seed=seed, temperature=temperature)
