r"""Priors: the condition in, :math:`p(z \mid c)` and draws from it out.

Contract: `prior(c) → Distribution` over z; `draw(c, noise) → z`; `noise_shape`, the shape of one image's standard
normal noise. c is (batch, dim); a plain prior reads no more of it than the batch size. For latents of several levels
everything is a tuple, level by level.

A prior has two uses: the KL is taken against it while a model trains, and images are drawn from it. For the second a
*fitted* prior may take its place afterwards (`ConditionalVAE.sampler`, :func:`condgen.fit_prior`): it offers
`fit(z, c)`, or parameters to train. One that only draws needs no `prior(c)`. `choices`, where a prior has it, is how
many leading numbers of its noise choose, and are not scaled by a temperature.
"""

__all__ = ["Flow", "GaussianMixture", "LabelNormal", "Levels", "StandardNormal"]

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from condgen.parts import Part
from condgen.reparameterizers import Gaussian

PRINCIPAL = 24  # leading components in which clusters are looked for
LEAST_MEMBERS = 20  # images that a component of a mixture is fitted to, at least


class StandardNormal(Part):
    r"""The same for every label: :math:`p(z \mid c) = \mathcal N(0, I)`.

    Args:
        latent: number of latents, or the shape of z.

    Example:
        >>> prior = StandardNormal(128)
        >>> prior(torch.zeros(2, 8)).log_prob(torch.zeros(2, 128))  # -64 log(2 pi)
        tensor([-117.6241, -117.6241])
    """

    def __init__(self, latent: int | Sequence[int]) -> None:
        super().__init__()
        self.noise_shape = shape_of(latent)

    def forward(self, c: Float[Tensor, "batch dim"]) -> Distribution:
        """(batch, dim) → a distribution over z."""
        zeros = torch.zeros(len(c), *self.noise_shape, device=c.device, dtype=c.dtype)
        normal = Normal(zeros, torch.ones_like(zeros), validate_args=False)
        return Independent(normal, len(self.noise_shape), validate_args=False)

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch *latent"]:
        """The noise itself."""
        return noise


class LabelNormal(Part):
    r"""A Gaussian of its own for every condition.

    .. math:: p(z \mid c) = \mathcal N(\mu(c), \operatorname{diag} \sigma^2(c))

    Mean and log-variance are linear in c and start as the standard normal; on a map they are one per channel.

    Args:
        latent: number of latents, or the shape of z.
        condition_dim: width of c.

    References:
        Learning structured output representation using deep conditional generative models
        (Sohn, Lee & Yan, 2015), https://papers.nips.cc/paper/5775

    Example:
        >>> prior = LabelNormal(16, condition_dim=8)
        >>> prior.draw(torch.zeros(1, 8), torch.ones(1, 16)).sum()
        tensor(16., grad_fn=<SumBackward0>)
        >>> LabelNormal((4, 7, 7), condition_dim=8)(torch.zeros(1, 8)).event_shape
        torch.Size([4, 7, 7])
    """

    def __init__(self, latent: int | Sequence[int], condition_dim: int) -> None:
        super().__init__()
        self.noise_shape = shape_of(latent)
        self.gaussian = Gaussian()
        self.linear = nn.Linear(condition_dim, self.gaussian.params * self.noise_shape[0])
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Float[Tensor, "batch dim"]) -> Distribution:
        """(batch, dim) → a distribution over z (batch, latent)."""
        return self.gaussian(self._of_each(c))

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch *latent"]:
        """Mean plus standard deviation of the condition times noise."""
        return self.gaussian.draw(self._of_each(c), noise)

    def _of_each(self, c: Tensor) -> Tensor:
        """Of each latent; of a map's places the same."""
        found = self.linear(c)
        places = self.noise_shape[1:]
        return found.reshape(*found.shape, *[1] * len(places)).expand(*found.shape, *places)


