"""Memory that a process has freed stays with it.

A training step on a CPU allocates and frees the same large tensors again and again. The C library
gives each of them back to the system, which then hands out cleared pages one by one: a tenth of the
step's time at 32 px.
"""

import ctypes

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """From now on; on systems whose C library cannot do it nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
