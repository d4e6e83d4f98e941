"""Run: one evaluation, from a model or a set of images to measures, verdict and page.

Generated images are compared with the test split. The same is done with held-out real images in their place, as many
and of the same classes (from the validation split): what those reach is the floor, or the ceiling, of a measure.
"""

__all__ = ["Evaluation", "evaluate", "read_evaluation"]

import datetime
import hashlib
import html
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

import condgen
from condgen.data.adapters import as_labelled
from condgen.data.images import LabelledImages
from condgen.evaluation.classifier import Classifier, load_classifier
from condgen.evaluation.classifier_training import check_data
from condgen.evaluation.context import about_data, about_judge, cautions, origins
from condgen.evaluation.figures import shares
from condgen.evaluation.judge import check_judge, load_judge
from condgen.evaluation.parts import grid, of_copies, of_images, of_model, of_usefulness
from condgen.evaluation.records import GROUPS, Measure
from condgen.evaluation.report import page
from condgen.evaluation.sets import Found, compared, looker
from condgen.evaluation.sources import as_source, chosen
from condgen.evaluation.verdict import Verdict, judge_measures
from condgen.io.atomic import read_json, write_atomically
from condgen.io.pictures import html_table, png
from condgen.io.progress import working
from condgen.training.history import History

if TYPE_CHECKING:
    import matplotlib.figure

