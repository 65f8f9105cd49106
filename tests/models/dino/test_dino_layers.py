"""Deformable attention, encoder and decoder of DINO."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet')

from mmcv.ops import MultiScaleDeformableAttention as MMCVAttention
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmdet.models.layers import coordinate_to_encoding
from mmdet.models.layers.transformer.deformable_detr_layers import DeformableDetrTransformerDecoderLayer
from mmengine.registry import MODELS

from mmitpn.models.dino import FeatureLevels, MultiScaleDeformableAttention, deformable_attention
from mmitpn.models.dino.levels import sine_embedding
from mmitpn.models.dino.transformer import (
    DinoDecoderLayer,
    DinoTransformerDecoder,
    DinoTransformerEncoder,
    resolve_num_recomputed,
)

SHAPES = ((6, 9), (3, 5))
LAYER = {
    'self_attn_cfg': {'embed_dims': 32, 'num_heads': 4},
    'cross_attn_cfg': {'embed_dims': 32, 'num_heads': 4, 'num_levels': 2, 'dropout': 0.0},
    'ffn_cfg': {'embed_dims': 32, 'feedforward_channels': 48, 'ffn_drop': 0.0},
}


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


def test_level_shapes_as_numbers_are_the_same(attention):
    inputs = make_inputs(4)
    expected = attention(**inputs)
    del inputs['spatial_shapes'], inputs['level_start_index']
    torch.testing.assert_close(attention(**inputs, level_shapes=SHAPES), expected, rtol=0, atol=0)


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
    with pytest.raises(ValueError, match=r'\(\(6, 9\), \(3, 4\)\) have 66 positions, but value has 69'):
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
    ('version', 'expected'),
    [('12.8', 'mmcv'), ('not available', 'ours'), ('none: PyTorch operators of mmitpn', 'ours')],
)
@pytest.mark.usefixtures('fresh_decision')
def test_a_gpu_uses_compiled_operators_only_where_there_are_any(attention, monkeypatch, version, expected):
    asked = []
    monkeypatch.setattr(deformable_attention, 'get_compiling_cuda_version', lambda: asked.append(1) or version)
    monkeypatch.setattr(
        deformable_attention, 'MultiScaleDeformableAttnFunction', SimpleNamespace(apply=lambda *_: 'mmcv')
    )
    monkeypatch.setattr(deformable_attention, 'sample_levels', lambda *_: 'ours')
    on_levels = None, torch.tensor(SHAPES), torch.tensor([0, 54]), SHAPES
    on_gpu, on_cpu = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
    assert attention._sample(on_cpu, None, None, None, None, None) == 'ours'
    assert not asked
    assert [attention._sample(on_gpu, None, *on_levels) for _ in range(2)] == [expected] * 2
    assert len(asked) == 1
    monkeypatch.setattr('torch.compiler.is_compiling', lambda: True)
    assert attention._sample(on_gpu, None, None, None, None, None) == 'ours'  # mmcv's would break the graph


@pytest.mark.parametrize('sample', ['sample_by_grid', 'sample_by_gather'])
def test_samples_of_an_exported_graph_are_those_of_mmcv(sample):
    generator = torch.Generator().manual_seed(1)
    shapes = ((7, 5), (4, 3), (1, 2))
    value = torch.randn(2, 35 + 12 + 2, 3, 4, generator=generator)
    points = torch.rand(2, 6, 3, 3, 5, 2, generator=generator) * 2 - 0.5  # also outside of the maps
    weights = torch.rand(2, 6, 3, 3, 5, generator=generator)
    expected = multi_scale_deformable_attn_pytorch(value, shapes, points, weights)
    torch.testing.assert_close(
        getattr(deformable_attention, sample)(value, shapes, points, weights), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    'flag', ['torch.compiler.is_exporting', 'torch.jit.is_tracing', 'torch.onnx.is_in_onnx_export']
)
def test_an_exported_graph_needs_no_operator_of_ours(attention, monkeypatch, flag):
    inputs = make_inputs(2)
    expected = attention(**inputs)
    monkeypatch.setattr(deformable_attention, 'sample_levels', None)
    monkeypatch.setattr(flag, lambda: True)
    torch.testing.assert_close(attention(**inputs), expected)


@pytest.mark.gpu
@pytest.mark.parametrize('coordinates', [2, 4])
def test_a_gpu_gives_what_the_cpu_gives(attention, coordinates):
    inputs = make_inputs(coordinates)
    expected = attention(**inputs)
    found = attention.cuda()(**{name: value.cuda() for name, value in inputs.items()})
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('num_feats', [16, 128])
def test_sine_embedding_is_that_of_the_published_models(num_feats):
    boxes = torch.rand(2, 5, 4)
    expected = coordinate_to_encoding(boxes, num_feats=num_feats)  # y, x, w, h
    found = sine_embedding(boxes[..., [1, 0, 2, 3]], num_feats)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_sine_embedding_stays_in_fp32():
    assert sine_embedding(torch.rand(1, 3, 4).bfloat16(), 16).dtype is torch.float32


@pytest.mark.parametrize('width', [32, 64])
def test_ref_point_head_takes_twice_the_width(width):
    layer = {name: {**part, 'embed_dims': width} for name, part in LAYER.items()}
    decoder = DinoTransformerDecoder(1, layer)
    assert decoder.ref_point_head.layers[0].in_features == 2 * width


def test_fused_self_attention_is_that_of_mmdet():
    layer, mmdet_layer = DinoDecoderLayer(**LAYER).eval(), DeformableDetrTransformerDecoderLayer(**LAYER).eval()
    layer.load_state_dict(mmdet_layer.state_dict())
    query, pos = torch.randn(2, 2, 6, 32)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[3:, :3] = True
    inputs = {'query': query, 'query_pos': pos, 'key_pos': pos, 'attn_mask': mask}
    torch.testing.assert_close(layer.self_attn(**inputs), mmdet_layer.self_attn(**inputs))


def test_self_attention_never_forms_the_averaged_weights():
    attention = DinoDecoderLayer(**LAYER).self_attn.attn
    x = torch.randn(6, 2, 32)
    assert attention(x, x, x)[1] is None


def test_boxes_are_refined_in_order_with_look_forward_twice():
    decoder = DinoTransformerDecoder(2, LAYER)
    branches = torch.nn.ModuleList(torch.nn.Linear(32, 4) for _ in range(2))
    for index, branch in enumerate(branches):
        torch.nn.init.zeros_(branch.weight)
        torch.nn.init.constant_(branch.bias, 0.5 * (index + 1))
    levels = FeatureLevels(((4, 4), (2, 2)), torch.device('cpu'))
    boxes = torch.full((1, 3, 4), 0.5)
    queries, references = decoder(
        torch.randn(1, 3, 32),
        value=torch.randn(1, 20, 32),
        levels=levels,
        reference_points=boxes,
        reg_branches=branches,
    )
    assert queries.shape == (2, 1, 3, 32)
    expected = torch.tensor([0.0, 0.5, 1.5]).sigmoid()
    torch.testing.assert_close(references[:, 0, 0, 0], expected, rtol=1e-3, atol=1e-3)
    references[2].sum().backward()
    assert branches[1].bias.grad.abs().sum() > 0
    # The boxes a layer starts from carry no gradient back.
    assert (branches[0].bias.grad == 0).all()


@pytest.mark.parametrize(('with_cp', 'expected'), [(False, 0), (True, 6), (0, 0), (2, 2), (6, 6)])
def test_with_cp_is_the_number_of_checkpointed_layers(with_cp, expected):
    assert resolve_num_recomputed(with_cp, 6) == expected


def test_number_of_checkpointed_layers_is_an_attribute():
    encoder = {'self_attn_cfg': LAYER['cross_attn_cfg'], 'ffn_cfg': LAYER['ffn_cfg']}
    assert DinoTransformerEncoder(3, encoder, with_cp=2).num_recomputed == 2
    assert DinoTransformerDecoder(3, LAYER, with_cp=True).num_recomputed == 3


@pytest.mark.parametrize('with_cp', [7, -1, None, 0.5])
def test_invalid_with_cp_raises(with_cp):
    with pytest.raises(ValueError, match=r'with_cp is .*; give True'):
        resolve_num_recomputed(with_cp, 6)
