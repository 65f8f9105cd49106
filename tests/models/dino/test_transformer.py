from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.models.layers import coordinate_to_encoding
from mmdet.models.layers.transformer.deformable_detr_layers import DeformableDetrTransformerDecoderLayer

from mmitpn.models.dino.transformer import (
    DinoDecoderLayer,
    DinoTransformerDecoder,
    DinoTransformerEncoder,
    resolve_num_recomputed,
    sine_embedding,
)

LAYER = {
    'self_attn_cfg': {'embed_dims': 32, 'num_heads': 4},
    'cross_attn_cfg': {'embed_dims': 32, 'num_heads': 4, 'num_levels': 2, 'dropout': 0.0},
    'ffn_cfg': {'embed_dims': 32, 'feedforward_channels': 48, 'ffn_drop': 0.0},
}


@pytest.mark.parametrize('num_feats', [16, 128])
def test_sine_embedding_is_that_of_the_published_models(num_feats):
    boxes = torch.rand(2, 5, 4)
    expected = coordinate_to_encoding(boxes, num_feats=num_feats)
    torch.testing.assert_close(sine_embedding(boxes, num_feats), expected, rtol=0, atol=1e-5)


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
    shapes = torch.tensor([[4, 4], [2, 2]])
    boxes = torch.full((1, 3, 4), 0.5)
    queries, references = decoder(
        torch.randn(1, 3, 32),
        value=torch.randn(1, 20, 32),
        key_padding_mask=None,
        self_attn_mask=None,
        reference_points=boxes,
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, 16]),
        valid_ratios=torch.ones(1, 2, 2),
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
