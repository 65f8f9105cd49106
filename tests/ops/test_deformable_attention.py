"""Deformable attention: PyTorch against the definition in float64 and grid_sample; Triton's kernels against PyTorch."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.utils._python_dispatch import TorchDispatchMode

import mmitpn.ops
from mmitpn.ops import deformable_attention
from mmitpn.ops import deformable_attention as module
from mmitpn.ops.deformable_attention import ms_deform_attn_backward, ms_deform_attn_forward, sample_levels

needs_triton = pytest.mark.skipif(
    find_spec('triton') is None, reason='Triton, which comes with torch on Linux, is missing'
)
ROOT = Path(__file__).parents[2]
# Triton decides at @triton.jit whether to interpret, so that the comparisons run in a process of their own.
COMPARE = """
import torch
from mmitpn.ops import deformable_attention, extension
from mmitpn.ops import deformable_attention_triton as kernels
from mmitpn.ops.deformable_attention import sample_levels
from mmitpn.ops.deformable_attention_triton import TritonSample

DEVICE = 'cpu'
torch.set_default_device(DEVICE)
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# One unit in the last place of a half type: the interpreter truncates to bf16, where a GPU rounds.
BOUNDS = {F32: 1e-5, BF16: 2**-7, F16: 2**-10}

def sample_on_cpu(value, shapes, points, weights):
    with torch.device('cpu'):
        return sample_levels(value.cpu(), shapes, points.cpu(), weights.cpu()).to(DEVICE)

def level_tensors(shapes):
    sizes = torch.tensor(shapes)
    return sizes, torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))

def make(shapes, batch, queries, heads, dim, samples, dtype=F32, coordinates=F32):
    torch.manual_seed(0)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim).to(dtype)
    points = (torch.rand(batch, queries, heads, len(shapes), samples, 2) * 1.4 - 0.2).to(coordinates)
    weights = torch.rand(batch, queries, heads, len(shapes), samples).to(coordinates)
    return [each.requires_grad_() for each in (value, points, weights)]

def compare(label, shapes, inputs, function=TritonSample.apply):
    value, points, weights = inputs
    output = function(value, *level_tensors(shapes), points, weights)
    grad = torch.randn(output.shape).to(value.dtype)
    found = [output.detach(), *torch.autograd.grad(output, inputs, grad)]
    wide = [each.detach().double().requires_grad_() for each in inputs]
    expected = sample_on_cpu(wide[0], [list(shape) for shape in shapes], wide[1], wide[2])
    expected = [expected.detach(), *torch.autograd.grad(expected, wide, grad.double())]
    dtypes = [value.dtype, *(each.dtype for each in inputs)]
    for name, one, other, dtype in zip(('output', 'value', 'points', 'weights'), found, expected, dtypes):
        assert one.dtype == dtype, (label, name)
        error = float((one.double() - other).abs().max() / other.abs().max())
        print(f'{label}: {name} {error:.1e}')
        assert error < BOUNDS[dtype], (label, name, error)
    return found

MAPS = [(7, 5), (6, 9), (3, 1), (1, 2)]
compare('one level, one point', MAPS[:1], make(MAPS[:1], 1, 3, 1, 8, 1))
compare('two levels', MAPS[:2], make(MAPS[:2], 1, 3, 2, 64, 2))
compare('three levels, more queries than a block', MAPS[:3], make(MAPS[:3], 2, 17, 2, 24, 3))
compare('four levels', MAPS, make(MAPS, 1, 5, 1, 32, 4))
compare('40 channels', MAPS[:1], make(MAPS[:1], 1, 3, 2, 40, 2))
compare('an empty level', [(3, 2), (0, 4), (2, 2)], make([(3, 2), (0, 4), (2, 2)], 1, 5, 1, 8, 2))
compare('bf16', MAPS[:2], make(MAPS[:2], 1, 5, 2, 32, 2, BF16))
compare('bf16, also the points', MAPS[:1], make(MAPS[:1], 1, 5, 2, 8, 2, BF16, BF16))
compare('fp16', MAPS[:2], make(MAPS[:2], 1, 5, 2, 16, 2, F16))

