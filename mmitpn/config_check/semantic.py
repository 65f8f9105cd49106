"""The semantic datasets of a config: what their pipelines load of the label maps, and what would break a training run.

From top to bottom: the checks of a config, one dataset, one label map, and what the counts of all of them mean. Label
maps are loaded by the transforms of the pipeline itself, which are not imitated.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS, DefaultScope

from mmitpn.config_types import is_type, type_name
from mmitpn.utils import evenly_spaced

from .dataset_entries import SPLITS, DatasetEntry, find_datasets
from .images import ImageLoader, LabelLoader, build_image_loader, build_label_loader, read_header
from .messages import format_list, numbered, quoted
from .model import check_segmentor_heads, compares_labels, one_class_reason, segmentor_heads, two_class_options

IGNORED = 255
FIX = 'python tools/data/check_semantic.py CONFIG --fix OUT'
"""The command that fixes what can be fixed without asking."""
SEARCHED = 1000
"""Label maps opened at most before a run is refused because of what a sample of them shows."""
META_KEYS = {'mmseg': ('ori_shape', 'img_shape'), 'CityscapesMetric': ('img_path', 'seg_map_path')}
"""What mmseg reads of each evaluated image: always, and for a metric."""
NO_LABEL_LOADERS = (
    *('LoadImageFromFile', 'Resize', 'Pad', 'Normalize'),
    *('ResizeToMultiple', 'ResizeShortestEdge', 'PackSegInputs'),
)
"""The usual transforms of a test pipeline, none of which loads label maps."""

Progress = Callable[[Sequence[int], str], Iterable[int]]


@dataclass
class SemanticSummary:
    """Content of a semantic dataset.

    Args:
        where: Its position in the config.
        classes: Names of its classes.
        ignored_label: The label, as it is loaded, of pixels without a class.
        reduce_zero_label: As of the dataset.
        label_map: Number of classes that its type has, where only some of them are used; else 0.
        images: Number of images looked at.
        loaded: Pixels of each label, as the pipeline loads it.
        seen_in: Images that show each label, likewise.
        stored: Pixels of each value in the files, and the label it is loaded as; of plain label maps only.
        problems: What is wrong: kind -> the files or values, each with what was seen.
        warnings: What is odd but trains.
    """

    where: str
    classes: tuple[str, ...]
    ignored_label: int = IGNORED
    reduce_zero_label: bool = False
    label_map: int = 0
    images: int = 0
    loaded: Counter[int] = field(default_factory=Counter)
    seen_in: Counter[int] = field(default_factory=Counter)
    stored: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of each class ``(len(classes),)``."""
        return np.array([self.loaded[label] for label in range(len(self.classes))], dtype=np.int64)

    @property
    def ignored(self) -> int:
        """Pixels of no class."""
        return self.loaded[self.ignored_label]

    @property
    def stored_values(self) -> set[int]:
        """The values in the files; empty where they are not known."""
        return {value for value, _ in self.stored}

    def sentences(self) -> list[str]:
        """One sentence for each kind of problem, with the first files and what to do."""
        return [
            f'{len(files)} {kind}: {format_list(files, limit=3)}' if files else kind
            for kind, files in self.problems.items()
        ]

    def add(self, kind: str, seen: str) -> None:
        """Note a problem."""
        self.problems.setdefault(kind, []).append(seen)


