"""The helpers that several packages share, and the threads of OpenMP."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmitpn.openmp import SPIN_COUNT, bound_spinning
from mmitpn.utils import check_int, evenly_spaced, id2rgb, is_int, mask_to_box, rgb2id

ROOT = Path(__file__).parents[1]


def test_integers():
    assert is_int(0)
    assert not is_int(True)
    assert not is_int(1.0)
    check_int('rounds', 1)
    check_int('rounds', 0, least=0)
    for wrong in (0, True, 2.0, '2', None):
        with pytest.raises(ValueError, match=rf'rounds is {wrong!r}; give an integer of at least 1'):
            check_int('rounds', wrong)


def test_evenly_spaced_items():
    assert evenly_spaced('abcdefgh', 4) == ['a', 'c', 'e', 'g']
    assert evenly_spaced(range(10), 3) == [0, 3, 6]
    assert evenly_spaced([1, 2], 5) == evenly_spaced([1, 2], None) == [1, 2]
    assert evenly_spaced([1, 2], 0) == evenly_spaced([], 3) == []


def test_ids_of_colored_pixels():
    pixels = np.array([[[1, 2, 3], [255, 255, 255]]], dtype=np.uint8)
    assert rgb2id(pixels).tolist() == [[1 + 512 + 3 * 65536, 2**24 - 1]]
    np.testing.assert_array_equal(id2rgb(rgb2id(pixels)), pixels)
    assert id2rgb(rgb2id(pixels)).dtype == np.uint8


def test_box_of_a_mask():
    mask = np.zeros((6, 8), dtype=bool)
    mask[2, 3] = mask[4, 6] = True
    assert mask_to_box(mask) == [3, 2, 4, 3]
    assert mask_to_box(np.ones((2, 5), dtype=bool)) == [0, 0, 5, 2]


@pytest.mark.parametrize('value', [0, -1, 1.0, True, '2', None])
def test_anything_but_an_integer_of_at_least_one_raises(value):
    with pytest.raises(ValueError, match=rf'^num_queries is {value!r}; give an integer of at least 1$'):
        check_int('num_queries', value)


def test_the_least_value_is_allowed():
    check_int('num_stuff_classes', 0, least=0)
    with pytest.raises(ValueError, match='is 2; give an integer of at least 3'):
        check_int('num_levels', 2, least=3)


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
