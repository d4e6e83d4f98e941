"""Archives: what was written comes back, and what was changed is noticed."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from condgen.io.archives import HEADER, read_archive, write_archive

ABOUT = {"format": 1, "names": ["a", "b"], "of": {"x": None}}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    tensors = {"x": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([3]), "same": torch.zeros(())}
    tensors["shared"] = tensors["x"][0]
    return write_archive(tmp_path_factory.mktemp("archives") / "new" / "a.safetensors", "numbers", ABOUT, tensors)


def test_it_comes_back(archive):
    about, tensors = read_archive(archive, "numbers")
    assert about == ABOUT
    assert tensors["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["shared"].tolist() == [0, 1, 2]
    assert tensors["n"].dtype == torch.int64


def test_another_kind_and_none(archive, tmp_path):
    with pytest.raises(ValueError, match="it holds no judge"):
        read_archive(archive, "judge")
    with pytest.raises(FileNotFoundError, match="No judge at"):
        read_archive(tmp_path / "none", "judge")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="it holds no numbers"):
        read_archive(tmp_path / "foreign", "numbers")


def test_what_it_says_of_itself_is_part_of_the_checksum(archive, tmp_path):
    from safetensors import safe_open

    with safe_open(archive, "pt") as file:
        header = json.loads(file.metadata()[HEADER])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header["about"]["format"] = 2
    save_file(tensors, tmp_path / "b", {HEADER: json.dumps(header)})
    with pytest.raises(ValueError, match="not what it was written with"):
        read_archive(tmp_path / "b", "numbers")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_change_goes_unnoticed(archive, data, tmp_path_factory):
    """A bit flipped, or the file cut, anywhere: a ValueError, or the very same content."""
    content = np.frombuffer(archive.read_bytes(), np.uint8).copy()
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    path = tmp_path_factory.mktemp("damaged") / "a.safetensors"
    path.write_bytes(content.tobytes())
    with contextlib.suppress(ValueError):
        about, tensors = read_archive(path, "numbers")
        assert about == ABOUT
        assert tensors["x"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_not_a_number_is_no_description(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_archive(tmp_path / "a", "numbers", {"loss": float("nan")}, {})
