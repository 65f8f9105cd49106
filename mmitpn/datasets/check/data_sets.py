"""The data sets of a config: where their files are, and the names of their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from .wording import as_tuple, listing

COCO_TYPES = ('CocoDataset', 'CocoPanopticDataset')


@dataclass(frozen=True)
class DataSet:
    """One data set of a config, without the wrappers around it.

    Args:
        where: Its place in the config, for messages.
        split: ``train``, ``val`` or ``test``.
        cfg: Its settings.
        kind: Name of its type, without scope.
        cls: Its class, or None where the host is not installed.
        classes: Names of its classes, or None where they are not known before it is built.
        things: Names of its thing classes, of a panoptic set.
        classes_from: Where the names come from, for messages.
    """

    where: str
    split: str
    cfg: Mapping[str, Any]
    kind: str
    cls: type | None
    classes: tuple[str, ...] | None
    things: tuple[str, ...] | None
    classes_from: str

    @property
    def is_coco(self) -> bool:
        """Whether it reads its annotation file as COCO's data sets do."""
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


def find_data_sets(cfg: Mapping[str, Any], splits: Sequence[str]) -> list[DataSet]:
    """Find the data sets of a config's data loaders.

    Args:
        cfg: The config.
        splits: Which of ``train``, ``val`` and ``test`` to look at.

    Returns:
        list: The data sets, those inside wrappers (``RepeatDataset``, ``ConcatDataset`` ...) one by one.

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
                found.append(_data_set(where, split, settings, scope))
    return found


def _unwrap(settings: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The data sets inside wrappers, each with its place in the config."""
    inner = settings.get('dataset')
    several = settings.get('datasets')
    if isinstance(inner, Mapping):
        yield from _unwrap(inner, f'{where}.dataset')
    elif isinstance(several, (list, tuple)):
        for index, one in enumerate(several):
            yield from _unwrap(one, f'{where}.datasets[{index}]')
    else:
        yield where, settings


def _data_set(where: str, split: str, settings: Mapping[str, Any], scope: str | None) -> DataSet:
    """Describe a data set, with its classes from its ``metainfo`` or its type."""
    given = settings.get('type')
    cls = given if isinstance(given, type) else _find_type(given, scope)
    kind = given.__name__ if isinstance(given, type) else str(given).rsplit('.', 1)[-1]
    metainfo = settings.get('metainfo') or {}
    if not isinstance(metainfo, Mapping):
        raise TypeError(f"{where}.metainfo is {metainfo!r}; write metainfo=dict(classes=('a', 'b'))")
    own = getattr(cls, 'METAINFO', {})
    names = {
        key: _names(metainfo[key], f'{where}.metainfo.{key}') if key in metainfo else _own_names(own, key)
        for key in ('classes', 'thing_classes')
    }
    classes_from = f'{where} (no metainfo.classes, so the classes of {kind} itself)'
    for place, holder in ((f'{where}.metainfo', metainfo), (where, settings)):
        if 'CLASSES' in holder:
            raise ValueError(f'{place}.CLASSES is not read by the hosts since their version 3; write metainfo.classes')
    if 'classes' in settings:
        raise ValueError(
            f'{where}.classes is not a setting of data sets; got {settings["classes"]!r}: write '
            f'metainfo=dict(classes={_suggested(settings["classes"])})'
        )
    if 'classes' in metainfo:
        classes_from = f'{where}.metainfo'
    return DataSet(
        where=where,
        split=split,
        cfg=settings,
        kind=kind,
        cls=cls,
        classes=names['classes'],
        things=names['thing_classes'],
        classes_from=classes_from,
    )


def _find_type(name: Any, scope: str | None) -> type | None:
    """The class a data set's type names, or None where its host is not installed."""
    if not isinstance(name, str):
        return None
    try:
        found = DATASETS.get(name if '.' in name or scope is None else f'{scope}.{name}') or DATASETS.get(name)
    except ImportError:
        return None
    return found if isinstance(found, type) else None


def _own_names(own: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
    """Names a type of data sets has itself. They are the host's business: ImageNet's name two classes alike."""
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
        raise ValueError(f'{where} must hold strings, but holds {listing(wrong)}; write names in quotes')
    twice = sorted({name for name in value if list(value).count(name) > 1})
    if twice:
        raise ValueError(f'{where} names {listing(twice)} more than once; each class needs its own name')
    if not value:
        raise ValueError(f'{where} is empty; name at least one class')
    return tuple(value)


def _suggested(value: Any) -> str:
    """A string or sequence of names as it should have been written."""
    return as_tuple((value,) if isinstance(value, str) else tuple(value))
