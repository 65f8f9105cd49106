"""Settings that make training and testing faster on a GPU, each with its reason; docs/gpu.md has them as a table.

A config gets what it leaves unset, and the log has a line for each change. ``gpu_settings`` in the config, or
``--cfg-options gpu_settings.tf32=True``, switches single ones; ``gpu_settings=False`` or ``--no-gpu-settings`` leaves
the config as it is. What changes results by more than rounding is off unless it is asked for. The precision of the
forward pass is ``--amp``'s (:mod:`mmitpn.engine.amp`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mmitpn.config_types import is_type, type_name, type_scope
from mmitpn.engine.runtime import ddp_wrapper

# Setting -> whether it is on by default.
SETTINGS = {'pin_memory': True, 'fused_optimizer': True, 'tf32': False, 'static_graph': False}
# torch's optimizers with a fused kernel, and the wrappers that call nothing but their step().
FUSED = ('AdamW', 'Adam', 'SGD')
WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper')
# Data preprocessors that take non_blocking (those of segmentors and classifiers do not), and models that imply one.
PREPROCESSORS, IMPLY = ('DetDataPreprocessor', 'SelfSupDataPreprocessor'), ('ITPNPretrain',)


def add_gpu_settings_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--gpu-settings`` and ``--no-gpu-settings``."""
    parser.add_argument(
        '--gpu-settings',
        action=argparse.BooleanOptionalAction,
        help='on a GPU, set what makes it faster and the config leaves unset; the changes are logged'
        ' (default: gpu_settings of the config, or yes)',
    )


def read_gpu_settings(cfg: Config, option: bool | None = None) -> dict[str, bool]:
    """The settings of a config and of the command line.

    Args:
        cfg: Config; its ``gpu_settings`` is a bool or a dict of ``SETTINGS``.
        option: ``--gpu-settings`` or ``--no-gpu-settings``; None if neither is given.

    Returns:
        Setting -> whether it is on.

    Raises:
        TypeError: If ``gpu_settings`` or one of them is of another type.
        ValueError: If there is no such setting.
    """
    given = cfg.get('gpu_settings', True)
    if not isinstance(given, (bool, Mapping)):
        raise TypeError(f'gpu_settings is {given!r}; allowed: True, False, or a dict with {", ".join(SETTINGS)}')
    chosen = dict(given) if isinstance(given, Mapping) else {}
    unknown = [name for name in chosen if name not in SETTINGS]
    if unknown:
        raise ValueError(f'gpu_settings has {unknown[0]!r}; allowed: {", ".join(SETTINGS)}')
    wrong = [name for name, value in chosen.items() if not isinstance(value, bool)]
    if wrong:
        raise TypeError(f'gpu_settings.{wrong[0]} is {chosen[wrong[0]]!r}; allowed: True, False')
    if option is False or (given is False and option is None):
        return dict.fromkeys(SETTINGS, False)
    return {**SETTINGS, **chosen}


