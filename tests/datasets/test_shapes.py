"""The generated dataset of shapes: what is drawn, and the folders and files that mmdet and mmseg read."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmitpn.datasets import SHAPES_CLASSES, SHAPES_STUFF, generate_images, generate_shapes
from mmitpn.datasets.shapes.annotations import encode_mask
from mmitpn.datasets.shapes.drawing import MIN_VISIBLE_PIXELS, Outline, coverage, draw_image
from mmitpn.datasets.shapes.generate import STAMP, STARTED, image_of, read_stamp
from mmitpn.visualization.predictions import decode

SPLITS = {'train': 24, 'val': 9}
ADE_NAMES = {'train': 'training', 'val': 'validation'}


def contents(root) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_a_seed_gives_the_same_files_and_another_seed_other_ones(tmp_path):
    first, again, other = (
        generate_shapes(tmp_path / name, 3, 1, seed=seed, size=(64, 80))
        for name, seed in (('a', 5), ('b', 5), ('c', 6))
    )
    assert contents(first) == contents(again)
    images = [contents(root)['coco/train2017/000000000001.jpg'] for root in (first, other)]
    assert images[0] != images[1]


def test_images_are_the_same_on_any_machine():
    drawn = image_of(0, 'val', 3, (128, 192))
    assert drawn.image.shape == (185, 171, 3)
    assert drawn.objects == (4, 4, 1)
    assert hashlib.sha256(drawn.image.tobytes() + drawn.instances.tobytes()).hexdigest()[:16] == '1895e18912b68fa3'


def test_an_image_does_not_depend_on_the_number_of_images(shapes_root, tmp_path):
    fewer = generate_shapes(tmp_path / 'fewer', 2, 1, seed=3, size=(96, 128))
    for name in (
        'coco/train2017/000000000002.jpg',
        'ade/ADEChallengeData2016/annotations/training/ADE_train_00000002.png',
    ):
        assert (fewer / name).read_bytes() == (shapes_root / name).read_bytes()


def test_splits_share_no_image():
    images = [image_of(0, split, 0, (64, 64)).image for split in ('train', 'val', 'unlabelled')]
    assert not any(np.array_equal(images[i], images[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_every_object_is_seen_and_sizes_vary():
    areas, sides = [], set()
    for index in range(25):
        drawn = image_of(1, 'train', index, (128, 192))
        seen = np.bincount(drawn.instances.ravel(), minlength=len(drawn.objects) + 1)[1:]
        assert len(seen) == len(drawn.objects)
        assert (seen >= MIN_VISIBLE_PIXELS).all()
        areas += seen.tolist()
        sides |= set(drawn.image.shape[:2])
    assert min(areas) < 16**2
    assert max(areas) > 48**2
    assert 128 <= min(sides) < max(sides) <= 192


def test_objects_cover_one_another():
    covered = 0
    for index in range(12):
        drawn = image_of(2, 'train', index, (128, 128))
        for number in range(1, len(drawn.objects)):
            earlier, later = drawn.instances == number, drawn.instances == number + 1
            beside = np.zeros_like(earlier)
            beside[1:] |= earlier[:-1]
            covered += bool((beside & later).any())
    assert covered >= 3


def test_empty_images_have_no_object():
    assert draw_image(np.random.default_rng(0), 64, 64, empty=True).objects == ()


@pytest.mark.parametrize('kind', SHAPES_CLASSES)
def test_coverage_is_the_area_of_the_shape(kind):
    outline = Outline(kind=kind, x=40.3, y=40.6, radius=30, angle=0.4, squeeze=1.0, waist=0.5)
    alpha, (rows, columns) = coverage(outline, 80, 80)
    assert alpha.shape == (rows.stop - rows.start, columns.stop - columns.start)
    unit = {
        'circle': np.pi,
        'square': 2,
        'triangle': 3 * np.sqrt(3) / 4,
        'star': 10 * 0.5 * 0.5 * np.sin(np.pi / 5),
        'ring': np.pi * (1 - 0.5**2),
    }[kind]
    assert alpha.sum() == pytest.approx(unit * 30**2, rel=0.01)


def test_masks_survive_as_run_lengths():
    rng = np.random.default_rng(0)
    ring = np.zeros((20, 30), dtype=bool)
    ring[2:18, 3:25] = True
    ring[6:12, 8:15] = False
    corner = np.zeros((8, 8), dtype=bool)
    corner[1:4, 1:4] = corner[4:7, 4:7] = True
    for mask in (ring, corner, rng.random((16, 21)) < 0.5, np.ones((5, 7), dtype=bool)):
        written = json.loads(json.dumps(encode_mask(mask)))
        np.testing.assert_array_equal(decode(written, *mask.shape), mask)


def test_a_whole_set_is_kept_and_a_half_written_one_is_made_again(tmp_path):
    root = generate_shapes(tmp_path / 'set', 2, 1, size=(64, 64))
    whole, stamp = contents(root), (root / STAMP).stat().st_mtime_ns
    generate_shapes(root, 2, 1, size=(64, 64))
    assert (root / STAMP).stat().st_mtime_ns == stamp

    (root / STAMP).unlink()
    (root / STARTED).touch()
    (root / 'coco/train2017/000000000001.jpg').write_bytes(b'cut off')
    generate_shapes(root, 2, 1, size=(64, 64))
    assert contents(root) == whole

    (root / 'coco/train2017/000000000002.jpg').unlink()
    generate_shapes(root, 2, 1, size=(64, 64))
    assert contents(root) == whole


def test_another_set_is_replaced_only_on_demand(tmp_path):
    root = generate_shapes(tmp_path / 'set', 2, 1, size=(64, 64))
    with pytest.raises(ValueError, match=r"made with \{'seed': 0\}, but \{'seed': 1\} is wanted.*overwrite=True"):
        generate_shapes(root, 2, 1, seed=1, size=(64, 64))
    generate_shapes(root, 3, 1, seed=1, size=(64, 64), overwrite=True)
    assert len(list((root / 'coco/train2017').iterdir())) == 3
    assert read_stamp(root)['parameters']['seed'] == 1


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco' / 'mine.jpg').touch()
    with pytest.raises(ValueError, match='not a generated dataset'):
        generate_shapes(tmp_path, 2, 1, overwrite=True)
    assert (tmp_path / 'coco' / 'mine.jpg').exists()
    with pytest.raises(ValueError, match='is a file'):
        generate_shapes(tmp_path / 'coco' / 'mine.jpg', 2, 1)


def test_unlabelled_images(tmp_path):
    folder = generate_images(tmp_path / 'set', 3, size=(64, 64))
    assert sorted(path.name for path in folder.iterdir()) == [f'00000000000{i}.jpg' for i in (1, 2, 3)]
    assert generate_images(tmp_path / 'set', 3, size=(64, 64)) == folder
    with pytest.raises(ValueError, match='holds a generated dataset made with'):
        generate_shapes(tmp_path / 'set', 2, 1, size=(64, 64))


@pytest.mark.parametrize(
    ('settings', 'error', 'message'),
    [
        ({'num_train': 0}, ValueError, 'num_train must be from 1'),
        ({'num_val': 1.5}, TypeError, 'num_val must be an integer'),
        ({'seed': -1}, ValueError, 'seed must be 0 or more'),
        ({'seed': '0'}, TypeError, 'seed must be an integer'),
        ({'size': (16, 64)}, ValueError, '32 <= shortest'),
        ({'size': (96, 64)}, ValueError, 'shortest <= longest'),
        ({'size': (64.0, 64)}, TypeError, 'two integers'),
    ],
)
def test_bad_parameters(tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        generate_shapes(tmp_path / 'set', **settings)
    assert not (tmp_path / 'set').exists()


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
