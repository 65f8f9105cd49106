"""Fixtures of the tests of this study, which is put on the path: a fixed seed, a small backbone, the scripts."""

from __future__ import annotations

from mmitpn.openmp import bound_spinning

bound_spinning()  # as the tools do, before anything imports torch

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmitpn.models.backbones import FastITPN

PROJECT = Path(__file__).parents[1]
SMALL = {'depths': (1, 1, 4), 'embed_dim': 48, 'num_heads': 3}

sys.path[:0] = [str(PROJECT), str(PROJECT.parent)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def network() -> Callable[..., FastITPN]:
    """Make the same small backbone with any token reduction."""

    def make(arch=SMALL, **kwargs) -> FastITPN:
        torch.manual_seed(1)
        return FastITPN(arch, weight_init='xavier', **kwargs)

    return make


@pytest.fixture(scope='session')
def load_script() -> Callable[[str], ModuleType]:
    """Import a script of this study by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f'token_study_{name}', PROJECT / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
