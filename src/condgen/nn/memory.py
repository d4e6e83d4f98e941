"""Memory: freed pages are kept for the next step, where the C library would give them back and fetch them again."""

__all__ = ["keep_freed_memory"]

import ctypes
import functools
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 2**30  # bytes


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process reuse the memory of freed tensors, up to 1 GiB of it; once, from then on.

    By default glibc returns large blocks to the system as soon as they are free, and the system hands them out again
    zeroed, page by page. A training step on a CPU frees and asks for the same tensors every time, so a small network
    spends up to a third of its time there. The most memory a process needs stays what it was. Nothing is changed where
    the user has settings of their own (`MALLOC_...` or `GLIBC_TUNABLES` in the environment), or without glibc.

    Returns:
        Whether it could be done.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if own or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
