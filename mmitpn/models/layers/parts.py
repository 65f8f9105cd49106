"""Large maps a part at a time, where positions do not see each other and nothing is kept for a backward pass.

What lies between the input and the output of a part is then small: it stays in the processor's caches, and the C
library hands the same memory out again for the next part, where a large map would come from the system, page by page.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Values of the widest inner map that are computed at once.
_VALUES = 2**20


def in_parts(x: Tensor) -> bool:
    """Whether to work in parts: on a CPU, without gradients, and not where a graph of the network is being made."""
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    return x.device.type == 'cpu' and not torch.is_grad_enabled() and not traced


def part_rows(width: int) -> int:
    """How many rows of so many values are worked on at once."""
    return max(1, _VALUES // width)


def run_in_parts(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """Run a function that works on every position for itself.

    Args:
        function: ``(..., dim)`` to ``(..., dim_out)``; nothing in it may depend on the other positions.
        x: Its input, ``(..., dim)``.
        width: Channels of its widest inner map.

    Returns:
        ``(..., dim_out)``.
    """
    if not in_parts(x):
        return function(x)
    rows, step = x.numel() // x.shape[-1], part_rows(width)
    if rows <= step:
        return function(x)
    out = None
    for first, part in enumerate(x.reshape(rows, -1).split(step)):
        found = function(part)
        if out is None:
            out = found.new_empty(rows, found.shape[-1])
        out[first * step : first * step + len(part)] = found
    return out.view(*x.shape[:-1], -1)


def run_in_bands(
    function: Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor]], coarse: Tensor, fine: Tensor, width: int
) -> tuple[Tensor | None, Tensor]:
    """Run a function of a map and one that is twice as fine, whose results depend on the same place only.

    Args:
        function: ``(B, h, w, C)`` and ``(B, H, W, c)``, H and W up to ``2 h`` and ``2 w``, to two maps
            ``(B, H, W, ...)``, of which the first may be None.
        coarse: The coarse map, all of it.
        fine: The fine map.
        width: Channels of the results.

    Returns:
        Both maps, whole; the second one lies in memory as ``(B, C, H, W)``, which is what heads take.
    """
    batch, height, columns = fine.shape[:3]
    step = max(1, 2 * _VALUES // (2 * columns * batch * width))  # coarse rows
    if not in_parts(fine) or coarse.shape[1] <= step:
        return function(coarse, fine)
    first = second = None
    for row in range(0, coarse.shape[1], step):
        band = slice(2 * row, min(2 * (row + step), height))
        one, two = function(coarse[:, row : row + step], fine[:, band])
        if second is None:
            first = None if one is None else one.new_empty(batch, height, columns, one.shape[-1])
            second = two.new_empty(batch, two.shape[-1], height, columns).permute(0, 2, 3, 1)
        second[:, band] = two
        if first is not None:
            first[:, band] = one
    return first, second
