"""Panoptic quality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmdet')

from mmitpn.evaluation import PanopticMetric
from mmitpn.evaluation.panoptic_metric import Tally, compare_segments


def grid(text):
    return np.array([[int(cell) for cell in row] for row in text.split()])


def test_matches_have_one_class_and_an_iou_above_a_half():
    gt = grid('1122 1122 1122')
    pred = grid('5566 5566 5666')
    tallies = compare_segments(gt, {1: (0, False), 2: (0, False)}, pred, {5: 0, 6: 0})
    assert tallies[0] == pytest.approx(Tally(5 / 6 + 6 / 7, 2))
    assert tallies[0].quality == pytest.approx(((5 / 6 + 6 / 7) / 2, (5 / 6 + 6 / 7) / 2, 1.0))
    tallies = compare_segments(gt, {1: (0, False), 2: (0, False)}, pred, {5: 0, 6: 1})
    assert tallies == {0: pytest.approx(Tally(5 / 6, 1, 0, 1)), 1: Tally(fp=1)}


def test_exactly_a_half_is_no_match():
    tallies = compare_segments(grid('1100'), {1: (0, False)}, grid('5550'), {5: 0})
    # Pixels without ground truth do not count: the union is the two pixels of the ground truth.
    assert tallies == {0: Tally(1.0, 1)}
    tallies = compare_segments(grid('1122'), {1: (0, False), 2: (1, False)}, grid('5555'), {5: 0})
    assert tallies == {0: Tally(fp=1, fn=1), 1: Tally(fn=1)}


def test_predictions_without_ground_truth_or_in_a_crowd_are_no_mistake():
    segments = {1: (0, True), 2: (1, False)}
    gt = grid('0001 1122')
    assert compare_segments(gt, segments, grid('5550 0022'), {5: 0, 2: 1}) == {1: Tally(1.0, 1)}
    assert compare_segments(gt, segments, grid('0005 5522'), {5: 0, 2: 1}) == {1: Tally(1.0, 1)}
    pred = compare_segments(gt, segments, grid('0005 5522'), {5: 1, 2: 1})
    assert pred == {1: Tally(1.0, 1, 1)}  # a crowd of another class


@pytest.fixture
def metric():
    metric = PanopticMetric()
    metric.dataset_meta = {'classes': ('cat', 'dog', 'sky'), 'thing_classes': ('cat', 'dog'), 'stuff_classes': ('sky',)}
    return metric


def sample(tmp_path, gt, segments, pred):
    pixels = np.zeros((*gt.shape, 3), np.uint8)
    pixels[..., 0] = gt
    path = tmp_path / 'gt.png'
    Image.fromarray(pixels).save(path)
    info = [{'id': i, 'category': c, 'is_thing': t} for i, c, t in segments]
    return {
        'seg_map_path': str(path),
        'segments_info': info,
        'pred_panoptic_seg': {'sem_seg': torch.as_tensor(pred)[None]},
    }


def test_means_over_classes(metric, tmp_path):
    gt = grid('1122 1122 3333')
    segments = [(1, 0, True), (2, 1, True), (3, 2, False)]
    pred = np.array([[1000, 1000, 2001, 2001], [1000, 1000, 2000, 2000], [2, 2, 2, 3]])  # 3: no class
    metric.process({}, [sample(tmp_path, gt, segments, pred)])
    scores = metric.compute_metrics(metric.results)
    # The dog is half found, which is no match; so is the second cat.
    assert scores['PQ'] == pytest.approx(100 * (1 / 1.5 + 0 + 0.75) / 3, abs=1e-3)
    assert scores['PQ_th'] == pytest.approx(100 * (1 / 1.5) / 2, abs=1e-3)
    assert (scores['PQ_st'], scores['SQ_st'], scores['RQ_st']) == (75.0, 75.0, 100.0)


def test_what_is_right_is_a_hundred_and_nothing_is_zero(metric, tmp_path):
    gt = grid('1122 3333')
    pred = np.array([[1000, 1000, 2000, 2000], [2, 2, 2, 2]])
    metric.process({}, [sample(tmp_path, gt, [(1, 0, True), (2, 0, True), (3, 2, False)], pred)])
    assert set(metric.compute_metrics(metric.results).values()) == {100.0}
    assert set(metric.compute_metrics([]).values()) == {0.0}


def test_missing_ground_truth_is_reported(metric):
    with pytest.raises(ValueError, match="let meta_keys of PackDetInputs have 'seg_map_path'"):
        metric.process({}, [{'pred_panoptic_seg': {}}])
