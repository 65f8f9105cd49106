"""Blocks, and the one resampling of position embeddings."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from mmitpn import ITPN, FastITPN
from mmitpn.models.layers import (
    Attention,
    LayerNorm,
    Mlp,
    RelativeAttention,
    SwiGLU,
    TransformerBlock,
    initialize_weights,
    resample_abs_pos_embed,
    resample_rel_pos,
    resample_rel_pos_table,
)

TARGETS = [(14, 14), (1, 1), (9, 30), (64, 64)]
SIZES = {'depths': (1, 1, 2), 'embed_dim': 64, 'num_heads': 2}


@pytest.mark.parametrize('target', TARGETS)
def test_position_embedding_is_resized_like_a_bicubic_image(target):
    embedding = torch.randn(1, 196, 24)
    image = embedding.view(1, 14, 14, 24).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size=target, mode='bicubic', align_corners=False)
    actual = resample_abs_pos_embed(embedding, (14, 14), target)
    assert_close(actual, expected.permute(0, 2, 3, 1).reshape(1, -1, 24), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize('target', TARGETS)
def test_a_table_is_resized_like_a_bicubic_image_of_offsets(target):
    table = torch.randn(27 * 27, 4)
    height, width = (2 * side - 1 for side in target)
    image = table.T.view(1, 4, 27, 27)
    expected = F.interpolate(image, size=(height, width), mode='bicubic', align_corners=False)
    actual = resample_rel_pos_table(table, (14, 14), target)
    assert_close(actual, expected[0].flatten(1).T, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize('side', [1, 7, 14, 33])
def test_vectors_of_offsets_are_resized_linearly(side):
    vectors = torch.randn(27, 5)
    expected = F.interpolate(vectors.T[None], size=2 * side - 1, mode='linear')[0].T
    assert_close(resample_rel_pos(vectors, side), expected)


def test_position_embedding_is_resized_in_fp32_under_autocast():
    embedding = torch.randn(1, 196, 8)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = resample_abs_pos_embed(embedding, (14, 14), (20, 20))
    assert low.dtype == torch.float32
    assert torch.equal(low, resample_abs_pos_embed(embedding, (14, 14), (20, 20)))


def itpn(**settings) -> ITPN:
    model = ITPN(SIZES, relative_position='table', **settings)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_adapt_state_dict_resizes_positions_of_another_grid():
    source, model = itpn(img_size=256), itpn(img_size=128)
    state = {f'backbone.{name}': value for name, value in source.state_dict().items()}
    table = 'blocks.1.attn.relative_position_bias_table'
    adapted = model.adapt_state_dict(state, prefix='backbone.')
    assert state[f'backbone.{table}'].shape == (31 * 31, 2)  # what was given stays as it was
    assert list(adapted) == list(state)
    changed = {name for name in state if adapted[name] is not state[name]}
    assert changed == {
        f'backbone.{name}' for name in ('pos_embed', 'blocks.0.attn.relative_position_bias_table', table)
    }
    assert torch.equal(
        adapted[f'backbone.{table}'], resample_rel_pos_table(state[f'backbone.{table}'], (16, 16), (8, 8))
    )
    model.load_state_dict({name.removeprefix('backbone.'): value for name, value in adapted.items()})


def test_adapt_state_dict_follows_the_file_without_an_img_size():
    source, model = itpn(img_size=256), itpn()
    adapted = model.adapt_state_dict(source.state_dict())
    assert all(
        adapted[name] is value or torch.equal(adapted[name], value) for name, value in source.state_dict().items()
    )
    assert (model.grid, model.blocks[0].attn.window) == ((16, 16), 16)


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_copies_adapt_themselves(copied):
    source, model = FastITPN(SIZES, img_size=256), FastITPN(SIZES)
    twin = copied(model)
    twin.load_state_dict(source.state_dict())
    assert (twin.grid, model.grid) == ((16, 16), (14, 14))


def test_a_layer_by_itself_adapts_too():
    source = RelativeAttention(12, 2, relative_position='decomposed', window=7)
    layer = RelativeAttention(12, 2, relative_position='decomposed', window=3)
    nn.init.normal_(source.rel_pos_h)
    layer.load_state_dict(source.state_dict())
    assert torch.equal(layer.rel_pos_h, resample_rel_pos(source.rel_pos_h, 3))


def test_attention_equals_the_written_out_formula():
    attention = Attention(24, 3)
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 10, 24)
    query, key, value = (x @ w.T for w in attention.qkv.weight.chunk(3))  # keys have no bias
    query, value = query + attention.q_bias, value + attention.v_bias
    heads = [t.view(2, 10, 3, 8).transpose(1, 2) for t in (query, key, value)]
    weights = (heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(8)).softmax(-1)
    expected = attention.proj((weights @ heads[2]).transpose(1, 2).reshape(2, 10, 24))
    assert_close(attention(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('hidden', [682, 64, 5])
def test_an_mlp_whose_rows_are_padded_is_the_same_and_learns(hidden):
    mlp = Mlp(24, hidden, sub_norm=False)
    x = torch.randn(2, 7, 24, requires_grad=True)
    expected = mlp.fc2(F.gelu(mlp.fc1(x)))
    wanted = torch.autograd.grad(expected.square().sum(), [x, *mlp.parameters()])
    found = mlp(x)
    assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found.square().sum(), [x, *mlp.parameters()]), wanted, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_xavier_scales_what_sub_ln_scales():
    block = TransformerBlock(192, Attention(192, 3), SwiGLU(192, 576))
    initialize_weights(block, weight_init='xavier', sub_ln_depth=5)
    gain = math.sqrt(math.log(10))
    plain = math.sqrt(2 / (192 + 192))
    query, key, value = block.attn.qkv.weight.detach().chunk(3)
    assert query.std().item() == pytest.approx(plain, rel=0.03)
    assert key.std().item() == pytest.approx(plain, rel=0.03)
    assert value.std().item() == pytest.approx(plain * gain, rel=0.03)
    assert block.attn.proj.weight.std().item() == pytest.approx(plain * gain, rel=0.03)
    assert block.mlp.w1.weight.std().item() == pytest.approx(math.sqrt(2 / (192 + 576)) * gain, rel=0.03)


@pytest.mark.gpu
def test_layer_norm_of_bf16_under_autocast_is_that_of_autocast():
    norm = LayerNorm(64).cuda()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(50, 64, device='cuda').bfloat16()
    with torch.autocast('cuda', torch.bfloat16):
        found = norm(x)
    assert found.dtype is torch.bfloat16
    expected = F.layer_norm(x.float(), (64,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(found.float(), expected, rtol=2**-6, atol=2**-6)


def test_layer_norm_is_that_of_torch_elsewhere():
    norm, plain = LayerNorm(16), nn.LayerNorm(16)
    x = torch.randn(3, 16)
    assert torch.equal(norm(x), plain(x))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(norm(x.bfloat16()), plain(x.bfloat16()))
