"""The command line that tries every method folder of the hosts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from mmitpn.swap import Outcome


@pytest.fixture
def tool(monkeypatch):
    path = Path(__file__).parents[2] / 'tools' / 'analysis' / 'swap_families.py'
    spec = importlib.util.spec_from_file_location('tool_swap_families', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'host_families', lambda _: {'atss': [], 'solo': [], 'yolo': []})
    return module


def run(tool, monkeypatch, out, reasons, *arguments):
    def outcomes(host, *, folders, **_):
        for folder in folders:
            failed = [Outcome(f'{host}::{folder}/a.py', reasons[folder])] if reasons[folder] else []
            yield [*failed, Outcome(f'{host}::{folder}/b.py', reasons[folder] and 'another')]

    monkeypatch.setattr(tool, 'try_families', outcomes)
    assert tool.main(['--host', 'mmdet', '--out', str(out), *arguments]) == 0
    return out.read_text()


def test_a_second_run_of_some_folders_keeps_the_other_rows(tool, monkeypatch, tmp_path):
    out = tmp_path / 'new' / 'table.md'
    first = run(tool, monkeypatch, out, {'atss': '', 'solo': 'KeyError: masks', 'yolo': f'a | <b> {sys.prefix}/x'})
    assert '## mmdet: 1 of 3 method folders' in first
    assert '| atss | b | yes |  |' in first
    assert '| solo | a | no | KeyError: masks |' in first  # the reason of the first config tried
    assert '| yolo | a | no | a / (b) .../x |' in first
    second = run(tool, monkeypatch, out, {'solo': ''}, '--only', 'solo')
    assert '## mmdet: 2 of 3 method folders' in second
    assert second.count('`python tools/analysis/swap_families.py --host mmdet --out') == 2  # both commands
    assert [line.split(' | ')[0] for line in second.splitlines() if line.startswith('| ')] == [
        '| folder',
        '| atss',
        '| solo',
        '| yolo',
    ]


def test_a_whole_run_starts_a_new_table(tool, monkeypatch, tmp_path):
    out = tmp_path / 'table.md'
    reasons = {'atss': '', 'solo': '', 'yolo': ''}
    run(tool, monkeypatch, out, reasons)
    assert run(tool, monkeypatch, out, reasons).count('`python ') == 1
