"""Resuming a training run: where it resumes from, whether that fits, and the same result as without a stop.

:func:`find_latest_checkpoint` and :func:`check_training_state` are asked before anything is built,
:class:`CheckResumeHook` compares model and optimizer before the first step, and :func:`enable_exact_resume` changes a
config so that the resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from mmitpn.checkpoint.diagnostics import some
from mmitpn.checkpoint.sharded import INDEX
from mmitpn.config_types import is_type, type_name, type_scope
from mmitpn.engine.checkpointing import (
    LAST,
    ShapeMismatch,
    compare_weights,
    read_without_tensors,
    unwrap,
    use_atomic_checkpoints,
)
from mmitpn.registry import HOOKS, LOOPS
from mmitpn.utils import seed_generators

STATE = ('meta', 'message_hub')  # what mmengine needs of a checkpoint to resume, besides the weights
# States of torch's optimizers that have the shape of their weight; others may be smaller, such as Adafactor's.
FULL_STATES = frozenset(
    {
        *('exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'exp_inf', 'momentum_buffer', 'square_avg', 'grad_avg'),
        *('acc_delta', 'sum', 'prev', 'step_size', 'ax'),
    }
)
# Settings of torch's optimizers that were added by one release or another and change no state.
SWITCHES = frozenset({'foreach', 'fused', 'capturable', 'differentiable', 'maximize', 'decoupled_weight_decay'})
EXACT_HOOKS = ('SeedStepHook', 'StopOnInvalidLossHook', 'StopOnSignalHook')
EXACT_SAMPLERS = {'DefaultSampler': 'SeededSampler', 'InfiniteSampler': 'SeededInfiniteSampler'}  # mmengine's: mmitpn's


# --- which checkpoint ------------------------------------------------------------------------------------------------


def is_complete(path: str | Path) -> bool:
    """Whether a file is a complete checkpoint, by its checksums; of a sharded checkpoint, whether its index exists.

    Args:
        path: File of torch, or folder of ``torch.distributed.checkpoint``, whose index is written last.
    """
    path = Path(path)
    if path.is_dir():
        return (path / INDEX).is_file()
    try:
        with zipfile.ZipFile(path) as file:
            inside = {name.rpartition('/')[2] for name in file.namelist()}
            return 'data.pkl' in inside and 'constants.pkl' not in inside and file.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError):
        return False


def find_latest_checkpoint(work_dir: str | Path) -> Path | None:
    """Find the checkpoint to resume from; newer ones that are incomplete are named in the log.

    Args:
        work_dir: Folder of a run. The file named in its ``last_checkpoint`` comes first (also searched for in the
            folder itself, so that a folder may be moved), then the newest complete ``epoch_*.pth`` or ``iter_*.pth``.

    Returns:
        Path of the checkpoint, or None if there is none.
    """
    work_dir = Path(work_dir)
    candidates: list[Path] = []
    pointer = work_dir / LAST
    if pointer.is_file() and (named := pointer.read_text().strip()):
        candidates += [Path(named), work_dir / Path(named).name]
    saved = [path for pattern in ('epoch_*', 'iter_*') for path in work_dir.glob(pattern)]
    candidates += sorted(saved, key=lambda path: path.stat().st_mtime, reverse=True)
    broken: list[str] = []
    for path in dict.fromkeys(candidates):
        if not path.exists():
            continue
        if is_complete(path):
            if broken:
                names = ', '.join(broken)
                print_log(f'incomplete or damaged: {names}; resuming from {path} instead', 'current', logging.WARNING)
            return path
        broken.append(str(path))
    if broken:
        print_log(f'incomplete or damaged: {", ".join(broken)}; no other checkpoint', 'current', logging.WARNING)
    return None


def check_training_state(checkpoint: str | os.PathLike, *, sharded_run: bool = False) -> None:
    """Check that a training run can be resumed from a checkpoint, before anything is built.

    Args:
        checkpoint: File, or sharded checkpoint (a folder).
        sharded_run: Whether the run shards its model (:class:`mmitpn.FSDPStrategy`).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or has weights but no state of a training run.
    """
    path = Path(checkpoint)
    content = read_without_tensors(path)
    if path.is_dir() and not sharded_run:
        raise ValueError(
            f'{path} holds the shards of a training run with FSDPStrategy, and the config has none: resume with the'
            f' config of that run (configs/_base_/fsdp.py), or start a new run from its weights: {_load_from(path)}'
        )
    require_state(content, checkpoint)


def require_state(content: Mapping[str, Any], checkpoint: str | os.PathLike) -> None:
    """Raise a ValueError if the content of a file (``checkpoint``) has weights but no state of a training run."""
    meta = content.get('meta')
    missing = [name for name in STATE if not isinstance(content.get(name), Mapping)]
    missing += [f'meta.{name}' for name in ('epoch', 'iter') if isinstance(meta, Mapping) and name not in meta]
    if missing:
        raise ValueError(
            f'{checkpoint} holds no state of a training run ({", ".join(missing)} missing), so nothing can be resumed'
            f' from it; to start a new run from its weights: {_load_from(checkpoint)}, or --pretrained for files of'
            ' backbone and pyramid'
        )


def _load_from(checkpoint: str | os.PathLike) -> str:
    """The option that starts a new run from the weights of a checkpoint."""
    return f'--cfg-options load_from={os.fspath(checkpoint)} in place of --resume'


def read_checkpoint_seed(checkpoint: str | Path) -> int | None:
    """The seed of the run that wrote a checkpoint; None where it has none, or the file is not on this machine.

    mmengine reads it only after the data loader is built with another.

    Args:
        checkpoint: File, or sharded checkpoint (a folder).

    Raises:
        ValueError: If it cannot be read.
    """
    if not Path(checkpoint).exists():
        return None
    content = read_without_tensors(checkpoint)
    return content.get('meta', content).get('seed')


# --- whether it fits -------------------------------------------------------------------------------------------------


@HOOKS.register_module()
class CheckResumeHook(Hook):
    """Refuses to resume a training run from a checkpoint of another model or another optimizer.

    mmengine loads the weights whose shape fits and logs the others, such as class layers of another number of classes;
    then it takes the optimizer's state unchecked. A run that only starts from weights (``load_from``) may take some of
    them; where it takes none, a warning is logged.
    """

    priority = 'VERY_HIGH'  # before EMAHook, which takes what is loaded

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare names and shapes.

        Args:
            runner: The runner, with model and optimizer built.
            checkpoint: Content of the file; raw weights by name are put into its ``'state_dict'``, where hooks and
                strategies of mmengine look for them.

        Raises:
            ValueError: If the run is resumed, and a parameter is missing or has another shape, the optimizer's state
                does not fit, or there is no state of a training run.
        """
        source = runner._load_from or 'the checkpoint'
        if 'state_dict' not in checkpoint:
            weights = dict(checkpoint)
            checkpoint.clear()
            checkpoint['state_dict'] = weights
        mismatches, total = compare_weights(runner.model, checkpoint)
        if not runner._resume:
            if total and len(mismatches) == total:
                print_log(
                    f'load_from: none of the {total} weights of the model are in {source}; for a released file of a'
                    ' backbone use --pretrained',
                    'current',
                    logging.WARNING,
                )
            return
        require_state(checkpoint, source)
        refuse_to_resume(source, mismatches, total)
        if 'optimizer' not in checkpoint:
            print_log(f'{source} holds no optimizer state: the optimizer starts afresh', 'current', logging.WARNING)
        elif hasattr(runner.optim_wrapper, 'state_dict'):
            problems = compare_optimizer(runner.model, runner.optim_wrapper, checkpoint['optimizer'])
            refuse_to_resume(source, problems, total, optimizer=True)


