"""The report of an evaluation: one HTML page that opens from disk, and the table that compares several."""

__all__ = ["comparison_page", "comparison_table", "page"]

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Content = Mapping[str, Any]

MARKS = {"bad": "✗", "warn": "!", "good": "✓"}
ANSWERS = {"yes": "Yes", "not yet": "Not yet", "no": "No", "unknown": "Not measured"}
CARDS = ("synthetic_accuracy", "label_accuracy", "coverage", "diversity_early", "sharpness", "fid", "near_copies")
STYLE = """
:root { --ink: #1d2430; --soft: #5b6675; --line: #dfe3e8; --paper: #ffffff; --card: #f6f7f9; --good: #1f7a4d;
  --warn: #9a6200; --bad: #b3261e; --accent: #2563a8; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa6b5; --line: #343c47; --paper: #14181e;
  --card: #1c222a; --good: #5cc492; --warn: #e0a83e; --bad: #ff8a80; --accent: #7fb3ea; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 44px 0 6px; }
p { margin: 6px 0; max-width: 76ch; } .soft { color: var(--soft); } small { color: var(--soft); }
.verdict { border-left: 6px solid var(--tone); background: var(--card); padding: 16px 20px; margin: 20px 0;
  border-radius: 6px; }
.verdict strong { font-size: 1.35rem; color: var(--tone); } .verdict p { font-size: 1.05rem; }
ul.findings { list-style: none; margin: 12px 0 0; padding: 0; }
ul.findings li { margin: 8px 0; padding-left: 28px; position: relative; }
ul.findings b { font-weight: 600; }
.mark { position: absolute; left: 0; font-weight: 700; width: 20px; text-align: center; }
.bad { --tone: var(--bad); } .warn, .not-yet { --tone: var(--warn); } .good, .yes { --tone: var(--good); }
.no { --tone: var(--bad); }
.unknown { --tone: var(--accent); } .mark { color: var(--tone); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 12px; margin: 16px 0; }
.card { background: var(--card); border-radius: 6px; padding: 12px 14px; }
.card b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
.bar { position: relative; height: 8px; background: var(--line); border-radius: 4px; margin: 8px 0 4px; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--accent); border-radius: 4px; }
.bar u { position: absolute; top: -3px; bottom: -3px; width: 2px; background: var(--ink); }
.wide { overflow-x: auto; margin: 12px 0; } table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; } tbody th { font-weight: 500; white-space: nowrap; }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; } .best { font-weight: 700; }
td.means { min-width: 260px; color: var(--soft); }
caption { text-align: left; color: var(--soft); padding-bottom: 6px; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 8px; image-rendering: auto; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; font-size: .82rem; }
footer { margin-top: 56px; border-top: 1px solid var(--line); padding-top: 12px; font-size: .88rem;
  color: var(--soft); }
@media print { details { display: block; } .verdict, .card { border: 1px solid #ccc; } }
"""
# Nothing may be fetched from anywhere: styles stand in the page, pictures in their addresses.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    sections = [
        header(evaluation),
        verdict(evaluation["verdict"]),
        samples(evaluation, pictures),
        cards(evaluation["measures"]),
        usefulness(evaluation.get("usefulness")),
        *(group(part, evaluation["measures"]) for part in evaluation["groups"]),
        picture(
            "Confusion",
            "confusion",
            "What was asked for against what the judge sees. A perfect generator has all its images on the diagonal.",
            pictures,
        ),
        picture(
            "Precision and recall",
            "precision_recall",
            "Each class beside what held-out real images of it reach: lower means images that look like no real one, "
            "further left real images that nothing looks like.",
            pictures,
        ),
        picture(
            "Reconstructions",
            "reconstructions",
            "Validation images, ten of every class, as they come back from their latents.",
            pictures,
        ),
        picture("Latents", "latents", (evaluation.get("latents") or {}).get("verdict", ""), pictures),
        copies(evaluation, pictures),
        picture("Training", "curves", "The bound and its terms, epoch by epoch.", pictures),
        footer(evaluation),
    ]
    return document(f"Evaluation of {evaluation['name']}", "\n".join(filter(None, sections)))


