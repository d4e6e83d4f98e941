"""What several test files share."""

import pytest
from jaxtyping import config


@pytest.fixture
def unchecked(monkeypatch):
    """Without the run-time shape checks of the test run, users meet our own messages."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)