# Sums of 1 + 2 ** -7, which are exact in fp32; the third in bf16 is not.
inputs = torch.full((1, 1, 1, 8), 1.0078125).to(BF16), *level_tensors([(1, 1)])
inputs = *inputs, torch.full((1, 16, 1, 1, 16, 2), 0.5), torch.ones(1, 16, 1, 1, 16)
assert (kernels.sample(*inputs) == 16 * 1.0078125).all()
of_value = kernels.gradients(*inputs, inputs[0].view(1, 1, 8).repeat(1, 16, 1))[0]
assert of_value.dtype == F32 and (of_value == 256 * 1.0078125).all()

# Powers of 2 are exact: outside, on the edge where a sample ends, on centers of cells, between two, and nowhere.
value, _, weights = make([(4, 8)], 1, 9, 1, 8, 1)
x = torch.tensor([-2.0, -0.0625, 0.0625, 0.9375, 1.0625, 0.0, 1.0, 0.5, float('nan')])
y = torch.tensor([0.5, 0.625, 0.125, 0.875, 0.5, 0.0, 1.0, 0.5, 0.5])
points = torch.stack((x, y), -1)
for swapped in (False, True):
    where = points.flip(-1) if swapped else points
    shapes = [(8, 4)] if swapped else [(4, 8)]
    where = where[None, :, None, None, None].clone().requires_grad_()
    found = compare('edges', shapes, [value, where, weights])
    for query in (0, 1, 4, 8):
        assert not found[0][0, query].any() and not found[2][0, query].any() and not found[3][0, query].any(), query

# Views with other strides, and a gradient without memory of its own.
views = [each.detach().transpose(0, 1).contiguous().transpose(0, 1) for each in make(MAPS[:2], 2, 5, 1, 8, 2)]
assert not any(each.is_contiguous() for each in views)
views = [each.requires_grad_() for each in views]
compare('views', MAPS[:2], views)
TritonSample.apply(views[0], *level_tensors(MAPS[:2]), *views[1:]).sum().backward()
expected = [each.detach().double().requires_grad_() for each in views]
sample_on_cpu(expected[0], [list(shape) for shape in MAPS[:2]], *expected[1:]).sum().backward()
for one, other in zip(views, expected):
    assert (one.grad - other.grad).abs().max() < 1e-5 * other.grad.abs().max()

# Nothing to sample.
for images, queries in ((1, 0), (0, 3)):
    inputs = make(MAPS[:1], images, queries, 2, 8, 3)
    empty = TritonSample.apply(inputs[0], *level_tensors(MAPS[:1]), *inputs[1:])
    assert empty.shape == (images, queries, 16)
    assert not any(each.any() for each in torch.autograd.grad(empty.sum(), inputs))
inputs = make([(0, 4)], 1, 3, 2, 8, 2)
output = TritonSample.apply(inputs[0], *level_tensors([(0, 4)]), *inputs[1:])
assert output.shape == (1, 3, 16) and not output.any()
assert not any(each.any() for each in torch.autograd.grad(output.sum(), inputs))

# Maps with gaps between them, levels in 32 bits.
value, points, weights = (each.detach() for each in make([(4, 5)], 1, 3, 1, 8, 2))
points, weights = points.repeat(1, 1, 1, 2, 1, 1), weights.repeat(1, 1, 1, 2, 1)
sizes, gaps = torch.tensor([[2, 3], [3, 2]], dtype=torch.int32), torch.tensor([1, 12], dtype=torch.int32)
packed = torch.cat((value[:, 1:7], value[:, 12:18]), 1)
output = kernels.sample(value, sizes, gaps, points, weights)
assert torch.allclose(output, sample_on_cpu(packed, sizes.tolist(), points, weights), atol=1e-5)

