"""Every method folder of a framework, each config in a process of its own, and the tables of the results."""

from __future__ import annotations

import os
import sys
import time

import pytest
import swap_survey
from swap_survey import TrialResult, method_folders, reason_of_failure, try_config


@pytest.fixture
def headless(tmp_path):
    path = tmp_path / 'headless.py'
    path.write_text("default_scope = 'mmdet'\nmodel = dict(type='X', encoder=dict())\n")
    return str(path)


def test_folders_and_the_order_of_configs():
    pytest.importorskip('mmdet')
    found = method_folders('mmdet')
    assert '_base_' not in found
    assert len(found) > 80
    assert found['faster_rcnn'][0].startswith('mmdet::faster_rcnn/faster-rcnn_r50')
    with pytest.raises(ValueError, match=r"'mmnone'.* not installed"):
        method_folders('mmnone')


@pytest.mark.slow
def test_the_reason_is_reported(headless, capfd):
    pytest.importorskip('mmdet')
    assert 'SwapError: model has no backbone' in try_config(headless).reason
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
        pytest.param('htc/htc_r50_fpn_1x_coco.py', marks=pytest.mark.thorough),  # semantic ground truth
        pytest.param('ddod/ddod_r50_fpn_1x_coco.py', marks=pytest.mark.thorough),  # 3x3 positions at the coarsest level
    ],
)
def test_heads_of_other_kinds_work(config):
    pytest.importorskip('mmdet')
    assert try_config(f'mmdet::{config}').reason == ''


@pytest.fixture
def run(monkeypatch):
    """Run the command line with given reasons of failure by folder; returns what is written."""
    monkeypatch.setattr(swap_survey, 'method_folders', lambda _: {'atss': [], 'solo': [], 'yolo': []})

    def run(out, reasons, *arguments):
        def results(host, *, folders, **_):
            for folder in folders:
                failed = [TrialResult(f'{host}::{folder}/a.py', reasons[folder])] if reasons[folder] else []
                yield [*failed, TrialResult(f'{host}::{folder}/b.py', reasons[folder] and 'another')]

        monkeypatch.setattr(swap_survey, 'try_folders', results)
        assert swap_survey.main(['--host', 'mmdet', '--out', str(out), *arguments]) == 0
        return out.read_text()

    return run


def test_a_second_run_of_some_folders_keeps_the_other_rows(run, tmp_path):
    out = tmp_path / 'new' / 'table.md'
    first = run(out, {'atss': '', 'solo': 'KeyError: masks', 'yolo': f'a | <b> {sys.prefix}/x'})
    assert '## mmdet: 1 of 3 method folders' in first
    assert '| atss | b | yes |  |' in first
    assert '| solo | a | no | KeyError: masks |' in first  # the reason of the first config tried
    assert '| yolo | a | no | a / (b) .../x |' in first
    second = run(out, {'solo': ''}, '--only', 'solo')
    assert '## mmdet: 2 of 3 method folders' in second
    assert second.count('`python projects/swap_survey/swap_survey.py --host mmdet --out') == 2  # both commands
    assert [line.split(' | ')[0] for line in second.splitlines() if line.startswith('| ')] == [
        '| folder',
        '| atss',
        '| solo',
        '| yolo',
    ]


def test_a_run_of_all_folders_starts_a_new_table(run, tmp_path):
    out = tmp_path / 'table.md'
    reasons = {'atss': '', 'solo': '', 'yolo': ''}
    run(out, reasons)
    assert run(out, reasons).count('`python ') == 1
