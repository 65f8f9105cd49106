"""Pooling of regions and BorderAlign against the kernels' definitions in float64, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import Function

from mmitpn.ops.border_align import border_align_backward, border_align_forward
from mmitpn.ops.prroi_pool import prroi_pool_backward, prroi_pool_coor_backward, prroi_pool_forward
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


class PrRoIPool(Function):
    """As mmcv's ``PrRoIPoolFunction``."""

    @staticmethod
    def forward(ctx, maps, rois, pooled, scale):
        output = maps.new_zeros(len(rois), maps.shape[1], *pooled)
        prroi_pool_forward(maps, rois, output, pooled_height=pooled[0], pooled_width=pooled[1], spatial_scale=scale)
        ctx.save_for_backward(maps, rois, output)
        ctx.settings = {'pooled_height': pooled[0], 'pooled_width': pooled[1], 'spatial_scale': scale}
        return output

    @staticmethod
    def backward(ctx, grad):
        maps, rois, output = ctx.saved_tensors
        of_maps, of_rois = torch.zeros_like(maps), torch.zeros_like(rois)
        prroi_pool_backward(grad, rois, of_maps, **ctx.settings)
        prroi_pool_coor_backward(output, grad, maps, rois, of_rois, **ctx.settings)
        return of_maps, of_rois, None, None


def cell(plane, y, x):
    height, width = plane.shape
    return plane[y, x] if 0 <= y < height and 0 <= x < width else 0.0


def bins_of(roi, pooled, scale):
    """Row, column and bounds (y1, x1, y2, x2) of the bins of a box."""
    x1, y1, x2, y2 = (value * scale for value in roi)
    high, wide = max(y2 - y1, 0) / pooled[0], max(x2 - x1, 0) / pooled[1]
    for row in range(pooled[0]):
        for column in range(pooled[1]):
            top, left = y1 + high * row, x1 + wide * column
            yield row, column, (top, left, top + high, left + wide), high * wide


def integrals_of_corners(y, x, top, left, bottom, right):
    """The four corners of the cell square at (y, x), and the integral of each one's weight over a part of it."""

    def along(low, high, first):
        rising = (high**2 - low**2) / 2
        return high - low - rising if first else rising

    for down in range(2):
        for across in range(2):
            weight = along(top - y, bottom - y, not down) * along(left - x, right - x, not across)
            yield y + down, x + across, weight


def prroi_pool_kernel(maps, rois, pooled, scale, grad):
    """Output and gradients of maps and boxes, square by square and line by line."""
    maps, grad = maps.double(), grad.double()
    output = torch.zeros(len(rois), maps.shape[1], *pooled, dtype=torch.float64)
    of_maps, of_rois = torch.zeros_like(maps), torch.zeros(len(rois), 5, dtype=torch.float64)
    for number, (image, *roi) in enumerate(rois.double().tolist()):
        for row, column, (top, left, bottom, right), area in bins_of(roi, pooled, scale):
            if area <= 0:
                continue
            for channel in range(maps.shape[1]):
                plane, slope = maps[int(image), channel], grad[number, channel, row, column].item()
                total = 0.0
                for y in range(math.floor(top), math.ceil(bottom)):
                    for x in range(math.floor(left), math.ceil(right)):
                        part = max(top, y), max(left, x), min(bottom, y + 1), min(right, x + 1)
                        for at_y, at_x, weight in integrals_of_corners(y, x, *part):
                            total += cell(plane, at_y, at_x) * weight
                            if 0 <= at_y < plane.shape[0] and 0 <= at_x < plane.shape[1]:
                                of_maps[int(image), channel, at_y, at_x] += slope * weight / area
                mean = total / area
                output[number, channel, row, column] = mean
                sides = sides_of(plane, top, left, bottom, right, mean)
                for coordinate, value in enumerate(gradient_of_box(sides, row, column, pooled)):
                    of_rois[number, 1 + coordinate] += slope * value * scale / area
    return output, of_maps, of_rois


def line(values, low, high):
    """Integral from ``low`` to ``high`` of what interpolates ``values(k)`` at the integers k."""
    total = 0.0
    for k in range(math.floor(low), math.ceil(high)):
        s, t = max(low, k) - k, min(high, k + 1) - k
        total += (t**2 - s**2) / 2 * (values(k + 1) - values(k)) + (t - s) * values(k)
    return total


