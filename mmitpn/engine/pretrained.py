"""Where a config's pre-trained weights come from."""

from __future__ import annotations

import logging

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

PARTS = ('backbone', 'neck')


def _ours(cfg: Config) -> dict[str, ConfigDict]:
    """The backbone and neck of a config that are this project's."""
    parts = {name: cfg.model.get(name) for name in PARTS}
    return {
        name: part
        for name, part in parts.items()
        if isinstance(part, dict) and str(part.get('type', '')).startswith('mmitpn.')
    }


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
        types = [cfg.model.get(name, {}).get('type') if cfg.model.get(name) else None for name in PARTS]
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