# --- the datasets of a config ---


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

    Where a message depends on label maps, ``sample`` of them are opened (None: all). ``allow_other_classes`` accepts
    another number of classes in the model than in the data.

    Raises:
        ValueError: If a head cannot learn, a single class has no background, or an evaluation lacks label maps.
    """
    found = [dataset for dataset in datasets if is_semantic(dataset)]
    if found and isinstance(cfg.get('model'), Mapping):
        check_segmentor_heads(cfg['model'])
    for dataset in found:
        _check_fields(cfg, dataset)
    for dataset in () if allow_other_classes else found:
        text = _one_class_problem(cfg, dataset, sample=sample)
        if text:
            raise ValueError(text)


def check_label_maps(dataset: DatasetEntry, cfg: Mapping[str, Any], *, sample: int | None = 20) -> None:
    """Open ``sample`` label maps (None: all) of a dataset, if it is a semantic one whose pipeline loads them.

    Raises:
        ValueError: If files are broken, or their labels do not fit or leave nothing to learn.
        FileNotFoundError: If a folder is not there.
    """
    if not dataset.is_local or not is_semantic(dataset):
        return
    if build_label_loader(dataset.cfg.get('pipeline'), scope=_scope(cfg)) is None:
        return
    problems = _scan_dataset(dataset, cfg, sample=sample).sentences()
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

    ``sample`` images of each dataset of the ``splits``, evenly spaced, are opened (None: all); ``progress`` wraps the
    indices to go through, and a name. Broken files are in the summary of their dataset.

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
        summary = _scan_dataset(dataset, cfg, sample=sample, progress=progress)
        text = _one_class_problem(cfg, dataset, summary)
        if text:
            summary.problems = {text: []}
        summaries.append(summary)
    return summaries


def _scope(cfg: Mapping[str, Any]) -> str:
    return cfg.get('default_scope') or 'mmseg'


def _scan_dataset(
    dataset: DatasetEntry, cfg: Mapping[str, Any], *, sample: int | None = None, progress: Progress | None = None
) -> SemanticSummary:
    """Open images and label maps of one dataset; arguments and errors are those of `check_semantic_config`.

    Where the sample shows nothing to learn, up to 1000 more label maps are opened until one says otherwise.
    """
    pipeline, scope = dataset.cfg.get('pipeline'), _scope(cfg)
    built = build_semantic(dataset, scope)
    labels = build_label_loader(pipeline, scope=scope, default=True)
    _check_reduce_zero_label(dataset, built, labels)
    ignored = (head.get('ignore_index') for head in _heads(cfg))
    summary = SemanticSummary(
        dataset.where,
        _classes(cfg, dataset, built),
        ignored_label=next((label for label in ignored if isinstance(label, int)), IGNORED),
        reduce_zero_label=bool(built.reduce_zero_label),
        label_map=len(built.label_map or ()),
    )
    chosen = evenly_spaced(range(len(built)), sample)
    indices = progress(chosen, dataset.where) if progress else chosen
    _scan_images(summary, built, labels, build_image_loader(pipeline, scope=scope), indices)
    if labels is None:
        return summary
    if not summary.problems:
        rest = sorted(set(range(len(built))) - set(chosen))
        for index in rest[:: max(1, -(-len(rest) // SEARCHED))]:
            if _nothing_to_learn(summary) is None:
                break
            _count_labels(summary, built.get_data_info(index), labels)
    _judge_labels(summary, train=dataset.split == 'train')
    return summary


def _one_class_problem(
    cfg: Mapping[str, Any], dataset: DatasetEntry, summary: SemanticSummary | None = None, *, sample: int | None = 20
) -> str | None:
    """What to set where a semantic dataset has a single class that the config cannot learn or evaluate, or None.

    ``summary`` is what its label maps hold; without it ``sample`` of them are opened.
    """
    reason = one_class_reason(cfg, dataset)
    if reason is None:
        return None
    if summary is None and dataset.is_local:
        with contextlib.suppress(ValueError, TypeError, OSError):  # missing files are reported after the settings
            summary = _scan_dataset(dataset, cfg, sample=sample)
    values = summary.stored_values if summary else set()
    text = f'{dataset.where} has one class, {dataset.classes[0]!r} (from {dataset.classes_from}), but {reason}'
    if plan_fix(values, 2) is not None:
        held = format_list(sorted(values), limit=4)
        return (
            f'{text}; the label maps hold the values {held}: {FIX} writes maps of 0 (background) and 1, and prints the '
            'settings that train on them'
        )
    zero = not values or max(values - {IGNORED}, default=0) <= 1
    options = ' '.join(map(quoted, two_class_options(cfg, find_datasets(cfg, SPLITS), zero_is_background=zero)))
    return f'{text}; give the pixels around it a name too, as the first class: --cfg-options {options}'


def build_semantic(dataset: DatasetEntry, scope: str) -> Any:
    """Build a semantic dataset without its pipeline, a ``BaseSegDataset`` with at least one image.

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
        source = '' if 'reduce_zero_label' in dataset.cfg else f', the default of {dataset.kind}'
        raise ValueError(
            f'{dataset.where}.reduce_zero_label is {built.reduce_zero_label}{source}, but {labels.name} in its '
            f'pipeline has reduce_zero_label={of_loader}, on which mmseg stops: leave it out there, and set '
            f'{dataset.where}.reduce_zero_label to True if label 0 means "no class", to False if it is the first class'
        )


