"""Threads of linear algebra, which wait for each other."""

__all__ = ["one_thread"]

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for NumPy, SciPy, scikit-learn and PyTorch inside; their own numbers of threads come back.

    Their threads wait for each other and for PyTorch's by spinning. For matrices of a few hundred rows that takes five
    times as long as one thread on a free machine with two cores, and a hundred times as long on a busy one. Sums are
    then taken in one order, too, whatever the machine.

    Example:
        >>> import numpy as np
        >>> with one_thread():
        ...     float(np.linalg.det(np.eye(3)))
        1.0
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield
