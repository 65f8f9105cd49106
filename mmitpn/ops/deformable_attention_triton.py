"""Multi-scale deformable attention (arXiv 2010.04159) in Triton, forward and backward, for GPUs without compiled mmcv.

The operator is defined as in :mod:`mmitpn.ops.deformable_attention`. A program works on some queries of one head: the
coordinates and weights of a sample are read once, the channels of its four cells as contiguous rows, and sums are kept
in fp32 registers, whatever the type of the inputs.

Memory traffic, with ``S = levels * points`` samples of a query and head, ``e`` bytes per element, ``c`` per
coordinate and weight: the forward pass reads ``B * Q * heads * S * (4 * dim * e + 3 * c)`` bytes (four cells, x, y
and weight of each sample) and writes the output once, ``B * Q * heads * dim * e``. The ideal reads every value once,
which is ``B * N * heads * dim * e``: neighboring queries share cells, which is left to the caches. Nothing is kept
for the backward pass but the inputs; ``grid_sample`` writes and reads all samples, ``B * Q * heads * S * dim``
values, in between. The backward pass reads the same and the output's gradient, writes the gradients of coordinates
and weights once, and adds to the gradient of the values atomically, in fp32, four rows per sample. Not run on a GPU
here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

QUERIES = 16  # of one program


@triton.jit
def _sample_kernel(
    value,
    shapes,
    starts,
    points,
    weights,
    out,
    positions,
    queries,
    heads,
    dim,
    levels: tl.constexpr,
    samples: tl.constexpr,
    block_q: tl.constexpr,
    block_d: tl.constexpr,
):
    """Write the output of ``block_q`` queries of one image and head."""
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    query = tl.program_id(0) * block_q + tl.arange(0, block_q)
    channel = tl.arange(0, block_d)
    is_query, is_channel = query < queries, channel < dim
    row = (image.to(tl.int64) * queries + query) * heads + head
    values = value + (image.to(tl.int64) * positions * heads + head) * dim
    total = tl.zeros((block_q, block_d), tl.float32)
    for level in range(levels):
        height, width = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
        start = tl.load(starts + level)
        for sample in range(samples):
            index = (row * levels + level) * samples + sample
            x = tl.load(points + 2 * index, mask=is_query, other=0).to(tl.float32) * width - 0.5
            y = tl.load(points + 2 * index + 1, mask=is_query, other=0).to(tl.float32) * height - 0.5
            weight = tl.load(weights + index, mask=is_query, other=0).to(tl.float32)
            inside = is_query & (x > -1) & (y > -1) & (x < width) & (y < height)
            left, top = tl.floor(tl.where(inside, x, 0)), tl.floor(tl.where(inside, y, 0))
            along_x, along_y = tl.where(inside, x, 0) - left, tl.where(inside, y, 0) - top
            for corner in tl.static_range(4):
                column = left.to(tl.int64) + corner % 2
                line = top.to(tl.int64) + corner // 2
                valid = inside & (column >= 0) & (column < width) & (line >= 0) & (line < height)
                cell = start + line * width + column
                mask = valid[:, None] & is_channel[None, :]
                read = tl.load(values + cell[:, None] * heads * dim + channel[None, :], mask=mask, other=0)
                factor = (along_x if corner % 2 else 1 - along_x) * (along_y if corner // 2 else 1 - along_y)
                total += read.to(tl.float32) * (factor * weight)[:, None]
    mask = is_query[:, None] & is_channel[None, :]
    tl.store(out + row[:, None] * dim + channel[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_kernel(
    value,
    shapes,
    starts,
    points,
    weights,
    grad,
    of_value,
    of_points,
    of_weights,
    positions,
    queries,
    heads,
    dim,
    levels: tl.constexpr,
    samples: tl.constexpr,
    block_q: tl.constexpr,
    block_d: tl.constexpr,
):
    """Write the gradients of points and weights, and add to that of the values."""
    image, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    query = tl.program_id(0) * block_q + tl.arange(0, block_q)
    channel = tl.arange(0, block_d)
    is_query, is_channel = query < queries, channel < dim
    row = (image.to(tl.int64) * queries + query) * heads + head
    first = (image.to(tl.int64) * positions * heads + head) * dim
    mask = is_query[:, None] & is_channel[None, :]
    given = tl.load(grad + row[:, None] * dim + channel[None, :], mask=mask, other=0).to(tl.float32)
    for level in range(levels):
        height, width = tl.load(shapes + 2 * level), tl.load(shapes + 2 * level + 1)
        start = tl.load(starts + level)
        for sample in range(samples):
            index = (row * levels + level) * samples + sample
            x = tl.load(points + 2 * index, mask=is_query, other=0).to(tl.float32) * width - 0.5
            y = tl.load(points + 2 * index + 1, mask=is_query, other=0).to(tl.float32) * height - 0.5
            weight = tl.load(weights + index, mask=is_query, other=0).to(tl.float32)
            inside = is_query & (x > -1) & (y > -1) & (x < width) & (y < height)
            left, top = tl.floor(tl.where(inside, x, 0)), tl.floor(tl.where(inside, y, 0))
            along_x, along_y = tl.where(inside, x, 0) - left, tl.where(inside, y, 0) - top
            of_weight = tl.zeros((block_q,), tl.float32)
            slope_x = tl.zeros((block_q,), tl.float32)
            slope_y = tl.zeros((block_q,), tl.float32)
            for corner in tl.static_range(4):
                column = left.to(tl.int64) + corner % 2
                line = top.to(tl.int64) + corner // 2
                valid = inside & (column >= 0) & (column < width) & (line >= 0) & (line < height)
                cell = start + line * width + column
                mask = valid[:, None] & is_channel[None, :]
                place = first + cell[:, None] * heads * dim + channel[None, :]
                read = tl.load(value + place, mask=mask, other=0).to(tl.float32)
                dot = tl.sum(read * given, axis=1)
                factor_x = along_x if corner % 2 else 1 - along_x
                factor_y = along_y if corner // 2 else 1 - along_y
                of_weight += dot * factor_x * factor_y
                slope_x += dot * factor_y if corner % 2 else -dot * factor_y
                slope_y += dot * factor_x if corner // 2 else -dot * factor_x
                tl.atomic_add(of_value + place, given * (factor_x * factor_y * weight)[:, None], mask=mask)
            tl.store(of_weights + index, of_weight.to(of_weights.dtype.element_ty), mask=is_query)
            tl.store(of_points + 2 * index, (slope_x * weight * width).to(of_points.dtype.element_ty), mask=is_query)
            tl.store(
                of_points + 2 * index + 1, (slope_y * weight * height).to(of_points.dtype.element_ty), mask=is_query
            )


def _check(value: Tensor) -> None:
    if value.shape[3] % 8 or not value.shape[3]:
        raise ValueError(
            f'a head of deformable attention has {value.shape[3]} channels; the Triton kernel takes multiples of 8: '
            'choose embed_dims and num_heads so, or use the PyTorch operator'
        )


def sample(value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, without a wait for the GPU.

    Args:
        value: ``(B, N, heads, dim)``, the flattened maps, level by level; fp32, bf16 or fp16, ``dim`` a multiple of 8.
        shapes: ``(levels, 2)`` height and width of each map, integers.
        starts: ``(levels,)`` first position of each map in ``value``.
        points: ``(B, Q, heads, levels, points, 2)``, x and y in fractions of each map; outside of it are zeros.
        weights: ``(B, Q, heads, levels, points)``.

    Returns:
        ``(B, Q, heads * dim)``, of ``value``'s type.

    Raises:
        ValueError: If ``dim`` is not a multiple of 8.
    """
    _check(value)
    value, points, weights = value.contiguous(), points.contiguous(), weights.contiguous()
    out = value.new_zeros(*weights.shape[:3], value.shape[3])
    if weights.numel() and value.numel():
        _launch(_sample_kernel, value, shapes, starts, points, weights, out)
    return out.flatten(2)


