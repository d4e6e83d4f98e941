"""Network: the small residual network that looks at images, for judges and for what classifiers learn from images."""

__all__ = ["Embedded", "ResidualClassifier", "network_features"]

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from condgen.data.batches import image_tensor
from condgen.nn.layers import SMALLEST_IMAGE
from condgen.nn.parts import Part, evaluating

COMFORTABLE = 32  # pixels along a side that the stages see, about


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
        """Feature maps through both convolutions, added to the maps that came in."""
        return F.relu(self.around(h) + self.inner(h))


def stem_stride(height: int, width: int) -> int:
    """The stride that brings images down to about 32 pixels, and none below 8.

    Example:
        >>> [stem_stride(size, size) for size in (8, 28, 64, 128, 224)], stem_stride(8, 200)
        ([1, 1, 2, 4, 7], 1)
    """
    return max(1, min(round(math.sqrt(height * width) / COMFORTABLE), min(height, width) // SMALLEST_IMAGE))


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
    """Raise unless a network returned one finite row of floats for each of n images."""
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
    """Batches of images as floats in [0, 1], in order; for no images one batch that is empty."""
    for start in range(0, max(len(images), 1), batch_size):
        yield image_tensor(images[start : start + batch_size])
