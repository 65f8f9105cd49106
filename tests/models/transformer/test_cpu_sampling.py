from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

from mmitpn.models.transformer.cpu_sampling import sample_on_cpu


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


@pytest.mark.parametrize(
    'shapes', [[[6, 9]], [[13, 8], [7, 4], [3, 2], [1, 1]], [[1, 17], [5, 1]]], ids=['one', 'four', 'thin']
)
@pytest.mark.parametrize('spread', [0.9, 3.0], ids=['inside', 'far-outside'])
def test_samples_and_gradients_are_those_of_grid_sample(shapes, spread):
    inputs = make_inputs(shapes, spread=spread)
    expected = with_gradients(multi_scale_deformable_attn_pytorch, inputs, shapes)
    for ours, theirs in zip(with_gradients(sample_on_cpu, inputs, shapes), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('place', [float('nan'), float('inf'), -float('inf'), 1e30, -1e30])
def test_a_point_nowhere_samples_zero(place):
    shapes = [[4, 5], [2, 3]]
    value, points, weights = make_inputs(shapes)
    points = points.detach()
    points[0, 3] = place
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
