"""condgen: conditional generative models for small labelled image sets, composed from parts.

The names below stand in the order of the pipeline: data, model, training, sampling, files, evaluation, balancing. Each
is imported when it is first asked for, so that a command answers, and can be stopped, from its first moment.
"""

__version__ = "0.1.0"

import os as _os
import sys as _sys
from typing import TYPE_CHECKING

from condgen.io.lazy import lazily as _lazily

# PyTorch's threads wait for each other by spinning. Where other processes use the cores too, they spin through whole
# time slices, and work that takes a second takes minutes. A shorter spin costs nothing on a free machine. It is read
# once, when torch is loaded, so it can only be said here; whoever has chosen a policy keeps it.
if "torch" not in _sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(_os.environ):
    _os.environ["GOMP_SPINCOUNT"] = "10000"

if TYPE_CHECKING:
    from condgen import recipes
    from condgen.apps.balance import Balancer, balance
    from condgen.data.images import LabelledImages
    from condgen.data.readers import load_data, load_folder, load_medmnist, load_npz
    from condgen.data.smears import load_smears
    from condgen.evaluation import Evaluation, evaluate
    from condgen.evaluation.classifier import Classifier, load_classifier, train_classifier
    from condgen.evaluation.teacher import label
    from condgen.models.cflow import ConditionalFlow, conditional_flow
    from condgen.models.cgan import ConditionalGAN, conditional_gan
    from condgen.models.cvae import ConditionalVAE, conditional_vae
    from condgen.models.saving import load, save
    from condgen.nn.pruning import trim
    from condgen.sampling.dataset import as_dataset
    from condgen.sampling.variations import vary
    from condgen.training.distil import distil
    from condgen.training.fit import fit
    from condgen.training.fit_grain import fit_grain
    from condgen.training.fit_prior import fit_prior
    from condgen.training.history import History
    from condgen.training.match_moments import match_moments
    from condgen.training.settings import Hardware, Training

__all__ = [
    "Balancer",
    "Classifier",
    "ConditionalFlow",
    "ConditionalGAN",
    "ConditionalVAE",
    "Evaluation",
    "Hardware",
    "History",
    "LabelledImages",
    "Training",
    "as_dataset",
    "balance",
    "conditional_flow",
    "conditional_gan",
    "conditional_vae",
    "distil",
    "evaluate",
    "fit",
    "fit_grain",
    "fit_prior",
    "label",
    "load",
    "load_classifier",
    "load_data",
    "load_folder",
    "load_medmnist",
    "load_npz",
    "load_smears",
    "match_moments",
    "recipes",
    "save",
    "train_classifier",
    "trim",
    "vary",
]

_HOMES = {
    "data.images": ("LabelledImages",),
    "data.readers": ("load_data", "load_folder", "load_medmnist", "load_npz"),
    "data.smears": ("load_smears",),
    "models.cflow": ("ConditionalFlow", "conditional_flow"),
    "models.cgan": ("ConditionalGAN", "conditional_gan"),
    "models.cvae": ("ConditionalVAE", "conditional_vae"),
    "models.saving": ("load", "save"),
    "nn.pruning": ("trim",),
    "sampling.dataset": ("as_dataset",),
    "sampling.variations": ("vary",),
    "training.distil": ("distil",),
    "training.fit": ("fit",),
    "training.fit_grain": ("fit_grain",),
    "training.fit_prior": ("fit_prior",),
    "training.history": ("History",),
    "training.match_moments": ("match_moments",),
    "training.settings": ("Hardware", "Training"),
    "evaluation": ("Evaluation", "evaluate"),
    "evaluation.classifier": ("Classifier", "load_classifier", "train_classifier"),
    "evaluation.teacher": ("label",),
    "apps.balance": ("Balancer", "balance"),
}


__getattr__, _ = _lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
