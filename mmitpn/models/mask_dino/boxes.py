"""Boxes around masks, and the logits that boxes are refined in."""

from __future__ import annotations

import torch
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor

BOX_STARTS = ('mask2box', 'bitmask', 'no')
EPS = 1e-5


def box_logits(boxes: Tensor) -> Tensor:
    """Inverse of the sigmoid, with values kept ``1e-5`` from 0 and 1, as in MaskDINO (DINO: 1e-3)."""
    return inverse_sigmoid(boxes, eps=EPS)


def boxes_of_masks(masks: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The boxes around masks.

    Args:
        masks: ``(..., H, W)``, True inside.
        kind: ``'bitmask'`` counts whole cells: a mask of one cell has a box of one cell. ``'mask2box'`` measures from
            the first to the last cell: that box has no size (both are published, and weights are trained with either).

    Returns:
        Boxes ``(..., 4)`` (cx, cy, w, h) in fractions of the map, 0, 0, 0, 0 of an empty mask; and whether each mask
        has any cell, ``(...)``.
    """
    height, width = masks.shape[-2:]
    sides = []
    for seen, size in ((masks.any(-2), width), (masks.any(-1), height)):
        places = torch.arange(size, device=masks.device)
        first = torch.where(seen, places, size).amin(-1)
        last = torch.where(seen, places, -1).amax(-1) + (kind == 'bitmask')
        sides.append((first / size, last / size))
    (left, right), (top, bottom) = sides
    boxes = torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top), -1)
    filled = masks.flatten(-2).any(-1)
    return torch.where(filled.unsqueeze(-1), boxes, torch.zeros_like(boxes)), filled


def first_boxes(logits: Tensor, proposals: Tensor, kind: str, *, released: bool) -> Tensor:
    """Where the decoder starts from.

    Args:
        logits: Mask logits of the chosen queries, ``(B, Q, H, W)``; not looked at for ``'no'``.
        proposals: Box logits of their proposals, ``(B, Q, 4)``.
        kind: ``'mask2box'`` or ``'bitmask'`` (boxes around the masks), or ``'no'`` (the proposals' own boxes).
        released: As the published code: an empty mask starts from a box without size in a corner (of ``bitmask`` the
            upper left one, of ``mask2box`` the lower right one). Else from its proposal's box.

    Returns:
        Box logits ``(B, Q, 4)``, without gradients.
    """
    proposals = proposals.detach()
    if kind == 'no':
        return proposals
    boxes, filled = boxes_of_masks(logits.detach() > 0, kind)
    found = box_logits(boxes)
    if not released:
        return torch.where(filled.unsqueeze(-1), found, proposals)
    corner = torch.tensor([0.0] * 4 if kind == 'bitmask' else [1.0, 1.0, 0.0, 0.0], device=boxes.device)
    return torch.where(filled.unsqueeze(-1), found, box_logits(corner))
