"""Grain: the fine random texture of real images, which no latent decides and decoders leave out."""

__all__ = ["Grain"]

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from condgen.nn.parts import Part

Images = Float[Tensor, "batch channels height width"]
Plane = Float[Tensor, "batch 1 height width"]
SLOW = (0.15, 0.25)  # cycles per pixel: what changes more slowly is no grain; from the second on all of it is
SIZE = 9  # height and width of the kernel, in pixels
AROUND = 5  # pixels a side of the places whose activity is measured
LEVELS = 10  # of activity at which the strength of grain is known


class Grain(Part):
    r"""Gaussian noise that is added to a drawn image, of the spectrum and the strength that decoded images lack.

    A latent holds what an image shows, not the finest texture of a cell nor the noise of camera and compression, and a
    decoder draws the same image for it every time. So the fine texture of its images is too weak. Grain is white noise
    under a small kernel, times a strength that depends on how much fine detail an image has at a place,

    .. math:: x = \text{decoded} + s(\text{activity}) \; (k * \varepsilon),

    so that a smooth background stays smooth. :meth:`estimate` finds both: the spectrum from what drawn images lack at
    every frequency above a quarter of a cycle per pixel, in every channel and between channels; the strength from what
    they lack at places of equal activity. As a mean over images their power is then that of real ones, all channels
    together: where drawn images have too much power in one mix of channels, the others get as much less.

    The log-likelihood of a model is not changed by its grain.

    Args:
        image_shape: (channels, height, width).
        size: height and width of the kernel, an odd number; smaller where images are.

    Attributes:
        kernel: (channels, channels, size, size), from white noise to grain of mean variance 1.
        activity: (levels,), the activities at which the strength is known, ascending; see :func:`activity`.
        strength: (levels,), standard deviation of the grain at these, in units of images in [0, 1], straight lines
            between; 0 until it is estimated.

    Raises:
        ValueError: for an even size.

    References:
        Film grain synthesis for AV1 video codec (Norkin & Birkbeck, 2018), https://doi.org/10.1109/DCC.2018.00008:
        there, too, grain is taken away before coding and drawn anew afterwards, as filtered noise with a piecewise
        linear strength.

    Example:
        >>> grain = Grain((1, 16, 16))
        >>> real = 0.5 + 0.1 * torch.randn(200, 1, 16, 16)
        >>> grain.estimate(real, torch.full_like(real, 0.5))
        >>> noise = torch.randn(200, *grain.noise_shape)
        >>> bool(grain(torch.full_like(real, 0.5), noise).std() > 0.08)
        True
    """

    kernel: Float[Tensor, "channels channels size size"]
    activity: Float[Tensor, " levels"]
    strength: Float[Tensor, " levels"]

    def __init__(self, image_shape: tuple[int, int, int], size: int = SIZE) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"Expected an odd size of a kernel; got {size}.")
        channels, height, width = self.image_shape = image_shape
        side = min(size, (min(height, width) - 1) // 2 * 2 + 1)
        self.register_buffer("kernel", torch.zeros(channels, channels, side, side))
        self.register_buffer("activity", torch.linspace(0, 1, LEVELS))
        self.register_buffer("strength", torch.zeros(LEVELS))

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """The shape of the white noise of one image, which is that of the image."""
        return self.image_shape

    def forward(self, x: Images, noise: Images) -> Images:
        """Add grain to images; the result is cut to [0, 1]."""
        filtered = F.conv2d(wrapped(noise, self.kernel.shape[-1] // 2), self.kernel)
        return (x + between(activity(x), self.activity, self.strength) * filtered).clamp(0, 1)

    @torch.no_grad()
    def estimate(self, real: Images, drawn: Float[Tensor, "_ channels height width"]) -> None:
        """Find the kernel and the strength that give drawn images the fine texture of real ones.

        At frequencies where drawn images have as much power as real ones, or more, there is no grain.

        Args:
            real: images in [0, 1].
            drawn: the same images as the decoder draws them, such as their reconstructions.

        Raises:
            ValueError: for fewer than two images, or others than those of the grain's shape.
        """
        if real.shape != drawn.shape or len(real) < 2 or tuple(real.shape[1:]) != tuple(self.image_shape):
            raise ValueError(
                f"Expected two images or more of {self.image_shape}, and as many drawn ones; got {tuple(real.shape)} "
                f"and {tuple(drawn.shape)}."
            )
        all_of_it, fast = spectrum(real), fine(real.shape[-2:]).to(real)
        lacking = (all_of_it - spectrum(drawn)) * fast
        values, vectors = torch.linalg.eigh(lacking.permute(2, 3, 0, 1))
        together, values = values.sum(-1, keepdim=True).clamp(min=0), values.clamp(min=0)
        values = values * (together / values.sum(-1, keepdim=True).clamp(min=1e-12))
        root = vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT
        whole = torch.fft.fftshift(torch.fft.ifft2(root.permute(2, 3, 0, 1)).real, dim=(2, 3))
        reach = self.kernel.shape[-1] // 2
        down, across = (slice(side // 2 - reach, side // 2 + reach + 1) for side in whole.shape[2:])
        kernel = whole[:, :, down, across]
        variance = power(kernel).mean()
        self.kernel.copy_(kernel / variance.clamp(min=1e-12).sqrt())
        # Where they lack it: seen through a filter that lets a frequency pass as far as it is lacking.
        share = values.sum(-1) / all_of_it.diagonal().sum(-1).clamp(min=1e-12)
        seen = [torch.fft.ifft2(torch.fft.fft2(x) * share.clamp(0, 1).sqrt()).real for x in (real, drawn)]
        missing = seen[0].square().mean(1) - seen[1].square().mean(1)
        busy = activity(drawn).flatten()
        parts = busy.argsort(stable=True).tensor_split(LEVELS)
        self.activity.copy_(torch.stack([busy[part].mean() for part in parts]))
        squares = torch.stack([missing.flatten()[part].mean() for part in parts]).clamp(min=0)
        self.strength.copy_((squares * variance / squares.mean().clamp(min=1e-12)).sqrt())


def activity(x: Images) -> Plane:
    """How much fine detail images have around each place: the standard deviation of what a mean of 3x3 pixels removes.

    Example:
        >>> flat = torch.full((1, 3, 8, 8), 0.5)
        >>> float(activity(flat).max()), bool(activity(flat + 0.1 * torch.randn(1, 3, 8, 8)).min() > 0.01)
        (0.0, True)
    """
    detail = x - around(x, 3)
    return around(detail.square().mean(1, keepdim=True), AROUND).sqrt()


def around(x: Images, side: int) -> Images:
    """Average images over a small square around every pixel; at the border, over the pixels that exist."""
    return F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)


def between(x: Tensor, places: Float[Tensor, " levels"], values: Float[Tensor, " levels"]) -> Tensor:
    """Interpolate linearly between known values; before the first place and after the last, the nearest one holds.

    Example:
        >>> between(torch.tensor([0.0, 1.5, 9.0]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0]))
        tensor([3., 4., 5.])
    """
    steps = values.diff() / places.diff().clamp(min=1e-12)
    found = values[0].expand(x.shape)
    for place, end, step in zip(places[:-1], places[1:], steps, strict=True):
        found = found + step * (F.relu(x - place) - F.relu(x - end))  # exporters to ONNX lose a clamp between tensors
    return found


def power(kernel: Float[Tensor, "channels channels height width"]) -> Float[Tensor, "channels 1 1 1"]:
    """The variance of each channel of white noise under a kernel."""
    return kernel.square().sum((1, 2, 3), keepdim=True)


def wrapped(x: Images, by: int) -> Float[Tensor, "batch channels height2 width2"]:
    """Pad images on every side with pixels of the opposite side, as if they repeated.

    Example:
        >>> wrapped(torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4), 1)[0, 0, 0].tolist()
        [3.0, 0.0, 1.0, 2.0, 3.0, 0.0]
    """
    if not by:
        return x
    x = torch.cat([x[..., -by:], x, x[..., :by]], -1)
    return torch.cat([x[..., -by:, :], x, x[..., :by, :]], -2)


def spectrum(x: Images) -> Float[Tensor, "channels channels height width"]:
    """Mean power of images at each frequency, for every pair of channels, averaged over mirrored directions.

    Example:
        >>> found = spectrum(torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
        >>> round(float(found.mean()), 1)
        1.0
    """
    waves = torch.fft.fft2(x - x.mean(0), norm="ortho")
    found = torch.einsum("nchw,ndhw->cdhw", waves, waves.conj()).real / len(x)
    for axis in (2, 3):
        found = (found + found.flip(axis).roll(1, axis)) / 2
    return (found + found.mT) / 2 if x.shape[2] == x.shape[3] else found


def fine(size: Sequence[int]) -> Float[Tensor, "height width"]:
    """What share of the power at each frequency is grain: none of slow changes, all of fast ones."""
    down, across = (torch.fft.fftfreq(side) for side in size)
    slow, fast = SLOW
    return ((torch.hypot(down[:, None], across) - slow) / (fast - slow)).clamp(0, 1)
