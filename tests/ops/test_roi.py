"""RoIPool and deformable RoIPool against the kernels' definitions in float64, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import Function

from mmitpn.ops.roi import deform_roi_pool_backward, deform_roi_pool_forward, roi_pool_backward, roi_pool_forward


def make_boxes(count, height, width, scale, batch, dtype=torch.float32):
    corner = (torch.rand(count, 2) * 1.3 - 0.15) * torch.tensor([width, height]) / scale
    far = corner + torch.rand(count, 2) * torch.tensor([width, height]) * 0.8 / scale
    return torch.cat([torch.randint(0, batch, (count, 1)), corner, far], 1).to(dtype)


class RoIPool(Function):
    """As mmcv's ``RoIPoolFunction``."""

    @staticmethod
    def forward(ctx, maps, rois, pooled, scale):
        ctx.settings = {'pooled_height': pooled[0], 'pooled_width': pooled[1], 'spatial_scale': scale}
        output = maps.new_zeros(len(rois), maps.shape[1], *pooled)
        argmax = torch.zeros(output.shape, dtype=torch.int)
        roi_pool_forward(maps, rois, output, argmax, **ctx.settings)
        ctx.save_for_backward(rois, argmax)
        ctx.shape = maps.shape
        ctx.mark_non_differentiable(argmax)
        return output, argmax

    @staticmethod
    def backward(ctx, grad, _):
        gradient = grad.new_zeros(ctx.shape)
        roi_pool_backward(grad, *ctx.saved_tensors, gradient, **ctx.settings)
        return gradient, None, None, None


