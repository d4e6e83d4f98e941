"""Privacy: whether training images are handed out again, or can be told from others by the model's likelihood."""

__all__ = ["Copies", "Pair", "membership_auc", "near_copies", "nearest", "privacy_measures"]

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from condgen.data.augmentation import symmetries as count_symmetries
from condgen.data.augmentation import turned
from condgen.evaluation.model import check_labels, density_unknown, slices
from condgen.evaluation.records import Measure, about
from condgen.evaluation.statistics import Interval, delong, half_samples, members, two_spreads, wilson
from condgen.random import permutation

Images = np.ndarray | Tensor
THRESHOLD = (0.25, 0.75)  # in which the ratio that makes a near copy must lie, whatever held-out images do
PERCENTILE = 0.01
CHUNK = 64  # queries at a time
SPARE = 19  # candidates beyond k that are looked at closely
COARSE = 8  # a side that images are brought down to where candidates are looked for
SHIFT = 2  # pixels, in images of 28 or more
HALVES = 10


@dataclass(frozen=True)
class Pair:
    """A generated image and the training image nearest to it.

    Attributes:
        generated: index of the generated image.
        training: index of the training image.
        distance: between them.
        ratio: of this distance to that of the k-th nearest training image.
    """

    generated: int
    training: int
    distance: float
    ratio: float


@dataclass(frozen=True, eq=False)
class Copies:
    """How near generated and held-out real images are to training images.

    Attributes:
        index: nearest training image of each generated image.
        distance: of it.
        ratio: of this distance to that of the k-th nearest, in [0, 1]; small for a copy.
        held_out_distance: of held-out real images from their nearest training image.
        held_out_ratio: the same ratio of theirs.
        threshold: a ratio below makes a near copy.

    Example:
        >>> train, other = torch.rand(100, 50), torch.rand(100, 50)
        >>> copies = near_copies(train, torch.cat((train[:5] + 0.01, other[:15])), other[15:])
        >>> copies.near[:5].all(), copies.share >= 0.25, copies.worst(1)[0].training < 5
        (tensor(True), True, True)
    """

    index: Int64[Tensor, " generated"]
    distance: Float[Tensor, " generated"]
    ratio: Float[Tensor, " generated"]
    held_out_distance: Float[Tensor, " held_out"]
    held_out_ratio: Float[Tensor, " held_out"]
    threshold: float

    @property
    def near(self) -> Bool[Tensor, " generated"]:
        """Which generated images are near copies."""
        return self.ratio < self.threshold

    @property
    def held_out_near(self) -> Bool[Tensor, " held_out"]:
        """Which held-out real images would be called so too."""
        return self.held_out_ratio < self.threshold

    @property
    def share(self) -> float:
        """Of near copies among generated images."""
        return float(self.near.double().mean())

    @property
    def floor(self) -> float:
        """The same of held-out real images."""
        return float(self.held_out_near.double().mean())

    def worst(self, count: int = 12) -> list[Pair]:
        """The near copies of the smallest ratios, at most `count` of them."""
        order = torch.argsort(self.ratio, stable=True)[: min(count, int(self.near.sum()))]
        return [Pair(i, int(self.index[i]), float(self.distance[i]), float(self.ratio[i])) for i in order.tolist()]


