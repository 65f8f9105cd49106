"""Weighted sums and maxima over sampled rows of feature maps, shared by the operators of this folder.

A map ``(B, C, H, W)`` becomes rows ``(B * H * W, C)``. An average over samples is then a sparse matrix times these rows
(``embedding_bag``), and its gradient is the transposed matrix times the gradients, so no sample is ever stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec('P')
R = TypeVar('R')

# A temporary tensor of an operator has at most this many elements (64 MB of fp32), or what one box or one image needs.
LARGEST_TEMPORARY = 1 << 24


def operator(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function as a compiled operator runs: without autograd, and without autocast, which rounds the sums."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return function(*args, **kwargs)

    return run


def rounded(value: float, dtype: torch.dtype) -> float:
    """``value`` as a kernel sees it, whose C++ signature takes a float and whose arithmetic runs in ``dtype``."""
    return torch.tensor(value, dtype=torch.float32).to(dtype).item()


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which to sum values of ``dtype``: fp32 for fp16 and bf16."""
    return torch.float32 if dtype in {torch.float16, torch.bfloat16} else dtype


def as_rows(maps: Tensor) -> Tensor:
    """Rows ``(B * H * W, C)`` of maps ``(B, C, H, W)``, in the accumulation dtype."""
    return maps.permute(0, 2, 3, 1).to(accumulation_dtype(maps.dtype)).reshape(-1, maps.shape[1])


def add_rows(maps: Tensor, rows: Tensor) -> None:
    """Add rows ``(B * H * W, C)`` to maps ``(B, C, H, W)`` in place."""
    batch, channels, height, width = maps.shape
    maps.add_(rows.view(batch, height, width, channels).permute(0, 3, 1, 2).to(maps.dtype))


def bilinear_corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four cells that a bilinear sample reads, and their weights, as ``bilinear_interpolate`` of mmcv's kernels.

    A point between -1 and 0 takes the value at 0, one beyond the last cell takes the last cell's; further out is zero.

    Args:
        y: Rows of the samples, in cells; any shape.
        x: Columns, same shape.
        height: Of the map.
        width: Of the map.

    Returns:
        Positions ``row * width + column`` ``(..., 4)`` (upper left, upper right, lower left, lower right) as 32-bit
        integers, and weights ``(..., 4)`` in the accumulation dtype.
    """
    terms = list(_corner_terms(y, x, height, width))
    return torch.stack([position for position, _ in terms], -1), torch.stack([weight for _, weight in terms], -1)


def _corner_terms(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Position and weight of one corner after the other."""
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    top, bottom, lower = _neighbors(torch.where(inside, y, 0), height)
    left, right, further = _neighbors(torch.where(inside, x, 0), width)
    dtype = accumulation_dtype(y.dtype)
    for row, along_y in ((top, 1 - lower), (bottom, lower)):
        for column, along_x in ((left, 1 - further), (right, further)):
            yield row * width + column, (along_y * along_x * inside).to(dtype)


