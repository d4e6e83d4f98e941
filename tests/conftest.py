"""What several test files share."""

import pytest
import torch
from jaxtyping import config

# The tensors of these tests are small: a second thread only waits for the first, and on a busy machine for others too.
torch.set_num_threads(1)


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time shape checks of the test run, users meet our own messages."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)
