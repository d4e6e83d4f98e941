"""Flow matching as prior: a velocity field carries draws of a simple source to latents."""

__all__ = ["FlowMatching"]

import math
from collections.abc import Sequence
from itertools import pairwise
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

VARIED_STEPS = 6  # at least, of the way forward to a variation


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

    A distilled network, the student, can take the whole way in one step: :math:`z_1 = z_0 + s(z_0, 0, c, k)`. It is
    what `steps=1` uses, where there is one; more steps follow the field. :func:`condgen.distil` trains it.

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
        density: whether `prior(c)` gives a distribution; its `log_prob` follows the samples' way backwards from every
            component of the class, with the change of volume, and takes long.
        student: a velocity network that was distilled from this flow, for `steps=1`.

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
        student: nn.Module | None = None,
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
        self.student: Any = student
        self.scale = ChannelScale(self.shape)

    def __setattr__(self, name: str, value: Any) -> None:
        """As usual; how samples are drawn may be changed later, and is saved as it then is."""
        if name == "guidance" and "drop" in self.__dict__:
            check_guidance(value, self.drop)
        super().__setattr__(name, value)
        if name in ("steps", "solver", "guidance", "density", "student") and "arguments" in self.__dict__:
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
        z, component = self.start(c, noise)
        for k in range(self.steps):
            z = self.step(z, k, c, component)
        return self.scale.restored(z)

    def start(self, c: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of the source in standardised coordinates, and the component it is of."""
        if self.choices:
            component = self.source.choose(c, noise[:, 0])
            z = self.source.draw_of(component, noise[:, self.choices :])
        else:
            z, component = self.source.draw(c, noise), torch.zeros(c.shape[0], dtype=torch.int64, device=c.device)
        return self.scale(z), component

    def vary(self, z: Tensor, c: Tensor, noise: Tensor, strength: float) -> Float[Tensor, "batch *latent"]:
        """Latents near z: back along the path towards a draw of the source, and forward along the field again.

        The draw is of the component that most likely drew z, the way back as long as `strength` says, and the way
        forward has at least six steps of the solver (SDEdit, in latents or in pixels).

        Args:
            z: latents.
            c: their conditions.
            noise: for a draw of the source, as for :meth:`draw`.
            strength: share of the path, in [0, 1]: 0 gives z, and 1 a draw of its component.

        References:
            SDEdit: guided image synthesis and editing with stochastic differential equations (Meng et al., 2022),
            https://arxiv.org/abs/2108.01073
        """
        component = self.components_of(z, c).to(z.device)
        own, drawn = self.choices, self.source.draw
        start = self.source.draw_of(component, noise[:, own:]) if own else drawn(c, noise)
        steps, begin = max(self.steps, VARIED_STEPS), 1 - strength
        at, _ = self.between(self.scale(start), self.scale(z), torch.full((), begin, dtype=z.dtype, device=z.device))
        times = [begin + k * strength / steps for k in range(steps + 1)]
        for t, after in pairwise(times):
            at = self.advance(at, (t, after), strength / steps, c, component)
        return self.scale.restored(at)

    def step(self, z: Tensor, k: int, c: Tensor, component: Tensor) -> Tensor:
        """The k-th of the solver's steps, or the student's only one, in standardised coordinates.

        Raises:
            ValueError: if the student's step is to be guided.
        """
        if self.steps == 1 and self.student is not None:
            if self.guidance:
                raise ValueError(
                    f"Expected guidance=0 with steps=1: one step is drawn by a distilled network, which learnt from "
                    f"guided samples; got guidance={self.guidance}. Take more steps to guide them, such as steps=2."
                )
            return one_step(self.student, z, c, component)
        dt = 1 / self.steps
        return self.advance(z, (k * dt, (k + 1) * dt), dt, c, component)

    def advance(self, z: Tensor, times: tuple[float, float], dt: float, c: Tensor, component: Tensor) -> Tensor:
        """A step of the solver from one time to another, dt later."""
        slope = self.field(z, times[0], c, component)
        if self.solver == "heun":
            slope = (slope + self.field(z + dt * slope, times[1], c, component)) / 2
        return z + dt * slope

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


def one_step(student: Any, z: Tensor, c: Tensor, component: Tensor) -> Tensor:
    """Where a student carries draws of the source, in standardised coordinates."""
    zeros = z.new_zeros(z.shape[:1])
    return z + student(z, zeros, c, component, zeros)


def check_guidance(guidance: float, drop: float) -> None:
    """Raise if samples are to be guided by a network that never learnt what no condition looks like."""
    if guidance > 0 and not drop:
        raise ValueError(
            f"Expected guidance=0 for a flow trained with drop=0; got {guidance}. It never saw a hidden condition: "
            "train it with drop=0.1 to guide it."
        )


class Carried(Distribution):
    """The distribution of :class:`FlowMatching`: the source's, carried along the field by the steps of its solver.

    Attributes:
        error: after `log_prob`, the standard error of each value in nats: 0 where it is exact, up to 256 latents.
    """

    arg_constraints: ClassVar = {}  # type: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    EXACT = 256  # latents up to which the very map that samples go through is inverted, and its determinant taken
    STEPS = 32  # at least, of the way back beyond that
    PROBES = 8  # of the divergence, at each step and of each latent
    SOLVED = 1e-5  # of a standardised latent, to which a step is inverted

    def __init__(self, prior: FlowMatching, c: Tensor) -> None:
        self.prior, self.c = prior, c
        self.error = torch.zeros(c.shape[0])
        super().__init__(c.shape[:1], torch.Size(prior.shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each latent, nats: over all components that its condition allows, each followed back.

        Up to 256 latents this is the density of the samples themselves, as the solver draws them in its few steps;
        beyond, that of the exact flow, with an unbiased estimate of the divergence (Hutchinson) whose noise differs
        from latent to latent and from step to step.
        """
        prior, z = self.prior, self.prior.scale(value)
        self.error = z.new_zeros(len(z))
        if not prior.choices:
            component = torch.zeros(len(z), dtype=torch.int64, device=z.device)
            start, gained, self.error = self._back(z, component, self.c)
            return prior.source(self.c).log_prob(prior.scale.restored(start)) - gained
        weights, count = prior.source.of_condition(self.c), prior.source.components
        found, spreads = z.new_full(weights.shape, -math.inf), z.new_zeros(weights.shape)
        for k in range(weights.shape[1]):
            present = weights[:, k] > 0
            if bool(present.any()):
                component = torch.full((int(present.sum()),), k, device=z.device)
                start, gained, error = self._back(z[present], component, self.c[present])
                # The joint density has the component's weight in its class; a missing label has the class's share too.
                joint = prior.source.log_joint(prior.scale.restored(start), component // count)[:, k % count]
                share = (weights[present, k] / prior.source.weights.flatten()[k]).log()
                found[present, k], spreads[present, k] = joint + share - gained, error
        self.error = (found.softmax(1) * spreads).square().sum(1).sqrt()
        return found.logsumexp(1)

    def _back(self, z: Tensor, component: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where latents came from, the logarithm of how much volumes grew on the way from there, and its error."""
        if z[0].numel() <= self.EXACT:
            return self._inverted(z, component, c)
        gained, variance, steps = z.new_zeros(len(z)), z.new_zeros(len(z)), max(self.STEPS, self.prior.steps)
        for k in range(steps, 0, -1):
            ends = []
            at = z
            for half in (0, 1):
                slope, grown, spread = self._probed(at, (k - half) / steps, component, c, 2 * k + half)
                ends.append(slope)
                gained, variance = gained + grown / steps / 2, variance + (spread / steps / 2).square()
                at = z - slope / steps
            z = z - (ends[0] + ends[1]) / steps / 2
        return z, gained, variance.sqrt()

    def _inverted(self, z: Tensor, component: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same through the very steps that samples take, each inverted, with the determinant of its Jacobian."""
        gained, prior = z.new_zeros(len(z)), self.prior
        for k in range(prior.steps - 1, -1, -1):
            start = z
            for _ in range(200):  # a fixed point: the step is the identity and a little more
                with torch.no_grad():
                    before, start = start, z - (prior.step(start, k, c, component) - start)
                if float((start - before).abs().max()) < self.SOLVED:
                    break
            else:
                start = self._newton(start, z, k, component, c)
            gained = gained + self._jacobian(start, k, component, c)[1].slogdet().logabsdet
            z = start
        return z, gained, z.new_zeros(len(z))

    def _newton(self, start: Tensor, z: Tensor, k: int, component: Tensor, c: Tensor) -> Tensor:
        """A step inverted by Newton's method, where fixed points do not attract."""
        start = start.nan_to_num(0.0).clamp(-10, 10)
        for _ in range(20):
            end, jacobian = self._jacobian(start, k, component, c)
            apart = (end - z).flatten(1)
            if float(apart.abs().max()) < self.SOLVED:
                break
            start = start - torch.linalg.lstsq(jacobian, apart[..., None]).solution[..., 0].unflatten(1, z.shape[1:])
        return start

    def _jacobian(self, start: Tensor, k: int, component: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """A step, and its Jacobian (batch, latents, latents)."""
        with torch.enable_grad():
            at = start.detach().requires_grad_()
            end = self.prior.step(at, k, c, component)
            rows = [torch.autograd.grad(own.sum(), at, retain_graph=True)[0] for own in end.flatten(1).unbind(1)]
        return end.detach(), torch.stack([row.flatten(1) for row in rows], 1)

    def _probed(self, z: Tensor, t: float, component: Tensor, c: Tensor, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """The velocity, its divergence by probes of each latent's own (Hutchinson), and the error of that."""
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            slope = self.prior.field(at, t, c, component)
            index = torch.arange(len(z), device=z.device)
            found = []
            for probe in range(self.PROBES):
                along = normal(0, index, stream(Use.POSTERIOR, place, probe), z.shape[1:], z.dtype).sign()
                (back,) = torch.autograd.grad(slope, at, along, retain_graph=True)
                found.append((back * along).flatten(1).sum(1).detach())
        each = torch.stack(found)
        return slope.detach(), each.mean(0), each.std(0) / math.sqrt(self.PROBES)
