"""Report: one HTML page of an evaluation that opens from disk, and the table that compares several."""

__all__ = ["comparison_page", "comparison_table", "page"]

import base64
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from condgen.evaluation.records import about
from condgen.evaluation.verdict import MARKS

Content = Mapping[str, Any]

ANSWERS = {"yes": "Yes", "not yet": "Not yet", "no": "No", "unknown": "Not measured"}
CARDS = ("synthetic_accuracy", "label_accuracy", "coverage", "diversity_early", "sharpness", "fid", "near_copies")
MOST_CARDS, MOST_FINDINGS = 5, 4  # that are shown without unfolding


def page(evaluation: Content, pictures: Mapping[str, bytes]) -> str:
    """One self-contained page.

    Args:
        evaluation: what `evaluation.json` holds.
        pictures: name → PNG; sections of missing pictures are left out.

    Example:
        >>> verdict = {"answer": "no", "headline": "Not these.", "findings": []}
        >>> text = page({"name": "a run", "verdict": verdict, "groups": [], "measures": {}}, {})
        >>> text.startswith("<!doctype html>"), "Not these." in text
        (True, True)
    """
    measures, data, said = evaluation["measures"], evaluation.get("data") or {}, []
    if data:
        shape = "×".join(map(str, data["image_shape"]))
        said.append(f"{data['name']}, {shape}, {len(data['class_names'])} classes")
    if evaluation.get("settings"):
        said.append(f"{evaluation['settings']['images']:,} generated images")
    said += [evaluation[key] for key in ("date",) if key in evaluation]
    return template().render(
        title=f"Evaluation of {evaluation['name']}",
        it=evaluation,
        said=said,
        pictures=pictures,
        cards=[name for name in CARDS if name in measures and measures[name]["overall"] is not None][:MOST_CARDS],
        shown=MOST_FINDINGS,
    )


@functools.cache
def template() -> Any:
    """The page around its content; everything that is put in is escaped."""
    from jinja2 import Environment, pass_context

    @pass_context
    def by_class(context: Any, part: Content) -> dict[str, Any] | None:
        return class_table(part["measures"], context["it"]["measures"])

    found = Environment(autoescape=True, trim_blocks=False)
    found.globals |= {"answers": ANSWERS, "marks": MARKS, "comparison": None}
    found.filters |= {
        **{"number": number, "span": span, "scale": scale, "by_class": by_class},
        "title": lambda measure, name: title(name, measure),
        "base64": lambda content: base64.b64encode(content).decode(),
    }
    return found.from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


def scale(measure: Content) -> float:
    """Where the bar of a card ends."""
    return 1.15 * max(abs(measure["overall"]), abs(measure["floor"] or 0), 1e-12)


def class_table(names: Sequence[str], measures: Content) -> dict[str, Any] | None:
    """Values and floors per class, of the measures that have any."""
    shown = [name for name in names if any(value is not None for value in measures[name]["per_class"].values())]
    classes = list(dict.fromkeys(key for name in shown for key in measures[name]["per_class"]))
    if not shown:
        return None
    tables = [(measures[name]["per_class"], measures[name]["per_class_floor"]) for name in shown]
    return {
        "measures": [title(name, measures[name]) for name in shown],
        "classes": {key: [(value.get(key), floor.get(key)) for value, floor in tables] for key in classes},
    }


class Row(NamedTuple):
    """A row of a comparison: its cells as text, and which of them hold the best value."""

    cells: list[str]
    best: frozenset[int] = frozenset()


