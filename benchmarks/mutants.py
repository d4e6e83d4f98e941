"""Do the tests notice a fault? Small faults are planted in core code, one at a time, drawn by a fixed seed.

    python benchmarks/mutants.py --count 160 --out benchmarks/results/mutants

A fault is one changed operator, comparison, condition, number, keyword argument or function. Each is planted in a copy
of the project, where the tests that run its lines run, the quickest first, until one notices; which tests those are is
found by one run without faults. Faults that are done are kept beside the table (`.json`), so that the same command goes
on with the others. Survivors are listed with their line, to be read one by one: either equivalent, or in need of a
test. Left out is what no test on a CPU can see: annotations, the texts of errors, decorators and `device=`.
"""

import argparse
import ast
import copy
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
ROOMS = ("random", "nn", "distributions", "losses", "models", "training", "sampling")
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div}
ORDER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
ORDER |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
NAMES = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "cos": "sin", "sin": "cos", "exp": "expm1"}


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


def place_of(node: Any) -> dict[str, int]:
    """First and last line of a node."""
    return {"line": node.lineno, "end": node.end_lineno}


def drawn(count: int, seed: int) -> list[dict[str, Any]]:
    """Faults, drawn evenly over all places."""
    sites = []
    for file in modules():
        for k, (kind, node, _) in enumerate(changes(ast.parse(file.read_text()))):
            sites.append({"file": str(file.relative_to(ROOT)), "number": k, "kind": kind, **place_of(node)})
    return random.Random(seed).sample(sites, count)


def planted(fault: dict[str, Any]) -> tuple[str, str, str]:
    """The file with the fault in it, and the place before and after."""
    tree = ast.parse((ROOT / str(fault["file"])).read_text())
    _, old, new = list(changes(tree))[int(fault["number"])]
    before, after = ast.unparse(old), ast.unparse(new)
    changed = ast.fix_missing_locations(Replace(old, new).visit(tree))
    return ast.unparse(changed), before.splitlines()[0], after.splitlines()[0]


class Coverage:
    """Which tests run a line, and how long each takes: one run of the rooms' tests, without any fault.

    Args:
        folder: the copy that they run in.
        kept: file that keeps what was found; None keeps nothing.
    """

    def __init__(self, folder: Path, kept: Path | None) -> None:
        if kept and kept.exists():
            found = json.loads(kept.read_text())
        else:
            found = measured(folder)
            if kept:
                kept.write_text(json.dumps(found))
        self.seconds, self.lines = found["seconds"], found["lines"]

    def tests(self, file: str, first: int, last: int) -> list[str]:
        """Tests that run any of these lines, the quickest first; for lines run on import, those of the file."""
        by_line = self.lines.get(file, {})
        found = {test for line in range(first, last + 1) for test in by_line.get(str(line), ())} - {""}
        if not found:
            found = {test for tests in by_line.values() for test in tests} - {""}
        return sorted(found, key=self.time)

    def time(self, test: str) -> float:
        """Seconds of a test."""
        return self.seconds.get(test, 1.0)


def measured(folder: Path) -> dict[str, Any]:
    """Seconds of each test, and for each file and line the tests that run it; without those that fail."""
    import coverage

    database, report = folder / ".coverage", folder / "report.xml"
    options = ["-q", "-n", "2", "-p", "no:cacheprovider", "--cov=condgen", "--cov-context=test", "--cov-report="]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", "-o", "junit_family=xunit1"]
    places = [*(f"tests/{room}" for room in ROOMS[1:]), "tests/test_random.py", "tests/test_recipes.py", "src/condgen"]
    done = subprocess.run([*command, *places], cwd=folder, env=environment(folder, 1), capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"The tests cannot be run:\n{done.stdout[-3000:]}")
    if done.returncode:
        print(f"Tests that fail without a fault are left out:\n{done.stdout[-3000:]}", flush=True)
    seconds, failing = {}, set()
    for case in ElementTree.parse(report).iter("testcase"):
        test = f"{case.get('file')}::{test_name(case)}"
        if case.find("failure") is not None or case.find("error") is not None:
            failing.add(test)
        elif case.find("skipped") is None:
            seconds[test] = float(case.get("time", 0))
    data, lines = coverage.CoverageData(str(database)), {}
    data.read()
    for file in data.measured_files():
        by_line = {str(line): tests for line, tests in data.contexts_by_lineno(file).items()}
        lines[str(Path(file).relative_to(folder))] = {
            line: sorted({test.split("|")[0] for test in tests} - failing) for line, tests in by_line.items()
        }
    return {"seconds": seconds, "lines": lines}