def compare_optimizer(model: nn.Module, wrapper: Any, stored: Mapping[str, Any]) -> list[str]:
    """Compare the state of an optimizer with the one in a checkpoint.

    Args:
        model: The model, with or without a wrapper.
        wrapper: mmengine's ``OptimWrapper``, or several in its ``OptimWrapperDict``.
        stored: The state dict of the wrapper in the checkpoint.

    Returns:
        What does not fit, in words.
    """
    names = {parameter: name for name, parameter in unwrap(model).named_parameters()}
    problems: list[str] = []
    for key, optimizer in _optimizers(wrapper):
        state = stored if key is None else stored.get(key)
        where = '' if key is None else f'{key}: '
        if not isinstance(state, Mapping) or 'param_groups' not in state:
            problems.append(f'{where}there is no state of this optimizer ({some(list(map(str, stored)))})')
        else:
            problems += [f'{where}{problem}' for problem in _compare_groups(optimizer, state, names)]
    return problems


def _optimizers(wrapper: Any) -> Iterator[tuple[str | None, torch.optim.Optimizer]]:
    several = getattr(wrapper, 'optim_wrappers', None)
    for key, one in several.items() if several is not None else [(None, wrapper)]:
        optimizer = getattr(one, 'optimizer', None)
        if isinstance(optimizer, torch.optim.Optimizer):
            yield key, optimizer