def comparison_table(evaluations: Sequence[Content]) -> list[Row]:
    """Measures of several evaluations side by side; the first row is the heading.

    The best is the lowest, the highest, or the one nearest to what real images reach, as the measure asks for; none is
    named where all are equal, only one is there, or evaluations cannot be ranked (`apart`).

    Args:
        evaluations: what `evaluation.json` holds of each.

    Raises:
        ValueError: without any.

    Example:
        >>> fid = {"overall": 2.0, "floor": 1.0, "better": "lower", "title": "FID"}
        >>> one, other = {"fid": fid}, {"fid": {**fid, "overall": 3.0}}
        >>> comparison_table([{"name": "a", "measures": one}, {"name": "b", "measures": other}])[1]
        Row(cells=['FID', 'lower', '1.00', '2.00', '3.00'], best=frozenset({3}))
    """
    if not evaluations:
        raise ValueError("Expected at least one evaluation to compare; got none.")
    names = list(dict.fromkeys(name for content in evaluations for name in content["measures"]))
    rows = [Row(["measure", "better", "real images", *short([str(content["name"]) for content in evaluations])])]
    ranked = not apart(evaluations)
    for name in names:
        own = [content["measures"].get(name) for content in evaluations]
        there = [measure for measure in own if measure is not None]
        floor = next((measure["floor"] for measure in there if measure["floor"] is not None), None)
        better = "as real" if there[0]["better"] == "floor" else str(there[0]["better"])
        values = ["–" if measure is None else number(measure["overall"]) for measure in own]
        leader = frozenset(3 + k for k in best(own)) if ranked else frozenset()
        rows.append(Row([title(name, there[0]), better, number(floor), *values], leader))
    return rows


def apart(evaluations: Sequence[Content]) -> str:
    """Why these evaluations cannot be ranked: other data, another judge, or other numbers of images; else nothing.

    Example:
        >>> apart([{"judge": {"fingerprint": "a"}}, {"judge": {"fingerprint": "b"}}])
        'No best values are named: the evaluations differ in the judge.'
    """
    whats = {
        "the data": lambda it: (it.get("data") or {}).get("fingerprint"),
        "the judge": lambda it: [(it.get("judge") or {}).get(key) for key in ("fingerprint", "seed", "accuracy")],
        "the number of images": lambda it: (it.get("settings") or {}).get("images"),
        "the plan of usefulness": lambda it: (it.get("settings") or {}).get("usefulness"),
    }
    differ = [what for what, of in whats.items() if any(of(it) != of(evaluations[0]) for it in evaluations)]
    return f"No best values are named: the evaluations differ in {' and '.join(differ)}." if differ else ""


def short(names: Sequence[str]) -> list[str]:
    """The last parts of paths, where they tell the paths apart.

    Example:
        >>> short(["runs/a", "runs/b"]), short(["one/a", "two/a"])
        (['a', 'b'], ['one/a', 'two/a'])
    """
    last = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    return last if len(set(last)) == len(last) else list(names)


def best(measures: Sequence[Content | None]) -> list[int]:
    """Which values are best; none where there is nothing to tell apart."""
    known = {k: m for k, m in enumerate(measures) if m is not None and m["overall"] is not None}
    if len(known) < 2:
        return []
    cost = {}
    for k, measure in known.items():
        value, floor = measure["overall"], measure["floor"]
        if measure["better"] == "floor":
            cost[k] = abs(value - floor) if floor is not None else 0.0
        else:
            cost[k] = value if measure["better"] == "lower" else -value
    least = min(cost.values())
    leader = [k for k, value in cost.items() if value == least]
    return leader if len(leader) < len(known) else []


def comparison_page(evaluations: Sequence[Content]) -> str:
    """The same table as a page, with each verdict above it.

    Args:
        evaluations: what `evaluation.json` holds of each.

    Raises:
        ValueError: without any.

    Example:
        >>> verdict = {"answer": "no", "headline": "Not these.", "findings": []}
        >>> "Not these." in comparison_page([{"name": "a", "verdict": verdict, "measures": {}}])
        True
    """
    rows = comparison_table(evaluations)
    return template().render(
        title="Comparison", comparison=evaluations, rows=rows, note=apart(evaluations), pictures={}
    )


def title(name: str, measure: Content) -> str:
    """A measure's name as it is read; evaluations of earlier versions do not tell."""
    return measure.get("title") or about(name)["title"]


def number(value: float | None) -> str:
    """Three significant digits; a dash for None.

    Example:
        >>> [number(value) for value in (None, 0.0, 0.12345, 12.345, 1234.5, 0.00012345)]
        ['–', '0', '0.123', '12.3', '1,234', '1.23e-04']
    """
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.2e}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}" if abs(value) >= 1 else f"{value:.3f}"


def span(pair: Sequence[float] | None) -> str:
    """From, to."""
    return "–" if pair is None else f"{number(pair[0])} to {number(pair[1])}"
