"""Multi-scale deformable attention (arXiv 2010.04159) in Triton, forward and backward, for GPUs without compiled mmcv.

The operator is defined as in :mod:`mmitpn.ops.deformable_attention`. A program works on some queries of one head: the
coordinates and weights of a sample are read once, the channels of its four cells as contiguous rows, and sums are kept
in fp32 registers for inputs of any type.

Memory traffic in bytes, with ``V = B * N * heads * dim`` elements of ``value``, ``O = B * Q * heads * dim`` of the
output, ``S = B * Q * heads * levels * points`` samples, ``e`` bytes per element of ``value`` and ``c`` per coordinate
and weight. The ideal reads each input and writes each output once:

========  ==========================  ================================================================================
pass      ideal                       here
========  ==========================  ================================================================================
forward   ``e V + 3 c S + e O``       ``4 e dim S + 3 c S + e O``
backward  ``2 e V + 6 c S + e O``     ``4 e dim S + 16 dim S + 6 c S + e O + 4 V``; ``(4 + e) V`` more unless fp32
========  ==========================  ================================================================================

``4 e dim S`` are the four cells of each sample, at most: those outside the maps are not read. It is ``4 Q levels
points / N`` times ``e V``, 64 times in an encoder of 4 levels and 4 points; neighboring queries read the same cells,
which the caches exploit. The backward pass fills the gradient of the values with zeros (``4 V``), adds four fp32
rows per sample to it (``16 dim S``, atomically), and casts it to the type of ``value`` unless that is fp32.
Only the inputs are saved for it; ``grid_sample`` writes ``e dim S`` of samples and reads them again in each pass.

The order of the atomic additions differs from run to run, and with it the last bits of the gradient of the values, as
with mmcv's operator. Compiled for GPUs and run in Triton's interpreter here, not run on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    blocks = tl.cdiv(queries, block_q)
    pair = tl.program_id(0) // blocks
    image, head = pair // heads, pair % heads
    query = tl.program_id(0) % blocks * block_q + tl.arange(0, block_q)
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
    blocks = tl.cdiv(queries, block_q)
    pair = tl.program_id(0) // blocks
    image, head = pair // heads, pair % heads
    query = tl.program_id(0) % blocks * block_q + tl.arange(0, block_q)
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
                offset = first + cell[:, None] * heads * dim + channel[None, :]
                read = tl.load(value + offset, mask=mask, other=0).to(tl.float32)
                dot = tl.sum(read * given, axis=1)
                factor_x = along_x if corner % 2 else 1 - along_x
                factor_y = along_y if corner // 2 else 1 - along_y
                of_weight += dot * factor_x * factor_y
                slope_x += dot * factor_y if corner % 2 else -dot * factor_y
                slope_y += dot * factor_x if corner // 2 else -dot * factor_x
                added = given * (factor_x * factor_y * weight)[:, None]
                tl.atomic_add(of_value + offset, added, mask=mask, sem='relaxed')
            tl.store(of_weights + index, of_weight.to(of_weights.dtype.element_ty), mask=is_query)
            tl.store(of_points + 2 * index, (slope_x * weight * width).to(of_points.dtype.element_ty), mask=is_query)
            tl.store(
                of_points + 2 * index + 1, (slope_y * weight * height).to(of_points.dtype.element_ty), mask=is_query
            )


def _check(value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor) -> None:
    """Refuse inputs that the kernels would read out of bounds, or compute in reduced precision."""
    if value.dtype not in DTYPES:
        raise TypeError(
            f'the values of deformable attention are {value.dtype}; the Triton kernel takes fp32, bf16 and fp16: '
            'cast them, or use the PyTorch operator'
        )
    if value.shape[3] % 8 or not value.shape[3]:
        raise ValueError(
            f'a head of deformable attention has {value.shape[3]} channels; the Triton kernel takes multiples of 8: '
            'choose embed_dims and num_heads accordingly, or use the PyTorch operator'
        )
    batch, _, heads, _ = value.shape
    levels, sizes = len(shapes), tuple(weights.shape)
    allowed = len(sizes) == 5 and sizes[0] == batch and sizes[2:4] == (heads, levels)
    if not allowed or points.shape != (*sizes, 2) or shapes.shape != (levels, 2) or starts.shape != (levels,):
        raise ValueError(
            f'deformable attention of value {tuple(value.shape)}, spatial shapes {tuple(shapes.shape)} and level '
            f'starts {tuple(starts.shape)} got points {tuple(points.shape)} and weights {sizes}; allowed: weights '
            f'({batch}, Q, {heads}, {levels}, points), points the same with 2 coordinates, spatial shapes (levels, 2) '
            'and level starts (levels,): pass tensors of the same images, heads and levels'
        )


def sample(value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples, without synchronizing with the GPU.

    Args:
        value: ``(B, N, heads, dim)``, the flattened maps, level by level; fp32, bf16 or fp16, ``dim`` a multiple of 8.
        shapes: ``(levels, 2)`` height and width of each map, integers.
        starts: ``(levels,)`` first position of each map in ``value``; the maps must lie within ``N``, which is not
            checked.
        points: ``(B, Q, heads, levels, points, 2)``, x and y in fractions of each map; outside of it zeros are read.
        weights: ``(B, Q, heads, levels, points)``.

    Returns:
        ``(B, Q, heads * dim)``, of ``value``'s type.

    Raises:
        TypeError: If ``value`` is neither fp32, bf16 nor fp16.
        ValueError: If ``dim`` is not a multiple of 8, or the shapes do not fit each other.
    """
    _check(value, shapes, starts, points, weights)
    value, points, weights = value.contiguous(), points.contiguous(), weights.contiguous()
    size = (*weights.shape[:3], value.shape[3])
    if not weights.numel() or not value.numel():
        return value.new_zeros(size).flatten(2)
    out = value.new_empty(size)
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
        TypeError: If ``value`` is neither fp32, bf16 nor fp16.
        ValueError: If ``dim`` is not a multiple of 8, or the shapes do not fit each other.
    """
    _check(value, shapes, starts, points, weights)
    if grad.shape != (*weights.shape[:2], value.shape[2] * value.shape[3]):
        raise ValueError(
            f'the gradient of deformable attention is {tuple(grad.shape)}; allowed: '
            f'{(*weights.shape[:2], value.shape[2] * value.shape[3])}, the shape of its output: pass the gradient of '
            'the output'
        )
    value, points, weights, grad = (tensor.contiguous() for tensor in (value, points, weights, grad))
    of_value = torch.zeros_like(value, dtype=torch.float32)
    if not weights.numel() or not value.numel():
        return of_value, torch.zeros_like(points), torch.zeros_like(weights)
    of_points, of_weights = torch.empty_like(points), torch.empty_like(weights)
    _launch(_gradient_kernel, value, shapes, starts, points, weights, grad, of_value, of_points, of_weights)
    return of_value, of_points, of_weights


def _blocks(dim: int) -> tuple[int, int]:
    """Queries and channels of one program: 512 elements, in registers, or one query of a wide head."""
    block_d = triton.next_power_of_2(dim)
    return max(1, min(16, 512 // block_d)), block_d


def _launch(kernel: object, value: Tensor, shapes: Tensor, starts: Tensor, *tensors: Tensor) -> None:
    _, positions, heads, dim = value.shape
    batch, queries, _, levels, samples = tensors[1].shape
    block_q, block_d = _blocks(dim)
    # One dimension, as CUDA takes 65535 programs at most in the others; queries of a head run next to each other.
    grid = (triton.cdiv(queries, block_q) * batch * heads,)
    with torch.cuda.device_of(value):  # Triton launches on the current device, which may be another one
        kernel[grid](
            value,
            shapes.contiguous(),
            starts.contiguous(),
            *tensors,
            positions,
            queries,
            heads,
            dim,
            levels,
            samples,
            block_q,
            block_d,
        )


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
