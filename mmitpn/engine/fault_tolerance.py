"""What every training of ``tools/train.py`` gets: a killed one loses nothing, and a resumed one is the same run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mmitpn.config_types import is_type, type_name, type_scope
from mmitpn.engine.checkpoint_loader import read_state
from mmitpn.engine.environment import use_atomic_checkpoints

HOOKS = ('SeedStepHook', 'StopOnInvalidLossHook', 'StopOnSignalHook')  # of mmitpn
SAMPLERS = {'DefaultSampler': 'SeededSampler', 'InfiniteSampler': 'SeededInfiniteSampler'}  # mmengine's, and ours


def use_fault_tolerance(cfg: Config) -> None:
    """Make a training one that can be killed at any moment and gone on with.

    Checkpoints are whole or not there. On one process a resumed run equals an undisturbed one bit for bit: samplers,
    samples and steps are seeded from the run's seed and their own number, and an epoch goes on where it was left. The
    run stops at a NaN or infinite loss, and saves first when a scheduler stops it. ``max_broken_samples`` of the
    config, 0 unless given, is how many samples may fail to load.

    Args:
        cfg: Config of a training; changed in place. What it says itself stays: another sampler, loop or hook.
    """
    use_atomic_checkpoints(cfg)
    hooks = list(cfg.get('custom_hooks') or [])
    cfg.custom_hooks = [
        {'type': f'mmitpn.{name}'}
        for name in HOOKS
        if not any(is_type(hook, f'mmitpn.{name}') for hook in hooks if isinstance(hook, Mapping))
    ] + hooks
    loader = cfg.get('train_dataloader')
    if isinstance(loader, Mapping) and isinstance(loader.get('dataset'), Mapping):
        _make_samples_exact(cfg, loader)


def _make_samples_exact(cfg: Config, loader: Any) -> None:
    sampler = loader.get('sampler') or {}
    ours = next((ours for theirs, ours in SAMPLERS.items() if _is(sampler, theirs)), None)
    if ours is not None:
        sampler['type'] = f'mmitpn.{ours}'
    elif not is_type(sampler, *(f'mmitpn.{name}' for name in SAMPLERS.values())):
        print_log(
            f'the sampler is {type_name(sampler)!r}: a resumed run sees other samples than an undisturbed one would;'
            ' DefaultSampler and InfiniteSampler of mmengine are made exact',
            'current',
            logging.WARNING,
        )
    if not is_type(loader.dataset, 'mmitpn.SeededDataset'):
        broken = cfg.get('max_broken_samples', 0)
        loader['dataset'] = {'type': 'mmitpn.SeededDataset', 'dataset': loader['dataset'], 'max_broken': broken}
    if loader.get('num_workers', 0):
        loader.setdefault('worker_init_fn', {'type': 'mmitpn.outlast_stop_signal'})
    _go_on_within_epochs(cfg, loader)


def _go_on_within_epochs(cfg: Config, loader: Any) -> None:
    loop = cfg.get('train_cfg') or {}
    by_epoch = loop.get('by_epoch', True) if 'type' not in loop else _is(loop, 'EpochBasedTrainLoop')
    batches = loader.get('batch_sampler')
    if not by_epoch or is_type(batches or {}, 'mmitpn.SkippingBatchSampler') or 'batch_size' not in loader:
        return
    loop.pop('by_epoch', None)
    loop['type'] = 'mmitpn.ResumableEpochLoop'
    drop = {'drop_last': loader.pop('drop_last')} if 'drop_last' in loader else {}
    loader['batch_sampler'] = {'type': 'mmitpn.SkippingBatchSampler', 'batches': batches, **drop}


def _is(cfg: Mapping[str, Any], name: str) -> bool:
    """Whether the ``type`` of a part of a config is a class of mmengine, and not another's of the same name."""
    return is_type(cfg, name) and type_scope(cfg) in ('', 'mmengine')


def seed_of(checkpoint: str | Path) -> int | None:
    """The seed of the run that wrote a checkpoint; None where it is not said, or the file is not on this machine.

    mmengine reads it only after the data loader is built with another.

    Args:
        checkpoint: File, or folder of shards.

    Raises:
        ValueError: If it cannot be read.
    """
    if not Path(checkpoint).exists():
        return None
    content = read_state(checkpoint)
    return content.get('meta', content).get('seed')
