"""Deformable attention against the kernels' definition in float64, ``grid_sample`` and finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function

from mmitpn.ops import deformable_attention
from mmitpn.ops.deformable_attention import ms_deform_attn_backward, ms_deform_attn_forward, sample_on_cpu


def make_inputs(shapes, *, batch=2, queries=11, heads=3, channels=8, points=4, spread=1.6):
    positions = sum(height * width for height, width in shapes)
    value = torch.randn(batch, positions, heads, channels)
    where = (torch.rand(batch, queries, heads, len(shapes), points, 2) - 0.5) * spread + 0.5
    weights = torch.rand(batch, queries, heads, len(shapes), points)
    return [tensor.requires_grad_() for tensor in (value, where, weights)]


def with_gradients(function, inputs, shapes):
    output = function(inputs[0], shapes, *inputs[1:])
    weight = torch.linspace(-1, 1, output.numel()).view_as(output)
    return [output, *torch.autograd.grad((output * weight).sum(), inputs)]


def by_grid_sample(value, shapes, points, weights):
    """Every sample of every map, then their weighted sum."""
    batch, queries, heads, _, count, _ = points.shape
    samples = []
    for level, plane in enumerate(value.split([height * width for height, width in shapes], 1)):
        maps = plane.permute(0, 2, 3, 1).reshape(batch * heads, -1, *shapes[level])
        grid = 2 * points[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, count, 2) - 1
        samples.append(F.grid_sample(maps, grid, align_corners=False))
    factors = weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, -1)
    return (torch.cat(samples, -1) * factors).sum(-1).view(batch, -1, queries).transpose(1, 2)


@pytest.mark.parametrize(
    'shapes', [[[6, 9]], [[13, 8], [7, 4], [3, 2], [1, 1]], [[1, 17], [5, 1]]], ids=['one', 'four', 'thin']
)
@pytest.mark.parametrize('spread', [0.9, 3.0], ids=['inside', 'far-outside'])
def test_samples_and_gradients_are_those_of_grid_sample(shapes, spread):
    inputs = make_inputs(shapes, spread=spread)
    expected = with_gradients(by_grid_sample, inputs, shapes)
    for ours, theirs in zip(with_gradients(sample_on_cpu, inputs, shapes), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('point', [float('nan'), float('inf'), -float('inf'), 1e30, -1e30])
def test_a_point_nowhere_samples_zero(point):
    shapes = [[4, 5], [2, 3]]
    value, points, weights = make_inputs(shapes)
    points = points.detach()
    points[0, 3] = point
    output = sample_on_cpu(value, shapes, points, weights)
    assert output.isfinite().all()
    assert (output[0, 3] == 0).all()
    assert (output[0, 4] != 0).any()


def test_what_needs_no_gradient_gets_none():
    shapes = [[4, 5]]
    value, points, weights = (tensor.detach() for tensor in make_inputs(shapes))
    sample_on_cpu(value.requires_grad_(), shapes, points, weights).sum().backward()
    assert value.grad is not None
    assert points.grad is None

    value = value.detach()
    sample_on_cpu(value, shapes, points, weights.requires_grad_()).sum().backward()
    assert weights.grad is not None
    assert value.grad is None


def test_keeps_only_its_inputs_for_the_backward_pass():
    shapes = [[16, 16], [8, 8]]
    inputs = make_inputs(shapes, queries=64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda none: none):
        sample_on_cpu(inputs[0], shapes, *inputs[1:])
    assert sum(kept) == sum(tensor.numel() for tensor in inputs)


class DeformableAttention(Function):
    """As mmcv's ``MultiScaleDeformableAttnFunction``."""

    @staticmethod
    def forward(ctx, value, points, weights, shapes):
        shapes = torch.tensor(shapes)
        starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
        ctx.save_for_backward(value, shapes, starts, points, weights)
        return ms_deform_attn_forward(value, shapes, starts, points, weights, im2col_step=64)

    @staticmethod
    def backward(ctx, grad):
        value, _, _, points, weights = ctx.saved_tensors
        gradients = [torch.zeros_like(tensor) for tensor in (value, points, weights)]
        ms_deform_attn_backward(*ctx.saved_tensors, grad.contiguous(), *gradients, im2col_step=64)
        return *gradients, None


