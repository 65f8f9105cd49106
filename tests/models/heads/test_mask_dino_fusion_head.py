"""Instances, panoptic segments and label maps at the size of the original image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip('mmdet')

from mmitpn.models.heads import MaskDINOFusionHead
from mmitpn.models.heads import mask_dino_fusion_head as fusion
from mmitpn.models.mask_dino import LayerOutputs


def outputs(masks, logits, boxes=None):
    """Queries with these masks ``(Q, H, W)``, one channel each."""
    queries = len(masks)
    boxes = torch.full((1, queries, 4), 0.5) if boxes is None else boxes[None]
    return LayerOutputs(logits[None], boxes, torch.eye(queries)[None], masks[None])


def rectangle(top, bottom, left, right, *, size=(24, 32)):
    mask = torch.full(size, -20.0)
    mask[top:bottom, left:right] = 20.0
    return mask


def one_hot(labels, classes, score=4.0):
    return torch.where(F.one_hot(torch.tensor(labels), classes).bool(), score, -6.0)


def test_instances_are_in_pixels_of_the_image_before_resizing(make_sample):
    head = MaskDINOFusionHead(5, test_cfg={'max_per_image': 2})
    masks = torch.stack([rectangle(0, 12, 0, 16), rectangle(12, 24, 16, 32)])
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]])
    sample = make_sample(0)  # 90 x 110, padded to 96 x 128; 45 x 55 before resizing
    (found,) = head.predict(outputs(masks, one_hot([1, 4], 5), boxes), [sample])
    instances = found['ins_results']
    assert instances.masks.shape == (2, 45, 55)
    assert sorted(instances.labels.tolist()) == [1, 4]
    first = instances[instances.labels == 1]
    assert first.masks[0, :23, :31].all()
    assert not first.masks[0, 25:].any()
    assert first.bboxes.tolist() == [[0.0, 0.0, 32.0, 24.0]]
    second = instances[instances.labels == 4]
    assert second.bboxes.tolist() == [[32.0, 24.0, 55.0, 45.0]]  # clipped at the border of the image
    assert first.scores.item() == pytest.approx(torch.tensor(4.0).sigmoid().item(), abs=0.02)
    (padded,) = head.predict(outputs(masks, one_hot([1, 4], 5), boxes), [sample], rescale=False)
    assert padded['ins_results'].masks.shape == (2, 90, 110)


def test_score_is_class_score_times_mask_score(make_sample):
    head = MaskDINOFusionHead(2)
    masks = torch.stack([rectangle(0, 12, 0, 16), rectangle(0, 12, 0, 16).clamp(-20, 0.5)])
    (found,) = head.predict(outputs(masks, one_hot([0, 0], 2)), [make_sample(0)])
    best = found['ins_results'].scores.sort(descending=True).values
    assert best[1] / best[0] == pytest.approx(torch.tensor(0.5).sigmoid().item(), abs=0.03)


def test_stuff_gives_no_instances_and_few_queries_give_few_instances(make_sample):
    head = MaskDINOFusionHead(2, 3, test_cfg={'max_per_image': 100})
    masks = torch.stack([rectangle(0, 12, 0, 16), rectangle(12, 24, 0, 16)])
    (found,) = head.predict(outputs(masks, one_hot([1, 4], 5)), [make_sample(0)])
    assert len(found['ins_results']) == 2 * 2  # every query with every thing class
    assert found['ins_results'].labels.max() < 2


@pytest.mark.parametrize('values', [1, 2**24])
def test_segments(make_sample, monkeypatch, values):
    monkeypatch.setattr(fusion, '_MAX_VALUES', values)  # one mask at a time, or all
    head = MaskDINOFusionHead(2, 2, test_cfg={'panoptic_on': True, 'instance_on': False})
    masks = torch.stack(
        [
            rectangle(0, 8, 0, 10),  # thing
            rectangle(0, 8, 12, 22),  # thing of the same class
            rectangle(10, 20, 0, 10),  # stuff, twice: one segment
            rectangle(10, 20, 12, 22),
            rectangle(0, 8, 0, 10),  # where the first thing is, with a lower score: keeps no pixel
            rectangle(20, 22, 0, 10),  # a score below the threshold
        ]
    )
    logits = torch.cat((one_hot([0, 0, 3, 3], 4), one_hot([1], 4, 1.0), one_hot([1], 4, -2.0)))
    (found,) = head.predict(outputs(masks, logits), [make_sample(0)])
    segments = found['pan_results'].sem_seg[0]
    assert segments.shape == (45, 55)
    assert segments[4, 4] % 1000 == segments[4, 36] % 1000 == 0
    assert {int(segments[4, 4]) // 1000, int(segments[4, 36]) // 1000} == {1, 2}
    assert segments[30, 4] == segments[30, 36] == 3
    assert set(segments.unique().tolist()) == {1000, 2000, 3, 4}  # 4: no class
    (nothing,) = head.predict(outputs(masks, torch.full((6, 4), -6.0)), [make_sample(0)])
    assert (nothing['pan_results'].sem_seg == 4).all()


@pytest.mark.parametrize('values', [1, 2**24])
def test_label_map(make_sample, monkeypatch, values):
    monkeypatch.setattr(fusion, '_MAX_VALUES', values)
    head = MaskDINOFusionHead(3, test_cfg={'semantic_on': True, 'instance_on': False})
    masks = torch.stack([rectangle(0, 24, 0, 16), rectangle(0, 24, 16, 32)])
    (found,) = head.predict(outputs(masks, one_hot([2, 0], 3)), [make_sample(0)])
    labels = found['sem_results'].sem_seg[0]
    assert (labels[:, :31] == 2).all()
    assert (labels[:, 33:] == 0).all()


def test_background_is_left_out(make_sample):
    head = MaskDINOFusionHead(2, 1, test_cfg={'panoptic_on': True, 'semantic_on': True})
    masks = torch.stack([rectangle(0, 24, 0, 16), rectangle(0, 24, 16, 32)])
    (found,) = head.predict(outputs(masks, one_hot([1, 3], 4)), [make_sample(0)])
    assert set(found['pan_results'].sem_seg.unique().tolist()) == {1001, 3}
    assert found['sem_results'].sem_seg.max() < 3


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'iou': 0.5}, 'test_cfg has iou; allowed: instance_on, panoptic_on'),
        ({'instance_on': False}, 'switches everything off'),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskDINOFusionHead(2, test_cfg=settings)
