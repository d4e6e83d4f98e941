"""Pictures: grids with class names, rows of images, training curves. Drawn without a display, nothing global set."""

__all__ = [
    "check_png",
    "class_grid",
    "confusion",
    "curves",
    "image_rows",
    "latent_kl",
    "png",
    "precision_recall",
    "save_grid",
]

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from condgen.io.atomic import write_atomically
from condgen.sampling.grids import to_uint8
from condgen.training.history import History

if TYPE_CHECKING:
    import matplotlib.figure

MOST_PIXELS = 50_000_000  # of a picture; drawing takes some 20 bytes each


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, picture = len(images), enlarged(images, names, zoom)
    left, top, dpi = (190 if names else 4), (30 if title else 4), 100
    size = (picture.shape[1] + left + 4, picture.shape[0] + top + 4)
    figure = Figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi)
    FigureCanvasAgg(figure)
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
    from PIL import Image, ImageDraw, ImageFont

    check_png(path)
    picture, left, top = enlarged(images, names, None), (190 if names else 4), (30 if title else 4)
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, encoded.getvalue())
    return path


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


def curves(history: History) -> "matplotlib.figure.Figure":
    """Bound, log-likelihood and KL per epoch, or an objective's own first terms, in training and validation.

    Example:
        >>> row = {"epoch": 1, "train_elbo": -3.0, "train_log_likelihood": -2.0, "train_kl": 1.0}
        >>> figure = curves(History([row]))
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    FigureCanvasAgg(figure)
    titles = {"elbo": "ELBO", "log_likelihood": "log-likelihood", "kl": "KL"}
    terms = [name.removeprefix("train_") for name in history.rows[0] if name.startswith("train_")]
    bound = [term for term in titles if term in terms]
    for axes, term in zip(figure.subplots(1, len(shown := bound or terms[:3]), squeeze=False)[0], shown, strict=True):
        for split in ("train", "validation"):
            if f"{split}_{term}" in history.rows[0]:
                # A single epoch is a point, which a line would not show.
                style = "." if len(history) == 1 else "-"
                axes.plot(history["epoch"], history[f"{split}_{term}"], style, label=split)
        axes.set(title=titles.get(term, term), xlabel="epoch", ylabel="nats per image" if bound else "")
        axes.legend()
    return figure


def confusion(counts: Int64[np.ndarray, "classes classes"], names: Sequence[str]) -> "matplotlib.figure.Figure":
    """What was asked for (rows) against what the judge sees (columns): counts, coloured by their share of the row.

    Example:
        >>> figure = confusion(np.array([[9, 1], [2, 8]]), ["round", "lobed"])
    """
    classes = len(names)
    figure, axes = plain_figure(2.2 + 0.55 * min(classes, 24), 1.6 + 0.5 * min(classes, 24))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if classes <= 24:  # more could not be read
        labels = [textwrap.fill(textwrap.shorten(name, 34, placeholder="…"), 18) for name in names]
        axes.set_xticks(range(classes), labels, rotation=45, ha="right", fontsize=8, parse_math=False)
        axes.set_yticks(range(classes), labels, fontsize=8, parse_math=False)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.5 else "#222"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    axes.set(xlabel="what the judge sees", ylabel="what was asked for")
    return figure


def precision_recall(points: Sequence[Mapping[str, Any]]) -> "matplotlib.figure.Figure":
    """Precision and recall of each class, joined to what held-out real images of the class reach (hollow).

    Args:
        points: `name`, `precision`, `recall`, and `floor_precision` and `floor_recall`, which may be None.

    Example:
        >>> figure = precision_recall([{"name": "round", "precision": 0.9, "recall": 0.4,
        ...                             "floor_precision": 0.95, "floor_recall": 0.9}])
    """
    figure, axes = plain_figure(6, 5)
    for point in points:
        known = point["floor_precision"] is not None and point["floor_recall"] is not None
        if known:
            ends = [point["recall"], point["floor_recall"]], [point["precision"], point["floor_precision"]]
            axes.plot(*ends, color="#bbb", linewidth=0.8, zorder=1)
            axes.plot(ends[0][1], ends[1][1], "o", markersize=5, color="#888", fillstyle="none", zorder=2)
        axes.plot(point["recall"], point["precision"], "o", markersize=6, color="#2563a8", zorder=3)
        if len(points) <= 24:
            name, at = textwrap.shorten(point["name"], 28, placeholder="…"), (point["recall"], point["precision"])
            axes.annotate(name, at, (6, 4), textcoords="offset points", fontsize=8, parse_math=False)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set(
        xlabel="recall: share of real images among generated ones", ylabel="precision: share of images among real ones"
    )
    axes.set_title("filled: generated; hollow: held-out real images", fontsize=9)
    return figure


def latent_kl(kl_per_latent: Sequence[float]) -> "matplotlib.figure.Figure":
    """How many nats each latent carries, the fullest first.

    Example:
        >>> figure = latent_kl([0.1, 2.0, 0.0])
    """
    figure, axes = plain_figure(7, 2.6)
    axes.bar(range(1, len(kl_per_latent) + 1), sorted(kl_per_latent, reverse=True), width=1.0, color="#2563a8")
    axes.set(xlabel="latents, the fullest first", ylabel="KL, nats per image")
    return figure


def plain_figure(width: float, height: float) -> tuple["matplotlib.figure.Figure", Any]:
    """A figure of that many inches with one pair of axes, without a frame around them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: "matplotlib.figure.Figure") -> bytes:
    r"""A figure as the content of a PNG file.

    Example:
        >>> png(latent_kl([0.1, 2.0]))[:4]
        b'\x89PNG'
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=figure.dpi)  # images are placed by the pixel
    return content.getvalue()


def write_figure(figure: "matplotlib.figure.Figure", path: str | Path) -> Path:
    """Write a figure as a PNG, whole or not at all."""
    check_png(path := Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png(figure))
    return path
