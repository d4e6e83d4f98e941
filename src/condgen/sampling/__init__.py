"""Sampling: what a trained model is used for.

A function here takes any model with `sample` and `sample_blocks` (and, for what begins with an image, `encode` and
`decode`). Sample i of seed s is one image, in any batch, by any worker.

* `grids`: images per class, reconstruction pairs, grey levels; `latents`: interpolation and label swap;
* `variations`: new images near given ones; `dataset`: samples as a data set of PyTorch;
* `shards`: samples on disk, by any number of workers;
* `figures`: pictures of images and of a training.
"""

__all__ = [
    "GeneratedImages",
    "as_dataset",
    "interpolate",
    "pairs",
    "per_class",
    "to_uint8",
    "transfer",
    "vary",
    "write_samples",
]

from typing import TYPE_CHECKING

from condgen.io.lazy import lazily

if TYPE_CHECKING:
    from condgen.sampling.dataset import GeneratedImages, as_dataset
    from condgen.sampling.grids import pairs, per_class, to_uint8
    from condgen.sampling.latents import interpolate, transfer
    from condgen.sampling.shards import write_samples
    from condgen.sampling.variations import vary

__getattr__, __dir__ = lazily(
    __name__,
    {
        "dataset": ["GeneratedImages", "as_dataset"],
        "grids": ["pairs", "per_class", "to_uint8"],
        "latents": ["interpolate", "transfer"],
        "shards": ["write_samples"],
        "variations": ["vary"],
    },
)