def kernel(value, shapes, points, weights, grad):
    """Output and gradients as the CUDA kernels define them, sample by sample in float64."""
    value, points, weights, grad = (tensor.double() for tensor in (value, points, weights, grad))
    batch, queries, heads, levels, count, _ = points.shape
    grad = grad.view(batch, queries, heads, -1)
    output = torch.zeros_like(grad)
    of_value, of_points, of_weights = (torch.zeros_like(tensor) for tensor in (value, points, weights))
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(levels)]
    for where in itertools.product(*(range(n) for n in (batch, queries, heads, levels, count))):
        image, query, head, level, _ = where
        (height, width), start = shapes[level], starts[level]
        x, y = points[where][0].item() * width - 0.5, points[where][1].item() * height - 0.5
        if not (y > -1 and x > -1 and y < height and x < width):
            continue
        top, left = math.floor(y), math.floor(x)
        dy, dx = y - top, x - left
        for down, right in itertools.product(range(2), range(2)):
            row, column = top + down, left + right
            if not (0 <= row < height and 0 <= column < width):
                continue
            along_y, along_x = (dy if down else 1 - dy), (dx if right else 1 - dx)
            cell = (image, start + row * width + column, head)
            weight, slope = weights[where], grad[image, query, head]
            output[image, query, head] += weight * along_y * along_x * value[cell]
            of_value[cell] += weight * along_y * along_x * slope
            dot = (slope * value[cell]).sum()
            of_weights[where] += along_y * along_x * dot
            of_points[where][0] += weight * width * along_y * dot * (1 if right else -1)
            of_points[where][1] += weight * height * along_x * dot * (1 if down else -1)
    return output.flatten(2), of_value, of_points, of_weights


@pytest.mark.parametrize('scattered', [False, True], ids=['cpu', 'any-device'])
@pytest.mark.parametrize('shapes', [[[2, 4], [1, 5], [1, 1]], [[2, 8]]])
def test_equals_the_kernels(monkeypatch, shapes, scattered):
    if scattered:
        monkeypatch.setattr(deformable_attention, '_shapes_for_cpu', lambda *_: None)
        monkeypatch.setattr(deformable_attention, 'LARGEST_TEMPORARY', 1 << 10)  # some queries at a time
    inputs = [tensor.detach() for tensor in make_inputs(shapes, queries=5, heads=2, channels=4, points=3)]
    # On the lines where a sample ends, and where it changes its cells; powers of 2 make them exact.
    height, width = shapes[0]
    inputs[1][0, 0, :, 0, 0] = torch.tensor([0.5 / width, 0.5 / height])
    inputs[1][0, 0, :, 0, 1] = torch.tensor([-0.5 / width, 0.5])
    inputs[1][0, 0, :, 0, 2] = torch.tensor([0.5, 1 + 0.5 / height])
    inputs = [tensor.requires_grad_() for tensor in inputs]
    output = DeformableAttention.apply(*inputs, shapes)
    grad = torch.randn_like(output)
    gradients = torch.autograd.grad(output, inputs, grad)
    expected = kernel(inputs[0].detach(), shapes, inputs[1].detach(), inputs[2].detach(), grad)
    for actual, wanted in zip((output, *gradients), expected, strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize('scattered', [False, True], ids=['cpu', 'any-device'])
def test_finite_differences(monkeypatch, scattered):
    if scattered:
        monkeypatch.setattr(deformable_attention, '_shapes_for_cpu', lambda *_: None)
    shapes = [[3, 4], [2, 2]]
    inputs = [tensor.detach().double() for tensor in make_inputs(shapes, batch=1, queries=2, heads=2, channels=2)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda *tensors: DeformableAttention.apply(*tensors, shapes), inputs)


def test_maps_with_gaps_between_them():
    value = torch.randn(1, 20, 1, 4)
    points, weights = torch.rand(1, 3, 1, 2, 2, 2), torch.rand(1, 3, 1, 2, 2)
    shapes, gap = torch.tensor([[2, 3], [3, 2]]), torch.tensor([1, 12])
    packed = torch.cat([value[:, 1:7], value[:, 12:18]], 1)
    output = ms_deform_attn_forward(value, shapes, gap, points, weights, 64)
    torch.testing.assert_close(output, sample_on_cpu(packed, shapes.tolist(), points, weights))


def test_no_queries_no_images_and_half_precision():
    shapes = [[3, 4]]
    value, points, weights = (tensor.detach() for tensor in make_inputs(shapes))
    assert DeformableAttention.apply(value, points[:, :0], weights[:, :0], shapes).shape == (2, 0, 24)
    assert DeformableAttention.apply(value[:0], points[:0], weights[:0], shapes).shape == (0, 11, 24)
    half = [tensor.half().requires_grad_() for tensor in (value, points, weights)]
    output = DeformableAttention.apply(*half, shapes)
    exact = DeformableAttention.apply(*(tensor.detach().double() for tensor in half), shapes)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output.double(), exact, rtol=1e-3, atol=1e-3)
    assert all(each.dtype == torch.float16 for each in torch.autograd.grad(output.sum(), half))
