"""Moment matching of a distilled network: its draws are to vary as much as the latents of real images do."""

__all__ = ["match_moments"]

from typing import Any

import torch
from torch import Tensor

from condgen.data.adapters import as_labelled
from condgen.data.augmentation import symmetries as count_symmetries
from condgen.distributions.priors.flow_matching import FlowMatching, one_step
from condgen.distributions.priors.moments import MomentMatched
from condgen.io.progress import working
from condgen.models.cvae import ConditionalVAE
from condgen.nn.parts import evaluating
from condgen.random import Use, normals, permutation
from condgen.training.budget import Budget, budget_of
from condgen.training.fit import resolve_splits
from condgen.training.fit_prior import encode_latents

DRAWS = 30_000  # at most, by which the moments of the draws are found
EACH = 4  # draws for every latent, at most
BLOCK = 500  # of them at once
SHARE, ENCODING = 0.06, 0.5  # of a budget of several stages, for this one; of that, at most, for encoding


def match_moments(
    model: ConditionalVAE,
    data: Any,
    *,
    symmetries: bool = False,
    draws: int = DRAWS,
    minutes: float | Budget | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FlowMatching:
    """Give the draws of a model's distilled network the mean and the covariance of the latents of real images.

    A network distilled from a flow draws latents that vary less than those of images: rare colours and shapes come too
    seldom. One affine map behind it mends that (:class:`~condgen.distributions.priors.moments.MomentMatched`). It takes
    a minute or two, costs next to nothing at sampling, and leaves the flow as it is.

    Args:
        model: that samples from flow matching with a distilled network (:func:`condgen.distil`).
        data: what it was trained on; of a set with splits its `train` part.
        symmetries: take the latents of images in all their flips and quarter turns, for models that were trained on
            these.
        draws: of the network, whose moments are compared; at most four for every latent.
        minutes: a budget: fewer images and draws are taken, as many as there is time for.
        seed: of the draws.
        progress: tell how far it is.

    Returns:
        The model's sampler, whose `student` is corrected. Called again, the correction is found anew.

    Raises:
        ValueError: if the model does not sample from flow matching with a distilled network, or for fewer than two
            draws or images.

    Example:
        >>> import condgen
        >>> images = condgen.load_smears(200, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=4)
        >>> _ = condgen.fit_prior(model, images, FlowMatching(4, condition_dim=8), epochs=1, progress=False)
        >>> _ = condgen.distil(model, images, distil_pairs=100, distil_epochs=1, progress=False)
        >>> flow = match_moments(model, images, progress=False)
        >>> type(flow.student).__name__, model.sample([0, 1]).shape
        ('MomentMatched', torch.Size([2, 3, 16, 16]))
    """
    flow = getattr(model, "sampler", None)
    if not isinstance(flow, FlowMatching) or flow.student is None:
        raise ValueError(
            "Expected a model that samples from flow matching with a distilled network. Distil one first: "
            "condgen.distil(model, data)."
        )
    train = resolve_splits(as_labelled(data), None)[0].ordered(model.class_names)
    if min(draws, len(train)) < 2:
        raise ValueError(f"Expected at least two draws and two training images; got {draws} and {len(train)}.")
    budget = budget_of(minutes)
    encoding = budget and budget.part(ENCODING)
    if budget and symmetries:  # few images in all their turns rather than many in one
        train = train.subset(permutation(len(train), seed, 0).numpy()[:: count_symmetries(*train.image_shape[1:])])
    z, c = encode_latents(model, train, symmetries=symmetries, seed=seed, budget=encoding, progress=progress)
    draws = min(draws, EACH * len(z))
    network = flow.student.network if isinstance(flow.student, MomentMatched) else flow.student
    matched = MomentMatched(network, flow.shape).to(model.device)
    places = torch.arange(draws) * len(c) // draws  # every class as often as among the images
    with torch.no_grad(), evaluating(flow):
        ends = ends_of(flow, network, c[places].to(model.device), seed, budget, progress)
        matched.fit(ends, flow.scale(z.to(model.device)).cpu())
    flow.student = matched.to(model.dtype).eval()
    return flow


def ends_of(flow: FlowMatching, network: Any, c: Tensor, seed: int, budget: Budget | None, progress: bool) -> Tensor:
    """Where a network of one step ends under these conditions, as far as there is time; standardised, on the CPU."""
    ends = []
    with working("drawing latents to match", len(c), progress) as advance:
        for first in range(0, len(c), BLOCK):
            own = c[first : first + BLOCK]
            index = torch.arange(first, first + len(own), device=c.device)
            noise = normals({"z": flow.noise_shape}, seed, index, Use.DISTILLATION, 1, own.dtype)["z"]
            start, component = flow.start(own, noise)
            ends.append(one_step(network, start, own, component).cpu())
            advance(len(own))
            if budget and budget.left() < 0:
                break
    return torch.cat(ends)
