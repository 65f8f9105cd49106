"""Whether a config and the data it names fit together, before the training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmitpn.config_types import is_type

from .classification import check_classification
from .coco import CocoSummary, check_coco_json, require_objects
from .dataset_entries import SPLITS, DataPath, DatasetEntry, find_data_paths, find_datasets
from .messages import files_near, format_list, numbered
from .model import check_channels, check_mask_loading, check_num_classes
from .semantic import check_label_maps, check_segmentation


def check_config(
    cfg: Mapping[str, Any],
    *,
    splits: Sequence[str] = ('train', 'val'),
    sample_images: int | None = 20,
    open_images: bool = False,
    allow_other_classes: bool = False,
) -> list[CocoSummary]:
    """Check the config of a detector, segmentor or classifier, and the data that it names.

    The quick checks come first: how classes are written, numbers of classes, channels, files and folders; then each
    COCO annotation file is read (some ten seconds for COCO itself), and some label maps are opened.

    Args:
        cfg: An mmengine ``Config``. Its ``allow_class_subset=True`` accepts annotation files with more categories than
            the model is trained on, its ``max_bad_boxes`` a fraction of bad boxes (see `check_coco_json`).
        splits: Which data loaders to look at, of ``train``, ``val`` and ``test``.
        sample_images: How many images of each COCO dataset to look for, and how many label maps of each semantic
            one to open; None takes all.
        open_images: Open every image of the COCO datasets.
        allow_other_classes: Accept another number of classes in the model than in the data, as far as each class of
            the model has an index in the data.

    Returns:
        list: What the COCO annotation files hold.

    Raises:
        ValueError: If something does not fit together; the message says what was seen, what is allowed, what to do.
        FileNotFoundError: If an annotation file, a folder or an image is not there.
        TypeError: If ``cfg`` is not a config, or a setting in it of the wrong type.
    """
    if not hasattr(cfg, 'get') or isinstance(cfg, (str, Path)):
        raise TypeError(f'cfg must be an mmengine Config, but got {cfg!r}; use Config.fromfile(FILE)')
    unknown = [split for split in splits if split not in SPLITS]
    if isinstance(splits, str) or unknown:
        raise ValueError(f'splits must be some of {SPLITS}, but got {splits!r}')
    datasets = find_datasets(cfg, splits)
    model = cfg.get('model')
    check_segmentation(cfg, datasets, sample=sample_images, allow_other_classes=allow_other_classes)
    if isinstance(model, Mapping):
        check_num_classes(model, datasets, allow_other_classes=allow_other_classes)
        check_channels(model, scope=cfg.get('default_scope'))
        check_mask_loading(model, datasets)
    for dataset in datasets:
        if dataset.is_local:
            _check_files(dataset)
    for dataset in datasets:
        check_label_maps(dataset, cfg, sample=sample_images)
    check_classification(cfg, datasets, sample=sample_images)
    summaries = {
        dataset.where: _check_coco(dataset, cfg, sample_images=sample_images, open_images=open_images)
        for dataset in datasets
        if dataset.is_coco and dataset.is_local
    }
    for split in splits:
        of_split = [summaries[one.where] for one in datasets if one.split == split and one.where in summaries]
        if split == 'train' and len(of_split) == sum(one.split == split for one in datasets):
            require_objects('train_dataloader', [summary.remainder for summary in of_split])
        for where, evaluator in numbered(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
            _check_evaluator_files(evaluator, where)
            _check_evaluated_images(evaluator, where, of_split)
    return list(summaries.values())


def _check_files(dataset: DatasetEntry) -> None:
    """Look for the annotation file, the folders and other files of a dataset."""
    root = dataset.cfg.get('data_root')
    hint = f'data_root is {root!r}, from the folder {Path.cwd()}'
    path = dataset.path(dataset.ann_file)
    if dataset.ann_file and '://' not in dataset.ann_file and not path.exists():
        raise FileNotFoundError(
            f'{dataset.where}: annotation file {path} not found ({files_near(path)}; {hint}); correct data_root or '
            'ann_file'
        )
    for key, prefix in dataset.prefixes.items():
        path = dataset.path(prefix)
        if (root or prefix) and '://' not in prefix and not path.is_dir():
            what = 'image folder' if key in ('img', 'img_path') else f'{key} folder'
            raise FileNotFoundError(
                f'{dataset.where}: {what} {path} not found ({hint}); correct data_root or data_prefix, or put it there'
            )
    for key, name in dataset.cfg.items():
        if key.endswith('_file') and key != 'ann_file' and isinstance(name, str) and '://' not in name:
            path = dataset.path(name)
            if not path.exists() and not Path(name).exists():
                raise FileNotFoundError(f'{dataset.where}: {key} {path} not found ({hint}); correct data_root or {key}')
    if root and not dataset.ann_file and not dataset.prefixes and not Path(root).exists():
        raise FileNotFoundError(f'{dataset.where}: {root} not found ({hint}); correct data_root, or put the data there')


def _check_coco(
    dataset: DatasetEntry, cfg: Mapping[str, Any], *, sample_images: int | None, open_images: bool
) -> CocoSummary:
    """Read a dataset's annotation file, for what the config uses it for."""
    ann_file = dataset.cfg.get('ann_file')
    if not isinstance(ann_file, str) or not ann_file:
        raise ValueError(f'{dataset.where}.ann_file is {ann_file!r}; {dataset.kind} needs an annotation file')
    prefix = dataset.cfg.get('data_prefix') or {}
    path = dataset.path(ann_file)
    evaluators = []
    if dataset.split != 'train':
        evaluators = [one for _, one in numbered(cfg.get(f'{dataset.split}_evaluator'), 'evaluator')]
    of_file = [one for one in evaluators if _reads(one) and Path(one['ann_file']).resolve() == path.resolve()]
    return check_coco_json(
        path,
        dataset.classes,
        dataset.path(prefix.get('img', prefix.get('img_path', ''))),
        sample_images=sample_images,
        open_images=open_images,
        allow_class_subset=bool(cfg.get('allow_class_subset', False)),
        max_bad_boxes=cfg.get('max_bad_boxes'),
        need_annotations=dataset.split != 'test',
        classes_from=dataset.classes_from,
        evaluation=bool(of_file),
        masks_read_by=f'{dataset.split}_evaluator (metric segm)' if any(map(_reads_masks, of_file)) else None,
        maps_evaluated=any(is_type(one, 'PanopticMetric', 'CocoPanopticMetric') for one in evaluators),
        dataset=dataset,
        scope=cfg.get('default_scope'),
    )


