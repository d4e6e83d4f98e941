"""Fitting a prior to where a trained model's latents really lie, to draw samples from instead of the model's own prior.

The KL keeps a VAE's latents near its prior, not on it: images decoded from draws of a standard normal come from places
that no image taught the decoder. A prior fitted afterwards mends that without touching the networks.
"""

__all__ = ["encode_latents", "fit_prior"]

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from condgen.data.augmentation import symmetries as count_symmetries
from condgen.data.augmentation import turned
from condgen.data.batches import batches
from condgen.data.images import LabelledImages
from condgen.io.archives import weights_hash
from condgen.io.atomic import undisturbed
from condgen.io.progress import working
from condgen.losses.flow_matching import Matching
from condgen.models.cvae import ConditionalVAE
from condgen.nn.parts import evaluating
from condgen.random import Use, normals
from condgen.training.budget import Budget, budget_of
from condgen.training.fit import resolve_splits
from condgen.training.loop import run
from condgen.training.optimizers import WarmupDecay, adamw
from condgen.training.run_folder import repr_of
from condgen.training.set_up import check_numbers, set_up, tensors
from condgen.training.state import States

BATCH = 256
DECAY = WarmupDecay()
ENCODING, MIXTURE = 0.15, 0.2  # of a budget that is left: most that encoding and a mixture may take
MIXTURE_RATE = 1e9  # multiply-adds per second that fitting a mixture makes at least
LEAST_LATENTS = 500  # that a mixture is fitted to, whatever the budget


