"""Several maps as one row of positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def level_starts(spatial_shapes: Tensor) -> Tensor:
    """First position of each level, ``(levels,)``, of heights and widths ``(levels, 2)``."""
    sizes = spatial_shapes.prod(1)
    return sizes.cumsum(0) - sizes


def flat_padding(padding: Tensor | None, shapes: Sequence[tuple[int, int]]) -> Tensor | None:
    """Which positions of the levels are padding.

    Args:
        padding: ``(B, H, W)``, True on padding, at any resolution; None where there is none.
        shapes: Heights and widths of the levels.

    Returns:
        ``(B, N)``, True on padding, level by level; or None.
    """
    if padding is None:
        return None
    values = padding[:, None].float()
    return torch.cat([F.interpolate(values, size=tuple(shape)).flatten(1) for shape in shapes], 1) > 0