def apply_gpu_settings(cfg: Config, option: bool | None = None, *, training: bool) -> list[str]:
    """Set what makes a GPU faster and the config leaves unset; nothing where torch sees no CUDA device.

    ``pin_memory`` and ``fused_optimizer`` are on by default, ``tf32`` and ``static_graph`` are off: ``gpu_settings`` of
    the config, such as ``dict(tf32=True)``, switches single ones, and ``gpu_settings=False`` all off. ``tf32`` is a
    setting of torch for the whole process, the others are settings of the config.

    Args:
        cfg: Config after :func:`setup_distributed`, which sets its ``launcher``; changed in place.
        option: ``--gpu-settings`` or ``--no-gpu-settings``; None if neither is given.
        training: For training, otherwise for testing.

    Returns:
        What was changed and why, one line each.

    Raises:
        TypeError: See :func:`read_gpu_settings`.
        ValueError: If a setting is unknown, or ``static_graph`` is asked for with a sharded model.
    """
    settings = read_gpu_settings(cfg, option)
    if not torch.cuda.is_available():
        return []
    changes = []
    if settings['pin_memory']:
        changes += _pin_memory(cfg, ('train_dataloader', 'val_dataloader') if training else ('test_dataloader',))
    if settings['fused_optimizer'] and training:
        changes += _fuse_optimizer(cfg)
    if settings['tf32']:
        # Off by default: what autocast leaves in fp32 (losses, matching costs, boxes, sampling points) is there for the
        # sake of precision, and TF32 keeps 10 of its 23 bits. torch's own default is the same for matrix products.
        # (Its convolutions are in TF32 unless torch.backends.cudnn.allow_tf32 is False.)
        torch.set_float32_matmul_precision('high')
        changes.append('TF32 in fp32 matrix products: tensor cores compute them, with 10 bits of mantissa')
    if settings['static_graph'] and training:
        changes += _use_static_graph(cfg)
    return changes


def log_gpu_settings(changes: list[str]) -> None:
    """Log the changes of :func:`apply_gpu_settings`; nothing if there are none."""
    if changes:
        print_log('settings for GPUs changed the config (--no-gpu-settings leaves it as it is):', 'current')
    for change in changes:
        print_log(f'  {change}', 'current')


def _pin_memory(cfg: Config, names: tuple[str, ...]) -> list[str]:
    """Pinned memory: the GPU fetches a batch by itself, while the host works; from other memory the host waits."""
    changes = []
    for name in names:
        loader = cfg.get(name)
        if isinstance(loader, Mapping) and 'pin_memory' not in loader:
            loader.pin_memory = True
            changes.append(f'{name}.pin_memory=True: images are copied to the GPU without a copy in between')
    model = cfg.get('model') or {}
    preprocessor = model.get('data_preprocessor')
    if not changes or not isinstance(preprocessor, Mapping) or 'non_blocking' in preprocessor:
        return changes
    if is_type(preprocessor, *PREPROCESSORS) or ('type' not in preprocessor and is_type(model, *IMPLY)):
        preprocessor.non_blocking = True
        changes.append('data_preprocessor.non_blocking=True: the host does not wait for that copy')
    return changes


def _fuse_optimizer(cfg: Config) -> list[str]:
    """One kernel for all parameters of a group: equal up to rounding, and GradScaler asks the host for no decision.

    A run that is resumed takes the setting of its checkpoint's groups. An optimizer that was built as fused and loads
    groups that are not fails under GradScaler, which gives it the scale to divide by; the other way around works.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    optimizer: Any = wrapper.get('optimizer')
    if cfg.get('resume'):
        return []
    if cfg.get('strategy') or (type_name(wrapper) or 'OptimWrapper') not in WRAPPERS:
        return []  # sharded models and other engines step in their own way
    if not isinstance(optimizer, Mapping) or not is_type(optimizer, *FUSED):
        return []
    if type_scope(optimizer) not in ('', 'torch', 'mmengine'):
        return []
    if any(optimizer.get(name) is not None for name in ('fused', 'foreach', 'capturable', 'differentiable')):
        return []
    optimizer.fused = True
    return ['optim_wrapper.optimizer.fused=True: one kernel updates all parameters of a group']


def _use_static_graph(cfg: Config) -> list[str]:
    """DDP records once which parameters are used: valid where each step uses the same ones, as the models here do."""
    if cfg.get('strategy'):
        raise ValueError(
            f'gpu_settings.static_graph is of DistributedDataParallel, and the config has strategy={cfg.strategy!r};'
            ' leave one of them out'
        )
    if cfg.get('launcher', 'none') == 'none':
        return []
    cfg.model_wrapper_cfg = {**ddp_wrapper(cfg), 'static_graph': True}
    return ['model_wrapper_cfg.static_graph=True: the first step records the use of parameters, later ones rely on it']
