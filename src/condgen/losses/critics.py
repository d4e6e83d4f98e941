"""What losses with a discriminator share."""

__all__ = []

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def held_still(network: nn.Module) -> Iterator[None]:
    """No gradients for its weights inside."""
    moving = [p for p in network.parameters() if p.requires_grad]
    for parameter in moving:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in moving:
            parameter.requires_grad_(True)
