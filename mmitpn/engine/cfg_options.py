"""Overrides of the command line: what is set for the validation data counts for the test data that is a copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

FOLLOWS = {'val_dataloader': 'test_dataloader', 'val_evaluator': 'test_evaluator'}


def merge_options(cfg: Config, options: Mapping[str, Any] | None) -> None:
    """Merge overrides into a config.

    Most configs end with ``test_dataloader = val_dataloader`` and ``test_evaluator = val_evaluator``. These are copies
    once the config is read, so that an override of one half would leave the other on the old data. Where the config's
    two are equal, an override of the first therefore counts for the second too, unless the second's own is given; a
    line in the log names those that did.

    Args:
        cfg: The config as it was read; changed in place.
        options: Values by dotted key, as of mmengine's ``DictAction``; None changes nothing.
    """
    if not options:
        return
    followed = [
        key for key in options if (name := key.partition('.')[0]) in FOLLOWS and _is_copy(cfg, name, FOLLOWS[name])
    ]
    derived = {}
    for key in followed:
        name, dot, rest = key.partition('.')
        derived[f'{FOLLOWS[name]}{dot}{rest}'] = deepcopy(options[key])  # merging takes _delete_ out of a dict
    new = [key for key in derived if key not in options]
    if new:
        print_log(
            'the config has the same data for val and for test, so --cfg-options of val_... set test_... too: '
            f'{", ".join(new)} (give these for other values)',
            'current',
        )
    cfg.merge_from_dict({**derived, **{key: deepcopy(value) for key, value in options.items()}})


def _is_copy(cfg: Config, name: str, other: str) -> bool:
    """Whether two parts of a config are there and equal."""
    return cfg.get(name) is not None and cfg.get(name) == cfg.get(other)
