"""Schedules that fit another dataset: batch size, learning rate, length of the run, warmup and intervals."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmitpn.config_types import is_type
from mmitpn.utils import check_int

WARMUPS = ('LinearLR', 'ConstantLR', 'LinearParamScheduler', 'ConstantParamScheduler')
SHORTEST_PART = 10  # a warmup takes at most this part of the run, and the log gets at least that many lines
MOMENTS = ('begin', 'end', 'T_max', 'step_size', 'milestones', 'total_iters')  # settings of schedulers
NAME_BATCH = re.compile(r'(?:^|[_-])(\d+)xb?(\d+)(?=[_-]|$)')  # 8xb2 of a config's name, of older ones 8x2


def count_processes(cfg: Config) -> int:
    """Number of processes of the run, as the launcher set it."""
    return int(os.environ.get('WORLD_SIZE', '1')) if cfg.get('launcher', 'none') != 'none' else 1


def batch_of_step(cfg: Config) -> int:
    """Images of an optimizer step: batch size, processes and accumulated batches multiplied."""
    accumulated = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    return cfg.train_dataloader.get('batch_size', 1) * count_processes(cfg) * accumulated


def set_batch(cfg: Config, batch: int | None, *, scale_lr: bool = True) -> list[str]:
    """Set the batch size of a process, and scale the learning rate with the images of a step.

    The learning rate of a config is for ``auto_scale_lr.base_batch_size`` images, else for those in its name
    (``8xb2``: 16), else for its own batch size in one process. It is scaled linearly.

    Args:
        cfg: Config; changed in place.
        batch: Images per process; None keeps the config's.
        scale_lr: Whether to scale the learning rate.

    Returns:
        The changes, a line each.

    Raises:
        ValueError: If the batch size is no positive integer, or there is no learning rate to scale.
    """
    lines = []
    own = cfg.train_dataloader.get('batch_size', 1)
    base, source = (cfg.get('auto_scale_lr') or {}).get('base_batch_size'), 'auto_scale_lr of the config'
    name = NAME_BATCH.search(Path(cfg.filename or '').stem)
    if base is None and name:
        base, source = int(name[1]) * int(name[2]), f'{name[0].strip("_-")} in the name of the config'
    elif base is None:
        base, source = own * (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1), 'one process of the config'
    if batch is not None:
        check_int('--batch', batch)
        cfg.train_dataloader['batch_size'] = batch
        lines.append(f'batch size: {own} -> {batch} images per process')
    actual = batch_of_step(cfg)
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    if actual == base or not scale_lr:
        kept = f'the config is for {base} ({source}), a step has {actual} images'
        lines.append(f'learning rate: {optimizer.get("lr")}, not changed: {kept}')
        return lines
    if optimizer.get('lr') is None:
        raise ValueError(
            f'optim_wrapper.optimizer has no lr, so none can be scaled to a batch of {actual}; set it, or give '
            '--no-scale-lr'
        )
    factor = actual / base
    old, optimizer['lr'] = optimizer['lr'], float(f'{optimizer["lr"] * factor:.6g}')
    for scheduler in schedulers_of(cfg):
        if scheduler.get('eta_min'):
            scheduler['eta_min'] = float(f'{scheduler["eta_min"] * factor:.6g}')
    if cfg.get('auto_scale_lr'):
        cfg.auto_scale_lr['base_batch_size'] = actual
    lines.append(
        f'learning rate: {old} -> {optimizer["lr"]}, since a step has {actual} images and the config is for {base} '
        f'({source}); --no-scale-lr keeps it'
    )
    return lines


def set_length(cfg: Config, images: int, epochs: int | None = None) -> list[str]:
    """Set the number of epochs, with everything that depends on it; and bound warmup and intervals for short runs.

    Milestones, begin and end of the schedulers, and the intervals of validation and checkpoints are scaled by the same
    factor, in epochs or in iterations, as the config counts. A warmup takes at most a tenth of the run.

    Args:
        cfg: Config; changed in place.
        images: Training images that the data loader goes through in an epoch.
        epochs: Number of epochs; None keeps the length of the config.

    Returns:
        The changes, a line each.

    Raises:
        ValueError: If ``epochs`` is no positive integer, or the training loop has no known length.
    """
    loop = cfg.train_cfg
    per_epoch = max(math.ceil(math.ceil(images / count_processes(cfg)) / cfg.train_dataloader.get('batch_size', 1)), 1)
    by_epoch = loop.get('max_iters') is None
    unit = 'epochs' if by_epoch else 'iterations'
    old = loop.get('max_epochs') if by_epoch else loop.get('max_iters')
    if not old:
        raise ValueError(
            f'train_cfg has neither max_epochs nor max_iters (it is {dict(loop)}), so its length is unknown; set one'
        )
    lines = []
    new = old
    if epochs is not None:
        check_int('--epochs', epochs)
        new = epochs if by_epoch else epochs * per_epoch
        loop['max_epochs' if by_epoch else 'max_iters'] = new
        changed = _scale(cfg, new / old, by_epoch=by_epoch) if new != old else []
        lines.append(f'length: {old} -> {new} {unit}' + (f'; with it {", ".join(changed)}' if changed else ''))
    total = new * per_epoch if by_epoch else new
    length = (
        f'{new} epochs of {per_epoch} iterations' if by_epoch else f'{new} iterations, {new / per_epoch:.4g} epochs'
    )
    lines.append(f'run: {length} of {images} images; --epochs N sets another length')
    lines += _bound_warmup(cfg, total)
    lines += _bound_intervals(cfg, total, per_epoch, by_epoch=by_epoch, length=new)
    return lines


def schedulers_of(cfg: Config) -> list[Any]:
    """The parameter schedulers of a config."""
    found = cfg.get('param_scheduler') or []
    return [found] if isinstance(found, Mapping) else list(found)


def _scale(cfg: Config, factor: float, *, by_epoch: bool) -> list[str]:
    """Multiply what a config counts in epochs, or in iterations; returns what was changed."""
    changed = []

    def multiply(holder: Any, key: str, where: str, least: int = 0) -> None:
        value = holder.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float, list, tuple)):
            return
        several = isinstance(value, (list, tuple))
        scaled = [max(round(one * factor), least) for one in (value if several else [value])]
        if several:
            scaled = sorted(set(scaled))  # milestones of a short run can fall together
        holder[key] = scaled if several else scaled[0]
        if holder[key] != value:
            changed.append(f'{where}.{key} {value} -> {holder[key]}')

    for index, scheduler in enumerate(schedulers_of(cfg)):
        if scheduler.get('by_epoch', True) == by_epoch:
            for key in MOMENTS:
                least = int(key in ('end', 'T_max', 'step_size', 'milestones', 'total_iters'))
                multiply(scheduler, key, f'param_scheduler[{index}]', least)
    multiply(cfg.train_cfg, 'val_interval', 'train_cfg', 1)
    multiply(cfg.train_cfg, 'val_begin', 'train_cfg', 1)
    if cfg.train_cfg.get('dynamic_intervals'):
        cfg.train_cfg['dynamic_intervals'] = [
            (max(round(begin * factor), 1), interval) for begin, interval in cfg.train_cfg['dynamic_intervals']
        ]
        changed.append('train_cfg.dynamic_intervals')
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if saving.get('by_epoch', True) == by_epoch:
        multiply(saving, 'interval', 'default_hooks.checkpoint', 1)
    for index, hook in enumerate(cfg.get('custom_hooks') or []):
        if isinstance(hook, Mapping) and by_epoch:
            for key in ('switch_epoch', 'num_last_epochs'):
                multiply(hook, key, f'custom_hooks[{index}]', 1)
    return changed


def _bound_warmup(cfg: Config, total: int) -> list[str]:
    """Shorten a warmup in iterations to a tenth of the run; what begins at its end begins earlier."""
    limit = max(total // SHORTEST_PART, 1)
    schedulers = schedulers_of(cfg)
    lines = []
    for scheduler in schedulers:
        end = scheduler.get('end')
        warmup = is_type(scheduler, *WARMUPS) and not scheduler.get('begin') and not scheduler.get('by_epoch', True)
        if not warmup or not isinstance(end, int) or end <= limit:
            continue
        scheduler['end'] = limit
        for other in schedulers:
            if other.get('begin') == end and not other.get('by_epoch', True):
                other['begin'] = limit
                if other.get('T_max') == other.get('end', 0) - end:
                    other['T_max'] = max(other['end'] - limit, 1)
        lines.append(f'warmup: {end} -> {limit} iterations, a tenth of the run')
    return lines


def _bound_intervals(cfg: Config, total: int, per_epoch: int, *, by_epoch: bool, length: int) -> list[str]:
    """Let a short run validate and save at least once, and log a few times."""
    lines = []
    hooks = cfg.get('default_hooks') or {}
    logger, saving = hooks.get('logger') or {}, hooks.get('checkpoint') or {}
    limit = max(min(per_epoch, total // SHORTEST_PART), 1)
    bounds = [(cfg.train_cfg, 'val_interval', length, 'train_cfg'), (logger, 'interval', limit, 'logger')]
    if saving.get('by_epoch', True) == by_epoch:
        bounds.append((saving, 'interval', length, 'checkpoint'))
    for holder, key, most, where in bounds:
        value = holder.get(key)
        if isinstance(value, int) and value > most:
            holder[key] = most
            lines.append(f'{where}.{key}: {value} -> {most}, for a run of {total} iterations')
    return lines
