r"""Likelihoods: the decoder's output in, :math:`p(x \mid z, c)` out.

Contract: `likelihood(parameters) → Distribution` over images x in [0, 1] with `log_prob` (per image, nats) and
`mean`; `params`, decoder channels per image channel; `measure`, what log_prob is the logarithm of:

* "mass": a probability of each of the 256 grey levels, so bits per dimension follow at once;
* "density": a density over real intensities, so bits per dimension follow on uniformly dequantised pixels;
* None: neither, for grey pixels.

A likelihood with running statistics offers `observe(parameters, x)`, which the training loop calls once a step.
Whatever the precision of the networks, probabilities are taken in float32 at least.
Distributions are built with `validate_args=False`: validation reads values back from the device, and a Bernoulli
would refuse grey pixels.
"""

__all__ = ["Bernoulli", "ContinuousBernoulli", "DiscretizedLogistic", "Gaussian", "Laplace", "Measure"]

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from condgen.nn.layers import bounded, full
from condgen.nn.parts import Part

Measure = Literal["mass", "density"] | None
Parameters = Float[Tensor, "batch parameters height width"]
LOG_SCALE_RANGE = (-8.0, 4.0)
# Of a density: from one grey level up, images as they are and dequantised ones have nearly the same density (within
# 0.04 nats a pixel for a Gaussian, 0.25 for a Laplace). Below, a pixel that never changes would earn nats without end.
DENSITY_RANGE = (-math.log(255), 4.0)
GROUP = 64  # factors of 1/2 to 1 whose product neither underflows nor loses digits


class Bernoulli(Part):
    r"""Independent Bernoulli pixels: binary cross-entropy with logits, a probability only for images of 0 and 1.

    .. math:: \log p(x \mid z, c) = \sum_i x_i \log \sigma(\ell_i) + (1 - x_i) \log \sigma(-\ell_i)

    On grey pixels this is a useful training signal but no density: it has a floor (the entropy of the grey
    values) and its nats compare with nothing but themselves. Bits per dimension are refused.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114

    Example:
        >>> p = Bernoulli()(torch.zeros(2, 1, 28, 28))
        >>> p.log_prob(torch.ones(2, 1, 28, 28)) / 784  # a fair coin: log 1/2 per pixel
        tensor([-0.6931, -0.6931])
    """

    params = 1
    measure: Measure = None

    def forward(self, parameters: Parameters) -> Distribution:
        """Logits (batch, channels, height, width) → a distribution over x."""
        return BernoulliImages(torch.distributions.Bernoulli(logits=full(parameters), validate_args=False), 3)


