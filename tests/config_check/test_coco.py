from __future__ import annotations

import json

import pytest

from mmitpn.config_check import check_coco_json
from mmitpn.datasets import SHAPES_CLASSES


def spoil(tiny_coco, change) -> tuple:
    path, images, content = tiny_coco
    change(content)
    path.write_text(json.dumps(content))
    return path, images


def test_counts_of_a_good_file(tiny_coco):
    path, images, _ = tiny_coco
    summary = check_coco_json(path, ('cat', 'dog'), images)
    assert (summary.images, summary.annotations, summary.without_objects, summary.crowd) == (2, 2, 1, 0)
    assert summary.per_category == {'cat': 1, 'dog': 1}
    assert summary.sizes == (1, 1, 0)
    assert summary.images_found == 2
    assert summary.warnings == ()


def test_generated_files_are_good(shapes_root):
    annotations = shapes_root / 'coco/annotations'
    summary = check_coco_json(annotations / 'instances_train2017.json', SHAPES_CLASSES, shapes_root / 'coco/train2017')
    assert summary.images == 24
    panoptic = check_coco_json(annotations / 'panoptic_train2017.json', sample_images=None)
    assert panoptic.annotations > summary.annotations


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['images'].clear(), r'has no images'),
        (lambda c: c['annotations'].clear(), r'has no annotations'),
        (lambda c: c.pop('categories'), r"needs the lists .*'categories', and has 'images', 'annotations'"),
        (lambda c: c['images'].append('c.jpg'), r"every entry of 'images' must be an object"),
        (lambda c: c['images'][1].update(id=1), r'image ids are used twice: 1; give'),
        (lambda c: c['images'][1].pop('width'), r"1 of 2 images lack a field, first entry 1 without 'width'"),
        (lambda c: c['images'][1].update(file_name=7), r'file_name must be a string, but is 7'),
        (lambda c: c['images'][1].update(height=0), r'width and height must be above 0.*images 2'),
        (lambda c: c['categories'][1].update(id=10), r'two categories share the id 10'),
        (lambda c: c['categories'][1].update(name='cat'), r"two categories share the name 'cat'"),
        (lambda c: c['categories'][1].update(name=3), r'category names must be strings, but are 3; write'),
        (lambda c: c['annotations'][1].update(id=1), r'annotation ids are used twice: 1; give'),
        (
            lambda c: c['annotations'][1].update(image_id=9),
            r'image_id of no image in the file: image_id 9 in annotations 2',
        ),
        (lambda c: c['annotations'][1].update(category_id=5), r'category_id of no category in the file: category_id 5'),
        (
            lambda c: c['annotations'][1].pop('category_id'),
            r"annotations lack a field, first entry 1 without 'category_id'",
        ),
        (lambda c: c['annotations'][1].update(bbox=[1, 1, 0, 5]), r'1 of 2 boxes have no area .* 2: \[1, 1, 0, 5\]'),
        (lambda c: c['annotations'][1].update(bbox=[9, 9, -4, 5]), r'1 of 2 boxes have no area .* 2: \[9, 9, -4, 5\]'),
        (lambda c: c['annotations'][1].update(bbox=[30, 20, 60, 40]), r'1 of 2 boxes reach outside.*not two corners'),
        (lambda c: c['annotations'][1].update(bbox=[1, 2, 3]), r'a bbox is \[x, y, width, height\].*annotations 2'),
        (lambda c: c['annotations'][1].update(bbox=[1, 2, 3, 'x']), r'in numbers; it is not in annotations 2'),
        (lambda c: c['annotations'][1].pop('bbox'), r'1 annotations have no bbox: 2; add it'),
    ],
)
def test_bad_content_is_named(tiny_coco, change, message):
    path, images = spoil(tiny_coco, change)
    with pytest.raises(ValueError, match=message) as caught:
        check_coco_json(path, None, images)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'is empty'),
        ('{"images": [', 'not valid JSON.*may be cut off'),
        ('[]', 'not in COCO format.*has a list'),
        ('version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'),
    ],
)
def test_not_a_coco_file(tmp_path, text, message):
    path = tmp_path / 'x.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        check_coco_json(path)


def test_all_problems_are_named_at_once(tiny_coco):
    def change(content):
        content['annotations'][0]['image_id'] = 77
        content['annotations'][1]['category_id'] = 88

    path, images = spoil(tiny_coco, change)
    with pytest.raises(ValueError, match=r'2 problems\n\(1\) .*77.*\n\(2\) .*88'):
        check_coco_json(path, None, images)


def test_missing_files(tiny_coco):
    path, images, _ = tiny_coco
    with pytest.raises(FileNotFoundError, match=r"x\.json not found .*holds 'instances_train2017\.json'\); correct"):
        check_coco_json(path.with_name('x.json'))
    with pytest.raises(FileNotFoundError, match=r'image folder .*nowhere.*data_prefix'):
        check_coco_json(path, None, images.with_name('nowhere'))
    (images / 'b.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .*'b\.jpg'"):
        check_coco_json(path, None, images)
    assert check_coco_json(path, None, images, sample_images=1).images_found == 1


def test_a_few_bad_boxes_in_many_are_a_warning(tiny_coco):
    path, images = spoil(tiny_coco, lambda c: c['annotations'][1].update(bbox=[1, 1, 0, 5]))
    summary = check_coco_json(path, None, images, max_bad_boxes=0.5)
    assert '1 of 2 boxes have no area' in summary.warnings[0]


def test_categories_without_annotation_are_a_warning(tiny_coco):
    path, images = spoil(tiny_coco, lambda c: c['annotations'].pop())
    assert check_coco_json(path, None, images).warnings == ("categories without any annotation: 'dog'",)


def test_a_file_without_annotations_can_be_tested_on(tiny_coco):
    path, images = spoil(tiny_coco, lambda c: c.pop('annotations'))
    assert check_coco_json(path, ('cat', 'dog'), images, need_annotations=False).annotations == 0


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (
            ('cat',),
            r"categories that the config lacks: 'dog'.*metainfo=dict\(classes=\('cat', 'dog'\)\) and num_classes=2",
        ),
        (('cat', 'dog', 'cow'), r"the config has classes that the file lacks: 'cow'; set"),
        (('cat', 'Dog'), r"lacks: 'dog' \(did you mean 'Dog'\?\)"),
        (('dog', 'cat'), r"another order than the file.*use classes=\('cat', 'dog'\)"),
        ('cat', r"got the string 'cat'; write \('cat',\)"),
    ],
)
def test_classes_that_do_not_fit(tiny_coco, classes, message):
    path, images, _ = tiny_coco
    with pytest.raises(ValueError, match=message):
        check_coco_json(path, classes, images)


def test_some_classes_can_be_left_out_on_purpose(tiny_coco):
    path, images, _ = tiny_coco
    assert check_coco_json(path, ('dog',), images, allow_class_subset=True).annotations == 2
    with pytest.raises(ValueError, match='the file lacks'):
        check_coco_json(path, ('cow',), images, allow_class_subset=True)


def test_the_photographs_are_good(photos):
    for split in ('train', 'val'):
        summary = check_coco_json(
            photos / f'annotations/instances_{split}2017.json', None, photos / f'{split}2017', sample_images=None
        )
        assert summary.images == summary.images_found
