"""Every method folder of a host, each config in a process of its own."""

from __future__ import annotations

import os
import time

import pytest

from mmitpn.swap import attempt, families, host_families


@pytest.fixture
def headless(tmp_path):
    path = tmp_path / 'headless.py'
    path.write_text("default_scope = 'mmdet'\nmodel = dict(type='X', encoder=dict())\n")
    return str(path)


def test_folders_and_what_is_tried_first():
    pytest.importorskip('mmdet')
    found = host_families('mmdet')
    assert '_base_' not in found
    assert len(found) > 80
    assert found['faster_rcnn'][0].startswith('mmdet::faster_rcnn/faster-rcnn_r50')
    with pytest.raises(ValueError, match="'mmnone' were asked for, which is not installed"):
        host_families('mmnone')


def test_the_reason_is_told(headless, capfd):
    pytest.importorskip('mmdet')
    assert 'SwapError: model has no backbone' in attempt(headless).reason
    assert not any(capfd.readouterr())


def test_a_config_that_hangs_or_ends_the_process_stops_nothing(headless, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.setattr(families, 'plan_swap', lambda *_, **__: os._exit(3))
    assert attempt(headless).reason == 'the process ended with status 3'
    monkeypatch.setattr(families, 'plan_swap', lambda *_, **__: time.sleep(60))
    assert attempt(headless, seconds=2).reason == 'not done after 2 s'


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [
        'detr/detr_r50_8xb2-150e_coco.py',  # one map of stride 32
        'htc/htc_r50_fpn_1x_coco.py',  # semantic truth
        'ddod/ddod_r50_fpn_1x_coco.py',  # 3x3 places at the coarsest level
    ],
)
def test_heads_of_other_kinds_work(config):
    pytest.importorskip('mmdet')
    assert attempt(f'mmdet::{config}').reason == ''
