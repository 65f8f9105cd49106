"""The authors' pre-training network: what it predicts of masked patches."""

from __future__ import annotations

import pytest
import torch

from mmitpn.testing import build_reference_case

pytest.importorskip('mmpretrain')
from mmitpn.testing import build_pretrain_case


def test_equals_the_authors_prediction(reference_case, assert_matches_reference):
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
    weights = {k: v for k, v in reference_case('fast_tiny_pretrain').weights.items() if not k.startswith('lm_head')}
    with pytest.raises(ValueError, match='no lm_head'):
        build_pretrain_case(weights)
