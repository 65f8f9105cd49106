"""Operators that sample maps: stored outputs of compiled mmcv, kernels' definitions in float64, finite differences."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function

from mmitpn.ops import deform_conv, psamask, roi
from mmitpn.ops.carafe import carafe_backward, carafe_forward, carafe_naive_backward, carafe_naive_forward
from mmitpn.ops.masked_conv import masked_col2im_forward, masked_im2col_forward

DATA = Path(__file__).parents[1] / 'data' / 'ops'
spec = importlib.util.spec_from_file_location('make_sampling', DATA / 'make_sampling.py')
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)
EXT = SimpleNamespace(**vars(deform_conv), **{key: vars(roi)[key] for key in vars(roi) if key.startswith('roi_align')})
EXT.psamask_forward, EXT.psamask_backward = psamask.psamask_forward, psamask.psamask_backward


@pytest.fixture(scope='module')
def stored():
    with np.load(DATA / 'sampling.npz') as file:
        return dict(file)


@pytest.mark.parametrize(
    ('operator', 'case'), [(operator, case) for operator in make.CASES for case in make.CASES[operator]]
)
def test_equals_compiled_mmcv(stored, operator, case):
    results = make.run(EXT, operator, case)
    for key, actual in results.items():
        expected = torch.from_numpy(stored[f'{operator}/{case}/{key}'])
        largest = expected.abs().max().item() if expected.numel() else 0
        # Sums of fp16 round where they are added up, in whatever order.
        tolerance = 5e-3 if case == 'fp16' else 1e-13 if case.endswith('fp64') else 1e-5
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * largest)


class RoIAlign(Function):
    """As mmcv's ``RoIAlignFunction``."""

    @staticmethod
    def forward(ctx, maps, rois, settings):
        shape = len(rois), maps.shape[1], settings['aligned_height'], settings['aligned_width']
        output, y, x = (maps.new_zeros(shape) for _ in range(3))
        roi.roi_align_forward(maps, rois, output, y, x, **settings)
        ctx.save_for_backward(rois, y, x)
        ctx.settings, ctx.shape = settings, maps.shape
        return output

    @staticmethod
    def backward(ctx, grad):
        rois, y, x = ctx.saved_tensors
        gradient = grad.new_zeros(ctx.shape)
        roi.roi_align_backward(grad, rois, y, x, gradient, **ctx.settings)
        return gradient, None, None


SETTINGS = {'aligned_height': 2, 'aligned_width': 3, 'spatial_scale': 0.5, 'sampling_ratio': 2, 'aligned': True}


@pytest.mark.parametrize('mode', [0, 1])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_finite_differences(mode, ratio):
    maps = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.3, 0.4, 9.1, 7.7], [1, -2.0, 3.2, 5.1, 12.3]], dtype=torch.float64)
    settings = SETTINGS | {'pool_mode': mode, 'sampling_ratio': ratio}
    assert torch.autograd.gradcheck(lambda maps: RoIAlign.apply(maps, rois, settings), (maps,), fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('mode', [0, 1])
def test_roi_align_of_strided_and_bf16_maps(dtype, mode):
    maps = torch.randn(2, 6, 7, 4).to(dtype).permute(0, 3, 1, 2)
    rois = torch.tensor([[0, 1, 1, 9, 8], [1, 0, 2, 4, 12]]).to(dtype)
    settings = SETTINGS | {'pool_mode': mode}
    output = RoIAlign.apply(maps, rois, settings)
    expected = RoIAlign.apply(maps.double().contiguous(), rois.double(), settings)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)


def test_a_maximum_without_samples_is_what_the_kernel_starts_from():
    maps, rois = torch.randn(1, 1, 4, 4), torch.tensor([[0, 1.0, 1.0, 1.0, 3.0]])
    output, y, x = (torch.zeros(1, 1, 1, 1) for _ in range(3))
    settings = SETTINGS | {'aligned_height': 1, 'aligned_width': 1, 'sampling_ratio': 0, 'pool_mode': 0}
    roi.roi_align_forward(maps, rois, output, y, x, **settings)
    assert (output.item(), y.item(), x.item()) == (-10000, -1, -1)


@pytest.mark.parametrize('box', [[5.0, 1.0, 2.0, 3.0], [1.0, float('nan'), 2.0, 3.0]], ids=['negative', 'nan'])
def test_a_box_of_negative_size_is_refused_as_by_the_cpu_kernel(box):
    maps, rois, output = torch.randn(1, 1, 4, 4), torch.tensor([[0.0, *box]]), torch.zeros(1, 1, 2, 3)
    empty = torch.zeros(0)
    with pytest.raises(ValueError, match=r'must not be smaller than x1 and y1'):
        roi.roi_align_forward(maps, rois, output, empty, empty, **SETTINGS, pool_mode=1)


