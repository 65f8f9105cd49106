"""The datasets of a config: where their files are, whether they exist, and the names of their classes."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from mmitpn.config_types import type_name
from mmitpn.utils import IMAGES, quiet_imports

from .messages import as_tuple, format_list

SPLITS = ('train', 'val', 'test')

COCO_TYPES = ('CocoDataset', 'CocoPanopticDataset')


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset of a config, without the wrappers around it.

    Args:
        where: Its position in the config, for messages.
        split: ``train``, ``val`` or ``test``.
        cfg: Its settings.
        kind: Name of its type, without scope.
        cls: Its class, or None where the framework is not installed.
        classes: Names of its classes, or None where they are not known before it is built.
        things: Names of its thing classes, of a panoptic dataset.
        classes_from: Where the names come from, for messages.
        ann_file: Its annotation file as its settings, or its type's own, name it; empty where there is none.
        prefixes: Its folders by name, likewise.
    """

    where: str
    split: str
    cfg: Mapping[str, Any]
    kind: str
    cls: type | None
    classes: tuple[str, ...] | None
    things: tuple[str, ...] | None
    classes_from: str
    ann_file: str
    prefixes: Mapping[str, str]

    @property
    def is_coco(self) -> bool:
        """Whether it reads its annotation file as mmdet's COCO datasets do."""
        if self.cls is None:
            return self.kind in COCO_TYPES
        readers = {base.__name__: base.__dict__.get('load_data_list') for base in self.cls.__mro__}
        coco = [readers[name] for name in COCO_TYPES if readers.get(name) is not None]
        return bool(coco) and self.cls.load_data_list in coco

    @property
    def is_local(self) -> bool:
        """Whether its files are on this machine's disks, as far as the config tells."""
        backend = (self.cfg.get('backend_args') or {}).get('backend', 'local')
        return backend in ('local', 'disk') and '://' not in str(self.cfg.get('data_root') or '')

    def path(self, value: str) -> Path:
        """A path as mmengine's ``BaseDataset`` joins it with ``data_root``."""
        return Path(self.cfg.get('data_root') or '', value)


def find_datasets(cfg: Mapping[str, Any], splits: Sequence[str]) -> list[DatasetEntry]:
    """Find the datasets of a config's data loaders.

    Args:
        cfg: The config.
        splits: Which of ``train``, ``val`` and ``test`` to look at.

    Returns:
        list: The datasets, those inside wrappers (``RepeatDataset``, ``ConcatDataset`` ...) one by one.

    Raises:
        ValueError: If the classes of one are not written as they must be.
        TypeError: If ``metainfo`` is no dict, or its classes neither a tuple, a list nor a file's name.
    """
    scope = cfg.get('default_scope')
    found = []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if isinstance(loader, Mapping) and isinstance(loader.get('dataset'), Mapping):
            for where, settings in _unwrap(loader['dataset'], f'{split}_dataloader.dataset'):
                found.append(_describe(where, split, settings, scope))
    return found


