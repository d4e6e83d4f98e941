"""Drawn blood smears: the built-in images, with eight kinds of cell and the factors they were drawn from.

A scene is defined in continuous coordinates (image widths, the origin in the middle, y downwards) and then
painted at any size: edges are signed distances turned into coverage, texture is noise on a lattice. It needs
no download, its labels are right by construction, and it looks like BloodMNIST at a glance.
"""

__all__ = ["load_smears"]

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8

from condgen.data.checks import check_memory
from condgen.data.images import SPLITS, LabelledImages
from condgen.random import Use, stream, uniform

Range = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Kind:
    """Geometry and colours of one kind of cell; a range is the two ends of a uniform draw."""

    blood: int  # how many there are in BloodMNIST's training images
    radius: Range  # of the cell, in image widths; all other lengths are in cell radii
    lobes: tuple[int, int]  # of the nucleus, which is a row of discs along an arc
    lobe: Range  # radius of a lobe when there are as few as can be
    arc: Range  # radius of the arc
    span: Range  # how far around the arc the lobes spread, in turns
    link: float  # half the width of the bridge between neighbouring lobes
    blend: float  # how far away lobes begin to flow into one another
    rough: float  # how far the outline strays
    cytoplasm: Colour
    nucleus: Colour
    granule: Colour
    granules: float  # share of granules present
    veil: float  # how well granules hide the nucleus, in [0, 1]
    mottle: float  # contrast of the texture of nucleus and cytoplasm


# fmt: off
KINDS = {
    # blood, radius, lobes, lobe, arc, span, link, blend, rough;
    # cytoplasm, nucleus, granule, granules, veil, mottle
    "basophil": Kind(
        852, (0.27, 0.36), (2, 3), (0.42, 0.5), (0.3, 0.45), (0.3, 0.45), 0.2, 0.3, 0.1,
        (140, 92, 164), (94, 52, 138), (68, 34, 112), 0.95, 0.8, 0.6,
    ),
    "eosinophil": Kind(
        2181, (0.31, 0.4), (2, 2), (0.38, 0.46), (0.4, 0.5), (0.25, 0.48), 0.15, 0.12, 0.05,
        (202, 126, 144), (94, 50, 140), (190, 90, 102), 0.9, 0.0, 0.5,
    ),
    "erythroblast": Kind(
        1085, (0.19, 0.28), (1, 1), (0.62, 0.78), (0.1, 0.4), (0.0, 0.0), 0.0, 0.1, 0.06,
        (160, 138, 180), (66, 34, 112), (160, 138, 180), 0.0, 0.0, 0.35,
    ),
    "immature granulocyte": Kind(
        2026, (0.3, 0.42), (2, 3), (0.5, 0.6), (0.32, 0.5), (0.2, 0.45), 0.35, 0.3, 0.07,
        (166, 124, 178), (92, 48, 138), (130, 74, 148), 0.5, 0.15, 0.6,
    ),
    "lymphocyte": Kind(
        849, (0.23, 0.3), (1, 1), (0.84, 0.94), (0.0, 0.15), (0.0, 0.0), 0.0, 0.1, 0.07,
        (150, 138, 196), (82, 40, 126), (150, 138, 196), 0.0, 0.0, 0.45,
    ),
    "monocyte": Kind(
        993, (0.34, 0.44), (3, 4), (0.4, 0.46), (0.42, 0.56), (0.4, 0.6), 0.32, 0.2, 0.1,
        (170, 146, 186), (98, 54, 144), (152, 118, 172), 0.3, 0.0, 0.6,
    ),
    "neutrophil": Kind(
        2330, (0.3, 0.39), (3, 5), (0.3, 0.36), (0.4, 0.52), (0.5, 0.8), 0.12, 0.12, 0.06,
        (214, 178, 194), (86, 46, 132), (196, 150, 178), 0.6, 0.0, 0.5,
    ),
    "platelet": Kind(
        1643, (0.08, 0.14), (0, 0), (0.5, 0.5), (0.0, 0.0), (0.0, 0.0), 0.0, 0.1, 0.25,
        (152, 104, 170), (120, 70, 150), (90, 44, 126), 0.8, 0.0, 0.6,
    ),
}
# fmt: on
NAMES = tuple(KINDS)
# What every image draws whatever its class.
COMMON: dict[str, Range] = {
    "x": (-0.035, 0.035),
    "y": (-0.035, 0.035),
    "turn": (-math.pi, math.pi),
    "stretch": (0.92, 1.08),
    "crowd": (0.5, 1.0),
    "stain": (0.9, 1.1),
    "hue": (-1.0, 1.0),
    "brightness": (0.97, 1.02),
}
OF_KIND = ("radius", "lobes", "lobe", "arc", "span")
FACTORS = ("cell_radius", "x", "y", "turn", "lobes", "stain", "hue", "brightness", "red_cells")
BACKGROUND = (255, 228, 207)
BLUISH = (228, 226, 241)  # the background of the few slides that were stained another way
BLUISH_SHARE = 0.05
RED_CELL = (0.21, 0.29, 0.25)  # share of each colour one red cell absorbs
TILT = (0.04, 0.0, -0.12)  # how much more the stain absorbs of each colour at hue 1
SPECK = (104, 60, 140)  # a stray platelet
SPECK_SHARE = 0.3
RED_CELLS, LOBES = 12, 5  # at most
COARSE, FINE, DOTS = 9, 23, 18  # points along the sides of lattices: outlines, texture, granules
NOWHERE = np.float32(-9.0)  # the radius of a disc that is not there
BLUR = 0.012  # of the microscope, in image widths
PIXELS = 2**16  # painted at a time; one fixed number, so that no bit depends on how many images there are
GOLDEN = (math.sqrt(5) - 1) / 2
Index = Int64[np.ndarray, " images"]
Column = Float[np.ndarray, "images 1"]
Discs = Float[np.ndarray, "images _ 3"]  # x, y and radius, which is negative where there is no disc
Lattice = Float[np.ndarray, "images _ _"]
Grid = Float[np.ndarray, "1 pixels"]
Plane = Float[np.ndarray, "images pixels"]
Image = Float[np.ndarray, "images 3 pixels"]  # the share of the slide's light that comes through


