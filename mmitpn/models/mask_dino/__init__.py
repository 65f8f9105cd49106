"""What MaskDINO's heads are made of. It is built on mmdet: nothing is here where that is not installed."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from .losses import MaskDINOLosses, UnitGIoULoss
    from .pixel_decoder import MaskDINOPixelDecoder
    from .predictor import MaskDINOPredictor

    __all__ = ['MaskDINOLosses', 'MaskDINOPixelDecoder', 'MaskDINOPredictor', 'UnitGIoULoss']
