"""What several test files share."""

import signal

import pytest
import torch
from jaxtyping import config

# The tensors of these tests are small: a second thread only waits for the first, and on a busy machine for others too.
torch.set_num_threads(1)
# A job in the background ignores Ctrl-C, and so would the processes that tests start and stop.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time shape checks of the test run, users meet our own messages."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)
