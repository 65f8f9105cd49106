"""Costs and assignments of all layers and images at once: equal to mmdet's assigner, image by image."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.models.task_modules.assigners import BBoxL1Cost, HungarianAssigner
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from mmitpn.models.dino.matching import BoxPredictions, BoxTargets, assign, box_costs, pairwise_iou

LAYERS, QUERIES, CLASSES = 3, 9, 4
SHAPES = [(60, 100), (80, 50)]
BOX = [{'type': 'BBoxL1Cost', 'weight': 5.0, 'box_format': 'xywh'}, {'type': 'IoUCost', 'iou_mode': 'giou'}]
COSTS = {
    'published': [{'type': 'FocalLossCost', 'weight': 2.0}, *BOX],
    'softmax': [{'type': 'ClassificationCost'}, {'type': 'BBoxL1Cost'}, {'type': 'IoUCost', 'iou_mode': 'iou'}],
}


class DoubledL1Cost(BBoxL1Cost):
    """A cost of a user."""

    def __call__(self, *args, **kwargs):
        return 2 * super().__call__(*args, **kwargs)


@pytest.fixture(autouse=True)
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def make_batch(counts):
    instances = []
    for count in counts:
        corner = torch.rand(count, 2) * 30
        boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2) * 15), 1)
        instances.append(InstanceData(bboxes=boxes, labels=torch.randint(CLASSES, (count,))))
    centers = 0.2 + 0.6 * torch.rand(LAYERS, len(counts), QUERIES, 2)
    boxes = torch.cat((centers, 0.05 + 0.3 * torch.rand_like(centers)), -1)
    predictions = BoxPredictions(torch.randn(LAYERS, len(counts), QUERIES, CLASSES), boxes)
    return predictions, instances, BoxTargets.of(instances, [{'img_shape': shape} for shape in SHAPES])


@pytest.mark.parametrize('counts', [[3, 5], [0, 2], [0, 0], [12, 1]], ids=str)
@pytest.mark.parametrize('costs', COSTS.values(), ids=COSTS)
def test_assignments_are_those_of_mmdet(costs, counts):
    predictions, instances, targets = make_batch(counts)
    assigner = HungarianAssigner(costs)
    found = assign(box_costs(assigner.match_costs, predictions, targets), targets.valid)
    assert found.shape == (LAYERS, 2, max(1, *counts))
    for layer in range(LAYERS):
        for image, (height, width) in enumerate(SHAPES):
            boxes = bbox_cxcywh_to_xyxy(predictions.boxes[layer, image]) * torch.tensor([width, height] * 2)
            expected = assigner.assign(
                InstanceData(scores=predictions.logits[layer, image], bboxes=boxes),
                instances[image],
                {'img_shape': (height, width)},
            ).gt_inds
            queries = found[layer, image]
            assert (queries[counts[image] :] == -1).all()
            objects = (queries >= 0).nonzero().flatten()
            assert len(objects) == min(counts[image], QUERIES)
            assert torch.equal(expected.nonzero().flatten(), queries[objects].sort().values)
            assert torch.equal(expected[queries[objects]], objects + 1)


def test_a_cost_of_a_user_is_called_for_each_image():
    predictions, _, targets = make_batch([3, 2])
    ours = box_costs([DoubledL1Cost('xywh')], predictions, targets)
    expected = 2 * box_costs([BBoxL1Cost('xywh')], predictions, targets)
    for image, count in enumerate([3, 2]):
        torch.testing.assert_close(ours[:, image, :, :count], expected[:, image, :, :count])


@pytest.mark.parametrize('mode', ['iou', 'giou'])
def test_iou_is_that_of_mmdet(mode):
    boxes, others = torch.rand(2, 2, 5, 4) * 10  # also with negative sides
    others = others[:, :3]
    found = pairwise_iou(boxes, others, generalized=mode == 'giou')
    torch.testing.assert_close(found, bbox_overlaps(boxes, others, mode=mode))


def test_costs_that_are_no_numbers_do_not_stop_the_step():
    costs = torch.rand(1, 2, 4, 2)
    costs[0, 0] = float('nan')
    costs[0, 1, 0] = float('-inf')
    found = assign(costs, torch.tensor([[True, True], [True, False]]))
    assert found[0, 0].tolist() == [0, 1]
    assert found[0, 1].tolist() == [0, -1]
