"""The parts of MaskDINO's heads. They are built on mmdet: without mmdet, nothing is defined here."""

from __future__ import annotations

from importlib.util import find_spec

__all__: list[str] = []

if find_spec('mmdet') is not None:
    from mmitpn.models.mask_dino_postprocess import LayerOutputs

    from .core import MaskDINOCore
    from .criterion import MaskDINOCriterion, UnitGIoULoss
    from .pixel_decoder import MaskDINOPixelDecoder
    from .targets import MaskDINOTargets
    from .transformer_decoder import DecoderOutputs, MaskDINOTransformerDecoder

    __all__ = [
        'DecoderOutputs',
        'LayerOutputs',
        'MaskDINOCore',
        'MaskDINOCriterion',
        'MaskDINOPixelDecoder',
        'MaskDINOTargets',
        'MaskDINOTransformerDecoder',
        'UnitGIoULoss',
    ]
