"""Sizes, padding, coordinates and proposals of the levels: equal to mmdet's."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.models.detectors import DeformableDETR
from mmdet.models.layers import DeformableDetrTransformerEncoder, SinePositionalEncoding
from torch import nn

from mmitpn.models.dino import FeatureLevels, make_padding_mask

MAPS = [(2, 4, 8, 11), (2, 4, 4, 6), (2, 4, 2, 3)]
PADDED = (64, 85)
IMAGES = {'without padding': [PADDED, PADDED], 'padded': [(64, 50), (33, 85)]}


@pytest.fixture(params=IMAGES.values(), ids=IMAGES)
def levels(request):
    padding_mask = make_padding_mask(request.param, PADDED, torch.device('cpu'))
    return FeatureLevels.of([torch.zeros(size) for size in MAPS], padding_mask)


@pytest.fixture
def mmdet_masks(levels):
    """The padding of each level, (B, h, w)."""
    flat = (
        torch.zeros(2, levels.num_positions, dtype=torch.bool) if levels.padding_mask is None else levels.padding_mask
    )
    return [part.unflatten(1, shape) for part, shape in zip(flat.split(levels.counts, 1), levels.shapes, strict=True)]


def test_padding_mask_covers_what_is_beyond_the_image():
    mask = make_padding_mask([(2, 3), (4, 1)], (4, 3), torch.device('cpu'))
    assert mask.int().tolist() == [[[0] * 3, [0] * 3, [1] * 3, [1] * 3], [[0, 1, 1]] * 4]
    assert make_padding_mask([(4, 3)], (4, 3), torch.device('cpu')) is None


def test_reference_points_are_those_of_mmdet(levels, mmdet_masks):
    ratios = torch.stack([DeformableDETR.get_valid_ratio(mask) for mask in mmdet_masks], 1)
    expected = DeformableDetrTransformerEncoder.get_encoder_reference_points(
        torch.tensor(levels.shapes), ratios, torch.device('cpu')
    )
    assert torch.equal(levels.valid_ratios.expand(2, -1, -1), ratios)
    assert torch.equal(levels.reference_points().expand(2, -1, -1, -1), expected)


def test_proposals_are_those_of_mmdet(levels):
    detector = nn.Module()
    detector.memory_trans_fc = detector.memory_trans_norm = nn.Identity()
    memory = torch.randn(2, levels.num_positions, 4)
    hidden, logits = DeformableDETR.gen_encoder_output_proposals(
        detector, memory, levels.padding_mask, torch.tensor(levels.shapes)
    )
    found, valid = levels.proposals()
    assert torch.equal(found.expand(2, -1, -1), logits)
    assert torch.equal(memory.masked_fill(~valid, 0.0), hidden)


@pytest.mark.parametrize('settings', [{'normalize': True}, {'normalize': True, 'offset': -0.5, 'temperature': 20}, {}])
def test_position_embeddings_are_those_of_mmdet(levels, mmdet_masks, settings):
    encoding = SinePositionalEncoding(8, **settings)
    expected = torch.cat([encoding(mask).flatten(2).mT for mask in mmdet_masks], 1)
    found = levels.position_embedding(encoding).expand(2, -1, -1)
    inside = torch.ones(2, levels.num_positions, dtype=torch.bool)
    if levels.padding_mask is not None:
        inside = ~levels.padding_mask
    torch.testing.assert_close(found[inside], expected[inside], rtol=0, atol=1e-6)


def test_fractions_of_the_padded_image_are_those_without_padding():
    maps = [torch.zeros(size) for size in MAPS]
    padding_mask = make_padding_mask(IMAGES['padded'], PADDED, torch.device('cpu'))
    padded, plain = FeatureLevels.of(maps, padding_mask, fractions_of_padded=True), FeatureLevels.of(maps)
    assert torch.equal(padded.reference_points(), plain.reference_points())
    (boxes, valid), (plain_boxes, _) = padded.proposals(), plain.proposals()
    assert torch.equal(valid[..., 0].any(0), ~padded.padding_mask.all(0) & valid[..., 0].any(0))
    assert torch.equal(boxes[valid[..., 0]], plain_boxes.expand(2, -1, -1)[valid[..., 0]])
    assert not (valid[..., 0] & padded.padding_mask).any()


def test_flattening_is_undone():
    maps = [torch.randn(size) for size in MAPS]
    levels = FeatureLevels.of(maps)
    assert all(map(torch.equal, levels.unflatten(levels.flatten(maps)), maps))


def test_constants_of_a_prediction_serve_a_training_step():
    maps = [torch.randn(1, 4, 5, 7, requires_grad=True)]
    with torch.inference_mode():
        FeatureLevels.of(maps).reference_points()
    points = FeatureLevels.of(maps).reference_points()
    (points * maps[0].sum()).sum().backward()
    assert maps[0].grad is not None
