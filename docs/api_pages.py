"""Write `api.md`: every public name of every module, room by room, with a page of its own.

python docs/api_pages.py
"""

import ast
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "src" / "condgen"
ROOMS = ("random", "io", "data", "nn", "distributions", "losses", "models", "training", "recipes", "sampling")
ROOMS += ("evaluation", "apps")


def facts(file):
    """The first line of a module's docstring, and its public names."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    # Constants are told of where they are used.
    public = [name for name in (names[0] if names else []) if name in classes or not name.isupper()]
    return (ast.get_docstring(tree) or "").split("\n")[0], public


def modules(room):
    """Dotted name → file, of the modules of a room that have public names."""
    folder = PACKAGE / room
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    dotted = {f"condgen.{'.'.join(file.relative_to(PACKAGE).with_suffix('').parts)}": file for file in files}
    return {name: file for name, file in dotted.items() if not name.endswith("__init__") and facts(file)[1]}


def table(module, names):
    """Names of a module with their first lines, each with a page of its own."""
    lines = ["```{eval-rst}", f".. module:: {module}", "", ".. autosummary::", "   :toctree: api", "   :nosignatures:"]
    return [*lines, "", *(f"   {name}" for name in names), "```", ""]


def page():
    """All of it."""
    lines = ["# API", "", "## condgen", "", "What most people need, straight from `import condgen`.", ""]
    lines += table("condgen", [name for name in facts(PACKAGE / "__init__.py")[1] if name != "recipes"])
    lines += ["All that is public follows, room by room ([architecture](architecture.md)).", ""]
    for room in ROOMS:
        folder = PACKAGE / room
        about = facts(folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py"))[0]
        lines += [f"## {room}", "", about, ""]
        for name, file in modules(room).items():
            said, names = facts(file)
            lines += [f"### {name}", ""] + ([said, ""] if said != about else [])
            lines += table(name, names)
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "api.md").write_text(page(), encoding="utf-8")
