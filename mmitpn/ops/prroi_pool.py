"""Precise RoIPool (arXiv 1807.11590), as in ``mmcv._ext``: the mean of the bilinear map over each bin.

The integral of a bilinear map over a rectangle is a weighted sum of its cells, and the weight of a cell the product of
one weight along each axis. That makes pooling a sparse matrix times the rows of the maps (see
:mod:`mmitpn.ops.sampling`). Bounds and weights are fp64: they are small differences of large coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .sampling import (
    LARGEST_TEMPORARY,
    add_rows,
    as_rows,
    operator,
    parts,
    ragged_grids,
    rounded,
    transposed_sums,
    weighted_sums,
)

# Cells whose weights are computed at once.
_CELLS = LARGEST_TEMPORARY >> 4


class _Areas(NamedTuple):
    """Bins of PrRoIPool: bounds ``(bins,)`` in cells, and the cells that each one overlaps."""

    part: slice
    top: Tensor
    left: Tensor
    bottom: Tensor
    right: Tensor
    area: Tensor
    image: Tensor
    """``(bins,)`` row of the image's first cell."""

    def inverse(self) -> Tensor:
        """1 / area, and 0 for a bin without area."""
        return torch.where(self.area > 0, 1 / self.area, 0)

    def weights(self, height: int, width: int) -> tuple[Tensor, ...]:
        """What :func:`_lattice` returns for the integral over each bin."""
        top, rows = _reach(self.top, self.bottom, height, self.area)
        left, columns = _reach(self.left, self.right, width, self.area)
        bins, y, x, starts = ragged_grids(rows, columns)
        y, x = y + top[bins], x + left[bins]
        weight = _hat_integral(y, self.top[bins], self.bottom[bins])
        weight = weight * _hat_integral(x, self.left[bins], self.right[bins])
        return _lattice(self.image[bins], bins, y, x, weight, starts, (height, width))

    def line_weights(self, height: int, width: int, axis: str, at: Tensor) -> tuple[Tensor, ...]:
        """The same for the integral along a line: of constant x (``axis`` 'y') or of constant y (``axis`` 'x')."""
        low, high, size = (self.top, self.bottom, height) if axis == 'y' else (self.left, self.right, width)
        first, count = _reach(low, high, size, self.area)
        bins, along, across, starts = ragged_grids(count, torch.full_like(count, 2))
        along = along + first[bins]
        across = across + at.floor().long()[bins]
        weight = _hat_integral(along, low[bins], high[bins]) * (1 - (at[bins] - across).abs())
        y, x = (along, across) if axis == 'y' else (across, along)
        return _lattice(self.image[bins], bins, y, x, weight, starts, (height, width))


def _reach(low: Tensor, high: Tensor, size: int, area: Tensor) -> tuple[Tensor, Tensor]:
    """First cell of the map that an interval reaches, and how many there are; none where ``area`` is 0."""
    first = low.floor().clamp(0, size).long()
    last = high.ceil().clamp(-1, size - 1).long()
    return first, torch.where(area > 0, last - first + 1, 0)


