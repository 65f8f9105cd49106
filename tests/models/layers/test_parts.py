"""Maps a part at a time, without gradients: the same values as all at once."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mmitpn import FastITPN, ITPNPyramid
from mmitpn.models.layers import Attention, PointwiseBlock, parts


@pytest.fixture
def small_parts(monkeypatch):
    """Parts so small that there are many of them."""
    monkeypatch.setattr(parts, '_VALUES', 3000)


def both(model, *inputs):
    """Outputs with gradients, which are computed whole, and without."""
    whole = model(*inputs)
    with torch.inference_mode():
        return whole, model(*inputs)


@pytest.mark.parametrize('shape', [(2, 33, 21, 24), (1, 1, 1, 24), (500, 24)])
def test_a_block(small_parts, shape):
    whole, split = both(PointwiseBlock(24, 72, sub_norm=True).eval(), torch.randn(shape))
    assert_close(split, whole)
    assert split.shape == shape


def test_while_training_stochastic_depth_skips_whole_samples_also_without_gradients(small_parts):
    block, x = PointwiseBlock(24, 72, sub_norm=True, drop_path=0.5).train(), torch.randn(8, 20, 20, 24)
    with torch.no_grad():
        same = (block(x) == x).flatten(1)
    assert 0 < same.all(1).sum() < 8
    assert (same.all(1) | ~same.all(1) & (same.float().mean(1) < 0.5)).all()


@pytest.mark.parametrize('tokens', [1, 20, 57])
def test_the_projections_of_attention(small_parts, tokens):
    attention = Attention(24, 3)
    for bias in (attention.q_bias, attention.v_bias):
        torch.nn.init.normal_(bias)
    whole, split = both(attention.project, torch.randn(2, tokens, 24))
    for one, other in zip(whole, split, strict=True):
        assert_close(other, one)


@pytest.mark.parametrize('size', [(128, 128), (101, 259), (16, 320)])
@pytest.mark.parametrize('settings', [{}, {'concat_backbone': True}, {'start_level': 1}, {'kind': 'linear'}])
def test_backbone_and_pyramid(small_parts, size, settings):
    backbone = FastITPN({'depths': (1, 1, 2), 'embed_dim': 64, 'num_heads': 4}).eval()
    pyramid = ITPNPyramid(backbone.out_channels, out_channels=24, num_outs=4, **settings).eval()
    whole, split = both(lambda x: pyramid(backbone(x)), torch.randn(2, 3, *size))
    for one, other in zip(whole, split, strict=True):
        assert_close(other, one, rtol=1e-4, atol=1e-5)
        assert other.is_contiguous()


def test_under_autocast(small_parts):
    pyramid = ITPNPyramid((16, 32, 64), out_channels=24).eval()
    maps = [torch.randn(1, c, 96 // s, 64 // s) for c, s in ((16, 1), (32, 2), (64, 4))]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        whole, split = both(lambda *maps: pyramid(maps), *maps)
    for one, other in zip(whole, split, strict=True):
        assert one.dtype == other.dtype
        assert_close(other, one, rtol=0.05, atol=0.05)


def test_with_gradients_and_in_a_graph_all_is_done_at_once(small_parts):
    calls = []
    x = torch.randn(1, 40, 40, 8)

    def count(part):
        calls.append(part.shape)
        return part

    parts.run_in_parts(count, x, 24)
    assert len(calls) == 1
    with torch.no_grad():
        parts.run_in_parts(count, x, 24)
        assert len(calls) == 1 + 13
        torch.jit.trace(lambda x: parts.run_in_parts(count, x, 24), x, check_trace=False)
    assert all(shape == x.shape for shape in calls[14:])
