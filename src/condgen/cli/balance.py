"""Balance: fill rare classes of a set up with generated images."""

__all__ = ["balance"]

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from condgen.cli.settings import Drawing, Filling
from condgen.cli.shared import Accelerator, about_run, beside, data_for, drawing_as, on, say, teacher_for
from condgen.io.places import weights_file
from condgen.io.progress import working


def balance(
    run: Path,
    out: Path | None = None,
    data: str | None = None,
    strategy: Literal["auto", "minority", "not minority", "not majority", "all"] = "auto",
    counts: list[str] | None = None,
    judge: bool = False,
    refuse_copies: bool = False,
    teacher: str | None = None,
    seed: int = 0,
    accelerator: Accelerator = "auto",
    given: Mapping[str, Any] | None = None,
) -> None:
    """Fill rare classes of a set up with generated images; a table says which image is what.

    Args:
        run: folder of a trained model, or the name of one that comes with condgen.
        out: an .npz file in MedMNIST's layout, or a folder with one subfolder for each split and class; by default
            balanced.npz in the run.
        data: as for train; by default what the run was trained on. Only its training images gain any.
        strategy: which classes are filled up to the largest: auto (all others), minority (the smallest alone), "not
            minority", "not majority" or all.
        counts: images that single classes are to have, instead of a strategy, e.g. [platelet=3000,basophil=2000]; the
            beginning of a name is enough.
        judge: draw samples again that a classifier of the real images does not take for their class.
        refuse_copies: draw near copies of training images again.
        teacher: a classifier's file (of condgen.train_classifier), or bloodmnist for the one that comes with condgen;
            its probabilities of the classes of each generated image are written to the .npz file beside the labels.
        seed: of the samples.
        accelerator: where to draw.
        given: settings by name, of :class:`condgen.cli.settings.Drawing` and :class:`condgen.cli.settings.Filling`.
    """
    weights_file(run)

    from condgen.apps.balance import balance as rebalance
    from condgen.apps.provenance import with_probabilities, write_balanced
    from condgen.evaluation.judge import load_judge
    from condgen.models.saving import load

    out = out or (run if run.exists() else Path()) / "balanced.npz"
    if out.suffix == ".npz" and out.exists():
        raise ValueError(f"{out} is there already. Choose another file (out=).")
    if teacher is not None and out.suffix != ".npz":
        raise ValueError(f"Expected an .npz file for --teacher; got {out}. Pass --out.")
    filling = dict(given or {})
    drawing = {entry.name: filling.pop(entry.name) for entry in fields(Drawing) if entry.name in filling}
    model = drawing_as(drawing, on(accelerator, load(run)), run)
    labelled = data_for(run, data)
    own = (
        load_judge(labelled.ordered(model.class_names), cache=beside(data or about_run(run)["data"])) if judge else None
    )
    wanted = counted(counts) if counts is not None else strategy
    say(f"Drawing what {labelled.name} lacks.")
    with working("drawing images for rare classes"):
        chosen = {"seed": seed, "judge": own, "refuse_copies": refuse_copies, **filling}
        balanced, provenance = rebalance(labelled, model, wanted, **chosen)
    if teacher is not None:
        known = teacher_for(teacher, balanced.class_names)
        balanced, provenance = with_probabilities(balanced, provenance, known)
    with working(f"writing {out}"):
        table = write_balanced(balanced, provenance, out)
    say(f"{provenance}\nWrote {out}, and what each training image is to {table}.")


balance.examples = (  # type: ignore[attr-defined]
    "condgen balance runs/mine --out balanced.npz",
    "condgen balance runs/mine --counts [platelet=3000] --out balanced.npz",
)
balance.settings = (Filling, Drawing)  # type: ignore[attr-defined]


def counted(counts: Sequence[str]) -> dict[str, int]:
    """Class → count, of class=count.

    Example:
        >>> counted(["platelet=300", "2=50"])
        {'platelet': 300, '2': 50}
    """
    found: dict[str, int] = {}
    for text in counts:
        name, _, number = text.rpartition("=")
        if not name or not number.isdigit():
            raise ValueError(f"Expected --counts as [class=count,…]; got {text!r}.")
        found[name] = int(number)
    return found
