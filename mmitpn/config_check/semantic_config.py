"""The semantic datasets of a config."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS, DefaultScope

from mmitpn.config_types import is_type, type_name
from mmitpn.utils import evenly_spaced

from .dataset_entries import SPLITS, DatasetEntry, find_datasets
from .images import build_image_loader
from .messages import format_list, numbered, quoted
from .model import (
    check_segmentor_heads,
    compares_labels,
    one_class_reason,
    segmentor_heads,
    two_class_options,
)
from .semantic import (
    FIX,
    IGNORED,
    LabelLoader,
    SemanticSummary,
    build_label_loader,
    check_semantic,
    count_labels,
    judge_labels,
    plan_repair,
    undecided,
)

SEARCHED = 1000
"""Label maps opened at most before a run is refused because of what a sample of them shows."""
META_KEYS = {
    'mmseg': ('ori_shape', 'img_shape'),
    'CityscapesMetric': ('img_path', 'seg_map_path'),
}
"""What mmseg reads of each evaluated image: always, and for a metric."""

Progress = Callable[[Sequence[int], str], Iterable[int]]


def is_semantic(dataset: DatasetEntry) -> bool:
    """Whether it is one of mmseg's datasets of images with label maps."""
    return dataset.cls is not None and any(base.__name__ == 'BaseSegDataset' for base in dataset.cls.__mro__)


def check_segmentation(
    cfg: Mapping[str, Any],
    datasets: Sequence[DatasetEntry],
    *,
    sample: int | None = 20,
    allow_other_classes: bool = False,
) -> None:
    """Check the heads of a segmentor and what its pipelines load, before numbers of classes are compared.

    Args:
        cfg: An mmengine ``Config``.
        datasets: Its datasets, of the splits that are used.
        sample: How many label maps to open where the message depends on them; None takes all.
        allow_other_classes: Accept another number of classes in the model than in the data.

    Raises:
        ValueError: If a head cannot learn, a single class has no background, or an evaluation lacks label maps.
    """
    found = [dataset for dataset in datasets if is_semantic(dataset)]
    if not found:
        return
    model = cfg.get('model')
    if isinstance(model, Mapping):
        check_segmentor_heads(model)
    for dataset in found:
        _check_fields(cfg, dataset)
    for dataset in () if allow_other_classes else found:
        text = one_class_problem(cfg, dataset, sample=sample)
        if text:
            raise ValueError(text)


def check_label_maps(dataset: DatasetEntry, cfg: Mapping[str, Any], *, sample: int | None = 20) -> None:
    """Open some label maps of a dataset before a run, if it is a semantic one whose pipeline loads them.

    Args:
        dataset: A dataset of the config.
        cfg: The config.
        sample: How many to open; None takes all.

    Raises:
        ValueError: If files are broken, or their labels do not fit or leave nothing to learn.
        FileNotFoundError: If a folder is not there.
    """
    scope = cfg.get('default_scope') or 'mmseg'
    if not dataset.is_local or not is_semantic(dataset):
        return
    if build_label_loader(dataset.cfg.get('pipeline'), scope=scope) is None:
        return
    problems = scan_label_maps(dataset, cfg, sample=sample).sentences()
    if problems:
        raise ValueError(f'{dataset.where}: {"; ".join(problems)} (tools/data/check_semantic.py looks at all of them)')


def check_semantic_config(
    cfg: Mapping[str, Any],
    *,
    splits: Sequence[str] = ('train', 'val'),
    sample: int | None = None,
    progress: Progress | None = None,
) -> list[SemanticSummary]:
    """Open images and label maps of a config's semantic datasets.

    Args:
        cfg: An mmengine ``Config``.
        splits: Which data loaders to look at, of ``train``, ``val`` and ``test``.
        sample: How many images of each, evenly spaced; None looks at all.
        progress: Wraps the indices to go through and a name, to show progress.

    Returns:
        One summary for each dataset; broken files are in them.

    Raises:
        ValueError: If the config has no such dataset, or one without images, or its settings contradict each other.
        FileNotFoundError: If a folder is not there.
    """
    found = [dataset for dataset in find_datasets(cfg, splits) if is_semantic(dataset)]
    if not found:
        raise ValueError(
            f"the config's {' and '.join(splits)} dataloaders hold no semantic dataset (of mmseg); "
            'for boxes and masks see tools/data/check_coco.py'
        )
    if isinstance(cfg.get('model'), Mapping):
        check_segmentor_heads(cfg['model'])
    summaries = []
    for dataset in found:
        _check_fields(cfg, dataset)
        summary = scan_label_maps(dataset, cfg, sample=sample, progress=progress)
        text = one_class_problem(cfg, dataset, summary)
        if text:
            summary.problems.clear()
            summary.problems[text] = []
        summaries.append(summary)
    return summaries


