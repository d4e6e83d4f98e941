"""Where other libraries document what condgen's signatures name: inventories for intersphinx, made without a network.

Each library's own inventory has tens of thousands of names and has to be fetched; these have the few that are used
here, also by the names of the files they live in (`torch.nn.modules.module.Module`), which are what signatures show.
"""

import tempfile
import zlib
from pathlib import Path

ABSTRACT = ("Callable", "Iterable", "Iterator", "Mapping", "Sequence")
PAGES = {
    "python": (
        "https://docs.python.org/3",
        {
            **{f"collections.abc.{name}": f"library/collections.abc.html#collections.abc.{name}" for name in ABSTRACT},
            "enum.IntEnum": "library/enum.html#enum.IntEnum",
            "pathlib.Path": "library/pathlib.html#pathlib.Path",
            "types.ModuleType": "library/types.html#types.ModuleType",
        },
    ),
    "numpy": (
        "https://numpy.org/doc/stable",
        dict.fromkeys(("ndarray", "numpy.ndarray"), "reference/generated/numpy.ndarray.html"),
    ),
    "matplotlib": (
        "https://matplotlib.org/stable",
        {"matplotlib.figure.Figure": "api/figure_api.html#matplotlib.figure.Figure"},
    ),
    "torch": (
        "https://docs.pytorch.org/docs/stable",
        {
            "Tensor": "tensors.html#torch.Tensor",
            "torch.Tensor": "tensors.html#torch.Tensor",
            "torch.device": "tensor_attributes.html#torch.device",
            "torch.dtype": "tensor_attributes.html#torch.dtype",
            "torch.nn.modules.module.Module": "generated/torch.nn.Module.html",
            "torch.nn.modules.conv.Conv2d": "generated/torch.nn.Conv2d.html",
            "torch.nn.modules.conv.ConvTranspose2d": "generated/torch.nn.ConvTranspose2d.html",
            "torch.nn.parameter.Parameter": "generated/torch.nn.parameter.Parameter.html",
            "torch.optim.optimizer.Optimizer": "optim.html#torch.optim.Optimizer",
            "torch.utils.data.dataset.Dataset": "data.html#torch.utils.data.Dataset",
            "torch.distributions.distribution.Distribution": (
                "distributions.html#torch.distributions.distribution.Distribution"
            ),
        },
    ),
}  # library → (address, name → page)


def mapping():
    """What `intersphinx_mapping` takes; the inventories are written into a new folder."""
    folder, found = Path(tempfile.mkdtemp(prefix="inventories")), {}
    for library, (address, names) in PAGES.items():
        head = f"# Sphinx inventory version 2\n# Project: {library}\n# Version: \n"
        head += "# The remainder of this file is compressed using zlib.\n"
        lines = (f"{name} py:class 1 {page} -\n" for name, page in names.items())
        file = folder / f"{library}.inv"
        file.write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
        found[library] = (address, str(file))
    return found
