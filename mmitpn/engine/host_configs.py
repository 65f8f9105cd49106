"""Configs of the installed hosts, named as ``mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py``, on both stacks."""

from __future__ import annotations

import difflib
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE


def register_host_configs() -> None:
    """Let ``_base_ = 'mmseg::...'`` work where mmseg comes from a distribution that is not called mmsegmentation.

    mmengine looks a prefix up as a distribution; where it finds none it takes the name of the module, which is right
    for every host. So only the prefixes whose distribution is absent are pointed to their module.
    """
    for module, package in list(MODULE2PACKAGE.items()):
        if package == module or find_spec(module) is None:
            continue
        try:
            distribution(package)
        except PackageNotFoundError:
            MODULE2PACKAGE[module] = module


def host_config_folder(host: str) -> Path:
    """The folder of an installed host's configs.

    Args:
        host: Name of its package: mmdet, mmseg, mmpretrain.

    Raises:
        ValueError: If the host is not installed.
    """
    spec = find_spec(host) if host.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ValueError(f'the configs of {host!r} were asked for, which is not installed; install it, or give a path')
    return Path(spec.origin).parent / '.mim' / 'configs'


def resolve_config(name: str | Path) -> Path:
    """Find a config file by path or by host and name.

    Args:
        name: A path, or ``HOST::NAME`` with an installed host (mmdet, mmseg, mmpretrain) and the path of the file
            below its ``configs`` folder, with or without ``.py``.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the host is not installed.
        FileNotFoundError: If there is no such file; the message names those that look like it.
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
