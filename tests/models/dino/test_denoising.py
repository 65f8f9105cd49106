"""DINO's denoising queries: their layout is mmdet's, their noise that of the paper."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.models.layers import CdnQueryGenerator
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from mmitpn.models.dino.denoising import ContrastiveDenoising
from mmitpn.models.dino.matching import BoxTargets

SHAPE = (60, 100)
DYNAMIC, STATIC = {'dynamic': True, 'num_dn_queries': 20}, {'dynamic': False, 'num_groups': 3}


def make_samples(counts):
    samples = []
    for count in counts:
        corner = torch.rand(count, 2) * 30
        boxes = torch.cat((corner, corner + 5 + torch.rand(count, 2) * 20), 1)
        sample = DetDataSample(gt_instances=InstanceData(bboxes=boxes, labels=torch.randint(4, (count,))))
        sample.set_metainfo({'img_shape': SHAPE})
        samples.append(sample)
    return samples


def targets_of(samples):
    return BoxTargets.of([one.gt_instances for one in samples], [one.metainfo for one in samples])


def generator(group_cfg=DYNAMIC, **noise):
    return ContrastiveDenoising(nn.Embedding(4, 8), 7, group_cfg=group_cfg, **noise)


@pytest.mark.parametrize('counts', [[2, 3], [0, 4], [30, 1]], ids=str)
@pytest.mark.parametrize('group_cfg', [DYNAMIC, STATIC], ids=['dynamic', 'static'])
def test_without_noise_the_queries_are_those_of_mmdet(counts, group_cfg):
    samples = make_samples(counts)
    ours = generator(group_cfg, label_noise_scale=1e-9, box_noise_scale=1e-9)
    mmdet_generator = CdnQueryGenerator(4, 8, 7, 1e-9, 1e-9, group_cfg)
    mmdet_generator.label_embedding = ours.label_embedding
    content, boxes, mask, meta = mmdet_generator(samples)
    found = ours(targets_of(samples))
    torch.testing.assert_close(found.content, content, rtol=0, atol=0)
    torch.testing.assert_close(found.boxes, boxes, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.attention_mask, mask)
    assert (found.content.shape[1], found.groups) == tuple(meta.values())


def test_a_batch_without_objects_has_none():
    assert generator()(targets_of(make_samples([0, 0]))) is None


def test_negative_copies_are_further_away_than_positive_ones():
    denoising = generator({'dynamic': False, 'num_groups': 200}, box_noise_scale=0.4)
    boxes = torch.tensor([0.5, 0.4, 0.3, 0.2]).expand(1, 200, 2, 1, 4)
    noised = denoising.add_box_noise(boxes)
    corners = torch.cat((noised[..., :2] - noised[..., 2:] / 2, noised[..., :2] + noised[..., 2:] / 2), -1)
    distance = (corners - torch.tensor([0.35, 0.3, 0.65, 0.5])).abs() / torch.tensor([0.3, 0.2, 0.3, 0.2]) / 0.2
    positive, negative = distance.unbind(2)
    assert 0.9 < positive.max() < 1.001
    assert positive.min() < 0.1
    assert 1.9 < negative.max() < 2.001
    assert 0.999 < negative.min() < 1.1


@pytest.mark.parametrize('scale', [0.5, 1.0])
def test_labels_change_with_half_the_probability(scale):
    labels = torch.zeros(40000, dtype=torch.long)
    noised = generator(label_noise_scale=scale).add_label_noise(labels)
    assert (noised != 0).float().mean().item() == pytest.approx(scale / 2 * 3 / 4, abs=0.02)
    assert noised.unique().tolist() == [0, 1, 2, 3]
