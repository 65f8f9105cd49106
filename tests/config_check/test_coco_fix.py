"""The repaired copy of an annotation file: it passes the checks, and perfect predictions score AP 1."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from PIL import Image

pytest.importorskip('mmdet', reason='mmdet is not installed')

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmitpn.config_check import check_coco_json
from mmitpn.config_check.coco_fix import fix_coco_json

from .test_data_tools import tool


def perfect_ap(path) -> float:
    """AP of predictions that are the ground truth."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(path))
        boxes = [
            {key: one[key] for key in ('image_id', 'category_id', 'bbox')} | {'score': 0.9}
            for one in gt.dataset['annotations']
        ]
        evaluation = COCOeval(gt, gt.loadRes(boxes), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def each(content, **fields):
    for one in content['annotations']:
        one.update(fields)


def drop(content, field):
    for one in content['annotations']:
        del one[field]


def polygon(content):
    drop(content, 'area')
    content['annotations'][0]['segmentation'] = [[4, 4, 24, 4, 24, 24]]


SPOILT = {
    'annotation ids renumbered from 1': lambda c: [one.update(id=i) for i, one in enumerate(c['annotations'])],
    'annotation ids renumbered from 1 ': lambda c: each(c, id=7),
    'annotation ids renumbered from 1  ': lambda c: [one.update(id=f'a{i}') for i, one in enumerate(c['annotations'])],
    'area computed': lambda c: drop(c, 'area'),
    'area computed ': lambda c: each(c, area=0),
    'area computed  ': polygon,
    'iscrowd=0 added': lambda c: drop(c, 'iscrowd'),
    'iscrowd=0 added ': lambda c: each(c, iscrowd=None),
    'iscrowd made a number': lambda c: each(c, iscrowd='0'),
    'boxes clipped to the image': lambda c: c['annotations'][1].update(bbox=[0, -3, 64, 51], area=64 * 51),
    'annotations removed whose box has no area in the image': lambda c: c['annotations'].append(
        {**c['annotations'][0], 'id': 3, 'bbox': [5, 5, 0, 9]}
    ),
    'empty segmentation removed': lambda c: each(c, segmentation=[]),
    'empty segmentation removed ': lambda c: each(c, segmentation=[[]]),
    'category names made strings without spaces around them': lambda c: c['categories'][0].update(name=' cat '),
    'width and height set to those of the image as loaded': lambda c: c['images'][0].update(width=0, height=0),
    'width and height set to those of the image as loaded ': lambda c: c['images'][0].update(width=48, height=64),
}


@pytest.mark.parametrize('what', SPOILT)
def test_a_repaired_file_passes_and_scores_one(tiny_coco, tmp_path, capsys, what):
    path, images, content = tiny_coco
    SPOILT[what](content)
    path.write_text(json.dumps(content))
    before = path.read_bytes()
    out = tmp_path / 'fixed.json'
    arguments = [str(path), '--images', str(images), '--fix', str(out), '--classes', 'cat', 'dog']
    assert tool('check_coco').main(arguments) == 0, capsys.readouterr()
    assert what.strip() in ' '.join(capsys.readouterr().out.split())
    assert path.read_bytes() == before
    assert perfect_ap(out) == pytest.approx(1.0)
    fixed = json.loads(out.read_text())
    assert [one['id'] for one in fixed['annotations']] == [1, 2]
    assert fixed['annotations'][1]['bbox'] == [0, 0, 64, 48]
    wanted = [200 if what == 'area computed  ' else 600, 3072]  # of the mask where there is one
    assert [one['area'] for one in fixed['annotations']] == pytest.approx(wanted, rel=0.1)


def test_id_zero_loses_a_match_and_is_named(tiny_coco):
    path, images, content = tiny_coco
    SPOILT['annotation ids renumbered from 1'](content)
    path.write_text(json.dumps(content))
    assert perfect_ap(path) < 0.6
    with pytest.raises(ValueError, match=r'has the id 0, .*AP of perfect predictions is below 1; .*--fix OUT\.json'):
        check_coco_json(path, None, images)
    summary = check_coco_json(path, None, images, evaluation=False)  # training does not read the ids
    assert 'has the id 0' in summary.warnings[0]


def test_nothing_is_overwritten(tiny_coco, tmp_path):
    path, _, _ = tiny_coco
    with pytest.raises(FileExistsError, match='is the input itself'):
        fix_coco_json(path, path)
    other = tmp_path / 'other.json'
    other.write_text('mine')
    with pytest.raises(FileExistsError, match='exists already'):
        fix_coco_json(path, other)
    assert other.read_text() == 'mine'


def test_a_good_file_is_left_as_it_is(tiny_coco, tmp_path):
    path, images, content = tiny_coco
    assert fix_coco_json(path, tmp_path / 'out.json', images) == {}
    assert json.loads((tmp_path / 'out.json').read_text()) == content


def test_what_has_two_answers_is_not_repaired(tiny_coco, tmp_path, capsys):
    path, images, content = tiny_coco
    for one in content['annotations']:  # two corners, so that clipping would make wrong boxes of them
        one['bbox'] = [30, 20, 60, 40]
    path.write_text(json.dumps(content))
    assert fix_coco_json(path, tmp_path / 'out.json', images) == {}
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (64, 48)).save(images / 'a.jpg', exif=exif.tobytes())
    content['annotations'] = [{**content['annotations'][0], 'bbox': [4, 4, 20, 30]}]  # fits 64x48 and 48x64
    path.write_text(json.dumps(content))
    assert fix_coco_json(path, tmp_path / 'out2.json', images) == {}
    content['annotations'][0]['bbox'] = [4, 34, 20, 28]  # fits the turned image only
    path.write_text(json.dumps(content))
    assert sum(fix_coco_json(path, tmp_path / 'out3.json', images).values()) == 1
    assert json.loads((tmp_path / 'out3.json').read_text())['images'][0]['width'] == 48
    assert check_coco_json(tmp_path / 'out3.json', None, images).images == 2
