"""Damaged and hostile files: whatever is changed in one, it is read, or refused in condgen's own words."""

import contextlib
import io
import json
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import condgen
from condgen.cli import main
from condgen.data.readers import load_npz
from condgen.evaluation import read_evaluation
from condgen.evaluation.classifier import load_classifier
from condgen.evaluation.judge import train_judge
from condgen.io.archives import HEADER, archive_hash, read_archive
from condgen.training.checkpoints import KIND, Checkpoints, unpack
from condgen.training.history import read_history
from tests.training.test_training import quiet, small, toy

REFUSALS = (ValueError, FileNotFoundError, OSError)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One whole file of each kind, and what reads it."""
    folder = tmp_path_factory.mktemp("whole")
    quiet(small(), toy(), epochs=1, out=folder / "run")
    Checkpoints(folder / "state").write({"epoch": 1, "step": {"w": torch.arange(5.0)}, "history": [{"loss": 0.5}]})
    smears = condgen.load_smears(60, size=16)
    train_judge(smears, epochs=1, width=2).save(folder / "judge.safetensors")
    np.savez_compressed(folder / "cells.npz", images=smears.images, labels=smears.labels)
    return {
        "model": (folder / "run" / "model.safetensors", lambda path: condgen.load(path.parent)),
        "state": (next((folder / "state").iterdir()), lambda path: unpack(*read_archive(path, KIND))),
        "judge": (folder / "judge.safetensors", load_classifier),
        "images": (folder / "cells.npz", load_npz),
        "metrics": (folder / "run" / "metrics.csv", lambda path: read_history(path.parent)),
    }


def mutated(content, data):
    """One of the things that befall files: bits, bytes, ends, pieces that are lost or come twice."""
    content = bytearray(content)
    place = data.draw(st.integers(0, len(content) - 1), "place")
    # Descriptions stand at the beginning: half of the changes go there.
    place = place % 2000 if data.draw(st.booleans()) else place
    place = min(place, len(content) - 1)
    length = data.draw(st.integers(1, 64), "length")
    kind = data.draw(st.sampled_from(["bit", "byte", "cut", "zeros", "lost", "twice", "text", "number"]), "kind")
    if kind == "bit":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "byte":
        content[place] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del content[place:]
    elif kind == "zeros":
        content[place : place + length] = bytes(len(content[place : place + length]))
    elif kind == "lost":
        del content[place : place + length]
    elif kind == "twice":
        content[place:place] = content[place : place + length]
    elif kind == "text":
        content[place:place] = data.draw(st.text(max_size=12)).encode()
    else:
        content[place : place + 8] = struct.pack("<q", data.draw(st.integers(-(2**63), 2**63 - 1)))
    return bytes(content)


@pytest.mark.parametrize("kind", ["model", "state", "judge", "images", "metrics"])
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_no_change_does_anything_but_be_refused(kind, files, data, tmp_path_factory):
    whole, read = files[kind]
    folder = tmp_path_factory.getbasetemp() / f"fuzzed-{kind}"
    folder.mkdir(exist_ok=True)
    path = folder / whole.name
    path.write_bytes(mutated(whole.read_bytes(), data))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(*REFUSALS):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert [file.name for file in folder.iterdir()] == [whole.name]


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return exec, (f"open({str(self.place)!r}, 'w')",)


class TestNothingStoredIsExecuted:
    @pytest.fixture
    def trap(self, tmp_path):
        yield Trap(tmp_path / "sprung")
        assert not (tmp_path / "sprung").exists()

    def test_pickles_in_npz(self, trap, tmp_path):
        np.savez(tmp_path / "a.npz", images=np.array([trap] * 4, dtype=object), labels=np.arange(4))
        with pytest.raises(ValueError, match=r"a\.npz"):
            load_npz(tmp_path / "a.npz")

    def test_pickles_in_the_place_of_weights_and_states(self, trap, tmp_path):
        content = pickle.dumps(trap)
        archive = io.BytesIO()
        torch.save({"x": 1}, archive)
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr("archive/trap.pkl", content)
        for bytes_ in (content, archive.getvalue()):
            (tmp_path / "model.safetensors").write_bytes(bytes_)
            (tmp_path / "state-000001.safetensors").write_bytes(bytes_)
            with pytest.raises(ValueError, match="damaged"):
                condgen.load(tmp_path)
            with pytest.warns(UserWarning, match="No training state can be read"):
                assert Checkpoints(tmp_path).read() is None

    @pytest.mark.parametrize("name", ["os.system", "builtins.exec", "../../x", "torch.nn.Linear.forward", "torch.load"])
    def test_names_of_other_things_than_parts(self, name, files, tmp_path):
        from safetensors import safe_open

        with safe_open(files["model"][0], "pt") as file:
            config = json.loads(file.metadata()["condgen"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config["assembly"]["arguments"]["prior"] = {"module": name, "arguments": {}}
        save_file(tensors, tmp_path / "model.safetensors", {"condgen": json.dumps(config)})
        with pytest.raises(ValueError, match="Expected the name of a part"):
            condgen.load(tmp_path)

    def test_paths_that_leave_the_folder(self, tmp_path, capsys):
        (tmp_path / "run").mkdir()
        options = {"out": "../elsewhere", "data": "smears", "epochs": 1}
        (tmp_path / "run" / "run.json").write_text(json.dumps({"state": "stopped", "id": "x", "options": options}))
        assert main(["train", "--resume", str(tmp_path / "run")]) != 0
        assert not (tmp_path / "elsewhere").exists()
        capsys.readouterr()


class TestBoundedMemory:
    @pytest.mark.parametrize("size", [2**62, 10**9, -1])
    def test_headers_that_claim_too_much(self, size, tmp_path):
        header = json.dumps({"x": {"dtype": "F32", "shape": [abs(size)], "data_offsets": [0, size]}}).encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
        with pytest.raises(ValueError, match="damaged"):
            condgen.load(tmp_path)
        (tmp_path / "long").write_bytes(struct.pack("<Q", 2**40) + b"{}")
        with pytest.raises(ValueError, match="No training state can be read"):
            read_archive(tmp_path / "long", KIND)

    def test_a_state_that_is_no_state(self, tmp_path):
        """Its checksum is right, since anyone can compute it; its content is not."""
        for about in ("text", [1, 2], {"dict": 3}, {"tensor": "none"}, {"code": "x"}):
            path = tmp_path / "state-000001.safetensors"
            header = {"kind": KIND, "about": about, "sha256": archive_hash(about, {})}
            save_file({"x": torch.zeros(1)}, path, {HEADER: json.dumps(header | {"sha256": "0"})})
            with pytest.warns(UserWarning, match="No training state"):
                assert Checkpoints(tmp_path).read() is None

    def test_evaluations_are_no_code_either(self, tmp_path):
        for text in ("[]", '{"format": 1e999}', "{" * 100_000, '{"format": 99, "measures": {}}'):
            (tmp_path / "evaluation.json").write_text(text)
            with pytest.raises(ValueError, match=r"evaluation\.json"):
                read_evaluation(tmp_path)


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
    import os

    from condgen.io.atomic import write_atomically

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*cells\.txt"):
        write_atomically(tmp_path / "cells.txt", b"some")
    assert list(tmp_path.iterdir()) == []
