"""A page on your own machine to play with a model: draw cells, move their latents, swap labels, look at an image.

:class:`Explorer` is what the page does, without the page; `page` puts controls around it (needs gradio).
"""

__all__ = ["Cell", "Explorer", "Look"]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from condgen.evaluation.classifier import Classifier
from condgen.io.names import folder_names
from condgen.io.pictures import save_grid, to_uint8
from condgen.models.classes import class_names
from condgen.models.latents import latent_noise
from condgen.models.mixing import mixed, towards
from condgen.nn.parts import evaluating
from condgen.random import Use, normals
from condgen.sampling.latents import decoded, interpolate
from condgen.sampling.shards import write_samples
from condgen.sampling.variations import can_vary, vary

KNOBS = 6  # sliders
REACH = 3.0  # standard deviations to either side
MOST = 64  # cells on the page
TRIED = 256  # draws that directions are taken from
WATCHED, VARIED = 16, 8  # draws that name a direction; variations of an image
Pictures = UInt8[np.ndarray, "n height width channels"]


@dataclass(frozen=True)
class Cell:
    """One of a model's samples: number `index` of `seed`, drawn as class `label`.

    Example:
        >>> Cell(label=3, seed=0, index=17)
        Cell(label=3, seed=0, index=17)
    """

    label: int
    seed: int
    index: int


@dataclass(frozen=True)
class Look:
    """What a model makes of an image.

    Attributes:
        image: as the model sees it.
        reconstruction: of it.
        latent: means of its posterior as a grey picture, one tile a channel.
        sentences: about them.
        variations: new images near it.
        nearest: the training image that is most like it, where training images are at hand.

    Example:
        >>> # See :meth:`Explorer.look_at`.
    """

    image: UInt8[np.ndarray, "height width channels"]
    reconstruction: UInt8[np.ndarray, "height width channels"]
    latent: UInt8[np.ndarray, "rows columns 1"]
    sentences: tuple[str, ...]
    variations: Pictures
    nearest: UInt8[np.ndarray, "height width channels"] | None = None


