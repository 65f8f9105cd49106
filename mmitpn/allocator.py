"""Memory of a process that computes on the CPU: what was freed is used again."""

from __future__ import annotations

import ctypes
import os

# Of glibc's malloc.h, in bytes: blocks from this size on are mapped from the system one by one (32 MB is the most that
# it takes), and so much free memory at the end of the heap is kept.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_MAPPED, _KEPT = 32 * 2**20, 256 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library keep what was freed, and use it again.

    By default glibc soon gives large blocks back to the system, and gets them anew, page by page and filled with
    zeros, for the next operator: on large maps that takes longer than many an operator. The price is that the process
    may hold up to 256 MB that it does not use. Where the environment sets the allocator already (``MALLOC_...``,
    ``GLIBC_TUNABLES``, ``LD_PRELOAD`` of another one) it is left alone: ``MALLOC_TRIM_THRESHOLD_=131072`` is glibc's
    own way.

    Returns:
        Whether it is so now.
    """
    chosen = [name for name in os.environ if name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES']
    if chosen or 'malloc' in os.environ.get('LD_PRELOAD', ''):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc has it; macOS and musl have not
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