def _hat_integral(cell: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Integral of the bilinear weight of a cell from ``low`` to ``high``."""

    def primitive(bound: Tensor) -> Tensor:
        distance = (bound - cell).clamp(-1, 1)
        return distance - 0.5 * distance * distance.abs()

    return primitive(high) - primitive(low)


def _lattice(
    image: Tensor, bins: Tensor, y: Tensor, x: Tensor, weight: Tensor, starts: Tensor, size: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Bin, row of the maps and weight of each cell (0 outside the map), and the first of each bin."""
    height, width = size
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = image + y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return bins, index, weight * inside, starts


def _areas(rois: Tensor, pooled: tuple[int, int], spatial_scale: float, maps: Tensor) -> Iterator[_Areas]:
    """The bins of PrRoIPool, some boxes at a time."""
    low = rois[:, 1:].double() * rounded(spatial_scale, torch.float32)
    size = (low[:, 2:] - low[:, :2]).clamp(min=0)
    height, width = size[:, 1] / pooled[0], size[:, 0] / pooled[1]
    cells = maps.shape[2] * maps.shape[3]
    # A bin reaches at most three cells more than its size along an axis; the sums of its channels take memory, too.
    reach = (height.clamp(max=maps.shape[2]) + 3) * (width.clamp(max=maps.shape[3]) + 3) + maps.shape[1] / 16
    for part in parts(reach.nan_to_num() * (pooled[0] * pooled[1]), _CELLS):
        top = low[part, 1, None] + height[part, None] * torch.arange(pooled[0], device=rois.device)
        left = low[part, 0, None] + width[part, None] * torch.arange(pooled[1], device=rois.device)
        bottom, right = top + height[part, None], left + width[part, None]
        shape = (top.shape[0], *pooled)
        yield _Areas(
            part,
            *(
                bound.expand(shape).flatten()
                for bound in (top[:, :, None], left[:, None], bottom[:, :, None], right[:, None])
            ),
            (height * width)[part, None, None].expand(shape).flatten(),
            (rois[part, 0].long() * cells)[:, None, None].expand(shape).flatten(),
        )


@operator
def prroi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Precise RoIPool (arXiv 1807.11590): the mean of the bilinear map over each bin, zeros outside the map.

    Defined by ``prroi_pool_forward_cuda_kernel``, which adds up the cells' integrals; here each cell's weight is worked
    out first.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(N, 5)`` boxes.
        output: ``(N, C, pooled_height, pooled_width)``, filled; 0 for a box without area.
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: From the coordinates of the boxes to cells.
    """
    if not output.numel():
        return
    rows, pooled = as_rows(input), (pooled_height, pooled_width)
    for bins in _areas(rois, pooled, spatial_scale, input):
        number, index, weight, starts = bins.weights(*input.shape[2:])
        weight = (weight * bins.inverse()[number]).to(rows.dtype)
        sums = weighted_sums(rows, index, weight, starts)
        output[bins.part] = sums.view(-1, *pooled, rows.shape[1]).permute(0, 3, 1, 2).to(output.dtype)


@operator
def prroi_pool_backward(
    grad_output: Tensor, rois: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Add the gradient of :func:`prroi_pool_forward` to ``grad_input`` ``(B, C, H, W)``.

    Defined by ``prroi_pool_backward_cuda_kernel``.
    """
    if not grad_output.numel():
        return
    pooled, cells = (pooled_height, pooled_width), grad_input[:, 0].numel()
    for bins in _areas(rois, pooled, spatial_scale, grad_input):
        number, index, weight, _ = bins.weights(*grad_input.shape[2:])
        grad = as_rows(grad_output[bins.part])
        weight = (weight * bins.inverse()[number]).to(grad.dtype)
        add_rows(grad_input, transposed_sums(grad, number, index, weight, cells))


@operator
def prroi_pool_coor_backward(
    output: Tensor,
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    grad_rois: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of the boxes of :func:`prroi_pool_forward` to ``grad_rois`` ``(N, 5)``.

    Moving a side of a bin adds the integral of the map along this side. Defined by
    ``prroi_pool_coor_backward_cuda_kernel``. The integrals and the means are worked out in fp64, for they are nearly
    equal in a small bin; that is why ``output`` is not read.
    """
    if not grad_output.numel():
        return
    rows, (height, width) = as_rows(input).double(), input.shape[2:]
    down = torch.arange(pooled_height, device=rois.device)[:, None] / pooled_height
    along = torch.arange(pooled_width, device=rois.device) / pooled_width
    for bins in _areas(rois, (pooled_height, pooled_width), spatial_scale, input):
        grad = as_rows(grad_output[bins.part]).double()
        scale, shape = bins.inverse() * rounded(spatial_scale, torch.float32), (-1, pooled_height, pooled_width)
        mean = _slope(rows, grad, bins.weights(height, width)) * bins.inverse()
        high, wide = (bins.bottom - bins.top) * mean, (bins.right - bins.left) * mean
        left, right, top, bottom = (
            # How the loss grows as each side moves outwards.
            ((_slope(rows, grad, bins.line_weights(height, width, axis, at)) - of_mean) * scale).view(shape)
            for axis, at, of_mean in (
                ('y', bins.left, high),
                ('y', bins.right, high),
                ('x', bins.top, wide),
                ('x', bins.bottom, wide),
            )
        )
        nearer, lower = along + 1 / pooled_width, down + 1 / pooled_height
        gradients = (
            right * (1 - nearer) - left * (1 - along),
            bottom * (1 - lower) - top * (1 - down),
            right * nearer - left * along,
            bottom * lower - top * down,
        )
        grad_rois[bins.part, 1:] += torch.stack([each.sum((1, 2)) for each in gradients], -1).to(grad_rois.dtype)


def _slope(rows: Tensor, grad: Tensor, lattice: tuple[Tensor, ...]) -> Tensor:
    """Weighted sums of a lattice times the gradient of each channel, ``(bins,)``."""
    _, index, weight, starts = lattice
    return (weighted_sums(rows, index, weight, starts) * grad).sum(-1)