def _neighbors(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells on both sides of a point along one axis (32-bit integers), and the weight of the second."""
    coordinate = coordinate.clamp(min=0, max=size - 1)
    low = coordinate.floor()
    first = low.int()
    return first, (first + 1).clamp(max=size - 1), coordinate - low


def weighted_sums(rows: Tensor, index: Tensor, weight: Tensor, starts: Tensor | None = None) -> Tensor:
    """Sum ``weight * rows[index]`` of each group.

    Args:
        rows: ``(N, C)``.
        index: ``(G, K)`` integers; or ``(E,)`` with ``starts``.
        weight: As ``index``, in the type of ``rows``.
        starts: ``(G,)`` first element of each group, where groups are of different sizes.

    Returns:
        ``(G, C)``.
    """
    if not index.numel():
        groups = len(index) if starts is None else len(starts)
        return rows.new_zeros(groups, rows.shape[1])
    starts = None if starts is None else starts.to(index.dtype)
    return F.embedding_bag(index, rows, starts, mode='sum', per_sample_weights=weight)


def transposed_sums(grad: Tensor, group: Tensor, index: Tensor, weight: Tensor, size: int) -> Tensor:
    """Gradient of the ``rows`` of :func:`weighted_sums`: sums of ``weight * grad[group]`` of each ``index``.

    Sorting by ``index`` turns the scattering, which would run in one thread, into sums over rows.

    Args:
        grad: ``(G, C)``.
        group: ``(E,)`` row of ``grad``.
        index: ``(E,)`` row of the result.
        weight: ``(E,)``.
        size: Number of rows of the result.

    Returns:
        ``(size, C)``.
    """
    if not index.numel():
        return grad.new_zeros(size, grad.shape[1])
    order = index.sort()
    starts = torch.searchsorted(order.values, torch.arange(size, dtype=index.dtype, device=index.device))
    return weighted_sums(grad, group[order.indices].long(), weight[order.indices], starts)


def dot_products(grad: Tensor, rows: Tensor, index: Tensor, starts: Tensor | None = None) -> Tensor:
    """Gradient of the ``weight`` of :func:`weighted_sums`: ``grad[group] . rows[index]``, shaped as ``index``."""
    if not index.numel():
        return rows.new_zeros(index.shape)
    flat = index.flatten()
    if starts is None:
        groups = torch.arange(len(index), dtype=flat.dtype, device=flat.device)
        starts, group = groups * index.shape[1], groups.repeat_interleave(index.shape[1])
    else:
        starts = starts.to(flat.dtype)
        element = torch.arange(len(flat), dtype=flat.dtype, device=flat.device)
        group = torch.searchsorted(starts, element, right=True).to(flat.dtype) - 1
    # What autograd calls, which cannot be called where autograd is off: in an operator of torch.library.
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(grad, rows, flat, starts, group, 0)
    return dots.view(index.shape)


def ragged_grids(heights: Tensor, widths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cells of grids of different sizes, row by row, grid by grid.

    Args:
        heights: ``(G,)`` integers; a grid without rows has no cell.
        widths: ``(G,)``.

    Returns:
        Grid, row and column of each cell ``(E,)``, and the first cell of each grid ``(G,)``.
    """
    heights, widths = heights.clamp(min=0), widths.clamp(min=0)
    counts = heights * widths
    starts = counts.cumsum(0) - counts
    grid = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    cell = torch.arange(len(grid), device=counts.device) - starts[grid]
    row = cell // widths[grid]
    return grid, row, cell - row * widths[grid], starts


def parts(sizes: Tensor, limit: int) -> Iterator[slice]:
    """Slices of consecutive items whose ``sizes`` ``(N,)`` add up to at most ``limit``, or of one larger item.

    Synchronizes with the device once, to read the sizes.
    """
    start = total = 0
    for position, size in enumerate(sizes.tolist()):
        if total and total + size > limit:
            yield slice(start, position)
            start, total = position, 0
        total += size
    if len(sizes) > start:
        yield slice(start, len(sizes))


def running_maximum(counts: Tensor, sample: Callable[[Tensor, int], Tensor], start: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum of each group's samples and the number of the first sample that reaches it.

    Processes one sample of all groups at a time, with the groups sorted by their number of samples, so that those with
    samples left are a prefix. Synchronizes with the device once, to read the numbers of samples. A sample that is not
    larger than the maximum so far, or is NaN, changes nothing, as in mmcv's kernels.

    Args:
        counts: ``(G,)`` number of samples of each group.
        sample: Called with group numbers ``(A,)`` and the number of the sample; returns ``(A, C)``.
        start: ``(G, C)``, what the maximum starts from.

    Returns:
        ``(G, C)`` maxima, and ``(G, C)`` 32-bit integers: -1 where no sample was larger than ``start``.
    """
    order = counts.argsort(descending=True, stable=True)
    best = start[order]
    winner = torch.full(best.shape, -1, dtype=torch.int32, device=best.device)
    histogram = counts.clamp(min=0).bincount().flip(0).cumsum(0).flip(0)
    for step, active in enumerate(histogram[1:].tolist()):
        value = sample(order[:active], step)
        larger = value > best[:active]
        best[:active] = torch.where(larger, value, best[:active])
        winner[:active].masked_fill_(larger, step)
    inverse = order.argsort()
    return best[inverse], winner[inverse]


def scatter_corners(flat: Tensor, base: Tensor, y: Tensor, x: Tensor, value: Tensor, height: int, width: int) -> None:
    """Add ``value`` to the four cells that each bilinear sample of its own map read.

    Args:
        flat: ``(N,)`` maps one after the other, changed in place.
        base: First cell of each sample's map, integers that broadcast to the shape of ``value``.
        y: Rows of the samples, in cells, the shape of ``value``.
        x: Columns.
        value: What each sample adds.
        height: Of the maps.
        width: Of the maps.
    """
    for position, weight in _corner_terms(y, x, height, width):
        flat.scatter_add_(0, (base + position).flatten(), (value * weight).flatten())