def _compare_groups(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any], names: Mapping[Tensor, str]
) -> Iterator[str]:
    """Compare parameter groups as torch pairs them: weights by their index in the group."""
    stored_groups = [list(group['params']) for group in state['param_groups']]
    own_groups = [group['params'] for group in optimizer.param_groups]
    if len(stored_groups) != len(own_groups):
        yield f'{len(stored_groups)} parameter groups in the file, {len(own_groups)} in this run'
        return
    lacks = set(optimizer.defaults) - SWITCHES - set(state['param_groups'][0])
    if lacks:
        yield f'it is of another optimizer than {type(optimizer).__name__}, without its {", ".join(sorted(lacks))}'
        return
    for index, (stored, own) in enumerate(zip(stored_groups, own_groups, strict=True)):
        if len(stored) != len(own):
            yield f'group {index} has {len(stored)} weights in the file, {len(own)} in this run'
            continue
        for key, parameter in zip(stored, own, strict=True):
            name = names.get(parameter, f'weight {key}')
            if isinstance(key, str) and key != name:
                yield f'{name} has the state of {key}'
            for kind, value in (state.get('state', {}).get(key) or {}).items():
                if isinstance(value, Tensor) and not _is_state_of(kind, value.shape, parameter.shape):
                    yield str(ShapeMismatch(f'{name}.{kind}', tuple(value.shape), tuple(parameter.shape)))


def _is_state_of(kind: str, shape: Sequence[int], weight: Sequence[int]) -> bool:
    """Whether a state can belong to a weight: it is a scalar, has its shape, or some of its dimensions in order."""
    if kind in FULL_STATES:
        return tuple(shape) == tuple(weight)
    sides = iter(weight)
    return all(side == 1 or side in sides for side in shape)


def refuse_to_resume(
    checkpoint: str | os.PathLike, problems: Sequence[ShapeMismatch | str], total: int, *, optimizer: bool = False
) -> None:
    """Raise if a checkpoint does not fit the run that is to be resumed from it.

    Args:
        checkpoint: The file.
        problems: What does not fit; nothing is raised where there is none.
        total: Number of weights.
        optimizer: The problems are those of the optimizer's state; the weights fit.

    Raises:
        ValueError: If something does not fit; names the first three, and how to start a new run from what does.
    """
    if not problems:
        return
    shown = some([str(problem) for problem in problems])
    if optimizer:
        raise ValueError(
            f'the optimizer state in {checkpoint} does not fit this run, its weights do ({shown}): resume with the'
            f' optim_wrapper and frozen_stages that it was saved with, or start a new run from its weights:'
            f' {_load_from(checkpoint)}'
        )
    raise ValueError(
        f'{checkpoint} is of another model: {len(problems)} of the {total} weights do not fit ({shown}): resume with'
        f' the config that it was saved with, or start a new run from the weights that fit: {_load_from(checkpoint)}'
    )


# --- the same result as without a stop -------------------------------------------------------------------------------


@HOOKS.register_module()
class SeedStepHook(Hook):
    """Seeds all generators before every training step, from the run's seed, the iteration and the process.

    Masks, stochastic depth and sampled points of an iteration are then the same whether the run was resumed or not. For
    the data see :class:`mmitpn.datasets.SeededDataset`.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        """Seed."""
        seed_generators(runner.seed, runner.iter, get_rank())


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that resumes within an epoch, at the next batch.

    The batches before it are skipped without being loaded: the data loader needs the batch sampler
    ``mmitpn.SkippingBatchSampler`` (``tools/train.py`` puts both into a config). mmengine's loop starts the epoch from
    its first batch again, but continues the iteration count.
    """

    def run_epoch(self) -> None:
        """Train for the rest of the epoch."""
        done = self._iter - self._epoch * len(self.dataloader)
        if not 0 <= done <= len(self.dataloader):
            print_log(
                f'iteration {self._iter} is not in epoch {self._epoch + 1} of {len(self.dataloader)} batches each: the'
                ' checkpoint was saved with another number of processes or batch size; the epoch starts again',
                'current',
                logging.WARNING,
            )
            done = 0
        if done:
            self.dataloader.batch_sampler.skip(done)
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


def wants_exact_resume(cfg: Config, option: bool | None = None) -> bool:
    """Whether a training run is to be made exactly resumable: by the option, else by the config, else yes.

    Args:
        cfg: Config; its ``exact_resume`` is True in the configs that :func:`enable_exact_resume` changed.
        option: ``--exact-resume`` or ``--no-exact-resume`` of the command line; None if neither is given.

    Raises:
        TypeError: If ``exact_resume`` is not a bool.
    """
    setting = cfg.get('exact_resume', True)
    if not isinstance(setting, bool):
        raise TypeError(f'exact_resume is {setting!r}; allowed: True, False (leave the config as it is)')
    return setting if option is None else option


