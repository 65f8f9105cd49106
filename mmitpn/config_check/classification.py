"""The classification datasets of a config (mmpretrain): labels, class folders, images, and what the metrics need."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.fileio import get_file_backend, list_from_file
from mmengine.logging import print_log

from mmitpn.config_types import is_type
from mmitpn.utils import evenly_spaced, is_int

from .dataset_entries import DatasetEntry, build_lazily
from .images import build_image_loader
from .messages import as_tuple, format_list, numbered


@dataclass
class ClassificationSummary:
    """Content of a classification dataset.

    Args:
        where: Its position in the config.
        split: ``train``, ``val`` or ``test``.
        names: Names of its classes, as far as they are known.
        folders: Names of its class folders in the order of their labels; None with an annotation file.
        labels: Images of each label; of class folders, 1 for each that holds images.
        images: Some of its images, evenly spaced.
    """

    where: str
    split: str
    names: tuple[str, ...] | None = None
    folders: tuple[str, ...] | None = None
    labels: Counter[int] = field(default_factory=Counter)
    images: list[str] = field(default_factory=list)


def is_classification(dataset: DatasetEntry) -> bool:
    """Whether it is a dataset of mmpretrain whose samples this module knows to read: folders, lines or JSON."""
    return dataset.cls is not None and _reader(dataset.cls) is not None


def check_classification(
    cfg: Mapping[str, Any], datasets: Sequence[DatasetEntry], *, sample: int | None = 20
) -> list[ClassificationSummary]:
    """Check the classification datasets of a config.

    Annotation files are read whole; of class folders the first image of each; some images are opened.

    Args:
        cfg: An mmengine ``Config``.
        datasets: Its datasets, of the splits that are used.
        sample: How many images of each dataset to open; None opens all that are known.

    Returns:
        What each of them holds. A class without images is a warning in the log.

    Raises:
        ValueError: If there is nothing to train on, a label has no class, lines or fields are not those that
            mmpretrain reads, class folders differ between splits, or a metric needs more classes than there are.
        FileNotFoundError: If images are missing.
    """
    found = [dataset for dataset in datasets if is_classification(dataset) and dataset.is_local]
    if not found:
        return []
    head = (cfg.get('model') or {}).get('head')
    number = head.get('num_classes') if isinstance(head, Mapping) else None
    number = number if isinstance(number, int) else None
    _check_numbers(cfg, number, {dataset.split for dataset in found})
    summaries = []
    for dataset in found:
        evaluated = dataset.split != 'train' and bool(cfg.get(f'{dataset.split}_evaluator'))
        needed = number is not None and (dataset.split == 'train' or evaluated)
        summary = _read(dataset, cfg.get('default_scope') or 'mmpretrain', needed=needed, sample=sample)
        if needed:
            _check_labels(summary, number)
        _open_images(dataset, summary, cfg.get('default_scope') or 'mmpretrain')
        summaries.append(summary)
    if number is not None:
        _compare_folders(summaries)
    return summaries


def _reader(cls: type) -> str | None:
    """How a class reads its samples: ``custom`` (folders or lines), ``json``, or None for a way of its own."""
    names = {(base.__module__.partition('.')[0], base.__name__): base for base in cls.__mro__}
    own = names.get(('mmpretrain', 'BaseDataset'))
    custom = names.get(('mmpretrain', 'CustomDataset'))
    if own is None or not issubclass(cls, BaseDataset):
        return None
    if custom is not None and cls.load_data_list is custom.load_data_list:
        return 'custom'
    plain = cls.load_data_list is BaseDataset.load_data_list and cls.parse_data_info is BaseDataset.parse_data_info
    return 'json' if plain else None


def _read(dataset: DatasetEntry, scope: str, *, needed: bool, sample: int | None) -> ClassificationSummary:
    """Read labels and paths as mmpretrain does; ``needed`` says that labels are used."""
    try:
        built = build_lazily(dataset.cfg, scope)
    except AssertionError as error:
        raise ValueError(f'{dataset.where}: {dataset.kind} cannot be built: {error}') from error
    summary = ClassificationSummary(dataset.where, dataset.split, built.CLASSES)
    if _reader(dataset.cls) == 'json':
        _read_json(built, summary, needed=needed, sample=sample)
        return summary
    if needed and not built.with_label:
        raise ValueError(
            f'{dataset.where} reads no labels (with_label=False'
            f'{", as of ImageNet with split=test" if dataset.cfg.get("split") == "test" else ""}), but '
            f'{"the head learns from them" if dataset.split == "train" else f"{dataset.split}_evaluator does"}; use '
            'data with labels'
        )
    if built.ann_file:
        _read_lines(built, summary, sample=sample)
    else:
        _read_folders(built, summary, sample=sample)
    return summary


def _read_lines(built: Any, summary: ClassificationSummary, *, sample: int | None) -> None:
    """Lines of an annotation file: a path, a space and a label; without labels the path only."""
    lines = list_from_file(built.ann_file)
    wrong, paths = [], []
    for index, line in enumerate(lines, start=1):
        path, label = line, None
        if built.with_label:
            path, _, label = line.strip().rpartition(' ')
            try:
                summary.labels[int(label)] += 1
            except ValueError:
                wrong.append(f'line {index}: {line!r}')
                continue
            if not path:
                wrong.append(f'line {index}: {line!r}')
                continue
        paths.append(path)
    if wrong:
        raise ValueError(
            f'{summary.where}: {len(wrong)} of {len(lines)} lines of {built.ann_file} are not "PATH LABEL", a path, '
            f'one space and the index of a class from 0: {format_list(wrong, limit=3)}; correct them (no empty line, '
            'no comma or tab, no class name)'
        )
    if not paths:
        raise ValueError(f'{summary.where}: {built.ann_file} names no images')
    summary.images = [
        get_file_backend(built.img_prefix).join_path(built.img_prefix, path) for path in evenly_spaced(paths, sample)
    ]


def _read_folders(built: Any, summary: ClassificationSummary, *, sample: int | None) -> None:
    """A folder for each class, or, without labels, a folder of images."""
    from mmpretrain.datasets.custom import find_folders

    root, backend = built.img_prefix, get_file_backend(built.img_prefix)
    hint = f'extensions={as_tuple(sorted(built.extensions))}'
    if not built.with_label:
        first = _first_image(built, backend, root)
        if first is None:
            raise ValueError(f'{summary.where}: {root} holds no images ({hint}); correct data_root or data_prefix')
        summary.images = [first]
        return
    folders, _ = find_folders(root)
    summary.folders = tuple(folders)
    firsts = [_first_image(built, backend, backend.join_path(root, folder)) for folder in folders]
    if not any(firsts):
        files = sorted({Path(path).suffix for path in backend.list_dir_or_file(root, list_dir=False, recursive=True)})
        there = f'files with {format_list(files)}' if files else 'no files'
        raise ValueError(
            f'{summary.where}: {root} holds no images in a folder for each class, but {len(folders)} folders and '
            f'{there} ({hint}); put the images of each class into a folder of its name, or set ann_file, data_prefix '
            'or extensions'
        )
    names = summary.names
    if names is not None and len(names) != len(folders):
        differ = sorted(set(names) ^ set(folders)) if set(names) & set(folders) else folders
        raise ValueError(
            f'{summary.where}: {root} holds {len(folders)} class folders, but there are {len(names)} classes '
            f'({format_list(differ, limit=5)} differ); make a folder for each class (it may be empty), or name the '
            'classes in metainfo.classes'
        )
    if names is not None and set(names) == set(folders) and list(names) != folders:
        _warn(
            f'{summary.where}: labels are numbered by the sorted folders {as_tuple(folders)}, but metainfo.classes '
            f'has the order {as_tuple(names)}: results would bear the wrong names; use the order of the folders'
        )
    summary.names = names or summary.folders
    summary.labels.update(label for label, first in enumerate(firsts) if first is not None)
    empty = [folder for folder, first in zip(folders, firsts, strict=True) if first is None]
    if empty:
        _warn(
            f'{summary.where}: {len(empty)} of {len(folders)} class folders hold no images ({hint}): '
            f'{format_list(empty)}'
        )
    summary.images = evenly_spaced([first for first in firsts if first is not None], sample)


def _first_image(built: Any, backend: Any, folder: str) -> str | None:
    """The first image in a folder and the folders inside it, as mmpretrain finds it."""
    files = backend.list_dir_or_file(folder, list_dir=False, list_file=True, recursive=True)
    first = next((file for file in files if built.is_valid_file(file)), None)
    return None if first is None else backend.join_path(folder, first)


def _read_json(built: Any, summary: ClassificationSummary, *, needed: bool, sample: int | None) -> None:
    """A JSON file of mmengine's format: ``metainfo`` and ``data_list`` of ``img_path`` and ``gt_label``."""
    try:
        infos = built.load_data_list()
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{summary.where}: {built.ann_file} cannot be read: {error}; it must hold metainfo and data_list, a list '
            'of entries with img_path and gt_label'
        ) from error
    if not infos:
        raise ValueError(f'{summary.where}: {built.ann_file} names no images')
    summary.names = built.CLASSES
    wrong = []
    for index, info in enumerate(infos):
        label = info.get('gt_label')
        several = label if isinstance(label, (list, tuple)) else [label]
        if any(not is_int(one) for one in several):
            wrong.append(f'data_list[{index}].gt_label is {label!r}')
            continue
        summary.labels.update(several)
    scored = [info for info in infos if 'gt_label' not in info and 'gt_score' in info]
    if wrong and needed and len(scored) < len(infos):
        raise ValueError(
            f'{summary.where}: {len(wrong)} of {len(infos)} entries of {built.ann_file} have no index of a class, or '
            f'list of them, as gt_label: {format_list(wrong, limit=3)}'
        )
    summary.images = evenly_spaced([str(info['img_path']) for info in infos if 'img_path' in info], sample)


