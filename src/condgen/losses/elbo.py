r"""The evidence lower bound from its terms: beta and its schedules, free bits, many samples, bits per dimension.

.. math:: \log p(x \mid y) \ge \mathbb E_{q(z \mid x, c)} \log p(x \mid z, c)
          - \beta \, \mathrm{KL}\big(q(z \mid x, c) \,\|\, p(z \mid c)\big)

One reduction rule holds everywhere: log-probabilities and KL are summed over pixels and latents and kept per image,
in nats; only the loss averages over the batch. So beta = 1 is the bound at every image size and batch size.
"""

__all__ = [
    "ELBO",
    "Constant",
    "Cyclical",
    "Inference",
    "LinearWarmup",
    "Schedule",
    "bits_per_dimension",
    "dequantize",
    "importance_weighted",
    "kl_per_latent",
]

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from condgen.distributions.likelihoods import Bernoulli, Measure


@dataclass(frozen=True)
class Inference:
    """What a model makes of a batch, per image, in nats.

    Attributes:
        log_likelihood: log p(x | z, c) of the image.
        label_log_likelihood: log-likelihood of the label planes, where the model redraws them; else None.
        kl_terms: one (batch, latents) tensor per latent level; (batch, 1) where the KL does not factorise.
        z: the latent drawn.
        p: the distribution over x.
        q: the posterior z was drawn from.
        output: of the decoder, what p was made of.

    For latents of several levels, z and q are tuples.
    """

    log_likelihood: Float[Tensor, " batch"]
    label_log_likelihood: Float[Tensor, " batch"] | None
    kl_terms: tuple[Float[Tensor, "batch ..."], ...]
    z: Tensor | tuple[Tensor, ...]
    p: Distribution
    q: Distribution | tuple[Distribution, ...]
    output: Tensor | None = None

    @property
    def kl(self) -> Float[Tensor, " batch"]:
        """KL(q(z | x, c) || p(z | c)), all levels together."""
        return torch.stack([term.flatten(1).sum(1) for term in self.kl_terms]).sum(0)


def kl_per_latent(q: Distribution, p: Distribution, z: Tensor) -> Float[Tensor, "batch *latents"]:
    r"""KL(q || p) in nats: per latent where both factorise over latents, else one number per image (batch, 1).

    Where torch knows no closed form (a flow, a mixture) this is the one-sample estimate
    :math:`\log q(z) - \log p(z)` at z drawn from q.

    Example:
        >>> from torch.distributions import Normal
        >>> q = Independent(Normal(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2)), 1)
        >>> p = Independent(Normal(torch.zeros(1, 2), torch.ones(1, 2)), 1)
        >>> kl_per_latent(q, p, torch.zeros(1, 2))  # (mu^2 + sigma^2 - log sigma^2 - 1) / 2
        tensor([[0.5000, 0.0000]])
    """
    try:
        if isinstance(q, Independent) and isinstance(p, Independent):
            pair = q.base_dist, p.base_dist
            return kl_of_normals(*pair) if type(pair[0]) is type(pair[1]) is Normal else kl_divergence(*pair)
        return kl_divergence(q, p).unsqueeze(1)
    except NotImplementedError:
        return (q.log_prob(z) - p.log_prob(z)).unsqueeze(1)


def kl_of_normals(q: Normal, p: Normal) -> Tensor:
    r"""KL of normals, elementwise; torch's own looks the pair up in a table, which breaks a compiled graph.

    .. math:: \tfrac12 \left[ \frac{\sigma_q^2}{\sigma_p^2} + \frac{(\mu_q - \mu_p)^2}{\sigma_p^2} - 1
              - \log \frac{\sigma_q^2}{\sigma_p^2} \right]
    """
    ratio = (q.scale / p.scale).pow(2)
    return 0.5 * (ratio + ((q.loc - p.loc) / p.scale).pow(2) - 1 - ratio.log())


@runtime_checkable
class Schedule(Protocol):
    """beta as a function of training time in epochs: 2.5 is half way through the third. `final` is where it ends."""

    @property
    def final(self) -> float: ...  # noqa: D102

    def __call__(self, epoch: float) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Constant:
    """The same beta throughout.

    Example:
        >>> Constant(0.5)(7.0)
        0.5
    """

    beta: float = 1.0

    @property
    def final(self) -> float:
        """The value that validation uses."""
        return self.beta

    def __call__(self, epoch: float) -> float:
        """Beta."""
        return self.beta


