from __future__ import annotations

import logging

import pytest
from mmengine.config import Config

from mmitpn.engine import pretrained
from mmitpn.engine.pretrained import use_pretrained, warn_if_random


def config(**model) -> Config:
    parts = {'backbone': {'type': 'mmitpn.FastITPN'}, 'neck': {'type': 'mmitpn.ITPNPyramid', 'in_channels': [1, 2, 4]}}
    return Config({'model': {**parts, **model}})


def test_one_file_for_backbone_and_neck():
    cfg = config()
    use_pretrained(cfg, 'weights.pt')
    expected = {'type': 'Pretrained', 'checkpoint': 'weights.pt'}
    assert cfg.model.backbone.init_cfg == expected
    assert cfg.model.neck.init_cfg == expected


def test_a_neck_of_the_host_is_left_alone():
    cfg = config(neck={'type': 'FPN'})
    use_pretrained(cfg, 'weights.pt')
    assert 'init_cfg' not in cfg.model.neck


def test_nothing_to_load_into():
    with pytest.raises(ValueError, match=r"weights.pt.*\['ResNet', None\]"):
        use_pretrained(config(backbone={'type': 'ResNet'}, neck=None), 'weights.pt')


@pytest.mark.parametrize('loaded', [False, True])
def test_random_weights_are_told(loaded, monkeypatch):
    said = []
    monkeypatch.setattr(pretrained, 'print_log', lambda text, *_, level: said.append((text, level)))
    cfg = config()
    if loaded:
        use_pretrained(cfg, 'weights.pt')
    warn_if_random(cfg)
    assert (
        said == []
        if loaded
        else ('backbone and neck start from random' in said[0][0] and said[0][1] == logging.WARNING)
    )
