"""Fields, masks, sizes and what is left to train on: the checks against what mmdet and pycocotools do with a file."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from PIL import Image

pytest.importorskip('mmdet', reason='mmdet is not installed')

from mmdet.datasets import CocoDataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmitpn.config_check import check_coco_json, check_config


def save(tiny_coco) -> None:
    tiny_coco[0].write_text(json.dumps(tiny_coco[2]))


def loads(path, images) -> bool:
    """Whether mmdet's dataset loads a file."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            CocoDataset(
                ann_file=str(path), data_prefix={'img': str(images)}, metainfo={'classes': ('cat', 'dog')}, pipeline=[]
            )
        except (KeyError, TypeError, ValueError, AssertionError):
            return False
    return True


def evaluates(path) -> bool:
    """Whether pycocotools compares predictions with a file."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            gt = COCO(str(path))
            box = {'image_id': 1, 'category_id': 10, 'bbox': [4, 4, 20, 30], 'score': 0.9}
            COCOeval(gt, gt.loadRes([box]), 'bbox').evaluate()
        except (KeyError, TypeError, ValueError, OverflowError):
            return False
    return True


@pytest.mark.parametrize('value', ['absent', None, '600', [1]])
@pytest.mark.parametrize('field', ['area', 'iscrowd', 'bbox', 'category_id', 'image_id', 'id', 'segmentation', 'extra'])
def test_a_file_is_refused_where_the_framework_fails(tiny_coco, field, value):
    path, images, content = tiny_coco
    one = content['annotations'][0]
    if value == 'absent':
        one.pop(field, None)
    else:
        one[field] = value
    save(tiny_coco)
    for evaluation, works in ((False, loads(path, images)), (True, loads(path, images) and evaluates(path))):
        try:
            check_coco_json(path, None, images, evaluation=evaluation, max_bad_boxes=1.0)
            passed = True
        except ValueError as error:
            passed = False
            assert field in str(error)  # noqa: PT017 - it is not raised for every field
        if field in ('image_id', 'category_id') or (field, value) == ('iscrowd', '600'):
            assert not passed or value == 'absent'  # a link to nothing, or text read as "crowd", goes wrong in silence
        elif field != 'iscrowd' or value != [1]:
            assert passed == works, (evaluation, passed, works)


@pytest.mark.parametrize('mask', [[], None, {}, 'absent', [[]]])
def test_a_box_detector_trains_without_masks_and_a_mask_model_does_not(cfg, tiny_coco, mask):
    for one in tiny_coco[2]['annotations']:
        one.pop('segmentation', None)
        if mask != 'absent':
            one['segmentation'] = mask
    save(tiny_coco)
    load = {'type': 'LoadImageFromFile'}
    cfg.train_dataloader.dataset.pipeline = [load, {'type': 'LoadAnnotations', 'with_bbox': True}]
    cfg.val_dataloader.dataset.pipeline = cfg.train_dataloader.dataset.pipeline
    assert [summary.remainder.objects for summary in check_config(cfg)] == [2, 2]
    cfg.val_evaluator.metric = ['bbox', 'segm']
    if mask != [[]]:
        with pytest.raises(
            ValueError, match=r'2 of 2 annotations have no mask .*val_evaluator \(metric segm\) reads it'
        ):
            check_config(cfg)
    cfg.val_evaluator.metric = 'bbox'
    cfg.train_dataloader.dataset.pipeline = [load, {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}]
    with pytest.raises(
        ValueError, match=r'have no mask .*train_dataloader\.dataset\.pipeline reads it|no polygon|polygons'
    ):
        check_config(cfg)


NOTHING = {
    'are narrower or lower than one pixel': {'bbox': [4, 4, 0.5, 0.6]},
    'have an area of 0 or less': {'area': 0},
    'are marked as crowds': {'iscrowd': 1},
    'have ignore=1': {'ignore': 1},
}


@pytest.mark.parametrize('reason', NOTHING)
def test_nothing_left_to_train_on_is_an_error(cfg, tiny_coco, reason):
    first, second = tiny_coco[2]['annotations']
    first.update(NOTHING[reason])
    save(tiny_coco)
    summary = check_config(cfg)[0]
    assert (summary.remainder.images, summary.remainder.objects) == (2, 1)
    assert any(f'1 {reason}' in text for text in summary.warnings) == (reason != 'are marked as crowds')
    second.update(NOTHING[reason])
    save(tiny_coco)
    with pytest.raises(ValueError, match=f'mmdet leaves no object to train on: of the objects, 2 {reason}'):
        check_config(cfg)
    with pytest.raises(ValueError, match=f'no object to train on: of the objects, 2 {reason}'):
        check_coco_json(tiny_coco[0])
    assert check_config(cfg, splits=('val',))


def test_no_image_left_to_train_on_is_an_error_and_its_advice_works(cfg):
    cfg.train_dataloader.dataset.filter_cfg = {'filter_empty_gt': True, 'min_size': 50}
    with pytest.raises(
        ValueError, match=r'no image to train on: of the images, 2 have a side below 50 .*set min_size=0'
    ):
        check_config(cfg)
    cfg.train_dataloader.dataset.filter_cfg.min_size = 0
    summary = check_config(cfg)[0]
    assert (summary.images, summary.remainder.images, summary.warnings) == (2, 1, ())


def test_one_of_several_datasets_may_have_background_only(cfg, tiny_coco, tmp_path):
    one = cfg.train_dataloader.dataset
    content = {**tiny_coco[2], 'annotations': [{**tiny_coco[2]['annotations'][0], 'iscrowd': 1}]}
    (tmp_path / 'background.json').write_text(json.dumps(content))
    other = {**one, 'ann_file': 'background.json'}
    cfg.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [one, other]}
    assert [summary.remainder.objects for summary in check_config(cfg)] == [2, 0, 2]
    cfg.train_dataloader.dataset = {'type': 'ConcatDataset', 'datasets': [other, other]}
    with pytest.raises(ValueError, match=r'train_dataloader: mmdet leaves no object .* 2 are marked as crowds'):
        check_config(cfg)


def turn(images, orientation=6) -> None:
    for name in ('a.jpg', 'b.jpg'):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new('RGB', (64, 48)).save(images / name, exif=exif.tobytes())


def test_sizes_before_turning_are_named_and_the_advice_passes(cfg, tiny_coco):
    turn(tiny_coco[1])
    pattern = (
        r'2 images have an EXIF orientation tag.*64x48 in the file, 48x64 as loaded.*1 fit only the images as stored'
    )
    with pytest.raises(ValueError, match=pattern):
        check_config(cfg)
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.pipeline = [
            {'type': 'LoadImageFromFile', 'color_type': 'color_ignore_orientation'}
        ]
    assert check_config(cfg)
    assert check_config(cfg, open_images=True)


def test_sizes_after_turning_pass_and_are_named_where_the_loader_does_not_turn(cfg, tiny_coco):
    turn(tiny_coco[1])
    for image in tiny_coco[2]['images']:
        image.update(width=48, height=64)
    tiny_coco[2]['annotations'][1].update(bbox=[0, 0, 48, 64])
    save(tiny_coco)
    assert check_config(cfg, open_images=True)[0].warnings == ()
    for kind in ('unchanged', 'color_ignore_orientation'):
        cfg.train_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile', 'color_type': kind}]
        with pytest.raises(ValueError, match=r"which .* does not apply.*set color_type='color'"):
            check_config(cfg)


def test_a_turn_that_keeps_the_size_is_a_warning(tiny_coco):
    turn(tiny_coco[1], orientation=3)
    assert (
        '2 images have an EXIF orientation tag that leaves'
        in check_coco_json(*tiny_coco[:1], None, tiny_coco[1]).warnings[0]
    )


def test_boxes_a_few_pixels_outside_are_a_warning(cfg, tiny_coco):
    first, second = tiny_coco[2]['annotations']
    second.update(bbox=[0, 0, 67, 48], segmentation=[[0, 0, 67, 0, 67, 48]])
    save(tiny_coco)
    summary = check_config(cfg)[0]
    assert any('1 of 2 boxes reach outside their image by at most 10%' in text for text in summary.warnings)
    assert summary.remainder.objects == 2
    first['bbox'] = [-3, 0, 20, 30]
    save(tiny_coco)
    with pytest.raises(ValueError, match=r'more than 0\.5 of the annotations.*max_bad_boxes=1\.0 in the config'):
        check_config(cfg)
    cfg.max_bad_boxes = 1.0
    assert check_config(cfg)
    cfg.max_bad_boxes = 2
    with pytest.raises(ValueError, match=r'max_bad_boxes is 2; it must be a fraction'):
        check_config(cfg)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['categories'][0].pop('isthing'), "without 'isthing'; add 1 for things"),
        (lambda c: c['annotations'][0].pop('image_id'), "without 'image_id'"),
        (lambda c: c['annotations'][0]['segments_info'][0].pop('area'), "no number in the field 'area'"),
        (lambda c: c['annotations'][0]['segments_info'][0].pop('bbox'), 'have no bbox'),
        (lambda c: c['annotations'][0]['segments_info'][0].pop('id'), "without 'id'"),
        (lambda c: c['annotations'][0]['segments_info'][0].pop('category_id'), "without 'category_id'"),
    ],
)
def test_fields_of_panoptic_files(shapes_root, tmp_path, change, message):
    content = json.loads((shapes_root / 'coco/annotations/panoptic_val2017.json').read_text())
    path = tmp_path / 'panoptic.json'
    path.write_text(json.dumps(content))
    left = check_coco_json(path, evaluation=True).remainder
    assert left.images == 9
    assert left.objects == sum(
        not segment.get('iscrowd') for one in content['annotations'] for segment in one['segments_info']
    )
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        check_coco_json(path)


def test_a_panoptic_file_without_iscrowd_trains(shapes_root, tmp_path):
    content = json.loads((shapes_root / 'coco/annotations/panoptic_val2017.json').read_text())
    for one in content['annotations']:
        for segment in one['segments_info']:
            del segment['iscrowd']
    path = tmp_path / 'panoptic.json'
    path.write_text(json.dumps(content))
    assert any("'iscrowd'" in text for text in check_coco_json(path, evaluation=False).warnings)
    with pytest.raises(ValueError, match="no number in the field 'iscrowd'"):
        check_coco_json(path, evaluation=True)
