"""Labelled images: what models are trained on and compared with.

Contract of a reader: `load_...(path or name, ...) → LabelledImages`, uint8, (images, channels, height, width), with its
splits. Contract of an augmentation: `augmentation(x, seed, index, epoch) → x`, a function of these alone.

* `images`: `LabelledImages`, labels checked (`checks`) and named (`names`); `convert` and `adapters`: what people have,
  made that; `together`: sets joined; `writing`: sets written;
* `readers`: a path or a name in; `npz` and `folders`: files in; `smears`: drawn blood cells; `batches`: one pass;
* `augmentation`: images changed a little every time they are seen; `settings`: how much.
"""

__all__ = [
    "NUMBERS",
    "Augmentation",
    "Batch",
    "LabelledImages",
    "as_labelled",
    "batches",
    "check_memory",
    "default_names",
    "image_tensor",
    "load_data",
    "load_folder",
    "load_medmnist",
    "load_npz",
    "load_smears",
    "shortened",
    "symmetries",
    "turned",
]

from typing import TYPE_CHECKING

from condgen.io.lazy import lazily

if TYPE_CHECKING:
    from condgen.data.adapters import as_labelled
    from condgen.data.augmentation import NUMBERS, Augmentation, symmetries, turned
    from condgen.data.batches import Batch, batches, image_tensor
    from condgen.data.checks import check_memory
    from condgen.data.images import LabelledImages
    from condgen.data.names import default_names, shortened
    from condgen.data.readers import load_data, load_folder, load_medmnist, load_npz
    from condgen.data.smears import load_smears

__getattr__, __dir__ = lazily(
    __name__,
    {
        "adapters": ["as_labelled"],
        "images": ["LabelledImages"],
        "checks": ["check_memory"],
        "names": ["default_names", "shortened"],
        "batches": ["Batch", "batches", "image_tensor"],
        "readers": ["load_data", "load_folder", "load_medmnist", "load_npz"],
        "smears": ["load_smears"],
        "augmentation": ["NUMBERS", "Augmentation", "symmetries", "turned"],
    },
)
