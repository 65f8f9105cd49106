"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

REFERENCE = Path(__file__).parent / 'data' / 'reference'


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def fill() -> ModuleType:
    """Made weights and inputs by name, and samples of outputs: what the reference outputs were made with."""
    spec = importlib.util.spec_from_file_location('reference_fill', REFERENCE / 'fill.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def reference_case(fill) -> Callable[[str], SimpleNamespace]:
    """A case of the authors' reference outputs by name: ``weights`` in their layout, ``image``, the raw ``case``."""
    cases = json.loads((REFERENCE / 'reference.json').read_text())

    def get(name: str) -> SimpleNamespace:
        case = cases[name]
        return SimpleNamespace(
            case=case, weights=fill.fill(case['shapes']), image=fill.image(*case['size'], case['batch'])
        )

    return get


@pytest.fixture(scope='session')
def assert_matches_reference(fill) -> Callable[[torch.Tensor, dict], None]:
    """Compare a tensor with a reference sample: same shape, every value within 1e-4 of the largest."""

    def check(actual: torch.Tensor, expected: dict) -> None:
        sample = fill.sample(actual)
        assert sample['shape'] == expected['shape']
        scale = max(abs(value) for value in expected['values'])
        torch.testing.assert_close(
            torch.tensor(sample['values']), torch.tensor(expected['values']), rtol=0, atol=1e-4 * scale
        )

    return check


@pytest.fixture(scope='session')
def photos() -> Path:
    """The folder of real photographs beside the project; skips the test where it is absent."""
    folder = Path(__file__).parents[2] / 'shared' / 'data' / 'coco'
    if not folder.is_dir():
        pytest.skip('the photographs in COCO layout (shared/data/coco beside the project) are not here')
    return folder
