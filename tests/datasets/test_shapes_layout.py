from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmitpn.datasets import SHAPES_CLASSES, SHAPES_STUFF

SPLITS = {'train': 24, 'val': 9}
ADE_NAMES = {'train': 'training', 'val': 'validation'}


@pytest.fixture(scope='module', params=SPLITS)
def split(request) -> str:
    return request.param


@pytest.fixture(scope='module')
def coco(shapes_root, split) -> COCO:
    return COCO(str(shapes_root / f'coco/annotations/instances_{split}2017.json'))


@pytest.fixture(scope='module')
def panoptic(shapes_root, split) -> dict:
    return json.loads((shapes_root / f'coco/annotations/panoptic_{split}2017.json').read_text())


def read_panoptic(shapes_root, split, file_name) -> np.ndarray:
    pixels = np.asarray(Image.open(shapes_root / f'coco/annotations/panoptic_{split}2017' / file_name)).astype(np.int64)
    return pixels @ np.array([1, 256, 65536])


def read_ade(shapes_root, split, index) -> np.ndarray:
    folder = shapes_root / 'ade/ADEChallengeData2016/annotations' / ADE_NAMES[split]
    return np.asarray(Image.open(folder / f'ADE_{split}_{index + 1:08d}.png'))


def test_pycocotools_reads_it(coco, shapes_root, split):
    assert len(coco.imgs) == SPLITS[split]
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(SHAPES_CLASSES)
    for info in coco.imgs.values():
        with Image.open(shapes_root / f'coco/{split}2017' / info['file_name']) as image:
            assert image.size == (info['width'], info['height'])
            assert image.mode == 'RGB'


def test_boxes_and_areas_are_those_of_the_masks(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        y, x = np.nonzero(mask)
        box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        assert annotation['bbox'] == box
        assert annotation['area'] == mask.sum()
        assert annotation['iscrowd'] == 0


def test_masks_do_not_overlap(coco):
    for image_id in coco.getImgIds():
        masks = [coco.annToMask(annotation) for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))]
        assert not masks or np.sum(masks, axis=0).max() == 1


def test_some_images_are_empty(coco):
    empty = [image_id for image_id in coco.getImgIds() if not coco.getAnnIds(imgIds=[image_id])]
    assert 1 <= len(empty) < len(coco.imgs) / 4


def test_panoptic_segments_are_those_of_the_image(shapes_root, split, panoptic):
    categories = panoptic['categories']
    assert [c['name'] for c in categories] == [*SHAPES_CLASSES, *SHAPES_STUFF]
    assert [c['isthing'] for c in categories] == [1] * len(SHAPES_CLASSES) + [0] * len(SHAPES_STUFF)
    assert len(panoptic['annotations']) == SPLITS[split]
    for annotation in panoptic['annotations']:
        ids = read_panoptic(shapes_root, split, annotation['file_name'])
        segments = annotation['segments_info']
        assert {segment['id'] for segment in segments} == set(np.unique(ids).tolist()) - {0}
        for segment in segments:
            y, x = np.nonzero(ids == segment['id'])
            assert segment['area'] == len(y)
            assert segment['bbox'] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        stuff = [segment['category_id'] for segment in segments if segment['category_id'] > len(SHAPES_CLASSES)]
        assert len(stuff) == len(set(stuff))
        assert sum(segment['area'] for segment in segments) + (ids == 0).sum() == ids.size


def test_panoptic_things_are_the_instances(shapes_root, split, panoptic, coco):
    for annotation in panoptic['annotations']:
        instances = coco.loadAnns(coco.getAnnIds(imgIds=[annotation['image_id']]))
        things = [s for s in annotation['segments_info'] if s['category_id'] <= len(SHAPES_CLASSES)]
        assert [(s['category_id'], s['bbox'], s['area']) for s in things] == [
            (a['category_id'], a['bbox'], a['area']) for a in instances
        ]


def test_semantic_labels_agree_with_instances_and_panoptic(shapes_root, split, coco, panoptic):
    for index, annotation in enumerate(panoptic['annotations']):
        labels = read_ade(shapes_root, split, index)
        for instance in coco.loadAnns(coco.getAnnIds(imgIds=[annotation['image_id']])):
            assert (labels[coco.annToMask(instance) == 1] == instance['category_id']).all()
        ids = read_panoptic(shapes_root, split, annotation['file_name'])
        expected = np.zeros_like(labels)
        for segment in annotation['segments_info']:
            expected[ids == segment['id']] = segment['category_id']
        np.testing.assert_array_equal(labels, expected)


def test_both_layouts_show_the_same_images(shapes_root, split):
    names = sorted((shapes_root / f'coco/{split}2017').iterdir())
    twins = sorted((shapes_root / 'ade/ADEChallengeData2016/images' / ADE_NAMES[split]).iterdir())
    assert [path.read_bytes() for path in names] == [path.read_bytes() for path in twins]


def test_all_classes_and_textures_occur(shapes_root):
    seen = {
        label for index in range(SPLITS['train']) for label in np.unique(read_ade(shapes_root, 'train', index)).tolist()
    }
    assert seen == set(range(len(SHAPES_CLASSES) + len(SHAPES_STUFF) + 1))
