"""condgen: conditional generative models for small labelled image sets, composed from parts.

The names below stand in the order of the pipeline: data, model, training, sampling, files, evaluation.
"""

__version__ = "0.1.0"

from condgen import recipes
from condgen.checkpoints import load, save
from condgen.cvae import ConditionalVAE, conditional_vae
from condgen.data import LabelledImages
from condgen.evaluation import Evaluation, evaluate
from condgen.readers import load_data, load_folder, load_medmnist, load_npz
from condgen.smears import load_smears
from condgen.training import History, fit

__all__ = [
    "ConditionalVAE",
    "Evaluation",
    "History",
    "LabelledImages",
    "conditional_vae",
    "evaluate",
    "fit",
    "load",
    "load_data",
    "load_folder",
    "load_medmnist",
    "load_npz",
    "load_smears",
    "recipes",
    "save",
]
