"""A short readable config that inherits the original."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_config(original: str, options: Mapping[str, Any], out: Path, *, comment: str) -> None:
    """Write a config.

    Args:
        original: Path of the config it inherits, or ``HOST::NAME``.
        options: The settings that differ.
        out: File to write; folders are made.
        comment: First line, without the sign.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    base = original
    if '::' in original:
        base = original if original.endswith('.py') else f'{original}.py'
    else:
        base = os.path.relpath(Path(original).resolve(), out.parent.resolve())
    lines = [f'# {comment}', f'_base_ = {base!r}', '']
    lines += [f'{name} = {_text(value, 0)}' for name, value in options.items()]
    out.write_text('\n'.join(lines) + '\n', encoding='utf-8')


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
