"""detectron2's pickles of arrays."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from mmitpn.checkpoint import read_checkpoint
from mmitpn.checkpoint.plain_pickle import read_plain_pickle

ARRAYS = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.array([True, False]), 'c': np.array(7)}


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_arrays_become_tensors(tmp_path, protocol):
    path = tmp_path / 'model.pkl'
    path.write_bytes(pickle.dumps({'model': ARRAYS, '__author__': 'x', 'n': np.float64(2.5)}, protocol=protocol))
    found = read_checkpoint(path)
    assert found['__author__'] == 'x'
    assert found['n'] == 2.5
    for name, array in ARRAYS.items():
        assert torch.equal(found['model'][name], torch.as_tensor(array))
        found['model'][name].zero_()  # not read-only


class Bad:
    def __reduce__(self):
        return os.system, ('touch /nonexistent/file',)


@pytest.mark.parametrize('protocol', [2, 5])
def test_nothing_in_it_is_executed(tmp_path, protocol, monkeypatch):
    called = []
    monkeypatch.setattr(os, 'system', called.append)
    path = tmp_path / 'model.pkl'
    path.write_bytes(pickle.dumps({'model': ARRAYS, 'x': Bad()}, protocol=protocol))
    with pytest.raises(ValueError, match=r'model\.pkl'):
        read_checkpoint(path)
    assert not called


def test_files_of_torch_are_not_taken(tmp_path):
    path = tmp_path / 'old.pth'
    torch.save({'w': torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert read_plain_pickle(path) is None
    assert torch.equal(read_checkpoint(path)['w'], torch.ones(2))
    path.write_bytes(pickle.dumps([1, 2]))
    assert read_plain_pickle(path) is None
