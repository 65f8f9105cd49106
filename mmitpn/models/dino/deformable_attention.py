"""Multi-scale deformable attention that samples in fp32 and runs with and without compiled operators."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention as MMCVAttention
from mmcv.ops import get_compiling_cuda_version
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from torch import Tensor

from mmitpn.ops.deformable_attention import level_tensors, sample_levels
from mmitpn.registry import MODELS

from .levels import Shapes, level_sizes


def autocast_disabled(x: Tensor) -> AbstractContextManager:
    """Switch autocast off on the device of ``x``. Nothing is cast: half-precision inputs need ``.float()``."""
    return torch.autocast(device_type=x.device.type, enabled=False)


@cache
def compiled_for_cuda() -> bool:
    """Whether mmcv was built with its CUDA operators."""
    return get_compiling_cuda_version()[:1].isdigit()  # else 'not available', or the operators of mmitpn.ops


def sampling_points(reference_points: Tensor, offsets: Tensor, level_shapes: Shapes) -> Tensor:
    """Sampling locations of each query, in fractions of each level's map.

    Args:
        reference_points: ``(B, Q, levels, 2)`` points (x, y), or ``(B, Q, levels, 4)`` boxes (cx, cy, w, h).
        offsets: ``(B, Q, heads, levels, points, 2)``: in cells of the map for points, in fractions of half the box,
            divided by ``points``, for boxes.
        level_shapes: Height and width of the maps.

    Returns:
        ``(B, Q, heads, levels, points, 2)``, x and y.

    Raises:
        ValueError: If the reference points have neither 2 nor 4 coordinates.
    """
    centers = reference_points[:, :, None, :, None, :2]
    if reference_points.shape[-1] == 2:
        return centers + offsets / level_sizes(level_shapes, offsets.device)[:, None]
    if reference_points.shape[-1] == 4:
        return centers + offsets / offsets.shape[-2] * reference_points[:, :, None, :, None, 2:] * 0.5
    raise ValueError(
        f'reference points have {reference_points.shape[-1]} coordinates; allowed: 2 (points) or 4 (boxes)'
    )


@MODELS.register_module()
class MultiScaleDeformableAttention(MMCVAttention):
    """Deformable attention of Deformable DETR (arXiv 2010.04159), with mmcv's arguments and parameter names.

    Differences from mmcv's: sampling points and samples are fp32 under autocast; no synchronization with the GPU;
    without mmcv's CUDA operators, a GPU samples with PyTorch; a CPU needs less time and memory.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,  # noqa: ARG002 (mmdet's layers pass it)
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        *,
        level_shapes: Shapes | None = None,
        **_: Any,
    ) -> Tensor:
        """Sample ``value`` at the points that ``query`` predicts, and add the result to ``identity``.

        Args:
            query: ``(B, Q, C)``, or ``(Q, B, C)`` unless ``batch_first``; the same holds for the other tensors.
            key: Not used.
            value: ``(B, N, C)``, the flattened maps, level by level; default: ``query``.
            identity: What the result is added to; default: ``query``.
            query_pos: Added to ``query`` first.
            key_padding_mask: ``(B, N)``, True where ``value`` is padding.
            reference_points: ``(B, Q, levels, 2)`` or ``(B, Q, levels, 4)``, in fractions of the padded image.
            spatial_shapes: ``(levels, 2)`` height and width of the maps.
            level_start_index: ``(levels,)`` first position of each level in ``value``.
            level_shapes: ``spatial_shapes`` as Python numbers, which avoids a synchronization with the GPU: the tensors
                are not needed then.
            **_: Further arguments that mmdet's layers pass to all their attention modules.

        Returns:
            The shape of ``query``.

        Raises:
            ValueError: If ``value`` and the maps differ in their number of positions.
        """
        value = query if value is None else value
        identity = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)

        if level_shapes is None:
            level_shapes = tuple(map(tuple, spatial_shapes.tolist()))
        positions = sum(height * width for height, width in level_shapes)
        if positions != value.shape[1]:
            raise ValueError(f'the maps {level_shapes} have {positions} positions, but value has {value.shape[1]}')

        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        grid = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*grid, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))
        with autocast_disabled(query):
            output = self._sample(
                value.float().unflatten(-1, (self.num_heads, -1)),
                sampling_points(reference_points.float(), offsets.float(), level_shapes),
                weights.float().softmax(-1).unflatten(-1, grid[1:]),
                spatial_shapes,
                level_start_index,
                level_shapes,
            )
        output = self.output_proj(output)
        if not self.batch_first:
            output = output.transpose(0, 1)
        return self.dropout(output) + identity

    def _sample(
        self,
        value: Tensor,
        points: Tensor,
        weights: Tensor,
        spatial_shapes: Tensor | None,
        level_start_index: Tensor | None,
        level_shapes: Shapes,
    ) -> Tensor:
        """Weighted samples ``(B, Q, C)`` of ``value`` ``(B, N, heads, C / heads)``."""
        if torch.compiler.is_exporting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            return multi_scale_deformable_attn_pytorch(value, level_shapes, points, weights)
        if value.is_cuda and compiled_for_cuda() and not torch.compiler.is_compiling():
            if spatial_shapes is None:
                spatial_shapes, level_start_index = level_tensors(level_shapes, value.device)
            return MultiScaleDeformableAttnFunction.apply(
                value, spatial_shapes, level_start_index, points, weights, self.im2col_step
            )
        return sample_levels(value, level_shapes, points, weights)
