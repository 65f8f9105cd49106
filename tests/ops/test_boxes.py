"""The operators on boxes against stored outputs of a compiled mmcv 2.3.6 (tests/data/ops/make_boxes.py)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from mmitpn.ops import boxes, extension

DATA = Path(__file__).parents[1] / 'data' / 'ops'


def _script():
    spec = importlib.util.spec_from_file_location('make_boxes', DATA / 'make_boxes.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()


@pytest.fixture(scope='module')
def stored():
    with np.load(DATA / 'boxes.npz') as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize('seed', range(len(SCRIPT.NUMBERS)))
@pytest.mark.parametrize('name', SCRIPT.RUNS)
def test_outputs_are_those_of_the_compiled_operator(name, seed, stored):
    actual = SCRIPT.RUNS[name](extension, seed, SCRIPT.NUMBERS[seed])
    expected = [value for key, value in stored.items() if key.startswith(f'{name}/{seed}/')]
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        if other.dtype == torch.int16:
            assert one.tolist() == other.tolist()
        else:
            finite = other[other.isfinite()]
            scale = finite.abs().max().item() if finite.numel() else 0
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale, equal_nan=True)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_overlaps_in_other_dtypes(dtype):
    first = torch.tensor([[0, 0, 10, 10], [5, 5, 15, 15]], dtype=dtype)
    second = torch.tensor([[0, 0, 10, 5], [0, 0, 10, 10], [20, 20, 30, 30]], dtype=dtype)
    ious = first.new_empty(2, 3)
    boxes.bbox_overlaps(first, second, ious, 0, False, 0)
    expected = torch.tensor([[0.5, 1, 0], [0, 25 / 175, 0]], dtype=dtype)
    torch.testing.assert_close(ious, expected)


def test_overlaps_in_parts_are_those_at_once(monkeypatch):
    first, second = SCRIPT.boxes(1, 33)[0], SCRIPT.boxes(3, 20)[0]
    whole, parts = torch.zeros(33, 20), torch.zeros(20, 33).t()  # an output that is not contiguous
    boxes.bbox_overlaps(first, second, whole, 0, False, 1)
    monkeypatch.setattr(boxes, 'PAIRS', 50)
    boxes.bbox_overlaps(first, second, parts, 0, False, 1)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(('mode', 'aligned', 'message'), [(2, False, 'mode=2'), (0, True, '2 and 3 boxes')])
def test_overlaps_of_bad_arguments(mode, aligned, message):
    with pytest.raises(ValueError, match=message):
        boxes.bbox_overlaps(torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, 3), mode, aligned, 0)


def test_overlaps_of_nothing():
    ious = torch.zeros(0, 3)
    boxes.bbox_overlaps(torch.zeros(0, 4), torch.zeros(3, 4), ious, 0, False, 0)
    assert ious.shape == (0, 3)
