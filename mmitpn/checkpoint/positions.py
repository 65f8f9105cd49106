"""Learned positions of a file for another grid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmitpn.models.layers.relative import resize_table

TABLE, VECTORS = '.relative_position_bias_table', ('.rel_pos_h', '.rel_pos_w')


def is_relative(name: str) -> bool:
    """Whether a weight holds relative positions."""
    return name.endswith((TABLE, *VECTORS))


def resize_pos_embed(embedding: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a position embedding by target size: bicubic, no ``align_corners``, no antialiasing, in fp32.

    Args:
        embedding: ``(1, N, C)``, ``N = grid[0] * grid[1]``.
        grid: Its rows and columns, in tokens.
        target: Rows and columns wanted.

    Returns:
        ``(1, target[0] * target[1], C)``.
    """
    dim = embedding.shape[-1]
    maps = embedding.float().reshape(1, *grid, dim).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=target, mode='bicubic', align_corners=False)
    return maps.permute(0, 2, 3, 1).reshape(1, target[0] * target[1], dim)


def resize_relative(name: str, value: Tensor, like: Tensor) -> Tensor | None:
    """Resize relative positions to the window of another network: tables bicubically, vectors linearly.

    Args:
        name: Name of the weight.
        value: Table ``((2 w - 1) ** 2, heads)`` or vectors ``(2 w - 1, C)`` of a file.
        like: The module's weight of that name.

    Returns:
        The resized weight; None if the two differ in more than the window.
    """
    if not is_relative(name) or value.ndim != 2 or value.shape[1] != like.shape[1]:
        return None
    if not name.endswith(TABLE):
        return F.interpolate(value.float().T[None], size=len(like), mode='linear')[0].T
    sides = [round(len(table) ** 0.5) for table in (value, like)]
    if any(side * side != len(table) or side % 2 == 0 for side, table in zip(sides, (value, like), strict=True)):
        return None
    source, target = ((side + 1) // 2 for side in sides)
    return resize_table(value, (source, source), (target, target))
