"""Transformer parts of the detectors. They are built on mmdet: nothing is here where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from .deformable_attention import MultiScaleDeformableAttention
    from .dino_decoder import DinoTransformerDecoder
    from .dino_encoder import DinoTransformerEncoder

    __all__ = ['DinoTransformerDecoder', 'DinoTransformerEncoder', 'MultiScaleDeformableAttention']
