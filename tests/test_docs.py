"""What the pages promise: their code runs."""

import re
from pathlib import Path

import pytest
import torch

import condgen

DOCS = Path(condgen.__file__).parents[2] / "docs"


@pytest.mark.skipif(not DOCS.is_dir(), reason="the package is installed without its pages")
def test_the_parts_of_extending_train_together():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)  # our own page
    model, cells = names["model"], condgen.load_smears(48)
    model.likelihood, model.prior = names["StudentT"](), names["Shifted"]()
    history = condgen.fit(model, cells, epochs=2, progress=False)
    assert history["train_loss"][1] < history["train_loss"][0]
    assert model.eval().sample([0, 7]).shape == (2, 3, 28, 28)
    assert torch.isfinite(model.bits_per_dimension(cells.images[:2], cells.labels[:2], samples=2)).all()
