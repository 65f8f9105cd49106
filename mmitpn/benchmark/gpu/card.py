"""What the card reaches: matrix products, fused attention, and deformable attention by each of its paths."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmitpn.benchmark.gpu.report import Row, RowSkippedError
from mmitpn.benchmark.speed import MatmulPeak, latency

ATTENTION = {
    'flash': SDPBackend.FLASH_ATTENTION,
    'cuDNN': SDPBackend.CUDNN_ATTENTION,
    'efficient': SDPBackend.EFFICIENT_ATTENTION,
}
# Of deformable attention: mmcv's kernels, this project's operator with its Triton kernels and in PyTorch, and
# mmcv's function around grid_sample.
PATHS = ('compiled mmcv', 'triton', 'pytorch', 'grid_sample')


def gemm_peak(device: torch.device, dtype: torch.dtype, *, sides: tuple[int, ...] | None = None) -> Row:
    """The largest rate of square matrix products, which MFU is relative to.

    Args:
        device: The device.
        dtype: Of the matrices.
        sides: Of the matrices; None: :class:`MatmulPeak`'s own.
    """
    peak = MatmulPeak(device, dtype, sides)
    for _ in range(3):
        peak.measure(0.4)
    return {'TFLOP/s': 2e-12 * peak.macs_per_second}


def attention_peak(device: torch.device, tokens: int, backend: str) -> Row:
    """``scaled_dot_product_attention`` of 8 images with 8 heads of 64 channels, in bf16.

    Args:
        device: The device.
        tokens: Number of queries and of keys.
        backend: ``'flash'``, ``'cuDNN'``, ``'efficient'``, or ``'as torch chooses'``.
    """
    q, k, v = (torch.randn(8, 8, tokens, 64, device=device, dtype=torch.bfloat16) for _ in range(3))
    with sdpa_kernel(ATTENTION[backend]) if backend in ATTENTION else nullcontext():
        try:
            nn.functional.scaled_dot_product_attention(q, k, v)
        except RuntimeError as error:
            raise RowSkippedError(f'torch has no such kernel here: {str(error).splitlines()[0]}') from error
        row = latency(lambda: nn.functional.scaled_dot_product_attention(q, k, v), device, seconds=0.5)
    return {'TFLOP/s': 4 * 8 * 8 * tokens**2 * 64 / row['ms'] * 1e-9, **row}


def deformable_attention(device: torch.device, queries: int | None, path: str, dtype: torch.dtype) -> Row:
    """Sampling of deformable attention, forward and with its backward pass: two images of 800x1333, 8 heads.

    Args:
        device: The device; on a CPU the maps are small.
        queries: Number of queries per image; None: one for each position of the maps, as in the encoder.
        path: One of ``PATHS``.
        dtype: Of the maps.
    """
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    from mmitpn.ops import deformable_attention as ours
    from mmitpn.ops.install import status

    shapes = [(100, 167), (50, 84), (25, 42), (13, 21)] if device.type == 'cuda' else [(10, 17), (5, 9)]
    positions = sum(h * w for h, w in shapes)
    count = queries or positions
    value = torch.randn(2, positions, 8, 32, device=device).to(dtype).requires_grad_()
    points = torch.rand(2, count, 8, len(shapes), 4, 2, device=device).requires_grad_()
    weights = torch.rand(2, count, 8, len(shapes), 4, device=device).requires_grad_()
    call = partial(ours.sample_levels, value, shapes, points, weights)
    if path == 'triton' and ours.triton_kernels(value) is None:
        raise RowSkippedError('no Triton kernels on this device')
    if path == 'compiled mmcv':
        if status().kind != 'compiled':
            raise RowSkippedError(f'mmcv has no compiled operators ({status().kind})')
        levels = ours.level_tensors(shapes, device)
        call = partial(MultiScaleDeformableAttnFunction.apply, value, *levels, points, weights, 64)
    elif path == 'grid_sample':
        call = partial(multi_scale_deformable_attn_pytorch, value, shapes, points.to(dtype), weights.to(dtype))
    with patch.object(ours, 'triton_kernels', lambda _: None) if path == 'pytorch' else nullcontext():
        forward = latency(torch.no_grad()(call), device, seconds=0.5)
        gradient = torch.randn_like(call())
        both = latency(lambda: torch.autograd.grad(call(), (value, points, weights), gradient), device, seconds=0.5)
    return {'forward ms': forward['ms'], 'step ms': both['ms'], 'peak_GB': both.get('peak_GB', 0.0)}
