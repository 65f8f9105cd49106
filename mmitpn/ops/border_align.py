"""BorderAlign (arXiv 2007.11056), as in ``mmcv._ext``: the maximum of samples along each border of each box."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .sampling import (
    LARGEST_TEMPORARY,
    accumulation_dtype,
    as_rows,
    bilinear_corners,
    operator,
    scatter_corners,
    weighted_sums,
)


def _borders(boxes: Tensor, pool_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor | int, Tensor | int]]:
    """First point (y, x) and step (y, x) of the top, left, bottom and right border of boxes ``(B, N, 4)``."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    across, down = (x2 - x1) / pool_size, (y2 - y1) / pool_size
    yield y1, x1, 0, across
    yield y1, x1, down, 0
    yield y2, x2, 0, -across
    yield y2, x2, -down, 0


@operator
def border_align_forward(input: Tensor, boxes: Tensor, output: Tensor, argmax_idx: Tensor, pool_size: int) -> None:
    """BorderAlign (arXiv 2007.11056): the maximum of ``pool_size + 1`` bilinear samples on each border of each box.

    Defined by ``border_align_forward_cuda_kernel``.

    Args:
        input: ``(B, 4 * C, H, W)``: maps of the top, left, bottom and right border.
        boxes: ``(B, N, 4)``: x1, y1, x2, y2 in cells.
        output: ``(B, C, N, 4)``, filled.
        argmax_idx: As ``output``, 32-bit integers, filled with the index of the largest sample along the border.
        pool_size: Steps along a border.
    """
    if not output.numel():
        return
    (batch, channels, height, width), number = input.shape, boxes.shape[1]
    image = torch.arange(batch, device=input.device)[:, None] * (height * width)
    for border, (y, x, y_step, x_step) in enumerate(_borders(boxes.to(input.dtype), pool_size)):
        rows = as_rows(input[:, border * (channels // 4) : (border + 1) * (channels // 4)])
        for step in range(pool_size + 1):
            position, weight = bilinear_corners(y, x, height, width)
            index = position + image[..., None]
            value = weighted_sums(rows, index.flatten(0, 1), weight.flatten(0, 1))
            if step == 0:
                best, winner = value, torch.zeros_like(value, dtype=torch.int32)
            else:
                larger = value > best
                best = torch.where(larger, value, best)
                winner.masked_fill_(larger, step)
            y, x = y + y_step, x + x_step
        for target, values in ((output, best), (argmax_idx, winner)):
            target[..., border] = values.view(batch, number, -1).transpose(1, 2).to(target.dtype)


@operator
def border_align_backward(
    grad_output: Tensor, boxes: Tensor, argmax_idx: Tensor, grad_input: Tensor, pool_size: int
) -> None:
    """Add the gradient of :func:`border_align_forward` to ``grad_input`` ``(B, 4 * C, H, W)``.

    Defined by ``border_align_backward_cuda_kernel``.
    """
    if not grad_output.numel():
        return
    batch, channels, height, width = grad_input.shape
    at_once = max(1, (LARGEST_TEMPORARY >> 4) // (batch * channels // 4))
    dtype = accumulation_dtype(grad_input.dtype)
    total = torch.zeros(grad_input.numel(), dtype=dtype, device=grad_input.device)
    maps = torch.arange(batch * channels, device=grad_input.device).view(batch, 4, channels // 4) * (height * width)
    for border, (y, x, y_step, x_step) in enumerate(_borders(boxes.to(grad_output.dtype), pool_size)):
        for start in range(0, boxes.shape[1], at_once):
            part = slice(start, start + at_once)
            step = argmax_idx[:, :, part, border].to(grad_output.dtype)
            points = (
                first[:, None, part] + (side[:, None, part] if isinstance(side, Tensor) else side) * step
                for first, side in ((y, y_step), (x, x_step))
            )
            value = grad_output[:, :, part, border].to(dtype)
            scatter_corners(total, maps[:, border, :, None], *points, value, height, width)
    grad_input.add_(total.view(grad_input.shape).to(grad_input.dtype))