FORMAT = 2
SHOWN = ("synthetic_accuracy", "label_macro", "coverage", "coverage_early", "diversity", "sharpness")  # at one sight
Part = Literal["fidelity", "privacy", "model", "usefulness"]
PARTS: dict[Part, str] = {
    "fidelity": "comparing them with real ones",
    "privacy": "looking for copies of training images",
    "model": "asking the model for reconstructions, likelihood and latents",
    "usefulness": "training classifiers on generated and on real images",
}  # what is measured → what is done for it


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Everything an evaluation found.

    Attributes:
        measures: name → value, value per class, floor and interval.
        verdict: what they say, in sentences.
        details: what was evaluated, tables behind the measures, settings, and what could not be measured.
        pictures: name → PNG.

    Example:
        >>> found = {"fid": Measure(2.0, floor=1.0)}
        >>> Evaluation(found, judge_measures(found), {"name": "mine"}).to_json()["measures"]["fid"]["overall"]
        2.0
    """

    measures: Mapping[str, Measure]
    verdict: Verdict
    details: Mapping[str, Any]
    pictures: Mapping[str, bytes] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Measure:
        return self.measures[name]

    def named(self, name: str) -> "Evaluation":
        """The same under another name, which stands on the page."""
        return replace(self, details={**self.details, "name": name})

    def __repr__(self) -> str:
        return f"Evaluation of {self.details.get('name', 'images')}: {self.verdict}"

    def show(self) -> "matplotlib.figure.Figure":
        """The measures that matter most, each beside what held-out real images reach; a notebook shows it.

        Raises:
            ValueError: if none of them was taken.

        Example:
            >>> found = {"coverage": Measure(0.9, floor=0.97)}
            >>> figure = Evaluation(found, judge_measures(found), {}).show()
        """
        if not (rows := self.shown()):
            raise ValueError(f"Expected one of {', '.join(SHOWN)} among the measures; none of them was taken.")
        return shares(rows)

    def shown(self) -> list[tuple[str, float, float | None]]:
        """Title, value and floor of the measures that are shares or multiples of what real images reach."""
        known = {name: self.measures[name] for name in SHOWN if name in self.measures}
        return [(m.title or name, m.overall, m.floor) for name, m in known.items() if m.overall is not None]

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, and the measures that matter most."""
        findings = "".join(f"<li>{html.escape(f.title)}: {html.escape(f.text)}</li>" for f in self.verdict.findings)
        rows = [
            [title, f"{value:.3g}", "–" if floor is None else f"{floor:.3g}"] for title, value, floor in self.shown()
        ]
        said = f"<p><b>{html.escape(self.verdict.answer.upper())}. {html.escape(self.verdict.headline)}</b></p>"
        return f"{said}<ul>{findings}</ul>{html_table(rows, ['measure', 'generated', 'real images'])}"

    def to_json(self) -> dict[str, Any]:
        """As it is written to `evaluation.json`."""
        members = {key: [name for name, m in self.measures.items() if m.group == key] for key in GROUPS}
        return {
            "format": FORMAT,
            "condgen": condgen.__version__,
            **self.details,
            "verdict": asdict(self.verdict),
            "groups": [
                {"title": title, "text": text, "measures": members[key]}
                for key, (title, text) in GROUPS.items()
                if members[key]
            ],
            "measures": {name: measure.to_json() for name, measure in self.measures.items()},
        }

    def write(self, folder: str | Path) -> Path:
        """Write `evaluation.html` and `evaluation.json`, each whole or not at all.

        Returns:
            The page.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = self.to_json()
        text = json.dumps(content, indent=1, allow_nan=False)
        text_of_page = page(content, self.pictures)
        write_atomically(folder / "evaluation.json", text.encode())
        write_atomically(folder / "evaluation.html", text_of_page.encode())
        return folder / "evaluation.html"


def evaluate(
    generated: Any,
    data: Any,
    *,
    measure: Sequence[Part] = tuple(PARTS),
    judge: Classifier | str | Path | int = 0,
    features: nn.Module | Literal["pixels"] | None = None,
    images: int | None = None,
    usefulness: Literal["full", "quick", "none"] = "full",
    seed: int = 0,
    cache: str | Path | None = None,
    history: History | None = None,
    include_real: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Say whether generated images are good enough to train on.

    Args:
        generated: a model that samples (its latents, likelihood and reconstructions are then measured too), or
            `LabelledImages` that were generated elsewhere. Class names decide which class is which.
        data: the real images, with train, validation and test splits and one class label an image. The generator may
            have seen the training split; generated images are compared with the test split. Of a model with several
            labels an image, or continuous ones, only what needs no classes is measured.
        measure: which parts: "fidelity" (with variety, sharpness and truth to the label), "privacy" (copies), "model"
            (reconstruction, likelihood, latents, membership) and "usefulness". One that fails leaves the others alone,
            and the reason among the warnings.
        judge: a judge of these very images, its file, or the seed of the one in `cache`, which is trained if there is
            none. A judge of another seed is another feature space, in which figures cannot be compared.
        features: a second look beside the judge's: another network, images in [0, 1] → (n, d), or "pixels".
        images: number of generated images; by default as many as validation images (and no more than test images).
        usefulness: how much is trained to see what a classifier learns from generated images: "full" (three seeds, and
            a rare class cut down), "quick" (one seed, smaller and shorter) or "none".
        seed: of samples, subsamples and classifiers.
        cache: folder of judges and of classifiers of real images; see
            :func:`condgen.evaluation.judge.cache_folder`.
        history: of the training, to be drawn.
        include_real: whether the page may show real images.
        progress: tell what is being done.

    Returns:
        Measures, verdict and pictures; `.write(folder)` makes one page and one JSON file.

    Raises:
        ValueError: if generated images are none, have another shape or range, or lack a class; if the judge was
            trained on other images; if data have no splits or other labels than classes; if nothing could be measured.

    Example:
        >>> from condgen.evaluation.judge import train_judge
        >>> cells = condgen.load_smears(400, size=16, balance="equal")
        >>> fresh = condgen.load_smears(200, size=16, seed=1)  # a perfect generator
        >>> judge = train_judge(cells, epochs=1, width=8)  # left out, a better one is trained
        >>> evaluation = evaluate(fresh, cells, judge=judge, usefulness="none")
        >>> evaluation["diversity"].overall > 0.8
        True
    """
    started, tell = time.perf_counter(), teller(progress)
    if unknown := sorted(set(measure) - set(PARTS)) or not measure:
        raise ValueError(f"Expected parts among {', '.join(PARTS)}; got {unknown if measure else 'none'}.")
    whole = prepared(data, generated)
    data, shared = without_shared(whole)
    source = as_source(generated, data)
    held_out = data.validation.subset(chosen(data, source, images, seed))
    own = resolve_judge(judge, whole, cache, progress, tell) if data.kind == "class" else None
    usefulness = usefulness if own else "none"
    tell(f"drawing {len(held_out):,} images")
    labelled = source.labelled and data.kind == "class"
    with working("drawing and looking at images", progress=progress):
        sets = compared(looker(own, features), source, data, held_out, labelled, seed)
    warnings = [*shared, *cautions(sets, source, data, held_out, images, own), *origins(source.model, data)]
    shown = {"samples": sets.generated, **({"real": sets.held_out} if include_real else {})}
    found = Found(warnings=warnings, pictures={name: grid(part, sets) for name, part in shown.items()})
    parts: dict[Part, tuple[str, Callable[[], None]]] = {
        "fidelity": (PARTS["fidelity"], lambda: of_images(sets, found)),
        "privacy": (PARTS["privacy"], lambda: of_copies(sets, data.train, found, include_real)),
        "model": (PARTS["model"], lambda: of_model(source, own, data, seed, found, include_real)),
        "usefulness": (
            f"{PARTS['usefulness']} ({usefulness})",
            lambda: of_usefulness(source, data, usefulness, seed, cache, progress, found),
        ),
    }
    skipped = {"model": source.model is None, "usefulness": usefulness == "none"}
    wanted: list[Part] = [part for part in PARTS if part in measure and not skipped.get(part)]
    failed = measured({part: parts[part] for part in wanted}, tell, progress)
    add_history(history, found)
    details = {
        "name": data.name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "data": about_data(data),
        "model": source.about,
        "judge": about_judge(own, sets),
        "settings": {
            "images": len(held_out),
            "seed": seed,
            "usefulness": usefulness if "usefulness" in wanted else "none",
            **({"parts": ", ".join(measure)} if set(measure) != set(PARTS) else {}),
        },
        "include_real": include_real,
        "warnings": [*found.warnings, *failed.values()],
        "failed": failed,
    }
    return concluded(found, own, {**details, **found.details, "seconds": time.perf_counter() - started})


