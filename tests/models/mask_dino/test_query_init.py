from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

import torchvision

from mmitpn.models.mask_dino.query_init import gen_encoder_output_proposals, masks_to_boxes


@pytest.mark.parametrize('leading', [(5,), (2, 3)])
def test_masks_to_boxes_equals_torchvision(leading):
    masks = torch.rand(*leading, 9, 13) > 0.9
    masks[..., 4, 6] = True  # none is empty: older versions of torchvision raise
    boxes, filled = masks_to_boxes(masks)
    assert filled.all()
    assert torch.equal(boxes.flatten(0, -2).float(), torchvision.ops.masks_to_boxes(masks.flatten(0, -3)))


def test_an_empty_mask_has_a_box_of_zeros():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[1, 3, 5] = True
    boxes, filled = masks_to_boxes(masks)
    assert boxes.tolist() == [[0, 0, 0, 0], [5, 3, 5, 3]]
    assert filled.tolist() == [False, True]
    assert masks_to_boxes(masks[:0])[0].shape == (0, 4)


def test_proposals_grow_with_the_level_and_are_invalid_on_padding():
    padding_mask = torch.zeros(1, 2 * 2 + 1, dtype=torch.bool)
    padding_mask[0, 1] = True
    logits, valid = gen_encoder_output_proposals([(2, 2), (1, 1)], padding_mask, torch.zeros(1))
    assert valid.flatten().tolist() == [True, False, True, True, True]
    assert logits[0, 1].isinf().all()
    torch.testing.assert_close(logits[0, 0].sigmoid(), torch.tensor([0.25, 0.25, 0.05, 0.05]))
    torch.testing.assert_close(logits[0, 4].sigmoid(), torch.tensor([0.5, 0.5, 0.1, 0.1]))