class Explorer:
    """What can be done with a model by hand. Images come and go as uint8, channels last.

    Args:
        model: of any family, with class labels (or none). Latents are moved of models with one level of latents and a
            decoder, images are looked at by models with an encoder.
        judge: a classifier of real images that says what it takes an image for.
        data: the training images, to show the nearest of.

    Raises:
        ValueError: for what draws no images of a known shape, or a judge of images of another shape.

    Example:
        >>> import condgen
        >>> explorer = Explorer(condgen.conditional_vae((1, 8, 8), num_classes=3, latent=4))
        >>> explorer.draw(label=1, count=5).shape
        (5, 8, 8, 1)
        >>> explorer.as_every_class(Cell(label=1, seed=0, index=2)).shape
        (3, 8, 8, 1)
    """

    def __init__(
        self, model: Any, judge: Classifier | None = None, data: UInt8[np.ndarray, "n c h w"] | None = None
    ) -> None:
        if not hasattr(model, "sample") or not getattr(model, "image_shape", None):
            raise ValueError(
                f"Expected a model that draws images of a known shape; {type(model).__name__} as it is built does not. "
                "Build it with image_shape=."
            )
        if judge is not None and judge.image_shape != tuple(model.image_shape):
            raise ValueError(f"Expected a judge of images of {model.image_shape}; got one of {judge.image_shape}.")
        if data is not None and tuple(data.shape[1:]) != tuple(model.image_shape):
            raise ValueError(f"Expected training images of {model.image_shape}; got {tuple(data.shape[1:])}.")
        self.model, self.judge, self.data, self.names = model, judge, data, class_names(model)

    def labels(self, label: int, count: int = 1) -> Tensor:
        """The labels of so many cells of a class."""
        return self.model.labels([label] * count)

    def draw(self, label: int, count: int, seed: int = 0) -> Pictures:
        """Samples 0 to count - 1 of a seed, as one class.

        Raises:
            ValueError: for a count out of range, or a negative seed.
        """
        if not 1 <= count <= MOST or seed < 0:
            raise ValueError(f"Expected 1 to {MOST} cells and a seed of 0 or more; got {count} and {seed}.")
        return channels_last(self.model.sample(self.labels(label, count), seed=seed))

    def latent(self, cell: Cell) -> Float[Tensor, "*latent"]:
        """The z that a sample is decoded from."""
        return self._latents(self.labels(cell.label), cell.seed, torch.tensor([cell.index]))[0]

    @torch.no_grad()
    def _latents(self, y: Tensor, seed: int, index: Tensor) -> Float[Tensor, "n *latent"]:
        model, noise = self.model, self._noise(seed, index)
        with evaluating(model):
            c = model.condition(y)
            return mixed(model, model.source.draw(c, latent_noise(noise)), c, noise)[0]

    def _noise(self, seed: int, index: Tensor) -> dict[str, Tensor]:
        """The noise that samples of these numbers are drawn from."""
        model = self.model
        return normals(model.sampling_noise_shapes, seed, index.to(model.device), Use.SAMPLING, dtype=model.dtype)

    @property
    def moves(self) -> bool:
        """Whether the latents of a cell can be moved and decoded."""
        return hasattr(self.model, "decode") and "z" in self.model.sampling_noise_shapes

    @cached_property
    def knobs(self) -> tuple[tuple[str, Float[Tensor, "*latent"]], ...]:
        """Names and directions of what sliders move, a standard deviation long.

        Of a vector, the latents that change the picture most; of a map, whose latents each reach only one place, the
        principal directions of what is drawn. A name says what the direction changes, where it does so steadily (see
        `effect`).
        """
        if not self.moves:
            return ()
        y = self.model.labels(torch.arange(TRIED) % len(self.names))
        z = self._latents(y, 0, torch.arange(TRIED))
        if z.ndim == 2:
            spread, some = z.std(0), slice(0, 8)
            still = decoded(self.model, z[some], y[some])
            moved = [
                (decoded(self.model, z[some] + spread * one, y[some]) - still).abs().mean()
                for one in torch.eye(z.shape[1], device=z.device, dtype=z.dtype)
            ]
            best = torch.stack(moved).argsort(descending=True, stable=True)[:KNOBS].tolist()
            found = [(f"latent {k}", spread[k] * torch.eye(z.shape[1], device=z.device)[k]) for k in best]
            return self._named(found, z, y)
        _, sizes, directions = torch.linalg.svd((z - z.mean(0)).flatten(1), full_matrices=False)
        sizes = sizes / len(z) ** 0.5
        found = [
            (f"direction {k + 1}", (sizes[k] * directions[k]).unflatten(0, z.shape[1:]))
            for k in range(min(KNOBS, len(sizes)))
        ]
        return self._named(found, z, y)

    def _named(self, found: list[tuple[str, Tensor]], z: Tensor, y: Tensor) -> tuple[tuple[str, Tensor], ...]:
        """Directions with what they change in their names."""
        z, y = z[:WATCHED], y[:WATCHED]
        amounts = torch.linspace(-2, 2, 5)
        named = []
        for name, direction in found:
            seen = [decoded(self.model, z + float(amount) * direction.to(z), y).cpu() for amount in amounts]
            named.append((f"{name}{effect(torch.stack(seen, 1), amounts)}", direction))
        return tuple(named)

    def moved(self, cell: Cell, amounts: Sequence[float]) -> UInt8[np.ndarray, "height width channels"]:
        """A cell with its latent moved by so many standard deviations along each of the knobs."""
        if not self.moves:
            return self._sampled(self.labels(cell.label), cell)[0]
        z = self.latent(cell)
        for (_, direction), amount in zip(self.knobs, amounts, strict=False):
            z = z + amount * direction.to(z)
        return self._decoded(z[None], self.labels(cell.label), cell)[0]

    def as_every_class(self, cell: Cell) -> Pictures:
        """The latent of a cell, decoded as each class."""
        classes = torch.arange(len(self.names))
        z = self.latent(cell)
        return self._decoded(z[None].expand(len(classes), *z.shape), self.model.labels(classes), cell)

    def drawn_as_every_class(self, cell: Cell) -> Pictures:
        """The noise of a cell, drawn anew as each class: of maps, the label works on the latent as much as after it."""
        y = self.model.labels(torch.arange(len(self.names)))
        if not self.moves:
            return self._sampled(y, cell)
        z = self._latents(y, cell.seed, torch.full((len(y),), cell.index))
        return self._decoded(z, y, cell)

    def _sampled(self, y: Tensor, cell: Cell) -> Pictures:
        """The sample of a cell's number, as each of these labels."""
        one = [self.model.sample(label[None], seed=cell.seed, start=cell.index) for label in y]
        return channels_last(torch.cat(one))

    def between(self, first: Cell, second: Cell, steps: int = 8) -> Pictures:
        """The way from one cell to another, both included; the label changes in the middle."""
        ends = self.latent(first), self.latent(second)
        images = interpolate(self.model, *ends, (first.label, second.label), steps=steps)
        return self._grained(images, first, second)

    def _decoded(self, z: Tensor, y: Tensor, cell: Cell) -> Pictures:
        return self._grained(decoded(self.model, z, y), cell, cell)

    def _grained(self, images: Tensor, first: Cell, last: Cell) -> Pictures:
        """Add grain to images: that of one cell, or a blend that goes from the first cell's to the last's."""
        if getattr(self.model, "grain", None) is None:
            return channels_last(images)
        start, end = (self._noise(cell.seed, torch.tensor([cell.index]))["grain"] for cell in (first, last))
        share = torch.linspace(0, 1, len(images), device=images.device) * (first != last)
        return channels_last(self.model.grain(images, towards(start, end, share)))

    @property
    def sees(self) -> bool:
        """Whether the model can look at images."""
        return hasattr(self.model, "encode")

    def look_at(self, file: str | Path, label: int | None = None) -> Look:
        """What the model makes of an image file.

        Args:
            file: a picture; it is brought to the model's size and channels.
            label: what it is; by default what the judge takes it for.

        Raises:
            ValueError: for a file that is no picture, no label where there is no judge, or a model that cannot look.
        """
        if not self.sees:
            raise ValueError(f"{type(self.model).__name__} has no encoder: it draws images and cannot look at any.")
        image, changed = opened(file, self.model.image_shape)
        x = torch.as_tensor(image.transpose(2, 0, 1)[None].copy())
        sentences, judged = list(changed), None
        if self.judge is not None:
            judged = self.judge.embed(x).probabilities[0]
            best = judged.argsort(descending=True)[:2].tolist()
            said = " or ".join(f"{self.judge.class_names[k]} ({float(judged[k]):.0%})" for k in best)
            sentences.append(f"The judge takes it for {said}.")
        if label is None and len(self.names) > 1:
            if judged is None:
                raise ValueError("Expected the class of the image; there is no judge to guess it. Choose one.")
            name = self.judge.class_names[int(judged.argmax())]  # type: ignore[union-attr]
            label = self.names.index(name) if name in self.names else int(judged.argmax())
        y = self.labels(label or 0)
        z, back = self.model.encode(x, y)[0], self.model.reconstruct(x, y)
        error = float((back.cpu() - x / 255).square().mean())
        sentences.append(
            f"Drawn back as {self.names[label or 0]}: PSNR {-10 * np.log10(max(error, 1e-10)):.1f} dB. Its latent has "
            f"{z.numel()} numbers between {float(z.min()):.1f} and {float(z.max()):.1f}."
        )
        many = np.repeat(x.numpy(), VARIED, 0)
        near = vary(self.model, many, y.repeat(VARIED)) if can_vary(self.model) else back[:0]
        closest = None
        if self.data is not None and len(self.data):
            apart = [float(((own.astype(np.float32) - x[0].numpy()) ** 2).mean()) for own in self.data]
            closest = self.data[int(np.argmin(apart))].transpose(1, 2, 0)
            sentences.append(f"The nearest training image is {min(apart) ** 0.5:.0f} grey levels away.")
        return Look(image, channels_last(back)[0], tiles(z), tuple(sentences), channels_last(near), closest)

    def save(self, folder: str | Path, label: int, count: int, seed: int) -> tuple[Path, Path]:
        """Write the cells of :meth:`draw` as a picture and as an `.npz` file (images and labels)."""
        name = f"{folder_names([self.names[label].split('(')[0].strip().replace(' ', '_')])[0]}_{seed}"
        images = self.model.sample(self.labels(label, count), seed=seed)
        picture = save_grid(images[None], Path(folder) / f"{name}.png", self.names[label : label + 1])
        return picture, write_samples(self.model, self.labels(label, count), Path(folder) / f"{name}.npz", seed=seed)


