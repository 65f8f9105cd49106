"""The report of loading, and the errors that explain why a file does not fit."""

from __future__ import annotations

import logging

import pytest
import torch

from mmitpn import ITPN, FastITPN, ITPNPyramid
from mmitpn.checkpoint import load_pretrained

ITPN_SIZES = {'depths': (1, 2, 3), 'embed_dim': 128, 'num_heads': 2}
ITPN_SHAPES = {'depths': (1, 2, 3), 'dim': 128}  # of the synthetic weights


def test_report_counts_by_part(pretrained, small_backbone, logged):
    report = load_pretrained(small_backbone(), pretrained)
    counts = {name: part.counts() for name, part in report.parts.items()}
    assert counts['stem'] == (3, 0, 0, 0, 0)
    assert counts['stages'] == (3 * 8 + 2 * 4, 0, 0, 0, 0)
    assert counts['main'] == (3 * 19 + 2, 0, 0, 0, 0)
    assert counts['pyramid'] == (0, 0, 6 + 8 + 5 * 6, 0, 0)
    assert counts['other'] == (0, 0, 15, 0, 0)
    table = report.table()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines() if '|' in line]
    assert rows[0] == ['part', 'matched', 'resized', 'ignored', 'missing', 'unexpected']
    assert ['stages', '32', '0', '0', '0', '0'] in rows
    ((_, text),) = logged
    assert table in text
    assert 'Fast-iTPN with its pyramid' in text
    with pytest.raises(ValueError, match='allowed: matched, resized'):
        report.names('lost')


def test_every_weight_is_counted_once(pretrained, small_backbone, small_neck):
    for module in (small_backbone(layer_scale_init_value=None), small_backbone(), small_neck(depth=2), small_neck()):
        report = load_pretrained(module, pretrained, strict=False)
        mine = [n for kind in ('matched', 'resized', 'missing') for n in report.names(kind)]
        assert sorted(mine) == sorted(module.state_dict())


# --- errors ----------------------------------------------------------------------------------------------------


