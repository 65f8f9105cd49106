"""The files and folders that a config's data are read from: what exists, how large it is, and how to provide it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import check_config
from .dataset_entries import SPLITS, find_datasets

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


@dataclass
class DataPath:
    """A path that a config reads.

    Attributes:
        path: The path; None where the data are not on this machine's disks.
        root: ``data_root`` of the dataset.
        splits: Those of ``train``, ``val`` and ``test`` that read it.
    """

    path: Path | None
    root: str | None
    splits: list[str] = field(default_factory=list)

    @property
    def is_missing(self) -> bool:
        """Whether it should exist and does not."""
        return self.path is not None and not self.path.exists()

    @property
    def content(self) -> str:
        """The size of a file, or the number of images in a folder at any depth."""
        if self.path is None:
            return 'remote'
        if self.is_missing:
            return 'missing'
        if self.path.is_file():
            return f'found, {self.path.stat().st_size / 1e6:.1f} MB'
        names = [name for _, _, names in os.walk(self.path, followlinks=True) for name in names]
        return f'found, {sum(name.lower().endswith(IMAGES) for name in names)} images'

    def fix(self, make_shapes: Path) -> str:
        """The command that puts data where the config looks for them.

        Args:
            make_shapes: The tool that generates the images of the quick start.
        """
        path = self.path
        if 'shapes' in path.parts and path.parts[:1] == ('data',):
            folder = Path(*path.parts[: path.parts.index('shapes') + 1])
            return shlex.join([sys.executable, str(make_shapes), '--out', str(folder)])
        # The highest folder that is missing, but not above data_root: the dataset is linked, or a part of it.
        while path.parent != path and not path.parent.exists() and path != Path(self.root or path):
            path = path.parent
        return f'mkdir -p {shlex.quote(str(path.parent))} && ln -s /WHERE/YOU/HAVE/IT {shlex.quote(str(path))}'


def find_data_paths(cfg: Mapping[str, Any]) -> list[DataPath]:
    """Find the annotation files and folders of a config's training, validation and test data.

    Args:
        cfg: The config.

    Returns:
        The paths in the order of the config, each once; one without a path for each dataset that is not local.

    Raises:
        ValueError, TypeError: If the datasets are not written as they must be.
    """
    found: list[DataPath] = []
    known: dict[Path, DataPath] = {}
    for dataset in find_datasets(cfg, SPLITS):
        root = dataset.cfg.get('data_root')
        if not dataset.is_local:
            found.append(DataPath(None, root, [dataset.split]))
            continue
        names = [dataset.ann_file] if dataset.ann_file else []
        names += [prefix for prefix in dataset.prefixes.values() if root or prefix]
        for name in names or ([''] if root else []):
            path = dataset.path(name)
            if '://' in name:
                continue
            if path not in known:
                known[path] = DataPath(path, root)
                found.append(known[path])
            known[path].splits.append(dataset.split)
    return found


def report_data(
    cfg: Mapping[str, Any], name: str, *, check_again: str, make_shapes: Path
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Look for the data of a config, then run the checks that the tools run before a training run.

    Args:
        cfg: The config.
        name: Its name, for messages.
        check_again: The command that shows what does not fit in detail.
        make_shapes: The tool that generates the images of the quick start.

    Returns:
        A row for each path (which data, content, path), and the problems: message and the command that fixes it.
    """
    try:
        paths = find_data_paths(cfg)
    except (ValueError, TypeError) as error:
        return [], [(str(error), check_again)]
    rows = []
    missing: dict[str, list[DataPath]] = {}  # by the command that provides them
    for one in paths:
        note = f'{one.root} is not checked' if one.path is None else str(one.path)
        rows.append((f'{one.splits[0]} data', one.content, note))
        if one.is_missing:
            missing.setdefault(one.fix(make_shapes), []).append(one)
    problems = []
    for fix, absent in missing.items():
        splits = ', '.join(split for split in SPLITS if any(split in one.splits for one in absent))
        names = ', '.join(str(one.path) for one in absent)
        problems.append((f'{name} needs {names} ({splits} data): not there', fix))
    incomplete = {split for absent in missing.values() for one in absent for split in one.splits}
    error = _misfit(cfg, SPLITS)
    if incomplete and isinstance(error, FileNotFoundError):  # named above; the other data may not fit either
        error = _misfit(cfg, [split for split in SPLITS if split not in incomplete])
    if error is not None:
        problems.append((' '.join(str(error).split())[:300], check_again))
    return rows or [('data', '', f'{name} names no dataset')], problems


def _misfit(cfg: Mapping[str, Any], splits: Sequence[str]) -> Exception | None:
    """What is wrong with the data of a config; None where nothing is."""
    try:
        check_config(cfg, splits=splits)
    except (ValueError, TypeError, OSError) as error:
        return error
    return None
