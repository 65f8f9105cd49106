"""Every method folder of a host, each config in a process of its own."""

from __future__ import annotations

import os
import time

import pytest

from mmitpn.swap import attempt, host_families
from mmitpn.swap.families import reason_of_failure


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


@pytest.mark.slow
def test_the_reason_is_told(headless, capfd):
    pytest.importorskip('mmdet')
    assert 'SwapError: model has no backbone' in attempt(headless).reason
    assert not any(capfd.readouterr())


def test_what_hangs_or_ends_its_process_stops_nothing():
    assert reason_of_failure(os._exit, 3, seconds=60) == 'the process ended with status 3'
    assert reason_of_failure(time.sleep, 60, seconds=1) == 'not done after 1 s'
    assert reason_of_failure(int, 'x', seconds=60).startswith('ValueError: invalid literal')
    assert reason_of_failure(int, '7', seconds=60) == ''


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
