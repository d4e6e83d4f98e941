r"""The conditional VAE: parts go into the class, numbers go into the builder.

Generative story: a label y gives a condition c, a latent z is drawn from :math:`p(z \mid c)`, an image x from
:math:`p(x \mid z, c)`. Training infers z from x and c with :math:`q(z \mid x, c)` and maximises the ELBO
(:mod:`condgen.losses.elbo`).
"""

__all__ = ["ConditionalVAE", "conditional_vae"]

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from condgen.distributions.likelihoods import Bernoulli
from condgen.distributions.priors.standard import StandardNormal
from condgen.distributions.reparameterizers import Gaussian
from condgen.losses.elbo import (
    ELBO,
    Inference,
    bits_per_dimension,
    dequantize,
    importance_weighted,
    kl_per_latent,
    label_log_likelihood,
)
from condgen.models.generator import Generator, Images, Labels, shape
from condgen.models.latents import Latent, check_latents, gathered, latent_noise, latent_shapes, levels
from condgen.models.mixing import mixed, mixing_noise
from condgen.models.networks import plain_networks, residual_networks
from condgen.nn.conditioners import OneHot, Unconditional
from condgen.nn.layers import Modulation, Norm
from condgen.nn.parts import evaluating
from condgen.random import Use, normals, stream, uniform


