"""Rotated boxes: ``box_iou_rotated``, ``nms_rotated`` and ``roi_align_rotated_*`` of ``mmcv._ext``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .nms import greedy_suppression
from .sampling import (
    LARGEST_TEMPORARY,
    accumulation_dtype,
    add_rows,
    as_rows,
    bilinear_corners,
    operator,
    rounded,
    transposed_sums,
    weighted_sums,
)

PAIRS = 1 << 14  # pairs of boxes whose polygons are computed at once
CENTERS = 1 << 20  # pairs of boxes whose centers are compared at once
CORNERS = 4
POINTS = 24  # candidates for a corner of the common polygon of two rectangles: 16 crossings of edges, 8 corners
SAMPLES = 1 << 18  # sampling points of roi_align_rotated computed at once


@operator
def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Compute the overlaps of two sets of rotated boxes.

    Source: ``single_box_iou_rotated`` in ``box_iou_rotated_utils.hpp`` of mmcv, as compiled for the CPU, in the dtype
    of the boxes (half precision in float32).

    Args:
        boxes1: ``(M, 5)`` boxes: center x, center y, width, height, angle in radians, clockwise in the image.
        boxes2: ``(N, 5)``; with ``aligned``, ``(M, 5)``.
        ious: Output of ``M * N`` elements; with ``aligned``, ``(M,)``.
        mode_flag: 0 for intersection over union, 1 for intersection over the area of the first box.
        aligned: Whether box ``i`` is compared with box ``i`` only.

    Raises:
        ValueError: If ``mode_flag`` is not 0 or 1, or the numbers of boxes differ with ``aligned``.
    """
    if mode_flag not in (0, 1):
        raise ValueError(f'box_iou_rotated got mode_flag={mode_flag}; allowed: 0 (iou), 1 (iof)')
    if aligned and len(boxes1) != len(boxes2):
        raise ValueError(f'box_iou_rotated with aligned=True got {len(boxes1)} and {len(boxes2)} boxes, not pairs')
    if len(boxes1) == 0 or len(boxes2) == 0:
        return
    first, second = (boxes.to(accumulation_dtype(boxes.dtype)) for boxes in (boxes1, boxes2))
    if aligned:
        result = torch.cat(
            [
                _pair_overlap(a, b, of_first=mode_flag == 1)
                for a, b in zip(first.split(PAIRS), second.split(PAIRS), strict=True)
            ]
        )
        ious.copy_(result.view_as(ious))
        return
    out = ious.view(len(first), len(second))
    rows = max(CENTERS // len(second), 1)
    for some, part in zip(first.split(rows), out.split(rows), strict=True):
        part.copy_(_overlap_matrix(some, second, of_first=mode_flag == 1))


@operator
def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: int,
) -> Tensor:
    """Keep the rotated boxes that no box of a higher score overlaps by more than a threshold.

    Source: ``nms_rotated_cpu`` of mmcv, where an IoU equal to the threshold suppresses, and ``nms_rotated_cuda``, where
    it does not. Both compare boxes of all labels.

    Args:
        dets: ``(N, 5)`` boxes: center x, center y, width, height, angle in radians; a sixth column is not read.
        scores: ``(N,)``.
        order: ``(N,)`` indices that sort the scores, descending; read for tensors on a GPU.
        dets_sorted: ``(N, 5)`` or ``(N, 6)`` boxes in this order; read for tensors on a GPU.
        labels: ``(N,)`` or empty; not read.
        iou_threshold: IoU above which the box of the lower score is dropped.
        multi_label: Whether the boxes have a sixth column, the label; not read.

    Returns:
        ``(K,)`` indices of the kept boxes in descending order of score.
    """
    if dets.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=dets.device)
    if not dets.is_cuda:
        order = scores.sort(0, descending=True)[1]
        dets_sorted = dets[order]
    boxes = dets_sorted[:, :5].to(accumulation_dtype(dets.dtype))
    threshold = rounded(iou_threshold, boxes.dtype)

    def suppresses(rows: Tensor, columns: Tensor) -> Tensor:
        overlap = _overlap_matrix(boxes[rows], boxes[columns], of_first=False)
        return overlap > threshold if dets.is_cuda else overlap >= threshold

    return order[greedy_suppression(len(boxes), suppresses, device=boxes.device) >= 0]


