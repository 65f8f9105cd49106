"""Configs as files: those of the installed frameworks by name, and classes that stay readable when they are saved."""

from __future__ import annotations

import difflib
import inspect
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject
from mmengine.config.utils import MODULE2PACKAGE


def register_host_configs() -> None:
    """Let ``_base_ = 'mmseg::...'`` work where mmseg comes from a distribution that is not called mmsegmentation.

    mmengine looks a prefix up as a distribution; where it finds none it takes the name of the module, which is right
    for every framework. So only the prefixes whose distribution is absent are mapped to their module.
    """
    for module, package in list(MODULE2PACKAGE.items()):
        if package == module or find_spec(module) is None:
            continue
        try:
            distribution(package)
        except PackageNotFoundError:
            MODULE2PACKAGE[module] = module


def host_config_folder(host: str) -> Path:
    """The folder of an installed framework's configs.

    Args:
        host: Name of its package: mmdet, mmseg, mmpretrain.

    Raises:
        ValueError: If the framework is not installed.
    """
    spec = find_spec(host) if host.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ValueError(f'the configs of {host!r} were asked for, which is not installed; install it, or give a path')
    return Path(spec.origin).parent / '.mim' / 'configs'


def resolve_config(name: str | Path) -> Path:
    """Find a config file by path or by framework and name.

    Args:
        name: A path, or ``HOST::NAME`` with an installed framework (mmdet, mmseg, mmpretrain) and the path of the file
            below its ``configs`` folder, with or without ``.py``: ``mmdet::dino/dino-4scale_r50_8xb2-12e_coco``.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the framework is not installed.
        FileNotFoundError: If there is no such file; the message names similar ones.
    """
    host, separator, inner = str(name).partition('::')
    if not separator:
        if not Path(name).is_file():
            raise FileNotFoundError(
                f'no config file {str(name)!r}; give the path of one, or HOST::NAME for one of an installed host'
            )
        return Path(name)
    folder = host_config_folder(host)
    path = folder / (inner if Path(inner).suffix in ('.py', '.yml', '.yaml', '.json') else f'{inner}.py')
    if not path.is_file():
        there = [found.relative_to(folder).as_posix() for found in folder.rglob('*.py')]
        near = difflib.get_close_matches(path.relative_to(folder).as_posix(), there, n=3)
        raise FileNotFoundError(f'{host} has no config {inner!r} in {folder}; near: {", ".join(near) or "none"}')
    return path


def keep_readable(cfg: Config) -> None:
    """Put classes and functions in a config back, in place, to the imports they came from; it builds the same.

    A pure Python config keeps an import unresolved until it is used. A value that was taken out and put back is a
    class, which mmengine writes into the work dir and into checkpoints as a name that no config can read.
    """
    _keep_readable(cfg._cfg_dict)


def _keep_readable(node: Any) -> None:
    if isinstance(node, ConfigDict):
        for key, value in dict.items(node):
            if isinstance(value, type) or inspect.isroutine(value):
                if '.' not in value.__qualname__ and value.__module__ != 'builtins':
                    dict.__setitem__(node, key, LazyObject(value.__module__, value.__name__))
            else:
                _keep_readable(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _keep_readable(value)