class BernoulliImages(Independent):
    """Bernoulli pixels as a distribution over images, with a log-probability made for speed."""

    def __init__(self, pixels: Distribution, dims: int) -> None:
        super().__init__(pixels, dims, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Per image, in nats."""
        return BernoulliLogProb.apply(*torch.broadcast_tensors(self.base_dist.logits, value))  # type: ignore[return-value]

    def expand(self, batch_shape: Any, _instance: Any = None) -> Independent:
        """As torch's own, per image."""
        return BernoulliImages(self.base_dist.expand(torch.Size(batch_shape) + self.event_shape), 3)


class BernoulliLogProb(torch.autograd.Function):
    r"""Binary cross-entropy of logits with few logarithms, which are most of its cost on a CPU.

    .. math:: \log p = \sum_i \ell_i \, (x_i - [\ell_i > 0]) + \sum_g \log \prod_{i \in g} \sigma(|\ell_i|),
              \qquad \frac{\partial \log p}{\partial \ell_i} = x_i - \sigma(\ell_i)

    Every factor lies in [1/2, 1], so a group of up to 64 neither underflows nor loses digits, and all terms have one
    sign, so nothing cancels.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """Logits and pixels of one shape (..., channels, height, width) → (...)."""
        factors = logits.abs().sigmoid_().flatten(-3)
        numbers = factors.shape[-1]
        group = max(size for size in range(1, GROUP + 1) if numbers % size == 0)
        logs = factors.unflatten(-1, (group, numbers // group)).prod(-2).log_()
        missed = (x - (logits > 0).to(logits.dtype)).mul_(logits)
        return missed.flatten(-3).sum(-1) + logs.sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # type: ignore[override]  # noqa: ARG004
        """What the gradients need."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        """Gradients with respect to both."""
        logits, x = ctx.saved_tensors
        gradient = gradient[..., None, None, None]
        of_logits = (x - logits.sigmoid()) * gradient if ctx.needs_input_grad[0] else None
        return of_logits, logits * gradient if ctx.needs_input_grad[1] else None


class ContinuousBernoulli(Part):
    r"""The density on [0, 1] that binary cross-entropy forgets to normalise.

    .. math:: p(x \mid \ell) = C(\lambda) \, \lambda^x (1 - \lambda)^{1 - x}, \qquad \lambda = \sigma(\ell)

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019), https://arxiv.org/abs/1907.06845

    Example:
        >>> ContinuousBernoulli()(torch.zeros(1, 1, 2, 2)).log_prob(torch.rand(1, 1, 2, 2))  # uniform at logit 0
        tensor([0.])
    """

    params = 1
    measure: Measure = "density"

    def forward(self, parameters: Parameters) -> Distribution:
        """Logits (batch, channels, height, width) → a distribution over x."""
        return per_image(TiltedUniform(full(parameters)))


class TiltedUniform(Distribution):
    r"""The distribution of :class:`ContinuousBernoulli`, pixel by pixel, from logits.

    .. math:: p(x) = \frac{e^{\ell x}}{\int_0^1 e^{\ell t} \, dt} = \frac{\ell \, e^{\ell x}}{e^\ell - 1}

    torch's own class goes through probabilities, which run out of digits for black and white pixels: beyond logits
    of 16 in float32 it no longer integrates to one, and its mean stays within [0.063, 0.937].
    """

    arg_constraints: ClassVar = {}  # type: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    SERIES = 0.25  # below, a series: the closed form loses digits to cancellation

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of each pixel, in nats."""
        return (value - 0.5) * self.logits - self._log_normalizer()

    def _log_normalizer(self) -> Tensor:
        r"""Log of :math:`\int_0^1 e^{\ell (t - 1/2)} dt = \sinh(\ell / 2) / (\ell / 2)`."""
        size = self.logits.abs().clamp(min=self.SERIES)
        square = self.logits.clamp(-self.SERIES, self.SERIES).square()
        series = square * (1 / 24 - square * (1 / 2880 - square / 181440))
        exact = size / 2 + torch.log(-torch.expm1(-size)) - torch.log(size)
        return torch.where(self.logits.abs() < self.SERIES, series, exact)

    @property
    def mean(self) -> Tensor:
        r"""Expected intensity, :math:`1 / (1 - e^{-\ell}) - 1 / \ell`."""
        small, square = self.logits.abs() < self.SERIES, self.logits.square()
        series = 0.5 + self.logits * (1 / 12 - square * (1 / 720 - square / 30240))
        logits = torch.where(small, torch.ones_like(self.logits), self.logits)
        return torch.where(small, series, -1 / torch.expm1(-logits) - 1 / logits)


class Scaled(Part):
    """What likelihoods with a location and a scale a pixel have in common: four ways to come by the scale.

    It is never below one grey level, 1/255.

    Declares `location`, `distribution` and `spread`; a likelihood says what they are.
    """

    measure: Measure = "density"
    variance: Tensor  # the running statistic
    observations: Tensor
    MOMENTUM = 0.01

    def __init__(self, scale: float | str) -> None:
        super().__init__()
        if scale not in ("shared", "pixel", "optimal") and (isinstance(scale, str) or not scale > 0):
            raise ValueError(f"Expected a positive scale, 'shared', 'pixel' or 'optimal'; got {scale!r}.")
        self.scale = scale
        self.params = 2 if scale == "pixel" else 1
        if scale == "shared":
            self.log_scale = nn.Parameter(torch.zeros(()))
        if scale == "optimal":
            self.register_buffer("variance", torch.ones(()))
            self.register_buffer("observations", torch.zeros(()))

    def location(self, parameters: Tensor) -> Tensor:
        """Where a pixel's density is centred."""
        raise NotImplementedError

    def distribution(self, location: Tensor, scale: Tensor) -> Distribution:
        """Of pixels."""
        raise NotImplementedError

    def spread(self, error: Tensor) -> Tensor:
        """The statistic of errors whose running mean gives the best scale."""
        raise NotImplementedError

    def best_scale(self) -> Tensor:
        """The scale that the running statistic gives."""
        raise NotImplementedError

    def forward(self, parameters: Parameters) -> Distribution:
        """Locations, and for "pixel" log-scales → a distribution over x (batch, channels, height, width)."""
        values, *log_scales = full(parameters).chunk(self.params, dim=1)
        location = self.location(values)
        if self.scale == "pixel":
            scale = bounded(log_scales[0], *DENSITY_RANGE).exp()
        elif self.scale == "shared":
            scale = bounded(self.log_scale, *DENSITY_RANGE).exp()
        elif self.scale == "optimal":
            scale = self.best_scale().clamp(min=math.exp(DENSITY_RANGE[0]))
        else:
            scale = torch.full_like(location, float(self.scale))
        return per_image(self.distribution(location, scale.expand_as(location)))

    @torch.no_grad()
    def observe(self, parameters: Parameters, x: Float[Tensor, "batch channels height width"]) -> None:
        """Move the running statistic towards this batch's; only "optimal" keeps one."""
        if self.scale != "optimal":
            return
        found = self.spread(self.location(full(parameters)) - x).mean()
        # The plain average of the first batches, so that the start of training is forgotten soon.
        self.observations += 1
        weight = self.observations.reciprocal().clamp(min=self.MOMENTUM)
        self.variance.lerp_(found, weight)


