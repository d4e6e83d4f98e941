"""Every measure of several runs beside its floor, as one table; and whether larger classes are the better ones.

    condgen train --data bloodmnist --recipe bloodmnist_reference --out runs/reference
    condgen train --data bloodmnist --recipe bloodmnist_reference --output_labels false --epochs 60 \
        --out runs/reference_3
    condgen train --data bloodmnist --recipe bloodmnist_reference --output_labels false --conditional false \
        --epochs 60 --out runs/plain_vae
    for run in reference reference_3 plain_vae; do condgen evaluate runs/$run; done
    python benchmarks/evaluation_table.py runs/reference runs/reference_3 runs/plain_vae \
        --out benchmarks/results/evaluation_cpu_202611

Writes OUT.md and OUT.json. Reads each run's `evaluation.json` and `run.json`; "real" is held-out real images in the
place of generated ones, and for usefulness training on real images.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from scipy.stats import spearmanr

from condgen.evaluation import read_evaluation
from condgen.io.atomic import write_atomically

PER_CLASS = ("label_accuracy", "kid", "kid_early", "precision", "coverage", "coverage_early", "diversity", "psnr")


def number(value):
    return "–" if value is None else f"{value:.4g}"


def cell(measure):
    """Value and interval."""
    if measure is None or measure["overall"] is None:
        return "–"
    interval = measure["interval"]
    return number(measure["overall"]) + (f" ({number(interval[0])} to {number(interval[1])})" if interval else "")


def about(run):
    file = run / "run.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    return {
        key: known.get(key) for key in ("recipe", "epochs", "epochs_done", "best_epoch", "state", "threads", "device")
    }


def table(evaluations, names):
    lines = ["| measure | better | real | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    measures = list(dict.fromkeys(name for content in evaluations for name in content["measures"]))
    for name in measures:
        own = [content["measures"].get(name) for content in evaluations]
        known = [measure for measure in own if measure]
        floor = next((measure["floor"] for measure in known if measure["floor"] is not None), None)
        lines.append(f"| {name} | {known[0]['better']} | {number(floor)} | " + " | ".join(map(cell, own)) + " |")
    return lines


def classes(evaluations, names):
    """Values per class, and the rank correlation with the number of training images."""
    lines = []
    for name, content in zip(names, evaluations, strict=True):
        counts = content["data"]["train_counts"]
        found = {
            m: content["measures"][m]["per_class"] for m in PER_CLASS if content["measures"].get(m, {}).get("per_class")
        }
        if not found:
            continue
        lines += ["", f"### {name}, by class", "", "| class | train images | " + " | ".join(found) + " |"]
        lines.append("|---" * (2 + len(found)) + "|")
        for label in sorted(counts, key=lambda key: -counts[key]):
            lines.append(
                f"| {label} | {counts[label]} | " + " | ".join(number(v.get(label)) for v in found.values()) + " |"
            )
        row = []
        for values in found.values():
            pairs = [(counts[key], value) for key, value in values.items() if value is not None]
            rank = spearmanr(*zip(*pairs, strict=True)) if len(pairs) > 3 else None
            row.append(f"{rank.statistic:+.2f} (p {rank.pvalue:.2f})" if rank else "–")
        lines.append("| rank correlation with the number of images | | " + " | ".join(row) + " |")
    return lines


def reasons(evaluations, names):
    lines = []
    for name, content in zip(names, evaluations, strict=True):
        for measure, value in content["measures"].items():
            if value["overall"] is None:
                lines.append(f"- {name}, {measure}: {value['reason']}")
    return lines


def usefulness(evaluations, names):
    lines = []
    for name, content in zip(names, evaluations, strict=True):
        rows = (content.get("usefulness") or {}).get("rows")
        if rows:
            lines += ["", f"### {name}, usefulness", "", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
            lines += ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows]
            lines += ["", *(f"- {note}" for note in content["usefulness"]["notes"])]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    evaluations, names = [read_evaluation(run) for run in options.runs], [run.name for run in options.runs]
    for name, content in zip(names, evaluations, strict=True):
        content["name"] = name
    machine = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    head = {"date": evaluations[0]["date"], "condgen": evaluations[0]["condgen"], **machine}
    lines = [f"Command and meaning: `benchmarks/evaluation_table.py`. {json.dumps(head)}", ""]
    for name, run, content in zip(names, options.runs, evaluations, strict=True):
        lines.append(
            f"- **{name}** {json.dumps(about(run))}; settings {json.dumps(content['settings'])}; judge on real test "
            f"images {content['judge']['test_accuracy']:.4f}; {content['seconds']:.0f} s. "
            f"{content['verdict']['answer'].upper()}: {content['verdict']['headline']}"
        )
    lines += ["", *table(evaluations, names), "", *reasons(evaluations, names)]
    lines += [*usefulness(evaluations, names), *classes(evaluations, names)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out.with_suffix(".md"), ("\n".join(lines) + "\n").encode())
    content = {
        "machine": head,
        "runs": [{**e, "run": about(run)} for e, run in zip(evaluations, options.runs, strict=True)],
    }
    write_atomically(options.out.with_suffix(".json"), json.dumps(content, indent=1).encode())


if __name__ == "__main__":
    main()
