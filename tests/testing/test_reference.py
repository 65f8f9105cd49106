"""The authors' networks: backbone and pyramid of both families, and the pre-training network."""

from __future__ import annotations

import pytest
import torch

from mmitpn.checkpoint import convert_from_authors, convert_to_authors, identify
from mmitpn.testing import build_reference_case


@pytest.mark.parametrize('name', ['det_pixel_base', 'seg_base'])
def test_equals_the_authors_outputs(name, reference_case, assert_matches_reference):
    reference = reference_case(name)
    case = build_reference_case(name, {'model': reference.weights})
    with torch.no_grad():
        outs = case(reference.image)
    assert len(outs) == len(reference.case['outs'])
    for out, expected in zip(outs, reference.case['outs'], strict=True):
        assert_matches_reference(out, expected)


@pytest.mark.parametrize('name', ['det_pixel_base', 'seg_base'])
def test_weights_go_both_ways_bit_exact(name, reference_case):
    weights = reference_case(name).weights
    back = convert_to_authors(convert_from_authors(identify(weights)).state)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_a_pyramid_as_wide_as_the_backbone_has_no_alignment(authors_itpn_weights):
    weights = authors_itpn_weights(pyramid=64, depth=2)
    assert 'align_dim_16tofpn.weight' not in weights
    outs = build_reference_case('det_pixel_fpn64', weights)(torch.randn(1, 3, 48, 80))
    assert [x.shape[1] for x in outs] == [64] * 5


@pytest.mark.parametrize('relative', [None, 'table', 'decomposed'])
def test_sizes_are_read_off_the_weights(authors_itpn_weights, relative):
    case = build_reference_case('det_any', authors_itpn_weights(layer_scale=True, relative=relative, window=7))
    assert case.backbone.blocks[0].attn.relative_position == relative
    if relative:
        assert case.backbone.blocks[0].attn.window == 7
    assert case.neck.strides == (4, 8, 16, 32, 64)


def test_unknown_names_and_weights_are_refused(authors_itpn_weights, finetuned):
    with pytest.raises(ValueError, match="the case is 'cls_base'; give a name that starts with det_ or seg_"):
        build_reference_case('cls_base', authors_itpn_weights())
    with pytest.raises(ValueError, match='not a backbone with its pyramid'):
        build_reference_case('det_fast', finetuned)


def test_equals_the_authors_prediction(reference_case, assert_matches_reference):
    pytest.importorskip('mmpretrain')
    from mmitpn.testing import build_pretrain_case

    reference = reference_case('fast_tiny_pretrain')
    masks = torch.zeros(1, 196, dtype=torch.bool)
    masks[:, reference.case['mask']] = True
    case = build_pretrain_case({'module': reference.weights})
    with torch.no_grad():
        prediction = case(reference.image, masks.view(1, 14, 14))
    assert_matches_reference(prediction, reference.case['pred'])


def test_equals_the_authors_pyramid(reference_case, assert_matches_reference):
    reference = reference_case('fast_tiny_pretrain')
    with torch.no_grad():
        levels = build_reference_case('pretrain', reference.weights)(reference.image)
    for level, expected in zip(reversed(levels), reference.case['outs'], strict=True):
        assert_matches_reference(level, expected)


def test_weights_without_a_prediction_are_refused(reference_case):
    pytest.importorskip('mmpretrain')
    from mmitpn.testing import build_pretrain_case

    weights = {k: v for k, v in reference_case('fast_tiny_pretrain').weights.items() if not k.startswith('lm_head')}
    with pytest.raises(ValueError, match='no lm_head'):
        build_pretrain_case(weights)