def prepared(data: Any, generated: Any) -> LabelledImages:
    """Read and check the real images of an evaluation, their classes in the order that the generator has.

    Raises:
        ValueError: for data that lack splits or, beside generated images, class labels.
    """
    draws = hasattr(generated, "sample")
    found = as_labelled(data).ordered(getattr(generated, "class_names", ()) if draws else ())
    if found.kind == "class" or not draws:
        check_data(found)
    return found


def add_history(history: History | None, found: Found) -> None:
    """Keep the curves of the training, if it is known."""
    if history is not None and history.rows:
        finite = {key: [v if math.isfinite(v) else None for v in history[key]] for key in history.rows[0]}
        found.details["history"] = finite
        found.pictures["curves"] = png(history.plot())


def concluded(found: Found, judge: Classifier | None, details: dict[str, Any]) -> Evaluation:
    """The evaluation with its verdict, which knows where the judge is weak."""
    weaknesses = [] if judge is None else judge.weaknesses()
    verdict = judge_measures(found.measures, weaknesses=weaknesses, latents=found.latents, useful=found.useful)
    return Evaluation(found.measures, verdict, details, found.pictures)


def measured(
    parts: Mapping[Part, tuple[str, Callable[[], None]]], tell: Callable[[str], object], progress: bool
) -> dict[str, str]:
    """Measure each part of an evaluation; returns the parts that failed, each with its reason.

    One that fails leaves the others alone; if all of them do, the last error is raised.

    Args:
        parts: what is done, in words, and what does it.
        tell: says what is being done.
        progress: whether long work is told about.
    """
    failed: dict[str, str] = {}
    for part, (text, work) in parts.items():
        tell(text)
        try:
            with working(text, progress=progress and part != "usefulness"):  # which tells more of itself
                work()
        except Exception as error:  # the reason goes on the page, and hours of work on the other parts are kept
            failed[part] = f"{part} could not be measured: {error}"
            if len(failed) == len(parts):
                raise
    return failed


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """What an earlier evaluation wrote: a run's folder or its `evaluation.json`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is damaged or of a newer format.

    Example:
        >>> import tempfile
        >>> found = {"fid": Measure(2.0, floor=1.0)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = Evaluation(found, judge_measures(found), {"name": "mine"}).write(folder)
        ...     read_evaluation(folder)["measures"]["fid"]["floor"]
        1.0
    """
    path = Path(path)
    path = path if path.suffix == ".json" else path / "evaluation.json"
    if not path.is_file():
        folder = path.parent
        advice = f"Write one: condgen evaluate {folder}" if folder.is_dir() else "Check the path"
        raise FileNotFoundError(f"No evaluation at {path}. {advice}.")
    kinds = {"measures": dict, "verdict": dict, "groups": list, "name": str, "format": int}
    content = read_json(path, kinds)
    if content.get("format", 0) > FORMAT:
        raise ValueError(f"{path} has format {content['format']}; this condgen reads up to {FORMAT}. Upgrade condgen.")
    if missing := sorted(set(kinds) - set(content)):
        raise ValueError(f"{path} is damaged or no evaluation: no {', '.join(missing)}. Evaluate the run again.")
    whole = [isinstance(m, dict) and {"overall", "floor", "better"} <= set(m) for m in content["measures"].values()]
    if broken := [name for name, good in zip(content["measures"], whole, strict=True) if not good]:
        raise ValueError(f"{path} is damaged: {broken[0]!r} is no measure. Evaluate the run again.")
    return content