def _unwrap(settings: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The datasets inside wrappers, each with its position in the config."""
    inner = settings.get('dataset')
    several = settings.get('datasets')
    if isinstance(inner, Mapping):
        yield from _unwrap(inner, f'{where}.dataset')
    elif isinstance(several, (list, tuple)):
        for index, one in enumerate(several):
            yield from _unwrap(one, f'{where}.datasets[{index}]')
    else:
        yield where, settings


def _describe(where: str, split: str, settings: Mapping[str, Any], scope: str | None) -> DatasetEntry:
    """Describe a dataset, with its classes from its ``metainfo`` or its type."""
    given = settings.get('type')
    cls = given if isinstance(given, type) else _find_type(given, scope)
    kind = type_name(given)
    metainfo = settings.get('metainfo') or {}
    if not isinstance(metainfo, Mapping):
        raise TypeError(f"{where}.metainfo is {metainfo!r}; write metainfo=dict(classes=('a', 'b'))")
    own = getattr(cls, 'METAINFO', {})
    names = {
        key: _names(metainfo[key], f'{where}.metainfo.{key}') if key in metainfo else _own_names(own, key)
        for key in ('classes', 'thing_classes')
    }
    classes_from = f'{where} (no metainfo.classes, so the classes of {kind} itself)'
    for key, holder in ((f'{where}.metainfo', metainfo), (where, settings)):
        if 'CLASSES' in holder:
            raise ValueError(
                f'{key}.CLASSES is not read by mmdet, mmseg and mmpretrain since their versions 3 and 1; write '
                'metainfo.classes'
            )
    if 'classes' in metainfo:
        classes_from = f'{where}.metainfo'
    elif settings.get('classes') is not None and _takes(cls, 'classes'):
        names['classes'], classes_from = _names(settings['classes'], f'{where}.classes'), f'{where}.classes'
    if 'classes' in settings and not _takes(cls, 'classes'):
        raise ValueError(
            f'{where}.classes is not a setting of {kind}; got {settings["classes"]!r}: write '
            f'metainfo=dict(classes={_suggested(settings["classes"])})'
        )
    ann_file, prefixes = _paths(where, settings, cls, scope)
    return DatasetEntry(
        where=where,
        split=split,
        cfg=settings,
        kind=kind,
        cls=cls,
        classes=names['classes'],
        things=names['thing_classes'],
        classes_from=classes_from,
        ann_file=ann_file,
        prefixes=prefixes,
    )


def _paths(
    where: str, settings: Mapping[str, Any], cls: type | None, scope: str | None
) -> tuple[str, Mapping[str, str]]:
    """The annotation file and the folders of a dataset."""
    ann_file, prefixes = settings.get('ann_file') or '', settings.get('data_prefix') or {}
    if isinstance(ann_file, (list, tuple)):
        if cls is None or not issubclass(cls, BaseDataset):
            return '', {}  # a class of the user's own may read several
        _refuse_list(where, settings, ann_file)
    if not isinstance(ann_file, (str, Path)):
        raise TypeError(f'{where}.ann_file is {ann_file!r}; it must be the path of a file as a string')
    if isinstance(prefixes, (str, Path)):  # of mmpretrain
        prefixes = {'img_path': str(prefixes)}
    if not isinstance(prefixes, Mapping):
        raise TypeError(f"{where}.data_prefix is {prefixes!r}; write data_prefix=dict(img='FOLDER/')")
    wrong = next((key for key, prefix in prefixes.items() if not isinstance(prefix, (str, Path))), None)
    if wrong is not None:
        raise TypeError(f'{where}.data_prefix[{wrong!r}] is {prefixes[wrong]!r}; it must be a folder as a string')
    if settings.get('split') and not prefixes and _takes(cls, 'split'):
        return _of_split(settings, scope) or (str(ann_file), prefixes)
    return str(ann_file), {key: str(prefix) for key, prefix in prefixes.items()}


def _of_split(settings: Mapping[str, Any], scope: str | None) -> tuple[str, Mapping[str, str]] | None:
    """The paths that a type of mmpretrain derives from its ``split``, or None where it does not tell."""
    try:
        built = build_lazily(settings, scope)
    except (TypeError, ValueError, AssertionError, OSError):  # what is wrong is reported when it is built to be used
        return None
    if not isinstance(built, BaseDataset):
        return None
    root = str(settings.get('data_root') or '.')
    return os.path.relpath(built.ann_file, root) if built.ann_file else '', {
        key: os.path.relpath(prefix, root) for key, prefix in built.data_prefix.items()
    }


def build_lazily(settings: Mapping[str, Any], scope: str | None) -> Any:
    """Build a dataset without its pipeline, and without reading its annotations."""
    kept = {key: value for key, value in settings.items() if key not in ('pipeline', 'indices')}
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build({**kept, 'pipeline': [], 'lazy_init': True})


def _refuse_list(where: str, settings: Mapping[str, Any], files: Sequence[Any]) -> None:
    """Several annotation files are several datasets."""
    given = settings.get('type')
    kind = repr(given) if isinstance(given, str) else type_name(given)
    loader, *inner = where.split('.')
    each = ', '.join(f'dict(one, ann_file={str(file)!r})' for file in files)
    lines = f"dict(_delete_=True, type='ConcatDataset', datasets=[{each}])"
    if '[' in where:
        lines = f'in the place of {where} {lines}'
    else:
        for key in reversed(inner):
            lines = f'dict({key}={lines})'
        lines = f'{loader} = {lines}'
    metric = '' if loader == 'train_dataloader' else '; the metric reads one file: to evaluate, join them into one'
    raise ValueError(
        f'{where}.ann_file is a list of {len(files)} files, but a dataset reads one: write one = dict(type={kind}, '
        f'...) with its other settings (data_root, data_prefix, metainfo, pipeline), and {lines}{metric}'
    )


def _takes(cls: type | None, name: str) -> bool:
    """Whether a class, or one it is derived from, has an argument of this name."""
    return cls is not None and any(
        name in inspect.signature(base.__init__).parameters for base in cls.__mro__ if '__init__' in vars(base)
    )


def _find_type(name: Any, scope: str | None) -> type | None:
    """The class a dataset's type names, or None where its framework is not installed."""
    if not isinstance(name, str):
        return None
    try:
        with quiet_imports():  # of the framework's datasets
            found = DATASETS.get(name if '.' in name or scope is None else f'{scope}.{name}') or DATASETS.get(name)
    except ImportError:
        return None
    return found if isinstance(found, type) else None


def _own_names(own: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    """Names that a type of datasets has itself; they are not checked, since ImageNet's name two classes alike."""
    return tuple(own[key]) if isinstance(own.get(key), (list, tuple)) else None


def _names(value: Any, where: str) -> tuple[str, ...] | None:
    """Check a setting that lists classes; a string must be a file with a name in each line, as mmengine reads it."""
    if value is None:
        return None
    if isinstance(value, str):
        if not Path(value).is_file():
            raise ValueError(
                f'{where} is the string {value!r}, which would be read letter by letter; it must be a tuple or list of '
                f'names (one name needs a comma: {_suggested(value)}), or a file with a name in each line'
            )
        value = Path(value).read_text(encoding='utf-8').splitlines()
    if not isinstance(value, (list, tuple)):
        raise TypeError(f'{where} is {value!r}; it must be a tuple or list of names')
    wrong = [name for name in value if not isinstance(name, str)]
    if wrong:
        raise ValueError(f'{where} must hold strings, but holds {format_list(wrong)}; write names in quotes')
    twice = sorted({name for name in value if list(value).count(name) > 1})
    if twice:
        raise ValueError(f'{where} names {format_list(twice)} more than once; each class needs its own name')
    if not value:
        raise ValueError(f'{where} is empty; name at least one class')
    return tuple(value)


def _suggested(value: Any) -> str:
    """A string or sequence of names as it should have been written."""
    return as_tuple((value,) if isinstance(value, str) else tuple(value))


# --- the files and folders that they read ---


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

    def fix(self) -> str:
        """The command that puts data where the config looks for them."""
        path = self.path
        if 'shapes' in path.parts and path.parts[:1] == ('data',):
            folder = Path(*path.parts[: path.parts.index('shapes') + 1])
            return shlex.join([sys.executable, '-m', 'mmitpn', 'data', 'shapes', '--out', str(folder)])
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
