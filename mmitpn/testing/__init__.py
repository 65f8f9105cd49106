"""Builders of reference cases, for tests of exactness. Those that need a framework are imported at first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .reference import build_reference_case

_HOSTED = {'build_mask_dino_case': '.mask_dino', 'build_pretrain_case': '.pretrain'}

__all__ = ['build_mask_dino_case', 'build_pretrain_case', 'build_reference_case']


def __getattr__(name: str) -> Any:
    if name not in _HOSTED:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public names: {", ".join(__all__)}')
    return getattr(import_module(_HOSTED[name], __name__), name)