def test_autocast_does_not_change_the_arithmetic():
    maps, weight = torch.randn(1, 4, 5, 5), torch.randn(3, 4, 3, 3)
    offset, output, other = torch.randn(1, 18, 5, 5), torch.empty(1, 3, 5, 5), torch.empty(1, 3, 5, 5)
    arguments = (torch.empty(0), torch.empty(0), 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1)
    deform_conv.deform_conv_forward(maps, weight, offset, output, *arguments)
    with torch.autocast('cpu', torch.bfloat16):
        deform_conv.deform_conv_forward(maps, weight, offset, other, *arguments)
    assert torch.equal(output, other)


class DeformConv(Function):
    """As mmcv's ``DeformConv2dFunction`` (without a mask) and ``ModulatedDeformConv2dFunction``."""

    @staticmethod
    def forward(ctx, maps, weight, offset, mask, bias, size=None):
        ctx.save_for_backward(maps, weight, offset, mask, bias)
        empty, output = maps.new_empty(0), maps.new_empty(len(maps), len(weight), *(size or offset.shape[2:]))
        if mask is None:
            deform_conv.deform_conv_forward(maps, weight, offset, output, empty, empty, *PLAIN, 1)
        else:
            deform_conv.modulated_deform_conv_forward(
                maps, weight, bias, empty, offset, mask, output, empty, *MODULATED, True
            )
        return output

    @staticmethod
    def backward(ctx, grad):
        maps, weight, offset, mask, bias = ctx.saved_tensors
        empty, grad = maps.new_empty(0), grad.contiguous()
        gradients = [None if each is None else torch.zeros_like(each) for each in ctx.saved_tensors]
        if mask is None:
            of_maps, of_weight, of_offset, *_ = gradients
            deform_conv.deform_conv_backward_input(maps, offset, grad, of_maps, of_offset, weight, empty, *PLAIN, 1)
            deform_conv.deform_conv_backward_parameters(maps, offset, grad, of_weight, empty, empty, *PLAIN, 1.0, 1)
        else:
            of_maps, of_weight, of_offset, of_mask, of_bias = gradients
            deform_conv.modulated_deform_conv_backward(
                *(maps, weight, bias, empty, offset, mask, empty),
                *(of_maps, of_weight, of_bias, of_offset, of_mask, grad),
                *MODULATED,
                True,
            )
        return *gradients, None


# Kernel 2 x 3, stride 1 x 2, padding 1 x 0, dilation 1; two groups of weights and of offsets.
PLAIN = (3, 2, 2, 1, 0, 1, 1, 1, 2, 2)

MODULATED = (2, 3, 1, 2, 1, 0, 1, 1, 2, 2)


