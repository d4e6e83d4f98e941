r"""Velocity networks: where a latent is on its way from noise, when and under which condition in, where it moves out.

Contract: `velocity(z, t, c, component, dropped) → dz/dt`, with z of the latent's shape, t (batch,) in [0, 1], c (batch,
dim), component (batch,) integers in [0, components) and dropped (batch,), 1 where condition and component are to be
ignored. They belong to :class:`condgen.distributions.priors.flow_matching.FlowMatching`.
"""

__all__ = ["MLPVelocity", "ResNetVelocity", "UNetVelocity"]

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from condgen.nn.layers import ChannelNorm, ResidualBlock, zero_initialised
from condgen.nn.parts import Part

FREQUENCIES = 32  # of time
FEW = 256  # places, up to which attention is trained step by step on a CPU


class ConditionEmbedding(nn.Module):
    """Time, condition and component as one vector.

    Args:
        condition_dim: width of c.
        components: how many there are; 0: none.
        width: of the vector.

    Example:
        >>> embed = ConditionEmbedding(3, 4, 16)
        >>> embed(torch.rand(2), torch.eye(3)[:2], torch.tensor([0, 3]), torch.tensor([0.0, 1.0])).shape
        torch.Size([2, 16])
    """

    def __init__(self, condition_dim: int, components: int, width: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(condition_dim, width, bias=False) if condition_dim else None
        self.component = nn.Embedding(components, width) if components else None
        self.dropped = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        t: Float[Tensor, " batch"],
        c: Float[Tensor, "batch dim"],
        component: Int64[Tensor, " batch"],
        dropped: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch width"]:
        """Of each latent."""
        frequencies = torch.exp(torch.linspace(0, math.log(1000), FREQUENCIES, device=t.device, dtype=t.dtype))
        angles = t[:, None] * frequencies
        about = torch.zeros_like(self.dropped)
        about = about + self.condition(c) if self.condition is not None else about
        about = about + self.component(component) if self.component is not None else about
        about = (1 - dropped[:, None]) * about + dropped[:, None] * self.dropped
        return F.silu(self.time(torch.cat([angles.cos(), angles.sin()], 1)) + about)


class ResNetVelocity(Part):
    """Residual blocks on a latent map, all at its size, with attention between its places after one and two thirds.

    Args:
        shape: of z, (channels, height, width).
        condition_dim: width of c.
        components: how many there are; 0: none.
        width: channels.
        depth: residual blocks.
        embedding: width of what modulates the blocks.
        heads: of the attention; 0: none.

    References:
        Diffusion models beat GANs on image synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233

    Example:
        >>> velocity = ResNetVelocity((4, 7, 7), condition_dim=8, components=16, width=16, depth=2)
        >>> z, t = torch.zeros(2, 4, 7, 7), torch.rand(2)
        >>> velocity(z, t, torch.eye(8)[:2], torch.tensor([0, 15]), torch.zeros(2)).shape
        torch.Size([2, 4, 7, 7])
    """

    def __init__(
        self,
        shape: Sequence[int],
        condition_dim: int,
        components: int = 0,
        width: int = 96,
        depth: int = 8,
        embedding: int = 128,
        heads: int = 4,
    ) -> None:
        super().__init__()
        channels, height, columns = shape
        self.embed = ConditionEmbedding(condition_dim, components, embedding)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(width, height, columns), std=0.02))
        self.blocks = nn.ModuleList(ResidualBlock(width, embedding) for _ in range(depth))
        after = sorted({depth // 3, 2 * depth // 3}) if heads else []
        self.attention = nn.ModuleDict({str(k): SelfAttention(width, heads) for k in after})
        self.norm = ChannelNorm(width)
        self.last = zero_initialised(nn.Conv2d(width, channels, 3, padding=1))

    def forward(
        self,
        z: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        c: Float[Tensor, "batch dim"],
        component: Int64[Tensor, " batch"],
        dropped: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels height width"]:
        """Dz/dt."""
        about = self.embed(t, c, component, dropped)
        h = self.first(z) + self.positions
        for k, block in enumerate(self.blocks):
            h = block(h, about)
            if str(k) in self.attention:
                h = self.attention[str(k)](h)
        return self.last(F.silu(self.norm(h)))


class UNetVelocity(Part):
    """Residual blocks on ever smaller maps and back, joined at every size, for images: pixels stacked at both ends.

    Args:
        shape: of images, (channels, height, width), of any size.
        condition_dim: width of c.
        components: how many there are; 0: none.
        patch: side of the squares of pixels that are stacked into channels before the first layer.
        widths: channels of each map, the largest map first.
        depth: residual blocks on each map on the way down, and again on the way up.
        embedding: width of what modulates the blocks.
        heads: of the attention on the smallest map; 0: none.

    Raises:
        ValueError: for a patch, depth or widths below 1.

    References:
        U-Net (Ronneberger et al., 2015), https://arxiv.org/abs/1505.04597; Diffusion models beat GANs on image
        synthesis (Dhariwal & Nichol, 2021), https://arxiv.org/abs/2105.05233

    Example:
        >>> velocity = UNetVelocity((3, 30, 27), condition_dim=8, widths=(8, 16), depth=1)
        >>> x, t, c = torch.zeros(2, 3, 30, 27), torch.rand(2), torch.eye(8)[:2]
        >>> velocity(x, t, c, torch.zeros(2, dtype=int), torch.zeros(2)).shape
        torch.Size([2, 3, 30, 27])
    """

    def __init__(
        self,
        shape: Sequence[int],
        condition_dim: int,
        components: int = 0,
        patch: int = 2,
        widths: Sequence[int] = (64, 128),
        depth: int = 2,
        embedding: int = 128,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if min(patch, depth, *widths) < 1:
            raise ValueError(f"Expected patch, depth and widths of 1 or more; got {patch}, {depth} and {widths}.")
        channels, height, columns = shape
        self.patch, self.multiple = patch, patch * 2 ** (len(widths) - 1)  # what height and width are padded to
        self.embed = ConditionEmbedding(condition_dim, components, embedding)
        self.first = nn.Conv2d(channels * patch**2, widths[0], 3, padding=1)

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(width, embedding) for _ in range(depth))

        self.down = nn.ModuleList(map(blocks, widths))
        self.smaller = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in pairwise(widths))
        rows, places = (-(-size // self.multiple) for size in (height, columns))
        self.positions = nn.Parameter(0.02 * torch.randn(widths[-1], rows, places))
        self.attention = SelfAttention(widths[-1], heads) if heads else nn.Identity()
        self.larger = nn.ModuleList(nn.Conv2d(o, 4 * i, 3, padding=1) for i, o in pairwise(widths))
        self.joined = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths[:-1])
        self.up = nn.ModuleList(map(blocks, widths))
        self.norm = ChannelNorm(widths[0])
        self.last = zero_initialised(nn.Conv2d(widths[0], channels * patch**2, 3, padding=1))

    def forward(
        self,
        z: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        c: Float[Tensor, "batch dim"],
        component: Int64[Tensor, " batch"],
        dropped: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch channels height width"]:
        """Dz/dt."""
        about, (height, width) = self.embed(t, c, component, dropped), z.shape[2:]
        padded = F.pad(z, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        h, passed = self.first(F.pixel_unshuffle(padded, self.patch)), []
        for k, blocks in enumerate(self.down):
            h = self.smaller[k - 1](h) if k else h
            for block in blocks:  # type: ignore[union-attr]
                h = block(h, about)
            passed.append(h)
        h = self.attention(h + self.positions)
        for k in reversed(range(len(self.up))):
            if k < len(self.larger):
                h = self.joined[k](torch.cat([F.pixel_shuffle(self.larger[k](h), 2), passed[k]], 1))
            for block in self.up[k]:  # type: ignore[union-attr]
                h = block(h, about)
        drawn = F.pixel_shuffle(self.last(F.silu(self.norm(h))), self.patch)
        return drawn[:, :, :height, :width]


class SelfAttention(nn.Module):
    """Every place of a map looks at every other, around which the input goes; it starts as the identity.

    Example:
        >>> h = torch.randn(2, 16, 7, 7)
        >>> torch.equal(SelfAttention(16, 4)(h), h)
        True
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"Expected heads that divide the {channels} channels of the attention; got {heads} heads.")
        self.heads, self.norm = heads, ChannelNorm(channels)
        self.inner, self.outer = nn.Linear(channels, 3 * channels), zero_initialised(nn.Linear(channels, channels))

    def forward(self, h: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Feature map → feature map."""
        places = self.norm(h).flatten(2).transpose(1, 2)
        q, k, v = self.inner(places).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = attended(q, k, v).transpose(1, 2).flatten(2)
        return h + self.outer(seen).transpose(1, 2).unflatten(2, h.shape[2:])


def attended(
    q: Float[Tensor, "batch heads places width"],
    k: Float[Tensor, "batch heads places width"],
    v: Float[Tensor, "batch heads places width"],
) -> Float[Tensor, "batch heads places width"]:
    """Scaled dot-product attention. Among few places, PyTorch's own is fast on a CPU but for its backward pass.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 49, 24)
        >>> torch.allclose(attended(q, k, v), attended(q.requires_grad_(), k, v), atol=1e-5)
        True
    """
    if q.requires_grad and not q.is_cuda and q.shape[-2] <= FEW:
        return (q / math.sqrt(q.shape[-1]) @ k.transpose(-1, -2)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class MLPVelocity(Part):
    """Residual layers on a vector of latents.

    Args:
        latent: number of latents.
        condition_dim: width of c.
        components: how many there are; 0: none.
        width: of each layer.
        depth: layers.

    Example:
        >>> velocity = MLPVelocity(2, condition_dim=3, width=16, depth=2)
        >>> z, t, c = torch.zeros(5, 2), torch.rand(5), torch.zeros(5, 3)
        >>> velocity(z, t, c, torch.zeros(5, dtype=int), torch.zeros(5)).shape
        torch.Size([5, 2])
    """

    def __init__(self, latent: int, condition_dim: int, components: int = 0, width: int = 256, depth: int = 4) -> None:
        super().__init__()
        self.embed = ConditionEmbedding(condition_dim, components, width)
        self.first = nn.Linear(latent, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.last = zero_initialised(nn.Linear(width, latent))

    def forward(
        self,
        z: Float[Tensor, "batch latent"],
        t: Float[Tensor, " batch"],
        c: Float[Tensor, "batch dim"],
        component: Int64[Tensor, " batch"],
        dropped: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch latent"]:
        """Dz/dt."""
        about, h = self.embed(t, c, component, dropped), self.first(z)
        for layer in self.layers:
            h = h + layer(h + about)
        return self.last(h)
