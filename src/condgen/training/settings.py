"""Settings of training, each declared once: documentation, default, range and unit. Nothing here imports torch.

Everything that deals with a setting reads its declaration here: :func:`condgen.fit`, :func:`condgen.fit_prior`, the
recipes, the options of `condgen train` and their help, YAML files, `run.json`, and resuming. A new setting is a new
field and the place that uses it.
"""

__all__ = [
    "NETWORKS",
    "RECIPE_NAMES",
    "Hardware",
    "Sampler",
    "Training",
    "VAELoss",
    "changed",
    "check_useful",
    "differences",
    "recorded",
]

import difflib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal

from condgen.data.settings import AugmentationSettings

RECIPE_NAMES = (
    *("default", "bloodmnist_reference", "latent_map", "fast", "sharp", "bloodmnist_fast", "bloodmnist_sharp"),
    *("gan", "flow", "diffusion", "bloodmnist_gan", "bloodmnist_diffusion", "smears_demo"),
)
UNLIMITED = 10**6  # an upper limit from here on goes without saying
NETWORKS = ("reference", "reference_untrimmed", "conv", "resnet", "resnet_map", "gan", "flow")  # that can be timed


def setting(
    default: Any, low: float | None = None, high: float = math.inf, *, above: bool = False, option: Any = True
) -> Any:
    """A field of settings.

    Args:
        default: its usual value; None is always allowed where it is the default.
        low: its smallest value, for numbers.
        high: its largest value.
        above: whether `low` and a finite `high` themselves are out of range.
        option: the type of its command-line option, if it is not the field's own; False for no option.
    """
    return field(default=default, metadata={"low": low, "high": high, "above": above, "option": option})


class Checked:
    """Settings whose numbers are checked against the ranges that their fields declare.

    Raises:
        ValueError: for a number out of range, or a word that is not among the choices.
    """

    def __post_init__(self) -> None:
        for entry in fields(self):  # type: ignore[arg-type]
            value, about = getattr(self, entry.name), entry.metadata
            if about.get("low") is not None and value is not None and not callable(value):
                check_range(entry.name, value, about["low"], about["high"], about["above"])
            choices = getattr(entry.type, "__args__", ()) if getattr(entry.type, "__origin__", None) is Literal else ()
            if choices and value not in choices:
                raise ValueError(f"Expected {entry.name} as one of {', '.join(choices)}; got {value!r}.")


def check_range(name: str, value: Any, low: float, high: float, above: bool) -> None:
    """Raise unless each number is within its range.

    Raises:
        ValueError: naming the setting and its range.
        TypeError: for something that is no number.
    """
    numbers = value if isinstance(value, tuple | list) else (getattr(value, "minutes", value),)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"Expected a number for {name}; got {value!r}.")
        if low < number < high if above else low <= number <= high:
            continue
        if high >= UNLIMITED and not number > high:
            wanted = f"above {low:g}" if above else f"of {low:g} or more"
        else:
            wanted = f"between {low:g} and {high:g}" if above else f"from {low:g} to {high:g}"
        raise ValueError(f"Expected {name} {wanted}; got {name}={getattr(value, 'minutes', value)}.")


