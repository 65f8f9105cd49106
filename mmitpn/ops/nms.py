"""Non-maximum suppression: ``nms``, ``softnms``, ``nms_match`` and ``line_nms_forward`` of ``mmcv._ext``.

:func:`greedy_suppression` decides blocks of boxes at once. Soft NMS updates the scores after each selected box, so it
iterates over the selected boxes; the work per box is vectorized.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .sampling import accumulation_dtype, operator, rounded

PAIRS = 1 << 18  # pairs of boxes compared at once: a temporary of 1 MB in float32 stays in the cache
BLOCK = 256  # boxes decided at once
LINE_POINTS = 72  # x coordinates of a lane
LINE_SIZE = 5 + LINE_POINTS


def greedy_suppression(
    count: int, suppresses: Callable[[Tensor, Tensor], Tensor], *, device: torch.device, parents: bool = False
) -> Tensor:
    """Find which of ``count`` boxes in descending order of score survive, and what suppressed the others.

    A box is kept unless a kept box before it suppresses it. Blocks of the first undecided boxes are decided by an
    iteration whose fixed point is the greedy choice (after ``t`` steps the first ``t`` boxes of the block are right),
    then the kept ones of the block are compared with all that follow. The memory is linear in ``count``.

    Args:
        count: Number of boxes.
        suppresses: Called with the positions ``(R,)`` and ``(C,)`` of two sets of boxes, returns a boolean tensor
            ``(R, C)``: whether the first would suppress the second.
        device: Device of the boxes.
        parents: Whether to find the first box that suppresses each; otherwise suppressed boxes get -1.

    Returns:
        ``(count,)`` integers: the position itself for a kept box, else the position of the kept box that suppressed it.
    """
    parent = torch.full((count,), -1, dtype=torch.long, device=device)
    undecided = torch.arange(count, device=device)
    while undecided.numel():
        head, rest = undecided[:BLOCK], undecided[BLOCK:]
        overlap = suppresses(head, head).triu_(1)
        keep = torch.ones_like(head, dtype=torch.bool)
        while not torch.equal(keep, new := ~(overlap & keep[:, None]).any(0)):
            keep = new
        kept = head[keep]
        parent[kept] = kept
        if parents:
            _note_parents(parent, kept, head, overlap[keep])
        undecided = [rest[:0]]
        for part in rest.split(max(PAIRS // max(kept.numel(), 1), 1)):
            overlap = suppresses(kept, part)
            if parents:
                _note_parents(parent, kept, part, overlap)
            undecided.append(part[~overlap.any(0)])
        undecided = torch.cat(undecided)
    return parent


def _note_parents(parent: Tensor, kept: Tensor, boxes: Tensor, overlap: Tensor) -> None:
    """Write the first of ``kept`` ``(K,)`` that suppresses each of ``boxes`` ``(C,)`` by ``overlap`` ``(K, C)``."""
    lost = overlap.any(0)
    parent[boxes[lost]] = kept[overlap[:, lost].to(torch.uint8).argmax(0)]


def box_overlap_test(
    boxes: Tensor, threshold: float, *, offset: int, inclusive: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """The test of :func:`greedy_suppression` for axis-aligned boxes: IoU above a threshold.

    Args:
        boxes: ``(N, 4)`` corners x1, y1, x2, y2 in the order of the scores.
        threshold: IoU above which a box suppresses another.
        offset: 1 where the last pixel belongs to the box, else 0.
        inclusive: Whether an IoU equal to the threshold suppresses, too.
    """
    x1, y1, x2, y2 = boxes.t().contiguous()
    area = (x2 - x1 + offset) * (y2 - y1 + offset)

    def suppresses(rows: Tensor, columns: Tensor) -> Tensor:
        overlap = torch.minimum(x2[rows, None], x2[columns])
        overlap.sub_(torch.maximum(x1[rows, None], x1[columns]))
        height = torch.minimum(y2[rows, None], y2[columns])
        height.sub_(torch.maximum(y1[rows, None], y1[columns]))
        if offset:
            overlap.add_(offset)
            height.add_(offset)
        overlap.clamp_(min=0).mul_(height.clamp_(min=0))
        overlap.div_(torch.add(area[rows, None], area[columns]).sub_(overlap))
        return overlap >= threshold if inclusive else overlap > threshold

    return suppresses


@operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Keep the boxes that no box of a higher score overlaps by more than a threshold.

    Source: ``nms_cpu`` and ``nms_cuda`` of mmcv. With ``offset`` 0 this calls torchvision's operator, which computes
    the same; the order of equal scores is that of ``Tensor.sort``, as in mmcv. On a GPU, ``offset`` 1 is added to the
    far corners before, which is exact for coordinates that are integers.

    Args:
        boxes: ``(N, 4)`` corners x1, y1, x2, y2.
        scores: ``(N,)``.
        iou_threshold: IoU above which the box of the lower score is dropped.
        offset: 1 where the last pixel belongs to the box, else 0.

    Returns:
        ``(K,)`` indices of the kept boxes in descending order of score.
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    order = scores.sort(0, descending=True)[1]
    boxes = boxes.to(accumulation_dtype(boxes.dtype)).index_select(0, order)
    threshold = rounded(iou_threshold, boxes.dtype)
    if offset and not boxes.is_cuda:
        test = box_overlap_test(boxes, threshold, offset=offset, inclusive=False)
        kept = greedy_suppression(len(boxes), test, device=boxes.device) >= 0
        return order.masked_select(kept)

    from torchvision.ops import nms as torchvision_nms

    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), 1)
    rank = torch.arange(len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[torchvision_nms(boxes, rank, threshold)]


@operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap a box of a higher score, and drop those below a minimum.

    Source: ``softnms_cpu`` of mmcv, with its order of equal scores: the selected box is swapped with the first
    remaining one, and a dropped box is replaced by the last one.

    Args:
        boxes: ``(N, 4)`` corners x1, y1, x2, y2, on the CPU.
        scores: ``(N,)``.
        dets: ``(N, 5)`` output on the CPU: corners and new score of the selected boxes, the best first; rows after the
            last selected box are unchanged.
        iou_threshold: IoU from which methods 0 and 1 lower a score.
        sigma: Width of the Gaussian of method 2.
        min_score: Boxes whose score falls below it are dropped.
        method: 0 (naive: weight 0), 1 (linear: weight 1 - IoU) or 2 (Gaussian: ``exp(-IoU^2 / sigma)``).
        offset: 1 where the last pixel belongs to the box, else 0.

    Returns:
        ``(K,)`` indices of the selected boxes, the best first.

    Raises:
        ValueError: If ``method`` is not 0, 1 or 2.
    """
    if method not in (0, 1, 2):
        raise ValueError(f'softnms got method={method}; allowed: 0 (naive), 1 (linear), 2 (gaussian)')
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long)
    number = len(boxes)
    # Rows: x1, y1, x2, y2, score, area. A column is a box.
    table = torch.cat((boxes.to(accumulation_dtype(boxes.dtype)), scores[:, None].to(boxes.dtype)), 1).cpu().numpy().T
    table = np.vstack((table, (table[2:3] - table[:1] + offset) * (table[3:4] - table[1:2] + offset)))
    table = np.ascontiguousarray(table)
    index = np.arange(number)
    kind = table.dtype.type
    iou_threshold, sigma, min_score = (kind(np.float32(value)) for value in (iou_threshold, sigma, min_score))
    first = 0
    with np.errstate(divide='ignore', invalid='ignore', over='ignore', under='ignore'):
        while first < number:
            best = first + _first_largest(table[4, first:number])
            if best != first:
                table[:, [first, best]] = table[:, [best, first]]
                index[[first, best]] = index[[best, first]]
            x1, y1, x2, y2, _, area = table[:, first]
            first += 1
            rest = table[:, first:number]
            width = np.minimum(x2, rest[2]) - np.maximum(x1, rest[0]) + offset
            height = np.minimum(y2, rest[3]) - np.maximum(y1, rest[1]) + offset
            overlap = np.maximum(width, 0) * np.maximum(height, 0)
            iou = overlap / (area + rest[5] - overlap)
            if method == 2:
                rest[4] *= np.exp(-(iou * iou) / sigma)
            else:
                rest[4] *= np.where(iou >= iou_threshold, 1 - iou if method == 1 else kind(0), kind(1))
            dropped = rest[4] < min_score
            if dropped.any():
                number = first + _drop(rest, index[first:number], dropped)
    dets[:number].copy_(torch.from_numpy(table[:5, :number].T))
    return torch.from_numpy(index[:number])


