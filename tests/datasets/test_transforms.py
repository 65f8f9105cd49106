from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('mmcv', reason='mmcv is not installed')

from mmitpn.datasets.transforms import RandomTranspose
from mmitpn.registry import TRANSFORMS


@pytest.fixture
def results() -> dict:
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    image[4:10, 12:27] = 255
    return {
        'img': image,
        'img_shape': (20, 30),
        'gt_bboxes': np.array([[12.0, 4.0, 27.0, 10.0]]),
        'gt_seg_map': image[..., 0].copy(),
    }


def test_boxes_follow_the_image(results):
    out = RandomTranspose(prob=1)(results)
    assert out['img'].shape == (30, 20, 3)
    assert out['img_shape'] == (30, 20)
    x1, y1, x2, y2 = out['gt_bboxes'][0].astype(int)
    assert out['img'][y1:y2, x1:x2].min() == 255
    assert out['img'].sum() == 255 * 3 * (x2 - x1) * (y2 - y1)
    np.testing.assert_array_equal(out['gt_seg_map'], out['img'][..., 0])
    np.testing.assert_array_equal(out['homography_matrix'] @ [12, 4, 1], [4, 12, 1])


def test_twice_is_the_same_as_never(results):
    twice = RandomTranspose(prob=1)(RandomTranspose(prob=1)({key: results[key] for key in results}))
    never = RandomTranspose(prob=0)(results)
    np.testing.assert_array_equal(twice['img'], never['img'])
    np.testing.assert_array_equal(twice['gt_bboxes'], never['gt_bboxes'])
    np.testing.assert_array_equal(twice['homography_matrix'], np.eye(3))


def test_mmdet_boxes_and_masks(results):
    structures = pytest.importorskip('mmdet.structures', reason='mmdet is not installed')
    masks = pytest.importorskip('mmdet.structures.mask')
    results['gt_bboxes'] = structures.bbox.HorizontalBoxes(results['gt_bboxes'])
    bitmap = masks.BitmapMasks(results['gt_seg_map'][None] // 255, 20, 30)
    polygon = masks.PolygonMasks([[np.array([12.0, 4, 27, 4, 27, 10, 12, 10])]], 20, 30)
    for kind in (bitmap, polygon):
        out = RandomTranspose(prob=1)({**results, 'gt_masks': kind})
        assert isinstance(out['gt_bboxes'], structures.bbox.HorizontalBoxes)
        assert out['gt_bboxes'].tensor.tolist() == [[4, 12, 10, 27]]
        np.testing.assert_array_equal(out['gt_masks'].to_ndarray()[0], out['gt_seg_map'] // 255)


def test_what_it_cannot_transpose_is_refused(results):
    with pytest.raises(TypeError, match='does not transpose gt_keypoints'):
        RandomTranspose(prob=1)({**results, 'gt_keypoints': np.zeros((1, 17, 3))})
    with pytest.raises(TypeError, match='takes boxes x1, y1, x2, y2'):
        RandomTranspose(prob=1)({**results, 'gt_bboxes': np.zeros((1, 5))})
    with pytest.raises(ValueError, match='prob must be from 0 to 1, but got 2'):
        RandomTranspose(prob=2)


def test_it_is_found_by_its_name_in_a_config():
    assert repr(TRANSFORMS.build({'type': 'mmitpn.RandomTranspose', 'prob': 0.25})) == 'RandomTranspose(prob=0.25)'