def _check_fields(cfg: Mapping[str, Any], dataset: DatasetEntry) -> None:
    """Look for what mmseg's metrics read of an evaluated image: its label map, its names, the names of the classes."""
    reader = f'{dataset.split}_evaluator'
    evaluator = cfg.get(reader)
    if dataset.split == 'train' or not evaluator:
        return
    steps = dataset.cfg.get('pipeline') or ()
    if compares_labels(evaluator):
        known = all(isinstance(step, Mapping) and is_type(step, *NO_LABEL_LOADERS) for step in steps)
        if steps and known and build_label_loader(steps, scope=_scope(cfg)) is None:
            raise ValueError(
                f'{dataset.where}.pipeline loads no label maps, but {reader} compares with them: add '
                "dict(type='LoadAnnotations') after the resizing, or set format_only=True (and output_dir) in the "
                'evaluator to write predictions only'
            )
        if dataset.classes is None:
            raise ValueError(f'{dataset.where} names no classes, which {reader} reads: set metainfo.classes')
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


def _heads(cfg: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (head for _, head in segmentor_heads(cfg.get('model') or {}))


def _classes(cfg: Mapping[str, Any], dataset: DatasetEntry, built: Any) -> tuple[str, ...]:
    """Names of the classes; those of a head with one channel for one class are that class and the rest."""
    names = tuple(built.metainfo.get('classes') or ())
    number = next(_heads(cfg), {}).get('num_classes')
    if not names and isinstance(number, int):
        return tuple(map(str, range(number)))
    if len(names) == 1 and number == 1 and one_class_reason(cfg, dataset) is None:
        return (f'not {names[0]}', names[0])
    return names


# --- images and label maps, one by one ---


def _scan_images(
    summary: SemanticSummary,
    dataset: Any,
    labels: LabelLoader | None,
    images: ImageLoader | None,
    indices: Iterable[int],
) -> None:
    """Load images of a built dataset and their label maps; add counts and problems, broken files too, to the summary.

    Without ``labels`` no labels are counted; without ``images`` the sizes of the maps are not checked.
    """
    turned: list[str] = []
    for index in indices:
        info = dataset.get_data_info(index)
        summary.images += 1
        size = _image_size(summary, info, images, turned)
        if labels is not None:
            _scan_label_map(summary, info, labels, images, size)
    if turned:
        summary.warnings.append(
            f'{len(turned)} images are turned or mirrored by their EXIF orientation tag when they are loaded '
            f'({format_list(turned, limit=2)}), and their size does not tell whether their label maps are made for the '
            "turned or the stored image; if for the stored one, set color_type='color_ignore_orientation' in "
            'LoadImageFromFile'
        )


def _count_labels(summary: SemanticSummary, info: Mapping[str, Any], labels: LabelLoader) -> None:
    """Load the label map of one image for its labels only; a broken one is left out."""
    with contextlib.suppress(OSError):
        found = labels.load(info)
        if found is not None and found[1].ndim == 2:
            _count(summary, found[1], labels.stored(info['seg_map_path']))


def _image_size(
    summary: SemanticSummary, info: Mapping[str, Any], images: ImageLoader | None, turned: list[str]
) -> tuple[int, int] | None:
    """Height and width of an image as it is loaded; None if it cannot be, or is left out."""
    path = str(info['img_path'])
    if '://' not in path and not Path(path).is_file():
        summary.add('missing images', path)
        return None
    if images is None:
        return None
    try:
        size = images.size(path)
    except OSError:
        summary.add('images that cannot be read', path)
        return None
    if size is None:
        return None
    header = read_header(path)
    as_stored = str(getattr(images.transform, 'color_type', '')).endswith(('unchanged', 'ignore_orientation'))
    if header is not None and header.orientation != 1 and header.size == size and not as_stored:
        turned.append(path)
    return size[1], size[0]


def _scan_label_map(
    summary: SemanticSummary,
    info: Mapping[str, Any],
    labels: LabelLoader,
    images: ImageLoader | None,
    size: tuple[int, int] | None,
) -> None:
    """Load one label map; ``size`` is the height and width of its image."""
    path = info.get('seg_map_path')
    kind, seen, found = '', str(path), None
    if labels.keeps_values and path is None:
        kind, seen = 'images without seg_map_path (set data_prefix.seg_map_path)', str(info['img_path'])
    elif labels.keeps_values and '://' not in seen and not Path(path).is_file():
        kind = 'missing label maps'
    else:
        try:
            found = labels.load(info)
        except OSError:
            kind = 'label maps that cannot be read'
    if found is not None:
        loaded, final = found
        stored = labels.stored(path)
        values = final if stored is None else stored
        if final.ndim != 2:
            kind = _not_one_channel(final, stored)
        elif values.size and (values.min() < 0 or values.max() > IGNORED):
            kind = 'label maps with values above 255'
        else:
            _count(summary, final, stored)
            if size is not None and loaded.shape[:2] != size:
                name = images.name if images else ''
                kind, seen = _other_size(str(info['img_path']), seen, loaded.shape, size, name)
    if kind:
        summary.add(kind, seen)


def _not_one_channel(labels: np.ndarray, stored: np.ndarray | None) -> str:
    """The kind of problem of a map that is not two-dimensional."""
    if stored is not None and is_gray(stored):
        return (
            'label maps that are color images, though of grays only; a map has one channel, whose values are the '
            f'labels: {FIX} writes such maps'
        )
    if labels.ndim == 3:
        return 'label maps that are color images; a map has one channel, whose values are the labels'
    return f'label maps that are loaded with {labels.ndim} dimensions instead of height and width'


def is_gray(stored: np.ndarray) -> bool:
    """Whether all color channels ``(height, width, channels)`` are equal; a fourth or second one is transparency."""
    colors = stored[..., :3] if stored.ndim == 3 and stored.shape[2] >= 3 else stored[..., :1]
    return stored.ndim == 3 and bool((colors == colors[..., :1]).all())


def _other_size(image: str, path: str, shape: Sequence[int], size: tuple[int, int], loader: str) -> tuple[str, str]:
    """The kind of problem of a map of another size than its image, and what was seen."""
    seen = f'{path} ({shape[1]}x{shape[0]}, the image {size[1]}x{size[0]})'
    header = read_header(image)
    if header is None or header.orientation == 1 or header.size != (shape[1], shape[0]):
        return f'label maps of another size than their image (as {loader} returns it)', seen
    return (
        f'label maps made for images as they are stored, which {loader} turns by their EXIF orientation tag: set '
        "color_type='color_ignore_orientation' in LoadImageFromFile of this pipeline (and of the others), or write "
        f'turned maps with {FIX}'
    ), seen


def _count(summary: SemanticSummary, labels: np.ndarray, stored: np.ndarray | None) -> None:
    """Add the labels of one map to the counts."""
    for value, pixels in _histogram(labels):
        summary.loaded[value] += pixels
        summary.seen_in[value] += 1
    if stored is not None and stored.shape == labels.shape and stored.max(initial=0) <= IGNORED:
        for pair, pixels in _histogram(stored.astype(np.int64) * 256 + labels):
            entry = summary.stored.setdefault(divmod(pair, 256), [0, 0])
            entry[0] += pixels
            entry[1] += 1


def _histogram(values: np.ndarray) -> Iterable[tuple[int, int]]:
    """Each value and how often it occurs."""
    if values.size and (values.dtype == np.uint8 or (values.min() >= 0 and values.max() < 65536)):
        counts = np.bincount(values.ravel())
        found = np.flatnonzero(counts)
        return zip(found.tolist(), counts[found].tolist(), strict=True)
    return zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True)


