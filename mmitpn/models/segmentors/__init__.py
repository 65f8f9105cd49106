"""Decode heads for mmseg. MaskDINO's is built on mmdet too: nothing is here where that is not installed."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from .mask_dino_decode_head import MaskDINODecodeHead

    __all__ = ['MaskDINODecodeHead']