def roi_pool_kernel(maps, rois, pooled, scale, grad):
    maps, grad = maps.double(), grad.double()
    _, channels, height, width = maps.shape
    output = torch.zeros(len(rois), channels, *pooled, dtype=torch.float64)
    argmax, gradient = torch.zeros(output.shape, dtype=torch.int), torch.zeros_like(maps)
    for number, (image, x1, y1, x2, y2) in enumerate(rois.double().tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for row in range(pooled[0]):
            for column in range(pooled[1]):
                high, wide = (y2 - y1) / pooled[0], (x2 - x1) / pooled[1]
                ys = range(max(math.floor(row * high + y1), 0), min(math.ceil((row + 1) * high + y1), height))
                xs = range(max(math.floor(column * wide + x1), 0), min(math.ceil((column + 1) * wide + x1), width))
                cells = [y * width + x for y in ys for x in xs]
                for channel in range(channels):
                    where = number, channel, row, column
                    plane = maps[int(image), channel].flatten().tolist()
                    best = max(cells, key=plane.__getitem__, default=-1)  # the first of equal ones
                    if high > 0 and wide > 0:
                        output[where] = plane[best] if cells else 0
                        argmax[where] = best
                    if argmax[where] >= 0:
                        gradient[int(image), channel].view(-1)[argmax[where]] += grad[where]
    return output, argmax, gradient


@pytest.mark.parametrize(
    ('size', 'pooled', 'scale'), [((6, 9), (2, 3), 0.5), ((5, 4), (7, 7), 1.0), ((9, 7), (1, 1), 0.25)]
)
def test_roi_pool_equals_the_kernels(size, pooled, scale):
    maps = torch.randn(2, 3, *size).mul(4).round()  # with ties
    rois = make_boxes(5, *size, scale, 2)
    rois[0, 3:] = rois[0, 1:3] - 2 / scale  # no area
    rois[1, 1:] += 100 / scale  # outside
    grad = torch.randn(5, 3, *pooled)
    maps.requires_grad_()
    output, argmax = RoIPool.apply(maps, rois, pooled, scale)
    gradient = torch.autograd.grad(output, maps, grad)[0]
    expected, best, of_expected = roi_pool_kernel(maps.detach(), rois, pooled, scale, grad)
    assert torch.equal(output.double(), expected)
    assert torch.equal(argmax, best)
    torch.testing.assert_close(gradient.double(), of_expected, rtol=0, atol=1e-5 * of_expected.abs().max().item())


def test_roi_pool_leaves_out_nan_and_takes_half_precision():
    maps = torch.randn(1, 2, 4, 4)
    maps[0, 0, 0, 0] = torch.nan
    whole = torch.tensor([[0.0, 0.0, 0.0, 3.0, 3.0]])
    output, _ = RoIPool.apply(maps, whole, (1, 1), 1.0)
    assert output.flatten().tolist() == [maps[0, 0].nan_to_num(-9).max(), maps[0, 1].max()]
    half, _ = RoIPool.apply(maps.half(), whole.half(), (1, 1), 1.0)
    assert torch.equal(half, output.half())


def test_roi_pool_finite_differences():
    maps = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    rois = make_boxes(3, 4, 5, 1.0, 2, torch.float64)
    assert torch.autograd.gradcheck(lambda maps: RoIPool.apply(maps, rois, (2, 2), 1.0)[0], (maps,))


class DeformRoIPool(Function):
    """As mmcv's ``DeformRoIPoolFunction``."""

    @staticmethod
    def forward(ctx, maps, rois, offset, pooled, scale, ratio, gamma):
        settings = zip(('pooled_height', 'pooled_width'), pooled, strict=True)
        ctx.settings = dict(settings) | {'spatial_scale': scale, 'sampling_ratio': ratio, 'gamma': gamma}
        output = maps.new_zeros(len(rois), maps.shape[1], *pooled)
        deform_roi_pool_forward(maps, rois, offset, output, **ctx.settings)
        ctx.save_for_backward(maps, rois, offset)
        return output

    @staticmethod
    def backward(ctx, grad):
        maps, _, offset = ctx.saved_tensors
        of_maps, of_offset = torch.zeros_like(maps), torch.zeros_like(offset)
        deform_roi_pool_backward(grad, *ctx.saved_tensors, of_maps, of_offset, **ctx.settings)
        return of_maps, None, of_offset if offset.numel() else None, None, None, None, None


def deform_roi_pool_kernel(maps, rois, offset, pooled, scale, ratio, gamma, grad):
    maps, grad, offset = maps.double(), grad.double(), offset.double()
    height, width = maps.shape[2:]
    output, of_maps, of_offset = torch.zeros_like(grad), torch.zeros_like(maps), torch.zeros_like(offset)
    for number, (image, x1, y1, x2, y2) in enumerate(rois.double().tolist()):
        left, top, wide, high = x1 * scale - 0.5, y1 * scale - 0.5, (x2 - x1) * scale, (y2 - y1) * scale
        rows = ratio if ratio > 0 else math.ceil(high / pooled[0])
        columns = ratio if ratio > 0 else math.ceil(wide / pooled[1])
        for row in range(pooled[0]):
            for column in range(pooled[1]):
                move_x = move_y = 0.0
                if offset.numel():
                    move_x = gamma * wide * offset[number, 0, row, column].item()
                    move_y = gamma * high * offset[number, 1, row, column].item()
                for k in range(rows * columns):
                    y = top + move_y + (row + (k // columns + 0.5) / rows) * high / pooled[0]
                    x = left + move_x + (column + (k % columns + 0.5) / columns) * wide / pooled[1]
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y0, x0 = min(int(max(y, 0)), height - 1), min(int(max(x, 0)), width - 1)
                    y1_, x1_ = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                    dy = max(y, 0) - y0 if y1_ > y0 else 0.0
                    dx = max(x, 0) - x0 if x1_ > x0 else 0.0
                    plane = maps[int(image)]
                    v00, v01, v10, v11 = plane[:, y0, x0], plane[:, y0, x1_], plane[:, y1_, x0], plane[:, y1_, x1_]
                    slope = grad[number, :, row, column] / (rows * columns)
                    value = (1 - dy) * ((1 - dx) * v00 + dx * v01) + dy * ((1 - dx) * v10 + dx * v11)
                    output[number, :, row, column] += value / (rows * columns)
                    of_maps[int(image), :, y0, x0] += (1 - dy) * (1 - dx) * slope
                    of_maps[int(image), :, y0, x1_] += (1 - dy) * dx * slope
                    of_maps[int(image), :, y1_, x0] += dy * (1 - dx) * slope
                    of_maps[int(image), :, y1_, x1_] += dy * dx * slope
                    if offset.numel():
                        # The kernel takes the point itself here, not the one moved into the map.
                        slope_x = v11 * (y - y0) + v01 * (y1_ - y) + v10 * (y0 - y) + v00 * (y - y1_)
                        slope_y = v11 * (x - x0) + v10 * (x1_ - x) + v01 * (x0 - x) + v00 * (x - x1_)
                        of_offset[number, 0, row, column] += gamma * wide * (slope * slope_x).sum()
                        of_offset[number, 1, row, column] += gamma * high * (slope * slope_y).sum()
    return output, of_maps, of_offset


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('moved', [False, True])
@pytest.mark.parametrize(('size', 'pooled', 'scale'), [((6, 9), (2, 3), 0.5), ((3, 2), (3, 2), 1.0)])
def test_deform_roi_pool_equals_the_kernels(size, pooled, scale, moved, ratio):
    maps, rois = torch.randn(2, 3, *size, requires_grad=True), make_boxes(4, *size, scale, 2)
    offset = torch.randn(4, 2, *pooled, requires_grad=True) if moved else torch.zeros(0)
    grad = torch.randn(4, 3, *pooled)
    output = DeformRoIPool.apply(maps, rois, offset, pooled, scale, ratio, 0.3)
    gradients = torch.autograd.grad(output, [maps, offset] if moved else [maps], grad)
    expected = deform_roi_pool_kernel(maps.detach(), rois, offset.detach(), pooled, scale, ratio, 0.3, grad)
    for actual, wanted in zip((output, *gradients), expected[: 2 + moved], strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_deform_roi_pool_finite_differences():
    maps = torch.randn(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    # Within the map: at its border the kernel's gradient is not the slope.
    rois = torch.tensor([[0, 2.3, 2.2, 5.1, 5.4]], dtype=torch.float64)
    offset = (torch.rand(1, 2, 2, 2, dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda maps, offset: DeformRoIPool.apply(maps, rois, offset, (2, 2), 1.0, 0, 0.1), (maps, offset)
    )


def test_no_boxes():
    maps, none = torch.randn(1, 2, 4, 4, requires_grad=True), torch.zeros(0, 5)
    assert RoIPool.apply(maps, none, (2, 3), 1.0)[0].shape == (0, 2, 2, 3)
    pooled = DeformRoIPool.apply(maps, none, torch.zeros(0), (2, 3), 1.0, 0, 0.1)
    assert torch.autograd.grad(pooled.sum(), maps)[0].abs().sum() == 0
