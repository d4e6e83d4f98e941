"""Likelihood: the bound, its importance-weighted refinement, and bits per dimension."""

__all__ = ["likelihood_measures"]

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from condgen.distributions.likelihoods import Bernoulli
from condgen.evaluation.reconstruction import check_labels, pictures, slices
from condgen.evaluation.records import Measure, about, average
from condgen.nn.parts import evaluating
from condgen.random import Use, normals


@torch.no_grad()
def likelihood_measures(
    model: Any,
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    names: Sequence[str] = (),
    *,
    samples: int = 16,
    seed: int = 0,
    chunk: int = 4,
) -> dict[str, Measure]:
    """What the model thinks of real images: the bound and its terms, tighter bounds, bits per dimension.

    One draw of z an image gives `elbo`, `log_likelihood`, `kl` and, where the model redraws label planes,
    `label_log_likelihood`; `samples` draws give `importance_weighted` and `bits_per_dimension`.

    Args:
        model: that infers latents (`infer`).
        images: real images (n, channels, height, width), uint8 or floats in [0, 1].
        labels: of each, what the model takes.
        names: of the classes, where labels are classes; none: nothing is said of single classes.
        samples: draws of z an image.
        seed: of the draws.
        chunk: draws decoded at once, of 128 images, which bounds memory.

    Returns:
        Measures in nats per image, and `bits_per_dimension`, which has a reason instead of a value where the likelihood
        is no probability of grey levels, as `importance_weighted` has where the sampler only draws. Under binary
        cross-entropy the floor of `log_likelihood` is that of each image predicted by itself, which nothing exceeds;
        the others have none.

    Raises:
        ValueError: if there are not as many labels as images, or images and model do not fit.

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(20, size=16)
        >>> model = condgen.conditional_vae((3, 16, 16), num_classes=8, latent=4, width=8)
        >>> found = likelihood_measures(model, cells.images, cells.labels, cells.class_names, samples=2)
        >>> found["elbo"].overall < found["log_likelihood"].floor, found["bits_per_dimension"].reason[:18]
        (True, 'Bits per dimension')
    """
    x = pictures(images)
    check_labels(x, labels)
    terms: dict[str, list[Tensor]] = {}
    unknown = density_unknown(model, labels)
    with evaluating(model):
        for at in slices(len(x)):
            y = labels[at.start : at.stop]
            own = bound(model, x[at], y, seed, at.start)
            if not unknown:
                own["importance_weighted"] = model.log_likelihood(
                    x[at], y, samples=samples, seed=seed, start=at.start, chunk=chunk
                )
            for name, values in own.items():
                terms.setdefault(name, []).append(values.double().cpu())
    found = {
        name: average(torch.cat(values), labels, names, **about(name), **floor_of(name, model, x))
        for name, values in terms.items()
    }
    if unknown:
        found["importance_weighted"] = Measure(None, reason=unknown, **about("importance_weighted"))
    return found | {"bits_per_dimension": bits(model, x, labels, names, samples, seed, chunk)}


def without_inference(family: str) -> dict[str, Measure]:
    """Why a model that only draws has none of these measures."""
    reasons = {
        "it has no encoder, so no image can be drawn back": ("psnr", "ssim", "reconstruction_distance"),
        "it tells no likelihood": ("elbo", "importance_weighted", "bits_per_dimension", "membership_auc"),
        "it infers no latents from images": ("active_latents", "aggregate_mismatch"),
    }
    return {
        name: Measure(None, reason=f"Not available for a {family}: {why}.", **about(name))
        for why, names in reasons.items()
        for name in names
    }


def density_unknown(model: Any, labels: Any) -> str:
    """Why the model cannot tell the likelihood of an image; nothing where it can."""
    try:
        if hasattr(model, "check_density"):
            model.check_density(model.labels(labels[:1]))
    except ValueError as error:
        return f"Not available: {error}"
    return ""


def bound(model: Any, x: Tensor, labels: Any, seed: int, start: int) -> dict[str, Float[Tensor, " batch"]]:
    """The bound of each image and its terms, from one draw of z."""
    images, y = model.images(x), model.labels(labels)
    index = torch.arange(start, start + len(x), device=model.device)
    noise = normals(model.noise_shapes, seed, index, Use.VALIDATION, dtype=model.dtype)
    inference = model.infer(images, y, noise)
    terms = {
        "elbo": inference.log_likelihood - inference.kl,
        "log_likelihood": inference.log_likelihood,
        "kl": inference.kl,
    }
    if inference.label_log_likelihood is not None:
        terms["label_log_likelihood"] = inference.label_log_likelihood
    return terms


def floor_of(name: str, model: Any, x: Tensor) -> dict[str, Any]:
    """Floor of a likelihood, or why there is none."""
    likelihood = type(model.likelihood).__name__
    if name == "log_likelihood" and isinstance(model.likelihood, Bernoulli):
        return {"floor": -entropy(x)}
    return {"reason": f"Real images have no likelihood of their own under {likelihood}: no floor."}


def bits(model: Any, x: Tensor, labels: Any, names: Sequence[str], samples: int, seed: int, chunk: int) -> Measure:
    """Bits per dimension, or the model's reason to refuse."""
    try:
        parts = [
            model.bits_per_dimension(
                x[at], labels[at.start : at.stop], samples=samples, seed=seed, start=at.start, chunk=chunk
            )
            for at in slices(len(x))
        ]
    except ValueError as error:
        return Measure(None, reason=str(error), **about("bits_per_dimension"))
    reason = "Real images have no code length of their own: no floor."
    return average(torch.cat(parts).double().cpu(), labels, names, reason=reason, **about("bits_per_dimension"))


def entropy(x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
    """Binary cross-entropy of each image with itself, nats: the least that any prediction has."""
    x = x.double()
    return -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x)).flatten(1).sum(1)