def fit_prior(
    model: ConditionalVAE,
    data: LabelledImages,
    prior: nn.Module,
    *,
    validation: LabelledImages | None = None,
    symmetries: bool = False,
    epochs: int = 20,
    minutes: float | Budget | None = None,
    batch_size: int = 256,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adamw,
    learning_rate: Callable[[float], float] = DECAY,
    clip: float = 10.0,
    ema: float | None = 0.999,
    precision: str = "auto",
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
    keep: str | Path | None = None,
    save_every: float = 60.0,
    graphs: bool = True,
) -> nn.Module:
    """Fit a prior to the latents of images and draw the model's samples from it from now on (`model.sampler`).

    One draw from the posterior of every image is taken, under the model's own label. A prior with a `fit(z, c)` is
    fitted by it (`GaussianMixture`: seconds); `FlowMatching` has its field trained, any other is trained by its
    likelihood, in the loop of :func:`condgen.fit`. The encoder, the decoder and `model.prior`, which the KL was taken
    against, stay as they are; saving the model saves its sampler.

    Args:
        model: trained, with one level of latents.
        data: what it was trained on; of a set with splits its `train` part.
        prior: for latents of the model's shape and its conditions.
        validation: images whose latents choose how far a mixture's covariances are trusted; of a set with splits its
            `validation` part.
        symmetries: encode each image in all its flips and quarter turns, for models trained on these.
        epochs: passes over the latents, where the prior is trained.
        minutes: a budget of time instead, for everything this call does. Where encoding all images and fitting a
            mixture would take more than a share of it, fewer latents are used.
        batch_size: latents a step.
        optimizer: parameters → optimizer.
        learning_rate: share of the training done → factor of the optimizer's rate.
        clip: the norm that gradients are cut to.
        precision: of the networks; see :func:`condgen.fit`.
        ema: decay of the average of the prior's weights that is kept; None for the last weights.
        seed: of draws, order and clusters.
        accelerator: where the prior is trained.
        progress: show it.
        keep: folder for training states; from one that is there training goes on.
        save_every: seconds between two of them.
        graphs: whether steps are replayed on a GPU; see :func:`condgen.fit`.

    Returns:
        The prior, now `model.sampler`.

    Raises:
        ValueError: if the model has several levels of latents, the prior draws latents of another shape, or `keep`
            holds the training state of another model, data or settings.

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
    training, held_out = resolve_splits(data, validation)
    training = training.ordered(model.class_names)
    budget = budget_of(minutes)
    check_numbers(
        epochs=None if budget else epochs,
        budget=budget,
        batch_size=batch_size,
        clip=clip,
        ema=ema,
        precision=precision,
        accelerator=accelerator,
    )
    trained = not hasattr(prior, "fit")
    states = States(keep if trained else None, save_every)
    identity = {
        "model": weights_hash({k: v for k, v in model.state_dict().items() if not k.startswith("sampler.")}),
        "data": training.fingerprint,
        "prior": " ".join(repr(getattr(prior, "arguments", prior)).split()),
        "optimizer": repr_of(optimizer),
        "epochs": None if budget else epochs,
        "minutes": budget and budget.minutes,
        **{"symmetries": symmetries, "batch_size": batch_size, "clip": clip, "ema": ema, "seed": seed},
    }
    state = states.read()
    if state:
        check_identity(state, identity, keep)
    encoding = budget and budget.part(ENCODING if trained else 2 * ENCODING)
    most = state["images"] if state else None
    z, c = encode_latents(
        model, training, symmetries=symmetries, seed=seed, budget=encoding, most=most, progress=progress
    )
    prior.cpu()  # where the latents are
    check_shape(prior, c[:1], z)
    if not state:
        prepare(prior, model, z, c, held_out, symmetries, seed, budget, progress)
    if trained:
        matching = hasattr(prior, "matching")
        labels = torch.cat([c, torch.zeros(len(c), 1).to(c)], 1) if matching else c
        loop = set_up(
            Density(prior),
            Matching() if matching else Likelihood(),
            len(z),
            epochs=None if budget else epochs,
            example=(z[:1], labels[:1]),
            budget=budget,
            batch_size=batch_size,
            optimizer=optimizer,
            learning_rate=learning_rate,
            clip=clip,
            ema=ema,
            precision=state["precision"] if state and precision == "auto" else precision,
            prepare=nn.Identity(),
            seed=seed,
            accelerator=accelerator,
            states=states,
            graphs=graphs,
        )
        loop.about = {"of": identity, "images": len(z)}
        if state:
            loop.restore(state)
        if matching:
            labels[:, -1] = prior.components_of(z, c).to(c)  # type: ignore[operator]
        run(loop, (z.to(loop.fabric.device), labels.to(loop.fabric.device)), progress=progress)
        loop.states.clear()
    model.sampler = prior.to(model.device).eval()
    return model.sampler


def check_identity(state: Mapping[str, Any], identity: Mapping[str, Any], keep: Any) -> None:
    """Raise if a training state belongs to another model, other data or other settings.

    Raises:
        ValueError: naming what differs.
    """
    earlier = state.get("of", {})
    if changed := [name for name, value in identity.items() if earlier.get(name) != value]:
        said = "; ".join(f"{name} was {earlier.get(name)}, now {identity[name]}" for name in changed[:3])
        raise ValueError(
            f"Expected the training state in {keep} to be of this prior's training; what differs: {said}. Pass what it "
            "had, or delete that folder to begin anew."
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


class Density(nn.Module):
    """A prior as what the training loop trains: latents are its images, conditions its labels."""

    likelihood = None
    provenance: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.noise_shapes: dict[str, tuple[int, ...]] = getattr(prior, "training_noise", {})
        weight = next(prior.parameters())
        self.device, self.dtype = weight.device, weight.dtype

    def trial(self, z: Tensor, y: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """What training asks for, once."""
        return self.matching(z, y, noise) if hasattr(self.prior, "matching") else self.prior(y).log_prob(z)

    def matching(self, z: Tensor, y: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """A flow's error; the last column of a label is the component."""
        return self.prior.matching(z, y[:, :-1], y[:, -1].long(), noise)  # type: ignore[operator]


class Likelihood(nn.Module):
    """The negative log-density of latents as an objective."""

    def loss(self, model: Density, x: Tensor, y: Tensor, noise: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mean over the batch, in nats."""
        return {"loss": -model.prior(y).log_prob(x).mean()}
