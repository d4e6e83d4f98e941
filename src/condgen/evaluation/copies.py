"""Near copies: generated images that lie much nearer to one training image than to the next ones."""

__all__ = ["Copies", "Pair", "near_copies", "nearest"]

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from condgen.data.augmentation import symmetries as count_symmetries
from condgen.data.augmentation import turned

Images = np.ndarray | Tensor
THRESHOLD = (0.25, 0.75)  # in which the ratio that makes a near copy must lie, whatever held-out images do
PERCENTILE = 0.01
CHUNK = 64  # queries at a time
SPARE = 19  # candidates beyond k that are looked at closely
REACH = (0.05, 0.5)  # the k-th nearest counts as no nearer than half of what 19 in 20 held-out images have
COARSE = 8  # a side that images are brought down to where candidates are looked for
SHIFT = 2  # pixels, in images of 28 or more


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
        ratio: of this distance to that of the k-th nearest, small for a copy.
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
    train: Images, queries: Images, k: int = 1, *, invariant: bool = False
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """The k nearest training images of each query, by Euclidean distance.

    Candidates come from a matrix product, of images brought down to about 8 pixels a side; distances of the best are
    then taken anew from differences. Memory stays below about 200 MB beside the images, whatever their number.

    Args:
        train: images or features, one a row; uint8 is divided by 255.
        queries: the same.
        k: how many, at most the number of training images.
        invariant: whether images are compared up to flips and quarter turns, shifts of up to two pixels in 28 (of what
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
    a, b = (pictures(images, invariant) for images in (train, queries))
    views = count_symmetries(*a.shape[2:]) if invariant else 1
    shift = min(SHIFT, min(a.shape[2:]) // 14) if invariant else 0
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


def pictures(images: Images, invariant: bool) -> Float[Tensor, "n channels height width"]:
    """Images or features as floats (features as images of one pixel), each with mean 0 and spread 1 where asked."""
    x = torch.tensor(images) if isinstance(images, np.ndarray) else images.detach().cpu()
    if x.ndim not in (2, 4) or not (x.is_floating_point() or x.dtype == torch.uint8):
        raise ValueError(
            f"Expected images (n, channels, height, width) or features (n, d), uint8 or floats; got {x.dtype} of shape "
            f"{tuple(x.shape)}."
        )
    if invariant and x.ndim == 2:
        raise ValueError(f"Expected images (n, channels, height, width) to turn and shift; got {tuple(x.shape)}.")
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    x = x[:, :, None, None] if x.ndim == 2 else x
    if not invariant:
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


def near_copies(
    train: Images, generated: Images, held_out: Images | None = None, k: int = 5, *, invariant: bool = False
) -> Copies:
    """Generated images that lie much nearer to one training image than to the next ones.

    The distance to the nearest training image alone tells little: blurred images lie near many of them and copy none.
    What gives a copy away is the ratio of that distance to the distance of the k-th nearest. A near copy has a ratio
    below that of 99 in 100 held-out real images, but below 0.75 in any case, and any ratio below 0.25 makes one, even
    if there are training images among the held-out ones. Training images that are there more than once count once, and
    the k-th nearest counts as no nearer than half of the 5th percentile of held-out images, so that altered repeats in
    the training set do not hide its copies.

    Args:
        train: all training images (n, channels, height, width), or features of them (n, d).
        generated: the same of generated images.
        held_out: the same of real images that were not trained on; where there are none, each training image is
            compared with the others.
        k: of the neighbour to compare with; fewer where there are fewer different training images.
        invariant: whether a flipped, turned, slightly shifted, brightened or dimmed image counts as a copy; see
            :func:`nearest`. Takes about ten times as long.

    Raises:
        ValueError: if sizes differ, there are fewer than two different training images (three where none are held out)
            or no others, or `invariant` is asked of features.

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
    if not (len(generated) and (held_out is None or len(held_out))):
        raise ValueError(
            f"Expected images to compare; got {len(generated)} generated and "
            f"{0 if held_out is None else len(held_out)} held out."
        )
    kept, alone = distinct(train), held_out is None  # alone: of its neighbours an image itself is one
    k = min(k, len(kept) - alone)
    if k < 2:
        raise ValueError(
            f"Expected k of at least 2 and at least {'three' if alone else 'two'} different training images; got {k} "
            f"and {len(kept)}."
        )
    some = torch.as_tensor(train)[kept]
    own, index = nearest(some, generated, k, invariant=invariant)
    theirs, _ = nearest(some, some if held_out is None else held_out, k + alone, invariant=invariant)
    theirs = theirs[:, alone:]
    # Equal to the k-th nearest means far from a copy, except where both are 0. Where the training set repeats an image
    # (turned, dimmed, with noise) the k-th nearest of a copy is another repeat, and nearer than different images are.
    reach = REACH[1] * theirs[:, -1].double().quantile(REACH[0]).to(theirs)
    ratio, held_out_ratio = (d[:, 0] / d[:, -1].clamp(min=1e-12).maximum(reach) for d in (own, theirs))
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
