from __future__ import annotations

import pytest
from mmengine.config import Config

from mmitpn.engine import resolve_config, setup_environment

MMDET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco'
MMSEG = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512'


@pytest.mark.parametrize('name', [MMDET, f'{MMDET}.py', MMSEG])
def test_a_host_config_is_found_by_name(name):
    assert Config.fromfile(resolve_config(name)).model.type in ('RetinaNet', 'EncoderDecoder')


@pytest.mark.parametrize('base', [f'{MMDET}.py', f'{MMSEG}.py'])
def test_a_host_config_is_inherited_from(tmp_path, base):
    setup_environment()
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = '{base}'\nmodel = dict(backbone=dict(depth=18))\n")
    cfg = Config.fromfile(path)
    assert cfg.model.backbone.depth == 18
    assert 'type' in cfg.model


def test_a_path_stays_what_it_is(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('a = 1\n')
    assert resolve_config(str(path)) == path


@pytest.mark.parametrize(
    ('name', 'kind', 'says'),
    [
        ('nowhere.py', FileNotFoundError, 'no config file'),
        ('mmdet::retinanet/retinanet_r50_fpn_1x', FileNotFoundError, 'near: retinanet/retinanet_r50_fpn_1x_coco.py'),
        ('mmnothing::a/b.py', ValueError, 'not installed'),
    ],
)
def test_a_config_that_is_not_there(name, kind, says):
    with pytest.raises(kind, match=says):
        resolve_config(name)
