"""What every training of ``tools/train.py`` gets: a killed one loses nothing, and a resumed one is the same run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop

from mmitpn.engine.environment import use_atomic_checkpoints

HOOKS = ('mmitpn.SeedStepHook', 'mmitpn.StopOnInvalidLossHook', 'mmitpn.StopOnSignalHook')
SAMPLERS = {
    DefaultSampler: 'mmitpn.SeededSampler',
    InfiniteSampler: 'mmitpn.SeededInfiniteSampler',
}
OURS = ('mmitpn.SeededSampler', 'mmitpn.SeededInfiniteSampler')


def use_fault_tolerance(cfg: Config) -> None:
    """Make a training one that can be killed at any moment and gone on with.

    Checkpoints are whole or not there. On one process a resumed run equals an undisturbed one bit for bit: samplers,
    samples and steps are seeded from the run's seed and their own number, and an epoch goes on where it was left. The
    run stops at a loss that is no number, and saves first when a scheduler stops it. ``max_broken_samples`` of the
    config, 0 unless given, is how many samples may fail to load.

    Args:
        cfg: Config of a training; changed in place. What it says itself stays: another sampler, loop or hook.
    """
    use_atomic_checkpoints(cfg)
    hooks = list(cfg.get('custom_hooks') or [])
    there = {str(hook.get('type')) for hook in hooks if isinstance(hook, Mapping)}
    cfg.custom_hooks = [{'type': name} for name in HOOKS if name not in there] + hooks
    loader = cfg.get('train_dataloader')
    if isinstance(loader, Mapping) and isinstance(loader.get('dataset'), Mapping):
        _make_samples_exact(cfg, loader)


def _make_samples_exact(cfg: Config, loader: Any) -> None:
    sampler = loader.get('sampler') or {}
    ours = next((ours for theirs, ours in SAMPLERS.items() if _is(sampler.get('type'), theirs)), None)
    if ours is not None:
        sampler['type'] = ours
    elif sampler.get('type') not in OURS:
        print_log(
            f'the sampler is {sampler.get("type")!r}: a resumed run sees other samples than an undisturbed one would;'
            ' DefaultSampler and InfiniteSampler of mmengine are made exact',
            'current',
            logging.WARNING,
        )
    if loader.dataset.get('type') != 'mmitpn.SeededDataset':
        broken = cfg.get('max_broken_samples', 0)
        loader['dataset'] = {'type': 'mmitpn.SeededDataset', 'dataset': loader['dataset'], 'max_broken': broken}
    if loader.get('num_workers', 0):
        loader.setdefault('worker_init_fn', {'type': 'mmitpn.outlast_stop_signal'})
    _go_on_within_epochs(cfg, loader)


def _go_on_within_epochs(cfg: Config, loader: Any) -> None:
    loop = cfg.get('train_cfg') or {}
    by_epoch = loop.get('by_epoch', True) if 'type' not in loop else _is(loop['type'], EpochBasedTrainLoop)
    batches = loader.get('batch_sampler')
    if not by_epoch or (batches or {}).get('type') == 'mmitpn.SkippingBatchSampler' or 'batch_size' not in loader:
        return
    loop.pop('by_epoch', None)
    loop['type'] = 'mmitpn.ResumableEpochLoop'
    drop = {'drop_last': loader.pop('drop_last')} if 'drop_last' in loader else {}
    loader['batch_sampler'] = {'type': 'mmitpn.SkippingBatchSampler', 'batches': batches, **drop}


def _is(kind: Any, cls: type) -> bool:
    """Whether a config's ``type`` names a class of mmengine."""
    return kind in (cls, cls.__name__, f'mmengine.{cls.__name__}')


def seed_of(checkpoint: str | Path) -> int | None:
    """The seed of the run that wrote a checkpoint; None where it is not said, or the file is not on this machine.

    mmengine reads it only after the data loader is built with another.

    Args:
        checkpoint: File, or folder of shards.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = path / 'meta.pth'
    if not path.is_file():
        return None
    meta = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
    meta = meta.get('meta', meta) if isinstance(meta, Mapping) else {}
    return meta.get('seed')
