"""Evaluate: are generated images good enough to train on?"""

__all__ = ["evaluate"]

from pathlib import Path
from typing import Any, Literal

from condgen.cli.shared import Accelerator, about_run, beside, load_run_data, on, say
from condgen.io.atomic import check_writable
from condgen.io.places import WEIGHTS, shipped

UsefulnessPlan = Literal["full", "quick", "none"]
EvaluationPart = Literal["fidelity", "privacy", "model", "usefulness"]


def evaluate(
    run: Path,
    data: str | None = None,
    out: Path | None = None,
    usefulness: UsefulnessPlan = "full",
    quick: bool = False,
    images: int | None = None,
    judge: Path | None = None,
    judge_seed: int = 0,
    measure: list[EvaluationPart] | None = None,
    features: str | None = None,
    include_real: bool = False,
    seed: int = 0,
    accelerator: Accelerator = "auto",
) -> None:
    """Say whether generated images are good enough to train on: one HTML page and one JSON, offline.

    Args:
        run: folder of a trained model, the name of one that comes with condgen (bloodmnist), or images generated
            elsewhere: an .npz file or a folder with one subfolder per class, judged against --data.
        data: as for train; by default what the model was trained on. Needs train, validation and test images.
        out: folder for evaluation.html and evaluation.json; by default the run, or NAME_evaluation.
        usefulness: whether classifiers are trained on the images and tested on real ones: full (about half an hour on
            two current cores), quick (one seed, a smaller classifier) or none.
        quick: the same as --usefulness quick.
        images: number of generated images to judge; by default as many as there are validation images.
        judge: a judge's file, instead of the one kept beside the data, which is trained where there is none.
        judge_seed: of the judge that is trained; figures by another judge cannot be compared.
        measure: some of fidelity, privacy, model and usefulness; by default all.
        features: a second look beside the judge's: pixels, or a network of your own as module:Class, built without
            arguments, images in [0, 1] to features.
        include_real: show real images beside the generated ones; without it none is on the page.
        seed: of samples and classifiers.
        accelerator: where the model draws and is measured.
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
    result = evaluate_images(
        on(accelerator, load(run)) if folder or named else load_data(run, size=labelled.image_shape[1]),
        labelled,
        measure=measure or PARTS,
        judge=judge,
        judge_seed=judge_seed,
        features=second_look(features),
        images=images,
        usefulness="quick" if quick else usefulness,
        seed=seed,
        cache=beside(data or about_run(run)["data"]),
        history=read_history(run),
        include_real=include_real,
        name=str(run),
        progress=True,
    )
    page = result.write(page)
    say(f"{result.verdict}\nWrote {page} and {page.with_suffix('.json')}.")


def second_look(features: str | None) -> Any:
    """What --features names."""
    from condgen.apps.benchmarking import imported

    return features if features in (None, "pixels") else imported(str(features))()