def nearest(
    train: Images, queries: Images, k: int = 1, *, alike: bool = False
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """The k nearest training images of each query, by Euclidean distance.

    Candidates come from a matrix product, of images brought down to about 8 pixels a side; distances of the best are
    then taken anew from differences. Memory stays below about 200 MB beside the images, whatever their number.

    Args:
        train: images or features, one a row; uint8 is divided by 255.
        queries: the same.
        k: how many, at most the number of training images.
        alike: whether images are compared up to flips and quarter turns, shifts of up to two pixels in 28 (of what
            both then show), brightness and contrast.

    Returns:
        Distances, ascending, and indices of the training images; of equal distances the first index comes first.

    Raises:
        ValueError: if sizes differ or there are fewer than k training images.

    Example:
        >>> nearest(torch.tensor([[0.0], [3.0], [4.0]]), torch.tensor([[3.4]]), k=2)
        (tensor([[0.4000, 0.6000]]), tensor([[1, 2]]))
    """
    if train.shape[1:] != queries.shape[1:]:
        raise ValueError(
            f"Expected training images and queries of one size; got {tuple(train.shape)} and {tuple(queries.shape)}."
        )
    if not 1 <= k <= len(train):
        raise ValueError(f"Expected k from 1 to the number of training images, {len(train)}; got {k}.")
    a, b = (pictures(images, alike) for images in (train, queries))
    views = count_symmetries(*a.shape[2:]) if alike else 1
    shift = min(SHIFT, min(a.shape[2:]) // 14) if alike else 0
    low = coarse(cropped(a, shift, shift, shift))
    middle = low.mean(0)  # about the mean the products are small, and so are their rounding errors
    low = low - middle
    places = {(shift, shift), *itertools.product(nudges(shift), repeat=2)}
    distances, indices = [a.new_zeros(0, k)], [torch.zeros(0, k, dtype=torch.int64)]
    for chunk in b.split(CHUNK):
        codes = torch.arange(views).repeat_interleave(len(chunk))
        turns = turned(chunk.repeat(views, 1, 1, 1), codes)
        rough = torch.stack([alikeness(coarse(cropped(turns, shift, *at)) - middle, low, views) for at in places])
        found = rough.amax(0).topk(min(k + SPARE, len(a))).indices.sort(1).values
        exact, order = closest(a[found], turns.unflatten(0, (views, -1)), shift).sort(dim=1, stable=True)
        distances.append(exact[:, :k])
        indices.append(found.gather(1, order)[:, :k])
    return torch.cat(distances), torch.cat(indices)


def pictures(images: Images, alike: bool) -> Float[Tensor, "n channels height width"]:
    """Images or features as floats (features as images of one pixel), each with mean 0 and spread 1 where asked."""
    x = torch.tensor(images) if isinstance(images, np.ndarray) else images.detach().cpu()
    if x.ndim not in (2, 4) or not (x.is_floating_point() or x.dtype == torch.uint8):
        raise ValueError(
            f"Expected images (n, channels, height, width) or features (n, d), uint8 or floats; got {x.dtype} of shape "
            f"{tuple(x.shape)}."
        )
    if alike and x.ndim == 2:
        raise ValueError(f"Expected images (n, channels, height, width) to turn and shift; got {tuple(x.shape)}.")
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    x = x[:, :, None, None] if x.ndim == 2 else x
    if not alike:
        return x
    x = x - x.mean((1, 2, 3), keepdim=True)
    return x / x.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-3)


def coarse(x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n values"]:
    """Small pictures, in which images shifted a little look alike, in a row."""
    return F.adaptive_avg_pool2d(x, (min(x.shape[2], COARSE), min(x.shape[3], COARSE))).flatten(1)


def nudges(shift: int) -> list[int]:
    """Places along a side at which candidates are looked for, besides the middle."""
    return sorted({shift - (shift + 1) // 2, shift + (shift + 1) // 2})


def cropped(x: Float[Tensor, "*n height width"], shift: int, y: int, x0: int) -> Float[Tensor, "*n rows columns"]:
    """What is left of images when they may be shifted, from this place."""
    height, width = (side - 2 * shift for side in x.shape[-2:])
    return x[..., y : y + height, x0 : x0 + width]


def alikeness(queries: Float[Tensor, "q d"], train: Float[Tensor, "n d"], views: int) -> Float[Tensor, "m n"]:
    """Minus half the squared distance of each query, in the best of its views, from each training image."""
    beyond = torch.addmm(-train.square().sum(1) / 2, queries, train.T) - queries.square().sum(1, keepdim=True) / 2
    return beyond.unflatten(0, (views, -1)).amax(0)


def closest(
    train: Float[Tensor, "n m channels height width"], views: Float[Tensor, "v n channels height width"], shift: int
) -> Float[Tensor, "n m"]:
    """Distance of each query from each of its candidates: the least over views and shifts, in what both then show."""
    there, places = cropped(train, shift, shift, shift).flatten(2), range(2 * shift + 1)
    tried = torch.cat([cropped(views, shift, y, x).flatten(2) for y in places for x in places]).transpose(0, 1)
    # Where images are turned and shifted, a matrix product is exact enough, and a hundred times as fast.
    mode = "use_mm_for_euclid_dist" if len(views) > 1 or shift else "donot_use_mm_for_euclid_dist"
    return torch.cdist(tried, there, compute_mode=mode).amin(1)


def near_copies(train: Images, generated: Images, held_out: Images, k: int = 5, *, alike: bool = False) -> Copies:
    """Generated images that lie much nearer to one training image than to the next ones.

    The distance to the nearest training image alone tells little: blurred images lie near many of them and copy none.
    What gives a copy away is the ratio of that distance to the distance of the k-th nearest. A near copy has a ratio
    below that of 99 in 100 held-out real images, but below 0.75 in any case, and any ratio below 0.25 makes one, even
    if there are training images among the held-out ones. Training images that are there more than once count once.

    Args:
        train: all training images (n, channels, height, width), or features of them (n, d).
        generated: the same of generated images.
        held_out: the same of real images that were not trained on.
        k: of the neighbour to compare with; fewer where there are fewer different training images.
        alike: whether a flipped, turned, slightly shifted, brightened or dimmed image counts as a copy; see
            :func:`nearest`. Takes about ten times as long.

    Raises:
        ValueError: if sizes differ, there are fewer than two different training images or no others, or `alike` is
            asked of features.

    References:
        A non-parametric test to detect data-copying in generative models (Meehan, Chaudhuri & Dasgupta, 2020),
        https://arxiv.org/abs/2004.05675, compares distances with those of held-out images too; the ratio of two
        distances is that of Distinctive image features from scale-invariant keypoints (Lowe, 2004),
        https://doi.org/10.1023/B:VISI.0000029664.99615.94

    Example:
        >>> train, other = torch.rand(100, 50), torch.rand(40, 50)
        >>> near_copies(train, train[:20], other).share
        1.0
    """
    if not (len(generated) and len(held_out)):
        raise ValueError(f"Expected images to compare; got {len(generated)} generated and {len(held_out)} held out.")
    kept = distinct(train)
    if k < 2 or len(kept) < 2:
        raise ValueError(
            f"Expected k of at least 2 and at least two different training images; got {k} and {len(kept)}."
        )
    some, k = torch.as_tensor(train)[kept], min(k, len(kept))
    (own, index), (theirs, _) = (nearest(some, images, k, alike=alike) for images in (generated, held_out))
    # Equal to the k-th nearest means far from a copy, except where both are 0.
    ratio, held_out_ratio = (d[:, 0] / d[:, -1].clamp(min=1e-12) for d in (own, theirs))
    threshold = float(held_out_ratio.double().quantile(PERCENTILE).clamp(*THRESHOLD))
    return Copies(kept[index[:, 0]], own[:, 0], ratio, theirs[:, 0], held_out_ratio, threshold)


def distinct(images: Images) -> Int64[Tensor, " different"]:
    """The first of each set of equal images.

    Example:
        >>> distinct(torch.tensor([[1.0], [2.0], [1.0]]))
        tensor([0, 1])
    """
    array = np.ascontiguousarray(torch.as_tensor(images).cpu().numpy()).reshape(len(images), -1)
    rows = array.view(np.dtype((np.void, array.dtype.itemsize * array.shape[1])))[:, 0]
    return torch.as_tensor(np.sort(np.unique(rows, return_index=True)[1]))


def membership_auc(
    model: Any,
    train_images: Images,
    train_labels: np.ndarray | Tensor,
    held_out_images: Images,
    held_out_labels: np.ndarray | Tensor,
    names: Sequence[str] = (),
    *,
    samples: int = 16,
    images: int = 500,
    seed: int = 0,
) -> Measure:
    """Whether training images can be told from others by the model's likelihood.

    The attacker takes images that the model finds more probable (by the importance-weighted bound) for training images.
    The area under the curve is the chance that a training image is more probable than another. As many training as
    held-out images of each class are compared, since some classes are more probable than others.

    Args:
        model: that infers latents (`infer`).
        train_images: that it was trained on, uint8 or floats in [0, 1].
        train_labels: class labels.
        held_out_images: real images that it was not trained on.
        held_out_labels: class labels.
        names: of the classes; none: nothing is said of single classes.
        samples: draws of z an image.
        images: how many of each at most are compared, the same share of every class.
        seed: of the draws, and of which images are taken.

    Returns:
        The area, with the interval of DeLong, DeLong & Clarke-Pearson (1988), which closes up where the two are told
        apart without error; its floor is 0.5, where the attacker learns nothing.

    Raises:
        ValueError: if there are not as many labels as images, or no class has images in both sets.

    References:
        LOGAN: membership inference attacks against generative models (Hayes, Melis, Danezis & De Cristofaro, 2019),
        https://arxiv.org/abs/1705.07663; comparing the areas under two or more correlated receiver operating
        characteristic curves, https://doi.org/10.2307/2531595

    Example:
        >>> import condgen
        >>> cells = condgen.load_smears(200, size=16)
        >>> model = condgen.conditional_vae((3, 16, 16), num_classes=8, latent=4, width=8)
        >>> auc = membership_auc(
        ...     model, cells.train.images, cells.train.labels, cells.test.images, cells.test.labels, samples=2
        ... )
        >>> auc.interval[0] < auc.floor < auc.interval[1]  # nothing was learned of them
        True
    """
    for own, labels in ((train_images, train_labels), (held_out_images, held_out_labels)):
        check_labels(own, labels)
    if unknown := density_unknown(model, train_labels):
        return Measure(None, floor=0.5, reason=unknown, **about("membership_auc"))
    train, held_out = matched(grouped(train_labels), grouped(held_out_labels), images, seed)
    if not len(train):
        raise ValueError("Expected training and held-out images of one class at least; the sets share none.")
    sets = ((train_images, train_labels, train), (held_out_images, held_out_labels, held_out))
    member, other = (scores(model, own[index], labels[index], samples, seed) for own, labels, index in sets)
    y = torch.as_tensor(train_labels)[torch.as_tensor(train)]
    of_class = {
        name: (member[members(y, label)], other[members(torch.as_tensor(held_out_labels)[held_out], label)])
        for label, name in enumerate(names)
    }
    rated = {name: delong(*pair) if min(map(len, pair)) > 1 else (None, None) for name, pair in of_class.items()}
    area, interval = delong(member, other)
    few = [name for name, (value, _) in rated.items() if value is None]
    return Measure(
        area,
        per_class={name: value for name, (value, _) in rated.items()},
        floor=0.5,
        interval=interval,
        per_class_floor={name: None if value is None else 0.5 for name, (value, _) in rated.items()},
        per_class_interval={name: ends for name, (_, ends) in rated.items()},
        reason=f"Fewer than two images of {', '.join(few)} in one of the sets." if few else "",
        **about("membership_auc"),
    )


def grouped(labels: Any) -> np.ndarray:
    """Class labels as they are; other labels as one class."""
    labels = np.asarray(labels)
    return labels if labels.ndim == 1 and labels.dtype.kind in "iu" else np.zeros(len(labels), np.int64)


def matched(train: Any, held_out: Any, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of as many images of each class from both sets, `most` at most."""
    train, held_out = np.asarray(train), np.asarray(held_out)
    counts = {c: min((train == c).sum(), (held_out == c).sum()) for c in np.intersect1d(train, held_out).tolist()}
    share = min(1.0, most / max(1, sum(counts.values())))
    taken: list[list[np.ndarray]] = [[], []]
    for label, count in counts.items():
        for side, labels in zip(taken, (train, held_out), strict=True):
            own = np.flatnonzero(labels == label)
            side.append(own[permutation(len(own), seed, len(side)).numpy()[: max(1, int(share * count))]])
    first, second = (np.sort(np.concatenate([np.empty(0, np.int64), *side])) for side in taken)
    return first, second


def scores(model: Any, images: Images, labels: Any, samples: int, seed: int) -> Float[Tensor, " n"]:
    """Importance-weighted log-likelihood of each image, nats."""
    parts = [
        model.log_likelihood(
            images[at], labels[at.start : at.stop], samples=samples, seed=seed, start=at.start, chunk=4
        )
        for at in slices(len(images))
    ]
    return torch.cat(parts).double().cpu()


def privacy_measures(
    copies: Copies,
    labels: np.ndarray | Tensor | None = None,
    held_out_labels: np.ndarray | Tensor | None = None,
    names: Sequence[str] = (),
    *,
    seed: int = 0,
) -> dict[str, Measure]:
    """Near copies and nearest distances as measures.

    Args:
        copies: from :func:`near_copies`.
        labels: of the generated images; None: nothing is said of single classes.
        held_out_labels: of the held-out ones.
        names: of the classes.
        seed: of the half-samples that the interval of the second comes from.

    Returns:
        `near_copies`, a share with Wilson's interval, and `nearest_distance_ratio`, the median distance of generated
        images from their nearest training image over that of held-out images, with the delete-half jackknife's.

    Raises:
        ValueError: if there are not as many labels as images.

    References:
        Probable inference, the law of succession, and statistical inference (Wilson, 1927),
        https://doi.org/10.1080/01621459.1927.10502953

    Example:
        >>> train, other = torch.rand(100, 50), torch.rand(40, 50)
        >>> found = privacy_measures(near_copies(train, train[:20], other))
        >>> found["near_copies"].overall, found["nearest_distance_ratio"].overall
        (1.0, 0.0)
    """
    check_sides(copies, labels, held_out_labels)
    classes = {}
    if labels is not None and held_out_labels is not None:
        classes = {name: (members(labels, k), members(held_out_labels, k)) for k, name in enumerate(names)}
    whole = (torch.arange(len(copies.ratio)), torch.arange(len(copies.held_out_ratio)))
    near, held_out_near = copies.near.double(), copies.held_out_near.double()

    def closeness(own: Tensor, theirs: Tensor) -> float | None:
        """Median distance of some generated images over that of some held-out ones."""
        if not (len(own) and len(theirs)):
            return None
        below = float(copies.held_out_distance[theirs].double().median())
        return float(copies.distance[own].double().median()) / below if below > 0 else None

    return {
        "near_copies": Measure(
            copies.share,
            per_class={name: share(near[own]) for name, (own, _) in classes.items()},
            floor=copies.floor,
            interval=interval(near),
            per_class_floor={name: share(held_out_near[theirs]) for name, (_, theirs) in classes.items()},
            per_class_interval={name: interval(near[own]) for name, (own, _) in classes.items()},
            reason=said({name: own for name, (own, _) in classes.items()}, "generated"),
            **about("near_copies"),
        ),
        "nearest_distance_ratio": Measure(
            closeness(*whole),
            per_class={name: closeness(*pair) for name, pair in classes.items()},
            floor=1.0,
            interval=jackknife(closeness, *whole, seed),
            per_class_floor={name: None if closeness(*pair) is None else 1.0 for name, pair in classes.items()},
            per_class_interval={name: jackknife(closeness, *pair, seed) for name, pair in classes.items()},
            reason="Half of the held-out images are training images themselves."
            if closeness(*whole) is None
            else said({name: pair[0][: len(pair[1])] for name, pair in classes.items()}, "generated or held-out"),
            **about("nearest_distance_ratio"),
        ),
    }


def share(near: Float[Tensor, " n"]) -> float | None:
    """Of ones; None of nothing."""
    return float(near.mean()) if len(near) else None


def interval(near: Float[Tensor, " n"]) -> Interval | None:
    """Wilson's interval of a share, which holds at shares near 0 too; None of nothing."""
    return wilson(int(near.sum()), len(near)) if len(near) else None


def jackknife(
    function: Callable[[Tensor, Tensor], float | None], own: Tensor, theirs: Tensor, seed: int
) -> Interval | None:
    """The function's value, give or take twice the spread of its values on halves of both sets."""
    value = function(own, theirs)
    if value is None or min(len(own), len(theirs)) < 4:
        return None
    pairs = zip(half_samples(len(own), HALVES, seed), half_samples(len(theirs), HALVES, seed + 1), strict=True)
    values = [function(own[first], theirs[second]) for first, second in pairs]
    around = None if None in values else two_spreads(value, values)
    return None if around is None else (max(0.0, around[0]), around[1])


def said(classes: dict[str, Tensor], kind: str) -> str:
    """Which classes have no images."""
    absent = [name for name, own in classes.items() if not len(own)]
    return f"No {kind} images of {', '.join(absent)}." if absent else ""


def check_sides(copies: Copies, labels: Any, held_out_labels: Any) -> None:
    """Raise unless there is a label for each image, or none at all."""
    for own, images in ((labels, copies.ratio), (held_out_labels, copies.held_out_ratio)):
        if own is not None and len(own) != len(images):
            raise ValueError(f"Expected one label for each image; got {len(images)} images and {len(own)} labels.")
