"""DINO's head: parameters, losses, gradients and predictions are those of mmdet's."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.models.dense_heads import DINOHead as MMDetDINOHead
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

import mmitpn

LAYERS, QUERIES, CLASSES, GROUPS = 2, 9, 4, 3
SHAPES = [(60, 100), (80, 50)]
COSTS = [
    {'type': 'FocalLossCost', 'weight': 2.0},
    {'type': 'BBoxL1Cost', 'weight': 5.0, 'box_format': 'xywh'},
    {'type': 'IoUCost', 'iou_mode': 'giou', 'weight': 2.0},
]
FOCAL = {'type': 'FocalLoss', 'use_sigmoid': True, 'gamma': 2.0, 'alpha': 0.25, 'loss_weight': 1.0}
SOFTMAX = {'type': 'CrossEntropyLoss', 'use_sigmoid': False, 'loss_weight': 1.5}
QUALITY = {'type': 'QualityFocalLoss', 'use_sigmoid': True, 'beta': 2.0}


@pytest.fixture(autouse=True)
def mmdet_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def make_heads(loss_cls=FOCAL, **settings):
    cfg = ConfigDict(
        num_classes=CLASSES,
        embed_dims=8,
        num_pred_layer=LAYERS + 1,
        as_two_stage=True,
        loss_cls=loss_cls,
        loss_bbox={'type': 'L1Loss', 'loss_weight': 5.0},
        loss_iou={'type': 'GIoULoss', 'loss_weight': 2.0},
        train_cfg={'assigner': {'type': 'HungarianAssigner', 'match_costs': COSTS}},
        test_cfg={'max_per_img': 12},
    )
    cfg.update(settings)
    ours, mmdet_head = mmitpn.DINOHead(**deepcopy(cfg)), MMDetDINOHead(**deepcopy(cfg))
    ours.load_state_dict(mmdet_head.state_dict())
    return ours, mmdet_head


def make_outputs(heads, counts, *, groups=GROUPS):
    number = max(counts) * 2 * groups
    states = torch.randn(LAYERS, 2, number + QUERIES, 8)
    references = [torch.rand(2, number + QUERIES, 4) for _ in range(LAYERS + 1)]
    encoder = torch.randn(2, QUERIES, heads[0].cls_out_channels), torch.rand(2, QUERIES, 4)
    instances, metas = [], []
    for count, shape in zip(counts, SHAPES, strict=True):
        corner = torch.rand(count, 2) * 30
        boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2) * 15), 1)
        instances.append(InstanceData(bboxes=boxes, labels=torch.randint(CLASSES, (count,))))
        metas.append({'img_shape': shape, 'scale_factor': (1.5, 0.8)})
    meta = {'num_denoising_queries': number, 'num_denoising_groups': groups}
    return states, references, encoder, instances, metas, meta


@pytest.mark.parametrize('counts', [[3, 5], [0, 2], [0, 0], [12, 1]], ids=str)
@pytest.mark.parametrize(
    'settings',
    [{'sync_cls_avg_factor': True}, {'sync_cls_avg_factor': False}, {'loss_cls': SOFTMAX}, {'loss_cls': QUALITY}],
    ids=['synchronized', 'focal', 'softmax', 'quality'],
)
def test_losses_and_gradients_are_those_of_mmdet(settings, counts):
    heads = make_heads(**settings)
    states, references, encoder, instances, metas, meta = make_outputs(heads, counts)
    outcomes = []
    for head in heads:
        inputs = [one.clone().requires_grad_() for one in (states, *encoder)]
        losses = head.loss_by_feat(*head(inputs[0], references), *inputs[1:], instances, metas, meta)
        sum(value.sum() for value in losses.values()).backward()
        gradients = [one.grad for one in inputs] + [parameter.grad for parameter in head.parameters()]
        outcomes.append(({name: value.reshape(()) for name, value in losses.items()}, gradients))
    (ours, our_gradients), (expected, expected_gradients) = outcomes
    assert ours.keys() == expected.keys()
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    for found, wanted in zip(our_gradients, expected_gradients, strict=True):
        if found is None and wanted is None:  # the branches of the encoder, whose outputs are given here
            continue
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * max(1.0, wanted.abs().max().item()))


@pytest.mark.parametrize('loss_cls', [FOCAL, SOFTMAX], ids=['sigmoid', 'softmax'])
@pytest.mark.parametrize('rescale', [True, False])
def test_predictions_are_those_of_mmdet(loss_cls, rescale):
    settings = {'max_per_img': 12 if loss_cls is FOCAL else QUERIES}
    heads = make_heads(loss_cls, test_cfg=settings)
    states, references, _, _, metas, _ = make_outputs(heads, [0, 0])
    references = [one * 2 - 0.5 for one in references]  # also beyond the image
    results = []
    for head in heads:
        with torch.no_grad():
            results.append(head.predict_by_feat(*head(states, references), metas, rescale=rescale))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=1e-6, atol=1e-5)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.labels, expected.labels)


def test_fewer_candidates_than_max_per_img_are_all_returned():
    ours, _ = make_heads(test_cfg={'max_per_img': 100})
    scores, labels, boxes = ours.select(torch.randn(2, QUERIES, CLASSES), torch.rand(2, QUERIES, 4))
    assert scores.shape == labels.shape == (2, QUERIES * CLASSES)
    assert boxes.shape == (2, QUERIES * CLASSES, 4)


def test_ignored_instances_raise():
    heads = make_heads()
    states, references, encoder, instances, metas, meta = make_outputs(heads, [1, 1])
    with pytest.raises(ValueError, match='does not use batch_gt_instances_ignore'):
        heads[0].loss_by_feat(*heads[0](states, references), *encoder, instances, metas, meta, instances)
