"""Integral pre-training. Data and teachers are mmpretrain's: nothing is here where that is not installed."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmpretrain') is not None:
    from .itpn_pretrain import ITPNPretrain
    from .teachers import (
        ClipTeacher,
        EfficientNetLiteTeacher,
        FeatureTeacher,
        HogTeacher,
        MovingAverageTeacher,
        PixelTeacher,
        RandomTeacher,
    )

    __all__ = [
        'ClipTeacher',
        'EfficientNetLiteTeacher',
        'FeatureTeacher',
        'HogTeacher',
        'ITPNPretrain',
        'MovingAverageTeacher',
        'PixelTeacher',
        'RandomTeacher',
    ]
