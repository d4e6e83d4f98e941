"""Export: take a model elsewhere."""

__all__ = ["export"]

from pathlib import Path
from typing import Literal

from condgen.cli.shared import say
from condgen.io.atomic import check_writable
from condgen.io.places import weights_file
from condgen.io.progress import working


def export(run: Path, out: Path | None = None, to: Literal["onnx", "torch-export", "hub"] = "onnx") -> None:
    """Take a model elsewhere: as graphs that run without condgen, or in the layout of the Hugging Face hub.

    Args:
        run: folder of a trained model, or the name of one that comes with condgen.
        out: folder for what is written; by default export/ in the run.
        to: onnx (for ONNX Runtime; needs the packages onnx and onnxscript) or torch-export (for torch.export.load):
            draw and encode as graphs, and export.json, which says what they take. hub (needs huggingface_hub):
            weights, config.json and a card written from the run and its evaluation.
    """
    folder = weights_file(run).parent

    from condgen.apps.export import export as export_model
    from condgen.models.saving import load

    out, model = out or (run if run.exists() else Path()) / "export", load(run)
    if to == "hub":
        from condgen.apps.hub import Pretrained

        check_writable(out)
        Pretrained(model, folder).save_pretrained(out)
    else:
        with working(f"exporting the model as {to} graphs"):
            export_model(model, out, to)
    say(f"Wrote {out}.")


export.examples = (  # type: ignore[attr-defined]
    "condgen export runs/mine --to onnx --out exported",
)
