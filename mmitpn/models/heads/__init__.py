"""Heads for mmdet, mmseg and mmpretrain. A head is defined only if the frameworks that it is built on are installed."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from .dino_head import DINOHead
    from .mask_dino_decode_head import MaskDINODecodeHead
    from .mask_dino_fusion_head import MaskDINOFusionHead
    from .mask_dino_head import MaskDINOHead

    __all__ += ['DINOHead', 'MaskDINODecodeHead', 'MaskDINOFusionHead', 'MaskDINOHead']

if find_spec('mmpretrain') is not None:
    from .mean_pool_cls_head import MeanPoolClsHead

    __all__ += ['MeanPoolClsHead']
