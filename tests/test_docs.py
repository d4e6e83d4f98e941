"""What the pages promise: their code runs."""

import ast
import builtins
import hashlib
import importlib
import re
from pathlib import Path

import pytest
import torch

import condgen

DOCS = Path(condgen.__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the package is installed without its pages")
PAGES = sorted([*DOCS.glob("*.md"), DOCS.parent / "README.md"]) if DOCS.is_dir() else []


def code(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_on_a_page_says_where_its_names_come_from(page):
    tree, known = ast.parse("\n".join(code(page))), set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            known.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.arg):
            known.add(node.arg)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used <= known, f"{page.name} uses {', '.join(sorted(used - known))} without an import"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_imports_is_there(page):
    for node in ast.walk(ast.parse("\n".join(code(page)))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("condgen"):
            module = importlib.import_module(str(node.module))
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def test_every_public_name_has_a_page():
    """As `python docs/api_pages.py` writes them."""
    pages = {"__name__": "pages", "__file__": str(DOCS / "api_pages.py")}
    exec((DOCS / "api_pages.py").read_text(encoding="utf-8"), pages)  # our own file
    assert (DOCS / "api.md").read_text(encoding="utf-8") == pages["page"]()
    assert ".. module:: condgen.training.fit\n" in pages["page"]()


@pytest.mark.parametrize("example", sorted((DOCS.parent / "examples").glob("*.py")), ids=lambda example: example.name)
def test_the_gallery_shows_this_example(example):
    """Its pictures are of whole trainings, kept with the pages: `FULL_EXAMPLES=1 sphinx-build docs docs/_build`."""
    kept = (DOCS / "gallery" / f"{example.name}.md5").read_text(encoding="utf-8")
    assert kept == hashlib.md5(example.read_bytes(), usedforsecurity=False).hexdigest()


def test_the_parts_of_extending_train_together():
    names = {}
    for block in code(DOCS / "extending.md"):
        exec(block, names)  # our own page
    model, cells = names["model"], condgen.load_smears(48)
    model.likelihood, model.prior = names["StudentT"](), names["Shifted"]()
    history = condgen.fit(model, cells, epochs=2, progress=False)
    assert history["train_loss"][1] < history["train_loss"][0]
    assert model.eval().sample([0, 7]).shape == (2, 3, 28, 28)
    assert torch.isfinite(model.bits_per_dimension(cells.images[:2], cells.labels[:2], samples=2)).all()
