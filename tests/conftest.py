"""What several test files share."""

import shutil
import signal

import pytest
import torch
from jaxtyping import config

# The tensors of these tests are small: a second thread only waits for the first, and on a busy machine for others too.
torch.set_num_threads(1)
# A job in the background ignores Ctrl-C, and so would the processes that tests start and stop.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """Tests compare bits and count on what a CPU does; those of a GPU have a file of their own."""
    if request.path.name != "test_gpu.py":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of processes that a test starts


@pytest.fixture(autouse=True)
def in_float32(request, monkeypatch):
    """Whether this machine computes in bfloat16 changes no test but those of the choice itself."""
    if request.path.name != "test_precision.py":
        monkeypatch.setattr("condgen.nn.precision.native_bfloat16", lambda: False)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time shape checks of the test run, users meet our own messages."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine")
    quiet = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=[*quiet, "--disable-component-update"])
        yield opened
        opened.close()
