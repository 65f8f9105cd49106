"""The class that the ``type`` of a config names, in any of mmengine's notations.

A string (with or without a scope), a class or a function (pure Python configs), or mmengine's stand-in for an import
until it is used (``LazyObject``, ``LazyAttr``). Nothing is imported or built to find out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def type_name(cfg_or_type: Any) -> str:
    """The name of a type, without scope or module.

    Args:
        cfg_or_type: A part of a config, whose ``type`` is taken, or a type itself: a string, a class, a function, an
            mmengine ``LazyObject`` or ``LazyAttr``, or None.

    Returns:
        The last part of the name, such as ``CocoDataset`` for ``'mmdet.CocoDataset'``; empty where there is none.
    """
    return _parts(cfg_or_type)[1]


def type_scope(cfg_or_type: Any) -> str:
    """The package of a type, if it is written: ``mmdet`` for ``'mmdet.CocoDataset'`` and for the class.

    Args:
        cfg_or_type: As for :func:`type_name`.

    Returns:
        The first part of the dotted name or of the class's module; empty for a name without a scope.
    """
    return _parts(cfg_or_type)[0]


def is_type(cfg_or_type: Any, *names: str) -> bool:
    """Whether a type has one of several names.

    Args:
        cfg_or_type: As for :func:`type_name`.
        names: Names. ``CocoDataset`` matches that name in any scope and in none; ``mmdet.CocoDataset`` only where mmdet
            is written as the scope, or is the package of the class.

    Returns:
        True if one matches.
    """
    scope, name = _parts(cfg_or_type)
    wanted = (one.rpartition('.') for one in names)
    return bool(name) and any(name == last and first in ('', scope) for first, _, last in wanted)


def _parts(cfg_or_type: Any) -> tuple[str, str]:
    """Package (or empty) and name of a type."""
    value = cfg_or_type.get('type') if isinstance(cfg_or_type, Mapping) else cfg_or_type
    if value is None:
        return '', ''
    if isinstance(value, type) or inspect.isroutine(value):
        return str(value.__module__).partition('.')[0], value.__name__
    if type(value).__name__ in ('LazyObject', 'LazyAttr'):  # both answer any attribute, so they cannot be asked
        return str(value.module).partition('.')[0], str(value).rpartition('.')[2]
    scope, _, name = str(value).rpartition('.')
    return scope.partition('.')[0], name
