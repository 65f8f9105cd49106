"""Schedules that fit another dataset: batch size, learning rate, length of the run, warmup and intervals."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmitpn.config_types import is_type
from mmitpn.utils import check_int

WARMUPS = ('LinearLR', 'ConstantLR', 'LinearParamScheduler', 'ConstantParamScheduler')
SHORTEST_PART = 10  # a warmup takes at most a tenth of the run, and the log gets at least that many lines
SHORTEST_WARMUP = 2  # of one iteration, mmengine would keep its first learning rate for good
MOMENTS = ('begin', 'end', 'T_max', 'step_size', 'milestones', 'total_iters')  # settings of schedulers
NAME_BATCH = re.compile(r'(?:^|[_-])(\d+)xb(\d+)(?=[_-]|$)')  # 8xb2 of a config's name


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
    cfg.auto_scale_lr = {**(cfg.get('auto_scale_lr') or {'enable': False}), 'base_batch_size': actual}
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
    old = loop.get('max_epochs') if by_epoch else loop.get('max_iters')
    if not old:
        raise ValueError(
            f'train_cfg has neither max_epochs nor max_iters (it is {dict(loop)}), so its length is unknown; set one'
        )
    before = _settings(cfg)
    warmups = _find_warmups(cfg)
    new = old
    if epochs is not None:
        check_int('--epochs', epochs)
        new = epochs if by_epoch else epochs * per_epoch
        loop['max_epochs' if by_epoch else 'max_iters'] = new
        if new != old:
            _scale(cfg, new / old, by_epoch=by_epoch)
    total = new * per_epoch if by_epoch else new
    for warmup, followers in warmups:
        _fit_warmup(warmup, followers, total)
    _bound_intervals(cfg, total, per_epoch, by_epoch=by_epoch, length=new)
    length = (
        f'{new} epochs of {per_epoch} iterations' if by_epoch else f'{new} iterations, {new / per_epoch:.4g} epochs'
    )
    after = _settings(cfg)
    return [
        f'run: {length} of {images} images; --epochs N sets another length',
        *(f'{key}: {before.get(key)} -> {value}' for key, value in after.items() if before.get(key) != value),
    ]


def schedulers_of(cfg: Config) -> list[Any]:
    """The parameter schedulers of a config."""
    found = cfg.get('param_scheduler') or []
    return [found] if isinstance(found, Mapping) else list(found)


def _settings(cfg: Config) -> dict[str, Any]:
    """The settings of a schedule by name, to compare them."""
    hooks = cfg.get('default_hooks') or {}
    parts = {f'param_scheduler[{index}]': one for index, one in enumerate(schedulers_of(cfg))}
    parts |= {'train_cfg': cfg.train_cfg, 'logger': hooks.get('logger'), 'checkpoint': hooks.get('checkpoint')}
    parts |= {f'custom_hooks[{index}]': one for index, one in enumerate(cfg.get('custom_hooks') or [])}
    named = {name: part for name, part in parts.items() if isinstance(part, Mapping)}
    return {f'{name}.{key}': deepcopy(value) for name, part in named.items() for key, value in part.items()}


def _scale(cfg: Config, factor: float, *, by_epoch: bool) -> None:
    """Multiply what a config counts in epochs, or in iterations."""

    def multiply(holder: Any, key: str, least: int = 0) -> None:
        value = holder.get(key)
        if isinstance(value, (list, tuple)):  # rounded down: a milestone at the end would never come
            holder[key] = sorted({max(int(one * factor), 1) for one in value})
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            holder[key] = max(round(value * factor), least)

    for scheduler in schedulers_of(cfg):
        if scheduler.get('by_epoch', True) == by_epoch:
            for key in MOMENTS:
                multiply(scheduler, key, 0 if key == 'begin' else 1)
    for key in ('val_interval', 'val_begin'):
        multiply(cfg.train_cfg, key, 1)
    if cfg.train_cfg.get('dynamic_intervals'):
        intervals = cfg.train_cfg['dynamic_intervals']
        cfg.train_cfg['dynamic_intervals'] = [(max(round(begin * factor), 1), each) for begin, each in intervals]
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if saving.get('by_epoch', True) == by_epoch:
        multiply(saving, 'interval', 1)
    for hook in cfg.get('custom_hooks') or []:
        for key in ('switch_epoch', 'num_last_epochs') if isinstance(hook, Mapping) and by_epoch else ():
            multiply(hook, key, 1)


def _find_warmups(cfg: Config) -> list[tuple[Any, list[Any]]]:
    """The warmups of a config, each with the schedulers that begin at its end."""
    schedulers = schedulers_of(cfg)
    warmups = [one for one in schedulers if is_type(one, *WARMUPS) and not one.get('begin') and one.get('end')]
    return [
        (warmup, [one for one in schedulers if one.get('begin') == warmup['end'] and _unit(one) == _unit(warmup)])
        for warmup in warmups
    ]


def _unit(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler counts epochs."""
    return scheduler.get('by_epoch', True)


def _fit_warmup(warmup: Any, followers: list[Any], total: int) -> None:
    """Shorten a warmup in iterations to a tenth of the run; what begins at its end still does."""
    if not _unit(warmup):
        warmup['end'] = min(warmup['end'], total // SHORTEST_PART)
    if not warmup.get('convert_to_iter_based'):
        warmup['end'] = max(warmup['end'], SHORTEST_WARMUP)
    for one in followers:
        one['begin'] = warmup['end']
        if one.get('end') is not None:
            one['end'] = max(one['end'], one['begin'] + 1)
            if one.get('T_max') is not None:
                one['T_max'] = one['end'] - one['begin']


def _bound_intervals(cfg: Config, total: int, per_epoch: int, *, by_epoch: bool, length: int) -> None:
    """Let a short run validate and save at least once, and log a few times."""
    hooks = cfg.get('default_hooks') or {}
    logger, saving = hooks.get('logger') or {}, hooks.get('checkpoint') or {}
    bounds = [(cfg.train_cfg, 'val_interval', length)]
    bounds.append((logger, 'interval', max(min(per_epoch, total // SHORTEST_PART), 1)))
    if saving.get('by_epoch', True) == by_epoch:
        bounds.append((saving, 'interval', length))
    for holder, key, most in bounds:
        value = holder.get(key)
        if isinstance(value, int) and value > most:
            holder[key] = most
