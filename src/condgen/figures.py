"""Pictures: grids with class names, rows of images, training curves. Drawn without a display, nothing global set."""

__all__ = ["class_grid", "curves", "image_rows", "save_grid"]

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from condgen.files import replacing
from condgen.sampling import to_uint8
from condgen.training import History

if TYPE_CHECKING:
    import matplotlib.figure


def image_rows(
    images: Float[Tensor, "rows columns channels height width"], gap: int = 1
) -> Float[Tensor, "channels height2 width2"]:
    """Rows of images as one image, white gaps between.

    Example:
        >>> image_rows(torch.zeros(2, 3, 1, 8, 8)).shape
        torch.Size([1, 17, 26])
    """
    padded = torch.nn.functional.pad(images, (0, gap, 0, gap), value=1.0)
    return rearrange(padded, "r k c h w -> c (r h) (k w)")[:, : -gap or None, : -gap or None]


def class_grid(
    images: Float[Tensor, "classes count channels height width"],
    names: Sequence[str] = (),
    title: str = "",
    zoom: int | None = None,
) -> "matplotlib.figure.Figure":
    """One row of images per class, with its name, pixels enlarged without smoothing.

    Args:
        images: in [0, 1], grey or RGB.
        names: one per row.
        title: above the grid.
        zoom: screen pixels per image pixel; by default images are about 84 pixels high.

    Raises:
        ValueError: if there are names, but not one per row.

    Example:
        >>> figure = class_grid(torch.zeros(2, 5, 3, 28, 28), ["round", "lobed"])
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, _, _, height, _ = images.shape
    if len(names) not in (0, rows):
        raise ValueError(f"Expected a name for each of {rows} rows; got {len(names)}.")
    zoom = zoom or max(1, round(84 / height))
    picture = rearrange(to_uint8(image_rows(images.detach())[None]), "1 c h w -> h w c").cpu().numpy()
    picture = np.repeat(np.repeat(picture, zoom, 0), zoom, 1)
    # Grey as RGB: a colour map would move values by a level or two.
    picture = np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture
    left, top, dpi = (190 if names else 4), (30 if title else 4), 100
    size = (picture.shape[1] + left + 4, picture.shape[0] + top + 4)
    figure = Figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi)
    FigureCanvasAgg(figure)
    figure.figimage(picture, left, 4, origin="upper")
    for row, name in enumerate(names):
        middle, text = 4 + picture.shape[0] * (1 - (row + 0.5) / rows), textwrap.fill(name, 24)
        figure.text((left - 8) / size[0], middle / size[1], text, ha="right", va="center", fontsize=9)
    if title:
        figure.text(left / size[0], 1 - 15 / size[1], title, ha="left", va="center", fontsize=10)
    return figure


def save_grid(
    images: Float[Tensor, "classes count channels height width"],
    path: str | Path,
    names: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Write :func:`class_grid` as a PNG.

    Raises:
        ValueError: for another file ending than .png.
    """
    return write_figure(class_grid(images, names, title), path)


def curves(history: History) -> "matplotlib.figure.Figure":
    """Bound, log-likelihood and KL per epoch, training and validation.

    Example:
        >>> row = {"epoch": 1, "train_elbo": -3.0, "train_log_likelihood": -2.0, "train_kl": 1.0}
        >>> figure = curves(History([row]))
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    FigureCanvasAgg(figure)
    titles = {"elbo": "ELBO", "log_likelihood": "log-likelihood", "kl": "KL"}
    for axes, (term, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for split in ("train", "validation"):
            if f"{split}_{term}" in history.rows[0]:
                # A single epoch is a point, which a line would not show.
                style = "." if len(history) == 1 else "-"
                axes.plot(history["epoch"], history[f"{split}_{term}"], style, label=split)
        axes.set(title=title, xlabel="epoch", ylabel="nats per image")
        axes.legend()
    return figure


def write_figure(figure: "matplotlib.figure.Figure", path: str | Path) -> Path:
    """Write a figure as a PNG, whole or not at all."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"Expected a path ending in .png; got {path}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi)  # images are placed by the pixel
    return path
