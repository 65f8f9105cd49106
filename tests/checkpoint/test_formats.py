"""Identifying files: wrappers, prefixes, layouts and sizes."""

from __future__ import annotations

import itertools

import pytest
import torch

from mmitpn import FastITPN
from mmitpn.checkpoint import convert_from_authors, identify
from mmitpn.checkpoint.formats import PUBLISHED_ARCHS

WRAPS = {
    'raw': lambda state: state,
    'module': lambda state: {'module': state, 'epoch': 1},
    'model': lambda state: {'model': state, 'optimizer': {'state': {}}, 'model_ema': {'x': torch.zeros(1)}},
    'state_dict': lambda state: {'meta': {'epoch': 1}, 'state_dict': state, 'ema_state_dict': {'x': torch.zeros(1)}},
    'ema': lambda state: {'ema_state_dict': {'steps': torch.tensor(3), **state}},
    'nested': lambda state: {'model': {'module': state}},
}
PREFIXES = ['', 'module.', 'backbone.', 'module.backbone.', '_orig_mod.']


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
