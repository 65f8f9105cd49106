"""Multi-scale deformable attention that samples in fp32 and runs with and without compiled operators."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention as MMCVAttention
from mmcv.ops import get_compiling_cuda_version
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
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


def sample_by_grid(value: Tensor, level_shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    """Weighted bilinear samples by ``grid_sample``, for graphs that are exported; zeros outside of the maps.

    Args:
        value: ``(B, N, heads, C / heads)``, the flattened maps, level by level.
        level_shapes: Height and width of the maps.
        points: ``(B, Q, heads, levels, points, 2)``, x and y in fractions of each map.
        weights: ``(B, Q, heads, levels, points)``.

    Returns:
        ``(B, Q, C)``.
    """
    heads, channels = value.shape[2:]
    grids = (2 * points - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # levels, B * heads, Q, points, 2
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]  # levels, B * heads, 1, Q, points
    maps = value.flatten(2).split([height * width for height, width in level_shapes], 1)
    total: Any = 0
    for level, grid, weight, (height, width) in zip(maps, grids, weights, level_shapes, strict=True):
        level = level.transpose(1, 2).reshape(-1, channels, height, width)
        samples = F.grid_sample(level, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
        total = total + (samples * weight).sum(-1)  # B * heads, C / heads, Q
    return total.view(value.shape[0], heads * channels, -1).transpose(1, 2)


def sample_by_gather(value: Tensor, level_shapes: Shapes, points: Tensor, weights: Tensor) -> Tensor:
    """:func:`sample_by_grid` with ``gather`` alone, for runtimes whose GridSample is missing or wrong.

    LightlyTrain found a version of TensorRT that compiles GridSample to other results without an error
    (lightly-ai/lightly-train, pull request 917).
    """
    heads, channels = value.shape[2:]
    batch, queries = points.shape[:2]
    rows = value.transpose(1, 2)  # B, heads, N, C / heads
    total: Any = 0
    first = 0
    for level, (height, width) in enumerate(level_shapes):
        at = points[:, :, :, level].transpose(1, 2)  # B, heads, Q, points, 2
        x, y = at[..., 0] * width - 0.5, at[..., 1] * height - 0.5
        left, top = x.floor(), y.floor()
        share_x, share_y = x - left, y - top
        weight = weights[:, :, :, level].transpose(1, 2)
        for column, of_column in ((left, 1 - share_x), (left + 1, share_x)):
            for row, of_row in ((top, 1 - share_y), (top + 1, share_y)):
                inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
                factor = weight * of_column * of_row * inside
                index = first + torch.where(inside, row * width + column, 0.0).long()
                index = index.flatten(2)[..., None].expand(-1, -1, -1, channels)
                samples = rows.gather(2, index).view(batch, heads, queries, -1, channels)
                total = total + (samples * factor[..., None]).sum(3)  # B, heads, Q, C / heads
        first = first + height * width
    return total.transpose(1, 2).flatten(2)


@MODELS.register_module()
class MultiScaleDeformableAttention(MMCVAttention):
    """Deformable attention of Deformable DETR (arXiv 2010.04159), with mmcv's arguments and parameter names.

    Differences from mmcv's: sampling points and samples are fp32 under autocast; no synchronization with the GPU;
    without mmcv's CUDA operators, a GPU samples with PyTorch; a CPU needs less time and memory.

    Attributes:
        export_sampling: How a graph that is exported samples: ``'native'``, by ``grid_sample``, or ``'gather'``.
    """

    export_sampling = 'native'

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
            sample = sample_by_gather if self.export_sampling == 'gather' else sample_by_grid
            return sample(value, level_shapes, points, weights)
        if value.is_cuda and compiled_for_cuda() and not torch.compiler.is_compiling():
            if spatial_shapes is None:
                spatial_shapes, level_start_index = level_tensors(level_shapes, value.device)
            return MultiScaleDeformableAttnFunction.apply(
                value, spatial_shapes, level_start_index, points, weights, self.im2col_step
            )
        return sample_levels(value, level_shapes, points, weights)