class Gaussian(Scaled):
    r"""Independent Gaussian pixels :math:`\mathcal N(\sigma(\ell_i), s^2)`; means are logits, so they stay in (0, 1).

    Args:
        scale: the standard deviation s, in units of intensity: a number (fixed); "shared" (one learned number);
            "pixel" (the decoder gives each pixel its own: two channels per image channel, logits then log-scales);
            "optimal" (the root mean squared error, kept as a running average over training batches).

    Raises:
        ValueError: for any other scale.

    References:
        Simple and effective VAE training with calibrated decoders (Rybkin, Daniilidis & Levine, 2021),
        https://arxiv.org/abs/2006.13202, for "optimal": with s at its optimum the gradient with respect to the
        means is that of the paper's analytic variance, since the derivative with respect to s vanishes there.

    Example:
        >>> p = Gaussian(scale=0.1)(torch.zeros(1, 3, 8, 8))
        >>> p.log_prob(torch.full((1, 3, 8, 8), 0.5)) / 192  # -log(0.1 sqrt(2 pi)) per pixel
        tensor([1.3836])
    """

    def __init__(self, scale: float | str = "optimal") -> None:
        super().__init__(scale)

    def location(self, parameters: Tensor) -> Tensor:
        """Means from logits."""
        return parameters.sigmoid()

    def distribution(self, location: Tensor, scale: Tensor) -> Distribution:
        """Normal pixels."""
        return Normal(location, scale, validate_args=False)

    def spread(self, error: Tensor) -> Tensor:
        """Squares."""
        return error.square()

    def best_scale(self) -> Tensor:
        """The root of the mean square."""
        return self.variance.sqrt()


class Laplace(Scaled):
    r"""Independent Laplace pixels, mean absolute error as a likelihood: sharper than squares, which fear large errors.

    .. math:: p(x \mid z, c) = \prod_i \frac{1}{2 b} e^{-|x_i - \mu_i| / b}, \qquad \mu_i = \tfrac12 (1 + \ell_i)

    The network's output :math:`\ell` is the image in units of [-1, 1], as it is. The image shown is :math:`\mu`, cut to
    [0, 1].

    Args:
        scale: b, in units of intensity: a number (fixed); "shared" (one learned number); "pixel" (the decoder gives
            each pixel its own: two channels per image channel, locations then log-scales); "optimal" (the mean absolute
            error, which maximises the likelihood, kept as a running average over training batches).

    Raises:
        ValueError: for any other scale.

    References:
        Simple and effective VAE training with calibrated decoders (Rybkin, Daniilidis & Levine, 2021),
        https://arxiv.org/abs/2006.13202, for scales at their optimum

    Example:
        >>> p = Laplace(scale=0.1)(torch.zeros(1, 3, 8, 8))
        >>> p.log_prob(torch.full((1, 3, 8, 8), 0.5)) / 192  # -log(2 * 0.1) per pixel
        tensor([1.6094])
    """

    def __init__(self, scale: float | str = "optimal") -> None:
        super().__init__(scale)

    def location(self, parameters: Tensor) -> Tensor:
        """Medians from units of [-1, 1]."""
        return (1 + parameters) / 2

    def distribution(self, location: Tensor, scale: Tensor) -> Distribution:
        """Laplace pixels."""
        return LaplacePixels(location, scale, validate_args=False)

    def spread(self, error: Tensor) -> Tensor:
        """Absolute values."""
        return error.abs()

    def best_scale(self) -> Tensor:
        """The mean absolute error."""
        return self.variance


