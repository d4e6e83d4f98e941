"""Moment matching: draws are moved so that they have the mean and the covariance of what they stand for."""

__all__ = ["MomentMatched"]

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from condgen.nn.parts import Part

ENOUGH = 100  # latents, and draws, for every dimension, from which on the map between covariances is believed wholly
Latents = Float[Tensor, "_ *latent"]


class MomentMatched(Part, registered="priors.MomentMatched"):
    r"""A network that draws in one step, corrected: its ends have the mean and the covariance of the latents.

    A network that learns by squared error where a flow ends takes the mean of what it cannot tell apart, and a guided
    flow goes to what is typical. So its ends vary less than latents do. The affine map that carries one normal
    distribution to another along the shortest way mends both moments and keeps everything else,

    .. math:: T(z) = m + A (z - m_0), \qquad
              A = \Sigma_0^{-1/2} \left( \Sigma_0^{1/2} \Sigma \, \Sigma_0^{1/2} \right)^{1/2} \Sigma_0^{-1/2}

    from mean :math:`m_0` and covariance :math:`\Sigma_0` of the ends to those of the latents, all classes together, in
    standardised coordinates. Until :meth:`fit` it changes nothing.

    Args:
        network: a velocity network whose one step is corrected; see :mod:`condgen.nn.velocities`.
        latent: number of latents, or the shape of z.

    Attributes:
        centre: (latents,), the mean of the network's ends.
        target: (latents,), the mean that they get.
        matrix: (latents, latents), A.

    References:
        Computational optimal transport (Peyré & Cuturi, 2019), remark 2.31, https://arxiv.org/abs/1803.00567

    Example:
        >>> from condgen.nn.velocities import MLPVelocity
        >>> matched = MomentMatched(MLPVelocity(2, condition_dim=1), 2)
        >>> ends = torch.randn(500, 2)
        >>> matched.fit(ends, 3 + 2 * torch.randn(500, 2))
        >>> moved = matched.moved(ends)
        >>> bool((moved.mean(0) - 3).abs().max() < 0.5), bool((moved.std(0) - 2).abs().max() < 0.5)
        (True, True)
    """

    centre: Float[Tensor, " latents"]
    target: Float[Tensor, " latents"]
    matrix: Float[Tensor, "latents latents"]

    def __init__(self, network: nn.Module, latent: int | Sequence[int]) -> None:
        super().__init__()
        size = latent if isinstance(latent, int) else math.prod(latent)
        self.network: Any = network
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("target", torch.zeros(size))
        self.register_buffer("matrix", torch.eye(size))

    def forward(
        self,
        z: Float[Tensor, "batch *latent"],
        t: Float[Tensor, " batch"],
        c: Float[Tensor, "batch dim"],
        component: Int64[Tensor, " batch"],
        dropped: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch *latent"]:
        """The way from z to where the network's step ends, corrected."""
        return self.moved(z + self.network(z, t, c, component, dropped)) - z

    def moved(self, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *latent"]:
        """Apply the affine map to the network's draws, which gives them the mean and covariance of images' latents."""
        return ((z.flatten(1) - self.centre) @ self.matrix.mT + self.target).reshape(z.shape)

    @torch.no_grad()
    def fit(self, ends: Latents, latents: Latents) -> None:
        r"""Find the map by which the network's ends have the moments of latents.

        Covariances of few latents in many dimensions, and so the map between two of them, are mostly chance. So with n
        latents or draws, whichever are fewer, in d dimensions the map is :math:`(1 - w) s I + w A`, with
        :math:`w = n / (100 d)`, at most 1, and a stretch s of all alike, by which the sum of the variances is right.

        Args:
            ends: where the network ends, in standardised coordinates.
            latents: of the training images, in standardised coordinates.
        """
        (m0, own), (m, theirs) = moments(ends), moments(latents)
        trust = min(1.0, min(len(ends), len(latents)) / (ENOUGH * len(m)))
        alike = (theirs.trace() / own.trace()).sqrt() * torch.eye(len(m), dtype=m.dtype)
        self.centre.copy_(m0)
        self.target.copy_(m)
        self.matrix.copy_(torch.lerp(alike, between(own, theirs), trust))


def between(own: Float[Tensor, "n n"], theirs: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Find the symmetric matrix that carries one covariance to another along the shortest way.

    Example:
        >>> between(torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([9.0, 1.0])))
        tensor([[3.0000, 0.0000],
                [0.0000, 0.5000]])
    """
    back, there = power(own, -0.5), power(own, 0.5)
    return back @ power(there @ theirs @ there, 0.5) @ back


def moments(z: Latents) -> tuple[Float[Tensor, " latents"], Float[Tensor, "latents latents"]]:
    """Mean and covariance, in double precision; the covariance a little larger, so that it can be inverted."""
    rows = z.flatten(1).double()
    mean = rows.mean(0)
    covariance = (rows - mean).mT @ (rows - mean) / len(rows)
    return mean, covariance + 1e-4 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=rows.dtype)


def power(matrix: Float[Tensor, "n n"], exponent: float) -> Float[Tensor, "n n"]:
    """A power of a symmetric positive matrix.

    Example:
        >>> power(torch.tensor([[4.0, 0.0], [0.0, 9.0]]), 0.5)
        tensor([[2., 0.],
                [0., 3.]])
    """
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=1e-12) ** exponent) @ vectors.mT
