"""Fixed sine positions, as MAE has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sine_positions(grid: tuple[int, int], channels: int) -> Tensor:
    """The two-dimensional sine code: a quarter of the channels each for sine and cosine of column and row.

    Args:
        grid: Height and width in tokens.
        channels: A multiple of 4.

    Returns:
        ``(1, h * w, channels)``, row by row.

    Raises:
        ValueError: If 4 does not divide ``channels``.
    """
    if channels % 4:
        raise ValueError(f'sine positions of {channels} channels: give a multiple of 4')
    rates = 10000 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    rows, columns = (torch.arange(side, dtype=torch.float64)[:, None] * rates for side in grid)
    shape = (*grid, -1)
    parts = [columns.sin(), columns.cos()]
    code = [part[None].expand(shape) for part in parts]
    code += [part[:, None].expand(shape) for part in (rows.sin(), rows.cos())]
    return torch.cat(code, -1).flatten(0, 1)[None].float()


def fix_positions(backbone: nn.Module) -> None:
    """Give a backbone sine positions that are not trained."""
    with torch.no_grad():
        backbone.pos_embed.copy_(sine_positions(backbone.grid, backbone.pos_embed.shape[-1]))
    backbone.pos_embed.requires_grad_(False)
