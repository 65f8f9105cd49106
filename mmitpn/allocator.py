"""Memory of a process that computes on the CPU: what was freed is used again."""

from __future__ import annotations

import ctypes
import os

# Of glibc's malloc.h: free memory at the end of the heap is given back from this size on; blocks mapped one by one.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the C library keep what was freed, and use it again, until the process ends.

    By default glibc gives large blocks back to the system at once, and gets them anew, page by page and filled with
    zeros, for the next operator: on large maps that takes longer than the operator. The price is that the process
    stays as large as it has ever been. Where the environment sets the allocator already (``MALLOC_...``,
    ``GLIBC_TUNABLES``, ``LD_PRELOAD`` of another one) it is left alone, so ``MALLOC_MMAP_MAX_=65536`` keeps glibc's own
    way.

    Returns:
        Whether it is so now.
    """
    chosen = [name for name in os.environ if name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES']
    if chosen or 'malloc' in os.environ.get('LD_PRELOAD', ''):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # glibc has it; macOS and musl have not
    return mallopt is not None and bool(mallopt(_M_TRIM_THRESHOLD, -1)) and bool(mallopt(_M_MMAP_MAX, 0))
