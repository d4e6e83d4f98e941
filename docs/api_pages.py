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
    # Constants are told of where they are used.
    public = [name for name in (names[0] if names else []) if not name.isupper()]
    return (ast.get_docstring(tree) or "").split("\n")[0], public


def modules(room):
    """Dotted name → file, of the modules of a room that have public names."""
    folder = PACKAGE / room
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    dotted = {f"condgen.{'.'.join(file.relative_to(PACKAGE).with_suffix('').parts)}": file for file in files}
    return {name: file for name, file in dotted.items() if not name.endswith("__init__") and facts(file)[1]}


def page():
    """All of it."""
    lines = ["# API", "", "What most people need is at the top: `condgen.fit`, `condgen.load`, … (`dir(condgen)`)."]
    lines += [
        "All that is public is below, room by room ([architecture](architecture.md)), each with a page of its own."
    ]
    lines += [""]
    for room in ROOMS:
        folder = PACKAGE / room
        about = facts(folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py"))[0]
        lines += [f"## {room}", "", about, ""]
        for name, file in modules(room).items():
            said, names = facts(file)
            lines += [f"### {name}", ""] + ([said, ""] if said != about else [])
            lines += ["```{eval-rst}", ".. autosummary::", "   :toctree: api", "   :nosignatures:", ""]
            lines += [*(f"   ~{name}.{public}" for public in names), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    (HERE / "api.md").write_text(page(), encoding="utf-8")
