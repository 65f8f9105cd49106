"""Freed memory is kept where a process computes on the CPU, unless the user chose an allocator."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import resource
import torch
from mmitpn.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = keep_freed_memory()
def step():
    torch.empty(2**22).fill_(1.0)  # 16 MB

for _ in range(60):
    step()
before = faults()
for _ in range(5):
    step()
print(kept, faults() - before)
"""


def run(**env: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_', 'LD_PRE'))}
    done = subprocess.run(
        [sys.executable, '-c', CODE], env={**clean, **env}, capture_output=True, text=True, check=True, timeout=120
    )
    kept, count = done.stdout.split()
    return kept == 'True', int(count)


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is the C library of Linux')
def test_memory_is_used_again():
    kept, new_pages = run()
    if not kept:
        pytest.skip('the C library here is not glibc')
    assert new_pages < 1000
    own, many = run(MALLOC_TRIM_THRESHOLD_='131072')  # the user's choice stands
    assert not own
    if new_pages == many == 0:
        pytest.skip('page faults are not counted here')
    assert many > 10 * max(new_pages, 100)


@pytest.mark.parametrize('chosen', [{'GLIBC_TUNABLES': ''}, {'MALLOC_ARENA_MAX': '2'}])
def test_what_the_user_chose_stands(monkeypatch, chosen):
    from mmitpn import allocator

    for name in list(os.environ):
        if name.startswith(('MALLOC_', 'GLIBC_')):
            monkeypatch.delenv(name)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocator.ctypes, 'CDLL', lambda *_: pytest.fail('the allocator was touched'))
    assert allocator.keep_freed_memory() is False


def test_a_library_without_the_setting_is_left_alone(monkeypatch):
    from mmitpn import allocator

    for name in list(os.environ):
        if name.startswith(('MALLOC_', 'GLIBC_', 'LD_PRELOAD')):
            monkeypatch.delenv(name)
    monkeypatch.setattr(allocator.ctypes, 'CDLL', lambda *_: object())
    assert allocator.keep_freed_memory() is False
