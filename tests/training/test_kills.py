"""A few of the runs that `benchmarks/kills.py` kills; fifty of them are its result."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="only in a clone of the repository")
@pytest.mark.filterwarnings("ignore")
def test_killed_runs_end_as_if_they_never_had_been(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # processes look for the function under the module's name
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    kills = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "kills", kills)
    spec.loader.exec_module(kills)
    rows = kills.kill_test(2, seed=1)
    assert all(row["well"] for row in rows), capsys.readouterr().out
    assert any(kill["place"] and kill["status"] == -9 for row in rows for kill in row["killed"])