@dataclass(frozen=True)
class LinearWarmup:
    """From 0 to beta over the first `epochs`, then constant.

    Raises:
        ValueError: unless epochs is positive.

    References:
        Ladder variational autoencoders (Sønderby et al., 2016), https://arxiv.org/abs/1602.02282

    Example:
        >>> [LinearWarmup(epochs=10)(epoch) for epoch in (0, 5, 20)]
        [0.0, 0.5, 1.0]
    """

    epochs: float
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not self.epochs > 0:
            raise ValueError(f"Expected a positive number of epochs; got {self.epochs}. Use Constant for no warm-up.")

    @property
    def final(self) -> float:
        """The value that validation uses."""
        return self.beta

    def __call__(self, epoch: float) -> float:
        """Beta at this time."""
        return self.beta * min(1.0, epoch / self.epochs)


@dataclass(frozen=True)
class Cyclical:
    """From 0 to beta again and again: a linear rise over `rise` of every period, then constant to its end.

    Raises:
        ValueError: unless period is positive and rise in (0, 1].

    References:
        Cyclical annealing schedule: a simple approach to mitigating KL vanishing (Fu et al., 2019),
        https://arxiv.org/abs/1903.10145

    Example:
        >>> [Cyclical(period=10)(epoch) for epoch in (0, 2.5, 7, 10)]
        [0.0, 0.5, 1.0, 0.0]
    """

    period: float
    beta: float = 1.0
    rise: float = 0.5

    def __post_init__(self) -> None:
        if not (self.period > 0 and 0 < self.rise <= 1):
            raise ValueError(f"Expected a positive period and rise in (0, 1]; got {self.period} and {self.rise}.")

    @property
    def final(self) -> float:
        """The value that validation uses."""
        return self.beta

    def __call__(self, epoch: float) -> float:
        """Beta at this time."""
        return self.beta * min(1.0, (epoch % self.period) / self.period / self.rise)


