"""The original iTPN through the one way in."""

from __future__ import annotations

import pytest
import torch

from mmitpn import ITPN, ITPNPyramid
from mmitpn.checkpoint import identify, load_pretrained

SIZES = {'depths': (1, 2, 3), 'embed_dim': 128, 'num_heads': 2}
MADE = {'depths': (1, 2, 3), 'dim': 128}


def test_pretraining_extras_are_ignored_by_rule(authors_itpn_weights):
    extras = ('mask_token', 'decoder_pred.weight', 'decoder_blocks.0.norm1.weight', 'decoder_embed.0.weight')
    extras += ('norm.weight', 'lm_cls_head.weight', 'norm_cls.weight', 'cls_pt_layers.0.gamma_1', 'head.weight')
    extras += ('relative_position_index', 'fc_norm.bias')
    state = authors_itpn_weights(**MADE, depth=2) | {name: torch.zeros(3) for name in extras}
    report = load_pretrained(ITPN(SIZES), {'model': state})
    assert sorted(report.parts['other'].ignored) == sorted(extras)
    assert report.count('missing') == report.count('unexpected') == 0
    neck = ITPNPyramid((32, 64, 128), kind='linear', out_channels=24, depth=2)
    assert load_pretrained(neck, state).count('matched') == len(neck.state_dict())


def test_tables_are_resized_to_another_window(authors_itpn_weights):
    state = authors_itpn_weights(**MADE, relative='table')
    model = ITPN(SIZES, relative_position='table', relative_window=32)
    report = load_pretrained(model, state)
    assert len(report.parts['main'].resized) == 3
    assert any('from window 14' in note for note in report.notes)
    table = model.blocks[0].attn.relative_position_bias_table
    grid = state['blocks.5.attn.relative_position_bias_table'].T.reshape(1, 2, 27, 27)
    expected = torch.nn.functional.interpolate(grid, size=(63, 63), mode='bicubic').flatten(2)[0].T
    torch.testing.assert_close(table.detach(), expected)


@pytest.mark.parametrize(('file', 'module'), [(None, 'table'), (None, 'decomposed'), ('table', 'decomposed')])
def test_relative_positions_that_the_file_has_not_start_fresh(authors_itpn_weights, file, module):
    model = ITPN(SIZES, relative_position=module)
    report = load_pretrained(model, authors_itpn_weights(**MADE, relative=file))
    assert report.loaded
    assert 'the relative positions start fresh' in report.warnings[0]


def test_relative_positions_are_not_dropped_in_silence(authors_itpn_weights):
    with pytest.raises(ValueError, match=r"file has relative positions \(table\).*set relative_position='table'"):
        load_pretrained(ITPN(SIZES), authors_itpn_weights(**MADE, relative='table'))


@pytest.mark.parametrize(('file', 'module'), [(True, None), (False, 0.1)])
def test_layer_scale_must_agree(authors_itpn_weights, file, module):
    setting = 0.1 if file else None
    with pytest.raises(ValueError, match=f'set layer_scale_init_value={setting} on the backbone'):
        load_pretrained(ITPN(SIZES, layer_scale_init_value=module), authors_itpn_weights(**MADE, layer_scale=file))


def test_the_kind_of_pyramid_is_named(authors_itpn_weights):
    neck = ITPNPyramid((32, 64, 128), out_channels=24)
    with pytest.raises(ValueError, match="set kind='linear' on the neck"):
        load_pretrained(neck, authors_itpn_weights(**MADE))


def test_our_own_checkpoints_load(tmp_path, authors_itpn_weights):
    source, target = (ITPN(SIZES, relative_position='table', layer_scale_init_value=0.1) for _ in range(2))
    load_pretrained(source, authors_itpn_weights(**MADE, relative='table', layer_scale=True))
    torch.save({'state_dict': {f'backbone.{name}': v for name, v in source.state_dict().items()}}, tmp_path / 'e.pth')
    report = load_pretrained(target, tmp_path / 'e.pth')
    assert report.layout == 'mmitpn'
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    assert identify(source.state_dict()).family == 'iTPN'
