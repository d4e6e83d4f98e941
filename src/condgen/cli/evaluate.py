"""Evaluate: are generated images good enough to train on?"""

__all__ = ["evaluate"]

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from condgen.cli.shared import Accelerator, about_run, beside, load_run_data, on, say
from condgen.io.atomic import check_writable
from condgen.io.places import WEIGHTS, shipped
from condgen.training.settings import Checked, setting

UsefulnessPlan = Literal["full", "quick", "none"]
EvaluationPart = Literal["fidelity", "privacy", "model", "usefulness"]
QUICK_IMAGES = 1000  # generated images that a quick evaluation compares, at most


@dataclass(frozen=True)
class JudgeSettings(Checked):
    """The judge: the classifier whose features images are compared in.

    Args:
        judge: a judge's file, instead of the one kept beside the data, which is trained if there is none.
        judge_seed: seed of the judge that is trained; figures by different judges cannot be compared.
    """

    judge: Path | None = setting(None)
    judge_seed: int = setting(0, 0, 2**64 - 1)


def evaluate(
    run: Path,
    data: str | None = None,
    out: Path | None = None,
    usefulness: UsefulnessPlan = "full",
    quick: bool = False,
    images: int | None = None,
    measure: list[EvaluationPart] | None = None,
    features: str | None = None,
    include_real: bool = False,
    seed: int = 0,
    accelerator: Accelerator = "auto",
    given: Mapping[str, Any] | None = None,
) -> None:
    """Say whether generated images are good enough to train on: one HTML page and one JSON, offline.

    Args:
        run: folder of a trained model, the name of one that comes with condgen (bloodmnist), or images generated
            elsewhere: an .npz file or a folder with one subfolder per class, judged against --data.
        data: as for train; by default what the model was trained on. Needs train, validation and test images.
        out: folder for evaluation.html and evaluation.json; by default the run, or NAME_evaluation.
        usefulness: whether classifiers are trained on the images and tested on real ones: full (27 of them, of about
            six minutes each on two plain cores; 18 are kept for later evaluations of other images), quick (one seed of
            smaller ones) or none.
        quick: the same as --usefulness quick.
        images: number of generated images to judge; by default as many as there are validation images, and of them no
            more than 1,000 where quick.
        measure: some of fidelity, privacy, model and usefulness; by default all.
        features: a second look beside the judge's: pixels, or a network of your own as module:Class, built without
            arguments, images in [0, 1] to features.
        include_real: show real images beside the generated ones; without it none is on the page.
        seed: of samples and classifiers.
        accelerator: where the model draws and is measured.
        given: settings by name, of :class:`JudgeSettings`.
    """
    folder, named = (run / WEIGHTS).is_file(), str(run) in shipped() and not run.exists()
    if named:
        data = data or str(run)  # a model that comes with condgen has the name of its data
    if not folder and data is None:
        raise ValueError(
            f"{run} is not the folder of a run. To judge images generated elsewhere, pass the --data they stand for."
        )
    page = out or (run if folder else Path(f"{run.with_suffix('')}_evaluation"))
    check_writable(page)

    from condgen.data.readers import load_data
    from condgen.evaluation import evaluate as evaluate_images
    from condgen.evaluation.run import PARTS
    from condgen.models.saving import load
    from condgen.training.history import read_history

    labelled = load_run_data(run, data) if folder else load_data(str(data))
    cache, wanted = beside(data or about_run(run)["data"]), JudgeSettings(**(given or {}))
    history, plan = read_history(run), "quick" if quick else usefulness
    result = evaluate_images(
        on(accelerator, load(run)) if folder or named else load_data(run, size=labelled.image_shape[1]),
        labelled,
        measure=measure or tuple(PARTS),
        judge=wanted.judge_seed if wanted.judge is None else wanted.judge,
        features=second_look(features),
        images=quick_images(labelled) if images is None and plan == "quick" else images,
        usefulness=plan,
        seed=seed,
        cache=cache,
        history=history,
        include_real=include_real,
        progress=True,
    )
    page = result.named(str(run)).write(page)
    say(f"{result.verdict}\nWrote {page} and {page.with_suffix('.json')}.")


evaluate.examples = (  # type: ignore[attr-defined]
    "condgen evaluate runs/mine",
    "condgen evaluate bloodmnist --quick",
)


evaluate.settings = (JudgeSettings,)  # type: ignore[attr-defined]


def quick_images(data: Any) -> int | None:
    """How many images a quick evaluation compares; None: as many as there are."""
    few = [len(getattr(data, split)) for split in ("validation", "test") if split in data.splits]
    return QUICK_IMAGES if few and min(few) > QUICK_IMAGES else None


def second_look(features: str | None) -> Any:
    """What --features names."""
    from condgen.apps.benchmarking import imported

    return features if features in (None, "pixels") else imported(str(features))()
