"""Integral pre-training. Data pipelines and HOG are mmpretrain's, so without mmpretrain this folder is empty."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmpretrain') is not None:
    from .feature_teachers import ClipTeacher, FeatureTeacher, MovingAverageTeacher
    from .itpn_pretrain import ITPNPretrain
    from .target_generators import HogTeacher, PixelTeacher, RandomTeacher

    __all__ = [
        'ClipTeacher',
        'FeatureTeacher',
        'HogTeacher',
        'ITPNPretrain',
        'MovingAverageTeacher',
        'PixelTeacher',
        'RandomTeacher',
    ]