class Levels(Part):
    """Several levels of latents, each with a prior of its own and independent of the others.

    Args:
        parts: one a level.

    Example:
        >>> prior = Levels([StandardNormal(4), StandardNormal((2, 4, 4))])
        >>> prior.noise_shape
        ((4,), (2, 4, 4))
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.noise_shape = tuple(tuple(part.noise_shape) for part in parts)  # type: ignore[arg-type]

    def forward(self, c: Float[Tensor, "batch dim"]) -> tuple[Distribution, ...]:
        """(batch, dim) → a distribution over z of each level."""
        return tuple(part(c) for part in self.parts)

    def draw(self, c: Float[Tensor, "batch dim"], noise: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Z of each level."""
        return tuple(part.draw(c, own) for part, own in zip(self.parts, noise, strict=True))  # type: ignore[operator]


class GaussianMixture(Part):
    r"""A mixture of Gaussians with full covariances for every class, fitted to latents in closed form.

    .. math:: p(z \mid c) = \sum_k \pi_{ck} \, \mathcal N(\mu_{ck}, \Sigma_{ck})

    Fitting standardises each channel, finds the clusters of each class by k-means on its leading principal components,
    and shrinks each cluster's covariance towards the mean within-cluster covariance of its class, the more the fewer
    latents it has, and that one towards a multiple of the identity (OAS); `em` steps of expectation maximisation may
    follow. Classes are told apart by their conditions; another condition counts as the
    nearest of them. Unfitted, it is the standard normal.

    Args:
        latent: number of latents, or the shape of z.
        condition_dim: width of c.
        components: of each class, at most; a class of few images has fewer (20 images a component).
        classes: different conditions at most; by default as many as c is wide (at least 1).
        shrinkage: weight of the class's mean covariance against the component's own, in [0, 1].
        em: steps of expectation maximisation (scikit-learn's) after the clusters; 0 for none.

    Raises:
        ValueError: for numbers out of range.

    References:
        From variational to deterministic autoencoders (Ghosh et al., 2020), https://arxiv.org/abs/1903.12436, for
        density estimation in latent space after training; shrinkage algorithms for MMSE covariance estimation (Chen et
        al., 2010), https://arxiv.org/abs/0907.4698

    Example:
        >>> z, c = torch.randn(400, 2), torch.eye(2).repeat(200, 1)
        >>> prior = GaussianMixture(2, condition_dim=2, components=4)
        >>> prior.fit(z + 5 * c, c)
        >>> prior.draw(torch.tensor([[1.0, 0.0]]).expand(100, 2), torch.randn(100, 3)).mean(0).round()
        tensor([5., ...])
    """

    choices = 1  # the first number of the noise picks the component
    weights: Tensor
    means: Tensor
    triangles: Tensor
    conditions: Tensor

    def __init__(
        self,
        latent: int | Sequence[int],
        condition_dim: int,
        components: int = 16,
        classes: int | None = None,
        shrinkage: float = 0.3,
        em: int = 0,
    ) -> None:
        super().__init__()
        if min(components, condition_dim + 1) < 1 or not 0 <= shrinkage <= 1 or em < 0:
            raise ValueError(
                "Expected components of 1 or more, shrinkage in [0, 1] and em of 0 or more; got "
                f"{components}, {shrinkage} and {em}."
            )
        self.shape, self.shrinkage, self.em = shape_of(latent), shrinkage, em
        self.dim, self.components = math.prod(self.shape), components
        self.noise_shape = (1 + self.dim,)
        groups = classes or max(condition_dim, 1)
        # Covariances are kept as the lower triangles of their Cholesky factors, row by row: half the memory.
        triangle = self.dim * (self.dim + 1) // 2
        self.register_buffer("weights", torch.zeros(groups, components))
        self.register_buffer("means", torch.zeros(groups, components, self.dim))
        self.register_buffer("triangles", torch.zeros(groups, components, triangle))
        self.register_buffer("conditions", torch.zeros(groups, condition_dim))
        self.scale = ChannelScale(self.shape)
        if self.weights.device.type != "meta":
            self.weights[:, 0] = 1.0
            self.triangles[:] = packed(torch.eye(self.dim))
            if condition_dim and condition_dim >= groups:
                self.conditions[:] = torch.eye(condition_dim)[:groups]

    @torch.no_grad()
    def fit(self, z: Float[Tensor, "n *latent"], c: Float[Tensor, "n dim"], seed: int = 0) -> None:
        """Fit to latents and their conditions; the same latents give the same mixture.

        Raises:
            ValueError: if there are more different conditions than classes, or latents that are not finite.
        """
        if not bool(torch.isfinite(z).all()):
            raise ValueError("Expected finite latents; got NaN or infinity. Train the model again.")
        conditions, groups = c[:1], torch.zeros(len(c), dtype=torch.int64)
        if c.shape[1]:
            conditions, groups = torch.unique(c, dim=0, return_inverse=True)
        if len(conditions) > len(self.weights):
            raise ValueError(
                f"Expected at most {len(self.weights)} different conditions; got {len(conditions)}. Pass classes=, or "
                "a prior for continuous conditions such as Flow."
            )
        self.scale.fit(z)
        flat = self.scale(z).flatten(1)
        # Conditions that no latent has lie beyond all others, and are never the nearest.
        self.conditions.fill_(math.inf)
        for group, condition in enumerate(conditions):
            self.conditions[group] = condition
            self._fit_class(group, flat[groups == group].cpu().double().numpy(), seed)

    def _fit_class(self, group: int, z: np.ndarray, seed: int) -> None:
        """The components of one class."""
        weights, means, covariances = clusters(z, self.components, self.shrinkage, seed)
        if self.em and len(weights) > 1:
            weights, means, covariances = expectation_maximised(z, weights, means, covariances, self.em)
        factors = np.linalg.cholesky(covariances)
        self.weights[group] = 0.0
        count = len(weights)
        self.weights[group, :count] = torch.as_tensor(weights).to(self.weights)
        self.means[group, :count] = torch.as_tensor(means).to(self.means)
        self.triangles[group, :count] = packed(torch.as_tensor(factors)).to(self.triangles)

    def forward(self, c: Float[Tensor, "batch dim"]) -> "Mixture":
        """(batch, dim) → a distribution over z."""
        return Mixture(self, self._groups(c))

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch numbers"]
    ) -> Float[Tensor, "batch *latent"]:
        """The component by the first number of the noise, then its mean plus its Cholesky factor times the others."""
        groups = self._groups(c)
        u = 0.5 * torch.special.erfc(-noise[:, 0] / math.sqrt(2))
        edges = self.weights[groups].cumsum(1)
        component = (u[:, None] * edges[:, -1:] >= edges).sum(1).clamp(max=self.components - 1)
        factor = unpacked(self.triangles[groups, component], self.dim)
        z = self.means[groups, component] + torch.bmm(factor, noise[:, 1:, None].to(factor))[..., 0]
        return self.scale.restored(z.unflatten(1, self.shape))

    def _groups(self, c: Tensor) -> Int64[Tensor, " batch"]:
        """The class of each condition: the nearest that was fitted."""
        if not self.conditions.shape[1]:
            return torch.zeros(len(c), dtype=torch.int64, device=c.device)
        apart = (c[:, None].to(self.conditions) - self.conditions).square().sum(2)
        return apart.argmin(1)


