"""Moment matching of a distilled network: its draws are to vary as much as the latents of real images do."""

__all__ = ["match_moments"]

from typing import Any

import torch
from torch import Tensor

from condgen.data.adapters import as_labelled
from condgen.data.augmentation import symmetries as count_symmetries
from condgen.data.images import LabelledImages
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
HELD_OUT = 0.1  # of the training images, where there are no validation images
SHARE, ENCODING = 0.06, 0.5  # of a budget of several stages, for this one; of that, at most, for encoding


def match_moments(
    model: ConditionalVAE,
    data: Any,
    *,
    validation: Any = None,
    symmetries: bool = False,
    draws: int = DRAWS,
    minutes: float | Budget | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FlowMatching:
    """Give the draws of a model's distilled network the mean and the covariance of the latents of real images.

    A network distilled from a flow draws latents that vary less than those of images: rare colours and shapes come too
    seldom. One affine map behind it mends that (:class:`~condgen.distributions.priors.moments.MomentMatched`). It takes
    a minute, costs next to nothing at sampling, and leaves the flow as it is.

    Args:
        model: that samples from flow matching with a distilled network (:func:`condgen.distil`).
        data: what it was trained on; of a set with splits its `train` part.
        validation: images whose latents say how far the map is believed; by default the
            `validation` part of a set with splits, or else a tenth of the training images.
        symmetries: take the latents of images in all their flips and quarter turns, for models that were trained on
            these.
        draws: of the network, whose moments are compared; at most four for every latent.
        minutes: a budget: fewer images and draws are taken, as many as there is time for.
        seed: of the draws.
        progress: tell how far it is.

    Returns:
        The model's sampler, whose `student` is corrected. Called again, the correction is found anew.

    Raises:
        ValueError: if the model does not sample from flow matching with a distilled network, or for fewer than four
            draws or two images.

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
    train, held_out = resolve_splits(as_labelled(data), None if validation is None else as_labelled(validation))
    train, held_out = parted(train.ordered(model.class_names), held_out, seed)
    if draws < 4 or min(len(train), len(held_out)) < 2:
        raise ValueError(
            f"Expected at least four draws, two training images and two held-out ones; got {draws}, {len(train)} and "
            f"{len(held_out)}."
        )
    budget = budget_of(minutes)
    encoding = budget and budget.part(ENCODING)
    if budget and symmetries:  # few images in all their turns rather than many in one
        train = train.subset(permutation(len(train), seed, 0).numpy()[:: count_symmetries(*train.image_shape[1:])])
    z, c = encode_latents(model, train, symmetries=symmetries, seed=seed, budget=encoding, progress=progress)
    draws = min(draws, EACH * len(z))
    others, _ = encode_latents(model, held_out.ordered(model.class_names), symmetries=symmetries, seed=seed)
    network = flow.student.network if isinstance(flow.student, MomentMatched) else flow.student
    matched = MomentMatched(network, flow.shape).to(model.device)
    places = torch.arange(draws) * len(c) // draws  # every class as often as among the images
    with torch.no_grad(), evaluating(flow):
        ends = ends_of(flow, network, c[places].to(model.device), seed, budget, progress)
        matched.fit(ends, flow.scale(z.to(model.device)).cpu(), flow.scale(others.to(model.device)).cpu())
    flow.student = matched.to(model.dtype).eval()
    return flow


def parted(train: LabelledImages, held_out: LabelledImages | None, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Training and held-out images; where none are held out, a tenth of the training images is."""
    if held_out is not None:
        return train, held_out
    order = permutation(len(train), seed, 0).numpy()
    some = max(1, int(HELD_OUT * len(train)))
    return train.subset(order[some:]), train.subset(order[:some])


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
