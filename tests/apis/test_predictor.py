"""Predictions of Predictor: equal to those of a test run, whole across tiles, and complete models only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import cv2
import mmengine
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

import mmitpn
from mmitpn.apis.data_sources import DataSource
from mmitpn.apis.results import read_sample, read_values
from mmitpn.apis.tiling import predict_tiled
from mmitpn.engine.compile import compile_model

ROOT = Path(__file__).parents[2]
FIELDS = {
    'boxes': ('boxes', 'scores', 'labels'),
    'instances': ('boxes', 'scores', 'labels', 'masks'),
    'panoptic': ('panoptic',),
    'semantic': ('semantic',),
    'upernet': ('semantic',),
    'classifier': ('probabilities',),
}


@pytest.fixture(scope='session')
def detector(small_model) -> mmitpn.Predictor:
    case = small_model('boxes')
    return mmitpn.Predictor(case.config, case.weights, device='cpu')


def test_predictions(case, predictor) -> list[dict]:
    """What the model of a case gives for the dataset of its config, read and resized by the dataset's own pipeline."""
    with DefaultScope.overwrite_default_scope(case.scope), torch.no_grad():
        dataset = DATASETS.build(case.cfg.test_dataloader.dataset)
        samples = [case.model.test_step(pseudo_collate([dataset[index]]))[0] for index in range(len(dataset))]
    things = getattr(getattr(case.model, 'panoptic_fusion_head', None), 'num_things_classes', None)
    raw = [read_sample(one, predictor.outputs) for one in samples]
    return [read_values(one, predictor.names, things=things, score=0)[0] for one in raw]


test_predictions.__test__ = False


@pytest.mark.parametrize('kind', FIELDS)
def test_equals_a_test_run(kind, small_model, images):
    case = small_model(kind)
    predictor = mmitpn.Predictor(case.config, case.weights, device='cpu')
    expected = test_predictions(case, predictor)
    for batch in (1, 3):  # images of different sizes
        results = list(predictor.predict([str(path) for path in images], score=0, batch=batch))
        assert [result.name for result in results] == [path.name for path in images]
        for result, values in zip(results, expected, strict=True):
            assert set(values) == set(FIELDS[kind])
            for name in FIELDS[kind]:
                if batch == 1 or name in ('labels', 'panoptic', 'semantic'):
                    np.testing.assert_array_equal(getattr(result, name), values[name])
                else:
                    np.testing.assert_allclose(getattr(result, name), values[name], atol=1e-3)
            assert len(result) > 0
            with Image.open(result.path) as opened:
                assert result.image.shape[:2] == opened.size[::-1]


def test_arrays_and_pil_images_are_as_files(detector, tmp_path, images):
    path = tmp_path / 'a.png'
    pixels = np.asarray(Image.open(images[0]))
    Image.fromarray(pixels).save(path)
    results = list(detector.predict([path, pixels, Image.open(path)], score=0))
    for result in results[1:]:
        np.testing.assert_array_equal(result.boxes, results[0].boxes)
    np.testing.assert_array_equal(results[0].image, pixels)
    assert [result.name for result in results] == ['a.png', 'image1', 'a.png']


def test_a_photograph_is_turned_as_in_a_test_run(detector, tmp_path, images):
    """A JPEG whose EXIF tag says to turn it by 90 degrees: as file and as PIL image."""
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / 'turned.jpg'
    Image.open(images[0]).save(path, exif=exif, quality=100, subsampling=0)
    of_file, of_pil = detector.predict([path, Image.open(path)], score=0)
    assert of_file.image.shape[:2] == Image.open(images[0]).size
    assert np.abs(of_file.image.astype(int) - of_pil.image).mean() < 2  # two JPEG decoders
    np.testing.assert_allclose(of_file.boxes, of_pil.boxes, atol=1.0)


