"""The masks of point-wise spatial attention (PSANet, ECCV 2018), as in ``mmcv._ext``.

``mask`` holds, for each cell, a weight for each cell around it; the operator writes it as a square matrix of all cells:
by the cell that gives (``collect``) or by the one that receives (``distribute``).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .sampling import operator


@operator
def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the masks of all cells into matrices; entries that no mask reaches are unchanged.

    Defined by ``psamask_collect_forward`` and ``psamask_distribute_forward`` (csrc/pytorch/cpu/psamask.cpp).

    Args:
        input: ``(B, h_mask * w_mask, h_feature, w_feature)``.
        output: ``(B, h_feature * w_feature, h_feature, w_feature)``, filled.
        psa_type: 0 for collect, 1 for distribute.
        num_: B.
        h_feature: Height of the map.
        w_feature: Width of the map.
        h_mask: Height of a mask.
        w_mask: Width of a mask.
        half_h_mask: Row of a mask that lies on its cell.
        half_w_mask: Column that does.
    """
    masks = input.unflatten(1, (h_mask, w_mask))
    column = torch.arange(w_feature, device=input.device)
    # Column of the mask (row: cell that the mask reaches, column: cell that it belongs to).
    index = column[:, None] - column + half_w_mask
    inside = ((index >= 0) & (index < w_mask))[None, :, :, None]
    index = index.clamp(0, max(w_mask - 1, 0))
    for row, cells, reached in _diagonals(output, psa_type, masks.shape, half_h_mask):
        # (cell reached, cell, B, rows) to (B, cell reached, cell, rows)
        values = masks[:, row, :, cells][:, index, :, column].permute(2, 0, 1, 3)
        reached.copy_(torch.where(inside, values, reached))


@operator
def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Fill ``grad_input`` with the gradient of :func:`psamask_forward` where a mask reaches a cell.

    Defined by ``psamask_collect_backward`` and ``psamask_distribute_backward`` (csrc/pytorch/cpu/psamask.cpp).
    """
    masks = grad_input.unflatten(1, (h_mask, w_mask))
    column = torch.arange(w_feature, device=grad_input.device)
    # The cell reached (row: column of the mask, column: cell that it belongs to).
    index = torch.arange(w_mask, device=grad_input.device)[:, None] + column - half_w_mask
    inside = ((index >= 0) & (index < w_feature))[None, :, None]
    index = index.clamp(0, w_feature - 1)
    for row, cells, reached in _diagonals(grad_output, psa_type, masks.shape, half_h_mask):
        target = masks[:, row, :, cells]
        values = reached[:, index, column].permute(0, 1, 3, 2)
        target.copy_(torch.where(inside, values, target))


def _diagonals(
    matrices: Tensor, psa_type: int, shape: torch.Size, half_h_mask: int
) -> Iterator[tuple[int, slice, Tensor]]:
    """The part of the matrices that each row of the masks fills.

    Yields:
        Row of the masks, rows of the cells that it reaches from, and a view ``(B, W reached, W, rows)``.
    """
    _, h_mask, _, height, width = shape
    matrices = matrices.unflatten(1, (height, width))
    if psa_type != 0:
        matrices = matrices.permute(0, 3, 4, 1, 2)
    for row in range(h_mask):
        shift = row - half_h_mask
        cells = slice(max(0, -shift), min(height, height - shift))
        if cells.start < cells.stop:
            yield row, cells, matrices.diagonal(-shift, 1, 3)
