"""Initial queries of MaskDINO's decoder: query selection, boxes from masks, and denoising queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.layers import inverse_sigmoid
from torch import Tensor

from mmitpn.models.dino import FeatureLevels, count_padded_queries
from mmitpn.models.dino.matching import BoxTargets

BOX_STARTS = ('mask2box', 'bitmask', 'no')
DENOISING = ('seg', 'standard', 'no')
EPS = 1e-5


def box_logits(boxes: Tensor) -> Tensor:
    """Inverse sigmoid, with values kept ``1e-5`` from 0 and 1, as in MaskDINO (DINO: 1e-3)."""
    return inverse_sigmoid(boxes, eps=EPS)


# Query selection


class SelectedQueries(NamedTuple):
    """Queries that were selected from the encoder's positions.

    Attributes:
        content: Memory of the selected positions, ``(B, Q, C)``.
        boxes: Logits of their boxes, ``(B, Q, 4)``.
        index: Their indices among all positions, ``(B, Q)``, highest score first.
        scores: The highest class logit of every position, ``(B, N)``.
    """

    content: Tensor
    boxes: Tensor
    index: Tensor
    scores: Tensor

    def first(self, number: int) -> SelectedQueries:
        """The ``number`` queries with the highest scores."""
        return SelectedQueries(self.content[:, :number], self.boxes[:, :number], self.index[:, :number], self.scores)


def select_queries(
    memory: Tensor,
    levels: FeatureLevels,
    *,
    number: int,
    transform: Callable[[Tensor], Tensor],
    classify: Callable[[Tensor], Tensor],
    refine: Callable[[Tensor], Tensor],
) -> SelectedQueries:
    """Select the positions with the highest class logits.

    If there are fewer positions than ``number``, they are padded with scores of minus infinity: the padded ones are the
    last of the selected. Their content is 0, their box logits are infinite.

    Args:
        memory: The encoder's levels in the decoder's order, flattened, ``(B, N, C)``.
        levels: The levels, with their padding.
        number: Number of queries to select.
        transform: Projection and norm of the memory.
        classify: Class logits of transformed memory.
        refine: Offsets of the box logits of transformed memory.

    Returns:
        The ``number`` selected queries.
    """
    missing = count_padded_queries(number, memory.shape[1])
    boxes, valid = levels.proposals()
    memory = transform(memory.masked_fill(~valid, 0.0))
    scores = classify(memory).amax(-1)
    index = F.pad(scores, (0, missing), value=float('-inf')).topk(number, dim=1).indices
    memory = F.pad(memory, (0, 0, 0, missing))
    content = memory.gather(1, index.unsqueeze(-1).expand(-1, -1, memory.shape[-1]))
    boxes = F.pad(boxes, (0, 0, 0, missing), value=float('inf')).expand(memory.shape[0], -1, -1)
    selected = boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    return SelectedQueries(content, selected + refine(content), index, scores)


# Boxes from masks


def masks_to_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes from the first to the last cell of masks, as torchvision's function of this name.

    Unlike torchvision's (0.20), it takes empty masks and any leading dimensions, and does not loop over masks with one
    synchronization with the GPU each.

    Args:
        masks: ``(..., H, W)`` bool.

    Returns:
        Boxes ``(..., 4)`` (x1, y1, x2, y2): indices of cells, the last one included, int64; 0 for an empty mask. And
        whether each mask has any cell, ``(...)``.
    """
    first, last = [], []
    for occupied in (masks.any(-2), masks.any(-1)):
        size = occupied.shape[-1]
        cells = torch.arange(size, device=masks.device)
        first.append(torch.where(occupied, cells, size).amin(-1))
        last.append(torch.where(occupied, cells, -1).amax(-1))
    boxes = torch.stack((*first, *last), -1)
    filled = masks.flatten(-2).any(-1)
    return boxes * filled.unsqueeze(-1), filled