# --- what the counts mean ---


def _judge_labels(summary: SemanticSummary, *, train: bool) -> None:
    """Add what the counts say to the problems and warnings; data that are only evaluated may show few classes."""
    number, values = len(summary.classes), summary.stored_values
    strange = sorted(set(summary.loaded) - set(range(number)) - {summary.ignored_label})
    nothing = _nothing_to_learn(summary)
    if strange and not _black_and_white(summary):
        seen = [
            f'{value}{"" if value == label else f" (loaded as {label})"} in {maps} map(s)'
            for (value, label), (_, maps) in sorted(summary.stored.items())
            if label in strange
        ]
        seen = seen or [f'{label} in {summary.seen_in[label]} map(s)' for label in strange]
        summary.problems[_without_class(summary, strange)] = seen
    elif nothing and (train or _black_and_white(summary)):
        summary.problems[nothing] = []
    elif nothing and set(summary.loaded) == {summary.ignored_label}:
        summary.warnings.append(f'no pixel has a class, so there is nothing to evaluate: {nothing}')
    if summary.reduce_zero_label and values - {IGNORED} and not values & {0, number}:
        summary.warnings.append(
            f'reduce_zero_label is True, but no pixel is 0 and none is {number}, the last class: is label 0 a class?'
        )
    empty = [name for name, pixels in zip(summary.classes, summary.pixels, strict=True) if not pixels]
    if empty and summary.images:
        summary.warnings.append(f'{len(empty)} of {number} classes are never seen: {format_list(empty)}')


