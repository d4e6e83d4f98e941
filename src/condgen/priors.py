r"""Priors: the condition in, :math:`p(z \mid c)` and draws from it out.

Contract: `prior(c) → Distribution` over z; `draw(c, noise) → z`; `noise_shape`, the shape of one image's standard
normal noise. c is (batch, dim); a plain prior reads no more of it than the batch size. For latents of several levels
everything is a tuple, level by level.

A prior has two uses: the KL is taken against it while a model trains, and images are drawn from it. For the second a
*fitted* prior may take its place afterwards (`ConditionalVAE.sampler`, :func:`condgen.fit_prior`): it offers
`fit(z, c, seed, validation)`, or `matching(...)` to train its field by, or a density to be trained by. One that only
draws needs no `prior(c)`. `choices`, where a prior has it, is how many leading numbers of its noise choose, and are not
scaled by a temperature.
"""

__all__ = ["Flow", "FlowMatching", "GaussianMixture", "LabelNormal", "Levels", "StandardNormal"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from condgen.noise import Use, normal, stream
from condgen.parts import Part
from condgen.reparameterizers import Gaussian
from condgen.threads import one_thread
from condgen.velocities import MLPVelocity, ResNetVelocity

PRINCIPAL = 24  # leading components in which clusters are looked for
LEAST_MEMBERS = 20  # latents that a component of a mixture is fitted to, at least
SHRINKAGE = 0.3  # where no validation latents choose
SHRINKAGES = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)


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
        shrinkage: weight of the class's mean covariance against the component's own, in [0, 1]; None: this weight, and
            that of all classes' pooled covariance against the class's, are chosen for each class by the likelihood of
            validation latents, where :meth:`fit` is given some.
        em: steps of expectation maximisation (scikit-learn's) after the clusters; 0 for none. Its covariances are not
            shrunk, which makes images better and validation latents less likely; classes with fewer than twice as
            many latents a component as z has numbers are left as they are.

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
        shrinkage: float | None = None,
        em: int = 0,
    ) -> None:
        super().__init__()
        if min(components, condition_dim + 1) < 1 or not 0 <= (shrinkage or 0) <= 1 or em < 0:
            raise ValueError(
                "Expected components of 1 or more, shrinkage in [0, 1] or None and em of 0 or more; got "
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
        self.unpacked: tuple[Any, Tensor] = None, self.means  # of `factors`
        if self.weights.device.type != "meta":
            self.weights[:, 0] = 1.0
            self.triangles[:] = packed(torch.eye(self.dim))
            if condition_dim and condition_dim >= groups:
                self.conditions[:] = torch.eye(condition_dim)[:groups]

    @torch.no_grad()
    def fit(
        self,
        z: Float[Tensor, "n *latent"],
        c: Float[Tensor, "n dim"],
        seed: int = 0,
        validation: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Fit to latents and their conditions; the same latents give the same mixture.

        Args:
            z: latents.
            c: their conditions.
            seed: of the clusters.
            validation: latents and conditions of other images, to choose the shrinkage by.

        Raises:
            ValueError: if there are more different conditions than classes, or latents that are not finite.
        """
        if not bool(torch.isfinite(z).all()):
            raise ValueError("Expected finite latents; got NaN or infinity. Train the model again.")
        with one_thread():
            self._fit(z, c, seed, validation)

    def _fit(self, z: Tensor, c: Tensor, seed: int, validation: tuple[Tensor, Tensor] | None) -> None:
        """Fit, class by class."""
        conditions, groups = c[:1], torch.zeros(len(c), dtype=torch.int64)
        if c.shape[1]:
            conditions, groups = torch.unique(c, dim=0, return_inverse=True)
        if len(conditions) > len(self.weights):
            raise ValueError(
                f"Expected at most {len(self.weights)} different conditions; got {len(conditions)}. Pass classes=, or "
                "a prior for continuous conditions such as Flow."
            )
        self.scale.fit(z)
        flat = self.scale(z).flatten(1).cpu().double().numpy()
        # Conditions that no latent has lie beyond all others, and are never the nearest.
        self.conditions.fill_(math.inf)
        self.conditions[: len(conditions)] = conditions.to(self.conditions)
        held_out = np.zeros((0, self.dim)), np.zeros(0, np.int64)
        if validation is not None:
            held_out = self.scale(validation[0]).flatten(1).cpu().double().numpy(), self._groups(validation[1]).numpy()
        found = [Clusters.of(flat[groups == k], self.components, seed) for k in range(len(conditions))]
        pooled = np.stack([own.total * own.shared for own in found]).sum(0) / len(flat)
        self.weights.zero_()
        for group, own in enumerate(found):
            self._keep(group, own, pooled, flat[groups == group], held_out[0][held_out[1] == group])

    def _keep(self, group: int, own: "Clusters", pooled: np.ndarray, z: np.ndarray, held_out: np.ndarray) -> None:
        """The components of one class, once it is settled how far to trust their covariances."""
        if self.shrinkage is None and len(held_out) >= LEAST_MEMBERS:
            covariances = own.best(pooled, held_out)
        else:
            covariances = own.shrunk(SHRINKAGE if self.shrinkage is None else self.shrinkage, 0.0, pooled)
        weights, means = own.sizes / own.total, own.means
        if self.em and len(weights) > 1 and own.total >= 2 * self.dim * len(weights):
            weights, means, covariances = expectation_maximised(z, weights, means, covariances, self.em)
        count = len(weights)
        self.weights[group, :count] = torch.as_tensor(weights).to(self.weights)
        self.means[group, :count] = torch.as_tensor(means).to(self.means)
        self.triangles[group, :count] = packed(torch.as_tensor(np.linalg.cholesky(covariances))).to(self.triangles)

    def forward(self, c: Float[Tensor, "batch dim"]) -> "Mixture":
        """(batch, dim) → a distribution over z."""
        return Mixture(self, self._groups(c))

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch numbers"]
    ) -> Float[Tensor, "batch *latent"]:
        """The component by the first number of the noise, then its mean plus its Cholesky factor times the others."""
        return self.draw_of(self.choose(c, noise[:, 0]), noise[:, 1:])

    def choose(self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """A component for each condition by its weight; numbered through all classes."""
        groups = self._groups(c)
        u = 0.5 * torch.special.erfc(-noise / math.sqrt(2))
        edges = self.weights[groups].cumsum(1)
        component = (u[:, None] * edges[:, -1:] >= edges).sum(1).clamp(max=self.components - 1)
        return groups * self.components + component

    def draw_of(
        self, component: Int64[Tensor, " batch"], noise: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch *latent"]:
        """Of each component its mean plus its Cholesky factor times the noise."""
        factor = self.factors()[component]
        z = self.means.flatten(0, 1)[component] + torch.bmm(factor, noise[..., None].to(factor))[..., 0]
        return self.scale.restored(z.unflatten(1, self.shape))

    def factors(self) -> Float[Tensor, "all dim dim"]:
        """The Cholesky factors of all components; unpacked once, until they change."""
        key = (self.triangles.data_ptr(), self.triangles._version, self.triangles.device, self.triangles.dtype)
        if self.unpacked[0] != key:
            self.unpacked = key, unpacked(self.triangles.flatten(0, 1), self.dim)
        return self.unpacked[1]

    @torch.no_grad()
    def assign(self, z: Float[Tensor, "n *latent"], c: Float[Tensor, "n dim"]) -> Int64[Tensor, " n"]:
        """The component that most likely drew each latent; numbered through all classes."""
        groups = self._groups(c)
        return groups * self.components + self.log_joint(z, groups).argmax(1)

    def log_joint(self, z: Float[Tensor, "n *latent"], groups: Int64[Tensor, " n"]) -> Float[Tensor, "n components"]:
        """Log of weight times density of each component of a latent's class, nats; -inf where there is none."""
        flat = self.scale(z).flatten(1)
        found = flat.new_full((len(flat), self.components), -math.inf)
        for group in groups.unique():
            own = groups == group
            for k in self.weights[group].nonzero()[:, 0]:
                factor = unpacked(self.triangles[group, k], self.dim)
                whitened = torch.linalg.solve_triangular(factor, (flat[own] - self.means[group, k]).T, upper=False)
                log_det = factor.diagonal().log().sum()
                found[own, k] = self.weights[group, k].log() - log_det - 0.5 * whitened.square().sum(0)
        return found - self.scale.log_volume() - 0.5 * self.dim * math.log(2 * math.pi)

    def _groups(self, c: Tensor) -> Int64[Tensor, " batch"]:
        """The class of each condition: the nearest that was fitted."""
        if not self.conditions.shape[1]:
            return torch.zeros(c.shape[0], dtype=torch.int64, device=c.device)
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
        return self.prior.log_joint(value, self.groups).logsumexp(1)

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


@dataclass(frozen=True)
class Clusters:
    """The clusters of one class's standardised latents.

    Attributes:
        sizes: latents of each.
        means: of each.
        covariances: of each, as they are.
        shared: the mean covariance within clusters, shrunk towards a multiple of the identity.
    """

    sizes: Float[np.ndarray, " k"]
    means: Float[np.ndarray, "k d"]
    covariances: Float[np.ndarray, "k d d"]
    shared: Float[np.ndarray, "d d"]

    @property
    def total(self) -> float:
        """Latents of all."""
        return float(self.sizes.sum())

    @classmethod
    def of(cls, z: Float[np.ndarray, "n d"], components: int, seed: int) -> "Clusters":
        """At most `components` clusters, by k-means on the leading principal components."""
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
        own = [residuals[members == k] for k in range(count)]
        covariances = np.stack([r.T @ r / max(len(r), 1) for r in own])
        return cls(sizes.astype(float), means, covariances, oas(residuals, assume_centered=True)[0])

    def shrunk(self, towards_class: float, towards_all: float, pooled: np.ndarray) -> Float[np.ndarray, "k d d"]:
        """Covariances mixed with the class's, that one with all classes'; the fewer latents a cluster has, the more."""
        d = len(self.shared)
        shared = (1 - towards_all) * self.shared + towards_all * pooled
        trust = ((1 - towards_class) * self.sizes / (self.sizes + d))[:, None, None]
        return trust * self.covariances + (1 - trust) * shared + 1e-4 * np.eye(d)

    def best(self, pooled: np.ndarray, held_out: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "k d d"]:
        """The covariances under which latents of other images are most likely: first one weight, then the other."""
        tried = {weight: self.log_likelihood(self.shrunk(weight, 0.0, pooled), held_out) for weight in SHRINKAGES}
        first = max(tried, key=tried.__getitem__)
        tried = {weight: self.log_likelihood(self.shrunk(first, weight, pooled), held_out) for weight in SHRINKAGES}
        return self.shrunk(first, max(tried, key=tried.__getitem__), pooled)

    def log_likelihood(self, covariances: np.ndarray, z: Float[np.ndarray, "n d"]) -> float:
        """Of latents under the mixture with these covariances, nats, without its constant."""
        from scipy.linalg import solve_triangular

        found = []
        for size, mean, covariance in zip(self.sizes, self.means, covariances, strict=True):
            factor = np.linalg.cholesky(covariance)
            whitened = solve_triangular(factor, (z - mean).T, lower=True)
            found.append(np.log(size) - np.log(np.diag(factor)).sum() - 0.5 * np.square(whitened).sum(0))
        return float(np.logaddexp.reduce(found, axis=0).sum())


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


class FlowMatching(Part):
    r"""A velocity field that carries draws of another prior to where the latents lie, in a few steps.

    .. math:: \frac{dz_t}{dt} = v(z_t, t, c, k), \qquad z_0 \sim p_0(z \mid c, k), \quad z_1 = z
              \qquad \min_v \mathbb E \, \| v((1 - t) z_0 + t z_1, t, c, k) - (z_1 - z_0) \|^2

    in standardised coordinates. Along the cosine path, :math:`z_t = \cos(\pi t / 2) z_0 + \sin(\pi t / 2) z_1`, from a
    standard normal it is a diffusion model with a cosine schedule and v-prediction: the derivative of that path is
    Salimans & Ho's v, but for sign and the factor :math:`\pi / 2`.

    From a fitted mixture the way is short: source and target of a pair belong to one component k, so the field only
    has to mend what Gaussians cannot say, and two Heun steps do. From a standard normal it is the usual flow matching.
    Drawing is deterministic given the source's draw. :func:`condgen.fit_prior` fits the source, pairs latents with
    components and trains the field.

    Args:
        latent: number of latents, or the shape of z.
        condition_dim: width of c.
        source: the prior that draws the start; by default the standard normal.
        velocity: see :mod:`condgen.velocities`; by default a residual network for maps, a perceptron for vectors.
        steps: of the way from source to latent.
        solver: "heun" (two evaluations a step, second order) or "euler".
        guidance: g; the field becomes :math:`v_c + g (v_c - v)` with v that of no condition, for truer labels at twice
            the cost; 0: none.
        drop: share of the training latents whose condition and component are hidden, so that guidance is possible.
        path: from source to latent in training, "straight" or "cosine".
        density: whether `prior(c)` gives a distribution; its `log_prob` follows the field backwards from every
            component of the class, with the divergence, and takes long.

    Raises:
        ValueError: for numbers out of range.

    References:
        Flow matching for generative modeling (Lipman et al., 2023), https://arxiv.org/abs/2210.02747; logistic-normal
        times: Scaling rectified flow transformers (Esser et al., 2024), https://arxiv.org/abs/2403.03206; guidance:
        Classifier-free diffusion guidance (Ho & Salimans, 2022), https://arxiv.org/abs/2207.12598; log_prob: FFJORD
        (Grathwohl et al., 2019), https://arxiv.org/abs/1810.01367

    Example:
        >>> prior = FlowMatching((4, 7, 7), condition_dim=8, source=GaussianMixture((4, 7, 7), 8, components=2))
        >>> prior.draw(torch.eye(8), torch.randn(8, *prior.noise_shape)).shape
        torch.Size([8, 4, 7, 7])
    """

    def __init__(
        self,
        latent: int | Sequence[int],
        condition_dim: int,
        source: nn.Module | None = None,
        velocity: nn.Module | None = None,
        steps: int = 2,
        solver: Literal["heun", "euler"] = "heun",
        guidance: float = 0.0,
        drop: float = 0.1,
        density: bool = False,
        path: Literal["straight", "cosine"] = "straight",
    ) -> None:
        super().__init__()
        if steps < 1 or solver not in ("heun", "euler") or guidance < 0 or not 0 <= drop < 1:
            raise ValueError(
                'Expected steps of 1 or more, solver "heun" or "euler", guidance of 0 or more and drop in [0, 1); got '
                f"{steps}, {solver!r}, {guidance} and {drop}."
            )
        if path not in ("straight", "cosine"):
            raise ValueError(f'Expected path "straight" or "cosine"; got {path!r}.')
        self.shape = shape_of(latent)
        self.source: Any = source if source is not None else StandardNormal(latent)
        self.noise_shape: tuple[int, ...] = tuple(self.source.noise_shape)
        self.choices: int = getattr(self.source, "choices", 0)
        components = self.source.weights.numel() if self.choices else 0
        if velocity is None and len(self.shape) == 3:
            velocity = ResNetVelocity(self.shape, condition_dim, components)
        self.velocity: Any = velocity or MLPVelocity(math.prod(self.shape), condition_dim, components)
        self.steps, self.solver, self.guidance = steps, solver, guidance
        self.drop, self.density, self.path = drop, density, path
        self.scale = ChannelScale(self.shape)

    def __setattr__(self, name: str, value: Any) -> None:
        """As usual; how samples are drawn may be changed later, and is saved as it then is."""
        super().__setattr__(name, value)
        if name in ("steps", "solver", "guidance", "density") and "arguments" in self.__dict__:
            self.arguments[name] = value

    @torch.no_grad()
    def prepare(
        self, z: Tensor, c: Tensor, seed: int = 0, validation: tuple[Tensor, Tensor] | None = None
    ) -> Int64[Tensor, " n"]:
        """Before training: fit the source, where it can be, standardise, and say which component each latent is of."""
        self.scale.fit(z)
        if hasattr(self.source, "fit"):
            self.source.fit(z, c, seed=seed, validation=validation)
        return self.components_of(z, c)

    @torch.no_grad()
    def components_of(self, z: Tensor, c: Tensor) -> Int64[Tensor, " n"]:
        """The component of the source that each latent belongs to; zeros where it has none."""
        if not self.choices:
            return torch.zeros(len(z), dtype=torch.int64)
        return torch.cat([self.source.assign(*part) for part in zip(z.split(4096), c.split(4096), strict=True)])

    @property
    def training_noise(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that :meth:`matching` needs for one latent."""
        return {"z": self.noise_shape, "t": (), "drop": ()}

    def matching(
        self,
        z: Float[Tensor, "batch *latent"],
        c: Float[Tensor, "batch dim"],
        component: Int64[Tensor, " batch"],
        noise: dict[str, Tensor],
    ) -> Float[Tensor, " batch"]:
        """The squared error of the velocity at a random time, a mean over latents."""
        with torch.autocast(z.device.type, enabled=False):  # the way's ends are no business of the network's
            if self.choices:
                start = self.source.draw_of(component, noise["z"][:, self.choices :])
            else:
                start = self.source.draw(c, noise["z"])
            start, end, t = self.scale(start), self.scale(z), noise["t"].to(z.dtype).sigmoid()
            bound = NormalDist().inv_cdf(self.drop) if self.drop else -math.inf
            dropped = (noise["drop"] < bound).to(z.dtype)
            at, slope = self.between(start, end, t.reshape(-1, *[1] * len(self.shape)))
        error = self.velocity(at, t, c, component, dropped) - slope
        return error.float().square().flatten(1).mean(1)

    def between(self, start: Tensor, end: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Where the path is at a time, and its derivative."""
        if self.path == "straight":
            return start + t * (end - start), end - start
        angle = math.pi / 2 * t
        return angle.cos() * start + angle.sin() * end, math.pi / 2 * (angle.cos() * end - angle.sin() * start)

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch *numbers"]
    ) -> Float[Tensor, "batch *latent"]:
        """A draw of the source, carried along the field."""
        if self.choices:
            component = self.source.choose(c, noise[:, 0])
            z = self.source.draw_of(component, noise[:, self.choices :])
        else:
            z, component = self.source.draw(c, noise), torch.zeros(c.shape[0], dtype=torch.int64, device=c.device)
        z, dt = self.scale(z), 1 / self.steps
        for k in range(self.steps):
            slope = self.field(z, k * dt, c, component)
            if self.solver == "heun":
                slope = (slope + self.field(z + dt * slope, (k + 1) * dt, c, component)) / 2
            z = z + dt * slope
        return self.scale.restored(z)

    def field(self, z: Tensor, t: float, c: Tensor, component: Tensor) -> Tensor:
        """The velocity in standardised coordinates, guided."""
        time, known = z.new_full(z.shape[:1], t), z.new_zeros(z.shape[:1])
        if not self.guidance:
            return self.velocity(z, time, c, component, known)
        pairs = [torch.cat(pair) for pair in ((z, z), (time, time), (c, c), (component, component), (known, known + 1))]
        of_class, of_none = self.velocity(*pairs).unflatten(0, (2, z.shape[0])).unbind(0)
        return of_class + self.guidance * (of_class - of_none)

    def forward(self, c: Float[Tensor, "batch dim"]) -> "Carried":
        """(batch, dim) → a distribution over z.

        Raises:
            NotImplementedError: unless a density was asked for.
        """
        if not self.density:
            raise NotImplementedError("A flow's density takes long; build FlowMatching(density=True) for it.")
        return Carried(self, c)


class Carried(Distribution):
    """The distribution of :class:`FlowMatching`: the source's, carried along the field."""

    arg_constraints: ClassVar = {}  # type: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    STEPS = 32  # of the way back
    EXACT = 64  # latents up to which the divergence is summed exactly; beyond, probed
    PROBES = 4

    def __init__(self, prior: FlowMatching, c: Tensor) -> None:
        self.prior, self.c = prior, c
        super().__init__(c.shape[:1], torch.Size(prior.shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each latent, nats: over all components of its class, each followed back to its source."""
        prior, z = self.prior, self.prior.scale(value)
        if not prior.choices:
            component = torch.zeros(len(z), dtype=torch.int64, device=z.device)
            start, gained = self._back(z, component)
            return prior.source(self.c).log_prob(prior.scale.restored(start)) - gained
        groups, count = prior.source._groups(self.c), prior.source.components
        found = z.new_full((len(z), count), -math.inf)
        for k in range(count):
            present = prior.source.weights[groups, k] > 0
            if bool(present.any()):
                start, gained = self._back(z[present], (groups * count + k)[present], present)
                joint = prior.source.log_joint(prior.scale.restored(start), groups[present])[:, k]
                found[present, k] = joint - gained
        return found.logsumexp(1)

    def _back(self, z: Tensor, component: Tensor, rows: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Where latents came from, and the divergence gathered on the way there."""
        gained, dt = z.new_zeros(len(z)), 1 / self.STEPS
        for k in range(self.STEPS, 0, -1):
            slope, spread = self._slope(z, k * dt, component, rows)
            later, spread_later = self._slope(z - dt * slope, (k - 1) * dt, component, rows)
            z, gained = z - dt * (slope + later) / 2, gained + dt * (spread + spread_later) / 2
        return z, gained

    def _slope(self, z: Tensor, t: float, component: Tensor, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The velocity and its divergence: exact for few latents, an average of probes beyond (Hutchinson)."""
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            slope = self.prior.field(at, t, self.c[rows], component)
            count = z[0].numel()
            if count <= self.EXACT:
                probes = torch.eye(count, device=z.device, dtype=z.dtype)
            else:
                signs = normal(0, torch.arange(self.PROBES, device=z.device), stream(Use.POSTERIOR), (count,), z.dtype)
                probes = signs.sign() / math.sqrt(self.PROBES)
            divergence = z.new_zeros(len(z))
            for probe in probes:
                along = probe.unflatten(0, z.shape[1:]).expand_as(z)
                (back,) = torch.autograd.grad(slope, at, along, retain_graph=True)
                divergence = divergence + (back * along).flatten(1).sum(1)
        return slope.detach(), divergence.detach()


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