def normalized_boxes_of_masks(masks: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Boxes around masks in fractions of the map.

    Args:
        masks: ``(..., H, W)`` bool.
        kind: ``'bitmask'`` includes the last cell: a mask of one cell has a box of one cell. ``'mask2box'`` measures
            from the first to the last cell: the same box has size 0. (Both are in the released code, and weights exist
            for either.)

    Returns:
        Boxes ``(..., 4)`` (cx, cy, w, h), 0 for an empty mask; and whether each mask has any cell, ``(...)``.
    """
    boxes, filled = masks_to_boxes(masks)
    height, width = masks.shape[-2:]
    x1, y1, x2, y2 = boxes.unbind(-1)
    cell = int(kind == 'bitmask')
    x1, x2 = x1 / width, (x2 + cell) / width
    y1, y2 = y1 / height, (y2 + cell) / height
    normalized = torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), -1)
    return torch.where(filled.unsqueeze(-1), normalized, torch.zeros_like(normalized)), filled


def init_reference_boxes(masks: Tensor, proposals: Tensor, kind: str, *, released: bool) -> Tensor:
    """Boxes that the decoder starts from.

    Args:
        masks: Mask logits of the selected queries, ``(B, Q, H, W)``; ignored for ``'no'``.
        proposals: Box logits of their proposals, ``(B, Q, 4)``.
        kind: ``'mask2box'`` or ``'bitmask'`` (see :func:`normalized_boxes_of_masks`), or ``'no'`` (the proposals).
        released: As the released code: an empty mask starts from a box of size 0 in a corner (``bitmask``: upper left,
            ``mask2box``: lower right). False: from its proposal.

    Returns:
        Box logits ``(B, Q, 4)``, without gradients.
    """
    proposals = proposals.detach()
    if kind == 'no':
        return proposals
    boxes, filled = normalized_boxes_of_masks(masks.detach() > 0, kind)
    filled = filled.unsqueeze(-1)
    if not released:
        return torch.where(filled, box_logits(boxes), proposals)
    if kind == 'mask2box':
        boxes = torch.cat((boxes[..., :2].masked_fill(~filled, 1.0), boxes[..., 2:]), -1)
    return box_logits(boxes)


# Denoising


class DenoisingQueries(NamedTuple):
    """Noised copies of a batch's objects: ``groups`` groups of N queries per image, ``D = groups * N``.

    Attributes:
        groups: Number of copies of each object.
        labels: Labels after the noise, ``(B, D)``.
        boxes: Box logits after the noise, ``(B, D, 4)``; 0 on padding.
        valid: Which are copies of objects and no padding, ``(B, D)``.
    """

    groups: int
    labels: Tensor
    boxes: Tensor
    valid: Tensor

    @property
    def number(self) -> int:
        """D."""
        return self.labels.shape[1]

    def attention_mask(self, num_queries: int) -> Tensor:
        """Mask of the self-attention, ``(D + num_queries,) * 2``, True where a query must not attend.

        Denoising queries come first. A group attends to itself and to the ``num_queries`` matching queries; matching
        queries attend to no denoising query (DN-DETR, arXiv 2203.01305).
        """
        index = torch.arange(self.number + num_queries, device=self.labels.device)
        group = torch.where(index < self.number, index // (self.number // self.groups), -1)
        return (group[None] != group[:, None]) & (group[None] >= 0)


def make_denoising_queries(
    targets: BoxTargets, *, num_queries: int, num_classes: int, noise_scale: float
) -> DenoisingQueries | None:
    """Add noise to the objects of a batch, as the released code: without contrastive negatives.

    Args:
        targets: The objects.
        num_queries: Upper bound on denoising queries per image; determines the number of groups.
        num_classes: Number of classes, from which changed labels are drawn.
        noise_scale: A label changes with probability ``noise_scale / 2``; centers move by at most
            ``noise_scale * (w, h) / 2``, sizes change by at most ``noise_scale * (w, h)``.

    Returns:
        The denoising queries; None without objects, or with more than ``num_queries`` in one image.
    """
    groups = 0 if targets.empty else num_queries // targets.labels.shape[1]
    if not groups:
        return None
    targets = targets.repeat(groups)
    changed = torch.rand(targets.labels.shape, device=targets.labels.device) < noise_scale * 0.5
    labels = torch.where(changed, torch.randint_like(targets.labels, num_classes), targets.labels)
    sizes = targets.boxes[..., 2:]
    reach = torch.cat((sizes / 2, sizes), -1) * noise_scale
    boxes = targets.boxes + (torch.rand_like(targets.boxes) * 2 - 1) * reach
    logits = box_logits(boxes.clamp(0, 1)) * targets.valid.unsqueeze(-1)
    return DenoisingQueries(groups, labels, logits, targets.valid)
