"""Builders of reference cases, for tests of exactness. The one of MaskDINO needs mmdet: it is imported at first use."""

from __future__ import annotations

from typing import Any

from .reference import build_pretrain_case, build_reference_case

__all__ = ['build_mask_dino_case', 'build_pretrain_case', 'build_reference_case']


def __getattr__(name: str) -> Any:
    if name != 'build_mask_dino_case':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public names: {", ".join(__all__)}')
    from .mask_dino import build_mask_dino_case

    return build_mask_dino_case
