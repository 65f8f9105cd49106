from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.models.task_modules.assigners import BBoxL1Cost

from mmitpn.models.mask_dino import LayerOutputs, MaskDINOTargets
from mmitpn.models.mask_dino.criterion import HungarianMatcher, targets_from_label_map


class ScaledL1Cost(BBoxL1Cost):
    """A box cost of a user."""


@pytest.mark.parametrize('cost', [BBoxL1Cost, ScaledL1Cost])
@pytest.mark.parametrize(
    ('has_box', 'stuff_box_cost', 'query'), [(True, False, 1), (False, False, 0), (False, True, 1)]
)
def test_boxes_of_stuff_count_in_matching_only_if_switched_on(cost, has_box, stuff_box_cost, query):
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.2, 0.2]]])
    outputs = LayerOutputs(torch.zeros(1, 2, 3), boxes, torch.zeros(1, 2, 4), torch.zeros(1, 4, 8, 8))
    target = MaskDINOTargets(
        torch.tensor([1]), boxes[0, 1:], torch.ones(1, 16, 16, dtype=torch.bool), torch.tensor([has_box])
    )
    matcher = HungarianMatcher([cost(box_format='xywh')], 8, stuff_box_cost=stuff_box_cost)
    ((queries, objects),) = matcher(outputs, [target])
    # Without any cost, all assignments are equal, and the first query is taken.
    assert (queries.tolist(), objects.tolist()) == ([query], [0])


def test_targets_of_a_label_map_cover_the_padded_image():
    label_map = torch.full((6, 8), 255)
    label_map[2:4, 5:8] = 1
    label_map[0, 0] = 7  # not a class
    targets = targets_from_label_map(label_map, range(3), (8, 10))
    assert targets.labels.tolist() == [1]
    assert targets.masks.shape == (1, 8, 10)
    torch.testing.assert_close(targets.boxes, torch.tensor([[0.65, 3 / 8, 0.3, 2 / 8]]))
    assert len(targets_from_label_map(label_map, range(4, 6), (8, 10))) == 0