def without_shared(data: LabelledImages) -> tuple[LabelledImages, list[str]]:
    """Leave out validation and test images that are also training images; returns the data and the warnings.

    What is shared would make copies of training images look like real images, and memory look like skill.

    Example:
        >>> images = np.arange(6, dtype=np.uint8)[[0, 1, 2, 3, 0, 5]].reshape(6, 1, 1, 1)
        >>> data = LabelledImages(images, np.zeros(6, int), splits={"train": slice(0, 4), "test": slice(4, 6)})
        >>> kept, said = without_shared(data)
        >>> len(kept.test), said
        (1, ['1 of 2 test images is a training image, too, and left out: number 0.'])
    """
    seen = {digest(image) for image in data.train.images}
    splits, said = dict(data.splits), []
    for name in ("validation", "test"):
        places = np.arange(len(data))[data.splits[name]] if name in data.splits else np.zeros(0, int)
        again = np.array([digest(image) in seen for image in data.images[places]], bool)
        if again.any():
            count, numbers = int(again.sum()), np.flatnonzero(again)
            splits[name] = places[~again]
            some = ", ".join(map(str, numbers[:8].tolist())) + (" and others" if count > 8 else "")
            verb, kind = ("is a training image", "number") if count == 1 else ("are training images", "numbers")
            said.append(f"{count} of {len(places)} {name} images {verb}, too, and left out: {kind} {some}.")
    return replace(data, splits=splits) if said else data, said


def digest(image: np.ndarray) -> bytes:
    """16 bytes that stand for an image: equal images have equal ones."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def resolve_judge(
    judge: Classifier | str | Path | int,
    data: LabelledImages,
    cache: str | Path | None,
    progress: bool,
    tell: Callable[[str], object],
) -> Classifier:
    """The judge of these images: given, in a file, kept, or trained now."""
    if isinstance(judge, int):
        tell("looking for the judge of these images, or training it")
        return load_judge(data, cache=cache, seed=judge, progress=progress)
    judge = judge if isinstance(judge, Classifier) else load_classifier(judge)
    check_judge(judge, data)
    return judge


def teller(progress: bool) -> Callable[[str], object]:
    """What says what is being done, on standard error; or nothing."""
    if not progress:
        return lambda _: None
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return lambda text: console.print(f"{text} …")
