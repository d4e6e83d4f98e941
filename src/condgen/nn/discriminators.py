"""Discriminators: image and condition in, scores of how real it looks, and the features they were read from, out.

Contract: `discriminator(x, c) → (scores, features)`, with x (batch, channels, height, width) in [0, 1] or a little
beyond, c (batch, dim), scores of any shape with the batch first (higher: more real) and features, a tuple of maps, for
losses that match them. One that judges patches goes beside a
likelihood (:class:`condgen.losses.vaegan.VAEGANLoss`), one that judges whole images into a
:class:`condgen.models.cgan.ConditionalGAN`.
"""

__all__ = ["ConvDiscriminator", "ResNetDiscriminator"]

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from condgen.nn.parts import Part


class ConvDiscriminator(Part):
    r"""A few convolutions that judge patches: one score for each place of the last map, the condition by projection.

    .. math:: s_p(x, c) = w^\top h_p + (V c)^\top h_p

    with h the last map of features and p its places. The image goes in as its 2x2 pixels stacked. With all layers
    spectrally normalised no score can change faster than the image does: safe, and too slow to tell the finest texture
    of larger images, whose loss moves few grey levels.

    Args:
        image_shape: (channels, height, width), from 8x8 up.
        condition_dim: width of c; 0: no projection.
        widths: channels of the convolutions, the first at half the image's size, the second halving it again, further
            ones at that size.
        slope: of the leaky rectifiers.
        spectral: normalise all layers by their spectral norm.

    Raises:
        ValueError: for an image smaller than 8x8, or fewer than two widths.

    References:
        cGANs with projection discriminator (Miyato & Koyama, 2018), https://arxiv.org/abs/1802.05637; spectral
        normalization for generative adversarial networks (Miyato et al., 2018), https://arxiv.org/abs/1802.05957;
        scores of patches: Image-to-image translation with conditional adversarial networks (Isola et al., 2017),
        https://arxiv.org/abs/1611.07004

    Example:
        >>> import torch
        >>> discriminator = ConvDiscriminator((3, 28, 28), condition_dim=8)
        >>> scores, features = discriminator(torch.zeros(2, 3, 28, 28), torch.eye(8)[:2])
        >>> scores.shape, [tuple(f.shape[1:]) for f in features]
        (torch.Size([2, 7, 7]), [(48, 14, 14), (96, 7, 7), (96, 7, 7)])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        condition_dim: int,
        widths: Sequence[int] = (48, 96, 96),
        slope: float = 0.2,
        spectral: bool = True,
    ) -> None:
        super().__init__()
        if min(image_shape[1:]) < 8 or len(widths) < 2:
            raise ValueError(f"Expected images of at least 8x8 and two widths or more; got {image_shape} and {widths}.")
        self.slope = slope
        normed = spectral_norm if spectral else nn.Identity()
        channels = (4 * image_shape[0], *widths)
        self.convs = nn.ModuleList(
            normed(nn.Conv2d(i, o, 3, stride=2 if k == 1 else 1, padding=1))
            for k, (i, o) in enumerate(pairwise(channels))
        )
        self.score = normed(nn.Conv2d(widths[-1], 1, 1))
        self.projection = normed(nn.Linear(condition_dim, widths[-1], bias=False)) if condition_dim else None

    def forward(
        self, x: Float[Tensor, "batch channels height width"], c: Float[Tensor, "batch dim"]
    ) -> tuple[Float[Tensor, "batch rows columns"], tuple[Tensor, ...]]:
        """(x, c) → scores of places, and every map of features."""
        h = F.pad(2 * x - 1, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate")
        h, features = F.pixel_unshuffle(h, 2), []
        for conv in self.convs:
            h = F.leaky_relu(conv(h), self.slope)
            features.append(h)
        scores = self.score(h)[:, 0]
        if self.projection is not None:
            scores = scores + (self.projection(c)[:, :, None, None] * h).sum(1)
        return scores, tuple(features)


class ResNetDiscriminator(Part):
    r"""Residual blocks on ever smaller maps: one score for each image, the condition by projection.

    .. math:: s(x, c) = w^\top h + (V c)^\top h

    with h the sum of the last map's features over its places. Two of them tell how much images of the batch differ that
    have the same condition, or one much like it, and how near the nearest of them is to each: by the first a decoder is
    caught that draws one image a class, by the second one that draws a few again and again.

    Args:
        image_shape: (channels, height, width), from 8x8 up.
        condition_dim: width of c; 0: no projection.
        widths: channels of each map, the first at half the image's size, each further one halved again.
        spectral: normalise all layers by their spectral norm, so that no score changes faster than the image does.
        groups: images of like conditions that are compared with each other; 0: none.
        slope: of the leaky rectifiers.

    Raises:
        ValueError: for an image smaller than 8x8, or no widths.

    References:
        cGANs with projection discriminator (Miyato & Koyama, 2018), https://arxiv.org/abs/1802.05637; spectral
        normalization for generative adversarial networks (Miyato et al., 2018), https://arxiv.org/abs/1802.05957

    Example:
        >>> import torch
        >>> discriminator = ResNetDiscriminator((3, 28, 28), condition_dim=8, widths=(8, 16, 16))
        >>> scores, features = discriminator(torch.zeros(2, 3, 28, 28), torch.eye(8)[:2])
        >>> scores.shape, [tuple(f.shape[1:]) for f in features]
        (torch.Size([2]), [(8, 14, 14), (16, 7, 7), (16, 4, 4)])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        condition_dim: int,
        widths: Sequence[int] = (32, 64, 128),
        spectral: bool = True,
        groups: int = 8,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        if min(image_shape[1:]) < 8 or not widths:
            raise ValueError(f"Expected images of at least 8x8 and a width or more; got {image_shape} and {widths}.")
        self.slope = slope
        normed = spectral_norm if spectral else nn.Identity()
        self.first = normed(nn.Conv2d(4 * image_shape[0], widths[0], 3, padding=1))
        pairs = [(widths[0], widths[0]), *pairwise(widths)]
        strides = [1, *[2] * (len(widths) - 1)]
        both = list(zip(pairs, strides, strict=True))
        self.inner = nn.ModuleList(normed(nn.Conv2d(i, o, 3, stride, 1)) for (i, o), stride in both)
        self.outer = nn.ModuleList(normed(nn.Conv2d(o, o, 3, padding=1)) for _, o in pairs)
        self.around = nn.ModuleList(normed(nn.Conv2d(i, o, 1, stride, bias=False)) for (i, o), stride in both)
        self.groups = groups
        self.last = normed(nn.Conv2d(widths[-1] + 2 * bool(groups), widths[-1], 3, padding=1))
        self.score = normed(nn.Linear(widths[-1], 1))
        self.projection = normed(nn.Linear(condition_dim, widths[-1], bias=False)) if condition_dim else None

    def forward(
        self, x: Float[Tensor, "batch channels height width"], c: Float[Tensor, "batch dim"]
    ) -> tuple[Float[Tensor, " batch"], tuple[Tensor, ...]]:
        """(x, c) → one score an image, and the map of features after each block."""
        h = F.pad(2 * x - 1, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate")
        h, features = self.first(F.pixel_unshuffle(h, 2)), []
        for inner, outer, around in zip(self.inner, self.outer, self.around, strict=True):
            h = outer(self.active(inner(self.active(h)))) + around(h)
            features.append(h)
        h = self.last(self.active(torch.cat([h, minibatch_statistics(h, c, self.groups)], 1) if self.groups else h))
        pooled = self.active(h).sum((2, 3))
        scores = self.score(pooled)[:, 0]
        if self.projection is not None:
            scores = scores + (self.projection(c) * pooled).sum(1)
        return scores, tuple(features)

    def active(self, h: Tensor) -> Tensor:
        """Leaky rectified."""
        return F.leaky_relu(h, self.slope)


def minibatch_statistics(
    h: Float[Tensor, "batch channels height width"], c: Float[Tensor, "batch dim"], group: int
) -> Float[Tensor, "batch 2 height width"]:
    """How alike the features of so many images of like conditions are, as two maps for each of them.

    The first is their standard deviation, a mean over features. Among images of any conditions it would be how much
    classes differ that tells, whatever is drawn of each. The second is the distance to the nearest of them, of which 1
    is that of two of them drawn at random. Of real images all are about as far from each other, since they differ in
    many ways; where some are much nearer than others, they differ in few, and come again when many are drawn.

    References:
        Progressive growing of GANs (Karras et al., 2018), section 3, https://arxiv.org/abs/1710.10196, for the first,
        of any conditions; minibatch discrimination learns from distances too: Improved techniques for training
        GANs (Salimans et al., 2016), section 3.2, https://arxiv.org/abs/1606.03498

    Example:
        >>> import torch
        >>> h, c = torch.tensor([[0.0], [4.0], [0.0], [6.0]])[:, :, None, None], torch.eye(2)[[0, 1, 0, 1]]
        >>> minibatch_statistics(h, c, 2)[:, 0].flatten().round(decimals=2).tolist()
        [0.0, 1.0, 0.0, 1.0]
        >>> line = torch.tensor([0.0, 0.1, 1.0, 2.0])[:, None, None, None]
        >>> [round(near, 1) for near in minibatch_statistics(line, torch.zeros(4, 1), 4)[:, 1].flatten().tolist()]
        [0.1, 0.1, 0.8, 0.9]
    """
    # A number of each condition puts equal ones side by side; should others have the same, no harm is done.
    order = (c.float() * torch.arange(1, c.shape[1] + 1, device=c.device).sqrt()).sum(1).argsort(stable=True)
    found = []
    for part in h[order].split(group):
        deviation = (part.var(0, unbiased=False) + 1e-8).sqrt().mean()
        apart = (part[:, None].float() - part.float()).flatten(2).square().mean(2) + 1e-8
        itself = torch.diag_embed(torch.full((len(part),), torch.inf, device=h.device))
        alone = torch.ones(1, device=h.device)
        nearest = ((apart + itself).amin(1) / apart.mean()).sqrt() if len(part) > 1 else alone
        found.append(torch.stack([deviation.expand(len(part)).float(), nearest], 1))
    return torch.cat(found)[order.argsort(), :, None, None].to(h.dtype).expand(-1, -1, *h.shape[2:])
