"""Registries of mmitpn: children of mmengine's, found by the scope prefix in any config (``type='mmitpn.FastITPN'``).

mmengine imports this module by itself when it meets the prefix, and the ``locations`` when it looks a name up, so a
config needs no ``custom_imports``. The locations are folders; each imports what the installed hosts allow.
"""

from __future__ import annotations

from typing import Any

from .optional_mmengine import HAS_MMENGINE, NoRegistry

if HAS_MMENGINE:
    from mmengine import registry as root

_FOLDERS = (
    *('backbones', 'necks', 'dino', 'mask_dino', 'heads'),
    *('detectors', 'selfsup'),
)
_MODELS = [f'mmitpn.models.{folder}' for folder in _FOLDERS]
_ENGINE = ['mmitpn.engine']


def _child(name: str, parent: str, locations: list[str]) -> Any:
    if not HAS_MMENGINE:
        return NoRegistry(name)
    return root.Registry(name, parent=getattr(root, parent), scope='mmitpn', locations=locations)


MODELS = _child('model', 'MODELS', _MODELS)
TASK_UTILS = _child('task util', 'TASK_UTILS', _MODELS)
DATASETS = _child('dataset', 'DATASETS', ['mmitpn.datasets'])
TRANSFORMS = _child('transform', 'TRANSFORMS', ['mmitpn.datasets'])
DATA_SAMPLERS = _child('data sampler', 'DATA_SAMPLERS', ['mmitpn.datasets'])
METRICS = _child('metric', 'METRICS', ['mmitpn.evaluation'])
FUNCTIONS = _child('function', 'FUNCTIONS', _ENGINE)
HOOKS = _child('hook', 'HOOKS', _ENGINE)
LOOPS = _child('loop', 'LOOPS', _ENGINE)
OPTIM_WRAPPERS = _child('optim_wrapper', 'OPTIM_WRAPPERS', _ENGINE)
OPTIM_WRAPPER_CONSTRUCTORS = _child('optimizer wrapper constructor', 'OPTIM_WRAPPER_CONSTRUCTORS', _ENGINE)
STRATEGIES = _child('strategy', 'STRATEGIES', _ENGINE)
