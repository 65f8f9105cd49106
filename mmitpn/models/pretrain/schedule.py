"""A value that moves along a half cosine."""

from __future__ import annotations

import math


def cosine(start: float, end: float, share: float) -> float:
    """From ``start`` to ``end`` while ``share`` goes from 0 to 1; it stays there afterwards."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