@pytest.mark.parametrize('modulated', [False, True])
def test_deform_conv_finite_differences(modulated):
    maps, weight = torch.randn(2, 4, 3, 5).double(), torch.randn(2, 2, 2, 3).double()
    # No coordinate is an integer, where a bilinear map has no slope.
    offset = torch.rand(2, 24, 4, 2).double() * 0.8 + 0.1
    mask = torch.rand(2, 12, 4, 2).double() if modulated else None
    inputs = [maps, weight, offset, mask, torch.randn(2).double() if modulated else None]
    inputs = [None if each is None else each.requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(DeformConv.apply, inputs, fast_mode=True)


def test_offsets_of_larger_maps_are_read_as_by_mmcv():
    """The first values of each image are taken for those of the output's size, as compiled mmcv does (seen there)."""
    maps, weight, bias = torch.randn(2, 4, 3, 5), torch.randn(2, 2, 2, 3), torch.randn(2)
    offset, mask = torch.randn(2, 24, 8, 4), torch.rand(2, 12, 8, 4)
    large = [each.clone().requires_grad_() for each in (maps, weight, offset, mask, bias)]
    output = DeformConv.apply(*large, (4, 2))
    small = offset.flatten(1)[:, : 24 * 8].reshape(2, 24, 4, 2), mask.flatten(1)[:, : 12 * 8].reshape(2, 12, 4, 2)
    plain = [each.clone().requires_grad_() for each in (maps, weight, *small, bias)]
    expected = DeformConv.apply(*plain)
    assert torch.equal(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(large, plain, strict=True):
        number = other[0].numel() if one.shape != other.shape else None
        assert torch.equal(
            one.grad.flatten(1)[:, :number] if number else one.grad, other.grad.flatten(1) if number else other.grad
        )
        if number:
            assert not one.grad.flatten(1)[:, number:].any()
    with pytest.raises(ValueError, match=r'are \(4, 2\), and its output is \(8, 4\); make both the same'):
        DeformConv.apply(maps, weight, *small, bias, (8, 4))


def test_deform_conv_of_no_images_and_strided_maps():
    weight = torch.randn(2, 2, 2, 3)
    none = DeformConv.apply(torch.randn(0, 4, 3, 5), weight, torch.randn(0, 24, 4, 2), None, None)
    assert none.shape == (0, 2, 4, 2)
    maps, offset = torch.randn(2, 3, 5, 4).permute(0, 3, 1, 2), torch.randn(2, 24, 2, 4).transpose(2, 3)
    strided = DeformConv.apply(maps, weight, offset, None, None)
    assert torch.equal(strided, DeformConv.apply(maps.contiguous(), weight, offset.contiguous(), None, None))


class PSAMask(Function):
    """As mmcv's ``PSAMaskFunction``."""

    @staticmethod
    def forward(ctx, masks, kind, mask_size):
        batch, _, height, width = masks.shape
        halves = [(side - 1) // 2 for side in mask_size]
        ctx.settings, ctx.shape = (kind, batch, height, width, *mask_size, *halves), masks.shape
        output = masks.new_zeros(batch, height * width, height, width)
        psamask.psamask_forward(masks, output, *ctx.settings)
        return output

    @staticmethod
    def backward(ctx, grad):
        gradient = grad.new_zeros(ctx.shape)
        psamask.psamask_backward(grad, gradient, *ctx.settings)
        return gradient, None, None


@pytest.mark.parametrize('kind', [0, 1], ids=['collect', 'distribute'])
def test_psamask_finite_differences(kind):
    masks = torch.randn(1, 15, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda masks: PSAMask.apply(masks, kind, (3, 5)), (masks,))


class Naive(Function):
    """As mmcv's ``CARAFENaiveFunction``."""

    @staticmethod
    def forward(ctx, features, masks, kernel, groups, scale):
        ctx.save_for_backward(features, masks)
        ctx.settings = {'kernel_size': kernel, 'group_size': groups, 'scale_factor': scale}
        batch, channels, height, width = features.shape
        output = features.new_zeros(batch, channels, height * scale, width * scale)
        carafe_naive_forward(features, masks, output, **ctx.settings)
        return output

    @staticmethod
    def backward(ctx, grad):
        gradients = [torch.zeros_like(each) for each in ctx.saved_tensors]
        carafe_naive_backward(grad.contiguous(), *ctx.saved_tensors, *gradients, **ctx.settings)
        return *gradients, None, None, None


class Carafe(Function):
    """As mmcv's ``CARAFEFunction``, which keeps the features that the forward writes with channels last."""

    @staticmethod
    def forward(ctx, features, masks, kernel, groups, scale):
        ctx.settings = {'kernel_size': kernel, 'group_size': groups, 'scale_factor': scale}
        batch, channels, height, width = features.shape
        output = features.new_zeros(batch, channels, height * scale, width * scale)
        buffers = [torch.zeros(each.shape, dtype=each.dtype) for each in (features, output, masks)]
        carafe_forward(features, masks, *buffers, output, **ctx.settings)
        for buffer, source in zip(buffers, (features, output, masks), strict=True):
            assert torch.equal(buffer, source.permute(0, 2, 3, 1))
        ctx.save_for_backward(features, masks, buffers[0])
        return output

    @staticmethod
    def backward(ctx, grad):
        features, masks, rfeatures = ctx.saved_tensors
        buffers = [torch.zeros_like(each) for each in (grad, grad, features, masks, features, masks)]
        carafe_backward(grad.contiguous(), rfeatures, masks, *buffers, **ctx.settings)
        return buffers[-2], buffers[-1], None, None, None


def kernel(features, masks, size, groups, scale, grad):
    features, masks, grad = features.double(), masks.double(), grad.double()
    output, of_features, of_masks = (torch.zeros_like(each) for each in (grad, features, masks))
    (batch, channels, height, width), margin = features.shape, (size - 1) // 2
    ranges = (batch, channels, height * scale, width * scale, size, size)
    for image, channel, y, x, row, column in itertools.product(*map(range, ranges)):
        group = channel // (channels // groups)
        mask = image, (group * size + row) * size + column, y, x
        cell = image, channel, y // scale + row - margin, x // scale + column - margin
        if 0 <= cell[2] < height and 0 <= cell[3] < width:
            where = image, channel, y, x
            output[where] += features[cell] * masks[mask]
            of_features[cell] += masks[mask] * grad[where]
            of_masks[mask] += features[cell] * grad[where]
    return output, of_features, of_masks


def make_inputs(size, groups, scale, dtype=torch.float32, shape=(2, 4, 2, 3)):
    features = torch.randn(shape, dtype=dtype)
    masks = torch.randn(shape[0], groups * size**2, shape[2] * scale, shape[3] * scale, dtype=dtype)
    return features, masks


@pytest.mark.parametrize('function', [Naive, Carafe])
@pytest.mark.parametrize(('size', 'groups', 'scale'), [(3, 1, 2), (5, 2, 1), (1, 4, 3)])
def test_equals_the_kernels(function, size, groups, scale):
    features, masks = (each.requires_grad_() for each in make_inputs(size, groups, scale))
    output = function.apply(features, masks, size, groups, scale)
    grad = torch.randn_like(output)
    gradients = torch.autograd.grad(output, (features, masks), grad)
    expected = kernel(features.detach(), masks.detach(), size, groups, scale, grad)
    for actual, wanted in zip((output, *gradients), expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize('function', [Naive, Carafe])
def test_finite_differences(function):
    inputs = [each.requires_grad_() for each in make_inputs(3, 2, 2, torch.float64, (1, 2, 2, 2))]
    assert torch.autograd.gradcheck(lambda *tensors: function.apply(*tensors, 3, 2, 2), inputs)


def test_half_precision_strides_and_no_images():
    features, masks = make_inputs(3, 2, 2, torch.float16)
    exact = Carafe.apply(features.double(), masks.double(), 3, 2, 2)
    strided = features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    output = Carafe.apply(strided, masks, 3, 2, 2)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.double(), exact, rtol=1e-3, atol=5e-3)
    assert Naive.apply(features[:0], masks[:0], 3, 2, 2).shape == (0, 4, 4, 6)


def masked_conv(features, mask, weight, bias, padding):
    """As mmcv's ``MaskedConv2dFunction``."""
    out_channels, in_channels, kernel_h, kernel_w = weight.shape
    height = features.shape[2] + 2 * padding[0] - kernel_h + 1
    width = features.shape[3] + 2 * padding[1] - kernel_w + 1
    row, column = torch.nonzero(mask[0] > 0).t().contiguous()
    output = features.new_zeros(1, out_channels, height, width)
    columns = features.new_zeros(in_channels * kernel_h * kernel_w, len(row))
    masked_im2col_forward(
        features, row, column, columns, kernel_h=kernel_h, kernel_w=kernel_w, pad_h=padding[0], pad_w=padding[1]
    )
    values = torch.addmm(bias[:, None], weight.view(out_channels, -1), columns)
    masked_col2im_forward(values, row, column, output, height=height, width=width, channels=out_channels)
    return output


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(('kernel', 'padding'), [((3, 3), (1, 1)), ((1, 5), (0, 2)), ((1, 1), (0, 0))])
def test_equals_a_dense_convolution_at_the_cells(kernel, padding, dtype):
    features, mask = torch.randn(1, 3, 5, 7, dtype=dtype), torch.rand(1, 5, 7) > 0.5
    weight, bias = torch.randn(4, 3, *kernel, dtype=dtype), torch.randn(4, dtype=dtype)
    dense = F.conv2d(features, weight, bias, padding=padding)
    torch.testing.assert_close(masked_conv(features, mask, weight, bias, padding), dense * mask)


def test_columns_hold_zeros_outside_of_the_map():
    features, columns = torch.arange(1.0, 7).view(1, 1, 2, 3), torch.full((9, 2), 9.0)
    masked_im2col_forward(features, torch.tensor([0, 1]), torch.tensor([0, 2]), columns, 3, 3, 1, 1)
    assert columns.t().tolist() == [[0, 0, 0, 0, 1, 2, 0, 4, 5], [2, 3, 0, 5, 6, 0, 0, 0, 0]]


def test_other_cells_stay_and_half_precision():
    image = torch.full((1, 2, 2, 2), 7, dtype=torch.float16)
    values = torch.tensor([[1.0], [2.0]], dtype=torch.float16)
    masked_col2im_forward(values, torch.tensor([1]), torch.tensor([0]), image, 2, 2, 2)
    assert image.tolist() == [[[[7, 7], [1, 7]], [[7, 7], [2, 7]]]]


def test_no_cells():
    none, columns = torch.zeros(0, dtype=torch.long), torch.zeros(9, 0)
    masked_im2col_forward(torch.randn(1, 1, 3, 3), none, none, columns, 3, 3, 1, 1)
    image = torch.randn(1, 1, 3, 3)
    before = image.clone()
    masked_col2im_forward(torch.zeros(1, 0), none, none, image, 3, 3, 1)
    assert torch.equal(image, before)
