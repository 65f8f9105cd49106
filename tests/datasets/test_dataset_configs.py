"""The dataset parts of the configs, built and read with mmdet, and the transforms in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import METRICS, DefaultScope
from mmengine.runner import Runner

from mmitpn.config_check import check_config
from mmitpn.datasets import SHAPES_CLASSES, SHAPES_PALETTE

pytest.importorskip('mmdet', reason='mmdet is not installed')
pytest.importorskip('mmcv', reason='mmcv is not installed')

from mmitpn.datasets.transforms import RandomTranspose
from mmitpn.registry import TRANSFORMS

CONFIGS = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'


def load(name: str, root: Path) -> Config:
    """A dataset part of a config on other data, read in this process."""
    cfg = Config.fromfile(CONFIGS / name)
    cfg.default_scope = 'mmdet'
    for split in ('train', 'val'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(root)
    cfg.val_evaluator.ann_file = str(root / 'annotations/instances_val2017.json')
    return cfg


@pytest.fixture(autouse=True)
def _in_mmdet() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


@pytest.fixture
def shapes(shapes_root) -> Config:
    return load('shapes_detection.py', shapes_root / 'coco')


def test_shapes_config_passes_the_checks(shapes):
    assert [summary.images for summary in check_config(shapes)] == [24, 9]
    metainfo = shapes.train_dataloader.dataset.metainfo
    assert tuple(metainfo.classes) == SHAPES_CLASSES
    assert tuple(map(tuple, metainfo.palette)) == SHAPES_PALETTE


def test_shapes_training_batches(shapes):
    loader = Runner.build_dataloader(shapes.train_dataloader, seed=0)
    assert len(loader.dataset) == 24
    batches = list(loader)
    images = [image for batch in batches for image in batch['inputs']]
    samples = [sample for batch in batches for sample in batch['data_samples']]
    assert len(images) == 24
    assert {tuple(image.shape) for image in images} == {(3, 128, 128)}
    counts = [len(sample.gt_instances) for sample in samples]
    assert min(counts) == 0
    assert max(counts) > 1
    for sample in samples:
        boxes = sample.gt_instances.bboxes.tensor
        assert torch.all((boxes >= 0) & (boxes <= 128))
        assert torch.all(boxes[:, 2:] > boxes[:, :2])


def test_shapes_evaluation_scores_the_ground_truth_perfect(shapes):
    loader = Runner.build_dataloader(shapes.val_dataloader, seed=0)
    metric = METRICS.build(shapes.val_evaluator)
    metric.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        samples = []
        for sample in batch['data_samples']:
            gt = sample.gt_instances
            assert sample.img_shape == (128, 128)
            # Loaded after the resizing, so they are in pixels of the file, as the metric wants them.
            boxes = gt.bboxes.tensor
            pred = {'bboxes': boxes, 'labels': gt.labels, 'scores': torch.ones(len(boxes))}
            samples.append({'img_id': sample.img_id, 'ori_shape': sample.ori_shape, 'pred_instances': pred})
        metric.process({}, samples)
    assert metric.evaluate(size=9)['coco/bbox_mAP'] == pytest.approx(1, abs=1e-3)


def test_coco_config_on_photographs(photos):
    cfg = load('coco_detection.py', photos)
    assert len(check_config(cfg)) == 2
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    assert len(batch['inputs']) == 2
    for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
        short, long = sorted(image.shape[1:])
        assert short <= 800
        assert long <= 1333
        assert sample.img_shape == tuple(image.shape[1:])
    batch = next(iter(Runner.build_dataloader(cfg.val_dataloader, seed=0)))
    short, long = sorted(batch['inputs'][0].shape[1:])
    assert short == 800 or long == 1333


def test_coco_config_is_the_recipe():
    cfg = Config.fromfile(CONFIGS / 'coco_detection.py')
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.train_dataloader.dataset.filter_cfg.filter_empty_gt is False
    resized, cropped = cfg.train_dataloader.dataset.pipeline[3].transforms
    scales = [tuple(scale) for scale in resized[0].scales]
    assert scales[0] == (480, 1333)
    assert scales[-1] == (800, 1333)
    assert [step.type for step in cropped] == ['RandomChoiceResize', 'RandomCrop', 'RandomChoiceResize']


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
