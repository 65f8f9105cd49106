"""The halves of masked convolution against a dense convolution at the same cells."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmitpn.ops.masked_conv import masked_col2im_forward, masked_im2col_forward


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
