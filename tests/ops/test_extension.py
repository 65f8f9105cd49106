"""The table of the names of ``mmcv._ext``."""

import inspect
import subprocess
import sys

import pytest

from mmitpn.ops import extension

# Operator -> names of its arguments in csrc/pytorch/pybind.cpp of mmcv 2.3.6.
ARGUMENTS = {
    'bbox_overlaps': 'bboxes1 bboxes2 ious mode aligned offset',
    'border_align_backward': 'grad_output boxes argmax_idx grad_input pool_size',
    'border_align_forward': 'input boxes output argmax_idx pool_size',
    'box_iou_rotated': 'boxes1 boxes2 ious mode_flag aligned',
    'carafe_backward': (
        'top_grad rfeatures masks rtop_grad rbottom_grad_hs rbottom_grad rmask_grad bottom_grad mask_grad '
        'kernel_size group_size scale_factor'
    ),
    'carafe_forward': 'features masks rfeatures routput rmasks output kernel_size group_size scale_factor',
    'carafe_naive_backward': 'top_grad features masks bottom_grad mask_grad kernel_size group_size scale_factor',
    'carafe_naive_forward': 'features masks output kernel_size group_size scale_factor',
    'deform_conv_backward_input': (
        'input offset gradOutput gradInput gradOffset weight columns kW kH dW dH padW padH dilationW dilationH '
        'group deformable_group im2col_step'
    ),
    'deform_conv_backward_parameters': (
        'input offset gradOutput gradWeight columns ones kW kH dW dH padW padH dilationW dilationH group '
        'deformable_group scale im2col_step'
    ),
    'deform_conv_forward': (
        'input weight offset output columns ones kW kH dW dH padW padH dilationW dilationH group deformable_group '
        'im2col_step'
    ),
    'deform_roi_pool_backward': (
        'grad_output input rois offset grad_input grad_offset pooled_height pooled_width spatial_scale '
        'sampling_ratio gamma'
    ),
    'deform_roi_pool_forward': (
        'input rois offset output pooled_height pooled_width spatial_scale sampling_ratio gamma'
    ),
    'line_nms_forward': 'boxes scores thresh top_k',
    'masked_col2im_forward': 'col mask_h_idx mask_w_idx im height width channels',
    'masked_im2col_forward': 'im mask_h_idx mask_w_idx col kernel_h kernel_w pad_h pad_w',
    'modulated_deform_conv_backward': (
        'input weight bias ones offset mask columns grad_input grad_weight grad_bias grad_offset grad_mask '
        'grad_output kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h dilation_w group deformable_group '
        'with_bias'
    ),
    'modulated_deform_conv_forward': (
        'input weight bias ones offset mask output columns kernel_h kernel_w stride_h stride_w pad_h pad_w '
        'dilation_h dilation_w group deformable_group with_bias'
    ),
    'ms_deform_attn_backward': (
        'value value_spatial_shapes value_level_start_index sampling_locations attention_weights grad_output '
        'grad_value grad_sampling_loc grad_attn_weight im2col_step'
    ),
    'ms_deform_attn_forward': (
        'value value_spatial_shapes value_level_start_index sampling_locations attention_weights im2col_step'
    ),
    'nms': 'boxes scores iou_threshold offset',
    'nms_match': 'dets iou_threshold',
    'nms_rotated': 'dets scores order dets_sorted labels iou_threshold multi_label',
    'prroi_pool_backward': 'grad_output rois grad_input pooled_height pooled_width spatial_scale',
    'prroi_pool_coor_backward': 'output grad_output input rois grad_rois pooled_height pooled_width spatial_scale',
    'prroi_pool_forward': 'input rois output pooled_height pooled_width spatial_scale',
    'psamask_backward': (
        'grad_output grad_input psa_type num_ h_feature w_feature h_mask w_mask half_h_mask half_w_mask'
    ),
    'psamask_forward': 'input output psa_type num_ h_feature w_feature h_mask w_mask half_h_mask half_w_mask',
    'roi_align_backward': (
        'grad_output rois argmax_y argmax_x grad_input aligned_height aligned_width spatial_scale sampling_ratio '
        'pool_mode aligned'
    ),
    'roi_align_forward': (
        'input rois output argmax_y argmax_x aligned_height aligned_width spatial_scale sampling_ratio pool_mode '
        'aligned'
    ),
    'roi_align_rotated_backward': (
        'rois grad_input grad_output pooled_height pooled_width spatial_scale sampling_ratio aligned clockwise'
    ),
    'roi_align_rotated_forward': (
        'input rois output pooled_height pooled_width spatial_scale sampling_ratio aligned clockwise'
    ),
    'roi_pool_backward': 'grad_output rois argmax grad_input pooled_height pooled_width spatial_scale',
    'roi_pool_forward': 'input rois output argmax pooled_height pooled_width spatial_scale',
    'sigmoid_focal_loss_backward': 'input target weight grad_input gamma alpha',
    'sigmoid_focal_loss_forward': 'input target weight output gamma alpha',
    'softmax_focal_loss_backward': 'input target weight buff grad_input gamma alpha',
    'softmax_focal_loss_forward': 'input target weight output gamma alpha',
    'softnms': 'boxes scores dets iou_threshold sigma min_score method offset',
    'sync_bn_backward_data': 'grad_output weight grad_weight grad_bias norm std grad_input',
    'sync_bn_backward_param': 'grad_output norm grad_weight grad_bias',
    'sync_bn_forward_mean': 'input mean',
    'sync_bn_forward_output': (
        'input mean var weight bias running_mean running_var norm std output eps momentum group_size'
    ),
    'sync_bn_forward_var': 'input mean var',
}
# pybind.cpp has the first three names in another order than the function takes them; mmcv passes them by position.
ARGUMENTS['roi_align_rotated_backward'] = ARGUMENTS['roi_align_rotated_backward'].replace(
    'rois grad_input grad_output', 'grad_output rois grad_input'
)


