"""A short readable config that inherits the original."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmitpn.engine.config_utils import resolve_config


def write_config(original: str, options: Mapping[str, Any], out: Path, *, comment: str) -> None:
    """Write a config.

    A config of the original's kind inherits it: a text config by ``_base_``, a pure Python one by an import. Where the
    way to a pure Python original cannot be imported (``faster-rcnn.py`` is no name in Python), all of its settings are
    written, as mmengine writes them into a work dir.

    Args:
        original: Path of the config it inherits, or ``HOST::NAME``.
        options: The settings that differ.
        out: File to write; folders are made.
        comment: First line, without the sign.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = resolve_config(original)
    if Config._is_lazy_import(str(path)):
        text = _pure_python(path, options, out)
    else:
        base = original if original.endswith('.py') else f'{original}.py'
        if '::' not in original:
            base = os.path.relpath(path.resolve(), out.parent.resolve())
        text = '\n'.join(
            [f'_base_ = {base!r}', '', *(f'{name} = {_text(value, 0)}' for name, value in options.items())]
        )
    out.write_text(f'# {comment}\n{text}\n', encoding='utf-8')


def _pure_python(original: Path, options: Mapping[str, Any], out: Path) -> str:
    """A pure Python config that imports the original, or all of the settings."""
    cfg = Config.fromfile(original)
    parts = Path(os.path.relpath(original.resolve().with_suffix(''), out.parent.resolve())).parts
    up = parts.count('..')
    names = parts[up:]
    if not all(name.isidentifier() for name in names):
        cfg.merge_from_dict(copy.deepcopy(dict(options)))  # merging takes _delete_ out of a dict
        return cfg.pretty_text
    lines = ['from mmengine.config import read_base', '', 'with read_base():']
    lines += [f'    from .{"." * up}{".".join(names)} import *  # noqa: F403', '']
    for name, value in options.items():
        merged = isinstance(cfg.get(name), Mapping)
        lines.append(f'{name}.merge({_text(value, 0)})' if merged else f'{name} = {_text(value, 0)}')
    return '\n'.join(lines)


def _text(value: Any, depth: int) -> str:
    """A value as one writes it into a config: dict(...) with a setting in each line where one line is too long."""
    if isinstance(value, Mapping) and all(isinstance(key, str) and key.isidentifier() for key in value):
        items = [f'{key}={_text(inner, depth + 1)}' for key, inner in value.items()]
        opening, closing = 'dict(', ')'
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, Mapping) for inner in value):
        items = [_text(inner, depth + 1) for inner in value]
        opening, closing = '[', ']'
    else:
        return repr(value)
    line = f'{opening}{", ".join(items)}{closing}'
    if len(line) + 4 * depth <= 88 and '\n' not in line:
        return line
    pad = '    ' * (depth + 1)
    body = ''.join(f'{pad}{item},\n' for item in items)
    return f'{opening}\n{body}{"    " * depth}{closing}'
