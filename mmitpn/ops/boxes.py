"""Overlaps of axis-aligned boxes: the operator ``bbox_overlaps`` of ``mmcv._ext``."""

from __future__ import annotations

import torch
from torch import Tensor

from .sampling import operator

PAIRS = 1 << 20  # pairs of boxes computed at once: a temporary of 4 MB in float32


@operator
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Compute the overlaps of two sets of boxes, in the dtype of the boxes.

    Source: ``bbox_overlaps_cpu_kernel`` of mmcv, and for tensors on a GPU ``bbox_overlaps_cuda_kernel``, where the area
    that divides is at least ``offset``.

    Args:
        bboxes1: ``(M, 4)`` corners x1, y1, x2, y2.
        bboxes2: ``(N, 4)``; with ``aligned``, ``(M, 4)``.
        ious: Output ``(M, N)``; with ``aligned``, ``(M,)``.
        mode: 0 for intersection over union, 1 for intersection over the area of the first box.
        aligned: Whether box ``i`` is compared with box ``i`` only.
        offset: 1 where the last pixel belongs to the box, else 0.

    Raises:
        ValueError: If ``mode`` is not 0 or 1, or the numbers of boxes differ with ``aligned``.
    """
    if mode not in (0, 1):
        raise ValueError(f'bbox_overlaps got mode={mode}; allowed: 0 (iou), 1 (iof)')
    if aligned and len(bboxes1) != len(bboxes2):
        raise ValueError(
            f'bbox_overlaps with aligned=True got {len(bboxes1)} and {len(bboxes2)} boxes; give equally many'
        )
    if len(bboxes1) == 0 or len(bboxes2) == 0:
        return
    rows = PAIRS if aligned else max(PAIRS // len(bboxes2), 1)
    for index in range(0, len(bboxes1), rows):
        part = slice(index, index + rows)
        first, second = (bboxes1[part], bboxes2[part]) if aligned else (bboxes1[part, None], bboxes2)
        ious[part].copy_(_overlaps(first, second, mode=mode, offset=offset))


def _overlaps(first: Tensor, second: Tensor, *, mode: int, offset: int) -> Tensor:
    """Overlaps of boxes ``(..., 4)`` that broadcast against each other."""
    x1, y1, x2, y2 = first.unbind(-1)
    left, top, right, bottom = second.unbind(-1)
    limit = None if first.is_cuda or first.dtype == torch.float16 else 2**31  # INT_MAX, of the CPU kernel
    width = torch.minimum(x2, right).sub_(torch.maximum(x1, left)).add_(offset).clamp_(0, limit)
    height = torch.minimum(y2, bottom).sub_(torch.maximum(y1, top)).add_(offset).clamp_(0, limit)
    overlap = width.mul_(height)
    area = (x2 - x1 + offset) * (y2 - y1 + offset)
    if mode == 0:
        area = area + (right - left + offset) * (bottom - top + offset) - overlap
    if first.is_cuda:
        area = area.clamp(min=offset)
    return overlap.div_(area)
