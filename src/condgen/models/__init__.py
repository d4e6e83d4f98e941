"""Models: parts assembled, labels and noise in, images out.

Contract of a family: `draw(y, noise)` makes images; `noise_shapes` and `sampling_noise_shapes` say which noise training
and drawing need; `objective()` is its default loss. What people do with a model is the same for all families.

* `generator`: what all share; `cvae`, `cgan`, `cflow`: the families; `latents`: z as a tensor or a tuple of them;
* `saving`: one file per model, nothing executable; `weights`: models that come with condgen.
"""

__all__ = [
    "ConditionalFlow",
    "ConditionalGAN",
    "ConditionalVAE",
    "Generator",
    "build",
    "conditional_flow",
    "conditional_gan",
    "conditional_vae",
    "describe",
    "load",
    "save",
]

from typing import TYPE_CHECKING

from condgen.io.lazy import lazily

if TYPE_CHECKING:
    from condgen.models.cflow import ConditionalFlow, conditional_flow
    from condgen.models.cgan import ConditionalGAN, conditional_gan
    from condgen.models.cvae import ConditionalVAE, conditional_vae
    from condgen.models.generator import Generator
    from condgen.models.saving import build, describe, load, save

__getattr__, __dir__ = lazily(
    __name__,
    {
        "cvae": ["ConditionalVAE", "conditional_vae"],
        "cgan": ["ConditionalGAN", "conditional_gan"],
        "cflow": ["ConditionalFlow", "conditional_flow"],
        "generator": ["Generator"],
        "saving": ["build", "describe", "load", "save"],
    },
)
