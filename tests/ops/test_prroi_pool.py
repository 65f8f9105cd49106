"""Precise RoIPool against the kernels' definition, written out in float64 cell by cell, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import Function

from mmitpn.ops.prroi_pool import prroi_pool_backward, prroi_pool_coor_backward, prroi_pool_forward


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


def kernel(maps, rois, pooled, scale, grad):
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


def make_boxes(count, height, width, scale, batch):
    corner = (torch.rand(count, 2) * 1.3 - 0.15) * torch.tensor([width, height]) / scale
    size = torch.rand(count, 2) * torch.tensor([width, height]) * 0.6 / scale
    return torch.cat([torch.randint(0, batch, (count, 1)), corner, corner + size], 1)


@pytest.mark.parametrize(
    ('size', 'pooled', 'scale'), [((5, 7), (2, 3), 1.0), ((6, 4), (1, 2), 0.25), ((3, 3), (4, 4), 0.5)]
)
def test_equals_the_kernels(size, pooled, scale):
    maps = torch.randn(2, 2, *size)
    rois = make_boxes(4, *size, scale, 2)
    rois[0, 1:] = torch.tensor([1.0, 1.0, 3.0, 2.0]) / scale  # bins that end between cells
    rois[1, 3] = rois[1, 1]  # no area
    grad = torch.randn(4, 2, *pooled)
    maps.requires_grad_()
    rois.requires_grad_()
    output = PrRoIPool.apply(maps, rois, pooled, scale)
    gradients = torch.autograd.grad(output, (maps, rois), grad)
    expected = kernel(maps.detach(), rois.detach(), pooled, scale, grad)
    assert output[1].abs().max() == 0
    for actual, wanted in zip((output, *gradients), expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def test_finite_differences():
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


def test_gradients_are_added():
    maps, rois = torch.randn(1, 1, 4, 4), torch.tensor([[0, 0.5, 0.5, 2.5, 3.0]])
    once, twice = torch.zeros_like(maps), torch.zeros_like(maps)
    for target, times in ((once, 1), (twice, 2)):
        for _ in range(times):
            prroi_pool_backward(torch.ones(1, 1, 2, 2), rois, target, 2, 2, 1.0)
    torch.testing.assert_close(twice, 2 * once)
