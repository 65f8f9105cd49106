from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mmitpn.models.backbones import ITPN
from mmitpn.models.layers import RelativeAttention, attention, resample_rel_pos, resample_rel_pos_table
from mmitpn.models.necks import ITPNPyramid
from mmitpn.registry import MODELS

SMALL = {'depths': (1, 2, 2), 'embed_dim': 48, 'num_heads': 3}
VARIANTS = {
    'pixel': {},
    'clip': {'relative_position': 'table', 'layer_scale_init_value': 0.1},
    'vitdet': {'relative_position': 'decomposed', 'layer_scale_init_value': 0.1},
}


def small(variant: str = 'clip', **kwargs) -> ITPN:
    torch.manual_seed(1)
    model = ITPN(SMALL, **{**VARIANTS[variant], **kwargs})
    for name, parameter in model.named_parameters():
        if 'relative_position' in name or 'rel_pos' in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize(('arch', 'millions'), [('base', 78.6), ('large', 288.5)])
def test_has_the_published_number_of_parameters(arch, millions):
    with torch.device('meta'):
        model = ITPN(arch, relative_position='table')
    head = 1000 * (model.out_channels[-1] + 1)  # the figures are those of the classifiers
    assert (sum(p.numel() for p in model.parameters()) + head) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('size', [(224, 224), (1, 1), (5, 33), (64, 47), (130, 97)])
def test_any_input_size(variant, size):
    model = small(variant).eval()
    for x, stride, channels in zip(model(torch.randn(2, 3, *size)), (4, 8, 16), model.out_channels, strict=True):
        assert x.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        assert x.isfinite().all()


def written_out(layer: RelativeAttention, x: torch.Tensor) -> torch.Tensor:
    """The formula for every pair of positions, one by one."""
    batch, height, width, dim = x.shape
    heads = layer.num_heads
    query, key, value = (
        t.view(batch, height * width, heads, -1).transpose(1, 2) for t in layer.qkv(x).flatten(1, 2).chunk(3, -1)
    )
    scores = query @ key.transpose(-1, -2) / (dim // heads) ** 0.5
    positions = [(i, j) for i in range(height) for j in range(width)]
    for a, (i, j) in enumerate(positions):
        for b, (k, m) in enumerate(positions):
            if layer.relative_position == 'table':
                row = (i - k + height - 1) * (2 * width - 1) + j - m + width - 1
                table = resample_rel_pos_table(layer.relative_position_bias_table, (3, 3), (height, width))
                scores[:, :, a, b] += table[row]
            else:
                up = resample_rel_pos(layer.rel_pos_h, height)[i - k + height - 1]
                over = resample_rel_pos(layer.rel_pos_w, width)[j - m + width - 1]
                scores[:, :, a, b] += query[:, :, a] @ up + query[:, :, a] @ over
    out = (scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape)
    return layer.proj(out)


@pytest.mark.parametrize('kind', ['table', 'decomposed'])
@pytest.mark.parametrize('grid', [(3, 3), (2, 5), (4, 3)])
@pytest.mark.parametrize('budget', [2**20, 1])
def test_relative_positions_equal_the_written_out_formula(kind, grid, budget, monkeypatch):
    monkeypatch.setattr(attention, '_BIAS_BUDGET', budget)  # all rows of queries at once, or one after the other
    layer = RelativeAttention(12, 2, relative_position=kind, window=3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, *grid, 12, requires_grad=True)
    out = layer(x)
    expected = written_out(layer, x)
    assert_close(out, expected, atol=1e-4, rtol=1e-4)
    cotangent = torch.randn_like(out)
    inputs = [x, *layer.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(out, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent), strict=True
    ):
        assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_table_is_resized_by_target_size():
    table = torch.randn(27 * 27, 4)
    assert resample_rel_pos_table(table, (14, 14), (14, 14)) is table
    assert resample_rel_pos_table(table, (14, 14), (32, 20)).shape == (63 * 39, 4)


@pytest.mark.parametrize('variant', VARIANTS)
def test_checkpointing_changes_nothing(variant):
    x = torch.randn(1, 3, 40, 72)
    plain, recomputed = small(variant), small(variant, with_cp=True)
    for model in (plain, recomputed):
        sum(out.square().mean() for out in model(x)).backward()
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert_close(a.grad, b.grad)


@pytest.mark.parametrize('variant', VARIANTS)
def test_autocast_stays_finite_and_close(variant):
    model = small(variant)
    x = torch.randn(2, 3, 48, 80)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = model(x)
    for a, b in zip(low, model(x), strict=True):
        assert_close(a.float(), b, atol=0.1, rtol=0.1)


def test_layer_depth_partitions_the_parameters():
    model = small()
    depths = {name: model.get_layer_depth(name) for name, _ in model.named_parameters()}
    assert {count for _, count in depths.values()} == {9}
    assert depths['patch_embed.norm.weight'][0] == 0
    assert depths['stage2.0.gamma'][0] == 3
    assert depths['merge2.reduction.weight'][0] == 5
    assert depths['blocks.1.attn.relative_position_bias_table'][0] == 7


def test_builds_from_a_config_by_scope():
    assert isinstance(MODELS.build({'type': 'mmitpn.ITPN', 'arch': SMALL}), ITPN)


def test_frozen_stages_and_drop_path():
    model = small(frozen_stages=2, drop_path_rate=0.5).train()
    assert {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad} == {'blocks'}
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x)[2], model(x)[2])


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'relative_position': 'rope'}, "relative_position is 'rope'; allowed: None, 'table', 'decomposed'"),
        ({'relative_window': 0}, 'relative_window is 0'),
        ({'arch': 'huge'}, "unknown arch 'huge'"),
        ({'img_size': 230}, 'multiple of 16'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ITPN(**{'arch': SMALL, **kwargs})


def test_works_with_its_pyramid():
    model = small('pixel').eval()
    neck = ITPNPyramid(model.out_channels, kind='linear', out_channels=32, concat_backbone=True, num_outs=4)
    outs = neck(model(torch.randn(1, 3, 65, 47)))
    assert [tuple(x.shape[1:]) for x in outs] == [(44, 17, 12), (56, 9, 6), (80, 5, 3), (80, 3, 2)]
    assert neck.level_channels == (44, 56, 80, 80)
