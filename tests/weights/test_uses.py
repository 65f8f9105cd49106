"""Where weights are given by name: init_cfg, from_pretrained, --pretrained, load_from, the tools."""

from __future__ import annotations

import logging
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader

from mmitpn import FastITPN, ITPNPyramid
from mmitpn.checkpoint import read_checkpoint
from mmitpn.engine import setup_environment
from mmitpn.engine.checkpointing import read_without_tensors
from mmitpn.engine.evaluation import read_classes
from mmitpn.engine.pretrained import download_init_cfg, remove_lost_init_cfg, use_checkpoint_grid, use_pretrained
from mmitpn.weights import find_weights, zoo

NAME = 'fast-itpn-b'
NAMED = f'mmitpn://{NAME}'
SIZES = {'depths': (1, 2, 3), 'embed_dim': 64, 'num_heads': 1}


@pytest.fixture
def released(cache, pretrained, monkeypatch):
    """A small file in the authors' layout, put into the cache by hand."""
    entry = replace(find_weights(NAME), sha256=None, bytes=None)
    monkeypatch.setitem(zoo.WEIGHTS, NAME, entry)
    cache.mkdir(parents=True)
    torch.save({'model': pretrained}, cache / entry.file)
    return cache / entry.file


def config(**backbone) -> Config:
    neck = {'type': 'mmitpn.ITPNPyramid', 'in_channels': [16, 32, 64], 'out_channels': 24, 'num_outs': 4}
    return Config({'model': {'backbone': {'type': 'mmitpn.FastITPN', 'arch': SIZES, **backbone}, 'neck': neck}})


def build(part) -> torch.nn.Module:
    settings = {key: value for key, value in part.items() if key != 'type'}
    module = {'FastITPN': FastITPN, 'ITPNPyramid': ITPNPyramid}[part['type'].removeprefix('mmitpn.')](**settings)
    module.init_weights()
    return module


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize('source', [NAME, NAMED])
def test_from_pretrained_and_init_cfg(released, offline, source):
    backbone, pyramid = FastITPN.from_pretrained(released), ITPNPyramid.from_pretrained(released)
    assert same(FastITPN.from_pretrained(source), backbone)
    assert same(ITPNPyramid.from_pretrained(source), pyramid)
    init_cfg = {'type': 'Pretrained', 'checkpoint': source}
    assert same(build({**config(init_cfg=init_cfg).model.backbone}), backbone)


def test_the_option_pretrained_takes_a_name(released, offline):
    cfg = config()
    use_pretrained(cfg, NAME)
    for part, network in ((cfg.model.backbone, FastITPN), (cfg.model.neck, ITPNPyramid)):
        assert part.init_cfg.checkpoint == NAMED  # the same on every machine
        assert same(build({**part}), network.from_pretrained(released))


def test_a_file_in_the_current_folder_comes_before_a_name(released, offline, pretrained):
    changed = {name: value + 1 if value.is_floating_point() else value for name, value in pretrained.items()}
    torch.save({'model': changed}, NAME)
    cfg = config()
    use_pretrained(cfg, NAME)
    assert cfg.model.backbone.init_cfg.checkpoint == NAME
    assert torch.equal(build({**cfg.model.backbone}).pos_embed, changed['pos_embed'])
    assert torch.equal(FastITPN.from_pretrained(NAMED).pos_embed, pretrained['pos_embed'])


def test_a_download_that_fails_is_reported_before_anything_is_built(offline):
    with pytest.raises(FileNotFoundError, match=r'fast-itpn-b cannot be downloaded'):
        use_pretrained(config(), NAME)
    with pytest.raises(FileNotFoundError, match=r'--pretrained fast-itpn-bb: .*; weights by name: fast-itpn-b,'):
        use_pretrained(config(), 'fast-itpn-bb')
    with pytest.raises(FileNotFoundError, match=r'fast-itpn-b cannot be downloaded'):
        download_init_cfg(config(init_cfg={'type': 'Pretrained', 'checkpoint': NAMED}))
    download_init_cfg(config(init_cfg={'type': 'Pretrained', 'checkpoint': 'gone.pth'}))  # the module says so


def test_mmengine_loads_a_name(released, offline):
    setup_environment()
    assert 'blocks.0.mlp.fc1.weight' in CheckpointLoader.load_checkpoint(NAMED, logger=None)['model']
    assert read_without_tensors(NAMED).keys() == read_without_tensors(NAME).keys() == {'model'}
    assert read_classes(NAMED) is None
    with pytest.raises(ValueError, match='the nearest are fast-itpn-b'):
        CheckpointLoader.load_checkpoint('mmitpn://fast-itpn-bb', logger=None)


def test_the_grid_of_a_named_file(released, offline):
    cfg = config(img_size=None)
    use_checkpoint_grid(cfg, NAMED)
    assert cfg.model.backbone.img_size == 224


def test_a_run_that_resumes_downloads_nothing_for_init_cfg(cache, offline):
    cfg = config(init_cfg={'type': 'Pretrained', 'checkpoint': NAMED})
    remove_lost_init_cfg(cfg)
    assert cfg.model.backbone.init_cfg is None
    assert not cache.exists()
    cfg = config(init_cfg={'type': 'Pretrained', 'checkpoint': 'https://x.org/f.pth'})  # nobody knows
    remove_lost_init_cfg(cfg, level=logging.DEBUG)
    assert cfg.model.backbone.init_cfg is not None


@pytest.mark.parametrize(
    ('missing', 'advice'),
    [
        ('weights/fast_itpn_base_clipl_e1600.pt', r'; give mmitpn://fast-itpn-b to download it'),
        ('fast-itpn-bb', r'; weights by name: fast-itpn-b, fast-itpn-t'),
        ('epoch_12.pth', ''),
    ],
)
def test_a_missing_file_that_has_a_name(missing, advice):
    with pytest.raises(FileNotFoundError, match=rf'does not exist \(seen from .*\){advice}'):
        read_checkpoint(missing)
    with pytest.raises(FileNotFoundError, match=rf'\){advice}.*$'):
        FastITPN.from_pretrained(missing)


def test_inspect_takes_a_name(released, offline, monkeypatch, capsys):
    tool = Path(__file__).parents[2] / 'tools' / 'convert' / 'inspect_checkpoint.py'
    monkeypatch.setattr(sys, 'argv', [str(tool), NAME])
    assert runpy.run_path(str(tool))['main']() == 0
    out = capsys.readouterr().out
    assert f'{NAME} ({released.stat().st_size / 1e6:.1f} MB)' in out
    assert "init_cfg=dict(type='Pretrained', checkpoint='fast-itpn-b')" in out