def test_name(case: ElementTree.Element) -> str:
    """What follows the file in a test's id: classes and function, or a doctest's dotted name."""
    file, where, name = str(case.get("file")), str(case.get("classname")), str(case.get("name"))
    if not file.startswith("tests"):
        return name
    inner = where.removeprefix(file.removesuffix(".py").replace("/", ".")).strip(".").replace(".", "::")
    return f"{inner}::{name}" if inner else name


def environment(folder: Path, threads: int) -> dict[str, str]:
    """Variables with which the copy is imported instead of what is installed."""
    return {
        **os.environ,
        "PYTHONPATH": str(folder / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": str(threads),
    }


def noticed(folder: Path, tests: list[str], seconds: float) -> str:
    """Which test notices, of those that run the line; "" if none does."""
    if not tests:
        return ""
    options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--no-header", "--tb=no", "-rfE"]
    listed = folder / "tests.txt"
    listed.write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", *options, f"@{listed}"]
    limit = 60 + 5 * seconds
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(folder, 1), capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return "it no longer ends"
    if done.returncode == 0:
        return ""
    if done.returncode not in (1, 2, 3, 4):  # 4: what it is imported by fails, such as conftest.py
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else "importing it fails"


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
    parser.add_argument("--jobs", type=int, default=2, help="faults that are tried at a time")
    parser.add_argument("--coverage", type=Path, help="file that keeps which tests run which lines")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    kept = options.out and options.out.with_suffix(".json")
    done = json.loads(kept.read_text()) if kept and kept.exists() else []
    started, faults = time.monotonic(), drawn(options.count, options.seed)
    known = {(fault["file"], fault["number"]) for fault in done}
    waiting = [fault for fault in faults if (fault["file"], fault["number"]) not in known]
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.jobs) as pool:
        folders: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for k in range(options.jobs):
            ignored = shutil.ignore_patterns(".git", "__pycache__", "runs", "build", "_build", "*.egg-info", "results")
            folders.put(Path(shutil.copytree(ROOT, Path(temporary, f"copy{k}"), ignore=ignored)))
        coverage = Coverage(Path(temporary, "copy0"), options.coverage)

        def tried(fault: dict[str, Any]) -> dict[str, Any] | None:
            if time.monotonic() - started > 60 * options.minutes:
                return None
            text, fault["before"], fault["after"] = planted(fault)
            tests = coverage.tests(str(fault["file"]), fault["line"], fault["end"])
            folder = folders.get()
            file = folder / str(fault["file"])
            whole = file.read_text()
            file.write_text(text)
            fault["noticed"] = noticed(folder, tests, sum(map(coverage.time, tests)))
            fault["tests"] = len(tests)
            file.write_text(whole)
            folders.put(folder)
            return fault

        for fault in pool.map(tried, waiting):
            if fault is None:
                break
            done.append(fault)
            said = f"{fault['noticed'] or 'SURVIVED'} ({fault['tests']} tests run the line)"
            print(f"{len(done)} {fault['file']}:{fault['line']}: {said}", flush=True)
            if kept:
                kept.write_text(json.dumps(done, indent=1) + "\n")
    print(table(done))
    if options.out:
        options.out.with_suffix(".md").write_text(table(done) + "\n")


if __name__ == "__main__":
    main()
