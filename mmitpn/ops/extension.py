"""All names of ``mmcv._ext`` of mmcv 2.3.6, which include those of mmcv 2.1.0.

The module that defines an operator is imported at the first call of the operator. An operator that exists only in a
compiled mmcv raises NotImplementedError when called: mmcv looks up all names when it is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .install import COMPILED

# Module of this folder -> operators it defines, by their names in mmcv._ext.
OPERATORS = {
    'border_align': ('border_align_backward', 'border_align_forward'),
    'boxes': ('bbox_overlaps',),
    'carafe': ('carafe_backward', 'carafe_forward', 'carafe_naive_backward', 'carafe_naive_forward'),
    'deform_conv': (
        'deform_conv_backward_input',
        'deform_conv_backward_parameters',
        'deform_conv_forward',
        'modulated_deform_conv_backward',
        'modulated_deform_conv_forward',
    ),
    'deformable_attention': ('ms_deform_attn_backward', 'ms_deform_attn_forward'),
    'focal_loss': (
        'sigmoid_focal_loss_backward',
        'sigmoid_focal_loss_forward',
        'softmax_focal_loss_backward',
        'softmax_focal_loss_forward',
    ),
    'masked_conv': ('masked_col2im_forward', 'masked_im2col_forward'),
    'nms': ('line_nms_forward', 'nms', 'nms_match', 'softnms'),
    'prroi_pool': ('prroi_pool_backward', 'prroi_pool_coor_backward', 'prroi_pool_forward'),
    'psamask': ('psamask_backward', 'psamask_forward'),
    'roi': (
        'deform_roi_pool_backward',
        'deform_roi_pool_forward',
        'roi_align_backward',
        'roi_align_forward',
        'roi_pool_backward',
        'roi_pool_forward',
    ),
    'rotated': ('box_iou_rotated', 'nms_rotated', 'roi_align_rotated_backward', 'roi_align_rotated_forward'),
    'sync_bn': (
        'sync_bn_backward_data',
        'sync_bn_backward_param',
        'sync_bn_forward_mean',
        'sync_bn_forward_output',
        'sync_bn_forward_var',
    ),
}
# Only in a compiled mmcv: operators for 3D detection, image generation and text, and rarer ones for rotated boxes.
COMPILED_ONLY = (
    'active_rotated_filter_backward',
    'active_rotated_filter_forward',
    'assign_score_withk_backward',
    'assign_score_withk_forward',
    'ball_query_forward',
    'bezier_align_backward',
    'bezier_align_forward',
    'bias_act',
    'box_iou_quadri',
    'chamfer_distance_backward',
    'chamfer_distance_forward',
    'contour_expand',
    'convex_giou',
    'convex_iou',
    'correlation_backward',
    'correlation_forward',
    'diff_iou_rotated_sort_vertices_forward',
    'dynamic_point_to_voxel_backward',
    'dynamic_point_to_voxel_forward',
    'dynamic_voxelize_forward',
    'filtered_lrelu',
    'filtered_lrelu_act_',
    'furthest_point_sampling_forward',
    'furthest_point_sampling_with_dist_forward',
    'fused_bias_leakyrelu',
    'fused_indice_conv_forward',
    'gather_points_backward',
    'gather_points_forward',
    'get_indice_pairs_2d_backward',
    'get_indice_pairs_2d_forward',
    'get_indice_pairs_3d_backward',
    'get_indice_pairs_3d_forward',
    'get_indice_pairs_4d_forward',
    'group_points_backward',
    'group_points_forward',
    'hard_voxelize_forward',
    'indice_conv_backward',
    'indice_conv_forward',
    'indice_maxpool_backward',
    'indice_maxpool_forward',
    'iou3d_boxes_overlap_bev_forward',
    'iou3d_nms3d_forward',
    'iou3d_nms3d_normal_forward',
    'knn_forward',
    'min_area_polygons',
    'nms_quadri',
    'pixel_group',
    'points_in_boxes_all_forward',
    'points_in_boxes_cpu_forward',
    'points_in_boxes_part_forward',
    'points_in_polygons_forward',
    'riroi_align_rotated_backward',
    'riroi_align_rotated_forward',
    'roiaware_pool3d_backward',
    'roiaware_pool3d_forward',
    'roipoint_pool3d_forward',
    'rotated_feature_align_backward',
    'rotated_feature_align_forward',
    'stack_ball_query_forward',
    'stack_group_points_backward',
    'stack_group_points_forward',
    'three_interpolate_backward',
    'three_interpolate_forward',
    'three_nn_forward',
    'tin_shift_backward',
    'tin_shift_forward',
    'upfirdn2d',
)


def get_compiler_version() -> str:
    """The compiler of mmcv's operators, as ``mmengine.utils.dl_utils.collect_env`` reports it."""
    return 'none: PyTorch operators of mmitpn'


def get_compiling_cuda_version() -> str:
    """The CUDA version of mmcv's operators, as ``mmengine.utils.dl_utils.collect_env`` reports it."""
    return 'none: PyTorch operators of mmitpn'


def _operator(module: str, name: str) -> Callable[..., Any]:
    """The operator ``name`` of a module of this folder, which is imported at the first call."""

    @functools.cache
    def find() -> Callable[..., Any]:
        return getattr(import_module(f'.{module}', __package__), name)

    def call(*args: Any, **kwargs: Any) -> Any:
        return find()(*args, **kwargs)

    call.__doc__ = f'See :func:`mmitpn.ops.{module}.{name}`.'
    return _named(call, name)


def _compiled_only(name: str) -> Callable[..., Any]:
    """Placeholder for an operator that only a compiled mmcv has; raises when called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"mmitpn has no PyTorch version of mmcv's operator {name}; {COMPILED}")

    call.__doc__ = f'Raises NotImplementedError: {name} needs a compiled mmcv.'
    return _named(call, name)


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    function.__name__ = function.__qualname__ = name
    return function


globals().update({name: _operator(module, name) for module, names in OPERATORS.items() for name in names})
globals().update({name: _compiled_only(name) for name in COMPILED_ONLY})

__all__ = ['get_compiler_version', 'get_compiling_cuda_version']
__all__ += [name for names in OPERATORS.values() for name in names]
__all__ += list(COMPILED_ONLY)