# The operators that mmcv calls use the kernels where there are any, and add to the gradient of the values.
class Operator(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return extension.ms_deform_attn_forward(*inputs, im2col_step=64)

    @staticmethod
    def backward(ctx, grad):
        value, _, _, points, weights = ctx.saved_tensors
        gradients = [torch.ones_like(value), torch.zeros_like(points), torch.zeros_like(weights)]
        extension.ms_deform_attn_backward(*ctx.saved_tensors, grad.contiguous(), *gradients, im2col_step=64)
        return gradients[0] - 1, None, None, *gradients[1:]

launches = []
launch = kernels._launch
kernels._launch = lambda kernel, *tensors: launches.append(1) or launch(kernel, *tensors)
choose = deformable_attention.triton_kernels
deformable_attention.triton_kernels = lambda _: kernels
compare('operators', MAPS[:2], make(MAPS[:2], 1, 5, 2, 8, 2), Operator.apply)
assert len(launches) == 2

# What does not fit is refused before it is read.
def refused(error, text, change):
    inputs = dict(zip(('value', 'shapes', 'starts', 'points', 'weights'), (
        torch.randn(2, 4, 2, 8), *level_tensors([(2, 2)]), torch.rand(2, 5, 2, 1, 3, 2), torch.rand(2, 5, 2, 1, 3))))
    inputs |= change
    for call in (kernels.sample, lambda *args: kernels.gradients(*args, torch.randn(2, 5, 16))):
        try:
            call(*inputs.values())
        except error as raised:
            assert text in str(raised), raised
        else:
            raise SystemExit(f'not refused: {text}')

refused(ValueError, 'has 12 channels; the Triton kernel takes multiples of 8', {'value': torch.randn(2, 4, 2, 12)})
refused(ValueError, 'has 0 channels; the Triton kernel takes multiples of 8', {'value': torch.randn(2, 4, 2, 0)})
refused(TypeError, 'are torch.float64; the Triton kernel takes fp32', {'value': torch.randn(2, 4, 2, 8).double()})
refused(ValueError, 'of value (1, 4, 2, 8)', {'value': torch.randn(1, 4, 2, 8)})
refused(ValueError, 'of value (2, 4, 1, 8)', {'value': torch.randn(2, 4, 1, 8)})
refused(ValueError, 'spatial shapes (2, 2)', {'shapes': torch.ones(2, 2, dtype=torch.long)})
refused(ValueError, 'level starts (2,)', {'starts': torch.zeros(2, dtype=torch.long)})
refused(ValueError, 'points (2, 4, 2, 1, 3, 2)', {'points': torch.rand(2, 4, 2, 1, 3, 2)})
refused(ValueError, 'weights (2, 5, 2, 1, 2)', {'weights': torch.rand(2, 5, 2, 1, 2)})
value, points, weights = (each.detach() for each in make(MAPS[:1], 1, 3, 1, 8, 1))
try:
    kernels.gradients(value, *level_tensors(MAPS[:1]), points, weights, torch.randn(1, 2, 8))
except ValueError as raised:
    assert 'is (1, 2, 8); allowed: (1, 3, 8)' in str(raised), raised
else:
    raise SystemExit('a gradient of another shape was taken')
# The operator of torch, which fills the tensors that describe the levels on the device.
def operator(value, sizes, starts, points, weights):
    return sample_levels(value, sizes.tolist(), points, weights)

if DEVICE != 'cpu':
    deformable_attention.triton_kernels = choose
    compare('sample_levels', MAPS[:2], make(MAPS[:2], 2, 17, 2, 24, 3), operator)
    compare('sample_levels without Triton', MAPS[:2], make(MAPS[:2], 2, 17, 2, 12, 3), operator)
print('all compared')
"""


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
    for ours, theirs in zip(with_gradients(sample_levels, inputs, shapes), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_query_of_one_head():
    shapes = [[3, 4]]
    inputs = make_inputs(shapes, batch=1, queries=1, heads=1)
    expected = with_gradients(by_grid_sample, inputs, shapes)
    for ours, theirs in zip(with_gradients(sample_levels, inputs, shapes), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('point', [float('nan'), float('inf'), -float('inf'), 1e30, -1e30])
def test_a_point_nowhere_samples_zero(point):
    shapes = [[4, 5], [2, 3]]
    value, points, weights = make_inputs(shapes)
    points = points.detach()
    points[0, 3] = point
    output = sample_levels(value, shapes, points, weights)
    assert output.isfinite().all()
    assert (output[0, 3] == 0).all()
    assert (output[0, 4] != 0).any()


def test_what_needs_no_gradient_gets_none():
    shapes = [[4, 5]]
    value, points, weights = (tensor.detach() for tensor in make_inputs(shapes))
    sample_levels(value.requires_grad_(), shapes, points, weights).sum().backward()
    assert value.grad is not None
    assert points.grad is None

    value = value.detach()
    sample_levels(value, shapes, points, weights.requires_grad_()).sum().backward()
    assert weights.grad is not None
    assert value.grad is None


def test_keeps_only_its_inputs_for_the_backward_pass():
    shapes = [[16, 16], [8, 8]]
    inputs = make_inputs(shapes, queries=64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda none: none):
        sample_levels(inputs[0], shapes, *inputs[1:])
    assert sum(kept) == sum(tensor.numel() for tensor in inputs)


@pytest.mark.parametrize('queries', [0, 11])
def test_the_operator_keeps_the_rules_of_torch_library(queries):
    inputs = make_inputs([[3, 4], [1, 2]], queries=queries)
    sizes = [3, 4, 1, 2]
    torch.library.opcheck(torch.ops.mmitpn.sample_levels.default, (*inputs, sizes))
    inputs = [tensor.detach() for tensor in inputs]
    grad = torch.rand(2, queries, 24)
    for needed in itertools.product((True, False), repeat=2):
        torch.library.opcheck(torch.ops.mmitpn.sample_levels_backward.default, (grad, *inputs, sizes, *needed))


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.thorough)])
@pytest.mark.parametrize('dynamic', [False, True])
def test_a_compiled_graph_has_no_break(request, backend, dynamic):
    if backend == 'inductor':
        request.getfixturevalue('inductor')
    torch.compiler.reset()
    compiled = torch.compile(
        lambda value, shapes, *rest: sample_levels(value * 2, shapes, *rest) + 1,
        backend=backend,
        dynamic=dynamic,
        fullgraph=True,
    )
    for shapes, queries in (([[4, 5], [2, 3]], 7), ([[6, 5], [3, 4]], 9)):
        inputs = make_inputs(shapes, queries=queries)
        expected = with_gradients(lambda value, *rest: sample_levels(value * 2, *rest) + 1, inputs, shapes)
        for found, wanted in zip(with_gradients(compiled, inputs, shapes), expected, strict=True):
            torch.testing.assert_close(found, wanted)
        with torch.no_grad():
            torch.testing.assert_close(compiled(inputs[0], shapes, *inputs[1:]), expected[0])
    torch.compiler.reset()


def test_other_devices_get_the_levels_without_a_copy_from_the_host():
    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.overloadpacket.__name__ not in {'_to_copy', 'lift_fresh', 'copy_', '_local_scalar_dense'}, func
            return func(*args, **kwargs or {})

    sizes = [4, 5, 2, 3, 1, 1]
    with Copies():
        shapes, starts = module.level_tensors(module._pairs(sizes), torch.device('cpu'))
    assert shapes.tolist() == [[4, 5], [2, 3], [1, 1]]
    assert starts.tolist() == [0, 20, 26]


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
    torch.testing.assert_close(output, sample_levels(packed, shapes.tolist(), points, weights))


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


def run(code, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != 'TRITON_INTERPRET'}
    command = [sys.executable, '-c', code]
    inherited['PYTHONPATH'] = str(ROOT)
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)


@needs_triton
def test_kernels_are_exact_in_the_interpreter():
    done = run(COMPARE, TRITON_INTERPRET='1')
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith('all compared\n')


@needs_triton
@pytest.mark.skipif(os.environ.get('TRITON_INTERPRET') == '1', reason='kernels are interpreted, not compiled')
@pytest.mark.parametrize('kernel', ['_sample_kernel', '_gradient_kernel'])
@pytest.mark.parametrize(('dtype', 'dim'), [('fp32', 32), ('bf16', 24)])
def test_kernels_compile_without_a_gpu(monkeypatch, tmp_path, kernel, dtype, dim):
    """The compiler refuses what the interpreter takes: variables of a loop that change their type, for one."""
    import triton
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmitpn.ops import deformable_attention_triton as kernels

    if 'nvidia' not in backends:
        pytest.skip('this Triton compiles for no GPU of NVIDIA')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    function = getattr(kernels, kernel)
    block_q, block_d = kernels._blocks(dim)
    constants = {'levels': 3, 'samples': 4, 'block_q': block_q, 'block_d': block_d}
    types = dict.fromkeys(function.arg_names, '*fp32') | dict.fromkeys(constants, 'constexpr')
    types |= dict.fromkeys(('positions', 'queries', 'heads', 'dim'), 'i32') | {'shapes': '*i64', 'starts': '*i64'}
    types |= {name: f'*{dtype}' for name in ('value', 'out', 'grad') if name in types}
    compiled = triton.compile(ASTSource(function, types, constants), target=GPUTarget('cuda', 80, 32))
    assert compiled.asm['cubin']
    additions = [line for line in compiled.asm['ptx'].splitlines() if 'atom.' in line or 'red.global' in line]
    assert bool(additions) == (kernel == '_gradient_kernel')
    assert all('relaxed' in line and 'add.f32' in line for line in additions)


@needs_triton
@pytest.mark.parametrize('dim', [8, 24, 32, 40, 64, 256, 1024])
def test_a_program_keeps_its_sums_in_registers(dim):
    from mmitpn.ops import deformable_attention_triton as kernels

    block_q, block_d = kernels._blocks(dim)
    assert dim <= block_d < 2 * dim
    assert 1 <= block_q <= 16
    assert block_q * block_d <= max(512, block_d)
    assert block_q & (block_q - 1) == block_d & (block_d - 1) == 0  # what tl.arange takes


def test_triton_is_imported_where_it_is_used_only():
    done = run('import sys, mmitpn.ops, mmitpn.ops.deformable_attention; print("triton" in sys.modules)')
    assert done.stdout.strip() == 'False', done.stderr


@pytest.fixture
def tried_on_a_cpu(monkeypatch):
    """CPU tensors that try Triton as those of a GPU do."""
    module._load_triton.cache_clear()
    monkeypatch.setattr(module, 'triton_kernels', lambda value: module._load_triton(value.device))
    yield
    module._load_triton.cache_clear()


def check_pytorch_samples_after_one_warning(text):
    shapes = torch.tensor([[3, 4], [2, 1]])
    starts = torch.tensor([0, 12])
    value = torch.randn(2, 14, 2, 8, requires_grad=True)
    points = torch.rand(2, 5, 2, 2, 3, 2, requires_grad=True)
    weights = torch.rand(2, 5, 2, 2, 3, requires_grad=True)
    inputs = value, shapes, starts, points, weights
    with pytest.warns(UserWarning, match=text) as caught:
        output = module.ms_deform_attn_forward(*inputs, 64)
    assert len(caught) == 1
    gradients = [torch.zeros_like(each) for each in (value, points, weights)]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        module.ms_deform_attn_forward(*inputs, 64)
        module.ms_deform_attn_backward(*inputs, torch.ones_like(output), *gradients, 64)
    expected = module.sample_levels(value, shapes.tolist(), points, weights)
    torch.testing.assert_close(output, expected)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.sum(), (value, points, weights)), strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_triton
@pytest.mark.usefixtures('tried_on_a_cpu')
def test_pytorch_samples_where_a_launcher_cannot_be_built(monkeypatch):
    from mmitpn.ops import deformable_attention_triton as kernels

    def fails(*_):
        raise RuntimeError('Failed to find C compiler. Please specify via CC')

    monkeypatch.setattr(kernels, 'gradients', fails)
    check_pytorch_samples_after_one_warning(
        r'cannot build deformable attention \(Failed to find C compiler.*PyTorch samples.*gcc python3-dev'
    )


@pytest.mark.usefixtures('tried_on_a_cpu')
def test_pytorch_samples_without_triton(monkeypatch):
    monkeypatch.delattr(mmitpn.ops, 'deformable_attention_triton', raising=False)
    monkeypatch.delitem(sys.modules, 'mmitpn.ops.deformable_attention_triton', raising=False)
    monkeypatch.setitem(sys.modules, 'triton', None)
    check_pytorch_samples_after_one_warning(r'\(.*import of triton.*install Triton')


def values(*, is_cuda=True, dtype=torch.float32, width=32):
    return SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(1, 4, 2, width), device='cuda')


@pytest.mark.parametrize(
    ('is_cuda', 'dtype', 'width', 'expected'),
    [
        (True, torch.float32, 32, True),
        (True, torch.bfloat16, 8, True),
        (True, torch.float64, 32, False),
        (True, torch.float32, 12, False),
        (False, torch.float32, 32, False),
    ],
)
def test_what_the_kernels_are_used_for(monkeypatch, is_cuda, dtype, width, expected):
    monkeypatch.setattr(module, '_load_triton', lambda _: 'kernels')
    assert (module.triton_kernels(values(is_cuda=is_cuda, dtype=dtype, width=width)) == 'kernels') == expected


class Asking(torch.nn.Module):
    """Notes which kernels are chosen for a GPU while the module runs."""

    def __init__(self, chosen):
        super().__init__()
        self.note = lambda: chosen.append(module.triton_kernels(values()))

    def forward(self, x):
        self.note()
        return x + 1


@pytest.mark.filterwarnings('ignore::FutureWarning')  # torch.jit.trace is deprecated, and still what ONNX uses
@pytest.mark.parametrize(
    'trace',
    [
        lambda network, x: torch.jit.trace(network, x, check_trace=False),
        lambda network, x: torch.export.export(network, (x,), strict=False),
    ],
    ids=['trace', 'export'],
)
def test_a_traced_graph_has_no_kernel(monkeypatch, trace):
    monkeypatch.setattr(module, '_load_triton', lambda _: 'kernels')
    chosen, x = [], torch.ones(2)
    network = Asking(chosen)
    network(x)
    assert chosen == ['kernels']
    chosen.clear()
    trace(network, x)
    assert set(chosen) == {None}


@pytest.mark.parametrize(
    'flag', ['torch.compiler.is_compiling', 'torch.jit.is_tracing', 'torch.onnx.is_in_onnx_export']
)
def test_every_kind_of_graph_is_pytorch(monkeypatch, flag):
    monkeypatch.setattr(module, '_load_triton', lambda _: 'kernels')
    monkeypatch.setattr(flag, lambda: True)
    assert module.triton_kernels(values()) is None


@pytest.mark.gpu
def test_kernels_are_exact_on_a_gpu():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert module.triton_kernels(torch.zeros(1, 4, 1, 8, device='cuda')) is not None
    done = run(COMPARE.replace("DEVICE = 'cpu'", "DEVICE = 'cuda'"))
    assert done.returncode == 0, done.stdout + done.stderr