def test_all_names_of_the_extension():
    assert len(extension.__all__) == len(set(extension.__all__)) == 113
    assert all(callable(getattr(extension, name)) for name in extension.__all__)
    assert {name for names in extension.OPERATORS.values() for name in names} == set(ARGUMENTS)


@pytest.mark.parametrize(('module', 'name'), [(m, n) for m, names in extension.OPERATORS.items() for n in names])
def test_operators_take_the_arguments_of_the_compiled_ones(module, name):
    module = pytest.importorskip(f'mmitpn.ops.{module}')
    parameters = inspect.signature(getattr(module, name)).parameters
    assert ' '.join(parameters) == ARGUMENTS[name]


def test_an_operator_that_only_a_compiled_mmcv_has():
    with pytest.raises(NotImplementedError, match=r'operator upfirdn2d.*tools/install\.sh --compiled.*onedl-mmcv==2'):
        extension.upfirdn2d('anything', up=2)
    assert extension.upfirdn2d.__name__ == 'upfirdn2d'


def test_mmengine_reports_that_nothing_is_compiled():
    assert extension.get_compiler_version() == extension.get_compiling_cuda_version()
    assert extension.get_compiler_version() == 'none: PyTorch operators of mmitpn'


def test_importing_the_names_imports_neither_a_framework_nor_an_operator():
    code = (
        'import sys, mmitpn.ops.extension; '
        'print(sorted({"torch", "torchvision", "numpy", "mmcv", "mmengine", "mmitpn.ops.nms"} & set(sys.modules)))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]'


def test_operators_import_no_framework():
    code = (
        'import sys, importlib, mmitpn.ops.extension as e\n'
        'for module in ("boxes", "focal_loss", "nms", "rotated"): importlib.import_module(f"mmitpn.ops.{module}")\n'
        'print(sorted(name for name in sys.modules if name.partition(".")[0] in ("mmcv", "mmengine", "torchvision")))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]'
