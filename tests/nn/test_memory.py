"""Freed memory is kept: counted in page faults, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from condgen.nn.memory import keep_freed_memory

done = keep_freed_memory() if sys.argv[1] == "kept" else None
def step():
    return sum(torch.ones(1000, 1500).mul(k) for k in range(4)).sum()
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode, **environment):
    command = [sys.executable, "-c", FAULTS, mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_a_step_takes_its_memory_from_the_one_before():
    """Six MB a tensor are 1,465 pages: given back and fetched again, thousands of faults; kept, none."""
    done, few = faults("kept")
    assert done == "True"
    assert 5 * few < faults("given back", MALLOC_MMAP_THRESHOLD_="1000000")[1]


@pytest.mark.slow
def test_settings_of_the_user_s_stay():
    assert faults("kept", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