@pytest.mark.slow
def test_equals_the_test_command(small_model, images, tmp_path):
    case, out = small_model('boxes'), tmp_path / 'out.pkl'
    command = [ROOT / 'tools/test.py', case.config, case.weights, '--work-dir', tmp_path, '--out', out]
    root = case.cfg.test_dataloader.dataset.data_root
    options = [f'test_evaluator.ann_file={root}annotations/instances_val2017.json', 'test_dataloader.num_workers=0']
    options += ['test_dataloader.persistent_workers=False', 'test_dataloader.batch_size=1']
    done = subprocess.run(
        [sys.executable, *map(str, command), '--cfg-options', *options],
        capture_output=True, text=True, check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {Path(one['img_path']).name: one['pred_instances'] for one in mmengine.load(out)}
    predictor = mmitpn.Predictor(case.config, case.weights, device='cpu')
    for result in predictor.predict(images[0].parent, score=0):
        np.testing.assert_array_equal(result.boxes, expected[result.name]['bboxes'].numpy())
        np.testing.assert_array_equal(result.scores, expected[result.name]['scores'].numpy())
        np.testing.assert_array_equal(result.labels, expected[result.name]['labels'].numpy())


def test_the_score_leaves_objects_out(detector, images):
    everything = next(detector.predict(images[0], score=0))
    limit = float(np.sort(everything.scores)[-5])
    assert len(everything) > 50
    assert len(next(detector.predict(images[0], score=limit))) == 5
    nothing = next(detector.predict(images[0], score=1))
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.summary == 'no objects'


@pytest.mark.slow
def test_lower_precision_is_close(small_model, images):
    case = small_model('upernet')
    exact, fast = (
        next(mmitpn.Predictor(case.config, case.weights, device='cpu', dtype=dtype).predict(images[0]))
        for dtype in ('float32', 'bfloat16')
    )
    assert (exact.semantic == fast.semantic).mean() > 0.9


@pytest.mark.slow
def test_a_compiled_model_predicts_the_same(small_model, images, monkeypatch):
    # The backend that needs no compiler: what is compiled is tested in tests/engine/test_compile.py.
    monkeypatch.setattr('mmitpn.apis.framework_model.compile_model', partial(compile_model, backend='eager'))
    case = small_model('upernet')
    plain, compiled = (
        next(mmitpn.Predictor(case.config, case.weights, device='cpu', compile=mode).predict(images[0]))
        for mode in (None, 'default')
    )
    assert (plain.semantic == compiled.semantic).all()


@pytest.mark.slow
def test_a_detector_of_mmdet_with_masks_in_its_box_head(tmp_path):
    """A config of mmdet by its name, with another backbone: RTMDet-Ins."""
    from mmengine.registry import MODELS

    from mmitpn.engine.cli import load_config

    name = 'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco'
    cfg = load_config(name)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, tmp_path / 'rtmdet.pth')
    predictor = mmitpn.Predictor(name, tmp_path / 'rtmdet.pth', device='cpu')
    assert predictor.outputs == ('boxes', 'masks')
    assert predictor.names[:2] == ('person', 'bicycle')
    result = next(predictor.predict(np.full((60, 90, 3), 100, np.uint8), score=0))
    assert result.masks.shape == (len(result), 60, 90)


def test_odd_images(detector):
    tiny, gray, rgba = detector.predict(
        [np.zeros((1, 1, 3), np.uint8), np.zeros((40, 30), np.uint8), np.zeros((40, 30, 4), np.uint8)], score=0
    )
    assert tiny.image.shape == (1, 1, 3)
    assert (tiny.boxes <= 1).all()
    assert tiny.draw().shape == (1, 1, 3)
    np.testing.assert_array_equal(gray.boxes, rgba.boxes)


def test_a_broken_image_in_a_folder_is_named(detector, images, tmp_path):
    (tmp_path / 'b.jpg').write_bytes(b'no image')
    for name in 'ac':
        (tmp_path / f'{name}.jpg').write_bytes(images[0].read_bytes())
    with pytest.warns(UserWarning, match=r'b\.jpg is left out: .*b\.jpg cannot be decoded as an image'):
        results = list(detector.predict(tmp_path, batch=2))
    assert [result.name for result in results] == ['a.jpg', 'c.jpg']
    broken = []
    list(detector.predict(tmp_path, on_broken=lambda name, _: broken.append(name)))
    assert broken == [str(tmp_path / 'b.jpg')]
    with pytest.raises(ValueError, match=r'b\.jpg cannot be decoded'):
        next(detector.predict(tmp_path / 'b.jpg'))


