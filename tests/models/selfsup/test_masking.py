from __future__ import annotations

import pytest
import torch

from mmitpn.models.selfsup.masking import patchify, random_masks, unpatchify, visible_ids


def test_patches_and_back(images):
    assert torch.equal(unpatchify(patchify(images)), images)
    patch = images[1, :, 16:32, 48:64]  # second row, last column: row, column, color
    assert torch.equal(patchify(images)[1, 1, 3].view(16, 16, 3), patch.permute(1, 2, 0))


@pytest.mark.parametrize(('ratio', 'masked'), [(0.75, 18), (0.001, 1), (0.999, 23)])
def test_every_image_has_the_same_number_of_masked_patches(ratio, masked):
    masks = random_masks(3, (4, 6), ratio)
    assert masks.shape == (3, 4, 6)
    assert masks.flatten(1).sum(1).tolist() == [masked] * 3


def test_visible_patches_in_order():
    masks = torch.tensor([[[True, False], [True, False]], [[False, True], [True, False]]])
    assert visible_ids(masks).tolist() == [[1, 3], [0, 3]]
    masks[0, 0, 0] = False
    with pytest.raises(ValueError, match=r'have \[2, 3\] visible patches; .* let the mask generator mask a fixed'):
        visible_ids(masks)
    with pytest.raises(ValueError, match=r'have \[0\] visible patches'):
        visible_ids(torch.ones(2, 2, 2, dtype=torch.bool))
