"""What can be said about a config before the training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config_types import is_type
from .channels import check_channels
from .classification import check_classification
from .coco_dataset import require_objects
from .coco_json import CocoSummary, check_coco_json
from .data_sets import DataSet, find_data_sets
from .heads import check_num_classes
from .masks import check_masks
from .semantic_config import check_label_maps, check_segmentation
from .wording import listing

SPLITS = ('train', 'val', 'test')


def check_config(
    cfg: Mapping[str, Any],
    *,
    splits: Sequence[str] = ('train', 'val'),
    sample_images: int | None = 20,
    open_images: bool = False,
    allow_other_classes: bool = False,
) -> list[CocoSummary]:
    """Check a detector's or segmentor's config and the data it names.

    The quick checks come first: how classes are written, numbers of classes, channels, files and folders; then each
    COCO annotation file is read (some ten seconds for COCO itself), and some label maps are opened.

    Args:
        cfg: An mmengine ``Config``. Its ``allow_class_subset=True`` accepts annotation files with more categories than
            the model is trained on, its ``max_bad_boxes`` a fraction of bad boxes (see `check_coco_json`).
        splits: Which data loaders to look at, of ``train``, ``val`` and ``test``.
        sample_images: How many pictures of each COCO data set to look for, and how many label maps of each semantic
            one to open; None takes all.
        open_images: Open every picture of the COCO data sets.
        allow_other_classes: Accept another number of classes in the model than in the data, as far as each class of
            the model has an index in the data.

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
    check_segmentation(cfg, data_sets, sample=sample_images, allow_other_classes=allow_other_classes)
    if isinstance(model, Mapping):
        check_num_classes(model, data_sets, allow_other_classes=allow_other_classes)
        check_channels(model)
        check_masks(model, data_sets)
    for data_set in data_sets:
        _check_files(data_set)
    for data_set in data_sets:
        check_label_maps(data_set, cfg, sample=sample_images)
    check_classification(cfg, data_sets, sample=sample_images)
    summaries: dict[str, CocoSummary] = {}
    for data_set in data_sets:
        if data_set.is_coco and data_set.is_local:
            summaries[data_set.where] = _check_coco(data_set, cfg, sample_images=sample_images, open_images=open_images)
    for split in splits:
        of_split = [summaries[one.where] for one in data_sets if one.split == split and one.where in summaries]
        if split == 'train' and len(of_split) == sum(one.split == split for one in data_sets):
            require_objects('train_dataloader', [summary.remainder for summary in of_split])
        _check_evaluators(cfg.get(f'{split}_evaluator'), f'{split}_evaluator', of_split)
    return list(summaries.values())


def _check_files(data_set: DataSet) -> None:
    """Look for the annotation file and the folders of a data set."""
    if not data_set.is_local:
        return
    root = data_set.cfg.get('data_root')
    hint = f'data_root is {root!r}, from the folder {Path.cwd()}'
    path = data_set.path(data_set.ann_file)
    if data_set.ann_file and '://' not in data_set.ann_file and not path.exists():
        near = sorted(found.name for found in path.parent.glob(f'*{path.suffix}')) if path.parent.is_dir() else []
        there = f'{path.parent} holds {listing(near)}' if near else f'there is no folder {path.parent}'
        if path.parent.is_dir() and not near:
            there = f'{path.parent} holds no {path.suffix} file'
        raise FileNotFoundError(
            f'{data_set.where}: annotation file {path} not found ({there}; {hint}); correct data_root or ann_file'
        )
    for key, prefix in data_set.prefixes.items():
        path = data_set.path(prefix)
        if (root or prefix) and '://' not in prefix and not path.is_dir():
            what = 'image folder' if key in ('img', 'img_path') else f'{key} folder'
            raise FileNotFoundError(
                f'{data_set.where}: {what} {path} not found ({hint}); correct data_root or data_prefix, or put it there'
            )
    for key, name in data_set.cfg.items():
        if key.endswith('_file') and key != 'ann_file' and isinstance(name, str) and '://' not in name:
            path = data_set.path(name)
            if not path.exists() and not Path(name).exists():
                raise FileNotFoundError(
                    f'{data_set.where}: {key} {path} not found ({hint}); correct data_root or {key}'
                )
    if root and not data_set.ann_file and not data_set.prefixes and not Path(root).exists():
        raise FileNotFoundError(
            f'{data_set.where}: {root} not found ({hint}); correct data_root, or put the data there'
        )