def document(title: str, body: str) -> str:
    """A whole page around its content."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def header(evaluation: Content) -> str:
    """What was evaluated, on what, when."""
    data = evaluation.get("data") or {}
    said = []
    if data:
        shape = "×".join(map(str, data["image_shape"]))
        said.append(f"{data['name']}, {shape}, {len(data['class_names'])} classes")
    if evaluation.get("settings"):
        said.append(f"{evaluation['settings']['images']:,} generated images")
    said += [evaluation[key] for key in ("date",) if key in evaluation]
    return f"<h1>{escape(str(evaluation['name']))}</h1><p class='soft'>{escape(' · '.join(said))}</p>"


def verdict(found: Content) -> str:
    """The answer and why."""
    findings = "".join(
        f"<li class='{part['severity']}'><span class='mark'>{MARKS[part['severity']]}</span>"
        f"<b>{escape(part['title'])}</b>: {escape(part['text'])}</li>"
        for part in found["findings"]
    )
    kind = found["answer"].replace(" ", "-")
    return (
        f"<section class='verdict {kind}' id='verdict'><p>Good enough to train on? "
        f"<strong>{ANSWERS[found['answer']]}</strong></p><p>{escape(found['headline'])}</p>"
        f"<ul class='findings'>{findings}</ul></section>"
    )


def samples(evaluation: Content, pictures: Mapping[str, bytes]) -> str:
    """Generated images, and real ones where they may be shown."""
    if "samples" not in pictures:
        return ""
    real = (
        f"<h2>Real images</h2>{image(pictures['real'], 'real images of every class')}"
        if evaluation.get("include_real") and "real" in pictures
        else "<p class='soft'>No real image is shown on this page.</p>"
    )
    return f"<h2>Generated images</h2>{image(pictures['samples'], 'generated images, ten of every class')}{real}"


def cards(measures: Content) -> str:
    """A few numbers against what real images reach."""
    shown = [name for name in CARDS if name in measures and measures[name]["overall"] is not None]
    return f"<div class='cards'>{''.join(card(title(name), measures[name]) for name in shown)}</div>" if shown else ""


def card(name: str, measure: Content) -> str:
    """A number on a scale with a mark where real images are."""
    value, floor = measure["overall"], measure["floor"]
    end = 1.15 * max(abs(value), abs(floor or 0), 1e-12)
    mark = "" if floor is None else f"<u style='left:{100 * max(floor, 0) / end:.1f}%'></u>"
    said = "" if floor is None else f"real images: {number(floor)}"
    return (
        f"<div class='card'>{escape(name)}<b>{number(value)}</b>"
        f"<div class='bar'><i style='width:{100 * max(value, 0) / end:.1f}%'></i>{mark}</div>"
        f"<small>{said}</small></div>"
    )


def usefulness(found: Content | None) -> str:
    """The table of classifiers."""
    if not found or not found.get("rows"):
        return ""
    rows = found["rows"]
    head = "".join(f"<th scope='col'{'' if k == 0 else ' class=n'}>{escape(key)}</th>" for k, key in enumerate(rows[0]))
    body = "".join(
        "<tr>"
        + "".join(
            f"<th scope='row'>{escape(str(value))}</th>" if k == 0 else f"<td class='n'>{escape(str(value))}</td>"
            for k, value in enumerate(row.values())
        )
        + "</tr>"
        for row in rows
    )
    notes = "".join(f"<p class='soft'>{escape(note)}</p>" for note in found.get("notes", ()))
    return (
        "<h2>What a classifier learns from them</h2><p>One architecture, the same number of steps; mean ± standard "
        "deviation over seeds, on real test images. Synthetic: generated images alone. Balanced: real images and "
        "generated ones that fill every class up to the largest.</p>"
        f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{notes}"
    )


def group(part: Content, measures: Content) -> str:
    """A table of measures that belong together, and their values per class."""
    names = part["measures"]
    rows = "".join(row(name, measures[name]) for name in names)
    return (
        f"<h2>{escape(part['title'])}</h2><p>{escape(part['text'])}</p><div class='wide'><table><thead><tr>"
        "<th scope='col'>measure</th><th scope='col' class='n'>value</th><th scope='col' class='n'>interval</th>"
        "<th scope='col' class='n'>real images</th><th scope='col'>what it means</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{by_class(names, measures)}"
    )


def row(name: str, measure: Content) -> str:
    """One measure."""
    reason = f"<br><small>{escape(measure['reason'])}</small>" if measure["reason"] else ""
    unit = f" <small>{escape(measure['unit'])}</small>" if measure["unit"] else ""
    return (
        f"<tr><th scope='row'>{escape(title(name))}{unit}</th><td class='n'>{number(measure['overall'])}</td>"
        f"<td class='n'>{span(measure['interval'])}</td><td class='n'>{number(measure['floor'])}</td>"
        f"<td class='means'>{escape(measure['meaning'])}{reason}</td></tr>"
    )


def by_class(names: Sequence[str], measures: Content) -> str:
    """Values per class, real images in brackets, behind a fold."""
    shown = [name for name in names if any(value is not None for value in measures[name]["per_class"].values())]
    if not shown:
        return ""
    classes = list(dict.fromkeys(key for name in shown for key in measures[name]["per_class"]))
    head = "".join(f"<th scope='col' class='n'>{escape(title(name))}</th>" for name in shown)
    body = "".join(
        f"<tr><th scope='row'>{escape(key)}</th>" + "".join(class_cell(measures[name], key) for name in shown) + "</tr>"
        for key in classes
    )
    return (
        "<details><summary>By class</summary><div class='wide'><table><caption>In brackets: held-out real images of "
        f"the class.</caption><thead><tr><th scope='col'>class</th>{head}</tr></thead><tbody>{body}</tbody></table>"
        "</div></details>"
    )


def class_cell(measure: Content, key: str) -> str:
    """Value and floor of a class."""
    floor = measure["per_class_floor"].get(key)
    beside = "" if floor is None else f" <small>({number(floor)})</small>"
    return f"<td class='n'>{number(measure['per_class'].get(key))}{beside}</td>"


def copies(evaluation: Content, pictures: Mapping[str, bytes]) -> str:
    """The nearest pairs of generated and training images."""
    pairs = (evaluation.get("privacy") or {}).get("pairs")
    if not pairs or "copies" not in pictures:
        return ""
    body = "".join(
        f"<tr><td class='n'>{pair['generated']}</td><td class='n'>{pair['training']}</td>"
        f"<td class='n'>{number(pair['distance'])}</td><td class='n'>{number(pair['ratio'])}</td></tr>"
        for pair in pairs
    )
    text = "Generated images that lie much nearer to one training image than to the next ones, the nearest first."
    if not evaluation.get("include_real"):
        text += " The training images themselves are shown with --include-real."
    return (
        f"<h2>Near copies</h2><p>{text}</p>{image(pictures['copies'], 'near copies of training images')}"
        "<details><summary>Which ones</summary><div class='wide'><table><thead><tr>"
        "<th scope='col' class='n'>generated image</th><th scope='col' class='n'>training image</th>"
        "<th scope='col' class='n'>distance</th><th scope='col' class='n'>share of the distance to the next</th></tr>"
        f"</thead><tbody>{body}</tbody></table></div></details>"
    )


def picture(heading: str, name: str, text: str, pictures: Mapping[str, bytes]) -> str:
    """A section with one picture."""
    if name not in pictures:
        return ""
    return f"<h2>{escape(heading)}</h2><p>{escape(text)}</p>{image(pictures[name], heading.lower())}"


def image(content: bytes, alt: str) -> str:
    """A PNG within the page."""
    return f"<img alt='{escape(alt)}' src='data:image/png;base64,{base64.b64encode(content).decode()}'>"


def footer(evaluation: Content) -> str:
    """Judge, cautions, settings."""
    lines = [f"<p>{escape(text)}</p>" for text in evaluation.get("warnings", ())]
    if judge := evaluation.get("judge"):
        lines.append(
            f"<p>The judge, a classifier trained on the real training images, recognises {judge['test_accuracy']:.1%} "
            "of the real test images. Intervals (95 %): of fidelity, variety and sharpness two standard errors from "
            "half-samples drawn without replacement; of truth to the label and copies as of a share (Wilson; "
            "half-samples); of reconstruction and likelihood 1.96 standard errors of the mean; of membership DeLong's; "
            "of usefulness over the seeds of classifiers.</p>"
        )
    if model := evaluation.get("model"):
        lines.append(f"<details><summary>The model</summary><pre>{escape(model['description'])}</pre></details>")
    if "settings" in evaluation:
        said = ", ".join(f"{key} {value}" for key, value in evaluation["settings"].items())
        lines.append(
            f"<p>condgen {escape(str(evaluation['condgen']))}; {escape(said)}; {evaluation['seconds']:.0f} s. Every "
            "figure is in evaluation.json. Not for clinical use.</p>"
        )
    return f"<footer>{''.join(lines)}</footer>"


def comparison_table(evaluations: Sequence[Content]) -> list[list[str]]:
    """Measures of several evaluations side by side, as text; the first row is the heading, the best value has a star.

    The best is the lowest, the highest, or the one nearest to what real images reach, as the measure asks for; no value
    is starred where all are equal or only one is there.

    Args:
        evaluations: what `evaluation.json` holds of each.

    Raises:
        ValueError: without any.

    Example:
        >>> fid = {"overall": 2.0, "floor": 1.0, "better": "lower"}
        >>> worse = {**fid, "overall": 3.0}
        >>> comparison_table([{"name": "a", "measures": {"fid": fid}}, {"name": "b", "measures": {"fid": worse}}])
        [['measure', 'better', 'real images', 'a', 'b'], ['FID', 'lower', '1.00', '2.00 *', '3.00']]
    """
    if not evaluations:
        raise ValueError("Expected at least one evaluation to compare; got none.")
    names = list(dict.fromkeys(name for content in evaluations for name in content["measures"]))
    rows = [["measure", "better", "real images", *short([str(content["name"]) for content in evaluations])]]
    for name in names:
        own = [content["measures"].get(name) for content in evaluations]
        there = [measure for measure in own if measure is not None]
        floor = next((measure["floor"] for measure in there if measure["floor"] is not None), None)
        leader = best(own)
        cells = [
            "–" if measure is None else number(measure["overall"]) + " *" * (k in leader)
            for k, measure in enumerate(own)
        ]
        better = "as real" if there[0]["better"] == "floor" else str(there[0]["better"])
        rows.append([title(name), better, number(floor), *cells])
    return rows


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
    heading, *rows = comparison_table(evaluations)
    head = "".join(
        f"<th scope='col'{' class=n' if k > 1 else ''}>{escape(cell)}</th>" for k, cell in enumerate(heading)
    )
    body = "".join(
        f"<tr><th scope='row'>{escape(cells[0])}</th><td>{escape(cells[1])}</td>"
        + "".join(
            f"<td class='n{' best' if cell.endswith(' *') else ''}'>{escape(cell.removesuffix(' *'))}</td>"
            for cell in cells[2:]
        )
        + "</tr>"
        for cells in rows
    )
    verdicts = "".join(
        f"<section class='verdict {content['verdict']['answer'].replace(' ', '-')}'><p>{escape(str(content['name']))}: "
        f"<strong>{ANSWERS[content['verdict']['answer']]}</strong></p><p>{escape(content['verdict']['headline'])}</p></section>"
        for content in evaluations
    )
    return document(
        "Comparison",
        f"<h1>Comparison</h1>{verdicts}<p class='soft'>In bold: the best value of a row.</p>"
        f"<div class='wide'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
    )


def title(name: str) -> str:
    """A measure's name as it is read.

    Example:
        >>> title("fid_early"), title("label_accuracy"), title("kl")
        ('FID, early features', 'Label accuracy', 'KL')
    """
    for ending, said in (("_early", ", early features"), ("_late", ", late features")):
        if name.endswith(ending):
            return title(name.removesuffix(ending)) + said
    if name in ("fid", "kid", "psnr", "ssim", "elbo", "kl"):
        return name.upper()
    return name.replace("_", " ").capitalize().replace("macro f1", "macro-F1").replace(" auc", " AUC")


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
