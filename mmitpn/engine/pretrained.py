"""Where a config's pre-trained weights come from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from torch import nn

from mmitpn.checkpoint import PretrainedModule, identify, load_pretrained, read_checkpoint
from mmitpn.checkpoint.formats import AUTHORS
from mmitpn.checkpoint.mask_dino_keys import is_mask_dino, load_mask_dino_checkpoint
from mmitpn.config_types import type_name, type_scope

PARTS = ('backbone', 'neck')


def _ours(cfg: Config) -> dict[str, ConfigDict]:
    """The backbone and neck of a config that are this project's."""
    parts = {name: cfg.model.get(name) for name in PARTS}
    return {name: part for name, part in parts.items() if isinstance(part, dict) and _is_ours(part, cfg)}


def _is_ours(part: ConfigDict, cfg: Config) -> bool:
    """Whether a part of a model is of this project, or of a class that a config derives from one of it."""
    kind = part.get('type')
    if isinstance(kind, type):
        return issubclass(kind, PretrainedModule)
    return (type_scope(kind) or cfg.get('default_scope')) == 'mmitpn'


def use_pretrained(cfg: Config, checkpoint: str) -> None:
    """Let backbone and neck start from one file.

    Args:
        cfg: Config of a detector or segmentor; changed in place.
        checkpoint: Path or URL of any layout that :func:`mmitpn.checkpoint.load_pretrained` knows.

    Raises:
        ValueError: If neither the backbone nor the neck is one of this project's.
    """
    parts = _ours(cfg)
    if not parts:
        types = [type_name(cfg.model[name]) if cfg.model.get(name) else None for name in PARTS]
        raise ValueError(
            f'--pretrained {checkpoint}: backbone and neck of the config are {types}; one of them must be of mmitpn'
            " (see README.md, 'Swap a backbone'), or set their own init_cfg"
        )
    for part in parts.values():
        part['init_cfg'] = {'type': 'Pretrained', 'checkpoint': checkpoint}


def warn_if_random(cfg: Config) -> None:
    """Say so when a backbone of this project would be trained from random weights.

    Args:
        cfg: Config of a training.
    """
    if cfg.get('load_from') or cfg.get('resume'):
        return
    random = [name for name, part in _ours(cfg).items() if not part.get('init_cfg')]
    if random:
        print_log(
            f'{" and ".join(random)} start from random weights: give --pretrained FILE, or init_cfg=dict(type='
            "'Pretrained', checkpoint=FILE) in the config, to start from pre-trained ones",
            'current',
            level=logging.WARNING,
        )


def read_authors_file(checkpoint: str) -> Mapping[str, Any] | None:
    """What a file of the authors, or a released one of MaskDINO, holds; None for any other, which mmengine loads.

    Args:
        checkpoint: Path or URL.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    try:
        content = read_checkpoint(checkpoint)
        return content if is_mask_dino(content) or identify(content).layout in AUTHORS else None
    except ValueError:
        return None


def load_whole_model(model: nn.Module, content: Mapping[str, Any], checkpoint: str, *, allow_partial: bool) -> None:
    """Load a file of the authors into a model that is to be evaluated.

    Args:
        model: The model, with this project's backbone.
        content: What :func:`read_authors_file` gave.
        checkpoint: Name of the file, for the message.
        allow_partial: Accept parameters that the file does not have.

    Raises:
        ValueError: If the backbone does not fit, or a parameter of the model is not in the file.
    """
    report = (load_mask_dino_checkpoint if is_mask_dino(content) else load_pretrained)(model, content)
    loaded, total = report.count('matched') + report.count('resized'), len(list(model.parameters()))
    if loaded < total and not allow_partial:
        raise ValueError(
            f'{checkpoint} has {loaded} of the {total} parameters of the model ({report.title}); the others would be '
            'random: give a checkpoint of the whole model, such as a fine-tuned classifier, or --allow-partial'
        )
