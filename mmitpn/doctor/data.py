"""Checks of the data that a config names: what is where, and how many images."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .found import Diagnosis, one_line, try_import
from .mend import ROOT

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def check_data(found: Diagnosis, config: str, options: Sequence[str]) -> None:
    """Look for the data that a config trains, validates and tests on, then run the checks that tools run before them.

    Args:
        found: Gets a row for each path, and a problem for each that is missing or does not fit.
        config: Config file, or HOST::NAME.
        options: Overrides, as ``a.b.c=1``.

    Raises:
        ValueError: If an override cannot be read.
        OSError: If the config is not there.
    """
    if try_import('mmengine') is not None or try_import('mmitpn.config_check') is not None:
        found.row('data', None, f'not looked at: {config} cannot be read before the problems below are mended')
        return
    from mmitpn.config_check.dataset_entries import SPLITS, find_datasets

    cfg = read(config, options)
    try:
        data_sets = find_datasets(cfg, SPLITS)
    except (ValueError, TypeError) as error:
        found.problem(str(error), _look_closer(config, options))
        return
    splits: dict[Path, list[str]] = {}  # of which a path is, in the order of the config
    missing: dict[str, list[Path]] = {}
    for data_set in data_sets:
        if not data_set.is_local:
            found.row(f'{data_set.split} data', 'remote', f'{data_set.cfg.get("data_root")} is not looked at')
            continue
        for path in _paths(data_set):
            known = path in splits
            splits.setdefault(path, []).append(data_set.split)
            if known:
                continue
            there = path.exists()
            found.row(f'{data_set.split} data', _contents(path) if there else 'missing', str(path))
            if not there:
                missing.setdefault(_mend(path, data_set.cfg.get('data_root')), []).append(path)
    for mend, paths in missing.items():
        wanting = [split for split in SPLITS if any(split in splits[path] for path in paths)]
        found.problem(f'{config} needs {", ".join(map(str, paths))} ({", ".join(wanting)} data): not there', mend)
    if not data_sets:
        found.row('data', None, f'{config} names no dataset')
    wanting = {split for paths in missing.values() for path in paths for split in splits[path]}
    error = _check(cfg, SPLITS)
    if wanting and isinstance(error, FileNotFoundError):  # named above; what else there is may not fit either
        error = _check(cfg, [split for split in SPLITS if split not in wanting])
    if error is not None:
        found.problem(one_line(error).partition(': ')[2], _look_closer(config, options))


def _check(cfg: Any, splits: Sequence[str]) -> Exception | None:
    """What is wrong with a config's data; None where nothing is."""
    from mmitpn.config_check import check_config

    try:
        check_config(cfg, splits=splits)
    except (ValueError, TypeError, OSError) as error:
        return error
    return None


def read(config: str, options: Sequence[str]) -> Any:
    """Read a config with overrides, as the tools do."""
    from mmengine.config import Config

    from mmitpn.engine.cfg_options import merge_options
    from mmitpn.engine.dict_action import DictAction
    from mmitpn.engine.host_configs import register_host_configs, resolve_config

    register_host_configs()
    cfg = Config.fromfile(resolve_config(config))
    if options:
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)
        merge_options(cfg, parser.parse_args(['--cfg-options', *options]).cfg_options)
    return cfg


def _paths(data_set: Any) -> list[Path]:
    """The annotation file and the folders that a dataset names."""
    root = data_set.cfg.get('data_root')
    names = [data_set.ann_file] if data_set.ann_file else []
    names += [prefix for prefix in data_set.prefixes.values() if root or prefix]
    names = names or ([''] if root else [])
    return [data_set.path(name) for name in names if '://' not in name]


def _contents(path: Path) -> str:
    """What is at a path: the size of a file, or how many images a folder holds, at any depth."""
    if path.is_file():
        return f'found, {path.stat().st_size / 1e6:.1f} MB'
    count = sum(name.lower().endswith(IMAGES) for _, _, names in os.walk(path, followlinks=True) for name in names)
    return f'found, {count} images'


def _mend(path: Path, root: str | None) -> str:
    """The command that puts data where a config looks for it."""
    if 'shapes' in path.parts and path.parts[:1] == ('data',):
        make = ROOT / 'tools/data/make_shapes.py'
        return shlex.join(
            [sys.executable, str(make), '--out', str(Path(*path.parts[: path.parts.index('shapes') + 1]))]
        )
    # The highest folder that is not there, but not above data_root: what is linked is the dataset, or a part of it.
    place = path
    while place.parent != place and not place.parent.exists() and place != Path(root or path):
        place = place.parent
    return f'mkdir -p {shlex.quote(str(place.parent))} && ln -s /WHERE/YOU/HAVE/IT {shlex.quote(str(place))}'


def _look_closer(config: str, options: Sequence[str]) -> str:
    """The command that shows the data of a config in detail."""
    words = [sys.executable, str(ROOT / 'tools/data/check_coco.py'), config]
    return shlex.join([*words, *(['--cfg-options', *options] if options else [])])
