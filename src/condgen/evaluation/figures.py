"""Figures of an evaluation: confusion, precision and recall by class, what latents carry."""

__all__ = ["confusion", "latent_kl", "precision_recall", "shares"]

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from condgen.io.pictures import plain_figure

if TYPE_CHECKING:
    import matplotlib.figure


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


def shares(rows: Sequence[tuple[str, float, float | None]]) -> "matplotlib.figure.Figure":
    """Draw measures as bars, each as a share of what real images reach; a line stands at 1.

    Args:
        rows: title, value, and what real images reach; None or 0 where that is not known, and then 1 is taken for it.

    Example:
        >>> figure = shares([("Coverage", 0.9, 0.97), ("Sharpness", 0.94, 1.0)])
    """
    figure, axes = plain_figure(7, 0.8 + 0.4 * len(rows))
    places = range(len(rows))[::-1]
    parts = [min(value / (floor or 1.0), 1.5) for _, value, floor in rows]
    axes.barh(places, parts, height=0.55, color="#2563a8")
    axes.axvline(1, color="#888", linewidth=1, linestyle="--")
    for place, part, (_, value, floor) in zip(places, parts, rows, strict=True):
        real = "" if floor is None else f" (real {floor:.3g})"
        axes.text(part + 0.01, place, f"{value:.3g}{real}", va="center", fontsize=8)
    axes.set_yticks(places, [textwrap.shorten(title, 40, placeholder="…") for title, *_ in rows], fontsize=9)
    axes.set(xlim=(0, 1.75), xlabel="share of what held-out real images reach")
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
