"""Pooling of boxes: RoIAlign, RoIPool and deformable RoIPool, as in ``mmcv._ext``.

Boxes are ``(N, 5)``: number of the image, x1, y1, x2, y2. Outputs are allocated by the caller and filled in place;
gradients are added to what they hold. Average pooling is a sparse matrix times the rows of the maps (see
:mod:`mmitpn.ops.sampling`); RoIAlign's averages are torchvision's, which are mmcv's kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .sampling import (
    LARGEST_TEMPORARY,
    accumulation_dtype,
    add_rows,
    as_rows,
    bilinear_corners,
    dot_products,
    operator,
    parts,
    ragged_grids,
    rounded,
    running_maximum,
    scatter_corners,
    transposed_sums,
    weighted_sums,
)

# Samples whose cells and weights are computed at once.
_SAMPLES = LARGEST_TEMPORARY >> 6


@functools.cache
def _torchvision() -> Any:
    """Torchvision's compiled operators."""
    import torchvision  # noqa: F401 (registers them)

    return torch.ops.torchvision


class _Bins(NamedTuple):
    """Bins of boxes, ``(y, x)`` in the last dimension, in cells of the map."""

    image: Tensor
    """``(N,)``."""
    start: Tensor
    """``(N, 2)`` upper left corner of the box."""
    size: Tensor
    """``(N, 2)`` of the box."""
    step: Tensor
    """``(N, 2)`` size of a bin."""
    samples: Tensor
    """``(N, 2)`` samples of a bin; none where not positive."""


class _Samples(NamedTuple):
    """Bilinear samples of the bins of some boxes, bin by bin."""

    part: slice
    """Which boxes."""
    bin: Tensor
    """``(E,)`` bin of each sample, counted from the first of the part."""
    starts: Tensor
    """``(bins,)`` first entry of each bin in the flattened ``index``."""
    y: Tensor
    """``(E,)`` in cells."""
    x: Tensor
    """``(E,)`` in cells."""
    index: Tensor
    """``(E, 4)`` rows of the maps."""
    weight: Tensor
    """``(E, 4)``."""
    count: Tensor
    """``(bins, 1)`` samples to divide by."""


def _bins(
    rois: Tensor, pooled: tuple[int, int], spatial_scale: float, sampling_ratio: int, *, shift: float, smallest: float
) -> _Bins:
    corners = rois[:, 1:] * rounded(spatial_scale, rois.dtype) - shift
    start, end = corners[:, :2].flip(-1), corners[:, 2:].flip(-1)
    size = (end - start).clamp(min=smallest)
    step = torch.stack((size[:, 0] / pooled[0], size[:, 1] / pooled[1]), -1)
    # The kernels round up with ceilf, which takes doubles to fp32 first.
    samples = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.float().ceil()
    return _Bins(rois[:, 0].long(), start, size, step, samples.long())


