"""How long the threads of a CPU process wait for each other before they release their core; imports no torch."""

from __future__ import annotations

import os

SPIN_COUNT = 1000
"""Rounds that a thread of GNU's OpenMP spins at a barrier before it sleeps. libgomp's default is 300,000, where
no more threads than cores are running."""


def bound_spinning() -> bool:
    """Let the threads of torch sleep at their barriers after a short while; call it before torch is imported.

    libgomp reads its settings when it is loaded. Beside another busy process every barrier otherwise costs a time
    slice; with this bound a training step is as fast on an idle machine. Settings of the environment are kept
    (``GOMP_SPINCOUNT``, ``OMP_WAIT_POLICY``). Processes started from this one inherit the setting.

    Returns:
        Whether the setting was made.
    """
    if 'GOMP_SPINCOUNT' in os.environ or 'OMP_WAIT_POLICY' in os.environ:
        return False
    os.environ['GOMP_SPINCOUNT'] = str(SPIN_COUNT)
    return True
