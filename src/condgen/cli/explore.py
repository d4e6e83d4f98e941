"""Explore: a page on this machine to play with a model."""

__all__ = ["explore"]

from pathlib import Path

from condgen.cli.shared import Accelerator, about_run, beside, data_for, on, say
from condgen.io.places import weights_file


def explore(
    run: Path,
    data: str | None = None,
    judge: bool = False,
    port: int | None = None,
    inbrowser: bool = True,
    accelerator: Accelerator = "auto",
) -> None:
    """Open a page on this machine to play with a model: pick cells, move latents, swap labels, look at an image.

    Args:
        run: folder of a trained model, or the name of one that comes with condgen.
        data: for the judge, and to show the training image nearest to yours; as for train, by default what the run was
            trained on.
        judge: a classifier of the real images tells what it takes your image for; trained once where there is none.
        port: of the page; by default the first free one from 7860 on.
        inbrowser: open it in a browser.
        accelerator: where to draw.
    """
    weights_file(run)

    from condgen.apps.explorer_page import explore as open_page
    from condgen.evaluation.judge import load_judge
    from condgen.models.saving import load

    model, own = on(accelerator, load(run)), None
    labelled = data_for(run, data) if judge or data is not None else None
    images = labelled and (labelled.train if labelled.splits else labelled).images
    if judge and labelled is not None:
        place = beside(data or about_run(run)["data"])
        own = load_judge(labelled.ordered(model.class_names), cache=place, progress=True)
    open_page(model, own, data=images, port=port, title=f"condgen: {run.name}", inbrowser=inbrowser, say=say)


explore.examples = (  # type: ignore[attr-defined]
    "condgen explore bloodmnist",
)
