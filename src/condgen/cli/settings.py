"""Settings as options of the command line: every field of a dataclass becomes an option of the same name."""

__all__ = ["TRAIN", "Architecture", "Drawing", "Filling", "add_settings", "given"]

from dataclasses import asdict, dataclass, fields, is_dataclass, make_dataclass
from typing import Any, Literal

from condgen.training.settings import Checked, Hardware, Sampler, Training, VAELoss, changed, setting

LikelihoodName = Literal["bernoulli", "continuous_bernoulli", "gaussian", "laplace", "discretized_logistic"]


@dataclass(frozen=True)
class Architecture(Checked):
    """The networks and distributions of the model, as far as the recipe leaves them open.

    Args:
        latent: number of latents, or the shape of a map of them, such as 4,7,7 for 28x28 images.
        width: channels after the first convolution.
        depth: residual blocks on each map.
        network: plain convolutions or residual networks; by default residual ones for a latent map.
        conditioner: of class labels, one-hot vectors or learned vectors of 16 numbers.
        prior: what the KL divergence is taken against, a standard normal or a normal of each label's own.
        modulation: film scales and shifts every block of plain convolutions by the label.
        likelihood: of the pixels.
        output_labels: whether the decoder also redraws the label planes.
        conditional: false leaves the labels out: a plain VAE to compare with.
    """

    latent: int | tuple[int, int, int] | None = setting(None, 1, 10**9)
    width: int | None = setting(None, 1, 10**9)
    depth: int | None = setting(None, 1, 1000)
    network: Literal["conv", "resnet"] | None = setting(None)
    conditioner: Literal["one_hot", "embedding"] | None = setting(None)
    prior: Literal["standard_normal", "label_normal"] | None = setting(None)
    modulation: Literal["film"] | None = setting(None)
    likelihood: LikelihoodName | None = setting(None)
    output_labels: bool | None = setting(None)
    conditional: bool = setting(True)


@dataclass(frozen=True)
class Drawing(Checked):
    """Settings of drawing that take the place of those saved with the model.

    Args:
        steps: of flow matching; more are better and slower.
        guidance: of flow matching; above 0 labels are truer, at twice the cost. For images to train on leave it at 0.
        label_mixing: for images to train on, such as 0.5: how far the label that the decoder is told is moved towards
            another one, so that a classifier cannot learn the textures that it draws for each label. At 64x64 it helps
            only where a teacher labels the images. Images to look at are best at 0.
        latent_mixing: for images that a teacher labels, such as 0.5: how far at most every second image itself is moved
            towards another class, so that a classifier learns where classes end.
    """

    steps: int | None = setting(None, 1, 1000)
    guidance: float | None = setting(None, 0, 10**6)
    label_mixing: float | None = setting(None, 0, 1)
    latent_mixing: float | None = setting(None, 0, 1)


@dataclass(frozen=True)
class Filling(Checked):
    """Which kind of new images fills classes up.

    Args:
        method: sample draws new images of a class; vary draws them near its real images; auto varies classes of at most
            100 real images, where the model can, and samples the others.
        strength: how far variations go, from 0 (the image itself, as the model sees it) to 1.
    """

    method: Literal["auto", "sample", "vary"] = setting("auto")
    strength: float = setting(0.5, 0, 1)


TRAIN = (Training, VAELoss, Sampler, Architecture, Hardware)  # settings that `condgen train` has options for


def add_settings(parser: Any, kind: type) -> None:
    """Give a parser an option for every field of some settings, in a group; an option that is not given is None.

    Args:
        parser: jsonargparse's.
        kind: the dataclass: its docstring is the help, its fields say the types.
    """
    options: list[tuple[str, Any, Any]] = [(own.name, own.type, own.metadata["option"]) for own in fields(kind)]
    typed = [(name, (own if choice is True else choice) | None, None) for name, own, choice in options if choice]
    dummy = make_dataclass(kind.__name__, typed)
    dummy.__doc__ = kind.__doc__
    parser.add_class_arguments(dummy, None, as_group=True)


def given(kinds: tuple[type, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The settings among parsed options that somebody asked for, checked against their ranges.

    Args:
        kinds: dataclasses of settings.
        options: name → value, None if it was not asked for; what belongs to these settings is taken out.

    Raises:
        ValueError: for a number out of range.

    Example:
        >>> given((Training,), {"epochs": 3, "seed": None, "out": "runs"})
        {'epochs': 3}
    """
    names = [entry.name for kind in kinds for entry in fields(kind) if entry.name in options]
    found = {name: value for name in names if (value := options.pop(name)) is not None}
    changed(*(kind() for kind in kinds), **found)
    return found


def plain(value: Any) -> Any:
    """A setting as a file keeps it."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
