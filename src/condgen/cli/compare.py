"""Compare: evaluations of several runs side by side."""

__all__ = ["compare"]

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from condgen.cli.shared import say, show
from condgen.io.atomic import check_writable, write_atomically


def compare(runs: list[Path], out: Path | None = None) -> None:
    """Put the evaluations of several runs side by side.

    Args:
        runs: folders that `condgen evaluate` has written to.
        out: an .html file for the same table as a page.
    """
    from condgen.evaluation import read_evaluation
    from condgen.evaluation.report import apart, comparison_page, comparison_table

    if out is not None and out.suffix != ".html":
        raise ValueError(f"Expected --out as an .html file; got {out}.")
    evaluations = [read_evaluation(run) for run in runs]
    for run, evaluation in zip(runs, evaluations, strict=True):
        if outdated(run, evaluation):
            warnings.warn(f"{run} is outdated: its evaluation is of other weights. Evaluate it again.", stacklevel=1)
    heading, *rows = comparison_table(evaluations)
    show(
        [heading.cells, *([f"{cell} *" if k in row.best else cell for k, cell in enumerate(row.cells)] for row in rows)]
    )
    if note := apart(evaluations):
        say(note)
    if out is not None:
        check_writable(out.parent)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, comparison_page(evaluations).encode())
        say(f"Wrote {out}.")


compare.examples = (  # type: ignore[attr-defined]
    "condgen compare runs/one runs/other --out compared.html",
)


def outdated(run: Path, evaluation: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of other weights than the model beside it has now."""
    from condgen.models.saving import WEIGHTS, read_config

    of = (evaluation.get("model") or {}).get("weights")
    return of is not None and (run / WEIGHTS).is_file() and read_config(run / WEIGHTS)["weights"] != of
