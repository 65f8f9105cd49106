"""Weights that the model of a config starts from: ``--pretrained``, and the image size of a checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from mmitpn.checkpoint import FileInfo, PretrainedModule, identify, read_checkpoint
from mmitpn.checkpoint.sharded import read_index
from mmitpn.config_types import is_type, type_name, type_scope
from mmitpn.weights.download import SCHEMES as NAMED
from mmitpn.weights.download import find_local_file, resolve_weights
from mmitpn.weights.zoo import SCHEME, advise_on_missing

PARTS = ('backbone', 'neck')
PATCH = 16  # pixels along the side of a token of the main stage
SCHEMES = ('', 'file', 'http', 'https', *NAMED)  # of addresses that are read here; mmengine knows more


# --- --pretrained ----------------------------------------------------------------------------------------------------


def use_pretrained(cfg: Config, checkpoint: str, *, resumes: bool = False) -> None:
    """Let backbone and neck start from one file.

    Args:
        cfg: Config of a detector or segmentor; changed in place.
        checkpoint: Path or URL of any layout that :func:`mmitpn.checkpoint.load_pretrained` knows, or weights by name
            (:func:`mmitpn.weights.resolve_weights`), which are downloaded now. The config gets their name, not the
            path on this machine.
        resumes: Whether the run may resume, which does not need the file: a missing one is reported only where its
            name looks like weights by name.

    Raises:
        ValueError: If neither the backbone nor the neck is one of this project's.
        FileNotFoundError: If there is no such file, or the file of a name is not here and cannot be downloaded.
    """
    parts = _own_parts(cfg)
    if not parts:
        types = [type_name(cfg.model[name]) if cfg.model.get(name) else None for name in PARTS]
        raise ValueError(
            f'--pretrained {checkpoint}: backbone and neck of the config are {types}; one of them must be of mmitpn'
            " (see README.md, 'Swap a backbone'), or set their own init_cfg"
        )
    if '://' not in checkpoint and not Path(checkpoint).exists() and find_local_file(checkpoint) is None:
        advice = advise_on_missing(checkpoint)
        if advice or not resumes:
            advice = advice or '; mmitpn weights list has the names, mmitpn weights get downloads'
            raise FileNotFoundError(f'--pretrained {checkpoint}: there is no such file{advice}')
    if resolve_weights(checkpoint) != checkpoint and '://' not in checkpoint:
        checkpoint = f'{SCHEME}{checkpoint}'
    for part in parts.values():
        part['init_cfg'] = {'type': 'Pretrained', 'checkpoint': checkpoint}


def download_init_cfg(cfg: Config) -> None:
    """Download the weights that ``init_cfg`` of backbones and necks names, before anything is built.

    Args:
        cfg: Config of a model that is to be trained.

    Raises:
        ValueError: If a name is unknown, or its file is another one.
        FileNotFoundError: If a file cannot be downloaded.
    """
    for _, part in _find_parts(cfg.model):
        init_cfg = part.get('init_cfg')
        if is_type(part, 'FastITPN', 'ITPN', 'ITPNPyramid') and is_type(init_cfg, 'Pretrained', 'PretrainedInit'):
            resolve_weights(init_cfg.get('checkpoint'))


def warn_if_random(cfg: Config) -> None:
    """Warn if a backbone of this project would be trained from random weights."""
    if cfg.get('load_from') or cfg.get('resume'):
        return
    random = [name for name, part in _own_parts(cfg).items() if not part.get('init_cfg')]
    if random:
        print_log(
            f'{" and ".join(random)} start from random weights: give --pretrained NAME_OR_FILE, or init_cfg=dict(type='
            "'Pretrained', checkpoint=FILE) in the config, to start from pre-trained ones",
            'current',
            level=logging.WARNING,
        )


def _own_parts(cfg: Config) -> dict[str, ConfigDict]:
    """The backbone and neck of a config that are this project's."""
    parts = {name: cfg.model.get(name) for name in PARTS}
    return {name: part for name, part in parts.items() if isinstance(part, dict) and _is_own(part, cfg)}