class ConditionalVAE(Generator):
    r"""A conditional variational autoencoder, assembled from parts.

    Each part is any module that can be called as described here; nothing has to be subclassed.
    :func:`conditional_vae` builds the same from numbers.

    Args:
        conditioner: turns labels into conditions, y → c.
        encoder: turns images and conditions into the parameters of the posterior, (x, c) → parameters of q(z | x, c).
        reparameterizer: turns these parameters into the distribution q, and draws latents from it.
        prior: turns conditions into the distribution p(z | c), against which the KL divergence is taken.
        decoder: turns latents and conditions into the parameters of the image's distribution, (z, c) → parameters.
        likelihood: turns these parameters into the distribution p(x | z, c).
        sampler: the prior that samples are drawn from, if it is another one: a prior that was fitted after training
            (:func:`condgen.fit_prior`). It needs only `draw`; a density is not required.
        output_labels: the decoder also redraws the label planes: its last channels, one per class, are their
            logits. Needs `OneHot`.
        image_shape: (channels, height, width); by default that of the encoder, if it has one.
        label_mixing: how far the condition that samples and variations are decoded under is moved towards that of
            another class, drawn at random for each image, in [0, 1]. A decoder that is told the label draws a texture
            for it, which real images do not have; a classifier that is trained on samples learns that texture instead
            of the class. At 0.5 it can no longer rely on it. Larger images lose their class with it: at 64x64 it helps
            only where a teacher labels them. To look at, images are best at 0. May be changed later.
        latent_mixing: how far at most, in [0, 1], the latents of every second sample or variation are moved towards a
            draw of that other class. Such images are of no class for certain. They are for classifiers that learn a
            teacher's probabilities, and show them where classes end. May be changed later.
        grain: the fine random texture that is added to samples and variations, if there is any
            (:func:`condgen.fit_grain`). May be set to None later.

    Raises:
        ValueError: if output_labels is asked for with another conditioner than `OneHot`.

    References:
        Learning structured output representation using deep conditional generative models
        (Sohn, Lee & Yan, 2015), https://papers.nips.cc/paper/5775

    Example:
        >>> from condgen.nn import conditioners, decoders, encoders
        >>> from condgen.distributions import likelihoods, reparameterizers
        >>> from condgen.distributions import priors
        >>> model = ConditionalVAE(
        ...     conditioner=conditioners.OneHot(2),
        ...     encoder=encoders.ConvEncoder((1, 8, 8), condition_dim=2, latent=4, channels=(8,), strides=(2,)),
        ...     reparameterizer=reparameterizers.Gaussian(),
        ...     prior=priors.StandardNormal(4),
        ...     decoder=decoders.DeconvDecoder((1, 8, 8), latent=4, condition_dim=2, channels=(8,), strides=(2,)),
        ...     likelihood=likelihoods.Bernoulli(),
        ... )
        >>> model.sample([0, 1, 1], seed=0).shape
        torch.Size([3, 1, 8, 8])
        >>> model
        ConditionalVAE: 2,225 parameters
          conditioner     OneHot           y → c (2)                         0
          encoder         ConvEncoder      x (1, 8, 8), c (2) → (8)      1,256
          reparameterizer Gaussian         (8) → z (4)                       0
          prior           StandardNormal   c (2) → z (4)                     0
          decoder         DeconvDecoder    z (4), c (2) → (1, 8, 8)        969
          likelihood      Bernoulli        (1, 8, 8) → x (1, 8, 8)           0
    """

    encoder: Any
    reparameterizer: Any
    prior: Any
    decoder: Any
    likelihood: Any
    sampler: Any
    grain: Any

    def __init__(
        self,
        *,
        conditioner: nn.Module,
        encoder: nn.Module,
        reparameterizer: nn.Module,
        prior: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        sampler: nn.Module | None = None,
        output_labels: bool = False,
        image_shape: tuple[int, int, int] | None = None,
        label_mixing: float = 0.0,
        latent_mixing: float = 0.0,
        grain: nn.Module | None = None,
    ) -> None:
        super().__init__(conditioner, image_shape or getattr(encoder, "image_shape", None))
        if output_labels and not isinstance(conditioner, OneHot):
            raise ValueError(f"Expected OneHot for output_labels; got {type(conditioner).__name__}. Leave it out.")
        self.encoder, self.reparameterizer = encoder, reparameterizer
        self.prior, self.decoder, self.likelihood = prior, decoder, likelihood
        self.sampler, self.grain = sampler, grain
        self.output_labels, self.label_mixing, self.latent_mixing = output_labels, label_mixing, latent_mixing

    # The model as mathematics: tensors on the model's device, no checks, one pass.

    def infer(self, x: Images, y: Shaped[Tensor, "batch ..."], noise: dict[str, Tensor]) -> Inference:
        """The terms of the ELBO for a batch.

        Args:
            x: images in [0, 1].
            y: labels the conditioner takes.
            noise: standard normal, one tensor for every name in `noise_shapes`.
        """
        c = self.condition(y, noise.get("label"))
        parameters = self.encoder(x, c)
        q = self.reparameterizer(parameters)
        check_latents(q, self.prior.noise_shape)
        z = self.reparameterizer.draw(parameters, latent_noise(noise))
        output, label_logits = self._split(self.decoder(z, c))
        p = self.likelihood(output)
        return Inference(
            log_likelihood=p.log_prob(x),
            label_log_likelihood=None if label_logits is None else label_log_likelihood(label_logits, c),
            kl_terms=tuple(map(kl_per_latent, levels(q), levels(self.prior(c)), levels(z))),
            z=z,
            p=p,
            q=q,
            output=output,
        )

    forward = infer

    def posterior(self, x: Images, y: Shaped[Tensor, "batch ..."]) -> Any:
        """q(z | x, c), a distribution, or a tuple of them for several levels."""
        return self.reparameterizer(self.encoder(x, self.condition(y)))

    def decode(self, z: Latent, y: Shaped[Tensor, "batch ..."]) -> Distribution:
        """p(x | z, c)."""
        return self.decode_from(z, self.condition(y))

    def decode_from(self, z: Latent, c: Float[Tensor, "batch dim"]) -> Distribution:
        """p(x | z, c) from a condition, which may lie between those of labels."""
        return self.likelihood(self._split(self.decoder(z, c))[0])

    def draw(self, y: Shaped[Tensor, "batch ..."], noise: dict[str, Tensor]) -> Images:
        """Labels and noise → images in [0, 1]: :meth:`finish` of z drawn from the sampler, or the prior."""
        c = self.condition(y)
        return self.finish(self.source.draw(c, latent_noise(noise)), c, noise)

    def finish(self, z: Latent, c: Float[Tensor, "batch dim"], noise: dict[str, Tensor]) -> Images:
        """Decode latents into new images: first mixed with another class if the model mixes, at last with grain."""
        x = self.decode_from(*mixed(self, z, c, noise)).mean
        return x if self.grain is None else self.grain(x, noise["grain"])

    @property
    def source(self) -> Any:
        """The prior that samples are drawn from, which is the sampler if one was fitted, otherwise `prior`."""
        return self.prior if self.sampler is None else self.sampler

    @property
    def choices(self) -> int:
        """Number of leading noise values that choose something, such as a mixture component, and are not scaled."""
        return getattr(self.source, "choices", 0)

    def objective(self) -> ELBO:
        """The loss that it is trained by unless another one is given: the negative ELBO."""
        return ELBO()

    def trial(self, x: Images, y: Shaped[Tensor, "batch ..."], noise: dict[str, Tensor]) -> Float[Tensor, " batch"]:
        """The log-likelihood, nats per image."""
        return self.infer(x, y, noise).log_likelihood

    @property
    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that inference about one image needs."""
        return latent_shapes(self.prior.noise_shape) | self.label_noise

    @property
    def sampling_noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that drawing one image needs."""
        grain = {} if self.grain is None else {"grain": tuple(self.grain.noise_shape)}
        return latent_shapes(self.source.noise_shape) | mixing_noise(self) | grain

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """The decoder's output as the likelihood's parameters and the label planes' logits."""
        planes = self.conditioner.dim if self.output_labels else 0
        if self.image_shape:
            expected = (self.likelihood.params * self.image_shape[0] + planes, *self.image_shape[1:])
            if output.shape[1:] != expected:
                raise ValueError(
                    f"Expected decoder output of shape (batch, {', '.join(map(str, expected))}), which is "
                    f"{self.likelihood.params} per image channel{f' and {planes} label planes' if planes else ''}; got "
                    f"{tuple(output.shape)}. Change the decoder's last layer or the likelihood."
                )
        if not planes:
            return output, None
        parameters, logits = output.split([output.shape[1] - planes, planes], 1)  # the gradient is one concatenation
        return parameters, logits

    # The model in use: labels of any kind, checked; deterministic; no gradients.

    @torch.no_grad()
    def encode(self, x: np.ndarray | Tensor, y: Labels) -> Latent:
        """The posterior's mean: deterministic, in training mode and out of it; a tuple for several levels."""
        with evaluating(self):
            return gathered([q.mean for q in levels(self.posterior(*self.pair(x, y)))])

    @torch.no_grad()
    def reconstruct(self, x: np.ndarray | Tensor, y: Labels) -> Images:
        """Images through the posterior's mean and back: deterministic."""
        with evaluating(self):
            return self.decode(self.encode(x, y), self.labels(y)).mean

    @torch.no_grad()
    def log_likelihood(
        self, x: np.ndarray | Tensor, y: Labels, *, samples: int = 64, seed: int = 0, start: int = 0, chunk: int = 8
    ) -> Float[Tensor, " batch"]:
        """The importance-weighted bound on log p(x | y), nats per image; label planes are left out.

        p(z | c) is what samples are drawn from: the sampler, where one was fitted, else the prior.

        Args:
            x: images.
            y: labels.
            samples: draws of z per image; the bound grows with them.
            seed: of the draws.
            start: number of the first image: a set taken in batches has the values of the set taken whole.
            chunk: draws decoded at once, which bounds memory.

        Raises:
            ValueError: for fewer than one sample, or a sampler without a density.
        """
        if samples < 1:
            raise ValueError(f"Expected at least one sample; got {samples}.")
        images, labels = self.pair(x, y)
        with evaluating(self):
            self.check_density(labels[:1])
            return importance_weighted(self._log_weights(images, labels, samples, seed, start, chunk))

    def check_density(self, y: Shaped[Tensor, "batch ..."]) -> None:
        """Raise ValueError unless what samples are drawn from has a density."""
        try:
            self.source(self.condition(y))
        except NotImplementedError:
            name = type(self.source).__name__
            raise ValueError(
                f"Expected a sampler with a density; {name} only draws. Set model.sampler = None for the prior's."
            ) from None

    def _log_weights(self, x: Tensor, y: Tensor, samples: int, seed: int, start: int, chunk: int) -> Iterator[Tensor]:
        """Log-weights (draws, batch) of `chunk` draws at a time."""
        c, index = self.condition(y), torch.arange(start, start + len(x), device=x.device)
        parameters = self.encoder(x, c)
        q, p_z = levels(self.reparameterizer(parameters)), levels(self.source(c))
        for first in range(0, samples, chunk):
            zs = []
            for k in range(first, min(first + chunk, samples)):
                noise = normals(self.noise_shapes, seed, index, Use.POSTERIOR, k, self.dtype)
                zs.append(levels(self.reparameterizer.draw(parameters, latent_noise(noise))))
            together = [torch.cat(own) for own in zip(*zs, strict=True)]
            p = self.decode(gathered(together), y.repeat(len(zs), *[1] * (y.ndim - 1)))
            log_likelihood = p.log_prob(x.repeat(len(zs), 1, 1, 1)).unflatten(0, (len(zs), len(x)))
            ratios = [[p.log_prob(own) - q.log_prob(own) for p, q, own in zip(p_z, q, z, strict=True)] for z in zs]
            yield log_likelihood + torch.stack([torch.stack(own).sum(0) for own in ratios])

    def bits_per_dimension(
        self, x: np.ndarray | Tensor, y: Labels, *, samples: int = 64, seed: int = 0, start: int = 0, chunk: int = 8
    ) -> Float[Tensor, " batch"]:
        """An upper bound on -log2 P(x | y) per pixel and channel, from :meth:`log_likelihood`.

        Where the likelihood is a density, pixels are dequantised with uniform noise of this seed. Arguments are those
        of :meth:`log_likelihood`.

        Raises:
            ValueError: if the likelihood is no probability of grey levels, with the reason.
        """
        images = self.images(x)
        measure, dimensions = getattr(self.likelihood, "measure", None), images[0].numel()
        bits_per_dimension(images.new_zeros(1), measure, dimensions)  # refuses before the work
        if measure == "density":
            index = torch.arange(start, start + len(images), device=images.device)
            u = uniform(seed, index, stream(Use.DEQUANTIZATION), images.shape[1:])
            images = dequantize(images, u.to(images.dtype))
        else:
            images = (255 * images).round() / 255  # a mass is of grey levels, not of what lies between them
        log_likelihood = self.log_likelihood(images, y, samples=samples, seed=seed, start=start, chunk=chunk)
        return bits_per_dimension(log_likelihood, measure, dimensions)

    @property
    def flows(self) -> dict[str, str]:
        """Name of each part → what goes in and comes out."""
        latents = latent_shapes(self.prior.noise_shape).values()
        z, c = ", ".join(map(shape, latents)), self.condition_text
        x, q, p = self.image_shape or ("?",), self.reparameterizer.params, self.likelihood.params
        out = (p * x[0] + (self.conditioner.dim if self.output_labels else 0), *x[1:]) if self.image_shape else x
        parameters = ", ".join(shape((q * own[0], *own[1:])) for own in latents)
        return {
            "conditioner": f"y → {c}",
            "encoder": f"x {shape(x)}, {c} → {parameters}",
            "reparameterizer": f"{parameters} → z {z}",
            "prior": f"{c} → z {z}",
            "decoder": f"z {z}, {c} → {shape(out)}",
            "likelihood": f"{shape(out)} → x {shape(x)}{' and label planes' if self.output_labels else ''}",
            **({} if self.sampler is None else {"sampler": f"{c} → z {z}"}),
            **({} if self.grain is None else {"grain": f"x {shape(x)} → x {shape(x)}"}),
        }


