"""Results: arrays, one line, a drawing, supervision and COCO."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from mmitpn.apis.results import Result

sv = pytest.importorskip('supervision')
CLASSES = ('circle', 'square', 'sky')
IMAGE = np.full((120, 160, 3), 128, np.uint8)


def regions() -> np.ndarray:
    """Two masks ``(2, H, W)``."""
    masks = np.zeros((2, *IMAGE.shape[:2]), bool)
    masks[0, 10:50, 20:60] = masks[1, 70:110, 80:150] = True
    return masks


@pytest.fixture
def instances() -> Result:
    boxes = np.array([[20, 10, 60, 50], [80, 70, 150, 110]], np.float32)
    values = {'boxes': boxes, 'scores': np.array([0.9, 0.4], np.float32), 'labels': np.array([1, 0])}
    return Result(IMAGE, 'a.jpg', CLASSES, {**values, 'masks': regions()})


@pytest.fixture
def panoptic() -> Result:
    first, second = regions()
    segments = [
        {'id': 1, 'label': 0, 'name': 'circle', 'is_thing': True, 'area': int(first.sum())},
        {'id': 2, 'label': 2, 'name': 'sky', 'is_thing': False, 'area': int(second.sum())},
    ]
    return Result(IMAGE, 'a.jpg', CLASSES, {'panoptic': first + 2 * second.astype(np.int32)}, segments_info=segments)


@pytest.fixture
def semantic() -> Result:
    labels = np.full(IMAGE.shape[:2], 2)
    labels[regions()[0]] = 1
    return Result(IMAGE, 'a.jpg', CLASSES, {'semantic': labels})


@pytest.fixture
def classifier() -> Result:
    return Result(IMAGE, 'a.jpg', CLASSES, {'probabilities': np.array([0.1, 0.7, 0.2], np.float32)})


def test_one_line(instances, panoptic, semantic, classifier):
    assert instances.summary == '2 objects: 1 square, 1 circle'
    assert panoptic.summary == '2 segments: 1 circle, 1 sky'
    assert semantic.summary == '2 classes: sky 92%, square 8%'
    assert classifier.summary == 'square 0.70, sky 0.20, circle 0.10'
    assert repr(instances) == 'Result(a.jpg, 160x120: 2 objects: 1 square, 1 circle)'
    assert [len(one) for one in (instances, panoptic, semantic, classifier)] == [2, 2, 2, 3]


def test_labels_have_names(instances, panoptic, semantic, classifier):
    assert instances.names == ['square', 'circle']
    assert panoptic.names == ['circle', 'sky']
    assert semantic.names == ['sky', 'square']
    assert classifier.names == ['square', 'sky', 'circle']
    np.testing.assert_allclose(classifier.scores, [0.7, 0.2, 0.1])


def test_an_output_that_the_model_lacks(instances, panoptic, semantic, classifier):
    with pytest.raises(ValueError, match=r'gives no semantic; use result\.boxes, result\.masks, or a config'):
        _ = instances.semantic
    for result, has in ((panoptic, 'panoptic'), (semantic, 'semantic'), (classifier, 'probabilities')):
        with pytest.raises(ValueError, match=rf'gives no masks; use result\.{has}, or a config'):
            _ = result.masks
    with pytest.raises(ValueError, match='gives no scores'):
        _ = panoptic.scores


def test_supervision(instances, panoptic, semantic, classifier):
    found = instances.to_supervision()
    assert found.data['class_name'].tolist() == ['square', 'circle']
    np.testing.assert_array_equal(found.xyxy, instances.boxes)
    np.testing.assert_array_equal(found.mask, regions())
    segments = panoptic.to_supervision()
    np.testing.assert_array_equal(segments.xyxy, instances.boxes)
    assert segments.data['segment_id'].tolist() == [1, 2]
    assert semantic.to_supervision().mask.sum(axis=(1, 2)).tolist() == [160 * 120 - 1600, 1600]
    assert classifier.to_supervision().class_id.tolist() == [1, 2, 0]


def test_coco_results(instances, panoptic, classifier):
    first, second = instances.to_coco(7)
    assert {**first, 'segmentation': None, 'score': round(first['score'], 4)} == {
        'image_id': 7, 'category_id': 2, 'score': 0.9, 'bbox': [20, 10, 40, 40], 'segmentation': None
    }  # fmt: skip
    assert isinstance(second['segmentation']['counts'], str)
    np.testing.assert_array_equal(coco_mask.decode(second['segmentation']), regions()[1])
    assert [one['category_id'] for one in instances.to_coco(category_ids=(10, 20, 30))] == [20, 10]
    assert [one['bbox'] for one in panoptic.to_coco()] == [[20, 10, 40, 40], [80, 70, 70, 40]]
    assert [one['category_id'] for one in classifier.to_coco()] == [2, 3, 1]
    with pytest.raises(ValueError, match='1 category_ids for 3 classes'):
        instances.to_coco(category_ids=(1,))


def test_drawings_have_the_size_of_the_image_and_show_what_was_found(
    instances, panoptic, semantic, classifier, tmp_path
):
    first = regions()[0]
    for index, result in enumerate((instances, panoptic, semantic, classifier)):
        with Image.open(result.save(tmp_path / 'new' / f'{index}.png')) as opened:
            drawn = np.asarray(opened)
        changed = (drawn != IMAGE).any(axis=2)
        assert drawn.shape == IMAGE.shape
        assert changed.mean() > 0.03
        if result is not classifier:
            assert changed[first].mean() > 0.9  # the mask is painted
    assert (IMAGE == 128).all()
    np.testing.assert_array_equal(Result(IMAGE, 'a.jpg', CLASSES, empty()).draw(), IMAGE)


def empty() -> dict[str, np.ndarray]:
    return {
        'boxes': np.zeros((0, 4), np.float32), 'scores': np.zeros(0, np.float32), 'labels': np.zeros(0, np.int64),
        'masks': np.zeros((0, *IMAGE.shape[:2]), bool),
    }  # fmt: skip


def test_labels_stay_inside_the_image():
    """An object at the upper right corner has its whole label."""
    boxes = np.array([[130, 0, 160, 20]], np.float32)
    values = {'boxes': boxes, 'scores': np.ones(1, np.float32), 'labels': np.zeros(1, np.int64)}
    changed = (Result(IMAGE, 'a.jpg', ('a long name',), values).draw() != IMAGE).any(axis=2)
    assert changed[:20, 40:130].sum() > 300


def test_mistakes_in_saving(instances, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'\.pth' is not a suffix of an image file"):
        instances.save(tmp_path / 'a.pth')
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(ImportError, match='need supervision: pip install supervision'):
        instances.save(tmp_path / 'a.png')
    assert not (tmp_path / 'a.png').exists()
