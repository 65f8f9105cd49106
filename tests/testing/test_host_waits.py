"""Counting waits on a GPU, by the warnings of torch; the rest of host_waits.py is in test_simulated_device.py."""

from __future__ import annotations

import warnings

import pytest
import torch

from mmitpn.testing.host_waits import count, counted_device

MESSAGE = 'called a synchronizing CUDA operation (Triggered internally at Copy.cpp:1.)'


@pytest.fixture
def modes(monkeypatch) -> list:
    """The debug modes that are set, on a machine that seems to have a GPU."""
    found = [0]
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(torch.cuda, 'get_sync_debug_mode', lambda: found[-1])
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', found.append)
    return found


def wait_twice() -> str:
    for _ in range(2):
        warnings.warn(MESSAGE, stacklevel=1)
    return 'done'


def test_every_synchronization_is_counted(modes, monkeypatch):
    # As if this were code of the project, whose lines are named.
    monkeypatch.setitem(wait_twice.__globals__, '__name__', 'mmdet.models.head')
    others = []
    monkeypatch.setattr(warnings, 'showwarning', lambda message, *_: others.append(str(message)))
    with counted_device('cuda') as counters:
        assert counters.device == torch.device('cuda', 0)
        counts, result = count(counters, wait_twice)
        warnings.warn('of something else', stacklevel=1)
    assert others == ['of something else']
    assert result == 'done'
    assert counts.total == 2
    ((where, number),) = counts.where.items()
    assert where.startswith('synchronization @ mmdet/models/head.py:')
    assert number == 2
    assert counters.waits.total() == 0  # counting resets them
    assert modes == [0, 'warn', 0]


def test_the_mode_is_restored_after_an_error(modes):
    with pytest.raises(KeyError), counted_device('cuda'):
        raise KeyError
    assert modes == [0, 'warn', 0]


def test_the_cpu_has_no_waits():
    with counted_device('cpu') as counters:
        assert count(counters, lambda: torch.ones(2).sum().item())[0].total == 0


def test_devices_that_can_be_counted():
    with pytest.raises(ValueError, match=r"device is 'mps'; allowed: 'sim', 'cuda', 'cpu'"), counted_device('mps'):
        pass