def sides_of(plane, top, left, bottom, right, mean):
    """Slopes of the integral over the bin, less the mean's, for x1, y1, x2 and y2."""

    def at_x(x):
        first = math.floor(x)
        return lambda y: cell(plane, y, first) * (first + 1 - x) + cell(plane, y, first + 1) * (x - first)

    def at_y(y):
        first = math.floor(y)
        return lambda x: cell(plane, first, x) * (first + 1 - y) + cell(plane, first + 1, x) * (y - first)

    high, wide = bottom - top, right - left
    return (
        -line(at_x(left), top, bottom) + high * mean,
        -line(at_y(top), left, right) + wide * mean,
        line(at_x(right), top, bottom) - high * mean,
        line(at_y(bottom), left, right) - wide * mean,
    )


def gradient_of_box(sides, row, column, pooled):
    """Each side of the bin lies between the sides of the box."""
    x1, y1, x2, y2 = sides
    left, right = column / pooled[1], (column + 1) / pooled[1]
    top, bottom = row / pooled[0], (row + 1) / pooled[0]
    return (
        x1 * (1 - left) + x2 * (1 - right),
        y1 * (1 - top) + y2 * (1 - bottom),
        x2 * right + x1 * left,
        y2 * bottom + y1 * top,
    )


def make_fractional_boxes(count, height, width, scale, batch):
    corner = (torch.rand(count, 2) * 1.3 - 0.15) * torch.tensor([width, height]) / scale
    size = torch.rand(count, 2) * torch.tensor([width, height]) * 0.6 / scale
    return torch.cat([torch.randint(0, batch, (count, 1)), corner, corner + size], 1)


@pytest.mark.parametrize(
    ('size', 'pooled', 'scale'), [((5, 7), (2, 3), 1.0), ((6, 4), (1, 2), 0.25), ((3, 3), (4, 4), 0.5)]
)
def test_prroi_pool_equals_the_kernels(size, pooled, scale):
    maps = torch.randn(2, 2, *size)
    rois = make_fractional_boxes(4, *size, scale, 2)
    rois[0, 1:] = torch.tensor([1.0, 1.0, 3.0, 2.0]) / scale  # bins that end between cells
    rois[1, 3] = rois[1, 1]  # no area
    grad = torch.randn(4, 2, *pooled)
    maps.requires_grad_()
    rois.requires_grad_()
    output = PrRoIPool.apply(maps, rois, pooled, scale)
    gradients = torch.autograd.grad(output, (maps, rois), grad)
    expected = prroi_pool_kernel(maps.detach(), rois.detach(), pooled, scale, grad)
    assert output[1].abs().max() == 0
    for actual, wanted in zip((output, *gradients), expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_prroi_pool_finite_differences():
    maps = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.3, 0.7, 4.1, 5.2], [1, -1.6, 1.2, 3.3, 4.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda maps, boxes: PrRoIPool.apply(maps, torch.cat([rois[:, :1].detach(), boxes], 1), (2, 2), 0.9),
        (maps, rois[:, 1:].detach().requires_grad_()),
    )


