"""The Triton kernels, in Triton's interpreter on CPU tensors, against the operator in PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('triton', reason='Triton, which comes with torch on Linux, is not installed')
ROOT = Path(__file__).parents[2]
COMPARE = """
import torch
from mmitpn.ops.deformable_attention import sample_on_cpu as on_cpu
from mmitpn.ops.deformable_attention_triton import TritonSample

DEVICE = 'cpu'
torch.set_default_device(DEVICE)

def sample_on_cpu(value, shapes, points, weights):
    with torch.device('cpu'):
        return on_cpu(value.cpu(), shapes, points.cpu(), weights.cpu()).to(DEVICE)

def case(shapes, batch, queries, heads, dim, samples, dtype=torch.float32, spread=1.4):
    torch.manual_seed(0)
    positions = sum(h * w for h, w in shapes)
    value = torch.randn(batch, positions, heads, dim).to(dtype).requires_grad_()
    points = (torch.rand(batch, queries, heads, len(shapes), samples, 2) * spread - (spread - 1) / 2).requires_grad_()
    weights = torch.rand(batch, queries, heads, len(shapes), samples).requires_grad_()
    sizes = torch.tensor(shapes)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    given = [value, points, weights]
    output = TritonSample.apply(value, sizes, starts, points, weights)
    grad = torch.randn(output.shape).to(dtype)
    found = [output.detach(), *torch.autograd.grad(output, given, grad)]
    wide = [each.detach().double().requires_grad_() for each in given]
    expected = sample_on_cpu(wide[0], [list(shape) for shape in shapes], wide[1], wide[2])
    expected = [expected.detach(), *torch.autograd.grad(expected, wide, grad.double())]
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    for name, one, other in zip(('output', 'value', 'points', 'weights'), found, expected):
        assert one.dtype == (dtype if name in ('output', 'value') else torch.float32), name
        error = float((one.double() - other).abs().max() / other.abs().max())
        print(name, dtype, dim, f'{error:.1e}')
        assert error < bound, (name, error)

case([(7, 5)], 1, 3, 1, 8, 1)
case([(6, 9), (3, 5), (1, 2)], 2, 19, 2, 24, 4)
case([(5, 4), (3, 2)], 1, 5, 2, 64, 2)
case([(5, 4), (3, 2)], 1, 5, 2, 32, 2, torch.bfloat16)

sizes, starts = torch.tensor([[2, 2]]), torch.zeros(1, dtype=torch.long)
value = torch.randn(1, 4, 2, 8, requires_grad=True)
empty = TritonSample.apply(value, sizes, starts, torch.zeros(1, 0, 2, 1, 3, 2), torch.zeros(1, 0, 2, 1, 3))
assert empty.shape == (1, 0, 16)
# On the edges: half a cell outside is zero, as are the gradients there.
points = torch.tensor([-0.25, 1.25, 0.0, 1.0, 0.5]).view(1, 5, 1, 1, 1, 1).expand(1, 5, 2, 1, 1, 2)
points = points.clone().requires_grad_()
ones = torch.ones(1, 5, 2, 1, 1)
output = TritonSample.apply(value.transpose(1, 2).contiguous().transpose(1, 2), sizes, starts, points, ones)
assert not output[0, :2].any()
assert torch.allclose(output, sample_on_cpu(value, [[2, 2]], points, ones), atol=1e-6)
output.sum().backward()
assert not points.grad[0, :2].any()
try:
    TritonSample.apply(torch.randn(1, 4, 2, 12), sizes, starts, points, ones)
except ValueError as error:
    assert 'has 12 channels; the Triton kernel takes multiples of 8' in str(error)
else:
    raise SystemExit('12 channels were taken')
"""


def test_kernels_are_exact_in_the_interpreter():
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', COMPARE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('torch.bfloat16') == 4


def test_triton_is_imported_where_it_is_used_only():
    code = 'import sys, mmitpn.ops, mmitpn.ops.deformable_attention; print("triton" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'False'


def test_a_launcher_that_cannot_be_built_is_reported_once(monkeypatch):
    from mmitpn.ops import deformable_attention as module
    from mmitpn.ops import deformable_attention_triton as kernels

    def fails(*_):
        raise RuntimeError('Failed to find C compiler. Please specify via CC')

    monkeypatch.setattr(kernels, 'gradients', fails)
    module._load_triton.cache_clear()
    device = torch.device('cpu')
    with pytest.warns(
        UserWarning, match=r'cannot build deformable attention \(Failed to find C compiler.*PyTorch samples'
    ):
        assert module._load_triton(device) is None
    assert module._load_triton(device) is None  # no second warning, which would be an error here
    module._load_triton.cache_clear()


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
    from mmitpn.ops import deformable_attention as module

    monkeypatch.setattr(module, '_load_triton', lambda _: 'kernels')
    value = SimpleNamespace(is_cuda=is_cuda, dtype=dtype, shape=(1, 4, 2, width), device='cuda')
    assert (module.triton_kernels(value) == 'kernels') == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_kernels_are_exact_on_a_gpu():
    code = COMPARE.replace("DEVICE = 'cpu'", "DEVICE = 'cuda'")
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
