"""CARAFE against the kernels' definition in float64, and finite differences."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import Function

from mmitpn.ops.carafe import carafe_backward, carafe_forward, carafe_naive_backward, carafe_naive_forward


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