def _check_labels(summary: ClassificationSummary, number: int) -> None:
    """Compare labels with the number of classes of the head."""
    strange = sorted(label for label in summary.labels if not 0 <= label < number)
    if strange:
        low, high = min(summary.labels), max(summary.labels)
        images = sum(summary.labels[label] for label in strange)
        what = (
            f'{images} images have labels' if summary.folders is None else f'{len(strange)} class folders have labels'
        )
        advice = f'set model.head.num_classes={high + 1}' if low >= 0 else 'correct the labels'
        if low == 1 and high == number:
            advice = 'labels begin with 0: subtract 1 from each'
        raise ValueError(
            f'{summary.where}: {what} without a class ({format_list(strange, limit=5)}; '
            f'model.head.num_classes={number} allows 0 to {number - 1}); {advice}'
        )
    if summary.split != 'train' or not summary.labels:
        return
    if number > 1 and len(summary.labels) == 1:
        label = next(iter(summary.labels))
        name = summary.names[label] if summary.names is not None and label < len(summary.names) else label
        raise ValueError(
            f'{summary.where}: all images have one label, {name!r}, of {number} classes, so that there is nothing to '
            'learn; add images of the others'
        )
    missing = [label for label in range(number) if label not in summary.labels]
    if missing and summary.folders is None:
        _warn(f'{summary.where}: {len(missing)} of {number} classes have no images: labels {format_list(missing)}')


