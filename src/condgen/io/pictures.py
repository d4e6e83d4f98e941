"""Pictures: images as grey levels, grids with class names, figures. Drawn without a display, nothing global set.

In a notebook what is made here shows itself, once, as the last value of a cell.
"""

__all__ = [
    "blank_figure",
    "check_png",
    "class_grid",
    "image_rows",
    "inline",
    "png",
    "save_grid",
    "to_uint8",
]

import base64
import functools
import html
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from condgen.io.atomic import write_atomically

if TYPE_CHECKING:
    import matplotlib.figure

MOST_PIXELS = 50_000_000  # of a picture; drawing takes some 20 bytes each
Images = Float[Tensor, "batch channels height width"]


def to_uint8(images: Images) -> UInt8[Tensor, "batch channels height width"]:
    """Images in [0, 1] as the nearest of 256 grey levels.

    Raises:
        ValueError: if an image is not finite, which would pass for a black one.

    Example:
        >>> to_uint8(torch.tensor([[[[0.0, 0.5, 1.0]]]]))
        tensor([[[[  0, 128, 255]]]], dtype=torch.uint8)
    """
    if not bool(torch.isfinite(images).all()):
        raise ValueError(
            "Expected finite images; got NaN or infinity. The model's weights or its noise are not finite: train it "
            "again, or lower the temperature."
        )
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


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


def check_png(path: str | Path, rows: int = 0, columns: int = 0, image_shape: Sequence[int] = (1, 1, 1)) -> None:
    """Raise unless a grid of so many images can be drawn to this path; called before the images are made.

    Raises:
        ValueError: for another ending than .png, or more pixels than a picture should have.

    Example:
        >>> check_png("cells.png", 8, 15_000, (3, 16, 16))
        Traceback (most recent call last):
            ...
        ValueError: Expected a picture of at most 50 million pixels; 8 rows of 15000 images take 867 million. ...
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"Expected a path ending in .png; got {path}.")
    height, width = image_shape[1:]
    pixels = rows * (height + 1) * columns * (width + 1) * default_zoom(height) ** 2
    if pixels > MOST_PIXELS:
        raise ValueError(
            f"Expected a picture of at most {MOST_PIXELS // 10**6} million pixels; {rows} rows of {columns} images "
            f"take {pixels // 10**6} million. Ask for fewer, or write an .npz file or a folder."
        )


def default_zoom(height: int) -> int:
    """Screen pixels per image pixel that make images about 84 pixels high."""
    return max(1, round(84 / height))


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
    rows, picture = len(images), enlarged(images, names, zoom)
    left, top, dpi = (190 if names else 4), (30 if title else 4), 100
    size = (picture.shape[1] + left + 4, picture.shape[0] + top + 4)
    figure = blank_figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi)
    figure.figimage(picture, left, 4, origin="upper")
    for row, name in enumerate(names):
        middle, text = 4 + picture.shape[0] * (1 - (row + 0.5) / rows), textwrap.fill(name, 24)
        figure.text((left - 8) / size[0], middle / size[1], text, ha="right", va="center", fontsize=9, parse_math=False)
    if title:
        figure.text(left / size[0], 1 - 15 / size[1], title, ha="left", va="center", fontsize=10, parse_math=False)
    return figure


def save_grid(
    images: Float[Tensor, "classes count channels height width"],
    path: str | Path,
    names: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Write the picture of :func:`class_grid` as a PNG, without loading matplotlib.

    Raises:
        ValueError: for another file ending than .png, or if there are names, but not one per row.
    """
    check_png(path := Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, grid_png(images, names, title))
    return path


def grid_png(
    images: Float[Tensor, "classes count channels height width"],
    names: Sequence[str] = (),
    title: str = "",
    zoom: int | None = None,
) -> bytes:
    """The same picture as the content of a PNG file."""
    from PIL import Image, ImageDraw, ImageFont

    picture, left, top = enlarged(images, names, zoom), (190 if names else 4), (30 if title else 4)
    canvas = Image.new("RGB", (picture.shape[1] + left + 4, picture.shape[0] + top + 4), "white")
    canvas.paste(Image.fromarray(picture), (left, top))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for row, name in enumerate(names):
        middle = top + picture.shape[0] * (row + 0.5) / len(names)
        text = textwrap.fill(name, 24)
        draw.multiline_text((left - 8, middle), text, fill="black", font=font, anchor="rm", align="right")
    if title:
        draw.text((left, top / 2), title, fill="black", font=font, anchor="lm")
    encoded = io.BytesIO()
    canvas.save(encoded, format="PNG")
    return encoded.getvalue()


def enlarged(
    images: Float[Tensor, "classes count channels height width"], names: Sequence[str], zoom: int | None
) -> np.ndarray:
    """Rows of images as one RGB picture, every pixel as large as the zoom.

    Raises:
        ValueError: if there are names, but not one per row.
    """
    if len(names) not in (0, len(images)):
        raise ValueError(f"Expected a name for each of {len(images)} rows; got {len(names)}.")
    zoom = zoom or default_zoom(images.shape[3])
    picture = rearrange(to_uint8(image_rows(images.detach())[None]), "1 c h w -> h w c").cpu().numpy()
    picture = np.repeat(np.repeat(picture, zoom, 0), zoom, 1)
    # Grey as RGB: a colour map would move values by a level or two.
    return np.repeat(picture, 3, 2) if picture.shape[2] == 1 else picture


@functools.cache
def figure_class() -> type["matplotlib.figure.Figure"]:
    """Figures that show themselves in a notebook, whatever backend it has, and are not pyplot's."""
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that is its own PNG in a notebook."""

        def _repr_png_(self) -> bytes:
            return png(self)

    return NotebookFigure


def blank_figure(**options: Any) -> "matplotlib.figure.Figure":
    r"""A figure without axes; see :class:`matplotlib.figure.Figure` for the options.

    Example:
        >>> blank_figure(figsize=(2, 1))._repr_png_()[:4]
        b'\x89PNG'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figure_class()(**options)
    FigureCanvasAgg(figure)
    return figure


def plain_figure(width: float, height: float) -> tuple["matplotlib.figure.Figure", Any]:
    """A figure of that many inches with one pair of axes, without a frame around them."""
    figure = blank_figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: "matplotlib.figure.Figure") -> bytes:
    r"""A figure as the content of a PNG file.

    Example:
        >>> png(blank_figure(figsize=(2, 1)))[:4]
        b'\x89PNG'
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=figure.dpi)  # images are placed by the pixel
    return content.getvalue()


def inline(picture: bytes, alt: str = "") -> str:
    """A PNG as an image of HTML.

    Example:
        >>> inline(b"", "cells")
        '<img alt="cells" src="data:image/png;base64,">'
    """
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def html_table(rows: Sequence[Sequence[Any]], heading: Sequence[str] = ()) -> str:
    """A table of HTML; cells are escaped.

    Example:
        >>> html_table([["a", 1]])
        '<table><tr><td>a</td><td>1</td></tr></table>'
    """

    def line(cells: Sequence[Any], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(str(cell))}</{kind}>" for cell in cells) + "</tr>"

    return f"<table>{line(heading, 'th') if heading else ''}{''.join(line(row, 'td') for row in rows)}</table>"


def write_figure(figure: "matplotlib.figure.Figure", path: str | Path) -> Path:
    """Write a figure as a PNG, whole or not at all."""
    check_png(path := Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png(figure))
    return path