def _black_and_white(summary: SemanticSummary) -> bool:
    """Whether the files hold 0 and 255 and nothing else, and 255 is ignored."""
    return summary.stored_values == {0, IGNORED} and summary.ignored_label == IGNORED


def _nothing_to_learn(summary: SemanticSummary) -> str | None:
    """Why the label maps seen so far show at most one class to learn, and what to do; None where they show more."""
    number, values = len(summary.classes), summary.stored_values
    if _black_and_white(summary):
        text = 'all label maps hold the values 0 and 255 only, and 255 is ignored'
        if number > 2:
            return (
                f'{text}, so that one of the {number} classes is all there is to learn: make maps with the labels 0 to '
                f'{number - 1}, or name in metainfo.classes the two classes that they show and write maps of 0 and 1 '
                f'with {FIX}'
            )
        return (
            f'{text}, so that label 0 is all there is to learn: {FIX} writes maps with label 1 in the place of 255, '
            'and prints the settings that train on them'
        )
    shown = set(summary.loaded) - {summary.ignored_label}
    held = f' (the files hold {format_list(sorted(values))})' if values else ''
    name_shown = 'name classes in metainfo.classes that the maps show'
    correct = 'correct the maps, the classes of metainfo, or reduce_zero_label'
    if summary.loaded and not shown:
        text = f'every pixel of all label maps is ignored{held}: no pixel has one of the {number} classes'
        if summary.label_map:
            return (
                f'{text} {format_list(summary.classes, limit=4)}; name classes in metainfo.classes that the maps show'
            )
        if summary.reduce_zero_label and values and values <= {0, IGNORED}:
            return f'{text}, since reduce_zero_label=True makes label 0 "no class"; set it to False if 0 is a class'
        return f'{text}; {correct}'
    if number < 2 or len(shown) != 1 or not summary.ignored:
        return None
    advice = 'give the ignored pixels a label of their own, or correct the classes of metainfo or reduce_zero_label'
    if summary.label_map:
        advice = name_shown
    elif summary.reduce_zero_label and 0 in values and max(values - {IGNORED}) < number:
        advice = 'reduce_zero_label=True makes label 0 "no class"; set it to False'
    elif plan_fix(values, number) is not None:
        advice = f'{FIX} writes maps with a label for each of the values'
    name = dict(enumerate(summary.classes)).get(*shown)
    return (
        f'every pixel of all label maps is {name!r} or ignored{held}, so that one of {number} classes is all there is '
        f'to learn: {advice}'
    )


def plan_fix(values: Iterable[int], number: int) -> dict[int, int] | None:
    """The labels that all ``values`` in the files stand for, where there is one way to see them.

    Returns value -> label from 0: black and white, with or without the noise of a lossy format, or as many values as
    the ``number`` of classes, in their order, or 255 for what is not label 1; None if the values are labels already, or
    can be seen in several ways. One class counts as two, since the pixels around it are a class too.
    """
    found, number = sorted(set(values)), max(number, 2)
    if number == 2 and found == [1, IGNORED]:
        return {1: 1, IGNORED: 0}
    if set(found) <= {*range(number), IGNORED} and found != [0, IGNORED]:
        return None
    if len(found) == number:
        return {value: label for label, value in enumerate(found)}
    dark, bright = [v for v in found if v < 64], [v for v in found if 192 <= v <= IGNORED]
    if number == 2 and len(dark) + len(bright) == len(found) and len(found) > number and dark and bright:
        return {value: int(value >= 128) for value in found}
    return None


def _without_class(summary: SemanticSummary, strange: list[int]) -> str:
    """The kind of problem of labels that no class has, with what to do."""
    number, first = len(summary.classes), int(summary.reduce_zero_label)
    ignored = '255 (and 0)' if first else str(summary.ignored_label)
    allowed = f'{first} to {number - 1 + first}'
    if summary.label_map:
        allowed = f'some of the {summary.label_map} that the type of the dataset has'
    advice = 'correct the maps, the classes of metainfo, or reduce_zero_label'
    if not first and not summary.label_map and strange == [number]:
        advice = (
            'with reduce_zero_label=False label 0 is the first class: set it to True if 0 means "no class", else name '
            f'{number + 1} classes'
        )
    elif plan_fix(summary.stored_values, number) is not None:
        advice = f'{FIX} writes maps with the labels 0 to {max(number, 2) - 1} in their order'
    return f'label values without a class ({number} classes: {allowed}; {ignored} is ignored; {advice})'
