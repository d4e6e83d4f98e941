"""condgen: conditional generative models for small labelled image sets, composed from parts.

The names below stand in the order of the pipeline: data, model, training, sampling, files, evaluation, balancing. Each
is imported when it is first asked for, so that a command answers, and can be stopped, from its first moment.
"""

__version__ = "0.1.0"

import os as _os
import sys as _sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# PyTorch's threads wait for each other by spinning. Where other processes use the cores too, they spin through whole
# time slices, and work that takes a second takes minutes. A shorter spin costs nothing on a free machine. It is read
# once, when torch is loaded, so it can only be said here; whoever has chosen a policy keeps it.
if "torch" not in _sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(_os.environ):
    _os.environ["GOMP_SPINCOUNT"] = "10000"

if TYPE_CHECKING:
    from condgen import recipes
    from condgen.cflow import ConditionalFlow, conditional_flow
    from condgen.cgan import ConditionalGAN, conditional_gan
    from condgen.checkpoints import load, save
    from condgen.cvae import ConditionalVAE, conditional_vae
    from condgen.data import LabelledImages
    from condgen.evaluation import Evaluation, evaluate
    from condgen.fitting import fit_prior
    from condgen.readers import load_data, load_folder, load_medmnist, load_npz
    from condgen.rebalancing import Balancer, balance
    from condgen.runs import History
    from condgen.smears import load_smears
    from condgen.training import fit
    from condgen.trimming import trim

__all__ = [
    "Balancer",
    "ConditionalFlow",
    "ConditionalGAN",
    "ConditionalVAE",
    "Evaluation",
    "History",
    "LabelledImages",
    "balance",
    "conditional_flow",
    "conditional_gan",
    "conditional_vae",
    "evaluate",
    "fit",
    "fit_prior",
    "load",
    "load_data",
    "load_folder",
    "load_medmnist",
    "load_npz",
    "load_smears",
    "recipes",
    "save",
    "trim",
]

HOMES = {
    "cflow": ("ConditionalFlow", "conditional_flow"),
    "cgan": ("ConditionalGAN", "conditional_gan"),
    "checkpoints": ("load", "save"),
    "cvae": ("ConditionalVAE", "conditional_vae"),
    "data": ("LabelledImages",),
    "evaluation": ("Evaluation", "evaluate"),
    "fitting": ("fit_prior",),
    "rebalancing": ("Balancer", "balance"),
    "readers": ("load_data", "load_folder", "load_medmnist", "load_npz"),
    "smears": ("load_smears",),
    "runs": ("History",),
    "training": ("fit",),
    "trimming": ("trim",),
}


def __getattr__(name: str) -> Any:
    """A public name from the file it lives in, or a file of the package."""
    for home, names in HOMES.items():
        if name in names:
            return getattr(import_module(f"condgen.{home}"), name)
    if name.isidentifier() and not name.startswith("_"):
        try:
            return import_module(f"condgen.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"condgen.{name}":
                raise
    raise AttributeError(f"module 'condgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
