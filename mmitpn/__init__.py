"""Fast-iTPN, an integrally pre-trained transformer pyramid, for the OpenMMLab detectors and segmentors.

Importing the package is light: each public name is imported when it is first used, so that a host library that is
missing (mmdet, mmseg or mmpretrain) only breaks what needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:  # for editors and for the API reference, which read the code and do not run it
    from .apis.export import export
    from .apis.predictor import Predictor
    from .apis.results import Result
    from .engine import LayerDecayOptimWrapperConstructor
    from .models.backbones import ITPN, FastITPN
    from .models.detectors import DINO, MaskDINO
    from .models.heads import DINOHead, MaskDINODecodeHead, MaskDINOFusionHead, MaskDINOHead, MeanPoolClsHead
    from .models.necks import ITPNPyramid
    from .models.selfsup import ITPNPretrain

_PUBLIC = {
    'DINO': 'mmitpn.models.detectors',
    'DINOHead': 'mmitpn.models.heads',
    'FastITPN': 'mmitpn.models.backbones',
    'ITPN': 'mmitpn.models.backbones',
    'ITPNPretrain': 'mmitpn.models.selfsup',
    'ITPNPyramid': 'mmitpn.models.necks',
    'MaskDINO': 'mmitpn.models.detectors',
    'MaskDINODecodeHead': 'mmitpn.models.heads',
    'MaskDINOFusionHead': 'mmitpn.models.heads',
    'MaskDINOHead': 'mmitpn.models.heads',
    'MeanPoolClsHead': 'mmitpn.models.heads',
    'LayerDecayOptimWrapperConstructor': 'mmitpn.engine',
    'Predictor': 'mmitpn.apis.predictor',
    'Result': 'mmitpn.apis.results',
    'export': 'mmitpn.apis.export',
}

__all__ = [
    'DINO',
    'ITPN',
    'DINOHead',
    'FastITPN',
    'ITPNPretrain',
    'ITPNPyramid',
    'LayerDecayOptimWrapperConstructor',
    'MaskDINO',
    'MaskDINODecodeHead',
    'MaskDINOFusionHead',
    'MaskDINOHead',
    'MeanPoolClsHead',
    'Predictor',
    'Result',
    '__version__',
    'export',
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}; public names: {", ".join(__all__)}')
    try:
        module = import_module(_PUBLIC[name])
    except ImportError as error:
        from .ops.install import explain_import

        advice = explain_import(error)
        if advice is None:
            raise
        raise ImportError(f'mmitpn.{name} needs mmcv: {advice}', name=error.name) from error
    if not hasattr(module, name):  # its folder leaves out what the installed hosts do not allow
        raise ImportError(f'mmitpn.{name} needs a framework that is not installed; python -m mmitpn.doctor names it')
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
