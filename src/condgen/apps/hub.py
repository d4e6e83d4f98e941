"""Models in the layout of the Hugging Face hub: weights, a description, and a card written from run and evaluation.

Needs the package huggingface_hub: `pip install "condgen[hub]"`. The weights are condgen's own file, so a folder written
here is also one that :func:`condgen.load` reads.
"""

__all__ = ["Pretrained", "model_card"]

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import condgen
from condgen.evaluation import read_evaluation
from condgen.io.archives import weights_hash
from condgen.io.atomic import read_json, write_atomically
from condgen.models.classes import class_names
from condgen.models.saving import WEIGHTS, load, save

try:
    from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
    from huggingface_hub.utils import validate_repo_id
except ImportError as error:
    raise ImportError('Pretrained models need huggingface_hub. Install it: pip install "condgen[hub]".') from error


CONFIG = "config.json"
SHOWN = (  # measures on the card, where they were taken
    *("fid", "kid", "precision", "recall", "coverage", "sharpness", "fid_early", "coverage_early", "diversity"),
    *("label_accuracy", "label_macro", "near_copies", "membership_auc", "synthetic_accuracy", "synthetic_macro_f1"),
)
WARNING = "**Not for clinical use**: an image that a model draws is of no patient and proves nothing about one."


class Pretrained(ModelHubMixin, library_name="condgen", tags=["image-generation", "conditional-generation"]):
    """A model as the hub knows them: `save_pretrained`, `from_pretrained`, `push_to_hub`.

    Args:
        model: what it holds.
        run: folder of the run that made it; its settings and its evaluation go onto the card.

    Example:
        >>> import tempfile
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2, latent=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Pretrained(model).save_pretrained(folder)
        ...     again = Pretrained.from_pretrained(folder).model
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        >>> again.sample([0, 1]).equal(model.eval().sample([0, 1]))
        True
    """

    def __init__(self, model: Any, run: str | Path | None = None) -> None:
        self.model, self.run = model, run

    def _save_pretrained(self, save_directory: Path) -> None:
        save(self.model, save_directory)
        about = {
            "library_name": "condgen",
            "condgen_version": condgen.__version__,
            "model_type": type(self.model).__name__,
            "image_shape": list(self.model.image_shape or ()),
            "class_names": list(self.model.class_names),
            "weights": weights_hash(self.model.state_dict()),
        }
        write_atomically(save_directory / CONFIG, json.dumps(about, indent=1).encode())

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> "Pretrained":
        if Path(model_id).is_dir():
            return cls(load(model_id))
        validate_repo_id(model_id)
        where = {"revision": revision, "cache_dir": cache_dir, "force_download": force_download, "token": token}
        file = hf_hub_download(model_id, WEIGHTS, local_files_only=local_files_only, **where)  # type: ignore[arg-type]
        return cls(load(Path(file).parent))

    def generate_model_card(self, *_: Any, **options: Any) -> ModelCard:
        """The card of :func:`model_card`."""
        return ModelCard(model_card(self.model, self.run, **options))


def model_card(model: Any, run: str | Path | None = None, license: str = "") -> str:  # noqa: A002
    """A card in Markdown: what the model draws, how it was trained, what its evaluation found beside its floors.

    Args:
        model: to describe.
        run: folder of its run; what it lacks is said to be missing.
        license: of the weights, by the hub's names; left out where it is not known.

    Raises:
        ValueError: if the evaluation in the run is of other weights, or damaged.

    Example:
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2, latent=4)
        >>> "was not evaluated" in model_card(model)
        True
    """
    folder = None if run is None else Path(run)
    lines = ["---", "library_name: condgen", "tags:", "- image-generation", "- conditional-generation"]
    lines += [*([f"license: {license}"] if license else []), "---", ""]
    names, size = class_names(model), "x".join(map(str, (model.image_shape or ("?", "?", "?"))[1:]))
    some = names[0] if model.class_names else 0
    lines += [f"# {folder.name if folder else type(model).__name__}: generated images", ""]
    lines += [f"Draws {size} images of {len(names)} classes ({', '.join(names)}), each on request.", WARNING, ""]
    lines += ["```python", "from condgen.apps.hub import Pretrained", ""]
    lines += ['model = Pretrained.from_pretrained("PATH_OR_NAME").model']
    lines += [f"images = model.sample([{some!r}] * 64, seed=0)  # float in [0, 1]", "```", ""]
    lines += ["## Model", "", "```", repr(model), "```", ""]
    lines += ["## Training", "", *training(model, folder), "", "## Evaluation", ""]
    return "\n".join([*lines, *evaluation(model, folder), ""])


def training(model: Any, run: Path | None) -> list[str]:
    """What is known of it."""
    file = run / "run.json" if run else None
    if file is None or not file.is_file():
        told = ", ".join(f"{key} {value}" for key, value in model.provenance.items())
        return [told or "Nothing was recorded of it."]
    about = read_json(file)
    keys = ("recipe", "train", "validation", "epochs_done", "batch_size", "objective", "precision", "seed", "state")
    rows = [f"- {key.replace('_', ' ')}: {about[key]}" for key in (*keys, "condgen", "torch") if key in about]
    return rows or ["Nothing was recorded of it."]


def evaluation(model: Any, run: Path | None) -> list[str]:
    """Verdict and measures, with what held-out real images reach."""
    if run is None or not (run / "evaluation.json").is_file():
        return ["This model was not evaluated. Do it before you use its images: `condgen evaluate`."]
    found = read_evaluation(run)
    if found["model"] and found["model"]["weights"] != weights_hash(model.state_dict()):
        raise ValueError(f"The evaluation in {run} is of other weights. Evaluate it again: condgen evaluate {run}")
    lines = [f"{found['verdict']['headline']}", ""]
    lines += [f"- {finding['title']}: {finding['text']}" for finding in found["verdict"]["findings"]]
    lines += ["", "| measure | generated | held-out real images | better |", "|---|---|---|---|"]
    measures: Mapping[str, Any] = found["measures"]
    for name in SHOWN:
        if (own := measures.get(name)) and own["overall"] is not None:
            floor = "–" if own["floor"] is None else f"{own['floor']:.3g}"
            lines.append(f"| {own['title']} | {own['overall']:.3g} | {floor} | {own['better']} |")
    settings = found["settings"]
    return [
        *lines,
        "",
        f"Of {settings['images']} generated images, {found['date']}, condgen {found['condgen']}; what the measures "
        "mean, and why FID in a judge's own features may not be compared with published FID: condgen's documentation.",
    ]