def enable_exact_resume(cfg: Config) -> list[str]:
    """Make the training run of a config safe against a kill at any moment, and exactly resumable.

    Checkpoints are complete or do not exist. On one process a resumed run equals an uninterrupted one bit for bit:
    samplers, samples and steps are seeded from the run's seed and their own number, and training resumes within an
    epoch. The run stops at a NaN or infinite loss, and saves first when a scheduler stops it. ``max_broken_samples`` of
    the config, 0 by default, is the number of samples that may fail to load.

    Args:
        cfg: Config of a training run; changed in place, and marked by ``exact_resume = True``. Samplers, loops and
            hooks that are not mmengine's default ones stay.

    Returns:
        The changes, one line each: ``'KEY: OLD -> NEW'``, for :func:`log_changes`.
    """
    changes = use_atomic_checkpoints(cfg)
    hooks = list(cfg.get('custom_hooks') or [])
    present = [hook for hook in hooks if isinstance(hook, Mapping)]
    added = [name for name in EXACT_HOOKS if not any(is_type(hook, f'mmitpn.{name}') for hook in present)]
    cfg.custom_hooks = [{'type': f'mmitpn.{name}'} for name in added] + hooks
    changes += [f'custom_hooks: none -> mmitpn.{name}' for name in added]
    loader = cfg.get('train_dataloader')
    if isinstance(loader, Mapping) and isinstance(loader.get('dataset'), Mapping):
        changes += _seed_samples(cfg, loader)
        changes += _resume_within_epochs(cfg, loader)
    cfg.exact_resume = True
    return changes


def log_changes(changes: Sequence[str]) -> None:
    """Log what :func:`enable_exact_resume` changed in a config, one line each; nothing if it changed nothing."""
    if changes:
        print_log('exact_resume=True changed the config (--no-exact-resume leaves it as it is):', 'current')
    for change in changes:
        print_log(f'  {change}', 'current')


def _seed_samples(cfg: Config, loader: Any) -> list[str]:
    """Draw samples by seeded samplers and load them by a seeded dataset; returns the changes."""
    changes = []
    sampler = loader.get('sampler') or {}
    seeded = next((new for old, new in EXACT_SAMPLERS.items() if _is_mmengine(sampler, old)), None)
    if seeded is not None:
        changes.append(f'train_dataloader.sampler.type: {type_name(sampler)} -> mmitpn.{seeded}')
        sampler['type'] = f'mmitpn.{seeded}'
    elif not is_type(sampler, *(f'mmitpn.{name}' for name in EXACT_SAMPLERS.values())):
        print_log(
            f'the sampler is {type_name(sampler)!r}: a resumed run sees other samples than an uninterrupted one would;'
            ' only DefaultSampler and InfiniteSampler of mmengine are made exact',
            'current',
            logging.WARNING,
        )
    if not is_type(loader.dataset, 'mmitpn.SeededDataset'):
        inner = type_name(loader.dataset)
        changes.append(f'train_dataloader.dataset: {inner} -> mmitpn.SeededDataset of {inner}')
        broken = cfg.get('max_broken_samples', 0)
        loader['dataset'] = {'type': 'mmitpn.SeededDataset', 'dataset': loader['dataset'], 'max_broken': broken}
    if loader.get('num_workers', 0) and 'worker_init_fn' not in loader:
        changes.append('train_dataloader.worker_init_fn: none -> mmitpn.outlast_stop_signal')
        loader['worker_init_fn'] = {'type': 'mmitpn.outlast_stop_signal'}
    return changes


def _resume_within_epochs(cfg: Config, loader: Any) -> list[str]:
    """Let an epoch-based run resume at the next batch; returns the changes."""
    loop = cfg.get('train_cfg') or {}
    by_epoch = loop.get('by_epoch', True) if 'type' not in loop else _is_mmengine(loop, 'EpochBasedTrainLoop')
    batches = loader.get('batch_sampler')
    if not by_epoch or is_type(batches or {}, 'mmitpn.SkippingBatchSampler') or 'batch_size' not in loader:
        return []
    loop.pop('by_epoch', None)
    loop['type'] = 'mmitpn.ResumableEpochLoop'
    drop = {'drop_last': loader.pop('drop_last')} if 'drop_last' in loader else {}
    loader['batch_sampler'] = {'type': 'mmitpn.SkippingBatchSampler', 'batches': batches, **drop}
    options = ''.join(f'({name}={value})' for name, value in drop.items())
    return [
        'train_cfg.type: EpochBasedTrainLoop -> mmitpn.ResumableEpochLoop',
        f'train_dataloader.batch_sampler: {type_name(batches) or "none"} -> mmitpn.SkippingBatchSampler{options}',
    ]


def _is_mmengine(cfg: Mapping[str, Any], name: str) -> bool:
    """Whether the ``type`` of a part of a config is a class of mmengine, and not another's of the same name."""
    return is_type(cfg, name) and type_scope(cfg) in ('', 'mmengine')
