from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet')

from mmcv.ops import MultiScaleDeformableAttention as MMCVAttention
from mmengine.registry import MODELS

from mmitpn.models.dino import MultiScaleDeformableAttention, deformable_attention

SHAPES = [[6, 9], [3, 5]]


@pytest.fixture
def attention():
    module = MultiScaleDeformableAttention(embed_dims=32, num_heads=4, num_levels=2, dropout=0.0, batch_first=True)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module.eval()


def make_inputs(coordinates, *, queries=7, batch_first=True):
    spatial_shapes = torch.tensor(SHAPES)
    positions = int(spatial_shapes.prod(1).sum())
    inputs = {
        'query': torch.randn(2, queries, 32),
        'value': torch.randn(2, positions, 32),
        'query_pos': torch.randn(2, queries, 32),
        'key_padding_mask': torch.rand(2, positions) < 0.2,
        'reference_points': torch.rand(2, queries, 2, coordinates),
        'spatial_shapes': spatial_shapes,
        'level_start_index': torch.tensor([0, 54]),
    }
    if not batch_first:
        for name in ('query', 'value', 'query_pos'):
            inputs[name] = inputs[name].transpose(0, 1)
    return inputs


def test_found_by_its_name():
    built = MODELS.build({'type': 'mmitpn.MultiScaleDeformableAttention', 'embed_dims': 32, 'num_heads': 4})
    assert isinstance(built, MultiScaleDeformableAttention)


@pytest.mark.parametrize('coordinates', [2, 4])
@pytest.mark.parametrize('batch_first', [True, False])
def test_equal_to_mmcv(attention, coordinates, batch_first):
    mmcv_attention = MMCVAttention(
        embed_dims=32, num_heads=4, num_levels=2, dropout=0.0, batch_first=batch_first
    ).eval()
    mmcv_attention.load_state_dict(attention.state_dict())
    attention.batch_first = batch_first
    inputs = make_inputs(coordinates, batch_first=batch_first)
    torch.testing.assert_close(attention(**inputs), mmcv_attention(**inputs))


def test_level_shapes_as_a_list_are_the_same(attention):
    inputs = make_inputs(4)
    torch.testing.assert_close(attention(**inputs, level_shapes=SHAPES), attention(**inputs), rtol=0, atol=0)


def test_far_offsets_sample_where_fp32_says_under_autocast(attention):
    # 8 bits would place points of a long map up to half a cell off.
    attention.sampling_offsets.bias.data.add_(3.3)
    inputs = make_inputs(2)
    expected = attention(**inputs)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = attention(**inputs)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_gradients_reach_every_parameter_under_autocast(attention):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        attention.train()(**make_inputs(4)).square().mean().backward()
    for name, parameter in attention.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_value_of_another_size_is_refused(attention):
    inputs = make_inputs(2)
    inputs['spatial_shapes'] = torch.tensor([[6, 9], [3, 4]])
    with pytest.raises(ValueError, match=r'\[\[6, 9\], \[3, 4\]\] have 66 positions, but value has 69'):
        attention(**inputs)


def test_reference_points_of_other_coordinates_are_refused(attention):
    with pytest.raises(ValueError, match='reference points have 3 coordinates; allowed: 2'):
        attention(**make_inputs(3))


@pytest.fixture
def fresh_decision():
    deformable_attention.compiled_for_cuda.cache_clear()
    yield
    deformable_attention.compiled_for_cuda.cache_clear()


@pytest.mark.parametrize(
    ('version', 'triton', 'expected'),
    [
        ('12.8', True, 'compiled'),
        ('not available', True, 'triton'),
        ('none: PyTorch operators of mmitpn', True, 'triton'),
        ('not available', False, 'pytorch'),
    ],
)
@pytest.mark.usefixtures('fresh_decision')
def test_a_gpu_uses_compiled_operators_only_where_there_are_any(attention, monkeypatch, version, triton, expected):
    asked = []
    monkeypatch.setattr(deformable_attention, 'get_compiling_cuda_version', lambda: asked.append(1) or version)
    monkeypatch.setattr(
        deformable_attention, 'MultiScaleDeformableAttnFunction', SimpleNamespace(apply=lambda *_: 'compiled')
    )
    monkeypatch.setattr(deformable_attention, 'multi_scale_deformable_attn_pytorch', lambda *_: 'pytorch')
    monkeypatch.setattr(deformable_attention, 'sample_on_cpu', lambda *_: 'cpu')
    kernels = SimpleNamespace(TritonSample=SimpleNamespace(apply=lambda *_: 'triton'))
    monkeypatch.setattr(deformable_attention, 'triton_kernels', lambda _: kernels if triton else None)
    on_gpu = SimpleNamespace(is_cuda=True, device=torch.device('cuda'))
    on_cpu = SimpleNamespace(is_cuda=False, device=torch.device('cpu'))
    assert attention._sample(on_cpu, None, None, None, None, None) == 'cpu'
    assert not asked
    assert [attention._sample(on_gpu, None, None, None, None, None) for _ in range(2)] == [expected] * 2
    assert len(asked) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('coordinates', [2, 4])
def test_a_gpu_gives_what_the_cpu_gives(attention, coordinates):
    inputs = make_inputs(coordinates)
    expected = attention(**inputs)
    found = attention.cuda()(**{name: value.cuda() for name, value in inputs.items()})
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
