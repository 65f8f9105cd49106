"""Multi-scale deformable attention (arXiv 2010.04159), as in ``mmcv._ext``, and on a CPU in less time and memory.

``grid_sample`` writes every sample of every query, head and level before weighting them: for the maps of an 800 x 1333
image that is more than a gigabyte per layer. Here each query and head sums the rows of its corners at once
(``embedding_bag``), and only the inputs are saved for the backward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .sampling import (
    LARGEST_TEMPORARY,
    accumulation_dtype,
    dot_products,
    operator,
    transposed_sums,
    weighted_sums,
)

Shapes = list[list[int]]


def triton_kernels(value: Tensor) -> ModuleType | None:
    """The kernels of :mod:`mmitpn.ops.deformable_attention_triton`, if they can sample a tensor.

    Args:
        value: ``(B, N, heads, C / heads)``.

    Returns:
        The module; None on devices other than CUDA, for dtypes and head widths that the kernels do not support, while a
        graph is traced, and where Triton does not work, which is tested and reported once per GPU.
    """
    if not value.is_cuda or value.dtype == torch.float64 or value.shape[3] % 8:
        return None
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return None
    return _load_triton(value.device)


@cache
def _load_triton(device: torch.device) -> ModuleType | None:
    try:
        from . import deformable_attention_triton as kernels

        value = torch.zeros(1, 4, 1, 8, device=device)
        shapes = torch.tensor([[2, 2]], device=device)
        points, weights = value.new_zeros(1, 1, 1, 1, 1, 2), value.new_ones(1, 1, 1, 1, 1)
        kernels.gradients(value, shapes, shapes.new_zeros(1), points, weights, value.new_ones(1, 1, 8))
        kernels.sample(value, shapes, shapes.new_zeros(1), points, weights)
    except Exception as error:  # noqa: BLE001 - Triton calls a compiler, and either raises anything
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        warnings.warn(
            f'Triton cannot build deformable attention ({reason}): PyTorch samples on the GPU, slower and with more '
            'memory; install Triton (it comes with torch on Linux), a C compiler and the headers of Python '
            '(apt-get install gcc python3-dev)',
            stacklevel=2,
        )
        return None
    return kernels


@operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sum of bilinear samples.

    Defined by ``ms_deformable_im2col_gpu_kernel``. Samples reach half a cell beyond the maps, where zeros are.

    Args:
        value: ``(B, N, heads, C / heads)``, the flattened maps, level by level.
        value_spatial_shapes: ``(levels, 2)`` height and width of each map.
        value_level_start_index: ``(levels,)`` first position of each map in ``value``.
        sampling_locations: ``(B, Q, heads, levels, points, 2)``, x and y in fractions of each map.
        attention_weights: ``(B, Q, heads, levels, points)``.
        im2col_step: Not used: the queries are taken some at a time.

    Returns:
        ``(B, Q, C)``.
    """
    kernels = triton_kernels(value)
    if kernels is not None:
        return kernels.sample(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
        )
    dtype = accumulation_dtype(value.dtype)
    values, points, weights = value.to(dtype), sampling_locations.to(dtype), attention_weights.to(dtype)
    batch, queries, heads = points.shape[:3]
    shapes = _shapes_for_cpu(value, value_spatial_shapes, value_level_start_index)
    if not points.numel() or not value.numel():
        output = values.new_zeros(batch, queries, heads * value.shape[3])
    elif shapes is not None:
        output = _forward_on_cpu(values, points, weights, shapes)
    else:
        rows, sums = values.reshape(-1, value.shape[3]), []
        for part in _query_parts(points):
            corners = _Corners.of(points[:, part], value_spatial_shapes)
            index = corners.rows(value_level_start_index, value.shape[1])
            sums.append(
                weighted_sums(rows, index, corners.factors(weights[:, part])).view(batch, -1, heads * rows.shape[1])
            )
        output = torch.cat(sums, 1)
    return output.to(value.dtype)


@operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add the gradients of :func:`ms_deform_attn_forward` to ``grad_value``, and fill those of points and weights.

    Defined by ``ms_deformable_col2im_gpu_kernel_*`` and ``ms_deform_attn_col2im_bilinear``.
    """
    if not sampling_locations.numel() or not value.numel():
        return
    maps = value, value_spatial_shapes, value_level_start_index
    of_value, of_points, of_weights = _gradients(*maps, sampling_locations, attention_weights, grad_output)
    grad_value.add_(of_value.to(grad_value.dtype))
    grad_sampling_loc.copy_(of_points)
    grad_attn_weight.copy_(of_weights)


def _gradients(
    value: Tensor, spatial_shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, points and weights in the dtype of the sums."""
    kernels = triton_kernels(value)
    if kernels is not None:
        return kernels.gradients(value, spatial_shapes, starts, points, weights, grad)
    dtype = accumulation_dtype(value.dtype)
    shapes = _shapes_for_cpu(value, spatial_shapes, starts)
    value, points, weights, grad = (tensor.to(dtype) for tensor in (value, points, weights, grad))
    if shapes is not None:
        return _gradients_on_cpu(value, points, weights, shapes, grad)
    rows = value.reshape(-1, value.shape[3])
    of_value, of_points, of_weights = torch.zeros_like(rows), torch.empty_like(points), torch.empty_like(weights)
    heads = points.shape[2]
    for part in _query_parts(points):
        corners = _Corners.of(points[:, part], spatial_shapes)
        index, factors = corners.rows(starts, value.shape[1]), corners.factors(weights[:, part])
        of_sums = grad[:, part].unflatten(-1, (heads, -1)).reshape(-1, rows.shape[1])
        group = torch.arange(len(index), device=index.device)[:, None].expand_as(index)
        of_value += transposed_sums(of_sums, group.flatten(), index.flatten(), factors.flatten(), len(rows))
        slopes = corners.gradients(dot_products(of_sums, rows, index), weights[:, part])
        of_points[:, part], of_weights[:, part] = slopes
    return of_value.view(value.shape), of_points, of_weights


def _shapes_for_cpu(value: Tensor, spatial_shapes: Tensor, starts: Tensor) -> Shapes | None:
    """The shapes of the maps if the functions for a CPU can sample them: on a CPU, one after the other."""
    if value.device.type != 'cpu':
        return None
    shapes, position = spatial_shapes.tolist(), 0
    for (height, width), start in zip(shapes, starts.tolist(), strict=True):
        if start != position:
            return None
        position += height * width
    return shapes if position == value.shape[1] else None