def _overlap_matrix(first: Tensor, second: Tensor, *, of_first: bool) -> Tensor:
    """Overlaps ``(M, N)`` of boxes ``(M, 5)`` and ``(N, 5)``.

    On the CPU, boxes whose circumscribed circles do not meet are left out first: their polygons have no common corner.
    """
    number = len(second)
    out = first.new_zeros(len(first) * number)
    if first.is_cuda:
        pairs = torch.arange(len(out), device=out.device)
    else:
        distance = (first[:, None, 0] - second[:, 0]).square_()
        distance += (first[:, None, 1] - second[:, 1]).square_()
        reach = first[:, None, 2:4].norm(dim=-1) + second[:, 2:4].norm(dim=-1)  # twice the sum of the radii
        pairs = (distance <= reach.square_().mul_(0.26)).flatten().nonzero()[:, 0]  # 1/4 with a margin for rounding
    for part in pairs.split(PAIRS):
        row = part.div(number, rounding_mode='floor')
        out[part] = _pair_overlap(first[row], second[part - row * number], of_first=of_first)
    return out.view(len(first), number)


def _pair_overlap(first: Tensor, second: Tensor, *, of_first: bool) -> Tensor:
    """Overlaps ``(P,)`` of pairs of boxes ``(P, 5)``."""
    area1, area2 = first[:, 2] * first[:, 3], second[:, 2] * second[:, 3]
    common = _intersection(first, second)
    overlap = common / (area1 if of_first else area1 + area2 - common)
    return overlap.masked_fill_((area1 < 1e-14) | (area2 < 1e-14), 0)