def effect(images: Float[Tensor, "cells amounts channels height width"], amounts: Float[Tensor, " amounts"]) -> str:
    """What moving along a direction changes most steadily, such as ": darker"; empty where nothing is clear.

    Measures are the share of dark pixels, lightness, red minus blue, and fine detail. One is told if it goes with the
    amounts (a correlation of at least 0.7 to either side, as a mean over cells); of several the one that changes most,
    each in units of what one notices.

    Args:
        images: each cell moved by each of the amounts.
        amounts: how far.

    Example:
        >>> amounts = torch.linspace(-1, 1, 3)
        >>> images = (0.5 + 0.1 * amounts)[None, :, None, None, None].expand(2, 3, 1, 8, 8)
        >>> effect(images, amounts)
        ': lighter'
    """
    light = images.mean(2)
    middle = (light.amin((2, 3), keepdim=True) + light.amax((2, 3), keepdim=True)) / 2
    detail = light.diff(dim=3).abs().mean((2, 3))
    measures = {
        ("larger", "smaller"): (light < middle).float().mean((2, 3)) / 0.1,
        ("lighter", "darker"): light.mean((2, 3)) / 0.1,
        ("redder", "bluer"): (images[:, :, 0] - images[:, :, -1]).mean((2, 3)) / 0.1,
        ("more detail", "less detail"): detail / detail.mean().clamp(min=1e-3) / 0.5,
    }
    along, most, told = amounts - amounts.mean(), 0.0, ""
    for words, values in measures.items():
        apart = values - values.mean(1, keepdim=True)
        steady = float((apart @ along / (apart.norm(dim=1) * along.norm()).clamp(min=1e-6)).mean())
        change = float((values.amax(1) - values.amin(1)).mean())
        if abs(steady) >= 0.7 and change > most:
            most, told = change, f": {words[0] if steady > 0 else words[1]}"
    return told


