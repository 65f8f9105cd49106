"""Detectors for mmdet. Without mmdet, nothing is defined here."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from .dino import DINO
    from .mask_dino import MaskDINO

    __all__ = ['DINO', 'MaskDINO']