def conditional_vae(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    latent: int | Sequence[int] = 128,
    width: int | None = None,
    depth: int = 1,
    conditioner: nn.Module | None = None,
    prior: nn.Module | None = None,
    likelihood: nn.Module | None = None,
    norm: Norm | None = None,
    modulation: Modulation | None = None,
    output_labels: bool = False,
    network: Literal["conv", "resnet"] | None = None,
) -> ConditionalVAE:
    """A conditional VAE from numbers: plain convolutions and a vector of latents, or residual networks and a map.

    Plain convolutions halve the image and double the width until the map is 4x4 or smaller. Residual networks halve
    it as well, down to the latent map, or, for a vector, to 4x4.

    Args:
        image_shape: (channels, height, width), from 8x8 up.
        num_classes: labels are integers in [0, num_classes); 0 makes a plain VAE.
        latent: number of latents, or the shape of a map of them, such as (8, 7, 7) for 28x28.
        width: channels of the first map; by default 32 for plain convolutions, 48 for residual networks.
        depth: residual blocks on each map.
        conditioner: instead of one-hot labels.
        prior: instead of the standard normal.
        likelihood: instead of `Bernoulli()`.
        norm: class of a normalisation in plain convolutions, such as `ChannelNorm`.
        modulation: class of a conditional layer in every plain block, such as `FiLM`.
        output_labels: the decoder also redraws the label planes, as the reference recipe does.
        network: "conv" or "resnet"; by default resnet for a latent map, conv for a vector.

    Raises:
        ValueError: for images smaller than 8x8, no latents or channels, a map that halving does not lead to, plain
            convolutions for a map, or norm and modulation for residual networks, which have their own.

    Example:
        >>> model = conditional_vae((3, 28, 28), num_classes=8, latent=16)
        >>> model.sample([6, 6], seed=0).shape
        torch.Size([2, 3, 28, 28])
        >>> model = conditional_vae((3, 28, 28), num_classes=8, latent=(8, 7, 7))
        >>> model.encode(torch.zeros(2, 3, 28, 28), [6, 6]).shape
        torch.Size([2, 8, 7, 7])
    """
    z: list[int] = [latent] if isinstance(latent, int) else list(latent)
    network = network or ("resnet" if len(z) > 1 else "conv")
    width = width if width is not None else {"conv": 32, "resnet": 48}[network]
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(f"Expected image_shape as (channels, height, width), each at least 1; got {image_shape}.")
    if min(*z, width, depth) < 1 or len(z) not in (1, 3):
        raise ValueError(
            f"Expected latent (a number, or channels, height and width), width and depth of 1 or more; got {latent}, "
            f"{width} and {depth}."
        )
    if (network == "conv" and len(z) > 1) or (network == "resnet" and (norm or modulation)):
        raise ValueError(
            "Expected plain convolutions with a vector of latents, or residual networks without norm= and modulation=, "
            f"which they have in every block; got network={network!r} with latent={latent}."
        )
    conditioner = conditioner or (OneHot(num_classes) if num_classes else Unconditional())
    likelihood = likelihood or Bernoulli()
    dim: int = conditioner.dim  # type: ignore[assignment]
    planes: int = likelihood.params * image_shape[0]  # type: ignore[operator]
    output_shape = (planes + (dim if output_labels else 0), *image_shape[1:])
    if network == "resnet":
        encoder, decoder = residual_networks(image_shape, output_shape, dim, latent, width, depth)
    else:
        shared = {"norm": norm, "modulation": modulation}
        encoder, decoder = plain_networks(image_shape, output_shape, dim, z[0], width, **shared)
    return ConditionalVAE(
        conditioner=conditioner,
        encoder=encoder,
        reparameterizer=Gaussian(),
        prior=prior or StandardNormal(z),
        decoder=decoder,
        likelihood=likelihood,
        output_labels=output_labels,
        image_shape=image_shape,
    )
