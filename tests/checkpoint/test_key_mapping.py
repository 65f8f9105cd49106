"""Identifying files (wrappers, prefixes, layouts and sizes), and converting between the authors' keys and ours."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from mmitpn import FastITPN
from mmitpn.checkpoint import convert_from_authors, convert_to_authors, identify
from mmitpn.checkpoint.formats import PUBLISHED_ARCHS
from mmitpn.models.layers import resample_abs_pos_embed

EXTRAS = ('mask_token', 'decoder_embed.', 'lm_head.', 'head.')
WRAPS = {
    'raw': lambda state: state,
    'module': lambda state: {'module': state, 'epoch': 1},
    'model': lambda state: {'model': state, 'optimizer': {'state': {}}, 'model_ema': {'x': torch.zeros(1)}},
    'state_dict': lambda state: {'meta': {'epoch': 1}, 'state_dict': state, 'ema_state_dict': {'x': torch.zeros(1)}},
    'ema': lambda state: {'ema_state_dict': {'steps': torch.tensor(3), **state}},
    'nested': lambda state: {'model': {'module': state}},
}
PREFIXES = ['', 'module.', 'backbone.', 'module.backbone.', '_orig_mod.']


def _converted(state):
    return {name for name in state if not name.startswith(EXTRAS)}


def _assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('fast_tiny_pretrain', {'depths': (1, 1, 12), 'dim': 384, 'pyramid': 256, 'pretrain': 768}),
        ('fast_tiny_cls', {'depths': (1, 1, 12), 'dim': 384, 'classes': 1000}),
        ('fast_base_cls', {'depths': (3, 3, 24), 'dim': 512, 'classes': 1000}),
    ],
)
def test_synthetic_layouts_are_the_authors(name, size, reference_shapes, authors_shapes):
    assert authors_shapes(**size) == reference_shapes(name)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('depths', [(1, 2, 3), (3, 1, 2), (0, 1, 1)])
def test_round_trip_is_bit_equal(authors_weights, depths, dtype):
    theirs = {n: v.to(dtype) for n, v in authors_weights(depths, 64, pyramid=24, pretrain=32).items()}
    ours = convert_from_authors(identify(theirs))
    assert not ours.unexpected
    assert set(ours.ignored) == set(theirs) - _converted(theirs)
    _assert_equal(convert_to_authors(ours.state), {name: theirs[name] for name in _converted(theirs)})


def test_our_modules_round_trip(small_backbone, small_neck):
    ours = {**small_backbone().state_dict(), **small_neck().state_dict()}
    _assert_equal(convert_from_authors(identify(convert_to_authors(ours))).state, ours)
    wrapped = {f'{"neck" if n in small_neck().state_dict() else "backbone"}.{n}': v for n, v in ours.items()}
    _assert_equal(convert_to_authors(wrapped), convert_to_authors(ours))


def test_pyramid_alone_needs_no_backbone(small_neck, pretrained):
    ours = small_neck().state_dict()
    theirs = convert_to_authors(ours)
    assert theirs.keys() == {n for n in pretrained if n.startswith(('align', 'split', 'block_', 'fpn'))}


def test_queries_keys_and_values_are_rows_in_that_order(pretrained):
    state = convert_from_authors(identify(pretrained)).state
    parts = state['blocks.2.attn.qkv.weight'].chunk(3)
    assert all(torch.equal(p, pretrained[f'blocks.7.attn.{x}_proj.weight']) for p, x in zip(parts, 'qkv', strict=True))


def test_weights_of_an_unknown_block_are_not_dropped(small_backbone):
    state = small_backbone().state_dict()
    with pytest.raises(ValueError, match=r'no place in a network of depths \(1, 2, 2\): blocks\.2\.'):
        convert_to_authors(state, (1, 2, 2))


def test_only_our_weights_go_to_the_authors_layout(pretrained):
    with pytest.raises(ValueError, match="mmitpn's own weights"):
        convert_to_authors(pretrained)


@pytest.mark.parametrize('target', [(14, 14), (32, 32), (7, 7), (10, 21)])
def test_position_embedding_is_resized_by_target_size(target):
    embedding = torch.randn(1, 196, 8, dtype=torch.float64).half()
    resized = resample_abs_pos_embed(embedding, (14, 14), target)
    grid = embedding.float().view(1, 14, 14, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=target, mode='bicubic', align_corners=False, antialias=False)
    assert resized.dtype == (torch.float16 if target == (14, 14) else torch.float32)
    torch.testing.assert_close(resized.float(), expected.flatten(2).transpose(1, 2))


def test_the_grid_of_the_forward_pass_and_of_loading_agree(small_backbone, pretrained):
    # A module whose own grid differs is, for an image of that grid, the same network.
    from mmitpn.checkpoint import load_pretrained

    native, resized = small_backbone(), small_backbone(img_size=128)
    load_pretrained(native, pretrained)
    load_pretrained(resized, pretrained)
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        for one, other in zip(native(image), resized(image), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_names_of_the_release_before_are_accepted_with_a_warning():
    from mmitpn import checkpoint

    with pytest.warns(DeprecationWarning, match='to_ours is mmitpn.checkpoint.convert_from_authors now'):
        assert checkpoint.to_ours is convert_from_authors
    with pytest.warns(DeprecationWarning, match='to_authors is mmitpn.checkpoint.convert_to_authors now'):
        assert checkpoint.to_authors is convert_to_authors
    with pytest.raises(AttributeError, match=r"no attribute 'to_theirs'; public names: FileInfo"):
        checkpoint.to_theirs  # noqa: B018


@pytest.mark.parametrize(('wrap', 'prefix'), itertools.product(WRAPS, PREFIXES))
@pytest.mark.parametrize('layout', ['fast_itpn_pretrain', 'fast_itpn_finetuned', 'mmitpn'])
def test_wrappers_and_prefixes(request, half, pretrained, finetuned, layout, wrap, prefix):
    state = {'fast_itpn_pretrain': pretrained, 'fast_itpn_finetuned': finetuned}.get(layout)
    if state is None:
        state = convert_from_authors(identify(pretrained)).state
    file = WRAPS[wrap]({prefix + name: value for name, value in half(state).items()})
    info = identify(file)
    assert info.layout == layout
    assert (info.arch.depths, info.arch.embed_dim) == ((1, 2, 3), 64)
    assert (info.layer_scale, info.grid, info.dtype) == (True, (14, 14), 'float16')
    assert (info.pyramid is None) == (layout == 'fast_itpn_finetuned')
    if info.pyramid:
        assert (info.pyramid.out_channels, info.pyramid.depth, info.pyramid.hidden_channels) == (24, 1, 64)
    assert convert_from_authors(info).state.keys() == convert_from_authors(identify(state)).state.keys()


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('tiny', {'depths': (1, 1, 12), 'dim': 384}),
        ('small', {'depths': (2, 2, 20), 'dim': 384}),
        ('base', {'depths': (3, 3, 24), 'dim': 512}),
        ('large', {'depths': (2, 2, 40), 'dim': 768}),
        (None, {'depths': (1, 1, 3), 'dim': 128}),
    ],
)
def test_sizes_are_inferred_from_the_weights(authors_shapes, name, size):
    state = {n: torch.empty(s, device='meta') for n, s in authors_shapes(**size, layer_scale=False).items()}
    info = identify(state)
    assert (info.arch.depths, info.arch.embed_dim, info.arch.name) == (size['depths'], size['dim'], name)
    assert info.layer_scale is False
    expected = f"arch='{name}'" if name else 'arch=dict(depths=(1, 1, 3), embed_dim=128, num_heads=2)'
    assert info.arch.setting == expected


@pytest.mark.parametrize(('sizes', 'name'), PUBLISHED_ARCHS.items())
def test_the_published_sizes_are_those_of_the_backbones(sizes, name):
    with torch.device('meta'):
        arch = FastITPN(name).arch
    assert (*arch['depths'], arch['embed_dim']) == sizes
    with pytest.raises(ValueError, match='unknown arch') as error:
        FastITPN('huge')
    assert all(f"'{known}'" in str(error.value) for known in PUBLISHED_ARCHS.values())


@pytest.mark.parametrize(('case', 'layout'), [('det_pixel_base', 'itpn_pixel'), ('seg_base', 'itpn_clip')])
def test_the_older_family_is_recognized(reference_shapes, case, layout):
    state = {name: torch.empty(shape, device='meta') for name, shape in reference_shapes(case).items()}
    assert identify(state).layout == layout
    assert identify({'model': {f'backbone.{name}': v for name, v in state.items()}}).layout == layout
    assert identify(state).arch.name == 'base'


@pytest.mark.parametrize(
    ('keys', 'layout'), [('decoder_pred.weight', 'itpn_pixel'), ('lm_cls_head.weight lm_head.weight', 'itpn_clip')]
)
def test_the_older_family_is_recognized_by_its_pretraining_heads(keys, layout):
    assert identify({name: torch.zeros(1) for name in keys.split()}).layout == layout


@pytest.mark.parametrize(
    ('keys', 'looks'),
    [
        ('conv1.weight layer1.0.conv1.weight', 'a ResNet'),
        ('patch_embed.proj.weight layers.0.blocks.0.attn.relative_position_bias_table', 'a Swin Transformer'),
        ('cls_token pos_embed blocks.0.attn.qkv.weight', 'a plain vision transformer'),
        ('pos_embed blocks.0.mlp.ffn_ln.weight blocks.0.attn.proj.weight blocks.0.attn.q_proj.weight', 'an EVA-02'),
        ('a b c d', ''),
    ],
)
def test_other_networks_are_recognized(keys, looks):
    info = identify({name: torch.zeros(1) for name in keys.split()})
    assert (info.layout, info.looks_like) == ('foreign', looks)


def test_a_detector_is_split_into_backbone_pyramid_and_heads(pretrained):
    ours = convert_from_authors(identify(pretrained)).state
    pyramid = ('align', 'split', 'blocks8', 'blocks4', 'out')
    detector = {f'{"neck" if n.startswith(pyramid) else "backbone"}.{n}': v for n, v in ours.items()}
    detector |= {'bbox_head.fc.weight': torch.zeros(1), 'data_preprocessor.mean': torch.zeros(1)}
    info = identify({'state_dict': detector, 'meta': {}})
    assert info.layout == 'mmitpn'
    assert info.body.keys() == ours.keys()
    assert list(info.rest) == ['bbox_head.fc.weight', 'data_preprocessor.mean']
    assert info.arch is not None
    assert info.pyramid is not None
    assert info.wrappers == ('state_dict',)


def test_a_neck_of_mmdet_is_no_pyramid(pretrained):
    state = {
        f'backbone.{n}': v
        for n, v in convert_from_authors(identify(pretrained)).state.items()
        if not n.startswith('align')
    }
    info = identify({**state, 'neck.convs.0.weight': torch.zeros(1)})
    assert list(info.rest) == ['neck.convs.0.weight']


def test_prefix_chooses_among_several_networks(pretrained, finetuned):
    both = {f'teacher.{n}': v for n, v in pretrained.items()} | {f'student.{n}': v for n, v in finetuned.items()}
    assert identify(both, prefix='teacher.').layout == 'fast_itpn_pretrain'
    assert identify(both, prefix='student').layout == 'fast_itpn_finetuned'
    with pytest.raises(ValueError, match=r"below the prefix 'ema\.'; the file has teacher\. \(\d+\), student\."):
        identify(both, prefix='ema.')


@pytest.mark.parametrize('content', [{}, {'epoch': 3, 'model': None}, {'model': {'a': 1}}])
def test_nothing_to_load(content):
    with pytest.raises(ValueError, match='no weights by name'):
        identify(content)