def _check_coco(
    data_set: DataSet, cfg: Mapping[str, Any], *, sample_images: int | None, open_images: bool
) -> CocoSummary:
    """Read a dataset's annotation file, for what the config uses it for."""
    ann_file = data_set.cfg.get('ann_file')
    if not isinstance(ann_file, str) or not ann_file:
        raise ValueError(f'{data_set.where}.ann_file is {ann_file!r}; {data_set.kind} needs an annotation file')
    prefix = data_set.cfg.get('data_prefix') or {}
    folder = prefix.get('img', prefix.get('img_path', ''))
    path = data_set.path(ann_file)
    evaluators = [] if data_set.split == 'train' else _several(cfg.get(f'{data_set.split}_evaluator'))
    here = [one for one in evaluators if _reads(one) and Path(one['ann_file']).resolve() == path.resolve()]
    return check_coco_json(
        path,
        data_set.classes,
        data_set.path(folder),
        sample_images=sample_images,
        open_images=open_images,
        allow_class_subset=bool(cfg.get('allow_class_subset', False)),
        max_bad_boxes=cfg.get('max_bad_boxes'),
        need_annotations=data_set.split != 'test',
        classes_from=data_set.classes_from,
        evaluation=bool(here),
        masks_read_by=f'{data_set.split}_evaluator (metric segm)' if any(map(_reads_masks, here)) else None,
        maps_evaluated=any(is_type(one, 'PanopticMetric', 'CocoPanopticMetric') for one in evaluators),
        data_set=data_set,
        scope=cfg.get('default_scope'),
    )


def _several(evaluators: Any) -> list[Mapping[str, Any]]:
    """The configs of metrics: one, a list or none."""
    return [one for one in (evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]) if one]


def _reads(evaluator: Any) -> bool:
    """Whether a metric compares predictions with an annotation file of its own."""
    known = isinstance(evaluator, Mapping) and is_type(evaluator, 'CocoMetric', 'CocoPanopticMetric')
    return known and isinstance(evaluator.get('ann_file'), str) and not evaluator.get('format_only')


def _reads_masks(evaluator: Mapping[str, Any]) -> bool:
    """Whether a metric compares masks of the annotation file."""
    metric = evaluator.get('metric', 'bbox')
    return is_type(evaluator, 'CocoMetric') and 'segm' in ([metric] if isinstance(metric, str) else metric)


def _check_evaluators(evaluators: Any, where: str, summaries: Sequence[CocoSummary]) -> None:
    """Look for the annotation files of metrics: a wrong one shows only after the first epoch."""
    several = isinstance(evaluators, (list, tuple))
    for index, evaluator in enumerate(evaluators if several else [evaluators]):
        if not isinstance(evaluator, Mapping):
            continue
        place = f'{where}[{index}]' if several else where
        for key, value in evaluator.items():
            read = key == 'seg_prefix' or (key.endswith('_file') and not key.startswith('out'))
            if read and isinstance(value, str) and '://' not in value and not evaluator.get('backend_args'):
                path = Path(value)
                if not path.exists():
                    raise FileNotFoundError(
                        f'{place}.{key} {path} not found; it is not joined with data_root: write the whole path, as in '
                        f'{key}=data_root + ...'
                    )
        ann_file = evaluator.get('ann_file')
        if not is_type(evaluator, 'CocoMetric') or not isinstance(ann_file, str):
            continue
        for summary in summaries:
            if Path(ann_file).is_file() and Path(ann_file).resolve() != summary.path.resolve():
                judged = check_coco_json(
                    ann_file,
                    summary.classes,
                    need_annotations=False,
                    allow_class_subset=True,
                    max_bad_boxes=1.0,
                    classes_from=f'the dataset of {summary.path}',
                    evaluation=_reads(evaluator),
                    masks_read_by=f'{place} (metric segm)' if _reads_masks(evaluator) else None,
                ).image_ids
                stray = sorted(summary.image_ids - judged, key=str)
                if stray:
                    raise ValueError(
                        f'{place}.ann_file {ann_file} lacks {len(stray)} images of {summary.path} (image ids '
                        f'{listing(stray, limit=4)}), which the metric would fail on; point both to the same data'
                    )