def scan_label_maps(
    dataset: DatasetEntry, cfg: Mapping[str, Any], *, sample: int | None = None, progress: Progress | None = None
) -> SemanticSummary:
    """Open images and label maps of one semantic dataset.

    Args:
        dataset: The dataset.
        cfg: Its config, for the scope and the ignored label.
        sample: How many images, evenly spaced; None looks at all. Where these say that there is nothing to learn, more
            label maps are opened, up to 1000, until one says otherwise.
        progress: Wraps the indices to go through and a name, to show progress.

    Returns:
        The counts, problems and warnings.

    Raises:
        ValueError: If it has no images, or its settings contradict each other.
        FileNotFoundError: If a folder is not there.
    """
    scope = cfg.get('default_scope') or 'mmseg'
    built = build_semantic(dataset, scope)
    labels = build_label_loader(dataset.cfg.get('pipeline'), scope=scope, default=True)
    _check_reduce_zero_label(dataset, built, labels)
    summary = SemanticSummary(
        dataset.where,
        _classes(cfg, dataset, built),
        ignored_label=_ignored_label(cfg),
        reduce_zero_label=bool(built.reduce_zero_label),
        label_map=len(built.label_map or ()),
    )
    chosen = evenly_spaced(range(len(built)), sample)
    images = build_image_loader(dataset.cfg.get('pipeline'), scope=scope)
    check_semantic(summary, built, labels, images, indices=progress(chosen, dataset.where) if progress else chosen)
    if labels is not None:
        if not summary.problems:
            _search_further(summary, built, labels, sorted(set(range(len(built))) - set(chosen)))
        judge_labels(summary, train=dataset.split == 'train')
    return summary


