"""What can be said about a config before the training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .channels import check_channels
from .coco_json import CocoSummary, check_coco_json
from .data_sets import DataSet, find_data_sets
from .heads import check_num_classes
from .masks import check_masks
from .semantic_config import is_semantic, look_at_maps, reads_plain_maps
from .wording import listing

SPLITS = ('train', 'val', 'test')


def check_config(
    cfg: Mapping[str, Any],
    *,
    splits: Sequence[str] = ('train', 'val'),
    sample_images: int | None = 20,
    open_images: bool = False,
) -> list[CocoSummary]:
    """Check a detector's or segmentor's config and the data it names.

    The quick checks come first: how classes are written, numbers of classes, channels, files and folders; then each
    COCO annotation file is read (some ten seconds for COCO itself), and some label maps are opened.

    Args:
        cfg: An mmengine ``Config``. Its ``allow_class_subset=True`` accepts annotation files with more categories than
            the model is trained on.
        splits: Which data loaders to look at, of ``train``, ``val`` and ``test``.
        sample_images: How many pictures of each COCO data set to look for, and how many label maps of each semantic
            one to open; None takes all.
        open_images: Open every picture of the COCO data sets.

    Returns:
        list: What the COCO annotation files hold.

    Raises:
        ValueError: If something does not fit together; the message says what was seen, what is allowed, what to do.
        FileNotFoundError: If an annotation file, a folder or a picture is not there.
        TypeError: If ``cfg`` is not a config, or a setting in it of the wrong type.
    """
    if not hasattr(cfg, 'get') or isinstance(cfg, (str, Path)):
        raise TypeError(f'cfg must be an mmengine Config, but got {cfg!r}; use Config.fromfile(FILE)')
    unknown = [split for split in splits if split not in SPLITS]
    if isinstance(splits, str) or unknown:
        raise ValueError(f'splits must be some of {SPLITS}, but got {splits!r}')
    data_sets = find_data_sets(cfg, splits)
    model = cfg.get('model')
    if isinstance(model, Mapping):
        check_num_classes(model, data_sets)
        check_channels(model)
        check_masks(model, data_sets)
    for data_set in data_sets:
        _check_files(data_set)
    for data_set in data_sets:
        _check_maps(data_set, cfg.get('default_scope'), sample_images)
    summaries: dict[str, CocoSummary] = {}
    for data_set in data_sets:
        if data_set.is_coco and data_set.is_local:
            summaries[data_set.where] = _check_coco(
                data_set,
                subset=bool(cfg.get('allow_class_subset', False)),
                sample_images=sample_images,
                open_images=open_images,
            )
    for split in splits:
        of_split = [summaries[one.where] for one in data_sets if one.split == split and one.where in summaries]
        _check_evaluators(cfg.get(f'{split}_evaluator'), f'{split}_evaluator', of_split)
    return list(summaries.values())


def _check_files(data_set: DataSet) -> None:
    """Look for the annotation file and the folders of a data set."""
    if not data_set.is_local:
        return
    root = data_set.cfg.get('data_root')
    hint = f'data_root is {root!r}, from the folder {Path.cwd()}'
    ann_file = data_set.cfg.get('ann_file') or ()
    for name in (ann_file,) if isinstance(ann_file, str) else ann_file:
        path = data_set.path(name)
        if '://' not in name and not path.exists():
            near = sorted(found.name for found in path.parent.glob(f'*{path.suffix}')) if path.parent.is_dir() else []
            there = f'{path.parent} holds {listing(near)}' if near else f'there is no folder {path.parent}'
            if path.parent.is_dir() and not near:
                there = f'{path.parent} holds no {path.suffix} file'
            raise FileNotFoundError(
                f'{data_set.where}: annotation file {path} not found ({there}; {hint}); correct data_root or ann_file'
            )
    for key, prefix in (data_set.cfg.get('data_prefix') or {}).items():
        if not isinstance(prefix, str):
            raise TypeError(f'{data_set.where}.data_prefix[{key!r}] is {prefix!r}; it must be a folder as a string')
        path = data_set.path(prefix)
        if (root or prefix) and '://' not in prefix and not path.is_dir():
            what = 'image folder' if key in ('img', 'img_path') else f'{key} folder'
            raise FileNotFoundError(
                f'{data_set.where}: {what} {path} not found ({hint}); correct data_root or data_prefix, or put it there'
            )


def _check_maps(data_set: DataSet, scope: str | None, sample: int | None) -> None:
    """Open some label maps of a semantic data set; its test split may have none."""
    if data_set.split == 'test' or not data_set.is_local or not is_semantic(data_set) or not reads_plain_maps(data_set):
        return
    problems = look_at_maps(data_set, scope=scope or 'mmseg', sample=sample).sentences()
    if problems:
        raise ValueError(f'{data_set.where}: {"; ".join(problems)} (tools/data/check_semantic.py looks at all of them)')


def _check_coco(data_set: DataSet, *, subset: bool, sample_images: int | None, open_images: bool) -> CocoSummary:
    """Read a data set's annotation file."""
    ann_file = data_set.cfg.get('ann_file')
    if not isinstance(ann_file, str) or not ann_file:
        raise ValueError(f'{data_set.where}.ann_file is {ann_file!r}; {data_set.kind} needs an annotation file')
    prefix = data_set.cfg.get('data_prefix') or {}
    folder = prefix.get('img', prefix.get('img_path', ''))
    return check_coco_json(
        data_set.path(ann_file),
        data_set.classes,
        data_set.path(folder),
        sample_images=sample_images,
        open_images=open_images,
        allow_class_subset=subset,
        need_annotations=data_set.split != 'test',
        classes_from=data_set.classes_from,
    )


def _check_evaluators(evaluators: Any, where: str, summaries: Sequence[CocoSummary]) -> None:
    """Look for the annotation files of metrics: a wrong one shows only after the first epoch."""
    several = isinstance(evaluators, (list, tuple))
    for index, evaluator in enumerate(evaluators if several else [evaluators]):
        if not isinstance(evaluator, Mapping):
            continue
        place = f'{where}[{index}]' if several else where
        for key in ('ann_file', 'seg_prefix'):
            value = evaluator.get(key)
            if isinstance(value, str) and '://' not in value and not evaluator.get('backend_args'):
                path = Path(value)
                if not path.exists():
                    raise FileNotFoundError(
                        f'{place}.{key} {path} not found; it is not joined with data_root: write the whole path, as in '
                        f'{key}=data_root + ...'
                    )
        ann_file = evaluator.get('ann_file')
        if str(evaluator.get('type')).rsplit('.', 1)[-1] != 'CocoMetric' or not isinstance(ann_file, str):
            continue
        for summary in summaries:
            if Path(ann_file).is_file() and Path(ann_file).resolve() != summary.path.resolve():
                judged = check_coco_json(ann_file, need_annotations=False).image_ids
                stray = sorted(summary.image_ids - judged, key=str)
                if stray:
                    raise ValueError(
                        f'{place}.ann_file {ann_file} lacks {len(stray)} pictures of {summary.path} (image ids '
                        f'{listing(stray, limit=4)}), which the metric would fail on; point both to the same data'
                    )
