"""Fitting a prior to where the latents of a trained model really are, to draw samples from instead of its own prior.

The KL divergence keeps a VAE's latents near its prior, not on it: images decoded from draws of a standard normal come
from regions that no training image was encoded to. A prior that is fitted afterwards mends that and leaves the networks
as they are.
"""

__all__ = ["encode_latents", "fit_prior"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condgen.data.adapters import as_labelled
from condgen.data.augmentation import symmetries as count_symmetries
from condgen.data.augmentation import turned
from condgen.data.batches import batches
from condgen.data.images import LabelledImages
from condgen.io.archives import weights_hash
from condgen.io.atomic import undisturbed
from condgen.io.progress import working
from condgen.losses.flow_matching import PriorFlowMatching, PriorLikelihood
from condgen.models.cvae import ConditionalVAE
from condgen.nn.parts import evaluating
from condgen.random import Use, normals
from condgen.training.budget import Budget, Forecast, budget_of
from condgen.training.callbacks import Callbacks
from condgen.training.checkpoints import Checkpoints
from condgen.training.fit import resolve_splits
from condgen.training.loop import train
from condgen.training.progress import Progress
from condgen.training.run_folder import repr_of
from condgen.training.set_up import check_hardware, set_up, tensors
from condgen.training.settings import Hardware, Training, changed, differences

BATCH = 256
USUAL = Training(
    epochs=20,
    batch_size=256,
    optimizer="adamw",
    betas=(0.9, 0.99),
    lr_warmup=0.05,
    lr_decay=0.4,
    clip=10.0,
    ema=0.999,
)
ENCODING, MIXTURE = 0.15, 0.2  # of a budget that is left: most that encoding and a mixture may take
MIXTURE_RATE = 1e9  # multiply-adds per second that fitting a mixture makes at least
LEAST_LATENTS = 500  # that a mixture is fitted to, whatever the budget


def fit_prior(
    model: ConditionalVAE,
    data: Any,
    prior: nn.Module,
    training: Training | None = None,
    *,
    validation: Any = None,
    symmetries: bool = False,
    hardware: Hardware | None = None,
    checkpoints: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> nn.Module:
    """Fit a prior to the latents of images and draw the model's samples from it from now on (`model.sampler`).

    One draw from the posterior of every image is taken, under the model's own label. A prior with a `fit(z, c)` is
    fitted by it (`GaussianMixture`: seconds). `FlowMatching` has its velocity field trained, any other prior is trained
    by its likelihood, in the loop of :func:`condgen.fit`. The encoder, the decoder and `model.prior`, which the KL was
    taken against, stay as they are; saving the model saves its sampler.

    Args:
        model: a trained model with one level of latents.
        data: what it was trained on; of a set with splits its `train` part.
        prior: a prior for latents of the model's shape and its conditions.
        training: how a prior is trained that is not fitted in closed form; by default 20 passes over the latents in
            batches of 256 by AdamW, gradients clipped to a norm of 10, weights averaged. A budget of minutes covers
            everything this call does; if encoding all images and fitting a mixture would take more than a share of it,
            fewer latents are used.
        validation: images whose latents choose how far a mixture's covariances are trusted; by default the `validation`
            part of a set with splits.
        symmetries: encode each image in all its flips and quarter turns, for models that were trained on these.
        hardware: where the prior is trained.
        checkpoints: folder for training states. If it holds one, training goes on from there.
        progress: show it.
        **changes: single settings of :class:`~condgen.training.settings.Training` and
            :class:`~condgen.training.settings.Hardware`, such as `epochs=10`.

    Returns:
        The prior, now `model.sampler`.

    Raises:
        ValueError: if the model has several levels of latents, the prior draws latents of another shape, or
            `checkpoints` holds the training state of another model, data or settings.

    References:
        From variational to deterministic autoencoders (Ghosh et al., 2020), https://arxiv.org/abs/1903.12436

    Example:
        >>> import condgen
        >>> from condgen.distributions.priors.mixture import GaussianMixture
        >>> images = condgen.load_smears(200, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=4)
        >>> prior = condgen.fit_prior(model, images, GaussianMixture(4, condition_dim=8, components=2))
        >>> model.sampler is prior, model.sample([0, 1]).shape
        (True, torch.Size([2, 3, 16, 16]))
    """
    if changes.get("minutes") is not None and "epochs" not in changes:
        changes["epochs"] = None
    how, where = changed(training or USUAL, hardware or Hardware(), **changes)
    check_hardware(how, where)
    images, held_out = resolve_splits(as_labelled(data), None if validation is None else as_labelled(validation))
    images = images.ordered(model.class_names)
    budget, seed = budget_of(how.minutes), how.seed
    trained = not hasattr(prior, "fit")
    folder = Checkpoints(checkpoints if trained else None, where.save_every)
    identity = {
        "model": weights_hash({k: v for k, v in model.state_dict().items() if not k.startswith("sampler.")}),
        "data": images.fingerprint,
        "prior": " ".join(repr(getattr(prior, "arguments", prior)).split()),
        "symmetries": symmetries,
        **{name: repr_of(getattr(how, name)) for name in KEPT},
    }
    saved = folder.read()
    if saved:
        check_identity(saved, identity, checkpoints)
        if how.precision == "auto":
            (how,) = changed(how, precision=saved["precision"])
    encoding = budget and budget.part(ENCODING if trained else 2 * ENCODING)
    most = saved["images"] if saved else None
    z, c = encode_latents(
        model, images, symmetries=symmetries, seed=seed, budget=encoding, most=most, progress=progress
    )
    prior.cpu()  # where the latents are
    check_shape(prior, c[:1], z)
    if not saved:
        prepare(prior, model, z, c, held_out, symmetries, seed, budget, progress)
    if trained:
        (how,) = changed(how, minutes=budget)
        train_prior(prior, z, c, how, where, folder, {"of": identity, "images": len(z)}, saved, progress)
    model.sampler = prior.to(model.device).eval()
    return model.sampler


KEPT = ("optimizer", "learning_rate", "epochs", "minutes", "batch_size", "clip", "ema", "seed")  # compared on resuming


def train_prior(
    prior: Any,
    z: Tensor,
    c: Tensor,
    training: Training,
    hardware: Hardware,
    folder: Checkpoints,
    identity: dict[str, Any],
    saved: Mapping[str, Any] | None,
    progress: bool,
) -> None:
    """Train a prior on latents and their conditions, from the beginning or from a saved state.

    Args:
        prior: to be trained in place.
        z: latents.
        c: their conditions.
        training: how.
        hardware: where.
        folder: of checkpoints.
        identity: what a checkpoint says about itself, besides the state.
        saved: a checkpoint to go on from.
        progress: show it.
    """
    loss, labels = loss_of(prior, c)
    example = z[:1], tuple(part[:1] for part in labels) if isinstance(labels, tuple) else labels[:1]
    trainer, state = set_up(
        prior, loss, example, len(z), training, hardware, checkpoints=folder.folder, prepare=nn.Identity()
    )
    trainer.identity = identity
    if saved:
        state.load_state_dict(saved)  # the source is in it, which says what component a latent is of
    if isinstance(labels, tuple):
        labels = c, prior.components_of(z, c)
    train_in_memory(trainer, state, z, labels, progress)
    trainer.checkpoints.clear()


def train_in_memory(trainer: Any, state: Any, x: Tensor, y: Tensor | tuple[Tensor, ...], progress: bool) -> None:
    """Train on numbers that are moved to the device as a whole, from where the state stands."""
    device = trainer.fabric.device
    y = tuple(part.to(device) for part in y) if isinstance(y, tuple) else y.to(device)
    shown = [Progress(Forecast(state.plan))] if progress else []
    train(trainer, state, (x.to(device), y), callbacks=Callbacks(shown))


def loss_of(prior: Any, c: Tensor) -> tuple[nn.Module, Any]:
    """The loss that a prior is trained by, and the labels that it takes; components are to be filled in."""
    if hasattr(prior, "matching"):
        return PriorFlowMatching(), (c, torch.zeros(len(c), dtype=torch.int64))
    return PriorLikelihood(), c


def check_identity(state: Mapping[str, Any], identity: Mapping[str, Any], folder: Any) -> None:
    """Raise if a training state belongs to another model, other data or other settings.

    Raises:
        ValueError: naming what differs.
    """
    if changed := differences({**dict.fromkeys(identity), **state.get("of", {})}, identity):
        raise ValueError(
            f"Expected the training state in {folder} to be of this prior's training; what differs: "
            f"{'; '.join(changed[:3])}. Pass what it had, or delete that folder to begin anew."
        )


def prepare(
    prior: Any,
    model: ConditionalVAE,
    z: Tensor,
    c: Tensor,
    held_out: LabelledImages | None,
    symmetries: bool,
    seed: int,
    budget: Budget | None,
    progress: bool,
) -> None:
    """All that is fitted in closed form: a mixture, the source of a flow, or the scale of the latents."""
    others = None
    if held_out is not None and needs_validation(prior):
        limit = budget and budget.part(ENCODING / 2)
        held_out = held_out.ordered(model.class_names)
        others = encode_latents(model, held_out, symmetries=symmetries, seed=seed, budget=limit)
    if budget:
        most = affordable(prior, budget.part(1 - ENCODING if hasattr(prior, "fit") else MIXTURE).left())
        z, c = z[:most], c[:most]
    with working("fitting the prior to the latents in closed form", progress=progress):
        if hasattr(prior, "fit"):
            prior.fit(z, c, seed=seed, validation=others)
        elif hasattr(prior, "matching"):
            prior.prepare(z, c, seed, others)
        elif hasattr(prior, "standardise"):
            prior.standardise(z)


def needs_validation(prior: Any) -> bool:
    """Whether validation latents choose anything."""
    return hasattr(prior, "fit") or hasattr(getattr(prior, "source", None), "fit")


def affordable(prior: Any, seconds: float) -> int:
    """How many latents a mixture can be fitted to in this time; it takes more the more components and numbers."""
    mixture = getattr(prior, "source", prior)
    if not hasattr(mixture, "components"):
        return 2**62
    work = mixture.components * mixture.dim**2 * (mixture.em + 2)  # multiply-adds per latent
    return max(LEAST_LATENTS, int(seconds * MIXTURE_RATE / work))


@torch.no_grad()
def encode_latents(
    model: ConditionalVAE,
    data: LabelledImages,
    *,
    symmetries: bool = False,
    seed: int = 0,
    budget: Budget | None = None,
    most: int | None = None,
    progress: bool = False,
) -> tuple[Float[Tensor, "latents *shape"], Float[Tensor, "latents dim"]]:
    """One draw from the posterior of every image, and its condition, on the CPU.

    Args:
        model: with one level of latents.
        data: images with labels that the model takes.
        symmetries: every image in all its flips and (half) turns, one after the other set.
        seed: of the draws.
        budget: of time; when it is over, symmetries and images that are left are left out. Images come in random order
            then, so that those taken stand for all.
        most: latents to take at most, in the order that a budget takes them in; None for all.
        progress: tell how far it is.

    Raises:
        ValueError: for several levels of latents.

    Example:
        >>> import condgen
        >>> images = condgen.load_smears(20, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=4)
        >>> z, c = encode_latents(model, images, symmetries=True)
        >>> z.shape, c.shape
        (torch.Size([160, 4]), torch.Size([160, 8]))
    """
    if "z" not in model.noise_shapes:
        raise ValueError("Expected a model with one level of latents; this one has several.")
    images, labels = tensors(data, model.device)
    found: list[tuple[Tensor, Tensor]] = []
    codes = count_symmetries(*data.image_shape[1:]) if symmetries else 1
    order: dict[str, Any] = {} if budget is None else {"seed": seed, "epoch": 0}
    most = codes * len(images) if most is None else most
    taken = 0
    with (
        evaluating(model),
        undisturbed() as stop_if_asked,
        working("encoding the training images", codes * -(-len(images) // BATCH), progress) as advance,
    ):
        for code in range(codes):
            for index, x, y in batches(images, labels, BATCH, **order):
                over = budget is not None and most == codes * len(images) and budget.left() < 0
                if taken >= most or (over and found):
                    break
                c = model.condition(y)
                x = turned(x.to(model.dtype), torch.full((len(x),), code, device=x.device))
                noise = normals({"z": model.noise_shapes["z"]}, seed, index, Use.POSTERIOR, code, model.dtype)
                z = model.reparameterizer.draw(model.encoder(x, c), noise["z"])
                found.append((z.cpu(), c.cpu()))
                taken += len(z)
                stop_if_asked()
                advance()
    z, c = (torch.cat(parts) for parts in zip(*found, strict=True))
    return z, c


def check_shape(prior: Any, c: Tensor, z: Tensor) -> None:
    """Raise unless the prior draws latents like z."""
    with torch.no_grad():
        device = next(prior.parameters(), next(prior.buffers(), c)).device
        drawn = prior.draw(c.to(device), torch.zeros(1, *prior.noise_shape, device=device)).shape[1:]
    if drawn != z.shape[1:]:
        raise ValueError(
            f"Expected a prior of latents of shape {tuple(z.shape[1:])}, as the model has; this one draws "
            f"{tuple(drawn)}. Build it with that shape."
        )
