"""Loading into backbones, pyramids and whole models; the report of loading, and errors that say why nothing fits."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from mmitpn import ITPN, FastITPN, ITPNPyramid
from mmitpn.checkpoint import convert_from_authors, convert_to_authors, identify, load_pretrained

ITPN_SIZES = {'depths': (1, 2, 3), 'embed_dim': 128, 'num_heads': 2}
ITPN_SHAPES = {'depths': (1, 2, 3), 'dim': 128}  # of the synthetic weights


class Model(nn.Module):
    """What a detector of mmdet looks like from outside."""

    def __init__(self, backbone, neck=None, classes=3):
        super().__init__()
        self.backbone = backbone
        if neck is not None:
            self.neck = neck
        self.bbox_head = nn.Linear(4, classes)


def _ours(pretrained):
    return convert_from_authors(identify(pretrained)).state


def _check_loaded(module, pretrained):
    expected = _ours(pretrained)
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name].float()), name


@pytest.mark.parametrize('wrapped', [False, True])
@pytest.mark.parametrize('fp16', [False, True])
def test_backbone_and_neck_take_a_pretraining_file(
    tmp_path, pretrained, half, small_backbone, small_neck, logged, wrapped, fp16
):
    state = half(pretrained) if fp16 else pretrained
    torch.save({'module': state} if wrapped else state, tmp_path / 'f.pth')
    backbone, neck = small_backbone(), small_neck()
    for module in (backbone, neck):
        report = load_pretrained(module, tmp_path / 'f.pth')
        _check_loaded(module, state)
        assert report.loaded
        assert report.layout == 'fast_itpn_pretrain'
        assert report.source == str(tmp_path / 'f.pth')
        assert report.count('matched') == len(module.state_dict())
        assert report.count('missing') == report.count('unexpected') == report.count('resized') == 0
        extras = [n for n in pretrained if n.startswith(('mask_token', 'lm_head.', 'decoder_embed.'))]
        assert sorted(report.parts['other'].ignored) == sorted(extras)
        assert any('cast' in note for note in report.notes) == fp16
        assert module.state_dict()['norm.weight' if module is backbone else 'align16.bias'].dtype == torch.float32
    assert [level for level, _ in logged] == [logging.INFO] * 2


def test_half_precision_modules_keep_their_type(pretrained, small_backbone):
    backbone = small_backbone().bfloat16()
    load_pretrained(backbone, pretrained)
    assert backbone.norm.weight.dtype == torch.bfloat16


def test_mean_pooling_norm_becomes_norm(finetuned, small_backbone):
    backbone = small_backbone()
    report = load_pretrained(backbone, {'model': finetuned})
    assert report.layout == 'fast_itpn_finetuned'
    assert torch.equal(backbone.norm.weight, finetuned['fc_norm.weight'])
    assert 'norm.weight' in report.parts['main'].matched
    assert any('fc_norm' in note for note in report.notes)
    assert sorted(report.parts['other'].ignored) == ['head.bias', 'head.weight']


def test_a_file_without_pyramid_leaves_the_neck_fresh_and_says_so(finetuned, small_neck, logged):
    neck = small_neck()
    before = {name: value.clone() for name, value in neck.state_dict().items()}
    report = load_pretrained(neck, finetuned)
    assert all(torch.equal(value, before[name]) for name, value in neck.state_dict().items())
    assert report.parts['pyramid'].missing == list(before)
    ((level, text),) = logged
    assert level == logging.WARNING
    assert 'there is no pyramid in the file: the neck starts fresh' in text


@pytest.mark.parametrize('grid', [7, 14, 20])
def test_position_embedding_of_another_size(authors_weights, small_backbone, grid):
    backbone = small_backbone(img_size=224)
    report = load_pretrained(backbone, authors_weights(grid=grid))
    assert report.names('resized') == ([] if grid == 14 else ['pos_embed'])
    assert any(f'from {grid}x{grid} to 14x14' in note for note in report.notes) == (grid != 14)
    assert backbone.pos_embed.shape == (1, 196, 64)


@pytest.mark.slow
def test_the_published_outputs_after_loading(reference_case, assert_matches_reference):
    from mmitpn import FastITPN

    case = reference_case('fast_tiny_pretrain')
    backbone, neck = FastITPN('tiny').eval(), ITPNPyramid((96, 192, 384)).eval()
    report = load_pretrained(Model(backbone, neck), {'module': case.weights})
    assert report.count('matched') == 257 + 44
    with torch.no_grad():
        outs = neck(backbone(case.image))
    for out, expected in zip(outs[2::-1], case.case['outs'], strict=True):
        assert_matches_reference(out, expected)
    back = convert_to_authors({**backbone.state_dict(), **neck.state_dict()})
    assert all(torch.equal(value, case.weights[name]) for name, value in back.items())


# --- whole models ----------------------------------------------------------------------------------------------
def test_a_detector_takes_backbone_and_pyramid_from_the_authors(pretrained, small_backbone, small_neck):
    model = Model(small_backbone(), small_neck())
    head = model.bbox_head.weight.clone()
    report = load_pretrained(model, {'module': pretrained})
    _check_loaded(model.backbone, pretrained)
    _check_loaded(model.neck, pretrained)
    assert torch.equal(model.bbox_head.weight, head)
    assert any('starts fresh: bbox_head' in note for note in report.notes)
    assert report.count('missing') == 0


def test_a_detector_checkpoint_loads_whole_and_in_parts(tmp_path, small_backbone, small_neck, logged):
    source = Model(small_backbone(), small_neck())
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    torch.save({'meta': {}, 'state_dict': source.state_dict()}, tmp_path / 'epoch_1.pth')
    whole = Model(small_backbone(), small_neck())
    report = load_pretrained(whole, tmp_path / 'epoch_1.pth')
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in whole.state_dict().items())
    assert report.parts['bbox_head'].matched == ['bbox_head.weight', 'bbox_head.bias']
    for module, part in ((small_backbone(), source.backbone), (small_neck(), source.neck)):
        report = load_pretrained(module, tmp_path / 'epoch_1.pth')
        assert all(torch.equal(value, part.state_dict()[name]) for name, value in module.state_dict().items())
        assert report.parts['other'].ignored == ['bbox_head.weight', 'bbox_head.bias']
    assert {level for level, _ in logged} == {logging.INFO}


def test_heads_for_other_classes_start_fresh_with_a_warning(small_backbone, small_neck, logged):
    model = Model(small_backbone(), small_neck(), classes=5)
    report = load_pretrained(model, Model(small_backbone(), small_neck(), classes=3).state_dict())
    assert report.parts['bbox_head'].missing == ['bbox_head.weight', 'bbox_head.bias']
    assert 'another num_classes' in report.warnings[0]
    assert logged[0][0] == logging.WARNING


def test_a_detector_with_a_neck_of_mmdet(pretrained, small_backbone):
    model = Model(small_backbone(), nn.Linear(2, 2))
    report = load_pretrained(model, pretrained)
    _check_loaded(model.backbone, pretrained)
    assert len(report.parts['pyramid'].ignored) == 44


def test_a_wrapped_model_is_opened(pretrained, small_backbone):
    backbone = small_backbone()
    load_pretrained(nn.DataParallel(Model(backbone)), pretrained)
    _check_loaded(backbone, pretrained)


def test_modules_that_have_nothing_to_load(pretrained):
    with pytest.raises(TypeError, match=r'Linear is no FastITPN, ITPN or ITPNPyramid.*backbone is NoneType'):
        load_pretrained(nn.Linear(1, 1), pretrained)
    with pytest.raises(TypeError, match='into a torch module, but got a dict'):
        load_pretrained({}, pretrained)


def test_sources_of_another_type(small_backbone):
    with pytest.raises(TypeError, match='the checkpoint is a int'):
        load_pretrained(small_backbone(), 3)


def test_not_strict_loads_what_fits_and_warns(pretrained, small_backbone, logged):
    backbone = small_backbone(layer_scale_init_value=None)
    report = load_pretrained(backbone, pretrained, strict=False)
    assert not report.loaded
    assert torch.equal(backbone.norm.weight, pretrained['norm.weight'])
    assert report.count('unexpected') == 6
    assert logged[0][0] == logging.WARNING
    with pytest.raises(ValueError, match=r'a dict was not loaded: .*layer_scale_init_value'):
        report.raise_if_not_loaded()


# --- iTPN -----------------------------------------------------------------------------------------------------------
def test_pretraining_extras_are_ignored_by_rule(authors_itpn_weights):
    extras = ('mask_token', 'decoder_pred.weight', 'decoder_blocks.0.norm1.weight', 'decoder_embed.0.weight')
    extras += ('norm.weight', 'lm_cls_head.weight', 'norm_cls.weight', 'cls_pt_layers.0.gamma_1', 'head.weight')
    extras += ('relative_position_index', 'fc_norm.bias')
    state = authors_itpn_weights(**ITPN_SHAPES, depth=2) | {name: torch.zeros(3) for name in extras}
    report = load_pretrained(ITPN(ITPN_SIZES), {'model': state})
    assert sorted(report.parts['other'].ignored) == sorted(extras)
    assert report.count('missing') == report.count('unexpected') == 0
    neck = ITPNPyramid((32, 64, 128), kind='linear', out_channels=24, depth=2)
    assert load_pretrained(neck, state).count('matched') == len(neck.state_dict())


def test_tables_are_resized_to_another_window(authors_itpn_weights):
    state = authors_itpn_weights(**ITPN_SHAPES, relative='table')
    model = ITPN(ITPN_SIZES, relative_position='table', relative_window=32)
    report = load_pretrained(model, state)
    assert len(report.parts['main'].resized) == 3
    assert any('from window 14' in note for note in report.notes)
    table = model.blocks[0].attn.relative_position_bias_table
    grid = state['blocks.5.attn.relative_position_bias_table'].T.reshape(1, 2, 27, 27)
    expected = torch.nn.functional.interpolate(grid, size=(63, 63), mode='bicubic').flatten(2)[0].T
    torch.testing.assert_close(table.detach(), expected)


@pytest.mark.parametrize(('file', 'module'), [(None, 'table'), (None, 'decomposed'), ('table', 'decomposed')])
def test_relative_positions_that_the_file_has_not_start_fresh(authors_itpn_weights, file, module):
    model = ITPN(ITPN_SIZES, relative_position=module)
    report = load_pretrained(model, authors_itpn_weights(**ITPN_SHAPES, relative=file))
    assert report.loaded
    assert 'the relative positions start fresh' in report.warnings[0]


def test_our_own_checkpoints_load(tmp_path, authors_itpn_weights):
    source, target = (ITPN(ITPN_SIZES, relative_position='table', layer_scale_init_value=0.1) for _ in range(2))
    load_pretrained(source, authors_itpn_weights(**ITPN_SHAPES, relative='table', layer_scale=True))
    torch.save({'state_dict': {f'backbone.{name}': v for name, v in source.state_dict().items()}}, tmp_path / 'e.pth')
    report = load_pretrained(target, tmp_path / 'e.pth')
    assert report.layout == 'mmitpn'
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())
    assert identify(source.state_dict()).family == 'iTPN'


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
    message = r'the file lacks one or both merges \(blocks\.N\.reduction\.weight\): it is cut off \(pos_embed, '
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
    _fails(small_backbone(), state, '190 tokens, which is not a square grid', logged)


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
