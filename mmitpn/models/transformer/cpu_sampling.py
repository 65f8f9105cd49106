"""Sampling of deformable attention on a CPU, as sums over rows instead of pictures of samples.

``grid_sample`` writes every sample of every query, head and level before it weighs them: for the maps of an 800 x 1333
picture that is more than a gigabyte a layer. Here each query and head sums the rows of its corners at once
(``embedding_bag``), and keeps nothing for the backward pass but its inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

Shapes = list[list[int]]


def sample_on_cpu(value: Tensor, level_shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples: mmcv's ``multi_scale_deformable_attn_pytorch`` with less time and memory.

    Args:
        value: ``(B, N, heads, C / heads)``, the flattened maps, level by level.
        level_shapes: Height and width of each map.
        points: ``(B, Q, heads, levels, points, 2)``, x and y in fractions of each map; outside of it are zeros.
        weights: ``(B, Q, heads, levels, points)``.

    Returns:
        ``(B, Q, C)``.
    """
    return _Sample.apply(value, points, weights, level_shapes)


class _Sample(Function):
    @staticmethod
    def forward(ctx, value: Tensor, points: Tensor, weights: Tensor, level_shapes: Shapes) -> Tensor:
        ctx.save_for_backward(value, points, weights)
        ctx.level_shapes = level_shapes
        rows = _bordered(value, level_shapes)
        first, shares = _corners(points, weights, level_shapes)
        output = _summed(rows, first, shares, level_shapes, heads=value.shape[2])
        return output.view(points.shape[0], points.shape[1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, points, weights = ctx.saved_tensors
        heads, channels = value.shape[2:]
        grad = grad.reshape(-1, channels)
        of_value = of_points = of_weights = None
        with torch.enable_grad():
            points, weights = points.detach().requires_grad_(), weights.detach().requires_grad_()
            first, shares = _corners(points, weights, ctx.level_shapes)
            if any(ctx.needs_input_grad[1:3]):
                output = _summed(_bordered(value, ctx.level_shapes), first, shares, ctx.level_shapes, heads)
                of_points, of_weights = torch.autograd.grad(output, (points, weights), grad)
        if ctx.needs_input_grad[0]:
            of_value = _scattered(grad, first, shares.detach(), ctx.level_shapes, value.shape)
        return of_value, of_points, of_weights, None


def _bordered(value: Tensor, level_shapes: Shapes) -> Tensor:
    """Rows ``(B * positions * heads, C / heads)`` of the maps with a border of zeros, one cell wide."""
    maps = value.split([height * width for height, width in level_shapes], dim=1)
    bordered = [
        pad(level.unflatten(1, tuple(shape)), (0, 0, 0, 0, 1, 1, 1, 1)).flatten(1, 2)
        for level, shape in zip(maps, level_shapes, strict=True)
    ]
    return torch.cat(bordered, dim=1).flatten(0, 2)


def _bordered_sizes(level_shapes: Shapes) -> list[int]:
    return [(height + 2) * (width + 2) for height, width in level_shapes]


def _corners(points: Tensor, weights: Tensor, level_shapes: Shapes) -> tuple[Tensor, Tensor]:
    """The row of each sample's upper left corner, and what share each of its four corners has.

    Returns:
        ``(B * Q * heads, levels * points)`` integers, and ``(B * Q * heads, levels * points, 4)``: upper left, upper
        right, lower left, lower right.
    """
    batch, _, heads = points.shape[:3]
    sizes = _bordered_sizes(level_shapes)
    shapes = torch.tensor(level_shapes, dtype=points.dtype)
    starts = torch.tensor([sum(sizes[:level]) for level in range(len(sizes))], dtype=points.dtype)[:, None]
    left, right = _along(points[..., 0], shapes[:, 1:])
    top, bottom = _along(points[..., 1], shapes[:, :1])

    # 32 bits of index do for 2 ** 31 rows; PyTorch sorts and gathers them faster than 64.
    position = (top.int() * (shapes[:, 1:] + 2).int()).add_(left.int()).add_(starts.int())
    picture = torch.arange(batch, dtype=torch.int32).view(-1, 1, 1, 1, 1) * sum(sizes)
    first = position.add_(picture).mul_(heads).add_(torch.arange(heads, dtype=torch.int32).view(-1, 1, 1))

    lower = weights * bottom
    upper = weights - lower
    upper_right, lower_right = upper * right, lower * right
    shares = torch.stack((upper - upper_right, upper_right, lower - lower_right, lower_right), dim=-1)
    return first.flatten(3).flatten(0, 2), shares.flatten(3, 4).flatten(0, 2)


def _along(fraction: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """First of two neighbouring cells of the bordered map along one side, and the share of the second."""
    # fmax and fmin, not clamp: they take a NaN to the border, where the sample is zero as grid_sample's is.
    cell = (fraction * size + 0.5).fmax(torch.zeros(())).fmin(size + 1)
    first = cell.detach().floor().minimum(size)
    return first, cell - first


def _steps(level_shapes: Shapes, heads: int) -> Tensor:
    """Rows from the first corner to each of the four, ``(levels, 1, 4)``."""
    widths = torch.tensor([width + 2 for _, width in level_shapes], dtype=torch.int32)
    none = torch.zeros_like(widths)
    return torch.stack((none, none + 1, widths, widths + 1), dim=-1)[:, None] * heads


def _summed(rows: Tensor, first: Tensor, shares: Tensor, level_shapes: Shapes, heads: int) -> Tensor:
    """Sum of the rows that each query and head looks at, ``(B * Q * heads, C / heads)``."""
    steps = _steps(level_shapes, heads)
    indices = first.unflatten(1, (len(level_shapes), -1, 1)) + steps
    return F.embedding_bag(indices.flatten(1), rows, per_sample_weights=shares.flatten(1), mode='sum')


def _scattered(grad: Tensor, first: Tensor, shares: Tensor, level_shapes: Shapes, shape: torch.Size) -> Tensor:
    """Gradient of the maps, ``shape``: each cell sums the rows of ``grad`` that looked at it.

    Sorting by the first corner turns the scattering, which one thread would do, into sums over rows again.
    """
    batch, _, heads, channels = shape
    sizes = _bordered_sizes(level_shapes)
    cells = batch * sum(sizes) * heads
    order = first.flatten().sort()
    bounds = torch.searchsorted(order.values, torch.arange(cells, dtype=torch.int32), out_int32=True)
    looking = (order.indices // first.shape[1]).int()
    shares = shares.flatten(0, 1)[order.indices].t().contiguous()
    corners = [
        F.embedding_bag(looking, grad, bounds, per_sample_weights=share, mode='sum').view(batch, -1, heads * channels)
        for share in shares
    ]
    levels = []
    for upper_left, upper_right, lower_left, lower_right, (height, width) in zip(
        *(corner.split(sizes, dim=1) for corner in corners), level_shapes, strict=True
    ):
        total = upper_left.unflatten(1, (height + 2, width + 2)).clone()
        total[:, :, 1:] += upper_right.view_as(total)[:, :, :-1]
        total[:, 1:] += lower_left.view_as(total)[:, :-1]
        total[:, 1:, 1:] += lower_right.view_as(total)[:, :-1, :-1]
        levels.append(total[:, 1:-1, 1:-1].flatten(1, 2))
    return torch.cat(levels, dim=1).view(shape)
