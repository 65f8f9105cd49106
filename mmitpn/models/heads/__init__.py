"""Heads for mmdet. `mmitpn.DINO` takes mmdet's own ``DINOHead``, which it runs in fp32."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from .mask_dino_fusion_head import MaskDINOFusionHead
    from .mask_dino_head import MaskDINOHead

    __all__ = ['MaskDINOFusionHead', 'MaskDINOHead']