def _fails(module, source, message, logged):
    """Loading raises with that message, is logged as a warning, and leaves the module as it was."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_pretrained(module, source)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    ((level, text),) = logged
    assert level == logging.WARNING
    assert 'NOT LOADED' in text


def test_wrong_arch(authors_shapes, logged):
    shapes = {name: torch.zeros(1).expand(shape) for name, shape in authors_shapes((3, 3, 24), 512).items()}
    message = (
        r'looks like base \(3/3/24 blocks, 512 channels\), the module is nano \(.* blocks, 192 channels\): '
        r"set arch='base' on the backbone \(first names that do not fit: pos_embed, patch_embed.proj.weight"
    )
    _fails(FastITPN('nano'), {'module': shapes}, message, logged)


def test_wrong_arch_without_a_name(authors_weights, small_backbone, logged):
    message = r'set arch=dict\(depths=\(1, 2, 2\), embed_dim=64, num_heads=1\) on the backbone, or the file is cut off'
    _fails(small_backbone(), authors_weights((1, 2, 2)), message, logged)


def test_layer_scale_off(pretrained, small_backbone, logged):
    message = (
        r'file has layer scale \(blocks.0.gamma_1, blocks.0.gamma_2, .*none because of layer_scale_init_value=None: '
        r'set layer_scale_init_value=0.1'
    )
    _fails(small_backbone(layer_scale_init_value=None), pretrained, message, logged)


def test_layer_scale_only_in_the_module(authors_weights, small_backbone, logged):
    message = r'module has layer scale \(blocks.0.gamma_1, .*file has none: set layer_scale_init_value=None'
    _fails(small_backbone(), authors_weights(layer_scale=False), message, logged)


@pytest.mark.parametrize('case', ['det_pixel_base', 'seg_base'])
@pytest.mark.parametrize('part', ['backbone', 'neck'])
def test_wrong_family(reference_shapes, small_backbone, small_neck, logged, case, part):
    state = {name: torch.zeros(1).expand(shape) for name, shape in reference_shapes(case).items()}
    module = small_backbone() if part == 'backbone' else small_neck()
    use = "set type='mmitpn.ITPN', arch='base'" if part == 'backbone' else "set kind='linear' on the neck"
    message = f'wrong family: this is iTPN with (pixel|CLIP) .*give a Fast-iTPN checkpoint, or {use}'
    _fails(module, {'model': state}, message, logged)


def test_wrong_family_the_other_way(pretrained, logged):
    model = ITPN({'depths': (1, 2, 3), 'embed_dim': 64, 'num_heads': 1})
    message = "wrong family: this is Fast-iTPN .*give a iTPN checkpoint, or set type='mmitpn.FastITPN', arch=dict"
    _fails(model, pretrained, message, logged)


def test_foreign_weights(small_backbone, logged):
    state = {'conv1.weight': torch.zeros(1), 'layer1.0.conv1.weight': torch.zeros(1)}
    _fails(small_backbone(), state, 'not weights of the iTPN family: it looks like a ResNet .*conv1.weight', logged)


@pytest.mark.parametrize('gone', ['blocks.0.', 'blocks.6.attn.q_proj', 'patch_embed', 'blocks.2.mlp', 'norm.'])
def test_files_with_missing_weights(pretrained, small_backbone, logged, gone):
    state = {name: value for name, value in pretrained.items() if not name.startswith(gone)}
    names = {
        'blocks.0.': 'stage1.0.norm.weight',
        'blocks.6.attn.q_proj': 'blocks.1.attn.qkv.weight',
        'patch_embed': 'patch_embed.proj.weight',
        'blocks.2.mlp': 'stage2.0.mlp.fc1.weight',
        'norm.': 'norm.weight',
    }
    message = rf'weights of the backbone are not in the file \({names[gone]}.*cut off or comes from another network'
    _fails(small_backbone(), state, message, logged)


@pytest.mark.parametrize('gone', [('blocks.1.reduction',), ('blocks.4.reduction',), ('blocks.1.', 'blocks.4.')])
def test_files_without_merges(pretrained, small_backbone, logged, gone):
    state = {name: value for name, value in pretrained.items() if not name.startswith(gone)}
    message = r'the two merges \(blocks\.N\.reduction\.weight\) are not both in it: it is cut off \(pos_embed, '
    _fails(small_backbone(), state, message, logged)


def test_files_without_merges_and_main_stage(pretrained, small_backbone, logged):
    state = {name: value for name, value in pretrained.items() if not name.startswith(('blocks.', 'split', 'align'))}
    _fails(small_backbone(), state, 'it is of no known layout', logged)


def test_weights_without_a_counterpart(pretrained, small_backbone, logged):
    state = {**pretrained, 'blocks.6.attn.rel_pos_h': torch.zeros(27, 64)}
    message = r'the file has backbone weights that the module has no place for \(blocks.6.attn.rel_pos_h\)'
    _fails(small_backbone(), state, message, logged)


def test_unknown_weights_elsewhere_are_a_warning(pretrained, small_backbone):
    report = load_pretrained(small_backbone(), {**pretrained, 'novelty.weight': torch.zeros(1)})
    assert report.loaded
    assert 'novelty.weight' in report.warnings[0]


def test_a_pyramid_file_for_a_backbone(small_backbone, small_neck, logged):
    _fails(small_backbone(), small_neck().state_dict(), 'no backbone in the file', logged)


@pytest.mark.parametrize(
    ('kwargs', 'setting'),
    [
        ({'out_channels': 16}, 'set out_channels=24 on the neck'),
        ({'depth': 2}, 'set depth=1 on the neck'),
        ({'hidden_channels': 32}, 'set hidden_channels=64 on the neck'),
    ],
)
def test_pyramids_of_another_size(pretrained, small_neck, logged, kwargs, setting):
    _fails(small_neck(**kwargs), pretrained, setting, logged)


def test_a_pyramid_for_another_backbone(authors_weights, small_neck, logged):
    message = r'24 channels, .* for a backbone of 128 channels.*set in_channels=\(32, 64, 128\) on the neck'
    _fails(small_neck(), authors_weights(dim=128, pyramid=24), message, logged)


def test_a_pyramid_with_missing_weights(pretrained, small_neck, logged):
    state = {name: value for name, value in pretrained.items() if not name.startswith('split_16to8.norm')}
    _fails(small_neck(), state, r'2 of the 44 weights of the pyramid are not in the file \(split8.norm.weight', logged)


def test_position_embeddings_of_no_square(pretrained, small_backbone, logged):
    state = {**pretrained, 'pos_embed': torch.zeros(1, 190, 64)}
    _fails(small_backbone(), state, '190 tokens, which is no square grid', logged)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_that_are_nan_or_infinite(pretrained, small_backbone, logged, value):
    state = {**pretrained, 'norm.weight': torch.full((64,), value)}
    _fails(small_backbone(), state, 'NaN or infinite values in norm.weight', logged)


def test_relative_positions_are_not_dropped_silently(authors_itpn_weights):
    with pytest.raises(ValueError, match=r"file has relative positions \(table\).*set relative_position='table'"):
        load_pretrained(ITPN(ITPN_SIZES), authors_itpn_weights(**ITPN_SHAPES, relative='table'))


@pytest.mark.parametrize(('file', 'module'), [(True, None), (False, 0.1)])
def test_layer_scale_must_agree(authors_itpn_weights, file, module):
    setting = 0.1 if file else None
    with pytest.raises(ValueError, match=f'set layer_scale_init_value={setting} on the backbone'):
        load_pretrained(
            ITPN(ITPN_SIZES, layer_scale_init_value=module), authors_itpn_weights(**ITPN_SHAPES, layer_scale=file)
        )


def test_the_kind_of_pyramid_is_named(authors_itpn_weights):
    neck = ITPNPyramid((32, 64, 128), out_channels=24)
    with pytest.raises(ValueError, match="set kind='linear' on the neck"):
        load_pretrained(neck, authors_itpn_weights(**ITPN_SHAPES))
