from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mmitpn.models.layers import Attention, Mlp, SwiGLU, TransformerBlock, initialize_weights


def test_attention_equals_the_written_out_formula():
    attention = Attention(24, 3)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
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