def _search_further(summary: SemanticSummary, built: Any, labels: LabelLoader, rest: Sequence[int]) -> None:
    """Count labels of more images, evenly spaced, as long as those seen so far may mislead."""
    step = max(1, -(-len(rest) // SEARCHED))
    for index in rest[::step]:
        if not undecided(summary):
            break
        count_labels(summary, built.get_data_info(index), labels)


def one_class_problem(
    cfg: Mapping[str, Any],
    dataset: DatasetEntry,
    summary: SemanticSummary | None = None,
    *,
    sample: int | None = 20,
) -> str | None:
    """What to set where a semantic dataset has a single class that the config cannot learn or evaluate.

    Args:
        cfg: The config.
        dataset: The dataset.
        summary: What its label maps hold; None opens some of them.
        sample: How many to open.

    Returns:
        The problem and the settings, or None.
    """
    reason = one_class_reason(cfg, dataset)
    if reason is None:
        return None
    values: set[int] = set()
    if summary is not None:
        values = summary.stored_values
    elif dataset.is_local:
        try:
            values = scan_label_maps(dataset, cfg, sample=sample).stored_values
        except (ValueError, TypeError, OSError):
            values = set()  # files that are not there are reported after the settings
    text = f'{dataset.where} has one class, {dataset.classes[0]!r} (from {dataset.classes_from}), but {reason}'
    if plan_repair(values, 2) is not None:
        held = format_list(sorted(values), limit=4)
        return (
            f'{text}; the label maps hold the values {held}: {FIX} writes maps of 0 (background) and 1, and prints the '
            'settings that train on them'
        )
    zero = not values or max(values - {IGNORED}, default=0) <= 1
    options = two_class_options(cfg, find_datasets(cfg, SPLITS), zero_is_background=zero)
    return (
        f'{text}; give the pixels around it a name too, as the first class: --cfg-options '
        f'{" ".join(map(quoted, options))}'
    )


def build_semantic(dataset: DatasetEntry, scope: str) -> Any:
    """Build a semantic dataset without its pipeline.

    Args:
        dataset: The dataset.
        scope: The config's ``default_scope``.

    Returns:
        The built ``BaseSegDataset``, with at least one image.

    Raises:
        ValueError: If it cannot be built, or has no images.
        FileNotFoundError: If a folder is not there.
    """
    settings = {key: value for key, value in dataset.cfg.items() if key != 'pipeline'}
    settings.update(pipeline=[], serialize_data=False, lazy_init=False, test_mode=False)
    hint = f'data_root is {dataset.cfg.get("data_root")!r}, from the folder {Path.cwd()}'
    try:
        with DefaultScope.overwrite_default_scope(scope):
            built = DATASETS.build(settings)
    except AssertionError as error:
        raise ValueError(f'{dataset.where}: {dataset.kind} cannot be built: {error} ({hint})') from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{dataset.where}: {error.filename} not found ({hint}); correct data_root, data_prefix or ann_file'
        ) from error
    if not len(built):
        suffix, folder = built.img_suffix, Path(built.data_prefix.get('img_path') or '')
        others = sorted({path.suffix for path in folder.rglob('*') if path.is_file()}) if folder.is_dir() else []
        there = f'{folder} holds files with {format_list(others)}' if others else f'{folder} holds no files'
        raise ValueError(
            f'{dataset.where}: no images found with img_suffix={suffix!r}: {there} ({hint}); correct img_suffix (and '
            'seg_map_suffix), data_root, data_prefix or ann_file'
        )
    return built


def _check_reduce_zero_label(dataset: DatasetEntry, built: Any, labels: LabelLoader | None) -> None:
    """The dataset and the loading transform may each say what label 0 is; mmseg stops where they disagree."""
    of_loader = None if labels is None else labels.reduce_zero_label
    if of_loader is not None and bool(of_loader) != bool(built.reduce_zero_label):
        given = 'reduce_zero_label' in dataset.cfg
        source = '' if given else f', the default of {dataset.kind}'
        raise ValueError(
            f'{dataset.where}.reduce_zero_label is {built.reduce_zero_label}{source}, but {labels.name} in its '
            f'pipeline has reduce_zero_label={of_loader}, on which mmseg stops: leave it out there, and set '
            f'{dataset.where}.reduce_zero_label to True if label 0 means "no class", to False if it is the first class'
        )


def _check_fields(cfg: Mapping[str, Any], dataset: DatasetEntry) -> None:
    """Look for what mmseg's metrics read of an evaluated image: its label map, its names, the names of the classes."""
    evaluator = cfg.get(f'{dataset.split}_evaluator')
    if dataset.split == 'train' or not evaluator:
        return
    steps = dataset.cfg.get('pipeline') or ()
    if compares_labels(evaluator):
        scope = cfg.get('default_scope') or 'mmseg'
        known = all(isinstance(step, Mapping) and _is_plain(step) for step in steps)
        if steps and known and build_label_loader(steps, scope=scope) is None:
            raise ValueError(
                f'{dataset.where}.pipeline loads no label maps, but {dataset.split}_evaluator compares with them: '
                "add dict(type='LoadAnnotations') after the resizing, or set format_only=True (and output_dir) in the "
                'evaluator to write predictions only'
            )
        if dataset.classes is None:
            raise ValueError(
                f'{dataset.where} names no classes, which {dataset.split}_evaluator reads: set metainfo.classes'
            )
    _check_meta_keys(cfg, dataset, evaluator, steps)


def _check_meta_keys(cfg: Mapping[str, Any], dataset: DatasetEntry, evaluator: Any, steps: Sequence[Any]) -> None:
    """See that PackSegInputs packs what the model and the metrics read of an evaluated image."""
    needed = {name: META_KEYS['mmseg'] for name in (type_name(cfg.get('model')),) if name}
    for _, one in numbered(evaluator, 'evaluator'):
        needed[type_name(one)] = META_KEYS.get(type_name(one), ('img_path',) if one.get('output_dir') else ())
    for index, step in enumerate(steps):
        given = step.get('meta_keys') if isinstance(step, Mapping) and is_type(step, 'PackSegInputs') else None
        for reader, keys in needed.items():
            missing = [key for key in keys if given is not None and key not in given]
            if missing:
                raise ValueError(
                    f'{dataset.where}.pipeline[{index}].meta_keys lacks {format_list(missing)}, which {reader} reads '
                    'of each evaluated image; add it'
                )


def _is_plain(step: Mapping[str, Any]) -> bool:
    """Whether a transform is one of the usual ones of a test pipeline, none of which loads label maps."""
    return is_type(
        step,
        'LoadImageFromFile',
        'Resize',
        'Pad',
        'Normalize',
        'ResizeToMultiple',
        'ResizeShortestEdge',
        'PackSegInputs',
    )


def _classes(cfg: Mapping[str, Any], dataset: DatasetEntry, built: Any) -> tuple[str, ...]:
    """Names of the classes; those of a head with one channel for one class are that class and the rest."""
    names = tuple(built.metainfo.get('classes') or ())
    head = next((head for _, head in segmentor_heads(cfg.get('model') or {})), {})
    if not names and isinstance(head.get('num_classes'), int):
        return tuple(map(str, range(head['num_classes'])))
    if len(names) == 1 and head.get('num_classes') == 1 and one_class_reason(cfg, dataset) is None:
        return (f'not {names[0]}', names[0])
    return names


def _ignored_label(cfg: Mapping[str, Any]) -> int:
    """The label that the loss leaves out."""
    for _, head in segmentor_heads(cfg.get('model') or {}):
        if isinstance(head.get('ignore_index'), int):
            return head['ignore_index']
    return IGNORED