class Mixture(Distribution):
    """The distribution of :class:`GaussianMixture` for a batch of classes."""

    arg_constraints: ClassVar = {}  # type: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, prior: GaussianMixture, groups: Int64[Tensor, " batch"]) -> None:
        self.prior, self.groups = prior, groups
        super().__init__(groups.shape, torch.Size(prior.shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each latent, in nats."""
        prior, z = self.prior, self.prior.scale(value).flatten(1)
        found = z.new_full((len(z), prior.components), -math.inf)
        for group in self.groups.unique():
            own = self.groups == group
            for k in prior.weights[group].nonzero()[:, 0]:
                factor = unpacked(prior.triangles[group, k], prior.dim)
                whitened = torch.linalg.solve_triangular(factor, (z[own] - prior.means[group, k]).T, upper=False)
                log_det = factor.diagonal().log().sum()
                found[own, k] = prior.weights[group, k].log() - log_det - 0.5 * whitened.square().sum(0)
        return found.logsumexp(1) - prior.scale.log_volume() - 0.5 * prior.dim * math.log(2 * math.pi)

    @property
    def mean(self) -> Tensor:
        """Of the whole mixture."""
        weights = self.prior.weights[self.groups][..., None]
        return self.prior.scale.restored(
            (weights * self.prior.means[self.groups]).sum(1).unflatten(1, self.prior.shape)
        )

    @property
    def variance(self) -> Tensor:
        """Of each latent."""
        prior = self.prior
        second = prior.means.square() + torch.stack([unpacked(t, prior.dim).square().sum(-1) for t in prior.triangles])
        centre = (prior.weights[..., None] * prior.means).sum(1)
        flat = ((prior.weights[..., None] * second).sum(1) - centre.square())[self.groups]
        return flat.unflatten(1, prior.shape) * prior.scale.per_channel(prior.scale.spread).square()


def clusters(
    z: Float[np.ndarray, "n d"], components: int, shrinkage: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares, means and shrunk covariances of the clusters of one class's standardised latents."""
    from sklearn.cluster import KMeans
    from sklearn.covariance import oas
    from sklearn.decomposition import PCA

    n, d = z.shape
    count = max(1, min(components, n // LEAST_MEMBERS))
    members = np.zeros(n, np.int64)
    if count > 1:
        leading = PCA(min(PRINCIPAL, d, n), random_state=seed).fit_transform(z)
        members = KMeans(count, n_init=1, random_state=seed).fit_predict(leading)  # type: ignore[arg-type]
    sizes = np.bincount(members, minlength=count)
    means = np.stack([z[members == k].mean(0) for k in range(count)])
    residuals = z - means[members]
    shared, _ = oas(residuals, assume_centered=True)
    covariances = []
    for k, size in enumerate(sizes):
        # A cluster of few latents has too few to tell its covariance from its class's.
        trust = (1 - shrinkage) * size / (size + d)
        own = residuals[members == k]
        covariances.append(trust * (own.T @ own) / max(size, 1) + (1 - trust) * shared)
    return sizes / n, means, np.stack(covariances) + 1e-4 * np.eye(d)


def expectation_maximised(
    z: Float[np.ndarray, "n d"], weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The components after some steps of expectation maximisation."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as Estimator

    estimator = Estimator(
        len(weights),
        max_iter=steps,
        reg_covar=1e-3,
        weights_init=weights,
        means_init=means,
        precisions_init=np.linalg.inv(covariances),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps is the user's
        estimator.fit(z)
    return estimator.weights_, estimator.means_, estimator.covariances_  # type: ignore[return-value]


def packed(factors: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch triangle"]:
    """Lower triangles, row by row.

    Example:
        >>> packed(torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
        tensor([1., 2., 3.])
    """
    rows, columns = torch.tril_indices(factors.shape[-1], factors.shape[-1])
    return factors[..., rows, columns]


def unpacked(triangles: Float[Tensor, "*batch triangle"], d: int) -> Float[Tensor, "*batch d d"]:
    """The matrices of :func:`packed`, zero above the diagonal."""
    rows, columns = torch.tril_indices(d, d)
    factors = triangles.new_zeros(*triangles.shape[:-1], d, d)
    factors[..., rows, columns] = triangles
    return factors


class Flow(Part):
    """A normalising flow, an invertible network between latents and noise, conditional on c; needs the extra `flows`.

    Fitting standardises each channel first; then the flow is trained by its likelihood (:func:`condgen.fit_prior`).

    Args:
        latent: number of latents, or the shape of z.
        condition_dim: width of c.
        kind: of zuko's flows: "NSF" (neural spline), "MAF" (masked autoregressive), "NICE" (coupling), …
        transforms: layers of the flow.
        hidden: widths of each layer's network.

    Raises:
        ImportError: if zuko is not installed.
        ValueError: for an unknown kind.

    References:
        Neural spline flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032; zuko: https://zuko.readthedocs.io

    Example:
        >>> prior = Flow(2, condition_dim=3, transforms=1, hidden=(8,))
        >>> prior(torch.zeros(5, 3)).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        latent: int | Sequence[int],
        condition_dim: int,
        kind: str = "NSF",
        transforms: int = 3,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        try:
            import zuko
        except ImportError as error:
            raise ImportError('A flow as prior needs zuko. Install it: pip install "condgen[flows]".') from error
        if not hasattr(zuko.flows, kind):
            raise ValueError(f"Expected one of zuko's flows, such as NSF, MAF or NICE; got {kind!r}.")
        self.noise_shape = shape_of(latent)
        # Its masks are computed, which the device without memory cannot.
        with torch.device("cpu"):
            self.flow = getattr(zuko.flows, kind)(
                math.prod(self.noise_shape), condition_dim, transforms=transforms, hidden_features=tuple(hidden)
            )
        self.scale = ChannelScale(self.noise_shape)

    def standardise(self, z: Float[Tensor, "n *latent"]) -> None:
        """Take each channel's mean and spread from latents, before training."""
        self.scale.fit(z)

    def forward(self, c: Float[Tensor, "batch dim"]) -> "Flowing":
        """(batch, dim) → a distribution over z."""
        return Flowing(self.flow(c), self.scale, len(c))

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch *latent"]:
        """The noise through the flow, backwards."""
        return self.scale.restored(self.flow(c).transform.inv(noise.flatten(1)).unflatten(1, self.noise_shape))


class Flowing(Distribution):
    """The distribution of :class:`Flow`."""

    arg_constraints: ClassVar = {}  # type: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, flow: Any, scale: "ChannelScale", n: int) -> None:
        self.flow, self.scale = flow, scale
        super().__init__(torch.Size([n]), torch.Size(scale.shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each latent, in nats."""
        return self.flow.log_prob(self.scale(value).flatten(1)) - self.scale.log_volume()


class ChannelScale(nn.Module):
    """Latents with mean 0 and spread 1 in every channel, and back; as it starts, it changes nothing.

    Args:
        shape: of z.

    Example:
        >>> scale = ChannelScale((2, 3, 3))
        >>> scale.fit(z := 5 + 2 * torch.randn(500, 2, 3, 3))
        >>> torch.allclose(scale.restored(scale(z)), z, atol=1e-5), bool(abs(scale(z).std() - 1) < 0.05)
        (True, True)
    """

    offset: Tensor
    spread: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("offset", torch.zeros(shape[0]))
        self.register_buffer("spread", torch.ones(shape[0]))

    def fit(self, z: Float[Tensor, "n *latent"]) -> None:
        """Take mean and spread from latents."""
        places = (0, *range(2, z.ndim))
        self.offset.copy_(z.mean(places))
        self.spread.copy_(z.std(places).clamp(min=1e-6))

    def forward(self, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *latent"]:
        """Latents → standardised ones."""
        return (z.to(self.offset) - self.per_channel(self.offset)) / self.per_channel(self.spread)

    def restored(self, z: Float[Tensor, "n *latent"]) -> Float[Tensor, "n *latent"]:
        """Standardised latents → latents."""
        return z * self.per_channel(self.spread) + self.per_channel(self.offset)

    def log_volume(self) -> Float[Tensor, ""]:
        """What standardising adds to a log-density, nats."""
        return math.prod(self.shape[1:]) * self.spread.log().sum()

    def per_channel(self, values: Float[Tensor, " channels"]) -> Float[Tensor, "channels *ones"]:
        """Of a shape that fits latents."""
        return values.reshape(-1, *[1] * (len(self.shape) - 1))


def shape_of(latent: int | Sequence[int]) -> tuple[int, ...]:
    """The shape of z from a number of latents, or from itself."""
    return (latent,) if isinstance(latent, int) else tuple(latent)