def _first_largest(scores: np.ndarray) -> int:
    """Index of the first largest score as a loop of ``<`` finds it: NaN is never larger, and nothing than NaN."""
    best = int(scores.argmax())
    if np.isnan(scores[best]):
        return 0 if np.isnan(scores[0]) else int(np.nanargmax(scores))
    return best


def _drop(table: np.ndarray, index: np.ndarray, dropped: np.ndarray) -> int:
    """Move the last columns to the positions of the dropped ones, in order; return the number of columns left."""
    left = len(dropped) - int(dropped.sum())
    positions = np.flatnonzero(dropped[:left])
    movers = left + np.flatnonzero(~dropped[left:])[::-1]
    table[:, positions] = table[:, movers]
    index[positions] = index[movers]
    return left


@operator
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group the boxes by the kept box that suppresses them.

    Source: ``nms_match_cpu`` of mmcv: an IoU equal to the threshold suppresses, too.

    Args:
        dets: ``(N, 5)`` corners x1, y1, x2, y2 and the score.
        iou_threshold: IoU from which a box belongs to the group of a kept box.

    Returns:
        One list for each kept box, in descending order of score: its index, then those of the boxes it suppressed.
    """
    if len(dets) == 0:
        return []
    dets = dets.to(accumulation_dtype(dets.dtype))
    order = dets[:, 4].sort(0, descending=True)[1]
    test = box_overlap_test(dets[order, :4], rounded(iou_threshold, dets.dtype), offset=0, inclusive=True)
    parent = greedy_suppression(len(dets), test, device=dets.device, parents=True)
    grouped = parent.sort(stable=True)
    sizes = grouped[0].unique_consecutive(return_counts=True)[1]
    return [group.tolist() for group in order[grouped[1]].cpu().split(sizes.tolist())]


@operator
def line_nms_forward(boxes: Tensor, scores: Tensor, thresh: float, top_k: int) -> list[Tensor]:
    """Keep the lanes that no lane of a higher score is close to.

    Source: ``line_nms_cuda_kernel.cuh`` of mmcv 2.3.6, which reads the suppressing lane of rank ``i`` from row ``i`` of
    ``boxes`` and the suppressed ones in the order of the scores. Sort the lanes first to give each rank its own.

    Args:
        boxes: ``(N, 77)`` lanes: two unused values, the start as a fraction of 71 strips, an unused value, the length
            in strips, and 72 x coordinates in pixels.
        scores: ``(N,)``.
        thresh: Mean distance in pixels below which a lane is dropped.
        top_k: Maximum number of lanes to keep.

    Returns:
        ``keep``, ``(N,)`` indices of the kept lanes in descending order of score, then zeros; the number of kept lanes,
        a scalar; ``parent``, ``(N,)``, for each lane the rank from 1 of the last kept lane that is close to it, 0 where
        there is none.

    Raises:
        ValueError: If ``boxes`` is not ``(N, 77)`` or ``top_k`` is negative.
    """
    if boxes.dim() != 2 or boxes.size(1) != LINE_SIZE:
        raise ValueError(f'line_nms_forward got boxes of shape {tuple(boxes.shape)}; allowed: (N, {LINE_SIZE})')
    if top_k < 0:
        raise ValueError(f'line_nms_forward got top_k={top_k}; allowed: 0 or more')
    number, device = len(boxes), boxes.device
    boxes = boxes.to(accumulation_dtype(boxes.dtype))
    order = scores.sort(0, descending=True)[1]
    threshold = rounded(thresh, boxes.dtype)
    start = (boxes[:, 2] * (LINE_POINTS - 1) + 0.5).long()  # .long() rounds towards zero, as the kernel's cast
    end = start + boxes[:, 4].long() - 1
    point = torch.arange(LINE_POINTS, device=device)

    def suppresses(rows: Tensor, columns: Tensor) -> Tensor:
        parts = [_close(rows, order[part]) for part in columns.split(max(PAIRS // (8 * max(rows.numel(), 1)), 1))]
        return torch.cat(parts, 1) if parts else torch.zeros(len(rows), 0, dtype=torch.bool, device=device)

    def _close(rows: Tensor, columns: Tensor) -> Tensor:
        first = torch.maximum(start[rows, None], start[columns])
        last = torch.minimum(end[rows, None], end[columns]).clamp_(max=LINE_POINTS - 1)
        inside = (point >= first[..., None]) & (point <= last[..., None])
        distance = (boxes[rows, None, 5:] - boxes[columns, 5:]).abs_().masked_fill_(~inside, 0).sum(-1)
        return (last >= first) & (first >= 0) & (distance < threshold * (last - first + 1).to(distance.dtype))

    kept = (greedy_suppression(number, suppresses, device=device) >= 0).nonzero()[:, 0]
    if top_k:
        kept = kept[:top_k]
    keep = torch.zeros(number, dtype=torch.long, device=device)
    keep[: len(kept)] = order[kept]
    parent = torch.zeros(number, dtype=torch.long, device=device)
    everything = torch.arange(number, device=device)
    rank = torch.arange(1, len(kept) + 1, device=device)
    for some, ranks in zip(kept.split(BLOCK), rank.split(BLOCK), strict=True) if number else ():
        # A later kept lane takes over the lanes of an earlier one.
        close = suppresses(some, everything) & (some[:, None] < everything)
        close[torch.arange(len(some), device=device), some] = True
        last = (close * ranks[:, None]).amax(0)
        parent[order] = torch.maximum(parent[order], last)
    return [keep, torch.tensor(min(top_k, len(kept)), dtype=torch.long, device=device), parent]
