"""Augmentations: images changed a little every time they are seen, each by numbers of its own.

Contract: `augmentation(x, seed, index, epoch) → x`, images in [0, 1] on their device. What happens to an image is a
function of (seed, epoch, image number) alone: it repeats, in any batch.
"""

__all__ = ["NUMBERS", "Augmentation", "symmetries", "turned"]

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from condgen.data.settings import AugmentationSettings
from condgen.random import Use, stream, uniform

Images = Float[Tensor, "batch channels height width"]
NUMBERS = 13  # of an image
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation(AugmentationSettings):
    """Flips, turns, shifts, colour, erasing, blur and sharpening, each up to a strength; 0 leaves it out.

    Its strengths are those of :class:`condgen.data.settings.AugmentationSettings`.

    References:
        The augmentations that a student report on BloodMNIST proposes (University of Osijek, 2024).

    Example:
        >>> x = torch.rand(4, 3, 8, 8)
        >>> augmentation = Augmentation(quarter_turns=True, colour=0.2)
        >>> whole = augmentation(x, seed=0, index=torch.arange(4), epoch=1)
        >>> torch.equal(whole[2:], augmentation(x[2:], seed=0, index=torch.arange(2, 4), epoch=1))
        True
    """

    def __call__(self, x: Images, seed: int, index: Int64[Tensor, " batch"], epoch: int) -> Images:
        """Change each image by the numbers of its own."""
        return self.apply(x, uniform(seed, index, stream(Use.AUGMENTATION, epoch), (NUMBERS,)).to(x.dtype))

    def apply(self, x: Images, u: Float[Tensor, "batch numbers"]) -> Images:
        """Change each image by these numbers in (0, 1); gradients pass through all but the choice of numbers."""
        if self.flips or self.quarter_turns:
            flips, turns = (u[:, 0] < 0.5) * self.flips, (u[:, 1] * symmetries(*x.shape[2:]) / 2) * self.quarter_turns
            x = turned(x, 2 * turns.long() + flips.long())
        if self.rotation or self.shift:
            # Fractions of a pixel blur, the finest detail most of all: a model would learn that, and a discriminator
            # would not see what is drawn there.
            far = self.shift * (2 * u[:, 3:5] - 1)
            shift = torch.stack([2 * (far[:, k] * x.shape[3 - k]).round() / x.shape[3 - k] for k in (0, 1)], 1)
            x = moved(x, math.radians(self.rotation) * (2 * u[:, 2] - 1), shift)
        if self.colour:
            x = coloured(x, 1 + self.colour * (2 * u[:, 5:8] - 1))
        if self.blur or self.sharpen:
            x = refocused(x, self.blur * u[:, 8] - self.sharpen * u[:, 9])
        if self.erasing:
            x = erased(x, self.erasing * u[:, 10], u[:, 11:13])
        return x


def turned(images: Images, codes: Int64[Tensor, " batch"]) -> Images:
    """Each image flipped and turned by its code: odd ones from left to right, then by code // 2 (half) turns.

    Codes 0 to 7 are the symmetries of a square, by quarter turns; 0 to 3 those of a rectangle, by half turns.

    Example:
        >>> image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(3, 1, 2, 2)
        >>> turned(image, torch.tensor([0, 1, 2])).flatten(1).tolist()
        [[1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 3.0], [2.0, 4.0, 1.0, 3.0]]
    """
    images = torch.where((codes % 2 == 1)[:, None, None, None], images.flip(3), images)
    square = images.shape[2] == images.shape[3]
    quarters, flipped = codes // 2 if square else codes // 2 * 2, images
    for count in (1, 2, 3) if square else (2,):
        images = torch.where((quarters == count)[:, None, None, None], flipped.rot90(count, (2, 3)), images)
    return images


def symmetries(height: int, width: int) -> int:
    """How many symmetries of an image :func:`turned` knows: 8 of a square, 4 of a rectangle.

    Example:
        >>> symmetries(28, 28), symmetries(28, 20)
        (8, 4)
    """
    return 8 if height == width else 4


def moved(x: Images, angle: Float[Tensor, " batch"], shift: Float[Tensor, "batch 2"]) -> Images:
    """Turned about the centre by an angle in radians and shifted, in units of half the image; edges are repeated."""
    cos, sin = angle.cos(), angle.sin()
    aspect = x.shape[2] / x.shape[3]
    rows = torch.stack([cos, -sin * aspect, shift[:, 0]], 1), torch.stack([sin / aspect, cos, shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def coloured(x: Images, factors: Float[Tensor, "batch 3"]) -> Images:
    """Brightness, contrast and saturation times a factor each, cut to [0, 1]."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    x = x * brightness
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + contrast * (x - mean)
    if x.shape[1] == 3:
        grey = sum(weight * x[:, k : k + 1] for k, weight in enumerate(LUMINANCE))
        x = grey + saturation * (x - grey)
    return x.clamp(0, 1)


def refocused(x: Images, amount: Float[Tensor, " batch"]) -> Images:
    """Mixed with a blurred copy: positive amounts blur, negative ones sharpen; cut to [0, 1]."""
    blurred = F.pad(x, (2, 2, 2, 2), mode="reflect")
    for _ in range(4):  # means of neighbours, four times: 1, 4, 6, 4, 1
        blurred = (blurred[:, :, 1:] + blurred[:, :, :-1]) / 2
        blurred = (blurred[..., 1:] + blurred[..., :-1]) / 2
    return (x + amount[:, None, None, None] * (blurred - x)).clamp(0, 1)


def erased(x: Images, side: Float[Tensor, " batch"], corner: Float[Tensor, "batch 2"]) -> Images:
    """A square of this side (a share of the image's) at a place between the edges, set to the image's mean colour."""
    spans = []
    for axis, size in ((2, x.shape[2]), (3, x.shape[3])):
        place = (torch.arange(size, device=x.device) + 0.5) / size
        low = (corner[:, axis - 2] * (1 - side))[:, None]
        spans.append((place >= low) & (place < low + side[:, None]))
    inside = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    return torch.where(inside, x.mean((2, 3), keepdim=True), x)