@dataclass(frozen=True)
class Training(Checked):
    """How a model is trained: whatever its result depends on besides model, data and loss.

    Args:
        epochs: passes over the training images; 50 if `minutes` is not given either.
        minutes: a budget of time instead of passes, for everything. What it leads to depends on the machine.
        batch_size: images per step; the last, smaller batch of a pass is kept.
        optimizer: adam or adamw (Adam with decoupled weight decay). In Python also a function from parameters to an
            optimizer, which brings its own rate, or a dictionary of such by the names of the loss's phases.
        learning_rate: step size of the optimizer.
        discriminator_rate: learning rate of the discriminator, where there is one, in multiples of `learning_rate`.
        betas: decay rates of Adam's running means of the gradient and of its square.
        epsilon: number that Adam adds to the root of its mean square, for numerical stability.
        weight_decay: weight decay of adamw; adam has none.
        lr_warmup: share of training over which the learning rate rises from 0.
        lr_decay: share of training, at its end, over which the learning rate falls to a hundredth.
        schedule: in Python, a function from the share of training done to a factor of the learning rate, instead of
            `lr_warmup` and `lr_decay`.
        clip: the norm to which the gradients of a step are clipped.
        accumulate: batches whose gradients are added up before a step, as if they were one batch.
        ema: decay of an exponential moving average of the weights, such as 0.999. The averaged weights are then
            validated and kept.
        precision: number format of the networks. auto is bfloat16 if this machine is measurably faster in it, and
            float32 otherwise.
        augment: how training images are changed: --augment.flips true, --augment.rotation 10, and so on. In Python also
            any function (x, seed, index, epoch) → x.
        balance: draw every class equally often, with replacement, instead of every image once per pass.
        patience: stop after this many epochs without a better one.
        trim: first remove weights that never see anything but padding: the same function, trained faster.
        seed: seed of order, noise, augmentation and dropout, and of the weights if the model is built, too.

    Example:
        >>> Training(epochs=3).batch_size
        128
        >>> Training(ema=1.0)
        Traceback (most recent call last):
        ValueError: Expected ema between 0 and 1; got ema=1.0.
    """

    epochs: int | None = setting(None, 1, 10**9)
    minutes: Any = setting(None, 0, above=True, option=float)
    batch_size: int = setting(128, 1, 10**9)
    optimizer: Any = setting("adam", option=Literal["adam", "adamw"])
    learning_rate: float = setting(1e-3, 0, 10, above=True)
    discriminator_rate: float = setting(1.0, 0, 1000, above=True)
    betas: tuple[float, float] = setting((0.9, 0.999), 0, 1)
    epsilon: float = setting(1e-8, 0, 1)
    weight_decay: float = setting(1e-3, 0, 10)
    lr_warmup: float = setting(0.0, 0, 1)
    lr_decay: float = setting(0.0, 0, 1)
    schedule: Callable[[float], float] | None = setting(None, option=False)
    clip: float | None = setting(None, 0, above=True)
    accumulate: int = setting(1, 1, 10**6)
    ema: float | None = setting(None, 0, 1, above=True)
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = setting("auto")
    augment: Any = setting(None, option=AugmentationSettings)
    balance: bool = setting(False)
    patience: int | None = setting(None, 1, 10**9)
    trim: bool = setting(True)
    seed: int = setting(0, 0, 2**64 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs is not None and self.minutes is not None:
            minutes = getattr(self.minutes, "minutes", self.minutes)
            raise ValueError(f"Expected epochs or minutes, not both; got epochs={self.epochs}, minutes={minutes}.")
        if callable(self.learning_rate):
            raise TypeError(
                "Expected learning_rate as a number; got a function. Pass it as schedule=, a factor of the rate."
            )
        if isinstance(self.optimizer, str) and self.optimizer not in ("adam", "adamw"):
            raise ValueError(
                f"Expected optimizer as adam, adamw or a function from parameters to an optimizer; got "
                f"{self.optimizer!r}."
            )
        if self.lr_warmup + self.lr_decay > 1:
            raise ValueError(
                f"Expected lr_warmup and lr_decay with a sum of at most 1; got {self.lr_warmup} and {self.lr_decay}."
            )


@dataclass(frozen=True)
class Hardware(Checked):
    """Where a model is trained, and how often its state is saved; a run may go on with other values.

    Args:
        accelerator: the kind of device; auto takes the best there is.
        devices: number of devices on each node. A batch is split over them.
        nodes: number of machines.
        strategy: how several devices share the work, in the words of Lightning Fabric.
        cuda_graphs: on one GPU, record a step once and replay it, if all parts are condgen's or torch's own or say that
            they are `replayable` (:mod:`condgen.nn.cuda_graphs`).
        save_every: seconds between two training states, from which a stopped run goes on. Two are kept.

    Example:
        >>> Hardware(devices=0)
        Traceback (most recent call last):
        ValueError: Expected devices of 1 or more; got devices=0.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = setting("auto")
    devices: int = setting(1, 1)
    nodes: int = setting(1, 1)
    strategy: str = setting("auto")
    cuda_graphs: bool = setting(True)
    save_every: float = setting(60.0, 0)


@dataclass(frozen=True)
class VAELoss(Checked):
    """What the training of a VAE minimises: the negative ELBO, and perhaps a discriminator's opinion beside it.

    Args:
        beta: weight of the KL divergence.
        warmup: epochs over which beta rises from 0.
        free_bits: nats per latent (per channel of a latent map) that cost nothing.
        adversarial: weight of a discriminator's score of the reconstructions; 0 for none.
        matching: weight of the error of the discriminator's features; 0 for none.
        discriminator_start: share of training after which the discriminator begins.
        spectral: whether all its layers are normalised by their spectral norm; if not, errors of its features are
            shares of their magnitude. By default they are normalised for images of at most 32x32.

    Example:
        >>> VAELoss(adversarial=0.05).has_discriminator
        True
    """

    beta: float = setting(1.0, 0, 10**6)
    warmup: float = setting(0.0, 0, 10**6)
    free_bits: float = setting(0.0, 0, 10**6)
    adversarial: float = setting(0.0, 0, 10**6)
    matching: float = setting(0.0, 0, 10**6)
    discriminator_start: float = setting(0.25, 0, 1)
    spectral: bool | None = setting(None)

    @property
    def has_discriminator(self) -> bool:
        """Whether a discriminator is trained beside the model."""
        return self.adversarial > 0 or self.matching > 0


@dataclass(frozen=True)
class Sampler(Checked):
    """What samples are drawn from, once the model is trained: its prior, or a density fitted to its latents.

    Args:
        sampler: none draws from the prior; mixture, flow (a normalising flow) and flow_matching (flow matching that
            starts from a mixture) are fitted to the latents of the training images.
        components: components of the mixture for each class.
        em: steps of expectation-maximisation after the mixture's k-means.
        sampler_epochs: passes over the latents, where the sampler is trained.
        steps: steps from the mixture to a sample, in flow matching. One step is drawn by a distilled network, if there
            is one.
        guidance: classifier-free guidance of flow matching. Above 0, samples fit their labels better and cost twice as
            much.
        distil_pairs: draws of the mixture, each with the sample that flow matching makes of it, from which a network is
            distilled that makes it in one step; 0 for none, and no more than there are training latents.
        distil_epochs: passes over these pairs.
        teacher_steps: steps of flow matching to the sample of such a pair.
        teacher_guidance: guidance of flow matching for the sample of such a pair.
        moments: give the draws of the distilled network the mean and the covariance of the latents; see
            :func:`condgen.match_moments`.
        grain: draw the fine texture that decoded images lack as noise on samples and variations; see
            :func:`condgen.fit_grain`.

    Example:
        >>> Sampler("mixture").components
        16
    """

    sampler: Literal["none", "mixture", "flow", "flow_matching"] = setting("none")
    components: int = setting(16, 1, 1000)
    em: int = setting(0, 0, 1000)
    sampler_epochs: int = setting(20, 1, 10**6)
    steps: int = setting(2, 1, 1000)
    guidance: float = setting(0.0, 0, 10**6)
    distil_pairs: int = setting(0, 0, 10**9)
    distil_epochs: int = setting(10, 1, 10**6)
    teacher_steps: int = setting(4, 1, 1000)
    teacher_guidance: float = setting(0.8, 0, 10**6)
    moments: bool = setting(False)
    grain: bool = setting(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distil_pairs and self.steps == 1 and self.guidance:
            raise ValueError(
                f"Expected guidance=0 where samples are drawn in one step by a distilled network; got {self.guidance}. "
                "Pass it as teacher_guidance, or take more steps, such as steps=2."
            )


def changed(*settings: Any, **changes: Any) -> tuple[Any, ...]:
    """The same settings with some of their fields changed, each in whichever of them has it.

    Raises:
        TypeError: for a name that none of them has, with the nearest ones.

    Example:
        >>> changed(Training(), Hardware(), epochs=3, devices=2)[1].devices
        2
        >>> changed(Training(), acumulate=3)
        Traceback (most recent call last):
        TypeError: Expected settings of Training; got 'acumulate'. Did you mean accumulate?
    """
    names = [{entry.name for entry in fields(own)} for own in settings]
    for name in changes:
        if not any(name in own for own in names):
            near = difflib.get_close_matches(name, [known for own in names for known in sorted(own)], 3, 0.7)
            kinds = " or ".join(type(own).__name__ for own in settings)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise TypeError(f"Expected settings of {kinds}; got {name!r}.{hint}")
    return tuple(
        replace(own, **{name: value for name, value in changes.items() if name in known})
        for own, known in zip(settings, names, strict=True)
    )


def check_useful(model: Callable[..., Any], given: set[str]) -> None:
    """Raise if a setting is given that only a VAE has a use for, unless the model itself takes it.

    Raises:
        ValueError: naming it.

    Example:
        >>> def gan(width: int) -> None: ...
        >>> check_useful(gan, {"width"})
        >>> check_useful(gan, {"beta"})
        Traceback (most recent call last):
        ValueError: gan has no use for beta. Leave it out.
    """
    if useless := sorted(given - set(inspect.signature(model).parameters)):
        raise ValueError(f"{model.__name__} has no use for {', '.join(useless)}. Leave it out.")


def recorded(*settings: Any) -> dict[str, Any]:
    """Settings by name as files keep them: numbers and words as they are, functions by name, objects by their repr.

    Example:
        >>> recorded(Training(optimizer=print))["optimizer"], recorded(Hardware())["devices"]
        ('print', 1)
    """
    return {entry.name: plain(getattr(own, entry.name)) for own in settings for entry in fields(own)}


def plain(value: Any) -> Any:
    """A value that JSON can hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if hasattr(value, "minutes"):
        return value.minutes
    if isinstance(value, partial):
        given = [*map(repr, value.args), *(f"{name}={own!r}" for name, own in value.keywords.items())]
        return f"{plain(value.func)}({', '.join(given)})"
    if callable(value) and hasattr(value, "__name__") and not is_dataclass(value):
        return value.__name__
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(value).split()))


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is no longer as it was, in words: "seed was 0, now 1".

    Args:
        earlier: recorded settings; names that it does not have are left out.
        now: the same of today.

    Example:
        >>> differences({"seed": 0}, {"seed": 1, "epochs": 3})
        ['seed was 0, now 1']
    """
    return [
        f"{name} was {earlier[name]}, now {value}"
        for name, value in now.items()
        if name in earlier and earlier[name] != value
    ]