def test_a_long_video_takes_bounded_memory(detector, tmp_path, monkeypatch):
    path = tmp_path / 'long.mp4'
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 25, (64, 48))
    for index in range(300):
        video.write(np.full((48, 64, 3), index % 256, np.uint8))
    video.release()
    monkeypatch.setattr(
        detector.model, 'test_step', lambda data: [sample_without_objects() for _ in data['inputs']], raising=True
    )
    alive, most, count = weakref.WeakSet(), 0, 0
    frames = weakref.WeakValueDictionary()
    data = DataSource(path)
    assert data.total == 300
    for result in detector.predict(data, batch=4):
        alive.add(result)
        frames[count] = result.image
        assert (result.frame, result.video.fps, result.name) == (count, 25, 'long.mp4')
        count += 1
        most = max(most, len(alive), len(frames))
    assert count == 300
    assert most <= 2  # those that the loop holds; the others of the batch were not yielded yet


def sample_without_objects():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    empty = InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.long))
    return DetDataSample(pred_instances=empty)


# --- tiles -----------------------------------------------------------------------------------------------------------

SHAPES = {  # x1, y1, x2, y2 in an image of 500x300 that is cut into tiles of 200 with an overlap of 40
    'inside one tile': (20, 20, 60, 70),
    'inside an overlap': (165, 100, 195, 130),
    'across an edge': (140, 20, 230, 60),
    'larger than a tile': (60, 140, 460, 250),
    'a second one beside it': (240, 20, 290, 60),
    'barely in the next tile': (80, 80, 163, 120),
    'at the border of the image': (470, 270, 500, 300),
}


class Finder:
    """Finds the rectangles of a color in images, as a model that sees an object in each part of one."""

    def __init__(self, *, masks: bool) -> None:
        self.masks, self.batches = masks, []

    def __call__(self, tiles: list[np.ndarray]) -> list[mmitpn.Result]:
        self.batches.append(len(tiles))
        return [self.find(tile) for tile in tiles]

    def find(self, image: np.ndarray) -> mmitpn.Result:
        found = []
        for value in np.unique(image[..., 0]):
            if value:
                mask = image[..., 0] == value
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                found.append((box, 0.5 + mask.sum() / 1e6, value % 2, mask))
        values = {
            'boxes': np.array([one[0] for one in found], np.float32).reshape(-1, 4),
            'scores': np.array([one[1] for one in found], np.float32),
            'labels': np.array([one[2] for one in found], np.int64),
        }
        if self.masks:
            values['masks'] = np.array([one[3] for one in found], bool).reshape(-1, *image.shape[:2])
        return mmitpn.Result(image, 'tile', ('even', 'odd'), values)


