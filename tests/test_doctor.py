from __future__ import annotations

import builtins
import re

import pytest

from mmitpn import doctor


@pytest.fixture
def versions(monkeypatch):
    """Lets a test say which distributions are installed."""

    def set_versions(**others: str | None) -> None:
        real = doctor.installed
        replaced = {name.replace('_', '-'): value for name, value in others.items()}
        monkeypatch.setattr(doctor, 'installed', lambda name: replaced[name] if name in replaced else real(name))

    return set_versions


def test_this_environment_is_well(capsys):
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert 'everything that mmitpn needs works' in printed
    assert re.search(r'^stack +(onedl|openmmlab) ', printed, re.MULTILINE)
    assert re.search(r'^mmcv\.ops ', printed, re.MULTILINE)


def test_everything_is_looked_at_when_one_package_is_missing(monkeypatch, capsys):
    real = doctor.importlib.import_module

    def without_mmdet(name: str, *args: str):
        if name.split('.', maxsplit=1)[0] == 'mmdet':
            raise ModuleNotFoundError("No module named 'mmdet'")
        return real(name, *args)

    monkeypatch.setattr(doctor.importlib, 'import_module', without_mmdet)
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert "problem: mmdet does not import (ModuleNotFoundError: No module named 'mmdet')" in printed
    assert 'tools/install.sh' in printed
    assert re.search(r'^mmseg ', printed, re.MULTILINE)


def test_both_stacks_at_once_are_named(versions):
    versions(mmcv='2.1.0', onedl_mmcv='2.3.6')
    problems = doctor.diagnose().problems
    assert any('onedl-mmcv and mmcv are both installed' in problem for problem in problems)


@pytest.mark.parametrize(
    ('installed', 'says'),
    [
        ({'torch': '2.14.1', 'onedl_mmcv': '2.3.6'}, 'C++20'),
        ({'mmcv': '2.2.0', 'mmdet': '3.3.0'}, 'below 2.2.0'),
        ({'numpy': '2.2.6', 'mmengine': '0.10.7'}, 'numpy==1.26.4'),
        ({'numpy': '1.26.4', 'onedl_mmsegmentation': '1.4.2'}, 'needs numpy 2'),
    ],
)
def test_combinations_that_do_not_work(versions, installed, says):
    versions(**installed)
    found = doctor.Diagnosis()
    doctor.check_known_combinations(found)
    assert any(says in problem for problem in found.problems)


def test_a_python_outside_the_range(monkeypatch):
    monkeypatch.setattr(doctor.sys, 'version_info', (3, 13, 0))
    found = doctor.Diagnosis()
    doctor.check_python(found)
    assert '3.10 to 3.12' in found.problems[0]


def test_any_error_of_an_import_is_one_line(monkeypatch):
    def broken(name: str, *_: str) -> None:
        raise builtins.RuntimeError('first line\nsecond line')

    monkeypatch.setattr(doctor.importlib, 'import_module', broken)
    assert doctor.try_import('anything') == 'RuntimeError: first line second line'
