"""What does the reference recipe reach on BloodMNIST? Figures and generated pictures of finished runs.

    condgen train --data bloodmnist --recipe bloodmnist_reference --out runs/reference
    condgen train --data bloodmnist --recipe bloodmnist_reference --output_labels false --out runs/reference_3
    python benchmarks/reference_run.py runs/reference runs/reference_3 --out benchmarks/results/reference_cpu_202611

Writes OUT.md and OUT.json, and for each run its metrics (CSV), ten generated images of every class and
reconstructions of the first ten validation images of every class (PNG; the originals are not shown).
"""

import argparse
import datetime
import json
import platform
import shutil
from pathlib import Path

import torch

import condgen
from condgen.io.pictures import save_grid
from condgen.random import Use, normals
from condgen.sampling.grids import per_class

COMPONENTS = (1, 8)
ACTIVE = 0.01  # a latent is active if its posterior mean varies by more than this (variance over images)


@torch.no_grad()
def measured(model: condgen.ConditionalVAE, data: condgen.LabelledImages) -> dict[str, float]:
    """Terms of the bound, importance-weighted likelihood, active latents and PSNR on these images."""
    x, y = model.images(data.images), model.labels(data.labels)
    noise = normals(model.noise_shapes, 0, torch.arange(len(x)), Use.VALIDATION)
    inference = model.infer(x, y, noise)
    result = {
        "log_likelihood": inference.log_likelihood.mean(),
        "kl": inference.kl.mean(),
        "active_latents": (model.encode(x, y).var(0) > ACTIVE).sum(),
        "importance_weighted_64": model.log_likelihood(x, y, samples=64, chunk=4).mean(),
        "psnr": psnr(model.reconstruct(x, y), x),
        "diversity": diversity(per_class(model, 50)) / diversity_of(x, y, 50),
    }
    if inference.label_log_likelihood is not None:
        result["label_log_likelihood"] = inference.label_log_likelihood.mean()
    return {name: float(value) for name, value in result.items()}


def baselines(train: condgen.LabelledImages, data: condgen.LabelledImages) -> dict[str, dict[str, float]]:
    """The same without a model: each image's class mean, with principal components, and the image itself."""
    x, y = (torch.as_tensor(split.images).double() / 255 for split in (train, data))
    means = torch.stack([x[torch.as_tensor(train.labels == k)].mean(0) for k in range(train.num_classes)])
    of_train, of_data = means[torch.as_tensor(train.labels)], means[torch.as_tensor(data.labels)]
    _, components = torch.linalg.eigh((x - of_train).flatten(1).T @ (x - of_train).flatten(1))
    drawn = {"class means": of_data}
    for count in COMPONENTS:
        top = components[:, -count:]
        drawn[f"class means and {count} principal components"] = of_data + (
            (y - of_data).flatten(1) @ top @ top.T
        ).unflatten(1, y.shape[1:])
    drawn["each image itself (the floor of binary cross-entropy)"] = y
    result = {}
    for name, images in drawn.items():
        p = images.clamp(1e-6, 1 - 1e-6)
        likelihood = (y * p.log() + (1 - y) * (1 - p).log()).flatten(1).sum(1).mean()
        result[name] = {"log_likelihood": float(likelihood), "psnr": float(psnr(images, y))}
    return result


def psnr(images: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean peak signal-to-noise ratio, dB."""
    return (-10 * (images - x).square().flatten(1).mean(1).clamp(min=1e-12).log10()).mean()


def diversity(images: torch.Tensor) -> torch.Tensor:
    """Mean distance between two images of a class, averaged over classes; images (classes, count, ...)."""
    return torch.stack([torch.pdist(own.flatten(1)).mean() for own in images]).mean()


def diversity_of(x: torch.Tensor, y: torch.Tensor, count: int) -> torch.Tensor:
    """The same of the first `count` real images of each class."""
    return torch.stack([torch.pdist(x[y == k][:count].flatten(1)).mean() for k in y.unique()]).mean()


def processor() -> str:
    """The CPU's name where the system tells, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="bloodmnist")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    data = condgen.load_data(arguments.data)
    rows = {}
    for run in arguments.runs:
        settings = json.loads((run / "run.json").read_text())
        stem = f"{arguments.out}_{run.name}"
        shutil.copyfile(run / "metrics.csv", f"{stem}_metrics.csv")
        lines = (run / "metrics.csv").read_text().splitlines()
        times = [float(line.split(",")[lines[0].split(",").index("seconds")]) for line in lines[1:]]
        for which, folder in (("best", run), ("last", run / "last")):
            model = condgen.load(folder)
            name = f"{run.name}, {which} epoch ({settings['best_epoch' if which == 'best' else 'epochs_done']})"
            rows[name] = {split: measured(model, getattr(data, split)) for split in ("validation", "test")}
            rows[name]["training_minutes"] = sum(times) / 60
            save_grid(per_class(model, 10), f"{stem}_{which}_samples.png", data.class_names)
            valid = data.validation
            first = [valid.subset((valid.labels == k).nonzero()[0][:10]) for k in range(data.num_classes)]
            redrawn = torch.stack([model.reconstruct(own.images, own.labels) for own in first])
            save_grid(redrawn, f"{stem}_{which}_reconstructions.png", data.class_names)
    for name, values in baselines(data.train, data.test).items():
        rows[name] = {"test": values}
    environment = {
        "date": datetime.date.today().isoformat(),
        "condgen": condgen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{processor()}, {torch.get_num_threads()} threads",
        "optimizer": settings["optimizer"],
    }
    report = {"environment": environment, "runs": rows}
    arguments.out.with_suffix(".json").write_text(json.dumps(report, indent=2))
    arguments.out.with_suffix(".md").write_text(table(report))


def table(report: dict) -> str:
    columns = list(next(iter(report["runs"].values()))["validation"])
    columns += ["label_log_likelihood"] if "label_log_likelihood" not in columns else []
    lines = [f"Command and meaning: `benchmarks/reference_run.py`. {json.dumps(report['environment'])}", ""]
    lines += ["| run | split | " + " | ".join(columns) + " | minutes |", "|---" * (len(columns) + 3) + "|"]
    for name, row in report["runs"].items():
        for split in sorted(set(row) & {"validation", "test"}, reverse=True):
            values = (f"{row[split][column]:.2f}" if column in row[split] else "" for column in columns)
            lines.append(f"| {name} | {split} | {' | '.join(values)} | {row.get('training_minutes', 0):.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
