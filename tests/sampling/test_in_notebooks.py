"""A real notebook, run by a kernel of its own: what its cells show."""

import base64
import io

import pytest
from PIL import Image

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")

CELLS = {
    "data": "import condgen\ncells = condgen.load_smears(200, size=16)\ncells",
    "show": "cells.show(per_class=4)",
    "training": "model = condgen.conditional_vae(cells.image_shape, 8, latent=4, width=4)\n"
    "history = condgen.fit(model, cells, epochs=2, accelerator='cpu')",
    "wait": "from condgen.io.progress import working\nwith working('drawing', 2) as advance:\n    advance()",
    "history": "history",
    "plot": "history.plot()",
    "model": "model",
    "samples": "model.show(per_class=3)",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Name of a cell → what it put out."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in CELLS.values()])
    folder = str(tmp_path_factory.mktemp("notebook"))
    nbclient.NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}
    ).execute()
    return {name: cell.outputs for name, cell in zip(CELLS, book.cells, strict=True)}


def shown(cell):
    return [output.data for output in cell if output.output_type in ("execute_result", "display_data")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["show", "plot", "samples"])
def test_a_figure_is_shown_once(outputs, name):
    (data,) = shown(outputs[name])
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert min(picture.size) > 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"), [("data", "200 images of 3 × 16 × 16"), ("history", "2 epochs"), ("model", "ConvEncoder")]
)
def test_objects_say_what_matters(outputs, name, said):
    (data,) = shown(outputs[name])
    assert said in data["text/html"]
    assert len(data["text/plain"]) < 2000


@pytest.mark.slow
def test_training_has_one_bar_that_ends_full(outputs):
    (bar,) = (data["text/html"] for data in shown(outputs["training"]) if "<progress" in data["text/html"])
    assert bar.startswith("<progress value='1.000'")
    assert "epoch 2/2" in bar
    assert "validation: log-likelihood" in bar


@pytest.mark.slow
def test_a_wait_has_a_bar_that_goes_away(outputs):
    assert [data["text/html"] for data in shown(outputs["wait"])] == [""]