def _is_own(part: ConfigDict, cfg: Config) -> bool:
    """Whether a part of a model is of this project, or of a class that a config derives from one of it."""
    kind = part.get('type')
    if isinstance(kind, type):
        return issubclass(kind, PretrainedModule)
    return (type_scope(kind) or cfg.get('default_scope')) == 'mmitpn'


# --- image size of a checkpoint --------------------------------------------------------------------------------------


def use_checkpoint_grid(cfg: Config, checkpoint: str | os.PathLike | None) -> None:
    """Set ``img_size`` of the backbone to that of a checkpoint, where the config leaves it open (None).

    Such a backbone takes the grid of any checkpoint when it is loaded. But optimizers, averaged models and distributed
    wrappers are built before that, and inside DistributedDataParallel or FSDP shapes are fixed: so the model is built
    with the right ones. Only shapes are read. What is set is logged; an ``img_size`` that the config sets stays.

    A run that resumes (``cfg.resume``) takes all weights from the checkpoint: ``init_cfg`` of a backbone or neck whose
    file does not exist any more is removed, with a warning.

    Args:
        cfg: Config of a detector, segmentor, classifier or of pre-training; changed in place.
        checkpoint: What is loaded or resumed from: a file, an address, or a sharded checkpoint; None if nothing is.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read; the message names what the file is.
    """
    if checkpoint is None:
        return
    if cfg.get('resume'):
        remove_lost_init_cfg(cfg)
    backbones = [(path, part) for path, part in _find_parts(cfg.model) if is_type(part, 'FastITPN', 'ITPN')]
    backbones = [(path, part) for path, part in backbones if part.get('img_size') is None]
    address, separator, _ = os.fspath(checkpoint).partition('://')
    if not backbones or (address if separator else '') not in SCHEMES:
        return
    info = _read_info(checkpoint)
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


def _find_parts(node: Any, path: str = 'model') -> Iterator[tuple[str, Any]]:
    """Every backbone and neck of a model's config, also of a model inside of another, with its path."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in PARTS and isinstance(value, Mapping):
                yield f'{path}.{key}', value
            yield from _find_parts(value, f'{path}.{key}')


def remove_lost_init_cfg(cfg: Config, level: int = logging.WARNING) -> None:
    """Remove ``init_cfg`` of backbones and necks whose file is not here: a path, or a name that was not downloaded.

    Args:
        cfg: Config of a model all of whose weights come from a checkpoint; changed in place.
        level: Level of the message.
    """
    for path, part in _find_parts(cfg.model):
        init_cfg = part.get('init_cfg')
        own = is_type(part, 'FastITPN', 'ITPN', 'ITPNPyramid')
        if not own or not is_type(init_cfg, 'Pretrained', 'PretrainedInit'):
            continue
        file = os.fspath(init_cfg['checkpoint'])
        local = find_local_file(file) or (None if '://' in file else Path(file).expanduser())
        if local is not None and not local.exists():
            part['init_cfg'] = None
            print_log(
                f'{path}: the file of its init_cfg, {file}, is not there and is left out: all weights come from the'
                ' checkpoint',
                'current',
                level=level,
            )


def _read_info(checkpoint: str | os.PathLike) -> FileInfo:
    """Identify a checkpoint by names and shapes."""
    if Path(checkpoint).is_dir():
        index = read_index(checkpoint).state_dict_metadata
        content: Mapping[str, Any] = {
            name.removeprefix('model.'): torch.empty(entry.size, device='meta')
            for name, entry in index.items()
            if name.startswith('model.')
        }
    else:
        content = read_checkpoint(checkpoint, allow_objects=True, mmap=True)  # other objects than weights stay inert
    try:
        info = identify(content)
        state = {**info.body, **info.rest}
        inner = next((name for name in state if name.endswith('.backbone.pos_embed')), None)
        if info.grid is None and inner is not None:  # of a model inside of another, such as a student
            info = identify(state, prefix=inner.removesuffix('pos_embed'))
    except ValueError as error:
        raise ValueError(f'{os.fspath(checkpoint)}: {error}') from None
    return info
