"""A mixture of Gaussians per class, fitted to latents in closed form."""

__all__ = ["GaussianMixture"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.distributions import Distribution

from condgen.distributions.priors.scale import ChannelScale, shape_of, turned_towards
from condgen.nn.parts import Part
from condgen.nn.threads import one_thread

PRINCIPAL = 24  # leading components in which clusters are looked for
LEAST_MEMBERS = 20  # latents that a component of a mixture is fitted to, at least
SHRINKAGE = 0.3  # where no validation latents choose
SHRINKAGES = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)


class GaussianMixture(Part, registered="priors.GaussianMixture"):
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
        shares: share of each class among the latents, for conditions of a missing label; :meth:`fit` sets it.

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
        shares: Sequence[float] | None = None,
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
        self.shares = None if shares is None else tuple(map(float, shares))
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
        self.shares = tuple((own.total / len(flat)) for own in found)
        if "arguments" in self.__dict__:  # saved with the model
            self.arguments["shares"] = list(self.shares)
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
        return Mixture(self, self._groups(c), self._missing(c))

    def draw(
        self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, "batch numbers"]
    ) -> Float[Tensor, "batch *latent"]:
        """The component by the first number of the noise, then its mean plus its Cholesky factor times the others."""
        return self.draw_of(self.choose(c, noise[:, 0]), noise[:, 1:])

    def choose(self, c: Float[Tensor, "batch dim"], noise: Float[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """A component for each condition by its weight; numbered through all classes."""
        groups = self._groups(c)
        u = 0.5 * torch.special.erfc(-noise / math.sqrt(2))
        found = groups * self.components + picked(self.weights[groups], u)
        missing = self._missing(c)
        if not torch.compiler.is_compiling() and not bool(missing.any()):
            return found
        everything = self.weights * self.class_shares()[:, None]
        return torch.where(missing, picked(everything.flatten().expand(u.shape[0], -1), u), found)

    def draw_of(
        self, component: Int64[Tensor, " batch"], noise: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch *latent"]:
        """Of each component its mean plus its Cholesky factor times the noise."""
        factor = self.factors()[component]
        z = self.means.flatten(0, 1)[component] + torch.bmm(factor, noise[..., None].to(factor))[..., 0]
        return self.scale.restored(z.unflatten(1, self.shape))

    def vary(self, z: Tensor, c: Tensor, noise: Tensor, strength: float) -> Float[Tensor, "batch *latent"]:
        """Latents near z, within the component that most likely drew each; see `turned_towards`."""
        component = self.assign(z, c)
        centre = self.draw_of(component, torch.zeros_like(noise[:, 1:]))
        return turned_towards(z, self.draw_of(component, noise[:, 1:]), centre, strength)

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

    def of_condition(self, c: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch all"]:
        """The weight of every component for each condition."""
        return (self(c).class_weights[:, :, None] * self.weights).flatten(1)

    def class_shares(self) -> Float[Tensor, " classes"]:
        """The share of each class among the latents that the mixture was fitted to; equal ones if it is not known."""
        fitted = self.conditions.isfinite().all(1)
        if self.shares is None:
            return fitted.to(self.weights) / fitted.sum()
        return self.weights.new_tensor([*self.shares, *[0.0] * (len(self.weights) - len(self.shares))])

    def _missing(self, c: Tensor) -> Bool[Tensor, " batch"]:
        """Which conditions are of no class, as :class:`~condgen.nn.conditioners.LabelDropout` gives for no label.

        They lie farther from every class than half of the way between the two nearest classes.
        """
        apart = (c[:, None].to(self.conditions) - self.conditions).square().sum(2)
        return apart.amin(1).sqrt() > self.half_way()

    def half_way(self) -> float:
        """A little more than half of the distance between the two nearest classes; infinite for a single one."""
        known = self.conditions[self.conditions.isfinite().all(1)]
        if len(known) < 2 or not known.shape[1]:
            return math.inf
        return (0.5 + 1e-3) * float(torch.cdist(known, known).fill_diagonal_(math.inf).min())

    def _groups(self, c: Tensor) -> Int64[Tensor, " batch"]:
        """The class of each condition: the nearest that was fitted."""
        if not self.conditions.shape[1]:
            return torch.zeros(c.shape[0], dtype=torch.int64, device=c.device)
        apart = (c[:, None].to(self.conditions) - self.conditions).square().sum(2)
        return apart.argmin(1)


def picked(weights: Float[Tensor, "n all"], u: Float[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """For each row a number by its weights, from a uniform number; never one whose weight is 0."""
    edges = weights.cumsum(1)
    number = (u[:, None] * edges[:, -1:] >= edges).sum(1)
    last = weights.shape[1] - 1 - (weights.flip(1) > 0).to(torch.int8).argmax(1)  # the last that has a weight
    return torch.minimum(number, last)


class Mixture(Distribution):
    """The distribution of :class:`GaussianMixture` for a batch of classes."""

    arg_constraints: ClassVar = {}  # type: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(
        self, prior: GaussianMixture, groups: Int64[Tensor, " batch"], missing: Bool[Tensor, " batch"]
    ) -> None:
        self.prior, self.groups, self.missing = prior, groups, missing
        super().__init__(groups.shape, torch.Size(prior.shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each latent, in nats."""
        found = self.prior.log_joint(value, self.groups).logsumexp(1)
        if not bool(self.missing.any()):
            return found
        some, shares = value[self.missing], self.prior.class_shares()
        each = [
            self.prior.log_joint(some, torch.full((len(some),), k, device=some.device)).logsumexp(1) + shares[k].log()
            for k in shares.nonzero()[:, 0].tolist()
        ]
        return found.masked_scatter(self.missing, torch.stack(each).logsumexp(0))

    @property
    def class_weights(self) -> Float[Tensor, "batch classes"]:
        """Weight of each class in the mixture of each row; where the label is missing, its share of all images."""
        own = torch.nn.functional.one_hot(self.groups, len(self.prior.weights)).to(self.prior.weights)
        return torch.where(self.missing[:, None], self.prior.class_shares(), own)

    @property
    def mean(self) -> Tensor:
        """Of the whole mixture."""
        centres = (self.prior.weights[..., None] * self.prior.means).sum(1)
        return self.prior.scale.restored((self.class_weights @ centres).unflatten(1, self.prior.shape))

    @property
    def variance(self) -> Tensor:
        """Of each latent."""
        prior = self.prior
        second = prior.means.square() + torch.stack([unpacked(t, prior.dim).square().sum(-1) for t in prior.triangles])
        centres, own = (prior.weights[..., None] * prior.means).sum(1), self.class_weights
        flat = own @ (prior.weights[..., None] * second).sum(1) - (own @ centres).square()
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
