"""Grain: the fine random texture of real images, which no latent decides and decoders leave out."""

__all__ = ["Grain"]

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from condgen.nn.parts import Part

Images = Float[Tensor, "batch channels height width"]
SLOW = (0.15, 0.25)  # cycles per pixel: what changes more slowly is no grain; from the second on all of it is
SIZE = 9  # height and width of the kernel, in pixels


class Grain(Part):
    r"""Stationary Gaussian noise that is added to a drawn image, with the spectrum that the decoder's images lack.

    A latent holds what an image shows, not the noise of camera, film and compression, and a decoder draws the same
    image for it every time. So the fine texture of its images is too weak. Grain is white noise under a small kernel,
    which :meth:`estimate` finds: :math:`x = \text{decoded} + k * \varepsilon` then has the power of real images at
    every frequency above a quarter of a cycle per pixel, in every channel and between channels, as a mean over images.

    The log-likelihood of a model is not changed by its grain.

    Args:
        image_shape: (channels, height, width).
        size: height and width of the kernel, an odd number; smaller where images are.

    Attributes:
        kernel: (channels, channels, size, size), from white noise to grain, in units of images in [0, 1]; 0 until it
            is estimated.
        noise_shape: of the white noise of one image.

    Raises:
        ValueError: for an even size.

    References:
        Film grain synthesis for AV1 video codec (Norkin & Birkbeck, 2018), https://doi.org/10.1109/DCC.2018.00008:
        there, too, grain is taken away before coding and drawn anew, by parameters, afterwards.

    Example:
        >>> grain = Grain((1, 16, 16))
        >>> real = 0.5 + 0.1 * torch.randn(200, 1, 16, 16)
        >>> grain.estimate(real, torch.full_like(real, 0.5))
        >>> noise = torch.randn(200, *grain.noise_shape)
        >>> bool(grain(torch.full_like(real, 0.5), noise).std() > 0.08)
        True
    """

    kernel: Float[Tensor, "channels channels size size"]

    def __init__(self, image_shape: tuple[int, int, int], size: int = SIZE) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"Expected an odd size of a kernel; got {size}.")
        channels, height, width = self.image_shape = image_shape
        side = min(size, (min(height, width) - 1) // 2 * 2 + 1)
        self.register_buffer("kernel", torch.zeros(channels, channels, side, side))

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """That of the images."""
        return self.image_shape

    def forward(self, x: Images, noise: Images) -> Images:
        """Add grain to images; the result is cut to [0, 1]."""
        return (x + F.conv2d(wrapped(noise, self.kernel.shape[-1] // 2), self.kernel)).clamp(0, 1)

    @torch.no_grad()
    def estimate(self, real: Images, drawn: Images) -> None:
        """Find the kernel that gives drawn images the fine texture of real ones.

        Where drawn images have as much power as real ones, or more, there is no grain.

        Args:
            real: images in [0, 1].
            drawn: the same as the decoder draws them, such as reconstructions.
        """
        lacking = (spectrum(real) - spectrum(drawn)) * fine(real.shape[-2:]).to(real)
        values, vectors = torch.linalg.eigh(lacking.permute(2, 3, 0, 1))
        root = vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT
        whole = torch.fft.fftshift(torch.fft.ifft2(root.permute(2, 3, 0, 1)).real, dim=(2, 3))
        reach = self.kernel.shape[-1] // 2
        down, across = (slice(side // 2 - reach, side // 2 + reach + 1) for side in whole.shape[2:])
        kernel = whole[:, :, down, across]
        # What lies beyond the kernel's edge is power, too.
        kernel = kernel * (power(whole) / power(kernel).clamp(min=1e-12)).sqrt()
        self.kernel.copy_(kernel)


def power(kernel: Float[Tensor, "channels channels height width"]) -> Float[Tensor, "channels 1 1 1"]:
    """The variance of each channel of white noise under a kernel."""
    return kernel.square().sum((1, 2, 3), keepdim=True)


def wrapped(x: Images, by: int) -> Float[Tensor, "batch channels height2 width2"]:
    """Images continued by so many pixels on every side by their opposite side.

    Example:
        >>> wrapped(torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4), 1)[0, 0, 0].tolist()
        [3.0, 0.0, 1.0, 2.0, 3.0, 0.0]
    """
    if not by:
        return x
    x = torch.cat([x[..., -by:], x, x[..., :by]], -1)
    return torch.cat([x[..., -by:, :], x, x[..., :by, :]], -2)


def spectrum(x: Images) -> Float[Tensor, "channels channels height width"]:
    """Power of the channels of images, and between them, at each frequency, taken as equal for mirrored directions.

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