def channels_last(images: Float[Tensor, "n channels height width"]) -> Pictures:
    """As pictures are stored."""
    return to_uint8(images.detach()).cpu().numpy().transpose(0, 2, 3, 1)


def opened(file: str | Path, image_shape: Sequence[int]) -> tuple[UInt8[np.ndarray, "h w c"], tuple[str, ...]]:
    """A picture in the model's size and channels, and what had to be changed about it.

    Raises:
        ValueError: for a file that is no picture.
    """
    channels, height, width = image_shape
    try:
        with Image.open(file) as found:
            found.load()
            picture, size = found.convert("L" if channels == 1 else "RGB"), found.size
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{Path(file).name} is no picture that can be read. Choose a PNG or JPEG file.") from error
    changed = []
    if size != (width, height):
        changed.append(f"It was brought from {size[0]}x{size[1]} to {width}x{height} pixels.")
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(height, width, channels), tuple(changed)


def tiles(z: Float[Tensor, "*latent"]) -> UInt8[np.ndarray, "rows columns 1"]:
    """A latent as a grey picture, black and white three standard deviations from 0; channels of a map side by side."""
    values = (z.detach().float().cpu() / REACH).clamp(-1, 1)
    plane = values.reshape(1, -1) if z.ndim == 1 else torch.cat(list(values.reshape(-1, *values.shape[-2:])), 1)
    return ((plane + 1) * 127.5).round().to(torch.uint8).numpy()[..., None]


def enlarged(image: UInt8[np.ndarray, "h w c"], height: int = 112) -> Image.Image:
    """A picture to be shown, about so high, its pixels enlarged without smoothing."""
    zoom = max(1, round(height / image.shape[0]))
    large = image.repeat(zoom, 0).repeat(zoom, 1)
    return Image.fromarray(large[..., 0] if large.shape[2] == 1 else large)