class LaplacePixels(torch.distributions.Laplace):
    """Laplace pixels whose mean is an image."""

    @property
    def mean(self) -> Tensor:
        """The location, cut to [0, 1]."""
        return self.loc.clamp(0, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LaplacePixels":
        """As torch's own."""
        return super().expand(batch_shape, self._get_checked_instance(LaplacePixels, _instance))


class DiscretizedLogistic(Part):
    r"""A logistic distribution cut into the 256 grey levels, the outer levels taking the tails.

    .. math:: P(x) = \sigma\!\left(\frac{x + \frac{1}{510} - \mu}{s}\right)
                   - \sigma\!\left(\frac{x - \frac{1}{510} - \mu}{s}\right), \qquad x \in \{0, \tfrac1{255}, \dots, 1\}

    The decoder gives two channels per image channel: :math:`4 (\mu - \frac12)` and :math:`\log s`, shifted so that
    an untrained network starts at mid-grey with s near 0.1.

    References:
        Improved variational inference with inverse autoregressive flow (Kingma et al., 2016),
        https://arxiv.org/abs/1606.04934; PixelCNN++ (Salimans et al., 2017), https://arxiv.org/abs/1701.05517

    Example:
        >>> p = DiscretizedLogistic()(torch.randn(1, 2, 8, 8))
        >>> levels = torch.linspace(0, 1, 256).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        >>> p.level_log_prob(levels).exp().sum(0).allclose(torch.ones(1, 8, 8), atol=1e-5)
        True
    """

    params = 2
    measure: Measure = "mass"

    def forward(self, parameters: Parameters) -> "LogisticLevels":
        """(batch, 2 * channels, height, width) → a distribution over x (batch, channels, height, width)."""
        mean, log_scale = full(parameters).chunk(2, dim=1)
        return LogisticLevels(0.5 + mean / 4, bounded(log_scale - math.log(10), *LOG_SCALE_RANGE))


class LogisticLevels(Distribution):
    """The distribution of :class:`DiscretizedLogistic`: location and log-scale per pixel."""

    arg_constraints: ClassVar = {}  # type: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, location: Tensor, log_scale: Tensor) -> None:
        self.location, self.scale = location, log_scale.exp()
        super().__init__(location.shape[:1], location.shape[1:], validate_args=False)

    def level_log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each pixel's grey level, in nats, pixels kept."""
        half = 0.5 / 255
        above = (value + half - self.location) / self.scale
        below = (value - half - self.location) / self.scale
        # log(sigma(a) - sigma(b)) = log sigma(a) + log sigma(-b) + log(1 - exp(b - a)), stable everywhere.
        inside = torch.log(-torch.expm1(-2 * half / self.scale))
        middle = F.logsigmoid(above) + F.logsigmoid(-below) + inside
        value = value.expand_as(middle)
        return torch.where(
            value < half, F.logsigmoid(above), torch.where(value > 1 - half, F.logsigmoid(-below), middle)
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Per image, summed over pixels, in nats."""
        return self.level_log_prob(value).flatten(1).sum(1)

    @property
    def mean(self) -> Tensor:
        r"""Expected intensity, within half a grey level, as the mean of the logistic clipped to [0, 1].

        .. math:: \int_0^1 P(X > t) \, dt = s \left[ \log(1 + e^{\mu / s}) - \log(1 + e^{(\mu - 1) / s}) \right]
        """
        softplus = F.softplus(self.location / self.scale) - F.softplus((self.location - 1) / self.scale)
        return (self.scale * softplus).clamp(0, 1)


def per_image(pixels: Distribution) -> Distribution:
    """A distribution over pixels (batch, channels, height, width) as one over images."""
    return Independent(pixels, 3, validate_args=False)
