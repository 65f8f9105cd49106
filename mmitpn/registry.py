"""Registries of mmitpn: children of mmengine's, found by the scope prefix in any config (``type='mmitpn.FastITPN'``).

mmengine imports this module by itself when it meets the prefix, and the ``locations`` when it looks a name up, so a
config needs no ``custom_imports``. The locations are folders; each imports what the installed hosts allow.
"""

from __future__ import annotations

from mmengine import registry as root

_FOLDERS = (
    *('backbones', 'necks', 'transformer', 'mask_dino', 'heads'),
    *('detectors', 'segmentors', 'classifiers', 'pretrain'),
)
_MODELS = [f'mmitpn.models.{folder}' for folder in _FOLDERS]
_ENGINE = ['mmitpn.engine']

MODELS = root.Registry('model', parent=root.MODELS, scope='mmitpn', locations=_MODELS)
TASK_UTILS = root.Registry('task util', parent=root.TASK_UTILS, scope='mmitpn', locations=_MODELS)
DATASETS = root.Registry('dataset', parent=root.DATASETS, scope='mmitpn', locations=['mmitpn.datasets'])
TRANSFORMS = root.Registry('transform', parent=root.TRANSFORMS, scope='mmitpn', locations=['mmitpn.datasets'])
DATA_SAMPLERS = root.Registry('data sampler', parent=root.DATA_SAMPLERS, scope='mmitpn', locations=['mmitpn.datasets'])
METRICS = root.Registry('metric', parent=root.METRICS, scope='mmitpn', locations=['mmitpn.datasets'])
FUNCTIONS = root.Registry('function', parent=root.FUNCTIONS, scope='mmitpn', locations=_ENGINE)
HOOKS = root.Registry('hook', parent=root.HOOKS, scope='mmitpn', locations=_ENGINE)
LOOPS = root.Registry('loop', parent=root.LOOPS, scope='mmitpn', locations=_ENGINE)
OPTIM_WRAPPERS = root.Registry('optim_wrapper', parent=root.OPTIM_WRAPPERS, scope='mmitpn', locations=_ENGINE)
OPTIM_WRAPPER_CONSTRUCTORS = root.Registry(
    'optimizer wrapper constructor', parent=root.OPTIM_WRAPPER_CONSTRUCTORS, scope='mmitpn', locations=_ENGINE
)
STRATEGIES = root.Registry('strategy', parent=root.STRATEGIES, scope='mmitpn', locations=_ENGINE)
