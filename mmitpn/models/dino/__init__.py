"""Transformer of DINO and MaskDINO. It is built on mmdet: without mmdet, nothing is defined here."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from .deformable_attention import MultiScaleDeformableAttention, autocast_disabled
    from .levels import FeatureLevels, count_padded_queries, make_padding_mask
    from .transformer import DinoTransformerDecoder, DinoTransformerEncoder

    __all__ = [
        'DinoTransformerDecoder',
        'DinoTransformerEncoder',
        'FeatureLevels',
        'MultiScaleDeformableAttention',
        'autocast_disabled',
        'count_padded_queries',
        'make_padding_mask',
    ]