def _query_parts(points: Tensor) -> Iterator[slice]:
    """Slices of queries whose corners fit into a temporary, with room for a few of them."""
    queries = points.shape[1]
    corners = points[..., 0].numel() // queries * 4
    at_once = max(1, (LARGEST_TEMPORARY >> 3) // corners)
    return (slice(start, start + at_once) for start in range(0, queries, at_once))


class _Corners(NamedTuple):
    """The four cells around each sample, without synchronizing with a GPU; levels in the dimension before the last."""

    size: Tensor
    """``(levels, 1, 2)`` height and width."""
    cell: Tensor
    """``(B, Q, heads, levels, points, 2)`` upper left one, y and x."""
    fraction: Tensor
    """As ``cell``: the fraction of the second cell along each axis."""
    inside: Tensor
    """``(B, Q, heads, levels, points)``."""

    @classmethod
    def of(cls, points: Tensor, spatial_shapes: Tensor) -> _Corners:
        """Corners of ``points``, x and y in fractions of the maps."""
        size = spatial_shapes[:, None]
        coordinate = points.flip(-1) * size - 0.5
        inside = ((coordinate > -1) & (coordinate < size)).all(-1)
        coordinate = torch.where(inside[..., None], coordinate, 0)
        cell = coordinate.floor()
        return cls(size, cell.int(), coordinate - cell, inside)

    def _neighbors(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Row, column and weights along y and along x of each corner."""
        for down in range(2):
            for right in range(2):
                row, column = self.cell[..., 0] + down, self.cell[..., 1] + right
                along_y = self.fraction[..., 0] if down else 1 - self.fraction[..., 0]
                along_x = self.fraction[..., 1] if right else 1 - self.fraction[..., 1]
                yield row, column, along_y, along_x

    def _valid(self, row: Tensor, column: Tensor) -> Tensor:
        height, width = self.size.unbind(-1)
        return self.inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)

    def rows(self, starts: Tensor, positions: int) -> Tensor:
        """Rows of the flattened values ``(B * Q * heads, levels * points * 4)``."""
        batch, _, heads = self.inside.shape[:3]
        height, width = self.size.int().unbind(-1)
        image = torch.arange(batch, dtype=torch.int32, device=starts.device).view(-1, 1, 1, 1, 1) * positions
        head = torch.arange(heads, dtype=torch.int32, device=starts.device).view(-1, 1, 1)
        first = image + starts.int()[:, None]
        zero = torch.zeros_like(height)
        index = [
            (first + row.clamp(zero, height - 1) * width + column.clamp(zero, width - 1)) * heads + head
            for row, column, _, _ in self._neighbors()
        ]
        return torch.stack(index, -1).flatten(0, 2).flatten(1)

    def factors(self, weights: Tensor) -> Tensor:
        """What each row is multiplied with, shaped as :meth:`rows`."""
        factors = [
            weights * (along_y * along_x) * self._valid(row, column)
            for row, column, along_y, along_x in self._neighbors()
        ]
        return torch.stack(factors, -1).flatten(0, 2).flatten(1)

    def gradients(self, dots: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the points and of ``weights`` from those of :meth:`factors`."""
        dots = dots.view(*weights.shape, 4)
        sample, slope_y, slope_x = 0, 0, 0
        for corner, (row, column, along_y, along_x) in enumerate(self._neighbors()):
            dot = dots[..., corner] * self._valid(row, column)
            sample = sample + dot * along_y * along_x
            slope_y = slope_y + (dot * along_x if corner // 2 else -dot * along_x)
            slope_x = slope_x + (dot * along_y if corner % 2 else -dot * along_y)
        slopes = torch.stack((slope_x, slope_y), -1) * self.size.flip(-1)
        return slopes * weights[..., None], sample


def sample_levels(value: Tensor, level_shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples: mmcv's ``multi_scale_deformable_attn_pytorch`` with less time and memory.

    It is one operator of torch (``mmitpn::sample_levels``), which ``torch.compile`` puts into its graph as it is, with
    static and with dynamic sizes, and which CUDA graphs can capture. Only the inputs are saved for the backward pass.
    A graph that is exported, to run without this package, needs mmcv's function.

    Args:
        value: ``(B, N, heads, C / heads)``, the flattened maps, level by level.
        level_shapes: Height and width of each map.
        points: ``(B, Q, heads, levels, points, 2)``, x and y in fractions of each map; outside of it zeros are read.
        weights: ``(B, Q, heads, levels, points)``.

    Returns:
        ``(B, Q, C)``.
    """
    return _sample_levels(value, points, weights, [size for shape in level_shapes for size in shape])


@torch.library.custom_op(
    'mmitpn::sample_levels',
    mutates_args=(),
    schema='(Tensor value, Tensor points, Tensor weights, SymInt[] sizes) -> Tensor',
)
def _sample_levels(value: Tensor, points: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    """:func:`sample_levels`, with the height and width of one map after the other."""
    if value.device.type != 'cpu':
        return ms_deform_attn_forward(value, *level_tensors(_pairs(sizes), value.device), points, weights, 0)
    if not points.numel() or not value.numel():
        return value.new_zeros(*points.shape[:2], value.shape[2] * value.shape[3])
    return _forward_on_cpu(value, points, weights, _pairs(sizes))


@_sample_levels.register_fake
def _(value: Tensor, points: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    return value.new_empty(*points.shape[:2], value.shape[2] * value.shape[3])


@torch.library.custom_op(
    'mmitpn::sample_levels_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor value, Tensor points, Tensor weights, SymInt[] sizes, bool value_needed, '
    'bool points_needed) -> (Tensor, Tensor, Tensor)',
)
def _sample_levels_backward(
    grad: Tensor,
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: list[int],
    value_needed: bool,
    points_needed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, points and weights; without elements where not needed."""
    inputs = value, points, weights
    if not points.numel() or not value.numel():
        found = tuple(torch.zeros_like(tensor) for tensor in inputs)
    elif value.device.type == 'cpu':
        return _gradients_on_cpu(*inputs, _pairs(sizes), grad, value_needed, points_needed)
    else:
        gradients = operator(_gradients)(value, *level_tensors(_pairs(sizes), value.device), points, weights, grad)
        found = tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, inputs, strict=True))
    needed = value_needed, points_needed, points_needed
    return tuple(each if wanted else each.new_empty(0) for each, wanted in zip(found, needed, strict=True))


@_sample_levels_backward.register_fake
def _(grad, value, points, weights, sizes, value_needed, points_needed):
    needed = value_needed, points_needed, points_needed
    return tuple(
        tensor.new_empty(tensor.shape if wanted else 0)
        for tensor, wanted in zip((value, points, weights), needed, strict=True)
    )


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.sizes = inputs[3]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value_needed, points_needed = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
    gradients = _sample_levels_backward(grad, *ctx.saved_tensors, ctx.sizes, value_needed, points_needed)
    needed = value_needed, points_needed, points_needed
    return *(each if wanted else None for each, wanted in zip(gradients, needed, strict=True)), None


_sample_levels.register_autograd(_backward, setup_context=_save_inputs)


def _pairs(sizes: list[int]) -> Shapes:
    return [list(pair) for pair in zip(sizes[::2], sizes[1::2], strict=True)]


def level_tensors(level_shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor]:
    """Height and width ``(levels, 2)`` and first position ``(levels,)`` of each map.

    The numbers reach the device as arguments of a kernel. A copy from the host would wait for the device, which CUDA
    graphs cannot capture, and a tensor that outlives the call may belong to the memory of such a graph.
    """
    sizes = [size for shape in level_shapes for size in shape]
    positions = [height * width for height, width in level_shapes]
    numbers = [*sizes, 0, *accumulate(positions[:-1])]
    filled = torch.zeros(len(numbers), dtype=torch.int64, device=device)
    torch._foreach_add_(filled.unbind(), numbers)
    return filled[: len(sizes)].view(-1, 2), filled[len(sizes) :]


def _forward_on_cpu(value: Tensor, points: Tensor, weights: Tensor, level_shapes: Shapes) -> Tensor:
    rows = _bordered(value, level_shapes)
    first, factors = _corners(points, weights, level_shapes)
    index = _indices(first, level_shapes, heads=value.shape[2])
    return weighted_sums(rows, index, factors.flatten(1)).view(points.shape[0], points.shape[1], -1)


def _gradients_on_cpu(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    level_shapes: Shapes,
    grad: Tensor,
    value_needed: bool = True,
    points_needed: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, points and weights; without elements where not needed."""
    heads, channels = value.shape[2:]
    grad = grad.reshape(-1, channels)
    first, factors = _corners(points, weights, level_shapes)
    of_value, of_points, of_weights = (value.new_empty(0) for _ in range(3))
    if value_needed:
        of_value = _scattered(grad, first, factors, level_shapes, value.shape)
    if points_needed:
        dots = dot_products(grad, _bordered(value, level_shapes), _indices(first, level_shapes, heads))
        dots = dots.view(-1, points.shape[1], heads, *points.shape[3:5], 4)
        of_points, of_weights = _slopes(dots, points, weights, level_shapes)
    return of_value, of_points, of_weights


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
    """The row of each sample's upper left corner, and the weights of its four corners.

    Returns:
        ``(B * Q * heads, levels * points)`` integers, and ``(B * Q * heads, levels * points, 4)``: upper left, upper
        right, lower left, lower right.
    """
    batch, _, heads = points.shape[:3]
    sizes = _bordered_sizes(level_shapes)
    shapes = torch.tensor(level_shapes, dtype=points.dtype)
    starts = torch.tensor([sum(sizes[:level]) for level in range(len(sizes))], dtype=torch.int32)[:, None]
    left, right, _ = _along(points[..., 0], shapes[:, 1:])
    top, bottom, _ = _along(points[..., 1], shapes[:, :1])

    # 32-bit indices suffice for 2 ** 31 rows; PyTorch sorts and gathers them faster than 64-bit ones.
    position = (top.int() * (shapes[:, 1:] + 2).int()).add_(left.int()).add_(starts)
    image = torch.arange(batch, dtype=torch.int32).view(-1, 1, 1, 1, 1) * sum(sizes)
    first = position.add_(image).mul_(heads).add_(torch.arange(heads, dtype=torch.int32).view(-1, 1, 1))

    lower = weights * bottom
    upper = weights - lower
    upper_right, lower_right = upper * right, lower * right
    factors = torch.stack((upper - upper_right, upper_right, lower - lower_right, lower_right), dim=-1)
    return first.flatten(3).flatten(0, 2), factors.flatten(3, 4).flatten(0, 2)


def _along(fraction: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First of two neighboring cells of the bordered map along one side, fraction of the second, whether it is inside.

    Points outside the map and NaN go to the border, where the sample and its gradients are zero.
    """
    cell = fraction * size + 0.5
    inside = (cell > 0) & (cell < size + 1)
    cell = torch.where(inside, cell, 0)
    first = cell.floor().minimum(size)
    return first, cell - first, inside


def _slopes(dots: Tensor, points: Tensor, weights: Tensor, level_shapes: Shapes) -> tuple[Tensor, Tensor]:
    """Gradients of points and weights, from those of the weights of the four corners ``(..., 4)``."""
    shapes = torch.tensor(level_shapes, dtype=points.dtype)
    _, right, inside_x = _along(points[..., 0], shapes[:, 1:])
    _, bottom, inside_y = _along(points[..., 1], shapes[:, :1])
    upper_left, upper_right, lower_left, lower_right = dots.unbind(-1)
    upper_slope, lower_slope = upper_right - upper_left, lower_right - lower_left
    upper, lower = upper_left + right * upper_slope, lower_left + right * lower_slope
    slope_x = (upper_slope + bottom * (lower_slope - upper_slope)) * inside_x
    slope_y = (lower - upper) * inside_y
    of_points = torch.stack((slope_x * shapes[:, 1:], slope_y * shapes[:, :1]), dim=-1) * weights[..., None]
    return of_points, upper + bottom * (lower - upper)


def _indices(first: Tensor, level_shapes: Shapes, heads: int) -> Tensor:
    """Rows of all four corners ``(B * Q * heads, levels * points * 4)``, from those of the first."""
    widths = torch.tensor([width + 2 for _, width in level_shapes], dtype=torch.int32)
    none = torch.zeros_like(widths)
    steps = torch.stack((none, none + 1, widths, widths + 1), dim=-1)[:, None] * heads
    return (first.unflatten(1, (len(level_shapes), -1, 1)) + steps).flatten(1)


def _scattered(grad: Tensor, first: Tensor, factors: Tensor, level_shapes: Shapes, shape: torch.Size) -> Tensor:
    """Gradient of the maps, ``shape``: each cell sums the rows of ``grad`` that sampled it.

    Sorting by the first corner turns the scattering, which would run in one thread, into sums over rows.
    """
    batch, _, heads, channels = shape
    sizes = _bordered_sizes(level_shapes)
    cells = batch * sum(sizes) * heads
    order = first.flatten().sort()
    bounds = torch.searchsorted(order.values, torch.arange(cells, dtype=torch.int32), out_int32=True)
    looking = (order.indices // first.shape[1]).int()
    factors = factors.flatten(0, 1)[order.indices].t().contiguous()
    corners = [weighted_sums(grad, looking, fraction, bounds).view(batch, -1, heads * channels) for fraction in factors]
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