def _cross(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    return x1 * y2 - x2 * y1


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    """Area ``(P,)`` of the common polygon of pairs of boxes ``(P, 5)``.

    The steps, their tolerances and their order are those of the kernel, whose result depends on them where edges nearly
    coincide or boxes are tiny.
    """
    shift = (first[:, :2] + second[:, :2]) / 2
    x, y, number = _candidates(_corners(first, first[:, :2] - shift), _corners(second, second[:, :2] - shift))
    area = x.new_zeros(len(first))
    if first.is_cuda:  # without synchronizing with the GPU
        return torch.where(number > 2, _hull_area(x, y, number), area)
    some = (number > 2).nonzero()[:, 0]
    if some.numel():
        number = number[some]
        most = int(number.max())
        area[some] = _hull_area(x[:most, some], y[:most, some], number)
    return area


def _corners(boxes: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates x and y ``(4, P)`` of the corners of boxes around their shifted centers ``(P, 2)``."""
    x, y = center.unbind(1)
    _, _, width, height, angle = boxes.unbind(1)
    angle = angle.double()
    cos, sin = angle.cos().to(x.dtype) * 0.5, angle.sin().to(x.dtype) * 0.5
    x0, y0 = x - sin * height - cos * width, y + cos * height - sin * width
    x1, y1 = x + sin * height - cos * width, y - cos * height - sin * width
    return torch.stack((x0, x1, 2 * x - x0, 2 * x - x1)), torch.stack((y0, y1, 2 * y - y0, 2 * y - y1))


def _candidates(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates for corners of the common polygon of rectangles given by corners x, y ``(4, P)``.

    Returns:
        x and y ``(24, P)``, the candidates first, and their number ``(P,)``.
    """
    (x1, y1), (x2, y2) = first, second
    dx1, dy1 = x1.roll(-1, 0) - x1, y1.roll(-1, 0) - y1
    dx2, dy2 = x2.roll(-1, 0) - x2, y2.roll(-1, 0) - y2
    # (4, 4, P): edge i of the first, edge j of the second.
    edge1 = dx1[:, None], dy1[:, None]
    between = x2 - x1[:, None], y2 - y1[:, None]
    det = _cross(dx2, dy2, *edge1)
    along1 = _cross(dx2, dy2, *between) / det
    along2 = _cross(*edge1, *between) / det
    crossing = (det.abs() > 1e-14) & (along1 >= 0) & (along1 <= 1) & (along2 >= 0) & (along2 <= 1)
    valid = torch.cat((crossing.flatten(0, 1), _inside(first, second), _inside(second, first)))
    x = torch.cat(((x1[:, None] + edge1[0] * along1).flatten(0, 1), x1, x2))
    y = torch.cat(((y1[:, None] + edge1[1] * along1).flatten(0, 1), y1, y2))
    position = valid.cumsum(0)
    number = position[-1]
    position = torch.where(valid, position - 1, POINTS)
    x, y = (torch.zeros_like(v[:1]).repeat(POINTS + 1, 1).scatter_(0, position, v)[:POINTS] for v in (x, y))
    return x, y, number


def _inside(points: tuple[Tensor, Tensor], box: tuple[Tensor, Tensor]) -> Tensor:
    """``(4, P)``: whether a point lies in the rectangle with corners A, B, C, D; both are x, y ``(4, P)``."""
    x, y = box
    ab = x[1] - x[0], y[1] - y[0]
    da = x[0] - x[3], y[0] - y[3]
    ap = points[0] - x[0], points[1] - y[0]
    on_ab = ap[0] * ab[0] + ap[1] * ab[1]
    on_ad = -(ap[0] * da[0] + ap[1] * da[1])
    return (
        (on_ab >= 0)
        & (on_ad >= 0)
        & (on_ab <= ab[0] * ab[0] + ab[1] * ab[1])
        & (on_ad <= da[0] * da[0] + da[1] * da[1])
    )


def _hull_area(x: Tensor, y: Tensor, number: Tensor) -> Tensor:
    """Area ``(P,)`` of the convex hulls of the first ``number`` of points x, y ``(K, P)``, by Graham's scan."""
    x, y, distance = _sort_around_lowest(x, y, number)
    size = len(x)
    row = torch.arange(size, device=x.device)[:, None]
    far = (distance > 1e-8) & (row > 0) & (row < number)
    begin = far.to(torch.uint8).argmax(0)  # the first point that differs from the lowest one
    x[1], y[1] = _take(x, begin), _take(y, begin)
    point = torch.where(far.any(0), begin + 1, number)
    height = torch.full_like(number, 2)  # of the stack, which overwrites the points already processed
    x, y = (torch.cat((v, torch.zeros_like(v[:1]))) for v in (x, y))
    for _ in range(2 * size):
        active = point < number
        if not x.is_cuda and not active.any():
            break
        px, py = _take(x, point.clamp(max=size - 1)), _take(y, point.clamp(max=size - 1))
        below, top = (height - 2).clamp_(min=0), height - 1
        bx, by = _take(x, below), _take(y, below)
        turn = _cross(px - bx, py - by, _take(x, top) - bx, _take(y, top) - by)
        pop = active & (height > 1) & (turn >= 0)
        push = active & ~pop
        slot = torch.where(push, height, size)[None]
        x.scatter_(0, slot, px[None])
        y.scatter_(0, slot, py[None])
        height = height + push.long() - pop.long()
        point = point + push.long()
    triangles = _cross(x[1 : size - 1], y[1 : size - 1], x[2:size], y[2:size]).abs_()
    used = (row[1 : size - 1] < height - 1) & far.any(0)
    return triangles.masked_fill_(~used, 0).sum(0) / 2


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Row ``index`` ``(P,)`` of each column of ``values`` ``(K, P)``."""
    return values.gather(0, index[None])[0]


def _sort_around_lowest(x: Tensor, y: Tensor, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put the lowest point first and at the origin, and sort the others by angle, points of one angle by distance.

    The comparison has a tolerance and is not a strict order for points close together, so the result depends on the
    algorithm: insertion sort, which ``std::sort`` uses for up to 16 elements.

    Args:
        x: ``(K, P)``; changed.
        y: ``(K, P)``; changed.
        number: ``(P,)`` number of points.

    Returns:
        x, y and squared distance from the lowest point, ``(K, P)``.
    """
    size = len(x)
    row = torch.arange(size, device=x.device)[:, None]
    lowest = y.masked_fill(row >= number, torch.inf).amin(0)
    ties = (y == lowest) & (row < number)
    left = x.masked_fill(~ties, torch.inf).amin(0)
    start = (ties & (x == left)).to(torch.uint8).argmax(0)[None]
    x, y = x - left, y - lowest
    for values in (x, y):
        values.scatter_(0, start, values[:1].clone())
        values[0] = 0
    distance = x * x + y * y
    for i in range(2, size):
        vx, vy, far = x[i].clone(), y[i].clone(), distance[i].clone()
        turn = _cross(vx, vy, x[1:i], y[1:i])
        # Whether the new point goes before each of the sorted ones, then whether they move up by one.
        before = torch.where(turn.abs() < 1e-6, far < distance[1:i], turn > 0)
        front = before[0].clone()
        for j in range(i - 3, -1, -1):
            before[j] &= before[j + 1]
        moves = (before | front) & (i < number)
        for values, new in ((x, vx), (y, vy), (distance, far)):
            moved = torch.where(moves, new, values[1:i])
            moved[1:] = torch.where(moves[:-1], values[1 : i - 1], moved[1:])
            values[i] = torch.where(moves[-1], values[i - 1], new)
            values[1:i] = moved
    return x, y, distance


@operator
def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Average the features at bilinear sampling points in the bins of rotated boxes.

    Source: ``ROIAlignRotatedForward`` (CPU) and ``roi_align_rotated_forward_cuda_kernel`` of mmcv. The positions are
    computed in the dtype of the boxes, as there, the averages at least in float32.

    Args:
        input: ``(B, C, H, W)`` features.
        rois: ``(N, 6)``: image index, center x, center y, width, height, angle in radians.
        output: ``(N, C, pooled_height, pooled_width)`` output.
        pooled_height: Bins along the height.
        pooled_width: Bins along the width.
        spatial_scale: Factor from the boxes to the features.
        sampling_ratio: Sampling points of a bin along each side; 0 for one per position of the features.
        aligned: Whether positions are shifted by half a position, and boxes may be smaller than one.
        clockwise: Whether the angles are clockwise in the image.

    Raises:
        ValueError: If ``rois`` is not ``(N, 6)``, or with ``aligned`` a box on the CPU has a negative size.
    """
    bins = pooled_height, pooled_width
    for boxes, sample in _sampling_parts(
        rois, input.shape, bins, spatial_scale, sampling_ratio, aligned=aligned, clockwise=clockwise
    ):
        for part in _channel_parts(input.size(1), max(input[:, 0].numel(), len(sample.starts))):
            mean = weighted_sums(
                as_rows(input[:, part]), sample.index.flatten(), sample.weight.flatten(), sample.starts
            )
            output[boxes, part].copy_(mean.view(-1, *bins, mean.size(1)).permute(0, 3, 1, 2))


@operator
def roi_align_rotated_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Add the derivative of :func:`roi_align_rotated_forward` by the features.

    The contributions are sorted by position and summed, so that a run is equal to the next one.

    Args:
        grad_output: ``(N, C, pooled_height, pooled_width)`` derivative by the output.
        rois: ``(N, 6)``: image index, center x, center y, width, height, angle in radians.
        grad_input: ``(B, C, H, W)`` output, which is added to.
        pooled_height: Bins along the height.
        pooled_width: Bins along the width.
        spatial_scale: Factor from the boxes to the features.
        sampling_ratio: Sampling points of a bin along each side; 0 for one per position of the features.
        aligned: Whether positions are shifted by half a position, and boxes may be smaller than one.
        clockwise: Whether the angles are clockwise in the image.

    Raises:
        ValueError: If ``rois`` is not ``(N, 6)``, or with ``aligned`` a box on the CPU has a negative size.
    """
    bins, positions = (pooled_height, pooled_width), grad_input[:, 0].numel()
    for boxes, sample in _sampling_parts(
        rois, grad_input.shape, bins, spatial_scale, sampling_ratio, aligned=aligned, clockwise=clockwise
    ):
        index, weight = sample.index.flatten(), sample.weight.flatten()
        point = torch.arange(0, len(index), CORNERS, device=index.device)
        group = torch.searchsorted(sample.starts, point, right=True).sub_(1).repeat_interleave(CORNERS)
        for part in _channel_parts(grad_input.size(1), max(positions, len(sample.starts))):
            grad = as_rows(grad_output[boxes, part])
            add_rows(grad_input[:, part], transposed_sums(grad, group, index, weight, positions))


def _channel_parts(channels: int, rows: int) -> Iterator[slice]:
    """Slices of the channels such that a copy of ``rows`` rows has at most ``LARGEST_TEMPORARY`` elements."""
    step = max(LARGEST_TEMPORARY // max(rows, 1), 1)
    return (slice(start, start + step) for start in range(0, channels, step))


class _Samples(NamedTuple):
    """Sampling points of some boxes, bin by bin."""

    index: Tensor  # (S, 4) positions of the features, counted over the images of the batch
    weight: Tensor  # (S, 4) bilinear weight, divided by the number of points of the bin; 0 outside the features
    starts: Tensor  # (bins,) where each bin starts in the flattened index


def _sampling_parts(
    rois: Tensor,
    shape: torch.Size,
    bins: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    *,
    aligned: bool,
    clockwise: bool,
) -> Iterator[tuple[slice, _Samples]]:
    """Compute the sampling points of rotated boxes, for about ``SAMPLES`` points at a time.

    Args:
        rois: ``(N, 6)``: image index, center x, center y, width, height, angle in radians.
        shape: ``(B, C, H, W)`` of the features.
        bins: Bins along height and width.
        spatial_scale: Factor from the boxes to the features.
        sampling_ratio: Sampling points of a bin along each side; 0 for one per position of the features.
        aligned: Whether positions are shifted by half a position, and boxes may be smaller than one.
        clockwise: Whether the angles are clockwise in the image.

    Yields:
        The slice of the boxes, and their points.
    """
    if rois.dim() != 2 or rois.size(1) != 6:
        raise ValueError(f'roi_align_rotated got rois of shape {tuple(rois.shape)}; allowed: (N, 6)')
    number, device = len(rois), rois.device
    if number == 0:
        return
    image, center_x, center_y, width, height, angle = rois.unbind(1)
    scale = rounded(spatial_scale, rois.dtype)
    shift = 0.5 if aligned else 0.0
    center_x, center_y = center_x * scale - shift, center_y * scale - shift
    width, height = width * scale, height * scale
    if not aligned:
        width, height = width.clamp(min=1), height.clamp(min=1)
    elif not rois.is_cuda and bool(((width < 0) | (height < 0)).any()):
        raise ValueError(
            'roi_align_rotated with aligned=True got a box of negative width or height; allowed: 0 or more'
        )
    angle = (-angle if clockwise else angle).to(accumulation_dtype(rois.dtype))
    cos, sin = angle.cos().to(rois.dtype), angle.sin().to(rois.dtype)

    if sampling_ratio > 0:
        rows = columns = torch.full((number,), sampling_ratio, device=device)
        size = bins[0] * bins[1] * sampling_ratio**2
        step = max(SAMPLES // max(size, 1), 1)
        counts = [(min(step, number - start), min(step, number - start) * size) for start in range(0, number, step)]
    else:
        rows = (height / bins[0]).float().ceil().long().clamp_(min=0)
        columns = (width / bins[1]).float().ceil().long().clamp_(min=0)
        sizes = (rows * columns * bins[0] * bins[1]).cpu()
        members = (sizes.cumsum(0) - 1).div(SAMPLES, rounding_mode='floor').unique_consecutive(return_counts=True)[1]
        counts = [(len(part), int(part.sum())) for part in sizes.split(members.tolist())]

    start = 0
    for count, total in counts:
        boxes = slice(start, start + count)
        start += count
        points = rows[boxes] * columns[boxes]  # of each bin of a box
        starts = points.repeat_interleave(bins[0] * bins[1]).cumsum(0)
        starts = torch.cat((starts.new_zeros(1), starts[:-1]))
        box = torch.arange(count, device=device).repeat_interleave(points * bins[0] * bins[1], output_size=total)
        point = torch.arange(total, device=device) - starts[:: bins[0] * bins[1]][box]
        y, x = _sampling_points(point, bins, *(value[boxes][box] for value in (height, width, rows, columns, cos, sin)))
        index, weight = bilinear_corners(y + center_y[boxes][box], x + center_x[boxes][box], shape[2], shape[3])
        index += image[boxes][box].int()[:, None] * (shape[2] * shape[3])
        yield boxes, _Samples(index, weight / points[box].to(weight.dtype)[:, None], starts * CORNERS)


def _sampling_points(
    point: Tensor,
    bins: tuple[int, int],
    height: Tensor,
    width: Tensor,
    rows: Tensor,
    columns: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor]:
    """Coordinates y and x ``(S,)`` of points relative to the center of their box.

    All tensors are ``(S,)``, point by point.

    Args:
        point: Number of the point in its box: by row and column of the bins, then by row and column in the bin.
        bins: Bins along height and width.
        height: Height of the box.
        width: Width of the box.
        rows: Rows of points in a bin.
        columns: Columns of points in a bin.
        cos: Cosine of the angle.
        sin: Sine of the angle.
    """

    def along(length: Tensor, number: int, index: Tensor, step: Tensor, steps: Tensor) -> Tensor:
        size = length / number
        return (
            -length / 2 + index.to(length.dtype) * size + (step + 0.5).to(length.dtype) * size / steps.to(length.dtype)
        )

    rest, column = point.div(columns, rounding_mode='floor'), point % columns
    index, row = rest.div(rows, rounding_mode='floor'), rest % rows
    y = along(height, bins[0], index.div(bins[1], rounding_mode='floor'), row, rows)
    x = along(width, bins[1], index % bins[1], column, columns)
    return y * cos - x * sin, y * sin + x * cos