def _reads(evaluator: Mapping[str, Any]) -> bool:
    """Whether a metric compares predictions with an annotation file of its own."""
    known = is_type(evaluator, 'CocoMetric', 'CocoPanopticMetric')
    return known and isinstance(evaluator.get('ann_file'), str) and not evaluator.get('format_only')


def _reads_masks(evaluator: Mapping[str, Any]) -> bool:
    """Whether a metric compares masks of the annotation file."""
    metric = evaluator.get('metric', 'bbox')
    return is_type(evaluator, 'CocoMetric') and 'segm' in ([metric] if isinstance(metric, str) else metric)


def _check_evaluator_files(evaluator: Mapping[str, Any], where: str) -> None:
    """Look for the files of a metric: a wrong path would be found after the first epoch only."""
    for key, value in evaluator.items():
        read = key == 'seg_prefix' or (key.endswith('_file') and not key.startswith('out'))
        if read and isinstance(value, str) and '://' not in value and not evaluator.get('backend_args'):
            path = Path(value)
            if not path.exists():
                raise FileNotFoundError(
                    f'{where}.{key} {path} not found; it is not joined with data_root: write the whole path, as in '
                    f'{key}=data_root + ...'
                )


def _check_evaluated_images(evaluator: Mapping[str, Any], where: str, summaries: Sequence[CocoSummary]) -> None:
    """See that the annotation file of a CocoMetric has all images that are evaluated, if it is another file."""
    ann_file = evaluator.get('ann_file')
    if not is_type(evaluator, 'CocoMetric') or not isinstance(ann_file, str) or not Path(ann_file).is_file():
        return
    for summary in summaries:
        if Path(ann_file).resolve() == summary.path.resolve():
            continue
        judged = check_coco_json(
            ann_file,
            summary.classes,
            need_annotations=False,
            allow_class_subset=True,
            max_bad_boxes=1.0,
            classes_from=f'the dataset of {summary.path}',
            evaluation=_reads(evaluator),
            masks_read_by=f'{where} (metric segm)' if _reads_masks(evaluator) else None,
        ).image_ids
        stray = sorted(summary.image_ids - judged, key=str)
        if stray:
            raise ValueError(
                f'{where}.ann_file {ann_file} lacks {len(stray)} images of {summary.path} (image ids '
                f'{format_list(stray, limit=4)}), which the metric would fail on; point both to the same data'
            )


# --- the data report of the doctor ---


def report_data(
    cfg: Mapping[str, Any], name: str, *, check_again: str
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """Look for the data of a config, then run the checks that the tools run before a training run.

    Args:
        cfg: The config.
        name: Its name, for messages.
        check_again: The command that shows what does not fit in detail.

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
            missing.setdefault(one.fix(), []).append(one)
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
