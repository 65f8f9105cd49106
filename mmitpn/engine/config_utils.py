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

from mmitpn.utils import config_folder

OWN = 'mmitpn'
SUFFIXES = ('.py', '.yml', '.yaml', '.json')


def register_host_configs() -> None:
    """Let ``_base_ = 'mmseg::...'`` work on both stacks, and ``_base_ = 'mmitpn::...'``, which mmengine does not know.

    mmengine looks a prefix up as a distribution; where it finds none it takes the name of the module, which is right
    for every framework. So only the prefixes whose distribution is absent are mapped to their module. Our own configs
    are found by :func:`resolve_config`, in a checkout too, and without mmengine's ``_scope_='mmitpn'``: in that scope
    the classes of mmdet and mmseg that they name would not be found.
    """
    if Config._get_cfg_path is not _get_cfg_path:
        Config._get_cfg_path = staticmethod(_get_cfg_path)
    for module, package in list(MODULE2PACKAGE.items()):
        if package == module or find_spec(module) is None:
            continue
        try:
            distribution(package)
        except PackageNotFoundError:
            MODULE2PACKAGE[module] = module


_mmengine_get_cfg_path = Config._get_cfg_path


def _get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """Path and scope of a ``_base_`` of a config (``filename``): as mmengine finds it, or ours for ``mmitpn::``."""
    if cfg_path.startswith(f'{OWN}::'):
        return str(resolve_config(cfg_path)), None
    return _mmengine_get_cfg_path(cfg_path, filename)


def host_config_folder(host: str) -> Path:
    """The folder of an installed framework's configs.

    Args:
        host: Name of its package: mmdet, mmseg, mmpretrain, mmitpn.

    Raises:
        ValueError: If the framework is not installed.
    """
    if host == OWN:
        return config_folder()
    spec = find_spec(host) if host.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ValueError(f'the framework {host!r} is not installed; install mmdet, mmseg or mmpretrain, or give a path')
    return Path(spec.origin).parent / '.mim' / 'configs'


def resolve_config(name: str | Path) -> Path:
    """Find a config file by path or by name.

    Args:
        name: A path; ``FRAMEWORK::NAME`` with an installed framework (mmdet, mmseg, mmpretrain, mmitpn) and the path of
            the file below its ``configs`` folder, ``mmdet::dino/dino-4scale_r50_8xb2-12e_coco``; or a config of this
            project by its file name, ``dino-4scale_fast-itpn-b_8xb2-12e_coco``, or its path below ``configs``. Names
            are written with or without ``.py``.

    Returns:
        Path of the file.

    Raises:
        ValueError: If the framework is not installed.
        FileNotFoundError: If there is no such file; the message names similar ones.
    """
    host, separator, inner = str(name).partition('::')
    if not separator:
        if Path(name).is_file():
            return Path(name)
        return _find_below(config_folder(), str(name).removeprefix('configs/'), f'no config file {str(name)!r}')
    return _find_below(host_config_folder(host), inner, f'{host} has no config {inner!r}')


def _find_below(folder: Path, name: str, problem: str) -> Path:
    """A config below a folder by its path, or by its file name where no other has the same."""
    wanted = name if Path(name).suffix in SUFFIXES else f'{name}.py'
    if (folder / wanted).is_file():
        return folder / wanted
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob('*.py'))}
    same = [path for path in names.values() if path.name == wanted and '_base_' not in path.parts]
    if len(same) == 1:
        return same[0]
    stems = [path.name for path in names.values()]
    near = difflib.get_close_matches(wanted, names, n=3) or difflib.get_close_matches(Path(wanted).name, stems, n=3)
    raise FileNotFoundError(
        f'{problem} (searched in {folder}; these are near: {", ".join(near) or "none"}); give the path of a config,'
        ' its name, or FRAMEWORK::NAME for one of an installed framework'
    )


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