class ELBO(nn.Module):
    r"""The negative bound as a training objective; label planes, where the model redraws them, are part of it.

    .. math:: \mathcal L = -\frac1B \sum_b \log p(x_b \mid z_b, c_b)
              + \beta \sum_j \max\Big(\lambda, \frac1B \sum_b \mathrm{KL}_{bj}\Big)

    Args:
        beta: weight of the KL, a number or a schedule in epochs.
        free_bits: lambda, nats per latent (per channel of a latent map, per level where the KL does not factorise) that
            cost nothing.

    Raises:
        ValueError: for a negative beta or free_bits.

    References:
        beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl; free bits: Improved variational
        inference with inverse autoregressive flow (Kingma et al., 2016), https://arxiv.org/abs/1606.04934

    Example:
        >>> import condgen
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2, latent=4)
        >>> x, y = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 0, 1, 1])
        >>> terms = ELBO()(model(x, y, {"z": torch.randn(5, 4)}))
        >>> torch.isclose(terms["loss"], terms["kl"] - terms["log_likelihood"])
        tensor(True)
    """

    def __init__(self, beta: float | Schedule = 1.0, free_bits: float = 0.0) -> None:
        super().__init__()
        self.beta: Schedule = Constant(float(beta)) if isinstance(beta, int | float) else beta
        self.free_bits = free_bits
        self.output: Tensor | None = None  # of the decoder in this step of training
        if self.beta.final < 0 or free_bits < 0:
            raise ValueError(f"Expected beta and free_bits of 0 or more; got {self.beta.final} and {free_bits}.")

    @property
    def schedules(self) -> dict[str, Schedule]:
        """What changes over time."""
        return {"beta": self.beta}

    def extra_repr(self) -> str:
        """As it was built."""
        return f"beta={self.beta}, free_bits={self.free_bits}"

    def forward(self, inference: Inference, beta: float | Tensor | None = None) -> dict[str, Tensor]:
        """One batch's terms, in nats per image, averaged over the batch.

        Args:
            inference: what :meth:`condgen.ConditionalVAE.infer` returns.
            beta: of this step; by default the final one.

        Returns:
            "loss" to minimise; "elbo" (log_likelihood - kl, whatever beta is); "log_likelihood"; "kl"; and
            "label_log_likelihood" where label planes are redrawn.
        """
        if self.training and inference.output is not None:
            self.output = inference.output.detach()
        log_likelihood, kl = inference.log_likelihood.mean(), inference.kl.mean()
        cost = sum_of_free(inference.kl_terms, self.free_bits) if self.free_bits else kl
        loss = (self.beta.final if beta is None else beta) * cost - log_likelihood
        terms = {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}
        if inference.label_log_likelihood is not None:
            terms["label_log_likelihood"] = inference.label_log_likelihood.mean()
            loss = loss - terms["label_log_likelihood"]
        return {"loss": loss, **terms}

    def loss(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch channels height width"],
        y: Shaped[Tensor, "batch ..."],
        noise: Mapping[str, Tensor],
        beta: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of a batch: `model.infer`, then :meth:`forward`."""
        return self(model.infer(x, y, noise), beta)  # type: ignore[operator]

    def after_step(self, model: Any, x: Float[Tensor, "batch channels height width"]) -> None:
        """Let a likelihood with running statistics see the images and the decoder's output of this step."""
        output, self.output = self.output, None
        if output is None or not hasattr(model.likelihood, "observe"):
            return
        model.likelihood.observe(output, x)
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # as if one had seen all images
            for buffer in model.likelihood.buffers():
                if buffer.is_floating_point():
                    torch.distributed.all_reduce(buffer)
                    buffer /= torch.distributed.get_world_size()


def sum_of_free(kl_terms: Iterable[Float[Tensor, "batch ..."]], free_bits: float) -> Float[Tensor, ""]:
    """The KL with `free_bits` nats of every latent (averaged over the batch) at no cost."""
    means = (term.mean(0) for term in kl_terms)
    totals = [(mean.sum((1, 2)) if mean.ndim == 3 else mean).clamp(min=free_bits).sum() for mean in means]
    return torch.stack(totals).sum()


def importance_weighted(log_weights: Iterable[Float[Tensor, "_ batch"]]) -> Float[Tensor, " batch"]:
    r"""The bound of k samples, :math:`\log \frac1k \sum_i w_i`, from chunks of log-weights as they come.

    .. math:: w_i = \frac{p(x \mid z_i, c) \, p(z_i \mid c)}{q(z_i \mid x, c)}, \quad z_i \sim q

    It grows with k towards log p(x | y). Memory is bounded by one chunk where the chunks are made one by one.

    Raises:
        ValueError: without any sample.

    References:
        Importance weighted autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> importance_weighted([torch.zeros(2, 1), torch.full((2, 1), math.log(3.0))]).exp()  # mean of 1, 1, 3, 3
        tensor([2.])
    """
    total, count = None, 0
    for chunk in log_weights:
        part = chunk.logsumexp(0)
        total = part if total is None else torch.logaddexp(total, part)
        count += len(chunk)
    if total is None:
        raise ValueError("Expected at least one sample; got none.")
    return total - math.log(count)


def dequantize(
    x: Float[Tensor, "batch channels height width"], u: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """Grey levels spread uniformly over their cells: level k of 256 becomes (k + u) / 256, u in [0, 1).

    References:
        A note on the evaluation of generative models (Theis, van den Oord & Bethge, 2016),
        https://arxiv.org/abs/1511.01844

    Example:
        >>> dequantize(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5)) * 256
        tensor([[[[255.5000]]]])
    """
    return ((255 * x).round() + u) / 256


def bits_per_dimension(
    log_likelihood: Float[Tensor, " batch"], measure: Measure, dimensions: int
) -> Float[Tensor, " batch"]:
    r"""Nats per image as bits per pixel and channel.

    A "mass" over the 256 grey levels gives :math:`-\log p / (D \log 2)`; a "density" at dequantised pixels (see
    :func:`dequantize`) gives :math:`8` more, since each of the D cells is 1/256 wide.

    Args:
        log_likelihood: log p(x | y) or a bound on it, nats.
        measure: the likelihood's.
        dimensions: D, channels * height * width.

    Raises:
        ValueError: where measure is None: that log_prob is no probability of a grey image.

    Example:
        >>> bits_per_dimension(torch.tensor([-784 * math.log(256.0)]), "mass", 784)  # all levels equally likely
        tensor([8.])
    """
    if measure is None:
        raise ValueError(
            "Bits per dimension need a probability of grey levels; binary cross-entropy on grey pixels is none (it "
            "does not sum to one). Use likelihoods.DiscretizedLogistic, Gaussian or ContinuousBernoulli."
        )
    bits = -log_likelihood / (dimensions * math.log(2))
    return bits + 8 if measure == "density" else bits


def label_log_likelihood(
    logits: Float[Tensor, "batch classes height width"], c: Float[Tensor, "batch classes"]
) -> Tensor:
    """Bernoulli log-likelihood of one-hot label planes, summed over planes, nats per image."""
    return Bernoulli()(logits).log_prob(c[:, :, None, None].expand_as(logits))
