"""Do the tests notice a fault? Small faults are planted in core code, one at a time, drawn by a fixed seed.

    python benchmarks/mutants.py --count 160 --out benchmarks/results/mutants

A fault is one changed operator, comparison, condition, number, keyword argument or function. Each is planted in a copy
of the project; the tests of its room run first, and the tests of the other rooms if those notice nothing. Faults that
are done are kept beside the table (`.json`), so that the same command goes on with the others. Survivors are listed
with their line, to be read one by one: either equivalent, or in need of a test. Left out is what no test on a CPU can
see: annotations, the texts of errors, decorators and `device=`.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("random", "nn", "distributions", "losses", "models", "training", "sampling")
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div}
ORDER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
ORDER |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
NAMES = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "cos": "sin", "sin": "cos", "exp": "expm1"}
LIMIT = 600  # seconds for the tests of one fault


def modules() -> list[Path]:
    """Files of the rooms that faults are planted in."""
    package = ROOT / "src" / "condgen"
    files = [package / "random.py", *(file for room in ROOMS[1:] for file in sorted((package / room).rglob("*.py")))]
    return [file for file in files if file.name != "__init__.py"]


def changes(tree: ast.Module) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """All faults of a file: what they are, the place, and what is put there."""
    skipped = {id(inner) for node in ast.walk(tree) for outer in spoken(node) for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        new = copy.copy(node)
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            new.op = ARITHMETIC[type(node.op)]()
            yield "operator", node, new
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in ORDER:
            new.ops = [ORDER[type(node.ops[0])](), *node.ops[1:]]
            yield "comparison", node, new
        elif isinstance(node, ast.BoolOp):
            new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "condition", node, new
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield "sign", node, node.operand
        elif isinstance(node, ast.If | ast.IfExp):
            new.test = ast.UnaryOp(ast.Not(), node.test)
            yield "branch", node, new
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)
        ):
            new.value = node.value + 1
            yield "number", node, new
        elif isinstance(node, ast.Call) and node.keywords and node.keywords[-1].arg != "device":
            new.keywords = node.keywords[:-1]
            yield "keyword", node, new
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            new.attr = NAMES[node.attr]
            yield "function", node, new


def spoken(node: ast.AST) -> list[ast.AST]:
    """What does nothing when the code runs: annotations and errors."""
    if isinstance(node, ast.Raise):
        return [node]
    if isinstance(node, ast.arg | ast.AnnAssign):
        return [part for part in (node.annotation,) if part]
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        returns = getattr(node, "returns", None)
        return [*node.decorator_list, *([returns] if returns else [])]
    return []


class Replace(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def drawn(count: int, seed: int) -> list[dict[str, str | int]]:
    """Faults, drawn evenly over all places."""
    sites = []
    for file in modules():
        for k, (kind, node, _) in enumerate(changes(ast.parse(file.read_text()))):
            sites.append({"file": str(file.relative_to(ROOT)), "number": k, "kind": kind, "line": node.lineno})
    return random.Random(seed).sample(sites, count)


def planted(fault: dict[str, str | int]) -> tuple[str, str, str]:
    """The file with the fault in it, and the place before and after."""
    tree = ast.parse((ROOT / str(fault["file"])).read_text())
    _, old, new = list(changes(tree))[int(fault["number"])]
    before, after = ast.unparse(old), ast.unparse(new)
    changed = ast.fix_missing_locations(Replace(old, new).visit(tree))
    return ast.unparse(changed), before.splitlines()[0], after.splitlines()[0]


def tests_of(file: str) -> list[list[str]]:
    """Tests to run, the nearest first."""
    room = Path(file).parts[2].removesuffix(".py")
    own = ["tests/test_random.py"] if room == "random" else [f"tests/{room}"]
    others = [f"tests/{other}" for other in ROOMS[1:] if other != room]
    return [[file, *own], [*others, "tests/test_random.py", "tests/test_recipes.py", "tests/apps/test_balance.py"]]


def noticed(folder: Path, file: str) -> str:
    """Which tests notice: "room", "others" or nothing."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
    for name, tests in zip(("room", "others"), tests_of(file), strict=True):
        command = [sys.executable, "-m", "pytest", *options, *tests]
        try:
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return f"{name} (it no longer ends)"
        if done.returncode == 1 or done.returncode == 2:
            return name
        if done.returncode != 0:
            sys.exit(done.stdout.decode()[-2000:] + done.stderr.decode()[-2000:])
    return ""


def table(done: list[dict]) -> str:
    """All faults in figures, and the survivors line by line."""
    kinds = Counter(Path(str(fault["file"])).parts[2].removesuffix(".py") for fault in done)
    lines = [
        "# Faults that were planted, and noticed",
        "",
        "    python benchmarks/mutants.py " + " ".join(sys.argv[1:]),
    ]
    lines += ["", "| room | faults | noticed |", "|---|---|---|"]
    for room, count in kinds.items():
        found = sum(bool(fault["noticed"]) for fault in done if f"/{room}" in str(fault["file"]))
        lines.append(f"| {room} | {count} | {found} |")
    whole = sum(bool(fault["noticed"]) for fault in done)
    lines += [f"| all | {len(done)} | {whole} ({whole / max(len(done), 1):.0%}) |", "", "Survivors:", ""]
    for fault in done:
        if not fault["noticed"]:
            lines.append(
                f"- `{fault['file']}:{fault['line']}` ({fault['kind']}): `{fault['before']}` → `{fault['after']}`"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600.0, help="after which no further fault is begun")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kept = options.out and options.out.with_suffix(".json")
    done = json.loads(kept.read_text()) if kept and kept.exists() else []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "copy")
        ignored = shutil.ignore_patterns(".git", "__pycache__", "runs", "build", "_build", "*.egg-info", "results")
        shutil.copytree(ROOT, folder, ignore=ignored)
        for fault in drawn(options.count, options.seed)[len(done) :]:
            if time.monotonic() - started > 60 * options.minutes:
                break
            text, fault["before"], fault["after"] = planted(fault)
            file = folder / str(fault["file"])
            whole = file.read_text()
            file.write_text(text)
            fault["noticed"] = noticed(folder, str(fault["file"]))
            file.write_text(whole)
            done.append(fault)
            print(f"{len(done)} {fault['noticed'] or 'SURVIVED'}: {fault['file']}:{fault['line']}", flush=True)
            if kept:
                kept.write_text(json.dumps(done, indent=1) + "\n")
    print(table(done))
    if options.out:
        options.out.with_suffix(".md").write_text(table(done) + "\n")


if __name__ == "__main__":
    main()
