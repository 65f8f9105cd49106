"""What mmseg's metrics read of an evaluated image is looked for before anything runs."""

from __future__ import annotations

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmitpn.config_check import check_config

pytest.importorskip('mmseg')


@pytest.fixture
def cfg(tmp_path) -> Config:
    for name in ('images', 'maps'):
        (tmp_path / name).mkdir()
    for index in range(2):
        Image.new('RGB', (8, 6)).save(tmp_path / 'images' / f'{index}.jpg')
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 2).save(tmp_path / 'maps' / f'{index}.png')
    dataset = {
        'type': 'BaseSegDataset',
        'data_root': str(tmp_path),
        'data_prefix': {'img_path': 'images', 'seg_map_path': 'maps'},
        'metainfo': {'classes': ('a', 'b')},
        'pipeline': [
            {'type': 'LoadImageFromFile'},
            {'type': 'Resize', 'scale': (8, 6)},
            {'type': 'LoadAnnotations'},
            {'type': 'PackSegInputs'},
        ],
    }
    cfg = {'default_scope': 'mmseg', 'model': {'type': 'EncoderDecoder'}}
    for split in ('val', 'test'):
        cfg |= {f'{split}_dataloader': {'dataset': dataset}, f'{split}_evaluator': {'type': 'IoUMetric'}}
    return Config(cfg)


@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_pipeline_without_label_maps(cfg, split):
    assert check_config(cfg, splits=[split]) == []
    del cfg[f'{split}_dataloader'].dataset.pipeline[2]
    with pytest.raises(ValueError, match=rf'{split}_dataloader.dataset.pipeline loads no label maps, but {split}_eval'):
        check_config(cfg, splits=[split])
    cfg[f'{split}_evaluator'].update(format_only=True, output_dir='out')  # the advice
    assert check_config(cfg, splits=[split]) == []


@pytest.mark.parametrize('split', ['val', 'test'])
def test_label_maps_that_are_not_there(cfg, tmp_path, split):
    (tmp_path / 'maps' / '1.png').unlink()
    with pytest.raises(ValueError, match=rf'{split}_dataloader.dataset: 1 missing label maps: .*1\.png'):
        check_config(cfg, splits=[split])
    cfg[f'{split}_dataloader'].dataset.data_prefix.seg_map_path = None
    del cfg[f'{split}_dataloader'].dataset.data_prefix['seg_map_path']
    with pytest.raises(ValueError, match='2 images without seg_map_path'):
        check_config(cfg, splits=[split])


def test_a_test_split_without_ground_truth_needs_none(cfg, tmp_path):
    for path in (tmp_path / 'maps').iterdir():
        path.unlink()
    del cfg.test_dataloader.dataset.pipeline[2]
    cfg.test_evaluator.update(format_only=True, output_dir='out')
    assert check_config(cfg, splits=['test']) == []


def test_augmented_evaluation_loads_label_maps_inside(cfg, tmp_path):
    inner = [[{'type': 'Resize', 'scale': (8, 6)}], [{'type': 'LoadAnnotations'}], [{'type': 'PackSegInputs'}]]
    cfg.test_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'TestTimeAug', 'transforms': inner}]
    assert check_config(cfg, splits=['test']) == []
    (tmp_path / 'maps' / '0.png').unlink()
    with pytest.raises(ValueError, match='1 missing label maps'):
        check_config(cfg, splits=['test'])


def test_names_of_the_classes(cfg):
    del cfg.val_dataloader.dataset['metainfo']
    with pytest.raises(ValueError, match=r'val_dataloader.dataset names no classes, which val_evaluator reads'):
        check_config(cfg, splits=['val'])


@pytest.mark.parametrize(
    ('evaluator', 'keys', 'message'),
    [
        ({'type': 'IoUMetric'}, ('img_path', 'img_shape'), "lacks 'ori_shape', which EncoderDecoder reads"),
        (
            {'type': 'IoUMetric', 'output_dir': 'x'},
            ('ori_shape', 'img_shape'),
            "lacks 'img_path', which IoUMetric reads",
        ),
        (
            {'type': 'CityscapesMetric', 'output_dir': 'x'},
            ('ori_shape', 'img_shape', 'img_path'),
            "lacks 'seg_map_path', which CityscapesMetric reads",
        ),
    ],
)
def test_fields_that_are_not_packed(cfg, evaluator, keys, message):
    cfg.val_evaluator = evaluator
    assert check_config(cfg, splits=['val']) == []
    cfg.val_dataloader.dataset.pipeline[3].meta_keys = keys
    with pytest.raises(ValueError, match=rf'pipeline\[3\].meta_keys {message}'):
        check_config(cfg, splits=['val'])