def test_no_boxes_and_boxes_far_larger_than_the_map():
    maps = torch.randn(1, 3, 4, 5)
    assert PrRoIPool.apply(maps, torch.zeros(0, 5), (2, 2), 1.0).shape == (0, 3, 2, 2)
    huge = PrRoIPool.apply(maps, torch.tensor([[0, -1e6, -1e6, 1e6, 1e6]]), (1, 1), 1.0)
    torch.testing.assert_close(huge.view(3) * 4e12, maps.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_prroi_pool_gradients_are_added():
    maps, rois = torch.randn(1, 1, 4, 4), torch.tensor([[0, 0.5, 0.5, 2.5, 3.0]])
    once, twice = torch.zeros_like(maps), torch.zeros_like(maps)
    for target, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            prroi_pool_backward(torch.ones(1, 1, 2, 2), rois, target, 2, 2, 1.0)
    torch.testing.assert_close(twice, 2 * once)


class BorderAlign(Function):
    """As mmcv's ``BorderAlignFunction``."""

    @staticmethod
    def forward(ctx, maps, boxes, pool_size):
        shape = (len(maps), maps.shape[1] // 4, boxes.shape[1], 4)
        output, winner = maps.new_zeros(shape), torch.zeros(shape, dtype=torch.int)
        border_align_forward(maps, boxes, output, winner, pool_size=pool_size)
        ctx.save_for_backward(boxes, winner)
        ctx.shape, ctx.pool_size = maps.shape, pool_size
        ctx.mark_non_differentiable(winner)
        return output, winner

    @staticmethod
    def backward(ctx, grad, _):
        boxes, winner = ctx.saved_tensors
        of_maps = grad.new_zeros(ctx.shape)
        border_align_backward(grad.contiguous(), boxes, winner, of_maps, pool_size=ctx.pool_size)
        return of_maps, None, None


def corners_of(y, x, height, width):
    """Row, column and weight of the four cells of a bilinear sample; none further than one cell outside."""
    if y < -1 or y > height or x < -1 or x > width:
        return []
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down = y - top if bottom > top else 0.0
    across = x - left if right > left else 0.0
    return [
        (top, left, (1 - down) * (1 - across)),
        (top, right, (1 - down) * across),
        (bottom, left, down * (1 - across)),
        (bottom, right, down * across),
    ]


def border_align_kernel(maps, boxes, pool_size, grad):
    maps, grad = maps.double(), grad.double()
    batch, channels, height, width = maps.shape
    channels //= 4
    output = torch.zeros(batch, channels, boxes.shape[1], 4, dtype=torch.float64)
    winner, of_maps = torch.zeros(output.shape, dtype=torch.int), torch.zeros_like(maps)
    for image in range(batch):
        for number, (x1, y1, x2, y2) in enumerate(boxes[image].double().tolist()):
            across, down = (x2 - x1) / pool_size, (y2 - y1) / pool_size
            borders = ((y1, x1, 0, across), (y1, x1, down, 0), (y2, x2, 0, -across), (y2, x2, -down, 0))
            for border, (y, x, y_step, x_step) in enumerate(borders):
                points = [corners_of(y + k * y_step, x + k * x_step, height, width) for k in range(pool_size + 1)]
                for channel in range(channels):
                    plane = maps[image, border * channels + channel]
                    values = [sum(plane[a, b].item() * weight for a, b, weight in point) for point in points]
                    best = max(range(pool_size + 1), key=lambda k: (values[k], -k))
                    output[image, channel, number, border], winner[image, channel, number, border] = values[best], best
                    for a, b, weight in points[best]:
                        slope = grad[image, channel, number, border]
                        of_maps[image, border * channels + channel, a, b] += weight * slope
    return output, winner, of_maps


def make_borders(dtype=torch.float32, *, batch=2, channels=2, size=(5, 8), count=6):
    maps = torch.randn(batch, 4 * channels, *size, dtype=dtype)
    corner = (torch.rand(batch, count, 2, dtype=dtype) * 1.4 - 0.2) * torch.tensor([size[1], size[0]])
    far = corner + torch.rand(batch, count, 2, dtype=dtype) * 6
    return maps, torch.cat([corner, far], -1)


@pytest.mark.parametrize('pool_size', [1, 4, 10])
def test_border_align_equals_the_kernels(pool_size):
    maps, boxes = make_borders()
    grad = torch.randn(2, 2, 6, 4)
    maps.requires_grad_()
    output, winner = BorderAlign.apply(maps, boxes, pool_size)
    of_maps = torch.autograd.grad(output, maps, grad)[0]
    expected, best, of_expected = border_align_kernel(maps.detach(), boxes, pool_size, grad)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(of_maps.double(), of_expected, rtol=0, atol=1e-5 * of_expected.abs().max().item())
    assert torch.equal(winner, best)


def test_the_first_of_equal_samples_wins():
    output, winner = BorderAlign.apply(torch.ones(1, 4, 3, 3), torch.tensor([[[0.0, 0.0, 2.0, 2.0]]]), 3)
    assert (output == 1).all()
    assert (winner == 0).all()


def test_border_align_finite_differences():
    maps, boxes = make_borders(torch.float64, batch=1, channels=1, size=(4, 5), count=3)
    maps.requires_grad_()
    assert torch.autograd.gradcheck(lambda maps: BorderAlign.apply(maps, boxes, 3)[0], (maps,), fast_mode=True)


def test_border_align_no_boxes_and_half_precision():
    maps, boxes = make_borders(torch.float16, count=3)
    assert BorderAlign.apply(maps, boxes[:, :0], 2)[0].shape == (2, 2, 0, 4)
    output, _ = BorderAlign.apply(maps, boxes, 2)
    exact, _ = BorderAlign.apply(maps.double(), boxes.double(), 2)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=2e-2)
