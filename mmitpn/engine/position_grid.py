"""Build a model with the grid of positions of the checkpoint that it is given afterwards."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mmitpn.checkpoint import FileInfo, identify, read_checkpoint
from mmitpn.checkpoint.sharded import read_index
from mmitpn.config_types import is_type

PATCH = 16  # pixels along the side of a token of the main stage
SCHEMES = ('', 'file', 'http', 'https')  # of addresses that are read here; mmengine knows more


def use_checkpoint_grid(cfg: Config, checkpoint: str | os.PathLike | None) -> None:
    """Set ``img_size`` of the backbone to that of a checkpoint, where the config leaves it open (None).

    Such a backbone takes the grid of any checkpoint when it is loaded. But optimizers, averaged models and distributed
    wrappers are built before that, and inside DistributedDataParallel or FSDP shapes are fixed: so the model is built
    with the right ones. Only shapes are read. What is set is logged; an ``img_size`` that the config sets stays.

    A run that resumes (``cfg.resume``) takes all weights from the checkpoint: ``init_cfg`` of a backbone or neck whose
    file is gone is left out, with a warning.

    Args:
        cfg: Config of a detector, segmentor, classifier or of pre-training; changed in place.
        checkpoint: What is loaded or resumed from: a file, an address, or a folder of shards; None if nothing is.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read; the message says what it is.
    """
    if checkpoint is None:
        return
    if cfg.get('resume'):
        _leave_lost_files_out(cfg)
    backbones = [(path, part) for path, part in _parts(cfg.model) if is_type(part, 'FastITPN', 'ITPN')]
    backbones = [(path, part) for path, part in backbones if part.get('img_size') is None]
    address, separator, _ = os.fspath(checkpoint).partition('://')
    if not backbones or (address if separator else '') not in SCHEMES:
        return
    info = _info_of(checkpoint)
    if info.grid is None:
        return
    for path, part in backbones:
        settings = {'img_size': PATCH * info.grid[0]}
        kind = part.get('relative_position')
        if kind and kind == info.relative_position and part.get('relative_window') is None:
            settings['relative_window'] = info.relative_window
        part.update(settings)
        text = ', '.join(f'{name}={value}' for name, value in settings.items())
        print_log(f'{path}: {text}, as in {checkpoint} ({info.grid[0]}x{info.grid[1]} positions)', 'current')


def _parts(node: Any, path: str = 'model') -> Iterator[tuple[str, Any]]:
    """Every backbone and neck of a model's config, also of a model inside of another, with its path."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in ('backbone', 'neck') and isinstance(value, Mapping):
                yield f'{path}.{key}', value
            yield from _parts(value, f'{path}.{key}')


def _leave_lost_files_out(cfg: Config) -> None:
    for path, part in _parts(cfg.model):
        init_cfg = part.get('init_cfg')
        if not is_type(part, 'FastITPN', 'ITPN', 'ITPNPyramid'):
            continue
        if not is_type(init_cfg, 'Pretrained', 'PretrainedInit'):
            continue
        file = os.fspath(init_cfg['checkpoint'])
        if '://' not in file and not Path(file).expanduser().exists():
            part['init_cfg'] = None
            print_log(
                f'{path}: the file of its init_cfg, {file}, is not there and is left out: all weights come from the'
                ' checkpoint that the run resumes from',
                'current',
                level=logging.WARNING,
            )


def _info_of(checkpoint: str | os.PathLike) -> FileInfo:
    """What a checkpoint is, by names and shapes."""
    if Path(checkpoint).is_dir():
        found = read_index(checkpoint).state_dict_metadata
        content: Mapping[str, Any] = {
            name.removeprefix('model.'): torch.empty(what.size, device='meta')
            for name, what in found.items()
            if name.startswith('model.')
        }
    else:
        content = read_checkpoint(checkpoint, allow_objects=True, mmap=True)  # what is no weight stays inert
    try:
        info = identify(content)
        state = {**info.body, **info.rest}
        inner = next((name for name in state if name.endswith('.backbone.pos_embed')), None)
        if info.grid is None and inner is not None:  # of a model inside of another, such as a student
            info = identify(state, prefix=inner.removesuffix('pos_embed'))
    except ValueError as error:
        raise ValueError(f'{os.fspath(checkpoint)}: {error}') from None
    return info