@pytest.mark.parametrize('masks', [False, True], ids=['boxes', 'masks'])
@pytest.mark.parametrize('batch', [1, 4])
def test_objects_across_tiles_are_found_once_and_whole(masks, batch):
    image = np.zeros((300, 500, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(SHAPES.values(), 1):
        image[y1:y2, x1:x2] = number
    finder = Finder(masks=masks)
    values = predict_tiled(image, finder, tile=200, overlap=0.2, batch=batch)
    assert sorted(map(tuple, values['boxes'].astype(int).tolist())) == sorted(SHAPES.values())
    assert max(finder.batches) == batch
    if masks:
        for box, mask in zip(values['boxes'].astype(int), values['masks'], strict=True):
            x1, y1, x2, y2 = box
            assert mask.sum() == (x2 - x1) * (y2 - y1) == mask[y1:y2, x1:x2].sum()


def test_a_piece_of_another_class_is_left_out():
    """What a tile sees of the end of an object may look like another class."""
    image = np.zeros((100, 180, 3), np.uint8)
    image[20:60, 30:90] = 1
    finder = Finder(masks=False)
    tiles = []

    def find(parts):
        results = finder(parts)
        tiles.append(len(results))
        if len(tiles) == 2:
            results[0].values['labels'][:] = 0
        return results

    values = predict_tiled(image, find, tile=100, overlap=0.2, batch=1)
    assert values['boxes'].tolist() == [[30, 20, 90, 60]]
    assert values['labels'].tolist() == [1]


def test_nothing_in_any_tile(small_model):
    case = small_model('instances')
    predictor = mmitpn.Predictor(case.config, case.weights, device='cpu')
    result = next(predictor.predict(np.zeros((64, 100, 3), np.uint8), tile=64, score=1.0))
    assert len(result) == 0
    assert result.masks.shape == (0, 64, 100)


def test_an_image_within_a_tile_is_not_cut(detector, images):
    whole, tiled = (next(detector.predict(images[0], score=0, tile=tile)) for tile in (None, 150))
    np.testing.assert_array_equal(whole.boxes, tiled.boxes)


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_a_file_without_the_head_is_refused(small_model, tmp_path):
    case, path = small_model('boxes'), tmp_path / 'backbone.pth'
    state = {key: value for key, value in case.model.state_dict().items() if not key.startswith('bbox_head')}
    torch.save({'state_dict': state}, path)
    missing = len(case.model.state_dict()) - len(state)
    text = rf'has {len(state)} of the {len(state) + missing} weights of the model; .*, in bbox_head \({missing}\)'
    with pytest.raises(ValueError, match=text):
        mmitpn.Predictor(case.config, path)


def test_a_missing_buffer_is_refused(tmp_path):
    """Batch normalization without its running mean would predict something, but wrong."""
    pytest.importorskip('mmseg')
    config = tmp_path / 'fcn.py'
    config.write_text(
        "default_scope = 'mmseg'\n"
        "model = dict(type='EncoderDecoder', pretrained='gone.pth',\n"
        "    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),\n"
        "    backbone=dict(type='ResNet', depth=18, base_channels=8, norm_cfg=dict(type='BN'),\n"
        "        init_cfg=dict(type='Pretrained', checkpoint='gone.pth')),\n"
        "    decode_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=2,\n"
        "        norm_cfg=dict(type='BN')), test_cfg=dict(mode='whole'))\n"
        "test_dataloader = dict(dataset=dict(type='BaseSegDataset', metainfo=dict(classes=('a', 'b')),\n"
        "    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))\n"
    )
    from mmengine.config import Config
    from mmengine.registry import MODELS

    cfg = Config.fromfile(config)
    cfg.model.pretrained = cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(cfg.model).state_dict()
    torch.save({'state_dict': state}, tmp_path / 'all.pth')
    predictor = mmitpn.Predictor(config, tmp_path / 'all.pth', device='cpu')  # reads no gone.pth
    assert next(predictor.predict(np.zeros((50, 60, 3), np.uint8))).semantic.shape == (50, 60)
    with pytest.raises(ValueError, match=r"mmseg slides over the image by model\.test_cfg=dict\(mode='slide'"):
        predictor.predict(np.zeros((50, 60, 3), np.uint8), tile=32)
    del state['backbone.bn1.running_mean']
    torch.save({'state_dict': state}, tmp_path / 'some.pth')
    with pytest.raises(ValueError, match=r'the others are missing or have another shape, in backbone \(1\)'):
        mmitpn.Predictor(config, tmp_path / 'some.pth')


def test_a_checkpoint_of_other_classes_is_refused(small_model, tmp_path):
    case = small_model('boxes')
    state = case.model.state_dict()
    names = [key for key in state if 'cls_branches' in key]
    for name in names:
        state[name] = state[name][:3].clone()
    torch.save({'state_dict': state}, tmp_path / 'three.pth')
    with pytest.raises(
        ValueError, match=rf'{names[0]} is \(3, \d+\) in the file, \(5, \d+\) in the model.*trained with'
    ):
        mmitpn.Predictor(case.config, tmp_path / 'three.pth')
    meta = {'dataset_meta': {'classes': ('a', 'b', 'c')}}
    torch.save({'state_dict': case.model.state_dict(), 'meta': meta}, tmp_path / 'names.pth')
    with pytest.raises(ValueError, match='names 3 classes, but the head of the model has 5'):
        mmitpn.Predictor(case.config, tmp_path / 'names.pth')


def test_class_names_come_from_the_file_first(small_model, tmp_path):
    case, names = small_model('boxes'), ('a', 'b', 'c', 'd', 'e')
    meta = {'dataset_meta': {'classes': names}}
    torch.save({'state_dict': case.model.state_dict(), 'meta': meta}, tmp_path / 'names.pth')
    assert mmitpn.Predictor(case.config, tmp_path / 'names.pth').names == names
    assert mmitpn.Predictor(case.config, case.weights).names == ('circle', 'square', 'triangle', 'star', 'ring')


def test_an_authors_classifier(small_model, authors_weights, tmp_path):
    """A fine-tuned file of the iTPN authors as it is; without its head it is refused."""
    case = small_model('classifier')
    torch.save({'model': authors_weights(classes=3, norm='fc_norm')}, tmp_path / 'finetuned.pth')
    predictor = mmitpn.Predictor(case.config, tmp_path / 'finetuned.pth', device='cpu')
    result = next(predictor.predict(np.zeros((80, 64, 3), np.uint8)))
    assert result.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert result.names[0] == predictor.names[result.probabilities.argmax()]
    torch.save({'model': authors_weights()}, tmp_path / 'backbone.pth')
    with pytest.raises(ValueError, match='set final_norm=True on the backbone'):
        mmitpn.Predictor(case.config, tmp_path / 'backbone.pth')


def test_mistakes_in_the_model(small_model, authors_weights, tmp_path):
    case = small_model('boxes')
    torch.save({'model': authors_weights()}, tmp_path / 'authors.pth')
    with pytest.raises(
        ValueError, match=r'authors\.pth: RetinaNet is no FastITPN.*give a checkpoint of the whole model'
    ):
        mmitpn.Predictor('mmdet::retinanet/retinanet_r18_fpn_1x_coco', tmp_path / 'authors.pth')
    with pytest.raises(FileNotFoundError, match=r"no config file 'gone\.py'"):
        mmitpn.Predictor('gone.py', case.weights)
    with pytest.raises(FileNotFoundError, match='dino-4scale_fast-itpn-b_8xb2-12e_coco'):
        mmitpn.Predictor('dino-4scale_fast-itpn-b_8xb2-12e_coc', case.weights)
    with pytest.raises(FileNotFoundError, match="did you mean 'nano-shapes'"):
        mmitpn.Predictor('nano-shape')
    with pytest.raises(ValueError, match='needs weights: give a checkpoint of the whole model'):
        mmitpn.Predictor(case.config)
    with pytest.raises(FileNotFoundError, match=r'gone\.pth'):
        mmitpn.Predictor(case.config, tmp_path / 'gone.pth')
    with pytest.raises(ValueError, match='pre-trained weights of a backbone, without a head: train this config'):
        mmitpn.Predictor(case.config, 'fast-itpn-b')
    with pytest.raises(ValueError, match="device 'gpu' cannot be used"):
        mmitpn.Predictor(case.config, case.weights, device='gpu')
    with pytest.raises(ValueError, match="dtype is 'half'; allowed: float32, bfloat16, float16"):
        mmitpn.Predictor(case.config, case.weights, dtype='half')
    with pytest.raises(ValueError, match='names pre-trained weights of a backbone, not a complete model'):
        mmitpn.Predictor('fast-itpn-b')


def test_mistakes_in_the_call(detector, images):
    with pytest.raises(ValueError, match='score is 30; give a number from 0 to 1'):
        detector.predict(images[0], score=30)
    with pytest.raises(ValueError, match='batch is 0'):
        detector.predict(images[0], batch=0)
    with pytest.raises(ValueError, match='tile is 8'):
        detector.predict(images[0], tile=8)
    with pytest.raises(ValueError, match='overlap is 1; give a fraction'):
        detector.predict(images[0], tile=64, overlap=1)
    with pytest.raises(FileNotFoundError, match='no file or folder'):
        detector.predict('gone.jpg')  # at once, not when the first result is asked for


def test_the_shipped_detector(tmp_path):
    """The first line of the README: no file, no download."""
    predictor = mmitpn.Predictor('nano-shapes', device='cpu')
    image = np.full((128, 128, 3), 90, np.uint8)
    cv2.circle(image, (64, 64), 30, (200, 40, 40), -1)
    result = next(predictor.predict(image))
    assert result.names[0] == 'circle'
    np.testing.assert_allclose(result.boxes[0], [34, 34, 94, 94], atol=4)
    json.dumps(result.to_coco())