def load_smears(n: int, size: int = 28, seed: int = 0, balance: Literal["blood", "equal"] = "blood") -> LabelledImages:
    """Drawn blood smears of eight kinds of cell, with splits and the factors they were drawn from.

    Image i is a function of (seed, i, size, balance) alone, so a longer set begins with the shorter one.
    Classes follow a golden-ratio sequence: every stretch of the set holds the class shares to within an image
    or two. The splits are the first 80 %, the next 10 % and the last 10 % (none below ten images).

    `factors` are float32 columns: `cell_radius`, `x` and `y` (of the centre) in image widths, `turn` in
    radians, `lobes` of the nucleus, `stain` (strength, about 1), `hue` (in [-1, 1], above 1 on the few bluish
    slides), `brightness` (about 1) and `red_cells` (how many reach into the image).

    Args:
        n: how many images, at least 1.
        size: height and width in pixels, in [16, 256]; the same scenes at any size.
        seed: in [0, 2**64).
        balance: "blood" for the class shares of BloodMNIST, "equal" for equal ones.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> smears = load_smears(100)
        >>> smears.train
        LabelledImages 'smears train': 80 images of (3, 28, 28); basophil ..., eosinophil ..., ...
        >>> smears.factors["cell_radius"].shape
        (100,)
    """
    check_arguments(n, size, balance)
    chunk = max(1, PIXELS // size**2)
    images, labels = np.empty((n, 3, size, size), np.uint8), np.empty(n, np.int64)
    factors = {name: np.empty(n, np.float32) for name in FACTORS}
    for start in range(0, n, chunk):
        index = np.arange(start, start + chunk)
        scene = draw_scene(seed, index, class_labels(seed, index, balance))
        here, count = slice(start, start + chunk), min(chunk, n - start)
        images[here], labels[here] = paint(scene, size)[:count], scene.label[:count]
        for name, column in factors.items():
            column[here] = scene.factors[name][:count, 0]
    return LabelledImages(images, labels, NAMES, splits(n), factors, "smears")


@dataclass(frozen=True)
class Scene:
    """Everything a chunk of images is painted from, as float32; lengths in image widths unless said otherwise."""

    label: Index
    factors: dict[str, Column]
    lobes: Discs  # in cell radii, in the cell's own frame
    red: Float[np.ndarray, "images red 5"]  # x, y, radius, pallor, depth
    speck: Discs
    dots: Discs
    coarse: Lattice
    fine: Lattice


def check_arguments(n: int, size: int, balance: str) -> None:
    """Raise unless such a set can be drawn."""
    if n < 1:
        raise ValueError(f"Expected at least one image; got n={n}. Pass a positive n.")
    if not 16 <= size <= 256:
        raise ValueError(f"Expected a size in [16, 256]; got {size}. Draw at the nearest size, then resize.")
    if balance not in ("blood", "equal"):
        raise ValueError(f"Expected balance 'blood' or 'equal'; got {balance!r}. Take a subset for other shares.")
    check_memory(n, (3, size, size))


def splits(n: int) -> dict[str, slice]:
    """The first 80 %, the next 10 % and the last 10 % of n images; none if one would be empty."""
    tenth = n // 10
    cuts = (0, n - 2 * tenth, n - tenth, n)
    return {name: slice(*ends) for name, ends in zip(SPLITS, pairwise(cuts), strict=True)} if tenth else {}


def draw(seed: int, index: Index, level: int, *shape: int) -> Float[np.ndarray, "images ..."]:
    """Uniform numbers of shape (images, *shape); each level is a stream of its own."""
    return uniform(seed, torch.from_numpy(index), stream(Use.DATA, level=level), shape).numpy()


def class_labels(seed: int, index: Index, balance: str) -> Index:
    """A golden-ratio sequence, sent through the cumulative class shares."""
    counts = np.array([kind.blood if balance == "blood" else 1 for kind in KINDS.values()])
    offset = draw(seed, np.zeros(1, np.int64), 255)
    return np.searchsorted(counts.cumsum()[:-1] / counts.sum(), (offset + index * GOLDEN) % 1.0, side="right")


def of_kind(name: str, label: Index) -> Float[np.ndarray, "images numbers"]:
    """What the table says about each image's kind."""
    rows = np.array([getattr(kind, name) for kind in KINDS.values()], np.float32)
    return rows.reshape(len(KINDS), -1)[label]


def draw_scene(seed: int, index: Index, label: Index) -> Scene:
    """The scenes of images `index`, of the classes `label`."""
    factors = draw_factors(draw(seed, index, 0, len(OF_KIND) + len(COMMON) + 1), label)
    red = draw_red_cells(draw(seed, index, 1, RED_CELLS, 7), factors)
    visible = (np.abs(red[..., :2]) < 0.5 + red[..., 2:3]).all(-1) & (red[..., 4] > 0)
    factors["red_cells"] = visible.sum(1, keepdims=True).astype(np.float32)
    lobes = draw_lobes(draw(seed, index, 2, LOBES, 3), factors)
    speck = draw_speck(draw(seed, index, 3, 1, 4), factors)
    dots = draw_dots(draw(seed, index, 4, DOTS * DOTS, 4), label)
    coarse, fine = (2.0 * draw(seed, index, 5 + j, k, k) - 1.0 for j, k in enumerate((COARSE, FINE)))
    return Scene(label, factors, lobes, red, speck, dots, coarse.astype(np.float32), fine.astype(np.float32))


def draw_factors(u: Float[np.ndarray, "images numbers"], label: Index) -> dict[str, Column]:
    """Numbers from the ranges of each image's kind and from the common ones."""
    ranges = {name: of_kind(name, label) for name in OF_KIND}
    ranges |= {name: np.tile(COMMON[name], (len(label), 1)) for name in COMMON}
    low, high = np.stack(list(ranges.values()), -1).transpose(1, 0, 2)
    f = dict(zip(ranges, np.split(low + u[:, :-1] * (high - low), len(ranges), axis=1), strict=True))
    f["lobes"] = np.round(f["lobes"])
    # The same nucleus divides into more and smaller lobes.
    f["lobe"] *= (np.maximum(ranges["lobes"][:, :1], 1.0) / np.maximum(f["lobes"], 1.0)) ** 0.35
    f["hue"] += 2.0 * (u[:, -1:] < BLUISH_SHARE)
    f["cell_radius"] = f.pop("radius")
    return {name: column.astype(np.float32) for name, column in f.items()}


def draw_lobes(u: Float[np.ndarray, "images lobes 3"], f: dict[str, Column]) -> Discs:
    """Discs of the nucleus, spread along an arc and pulled back towards the middle of the cell."""
    k, several = np.arange(LOBES), f["lobes"] > 1
    present = k < f["lobes"]
    place = (k - (f["lobes"] - 1) / 2) / np.maximum(f["lobes"] - 1, 1)
    angle = 2.0 * math.pi * f["span"] * (place + 0.12 * (u[..., 0] - 0.5))
    arc = f["arc"] * (0.85 + 0.3 * u[..., 1])
    x, y = arc * np.cos(angle), arc * np.sin(angle)
    pull = 0.5 * several * np.mean(x, axis=1, keepdims=True, where=present | ~several)
    return packed(x - pull, y, np.where(present, f["lobe"] * (0.85 + 0.3 * u[..., 2]), NOWHERE))


def draw_red_cells(u: Float[np.ndarray, "images red 7"], f: dict[str, Column]) -> Float[np.ndarray, "images red 5"]:
    """A sunflower of red cells around the cell in the middle, some of them missing.

    The golden angle keeps neighbours about a diameter apart; jitter makes some overlap.
    """
    k = np.arange(RED_CELLS)
    radius = 0.125 + 0.03 * u[:, :1, 0] + 0.02 * u[..., 1]
    near, far = f["cell_radius"] + 0.95 * radius, 0.72
    reach = np.sqrt(near**2 + (far**2 - near**2) * (k + u[..., 2]) / RED_CELLS)
    angle = 2.0 * math.pi * (u[:, 2:3, 4] + GOLDEN * k) + 0.5 * (u[..., 3] - 0.5)
    # A smear tends to show either rings or full discs.
    pallor = np.clip(1.2 * u[:, :1, 4] + 0.5 * u[..., 5] - 0.3, 0.0, 1.0)
    depth = np.where(u[..., 6] < f["crowd"], 0.8 + 0.35 * u[:, 1:2, 4], 0.0)
    return packed(f["x"] + reach * np.cos(angle), f["y"] + reach * np.sin(angle), radius, pallor, depth)


def draw_speck(u: Float[np.ndarray, "images 1 4"], f: dict[str, Column]) -> Discs:
    """A stray platelet beside the cell, in some images."""
    angle, reach = 2.0 * math.pi * u[..., 2], f["cell_radius"] + 0.08 + 0.25 * u[..., 3]
    radius = np.where(u[..., 0] < SPECK_SHARE, 0.025 + 0.02 * u[..., 1], NOWHERE)
    return packed(f["x"] + reach * np.cos(angle), f["y"] + reach * np.sin(angle), radius)


def draw_dots(u: Float[np.ndarray, "images dots 4"], label: Index) -> Discs:
    """One granule in each square of a lattice, jittered, some of them missing."""
    row, column = np.divmod(np.arange(DOTS * DOTS), DOTS)
    x, y = ((k + 0.2 + 0.6 * u[..., j]) / DOTS - 0.5 for j, k in enumerate((column, row)))
    return packed(x, y, np.where(u[..., 2] < of_kind("granules", label), 0.014 + 0.01 * u[..., 3], NOWHERE))


def packed(*columns: Float[np.ndarray, "images parts"]) -> Float[np.ndarray, "images parts columns"]:
    """Columns side by side, as float32."""
    return np.stack(columns, -1).astype(np.float32)


def paint(scene: Scene, size: int) -> UInt8[np.ndarray, "images 3 size size"]:
    """Scenes as pixels: smear, then cell, then nucleus and granules, then the slide's light."""
    f, label, soft = scene.factors, scene.label, np.float32(math.hypot(1.0 / size, BLUR))
    axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    y, x = (plane.reshape(1, -1) for plane in np.meshgrid(axis, axis, indexing="ij"))
    coarse, fine = (lattice_noise(table, x, y) for table in (scene.coarse, scene.fine))
    rough, veil, mottle = (of_kind(name, label) for name in ("rough", "veil", "mottle"))
    texture = (0.09 * mottle * (2.0 * fine + coarse))[:, None]
    cytoplasm, nucleus, granule = (
        through(of_kind(name, label))[..., None] + texture for name in ("cytoplasm", "nucleus", "granule")
    )

    p, q = cell_frame(f, x, y)
    edge = soft / f["cell_radius"]
    body = distance(p, q) - 1.0 + rough * coarse
    core = nucleus_distance(scene, p, q) + 0.5 * rough * (coarse + 0.5 * fine)
    grainy = coverage(body + 0.06, edge) * granules(scene.dots, x, y, soft)

    image = smear(scene, x, y, soft, coarse)
    lay(image, coverage(body, edge), cytoplasm)
    lay(image, 0.75 * grainy, granule)
    lay(image, coverage(np.maximum(core, body + 0.04), edge), nucleus)
    lay(image, veil * grainy, granule)
    return lit(image, f).reshape(-1, 3, size, size)


def distance(x: Plane, y: Plane) -> Plane:
    """Distance from the origin."""
    return np.sqrt(x * x + y * y)


def coverage(signed: Plane, soft: np.float32 | Column) -> Plane:
    """How much of a pixel lies within an outline, from the signed distance to it and the width of an edge."""
    return np.clip(0.5 - signed / soft, 0.0, 1.0)


def lay(image: Image, cover: Plane, colour: Float[np.ndarray, "images 3 _"]) -> None:
    """Lay a colour over the image, in place."""
    image += cover[:, None] * (colour - image)


def through(colour: Colour | Float[np.ndarray, "images 3"]) -> Float[np.ndarray, "*images 3"]:
    """The share of the background's light that comes through where a colour is seen."""
    return np.asarray(colour, np.float32) / np.array(BACKGROUND, np.float32)


def lit(image: Image, f: dict[str, Column]) -> UInt8[np.ndarray, "images 3 pixels"]:
    """The slide's light, less what the stain absorbs of it, as bytes."""
    light = np.where(f["hue"] > 1, *np.array((BLUISH, BACKGROUND), np.float32)) * f["brightness"]
    strength = f["stain"] * (1.0 + np.clip(f["hue"], -1.0, 1.0) * np.array(TILT, np.float32))
    seen = light[..., None] * (1.0 - strength[..., None] * (1.0 - image))
    return np.clip(seen + 0.5, 0.0, 255.0).astype(np.uint8)


def lattice_noise(table: Lattice, x: Grid, y: Grid) -> Plane:
    """Smooth noise in [-1, 1] from numbers on a lattice, turned so that its rows do not show as rows of pixels."""
    last = table.shape[1] - 1
    # Turned by the angle of the 3-4-5 triangle the image spans +-0.7.
    places = [(turned[0] / 1.4 + 0.5) * last for turned in (0.8 * x + 0.6 * y, 0.8 * y - 0.6 * x)]
    column, row = (place.astype(np.int64) for place in places)
    across, down = (np.square(t) * (3.0 - 2.0 * t) for t in (place - np.floor(place) for place in places))
    corner, table = row * (last + 1) + column, table.reshape(len(table), -1)
    upper = table[:, corner] + across * (table[:, corner + 1] - table[:, corner])
    corner += last + 1
    lower = table[:, corner] + across * (table[:, corner + 1] - table[:, corner])
    return upper + down * (lower - upper)


def granules(dots: Discs, x: Grid, y: Grid, soft: np.float32) -> Plane:
    """Coverage by granules. Only those in the four nearest squares of their lattice can reach a pixel."""
    column, row = (np.floor((t[0] + 0.5) * DOTS - 0.5).astype(np.int64) for t in (x, y))
    cover = np.zeros((len(dots), x.shape[1]), np.float32)
    for down, right in np.ndindex(2, 2):
        square = np.clip(row + down, 0, DOTS - 1) * DOTS + np.clip(column + right, 0, DOTS - 1)
        cx, cy, radius = (dots[:, square, j] for j in range(3))
        np.maximum(cover, coverage(distance(x - cx, y - cy) - radius, soft), out=cover)
    return cover


def smear(scene: Scene, x: Grid, y: Grid, soft: np.float32, coarse: Plane) -> Image:
    """Red cells and a stray platelet. Red cells add up what they absorb, so they darken where they overlap."""
    absorbed = 0.02 * coarse
    for red in scene.red.transpose(1, 2, 0)[..., None]:
        cx, cy, radius, pallor, depth = red
        r = distance(x - cx, y - cy)
        hollow = np.maximum(1.0 - np.square(r / (0.75 * radius)), 0.0)
        absorbed += depth * coverage(r - radius, soft) * (1.0 - pallor * hollow)
    image = 1.0 - np.array(RED_CELL, np.float32)[:, None] * absorbed[:, None]
    cx, cy, radius = scene.speck.transpose(2, 0, 1)
    speck = np.tile(through(SPECK)[:, None], (len(image), 1, 1))
    lay(image, coverage(distance(x - cx, y - cy) - radius, soft), speck)
    return image


def cell_frame(f: dict[str, Column], x: Grid, y: Grid) -> tuple[Plane, Plane]:
    """Coordinates in the cell's own frame: centred, turned, stretched, in cell radii."""
    dx, dy = x - f["x"], y - f["y"]
    cos, sin = np.cos(f["turn"]), np.sin(f["turn"])
    along, across = f["cell_radius"] * f["stretch"], f["cell_radius"] / f["stretch"]
    return (cos * dx + sin * dy) / along, (cos * dy - sin * dx) / across


def nucleus_distance(scene: Scene, p: Plane, q: Plane) -> Plane:
    """Signed distance to lobes that flow into one another and to the bridges between them."""
    link, blend = of_kind("link", scene.label), of_kind("blend", scene.label)
    lobes = list(scene.lobes.transpose(1, 2, 0)[..., None])
    signed = np.full(p.shape, -NOWHERE, np.float32)
    for cx, cy, radius in lobes:
        signed = smooth_minimum(signed, distance(p - cx, q - cy) - radius, blend)
    for (ax, ay, _), (bx, by, radius) in pairwise(lobes):
        # How far along the bridge a pixel stands; a lobe that is not there has no bridge.
        dx, dy = bx - ax, by - ay
        t = np.clip(((p - ax) * dx + (q - ay) * dy) / (dx * dx + dy * dy + 1e-6), 0.0, 1.0)
        bridge = distance(p - ax - t * dx, q - ay - t * dy) - np.where(radius > 0, link, NOWHERE)
        signed = smooth_minimum(signed, bridge, 0.5 * blend)
    return signed


def smooth_minimum(a: Plane, b: Plane, blend: Column) -> Plane:
    """Minimum with the crease rounded off: less by a quadratic where the two are closer than `blend`."""
    overlap = np.maximum(blend - np.abs(a - b), 0.0)
    return np.minimum(a, b) - overlap * overlap / (4.0 * blend)
