"""Flow matching as prior: a velocity field carries draws of a simple source to latents."""

__all__ = ["FlowMatching"]

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributions import Distribution

from condgen.distributions.priors.scale import ChannelScale, shape_of
from condgen.distributions.priors.standard import StandardNormal
from condgen.nn.parts import Part
from condgen.nn.velocities import MLPVelocity, ResNetVelocity
from condgen.random import Use, normal, stream


class FlowMatching(Part, registered="priors.FlowMatching"):
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
        velocity: see :mod:`condgen.nn.velocities`; by default a residual network for maps, a perceptron for vectors.
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
        >>> from condgen.distributions.priors import GaussianMixture
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
        check_guidance(guidance, drop)
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
        if name == "guidance" and "drop" in self.__dict__:
            check_guidance(value, self.drop)
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


def check_guidance(guidance: float, drop: float) -> None:
    """Raise if samples are to be guided by a network that never learnt what no condition looks like."""
    if guidance > 0 and not drop:
        raise ValueError(
            f"Expected guidance=0 for a flow trained with drop=0; got {guidance}. It never saw a hidden condition: "
            "train it with drop=0.1 to guide it."
        )


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
