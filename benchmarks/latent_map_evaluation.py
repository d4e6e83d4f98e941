"""The latent map of `latent_map.py` beside the 3-output reference, by one judge: figures as Markdown, and pictures.

    python benchmarks/latent_map_evaluation.py --data bloodmnist --map runs/latent_map --reference runs/reference_3

Trains the reference (60 epochs) if its folder holds no run. No classifiers are trained on the images.
"""

import argparse
import json
from pathlib import Path

import torch

import condgen
from condgen import recipes
from condgen.io.pictures import save_grid
from condgen.sampling.grids import per_class

MEASURES = (
    *("fid", "kid", "precision", "recall", "coverage", "fid_early", "recall_early", "coverage_early"),
    *("sharpness", "diversity", "diversity_early", "diversity_late", "label_accuracy", "label_macro"),
    *("psnr", "reconstruction_distance", "kl", "active_latents", "near_copies", "membership_auc"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bloodmnist")
    parser.add_argument("--map", type=Path, default=Path("runs/latent_map"))
    parser.add_argument("--reference", type=Path, default=Path("runs/reference_3"))
    parser.add_argument("--epochs", type=int, default=60, help="of the reference")
    parser.add_argument("--cache", type=Path, default=Path("runs/judges"))
    parser.add_argument("--out", type=Path, default=Path("runs/latent_map_evaluation"))
    options = parser.parse_args()

    data = condgen.load_data(options.data)
    if not (options.reference / "model.safetensors").exists():
        torch.manual_seed(0)
        model = recipes.bloodmnist_reference(False, data.image_shape, data.num_classes)
        condgen.fit(model, data, epochs=options.epochs, out=options.reference)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, run in (("latent map", options.map), ("reference", options.reference)):
        model = condgen.load(run)
        save_grid(per_class(model, 10), options.out / f"{name.replace(' ', '_')}.png", data.class_names)
        evaluation = condgen.evaluate(model, data, usefulness="none", cache=options.cache, progress=True).named(name)
        evaluation.write(options.out / name.replace(" ", "_"))
        found[name] = evaluation.to_json()["measures"]
        print(name, evaluation.verdict, flush=True)
    lines = ["| measure | latent map | reference | real images |", "|---|---|---|---|"]
    for measure in MEASURES:
        own = [found[name].get(measure, {}) for name in ("latent map", "reference")]
        floor = own[0].get("floor")
        lines.append(f"| {measure} | {' | '.join(number(m.get('overall')) for m in own)} | {number(floor)} |")
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    (options.out / "measures.json").write_text(json.dumps(found, indent=1))
    print("\n".join(lines))


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