def _aligned_bins(
    rois: Tensor, pooled: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> _Bins:
    shift, smallest = (0.5, -torch.inf) if aligned else (0.0, 1.0)
    return _bins(rois, pooled, spatial_scale, sampling_ratio, shift=shift, smallest=smallest)


def _coordinate(start: Tensor, step: Tensor, cell: Tensor, sample: Tensor, samples: Tensor) -> Tensor:
    """Where a sample of a bin lies along one axis, in the kernels' order of operations."""
    return start + cell * step + (sample.to(step.dtype) + 0.5) * step / samples


def _sampled(
    bins: _Bins, pooled: tuple[int, int], size: tuple[int, int], moved: Tensor | None = None
) -> Iterator[_Samples]:
    """The samples of all bins, some boxes at a time.

    Args:
        bins: Of the boxes.
        pooled: Bins of a box, rows and columns.
        size: Height and width of the map.
        moved: ``(N, rows, columns, 2)`` what is added to the corner of the box for each bin.
    """
    cells = pooled[0] * pooled[1]
    for part in parts(bins.samples.clamp(min=0).prod(-1) * cells, _SAMPLES):
        grids = bins.samples[part].repeat_interleave(cells, 0)
        number, row, column, starts = ragged_grids(grids[:, 0], grids[:, 1])
        box, cell = number // cells, number % cells
        start, step, samples = bins.start[part][box], bins.step[part][box], grids[number]
        if moved is not None:
            start = start + moved[part].reshape(-1, 2)[number]
        y = _coordinate(start[:, 0], step[:, 0], cell // pooled[1], row, samples[:, 0])
        x = _coordinate(start[:, 1], step[:, 1], cell % pooled[1], column, samples[:, 1])
        position, weight = bilinear_corners(y, x, *size)
        index = position + (bins.image[part][box] * (size[0] * size[1]))[:, None]
        count = grids.prod(-1).clamp(min=1)[:, None]
        yield _Samples(part, number, starts * 4, y, x, index, weight, count)


def _average(maps: Tensor, output: Tensor, bins: _Bins, moved: Tensor | None = None) -> None:
    """Fill ``output`` ``(N, C, rows, columns)`` with the mean of each bin's samples."""
    rows, (channels, *pooled) = as_rows(maps), output.shape[1:]
    for samples in _sampled(bins, pooled, maps.shape[2:], moved):
        sums = weighted_sums(rows, samples.index.flatten(), samples.weight.flatten(), samples.starts)
        output[samples.part] = (sums / samples.count).view(-1, *pooled, channels).permute(0, 3, 1, 2).to(output.dtype)


def _average_gradient(grad_output: Tensor, samples: _Samples) -> Tensor:
    """Gradient of each sample of a bin, ``(bins, C)``."""
    grad = as_rows(grad_output[samples.part])
    return grad / samples.count


def _add_average_gradient(grad_input: Tensor, grad: Tensor, samples: _Samples) -> None:
    rows = grad_input.shape[0] * grad_input.shape[2] * grad_input.shape[3]
    number = samples.bin.repeat_interleave(4)
    add_rows(grad_input, transposed_sums(grad, number, samples.index.flatten(), samples.weight.flatten(), rows))


@operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (arXiv 1703.06870): bilinear samples of each bin, averaged or their maximum.

    Defined by ``ROIAlignForward`` (csrc/pytorch/cpu/roi_align.cpp) and ``roi_align_forward_cuda_kernel``, which differ
    in the output of a bin whose samples are all below -10000: -10000 on a CPU.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(N, 5)`` boxes in the type of ``input``.
        output: ``(N, C, aligned_height, aligned_width)``, filled.
        argmax_y: As ``output``, filled with the row of the largest sample, -1 for none, if ``pool_mode`` is 0.
        argmax_x: Its column.
        aligned_height: Rows of bins.
        aligned_width: Columns of bins.
        spatial_scale: From the coordinates of the boxes to cells.
        sampling_ratio: Samples of a bin along each axis; 0 takes one per cell.
        pool_mode: 0 for the maximum, 1 for the average.
        aligned: Whether cell centers lie at half cells; if not, boxes are at least one cell wide.

    Raises:
        ValueError: If a box on a CPU has a negative size or NaN coordinates.
    """
    if not output.numel():
        return
    rois = rois.to(_arithmetic_dtype(input.dtype))
    _check_sizes(rois, aligned)
    pooled = (aligned_height, aligned_width)
    if pool_mode == 0:
        _roi_align_maximum(
            input, rois, output, argmax_y, argmax_x, _aligned_bins(rois, pooled, spatial_scale, sampling_ratio, aligned)
        )
    elif _differs_from_torchvision(input.dtype, sampling_ratio):
        _average(input, output, _aligned_bins(rois, pooled, spatial_scale, sampling_ratio, aligned))
    else:
        scale = rounded(spatial_scale, rois.dtype)
        output.copy_(_torchvision().roi_align(input.to(rois.dtype), rois, scale, *pooled, sampling_ratio, aligned))


@operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` to ``grad_input`` ``(B, C, H, W)``.

    Defined by ``ROIAlignBackward`` (csrc/pytorch/cpu/roi_align.cpp). Arguments and errors are those of the forward.
    """
    if not grad_output.numel():
        return
    rois = rois.to(_arithmetic_dtype(grad_output.dtype))
    pooled = (aligned_height, aligned_width)
    if pool_mode == 0:
        _add_maximum_gradient(grad_output, rois, argmax_y, argmax_x, grad_input)
        return
    _check_sizes(rois, aligned)
    if _differs_from_torchvision(grad_output.dtype, sampling_ratio):
        bins = _aligned_bins(rois, pooled, spatial_scale, sampling_ratio, aligned)
        for samples in _sampled(bins, pooled, grad_input.shape[2:]):
            _add_average_gradient(grad_input, _average_gradient(grad_output, samples), samples)
    else:
        grad_input.add_(
            _torchvision()
            ._roi_align_backward(
                grad_output.to(rois.dtype),
                rois,
                rounded(spatial_scale, rois.dtype),
                *pooled,
                *grad_input.shape,
                sampling_ratio,
                aligned,
            )
            .to(grad_input.dtype)
        )


def _check_sizes(rois: Tensor, aligned: bool) -> None:
    """Raise as mmcv's CPU kernel does; its CUDA kernel accepts such boxes, and a check would wait for the GPU."""
    if rois.device.type != 'cpu':
        return
    sizes = rois[:, 3:] - rois[:, 1:3]
    bad = ~(sizes >= 0) if aligned else sizes.isnan()
    if bad.any():
        raise ValueError(
            f'a box of RoIAlign is {rois[bad.any(-1)][0, 1:].tolist()} (x1, y1, x2, y2); x2 and y2 must not be smaller'
            ' than x1 and y1, nor may a coordinate be NaN. Check what computed the boxes, or whether a loss is NaN'
        )


def _differs_from_torchvision(dtype: torch.dtype, sampling_ratio: int) -> bool:
    """Torchvision rounds the number of samples up in fp64 where mmcv rounds up in fp32."""
    return dtype == torch.float64 and sampling_ratio <= 0


def _arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sample coordinates: that of the maps, except bf16, which the kernels do not support."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _box_parts(output: Tensor) -> Iterator[slice]:
    """Slices of boxes whose outputs fit into a temporary, with room for a few of them."""
    boxes = max(1, (LARGEST_TEMPORARY >> 4) // output[0].numel())
    return (slice(start, start + boxes) for start in range(0, len(output), boxes))


def _roi_align_maximum(
    maps: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, bins: _Bins
) -> None:
    rows, (channels, *pooled) = as_rows(maps), output.shape[1:]
    lowest = -10000.0 if maps.device.type == 'cpu' else torch.finfo(torch.float32).min
    for part in _box_parts(output):
        grids = _Grids.of(bins, part, pooled, maps.shape[2:])
        start = rows.new_full((len(grids.cell), channels), lowest)
        best, winner = running_maximum(
            grids.samples.clamp(min=0).prod(-1), functools.partial(grids.values, rows), start
        )
        every = torch.arange(len(winner), device=maps.device)[:, None].expand_as(winner)
        y, x = grids.points(every, winner.clamp(min=0))
        _fill(output, part, best)
        _fill(argmax_y, part, torch.where(winner < 0, -1, y))
        _fill(argmax_x, part, torch.where(winner < 0, -1, x))


class _Grids(NamedTuple):
    """The samples of each bin of some boxes; pairs are (y, x)."""

    map_size: tuple[int, int]
    pooled_width: int
    cell: Tensor
    """``(bins,)`` number of the bin within its box."""
    image: Tensor
    """``(bins,)`` row of the image's first cell."""
    start: Tensor
    """``(bins, 2)``, as those of :class:`_Bins`."""
    step: Tensor
    """``(bins, 2)``."""
    samples: Tensor
    """``(bins, 2)``."""

    @classmethod
    def of(cls, bins: _Bins, part: slice, pooled: tuple[int, int], map_size: tuple[int, int]) -> _Grids:
        """The grids of ``part`` of the boxes."""
        cells = pooled[0] * pooled[1]
        boxes = len(bins.image[part])
        cell = torch.arange(cells, device=bins.image.device).repeat(boxes)
        image, start, step, samples = (
            values[part].repeat_interleave(cells, 0) for values in (bins.image, bins.start, bins.step, bins.samples)
        )
        return cls(map_size, pooled[1], cell, image * (map_size[0] * map_size[1]), start, step, samples)

    def points(self, bins: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """Where sample ``number`` of each of ``bins`` lies, y and x in cells."""
        start, step, samples, cell = self.start[bins], self.step[bins], self.samples[bins], self.cell[bins]
        # Bins without samples are never read; the 1 only keeps the division defined.
        across = samples[..., 1].clamp(min=1)
        y = _coordinate(start[..., 0], step[..., 0], cell // self.pooled_width, number // across, samples[..., 0])
        x = _coordinate(start[..., 1], step[..., 1], cell % self.pooled_width, number % across, samples[..., 1])
        return y, x

    def values(self, rows: Tensor, bins: Tensor, number: int) -> Tensor:
        """Sample ``number`` of each of ``bins``, ``(len(bins), C)``."""
        position, weight = bilinear_corners(*self.points(bins, torch.full_like(bins, number)), *self.map_size)
        return weighted_sums(rows, position + self.image[bins, None], weight)


def _fill(target: Tensor, part: slice, values: Tensor) -> None:
    """Write ``(bins, C)`` to ``part`` of ``target`` ``(N, C, rows, columns)``."""
    _, channels, *pooled = target.shape
    target[part] = values.view(-1, *pooled, channels).permute(0, 3, 1, 2).to(target.dtype)


def _channel_starts(rois: Tensor, maps: Tensor) -> Tensor:
    """First cell of the map of each box and channel in the flattened maps, ``(N, C, 1, 1)``."""
    channels, cells = maps.shape[1], maps.shape[2] * maps.shape[3]
    channel = torch.arange(channels, device=rois.device)
    return ((rois[:, :1].long() * channels + channel) * cells)[..., None, None]


def _add_maximum_gradient(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor
) -> None:
    dtype = accumulation_dtype(grad_input.dtype)
    total = torch.zeros(grad_input.numel(), dtype=dtype, device=grad_input.device)
    for part in _box_parts(grad_output):
        y, x = argmax_y[part], argmax_x[part]
        value = torch.where(y == -1, 0, grad_output[part]).to(dtype)
        scatter_corners(total, _channel_starts(rois[part], grad_input), y, x, value, *grad_input.shape[2:])
    grad_input.add_(total.view(grad_input.shape).to(grad_input.dtype))


@operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool (arXiv 1504.08083): the maximum of the cells that each bin touches.

    Defined by ``roi_pool_forward_cuda_kernel``: it does not round the boxes, unlike torchvision's, and leaves the
    output and ``argmax`` of a box without area as they are.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(N, 5)`` boxes, whose x2 and y2 belong to the box.
        output: ``(N, C, pooled_height, pooled_width)``, filled; 0 for a bin outside the map.
        argmax: As ``output``, 32-bit integers, filled with the cell ``row * W + column``, or -1.
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: From the coordinates of the boxes to cells.
    """
    if not output.numel():
        return
    rois = rois.to(_arithmetic_dtype(input.dtype))
    scale = rounded(spatial_scale, rois.dtype)
    low, high = rois[:, 1:3] * scale, (rois[:, 3:] + 1) * scale
    channels, (height, width) = input.shape[1], input.shape[2:]
    has_area = (high > low).all(-1)
    top, bottom = _touched(low[:, 1], high[:, 1], pooled_height, height)
    left, right = _touched(low[:, 0], high[:, 0], pooled_width, width)
    rows, image = as_rows(input), rois[:, 0].long() * (height * width)
    for part in _box_parts(output):
        shape = (len(image[part]), pooled_height, pooled_width)
        across = (right - left)[part, None].expand(shape).flatten()
        windows = _Windows(
            width,
            image[part, None, None].expand(shape).flatten(),
            (top[part, :, None] * width + left[part, None]).flatten(),
            across,
            (bottom - top)[part, :, None].expand(shape).flatten() * across,
        )
        lowest = rows.new_full((len(across), channels), torch.finfo(torch.float32).min)
        lowest.masked_fill_((windows.count == 0)[:, None], 0)
        best, winner = running_maximum(windows.count, functools.partial(windows.values, rows), lowest)
        every = torch.arange(len(winner), device=rows.device)[:, None].expand_as(winner)
        cells = torch.where(winner < 0, -1, windows.cell(every, winner.clamp(min=0)))
        flat = ~has_area[part, None, None, None]
        for target, values in ((output, best), (argmax, cells)):
            kept = target[part].clone()
            _fill(target, part, values)
            target[part] = torch.where(flat, kept, target[part])


class _Windows(NamedTuple):
    """The cells of each bin of some boxes."""

    map_width: int
    image: Tensor
    """``(bins,)`` row of the image's first cell."""
    first: Tensor
    """``(bins,)`` first cell, ``row * W + column``."""
    across: Tensor
    """``(bins,)`` columns."""
    count: Tensor
    """``(bins,)`` cells."""

    def cell(self, bins: Tensor, number: Tensor | int) -> Tensor:
        """Cell ``number`` of each of ``bins``."""
        # Bins without cells are never read; the 1 only keeps the division defined.
        across = self.across[bins].clamp(min=1)
        return self.first[bins] + number // across * self.map_width + number % across

    def values(self, rows: Tensor, bins: Tensor, number: int) -> Tensor:
        """Cell ``number`` of each of ``bins`` in the maps, ``(len(bins), C)``."""
        return rows[self.image[bins] + self.cell(bins, number)]


def _touched(low: Tensor, high: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First cell that each bin touches along one axis, and the one after the last, ``(N, bins)``."""
    step = ((high - low) / bins)[:, None]
    number = torch.arange(bins, device=low.device)
    first = (number * step + low[:, None]).float().floor().clamp(0, size).long()
    last = ((number + 1) * step + low[:, None]).float().ceil().clamp(0, size).long()
    return first, last.maximum(first)


@operator
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of :func:`roi_pool_forward` to ``grad_input`` ``(B, C, H, W)``.

    Defined by ``roi_pool_backward_cuda_kernel``.
    """
    if not grad_output.numel():
        return
    dtype = accumulation_dtype(grad_input.dtype)
    total = torch.zeros(grad_input.numel(), dtype=dtype, device=grad_input.device)
    for part in _box_parts(grad_output):
        index = _channel_starts(rois[part], grad_input) + argmax[part].clamp(min=0)
        value = torch.where(argmax[part] == -1, 0, grad_output[part]).to(dtype)
        total.scatter_add_(0, index.flatten(), value.flatten())
    grad_input.add_(total.view(grad_input.shape).to(grad_input.dtype))


@operator
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Deformable RoIPool (arXiv 1703.06211): RoIAlign's average with each bin moved.

    Defined by ``deform_roi_pool_forward_cuda_kernel``.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(N, 5)`` boxes.
        offset: ``(N, 2, pooled_height, pooled_width)``: x, then y, in fractions of the box times ``gamma``; or empty.
        output: ``(N, C, pooled_height, pooled_width)``, filled.
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: From the coordinates of the boxes to cells.
        sampling_ratio: Samples of a bin along each axis; 0 takes one per cell.
        gamma: Factor of ``offset``.
    """
    if not output.numel():
        return
    bins = _aligned_bins(
        rois.to(_arithmetic_dtype(input.dtype)), (pooled_height, pooled_width), spatial_scale, sampling_ratio, True
    )
    _average(input, output, bins, _moves(bins, offset, gamma))


def _moves(bins: _Bins, offset: Tensor, gamma: float) -> Tensor | None:
    """How far each bin is moved, ``(N, rows, columns, 2)`` (y, x) in cells."""
    if not offset.numel():
        return None
    side = (rounded(gamma, offset.dtype) * bins.size)[:, None, None]
    return side * offset.flip(1).permute(0, 2, 3, 1)


@operator
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Add the gradients of :func:`deform_roi_pool_forward` to ``grad_input`` and, if not empty, ``grad_offset``.

    Defined by ``deform_roi_pool_backward_cuda_kernel``, which for a point outside the center of the first cell uses the
    slope at this point, although the sample is constant there.
    """
    if not grad_output.numel():
        return
    rows, width = as_rows(input), input.shape[3]
    pooled, cells = (pooled_height, pooled_width), pooled_height * pooled_width
    bins = _aligned_bins(rois.to(_arithmetic_dtype(input.dtype)), pooled, spatial_scale, sampling_ratio, True)
    for samples in _sampled(bins, pooled, input.shape[2:], _moves(bins, offset, gamma)):
        grad = _average_gradient(grad_output, samples)
        _add_average_gradient(grad_input, grad, samples)
        if not offset.numel():
            continue
        dots = dot_products(grad, rows, samples.index.flatten(), samples.starts).view(-1, 4)
        # The row index also gives the cell: rows are numbered through all images.
        cell = samples.index % (input.shape[2] * width)
        top, bottom = cell[:, 0] // width, cell[:, 2] // width
        left, right = cell[:, 0] % width, cell[:, 1] % width
        below, above = samples.y - top, bottom - samples.y
        after, before = samples.x - left, right - samples.x
        inside = samples.weight.sum(-1) > 0
        slopes = (
            ((dots[:, 3] - dots[:, 2]) * below + (dots[:, 1] - dots[:, 0]) * above),
            ((dots[:, 3] - dots[:, 1]) * after + (dots[:, 2] - dots[:, 0]) * before),
        )
        size = bins.size[samples.part] * rounded(gamma, offset.dtype)
        for axis, slope in enumerate(slopes):
            total = dots.new_zeros(len(samples.starts)).index_add_(0, samples.bin, slope.to(dots.dtype) * inside)
            moved = total.view(-1, cells) * size[:, 1 - axis, None]
            grad_offset[samples.part, axis] += moved.view(-1, *pooled).to(grad_offset.dtype)
