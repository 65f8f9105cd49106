"""Overrides of the validation data count for test data that are a copy of it."""

from __future__ import annotations

import pytest
from mmengine.config import Config

from mmitpn.engine import cfg_options
from mmitpn.engine.cfg_options import merge_options


@pytest.fixture
def cfg() -> Config:
    loader = {'batch_size': 1, 'dataset': {'data_root': 'coco/', 'metainfo': {'classes': ('a',), 'palette': [1]}}}
    metric = [{'type': 'CocoMetric', 'ann_file': 'coco/val.json'}, {'type': 'Other'}]
    return Config(
        {
            'model': {'num_classes': 1},
            'val_dataloader': loader,
            'test_dataloader': loader,
            'val_evaluator': metric,
            'test_evaluator': metric,
        }
    )


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(cfg_options, 'print_log', lambda text, *_, **__: lines.append(text))
    return lines


def test_test_data_that_are_a_copy_follow(cfg, said):
    merge_options(
        cfg,
        {
            'model.num_classes': 2,
            'val_dataloader.dataset.data_root': 'my/',
            'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b', 'c')},
            'val_evaluator.0.ann_file': 'my/val.json',
        },
    )
    assert cfg.model.num_classes == 2
    for split in ('val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.to_dict() == {'data_root': 'my/', 'metainfo': {'classes': ('b', 'c')}}
        assert cfg[f'{split}_evaluator'][0].ann_file == 'my/val.json'
        assert cfg[f'{split}_evaluator'][1].type == 'Other'
    (line,) = said
    for key in ('test_dataloader.dataset.data_root', 'test_dataloader.dataset.metainfo', 'test_evaluator.0.ann_file'):
        assert key in line
    assert 'num_classes' not in line


def test_what_is_set_for_the_test_data_stays(cfg, said):
    merge_options(
        cfg,
        {
            'test_dataloader.dataset.data_root': 'other/',
            'test_dataloader.dataset.metainfo.classes': ('d',),
            'val_dataloader.dataset.data_root': 'my/',
            'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b',)},
        },
    )
    assert cfg.val_dataloader.dataset.data_root == 'my/'
    assert cfg.test_dataloader.dataset.data_root == 'other/'
    assert cfg.test_dataloader.dataset.metainfo.to_dict() == {'classes': ('d',)}
    assert said
    assert 'test_dataloader.dataset.data_root' not in said[0]


def test_test_data_of_their_own_stay(cfg, said):
    cfg.test_dataloader.dataset.data_root = 'test/'
    merge_options(cfg, {'val_dataloader.dataset.data_root': 'my/', 'val_dataloader.batch_size': 4})
    assert cfg.test_dataloader.dataset.data_root == 'test/'
    assert cfg.test_dataloader.batch_size == 1
    cfg.pop('test_evaluator')
    merge_options(cfg, {'val_evaluator.0.ann_file': 'my/val.json'})
    assert 'test_evaluator' not in cfg
    merge_options(cfg, None)
    assert not said


def test_the_options_are_not_changed(cfg):
    options = {'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b',)}}
    merge_options(cfg, options)
    assert options == {'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b',)}}
