"""Overrides on the command line: values with spaces, and validation data that test data are a copy of."""

from __future__ import annotations

import argparse

import pytest
from mmengine.config import Config
from mmengine.config import DictAction as MMEngineAction

from mmitpn.engine import cli
from mmitpn.engine.cli import DictAction, load_config, merge_options, parse_options


def parse(*options: str, action=DictAction) -> dict:
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=action)
    return parser.parse_args(['--cfg-options', *options]).cfg_options


@pytest.mark.parametrize(
    ('value', 'wanted'),
    [
        ("('traffic light','cat')", ('traffic light', 'cat')),
        ("('traffic light', 'cat')", ('traffic light', 'cat')),
        ('["stop sign", "cat"]', ['stop sign', 'cat']),
        ('(traffic light,cat)', ('traffic light', 'cat')),
        ("('traffic light')", ('traffic light',)),
        ('traffic light,cat', ['traffic light', 'cat']),
        ("('a, b','c (big)')", ('a, b', 'c (big)')),
        ('("dog\'s nose",)', ("dog's nose",)),
        ("('0','1')", ('0', '1')),
        ('/data/my set/', '/data/my set/'),
        ('[[0,0,0],[1, 2, 3]]', [[0, 0, 0], [1, 2, 3]]),
    ],
)
def test_spaces_inside_values_are_kept(value, wanted):
    assert parse(f'x={value}') == {'x': wanted}
    assert type(parse(f'x={value}')['x']) is type(wanted)


@pytest.mark.parametrize(
    'value',
    [
        '3',
        '1e-4',
        'True',
        'none',
        'None',
        '1,2,3',
        '[1,2]',
        '(1, 2)',
        '[a,(b,c)]',
        "'cat'",
        '(cat)',
        'a=b',
        '',
        '()',
        '[(1, 2, 3), [a, b], c]',
    ],
)
def test_other_values_are_those_of_mmengine(value):
    assert repr(parse(f'x={value}')) == repr(parse(f'x={value}', action=MMEngineAction))


def test_a_config_is_loaded_with_overrides(tmp_path):
    (tmp_path / 'a.py').write_text('a = dict(b=1, c=2)\n')
    cfg = load_config(tmp_path / 'a.py', parse_options(['a.b=3', 'd=x y']))
    assert (cfg.a.b, cfg.a.c, cfg.d) == (3, 2, 'x y')
    assert load_config(tmp_path / 'a.py', parse_options([])).a.b == 1


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
def logged(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(cli, 'print_log', lambda text, *_, **__: lines.append(text))
    return lines


def test_overrides_reach_test_data_that_are_a_copy(cfg, logged):
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
    (line,) = logged
    for key in ('test_dataloader.dataset.data_root', 'test_dataloader.dataset.metainfo', 'test_evaluator.0.ann_file'):
        assert key in line
    assert 'num_classes' not in line


def test_overrides_of_the_test_data_are_kept(cfg, logged):
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
    assert logged
    assert 'test_dataloader.dataset.data_root' not in logged[0]


def test_other_test_data_are_not_changed(cfg, logged):
    cfg.test_dataloader.dataset.data_root = 'test/'
    merge_options(cfg, {'val_dataloader.dataset.data_root': 'my/', 'val_dataloader.batch_size': 4})
    assert cfg.test_dataloader.dataset.data_root == 'test/'
    assert cfg.test_dataloader.batch_size == 1
    cfg.pop('test_evaluator')
    merge_options(cfg, {'val_evaluator.0.ann_file': 'my/val.json'})
    assert 'test_evaluator' not in cfg
    merge_options(cfg, None)
    assert not logged


def test_the_options_are_not_changed(cfg):
    options = {'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b',)}}
    merge_options(cfg, options)
    assert options == {'val_dataloader.dataset.metainfo': {'_delete_': True, 'classes': ('b',)}}
