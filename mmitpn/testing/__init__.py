"""For tests: builders of reference cases, and a simulated device.

The case of MaskDINO needs mmdet and the simulated device torch 2.10: they are imported at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .reference import build_pretrain_case, build_reference_case

__all__ = ['build_mask_dino_case', 'build_pretrain_case', 'build_reference_case', 'simulated_device']
LAZY = {'build_mask_dino_case': 'mask_dino', 'simulated_device': 'simulation'}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public names: {", ".join(__all__)}')
    return getattr(import_module(f'.{LAZY[name]}', __name__), name)
