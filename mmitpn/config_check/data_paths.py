"""The files and folders that a config's datasets are read from: what exists, how large it is, and how to provide it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import SPLITS
from .dataset_entries import find_datasets

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