def gradients(
    value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`sample`.

    Args:
        value: As there, like the next four.
        shapes: As there.
        starts: As there.
        points: As there.
        weights: As there.
        grad: Gradient of the result, ``(B, Q, heads * dim)``.

    Returns:
        Those of ``value``, in fp32, of ``points`` and of ``weights``.

    Raises:
        ValueError: If ``dim`` is not a multiple of 8.
    """
    _check(value)
    value, points, weights, grad = (tensor.contiguous() for tensor in (value, points, weights, grad))
    of_value = torch.zeros_like(value, dtype=torch.float32)
    of_points, of_weights = torch.zeros_like(points), torch.zeros_like(weights)
    if weights.numel() and value.numel():
        _launch(_gradient_kernel, value, shapes, starts, points, weights, grad, of_value, of_points, of_weights)
    return of_value, of_points, of_weights


def _launch(kernel: object, value: Tensor, shapes: Tensor, starts: Tensor, *tensors: Tensor) -> None:
    _, positions, heads, dim = value.shape
    batch, queries, _, levels, samples = tensors[1].shape
    grid = (triton.cdiv(queries, QUERIES), batch * heads)
    sizes = (positions, queries, heads, dim, levels, samples, QUERIES, triton.next_power_of_2(dim))
    kernel[grid](value, shapes.contiguous(), starts.contiguous(), *tensors, *sizes)


class TritonSample(torch.autograd.Function):
    """:func:`sample` with gradients."""

    @staticmethod
    def forward(ctx, value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """See :func:`sample`."""
        ctx.save_for_backward(value, shapes, starts, points, weights)
        return sample(value, shapes, starts, points, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See :func:`gradients`."""
        of_value, of_points, of_weights = gradients(*ctx.saved_tensors, grad)
        return of_value.to(ctx.saved_tensors[0].dtype), None, None, of_points, of_weights
