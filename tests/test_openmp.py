"""Threads sleep at their barriers after a bounded time, unless the user chose otherwise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmitpn.openmp import SPIN_COUNT, bound_spinning

ROOT = Path(__file__).parents[1]


def test_the_bound_is_set_once(monkeypatch):
    for name in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'):
        monkeypatch.delenv(name, raising=False)
    assert bound_spinning() is True
    shown = subprocess.run(
        [sys.executable, '-c', 'import os; print(os.environ["GOMP_SPINCOUNT"])'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(shown.stdout) == SPIN_COUNT  # processes started from this one have it too
    assert bound_spinning() is False


@pytest.mark.parametrize(('name', 'value'), [('GOMP_SPINCOUNT', '7'), ('OMP_WAIT_POLICY', 'ACTIVE')])
def test_what_the_user_chose_stands(monkeypatch, name, value):
    import os

    for one in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'):
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, value)
    assert bound_spinning() is False
    assert os.environ[name] == value
    assert len({'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'} & set(os.environ)) == 1


@pytest.mark.parametrize('tool', ['train', 'test', 'quickstart'])
def test_tools_set_it_before_torch(tool):
    code = f"""
import builtins, os, runpy, sys
os.environ.pop('GOMP_SPINCOUNT', None), os.environ.pop('OMP_WAIT_POLICY', None)
real = builtins.__import__
def watch(name, *rest):
    if name.partition('.')[0] == 'torch':
        print(os.environ.get('GOMP_SPINCOUNT'), flush=True)
        os._exit(0)
    return real(name, *rest)
builtins.__import__ = watch
runpy.run_path({str(ROOT / 'tools' / f'{tool}.py')!r})
"""
    shown = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout == f'{SPIN_COUNT}\n'