def _open_images(dataset: DatasetEntry, summary: ClassificationSummary, scope: str) -> None:
    """Load some images as the pipeline does."""
    local = [path for path in summary.images if '://' not in path]
    missing = [path for path in local if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(
            f'{dataset.where}: {len(missing)} of {len(local)} images looked for are missing: '
            f'{format_list(missing, limit=3)}; correct data_root, data_prefix or the paths in ann_file'
        )
    loader = build_image_loader(dataset.cfg.get('pipeline'), scope=scope)
    broken = []
    for path in local if loader is not None else ():
        try:
            loader.size(path)
        except OSError:
            broken.append(path)
    if broken:
        raise ValueError(
            f'{dataset.where}: {len(broken)} of {len(local)} images looked at cannot be read by {loader.name}: '
            f'{format_list(broken, limit=3)}; replace or remove them'
        )


def _compare_folders(summaries: Iterable[ClassificationSummary]) -> None:
    """Labels are the indices of sorted folders: a folder that one split lacks moves all that follow."""
    by_folder = [summary for summary in summaries if summary.folders is not None]
    for other in by_folder[1:]:
        first = by_folder[0]
        index = {folder: label for label, folder in enumerate(first.folders)}
        moved = [folder for label, folder in enumerate(other.folders) if index.get(folder) != label]
        if moved:
            lacking = sorted(set(first.folders) - set(other.folders))
            extra = sorted(set(other.folders) - set(first.folders))
            text = '; '.join(
                f'{one.where} lacks {format_list(names, limit=5)}'
                for one, names in ((other, lacking), (first, extra))
                if names
            )
            raise ValueError(
                f'{first.where} and {other.where} have different class folders, so that {format_list(moved, limit=3)} '
                f'would have other labels: {text}; make the folders that are missing (they may be empty), or correct '
                'their names'
            )


def _check_numbers(cfg: Mapping[str, Any], number: int | None, splits: set[str]) -> None:
    """Settings that depend on the number of classes: of the metrics, of mixed labels."""
    if number is None:
        return
    for split in sorted(splits & {'val', 'test'}):
        for where, one in numbered(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
            _check_topk(one, where, number)
    model = cfg['model']
    if 'train' in splits:
        _check_topk(model['head'], 'model.head', number, kind=None)
        mixed = (cfg.get('data_preprocessor') or model.get('data_preprocessor') or {}).get('num_classes')
        augments = (model.get('train_cfg') or {}).get('augments')
        if augments and isinstance(mixed, int) and mixed != number:
            raise ValueError(
                f'data_preprocessor.num_classes is {mixed}, but model.head.num_classes {number}: the labels that '
                f'{" and ".join(str(one.get("type")) for one in augments)} mix would not fit; set both to the number '
                'of classes'
            )


def _check_topk(part: Any, where: str, number: int, *, kind: str | None = 'Accuracy') -> None:
    """The best 5 of 3 classes cannot be asked for; mmpretrain stops when it computes them."""
    if not isinstance(part, Mapping) or (kind is not None and not is_type(part, kind)):
        return
    topk = part.get('topk')
    if kind is None and not part.get('cal_acc', False):
        return
    largest = max(topk) if isinstance(topk, (list, tuple)) and topk else topk
    if isinstance(largest, int) and largest > number:
        fitting = [k for k in (topk if isinstance(topk, (list, tuple)) else [topk]) if k <= number]
        raise ValueError(
            f'{where}.topk is {topk}, but model.head has {number} classes, on which mmpretrain stops at the first '
            f'evaluation; set {where}.topk={as_tuple(fitting or [1]).replace(" ", "")}'
        )


def _warn(text: str) -> None:
    print_log(text, 'current', logging.WARNING)
