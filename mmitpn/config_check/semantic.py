"""The label maps of a semantic dataset: what its pipeline loads of them, and what would make a training run go wrong.

:func:`check_semantic` opens images and label maps one by one and counts labels; :func:`judge_labels` says what the
counts of all of them mean. Label maps are loaded by the transforms of the pipeline itself, which are not imitated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from mmitpn.config_types import type_name

from .images import ImageLoader, build_image_loader, read_header
from .messages import format_list

IGNORED = 255
FIX = 'tools/data/check_semantic.py CONFIG --fix OUT'
"""The command that repairs what can be repaired without asking."""


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
    def trained(self) -> list[int]:
        """Labels of the classes, without one that is ignored."""
        return [label for label in range(len(self.classes)) if label != self.ignored_label]

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


def check_semantic(
    summary: SemanticSummary,
    dataset: Any,
    labels: LabelLoader | None,
    images: ImageLoader | None,
    *,
    indices: Iterable[int] | None = None,
) -> SemanticSummary:
    """Load images and their label maps, and count labels.

    Args:
        summary: What is known so far; the counts and the problems are added to it.
        dataset: A built ``BaseDataset``.
        labels: Loads its label maps; None counts no labels.
        images: Loads its images; None leaves the sizes of the maps unchecked.
        indices: Which images to look at, perhaps wrapped in a progress bar; None looks at all.

    Returns:
        ``summary``; nothing is raised for a broken file.
    """
    turned: list[str] = []
    for index in range(len(dataset)) if indices is None else indices:
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
    return summary


def count_labels(summary: SemanticSummary, info: Mapping[str, Any], labels: LabelLoader) -> None:
    """Load the label map of one image for its labels only; a broken one is left out."""
    try:
        found = labels.load(info)
    except OSError:
        return
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
    if path is None:
        if labels.keeps_values:
            summary.add('images without seg_map_path (set data_prefix.seg_map_path)', str(info['img_path']))
            return
    elif '://' not in str(path) and labels.keeps_values and not Path(path).is_file():
        summary.add('missing label maps', str(path))
        return
    try:
        found = labels.load(info)
    except OSError:
        summary.add('label maps that cannot be read', str(path))
        return
    if found is None:
        return
    loaded, final = found
    stored = labels.stored(path)
    if final.ndim != 2:
        summary.add(_not_one_channel(final, stored), str(path))
        return
    values = final if stored is None else stored
    if values.size and (values.min() < 0 or values.max() > IGNORED):
        summary.add('label maps with values above 255', str(path))
        return
    if size is not None and loaded.shape[:2] != size:
        name = images.name if images else ''
        summary.add(*_other_size(str(info['img_path']), str(path), loaded.shape, size, name))
    _count(summary, final, stored)


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
    kind = (
        f'label maps made for images as they are stored, which {loader} turns by their EXIF orientation tag: set '
        "color_type='color_ignore_orientation' in LoadImageFromFile of this pipeline (and of the others), or write "
        f'turned maps with {FIX}'
    )
    return kind, seen


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
    found, counts = np.unique(values, return_counts=True)
    return zip(found.tolist(), counts.tolist(), strict=True)


# --- loading label maps ---

FRAMEWORKS = ('mmcv', 'mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'mmitpn', 'albumentations')
"""Packages whose transforms keep the labels of pixels, except for those that load them."""
OTHER_FILES = ('Image', 'Depth', 'Proposals', 'Embeddings')
"""Words in the names of transforms that load something else than label maps."""


class LabelLoader:
    """The transforms of a pipeline that decide about the labels of a file.

    Args:
        transforms: Built transforms, in the order of the pipeline: those that load label maps, and those of the user's
            own, which may change labels.
        image_loader: Adds ``img`` where a transform of the user's own may ask for it.
    """

    def __init__(self, transforms: Sequence[Any], image_loader: ImageLoader | None = None) -> None:
        self.transforms = list(transforms)
        self._image_loader = image_loader

    @property
    def name(self) -> str:
        """The transforms, for messages."""
        return ' and '.join(type_name(type(one)) for one in self.transforms)

    @property
    def reduce_zero_label(self) -> bool | None:
        """The reduce_zero_label of a loading transform; None where it follows the dataset."""
        given = [getattr(one, 'reduce_zero_label', None) for one in self.transforms]
        return next((value for value in given if value is not None), None)

    @property
    def keeps_values(self) -> bool:
        """Whether a label depends on the value of its pixel in the file only, as with mmseg's ``LoadAnnotations``."""
        from mmseg.datasets.transforms import LoadAnnotations

        one = self.transforms[0] if len(self.transforms) == 1 else None
        return isinstance(one, LoadAnnotations) and type(one)._load_seg_map is LoadAnnotations._load_seg_map

    def load(self, info: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """Load the label map of an image.

        Args:
            info: What the dataset knows of the image (``BaseDataset.get_data_info``).

        Returns:
            The map ``(height, width)`` as it is loaded, for its size, and as all transforms leave it, for its labels;
            None if the transforms leave the image out or make no ``gt_seg_map``.

        Raises:
            OSError: If the file cannot be loaded.
        """
        results: Any = deepcopy(dict(info))
        if self._image_loader is not None and not self.keeps_values:
            with suppress(Exception):  # a broken image is reported where images are looked at
                results = self._image_loader.transform(results)
        loaded = None
        for transform in tuple(self.transforms):
            if results is None:
                return None
            if _loads_labels(transform):
                results = self._call(transform, results)
            else:
                try:
                    results = transform(deepcopy(results))
                except Exception:  # noqa: BLE001 - it may need what a transform that is not called here adds
                    self.transforms.remove(transform)
            if loaded is None and results is not None and 'gt_seg_map' in results:
                loaded = np.asarray(results['gt_seg_map'])
        return None if results is None or loaded is None else (loaded, np.asarray(results['gt_seg_map']))

    def _call(self, transform: Any, results: dict[str, Any]) -> Any:
        try:
            return transform(results)
        except Exception as error:  # whatever the decoding backend or a transform of the user's own raises
            kind = type_name(type(transform))
            raise OSError(f'{kind} cannot load {results.get("seg_map_path")}: {error}') from error

    def stored(self, path: str) -> np.ndarray | None:
        """The values in a file.

        Args:
            path: The label map.

        Returns:
            ``(height, width)``, or ``(height, width, channels)`` of a color image; None where the loader reads files in
            another way than mmseg's with Pillow, or the file cannot be read.
        """
        if not self.keeps_values or self.transforms[0].imdecode_backend != 'pillow':
            return None
        return read_stored(path)


def read_stored(path: str) -> np.ndarray | None:
    """The values in an image file, ``(height, width)`` or with channels behind; None if Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError):
        return None


def build_label_loader(
    pipeline: Sequence[Any] | None, *, scope: str | None = 'mmseg', default: bool = False
) -> LabelLoader | None:
    """Build the transforms of a pipeline that load label maps.

    Args:
        pipeline: The configs of the transforms.
        scope: The config's ``default_scope``.
        default: Take mmseg's ``LoadAnnotations`` for an empty pipeline.

    Returns:
        The loader; None if no transform loads label maps, or the one that does is not registered.
    """
    steps = list(_flatten(pipeline or ()))
    if not steps and default:
        steps = [{'type': 'mmseg.LoadAnnotations'}]
    with DefaultScope.overwrite_default_scope(scope):
        if not any(map(_loads_labels, steps)):
            return None
        chosen = [step for step in steps if _loads_labels(step) or _is_own(step)]
        transforms = [TRANSFORMS.build(step) if isinstance(step, Mapping) else step for step in chosen]
    return LabelLoader(transforms, build_image_loader(steps, scope=scope))


def _flatten(pipeline: Any) -> Iterator[Any]:
    """The transforms of a pipeline and those inside them (``TestTimeAug``, ``RandomChoice`` ...)."""
    if isinstance(pipeline, (list, tuple)):
        for step in pipeline:
            yield from _flatten(step)
    elif isinstance(pipeline, Mapping) and pipeline.get('transforms'):
        yield from _flatten(pipeline['transforms'])
    else:
        yield pipeline


def _class_of(step: Any) -> type | None:
    """The class of a transform (its config, or built); None where it is not registered."""
    kind = step.get('type') if isinstance(step, Mapping) else type(step)
    if isinstance(kind, str):
        kind = TRANSFORMS.get(kind)
    return kind if isinstance(kind, type) else None


def _loads_labels(step: Any) -> bool:
    """Whether a transform loads label maps, by its class or name."""
    from mmcv.transforms import LoadAnnotations

    kind = _class_of(step)
    if kind is None:
        return False
    name = kind.__name__
    named = name.startswith('Load') and not any(word in name for word in OTHER_FILES)
    return named or issubclass(kind, LoadAnnotations)


def _is_own(step: Any) -> bool:
    """Whether a transform is none of the frameworks': it may change labels."""
    kind = _class_of(step)
    return kind is not None and kind.__module__.partition('.')[0] not in FRAMEWORKS


# --- what the counts mean ---


def judge_labels(summary: SemanticSummary, *, train: bool) -> None:
    """Add what the counts of a dataset say to its problems and warnings.

    Args:
        summary: The counts of all images that were looked at.
        train: Whether the dataset is trained on; one that is only evaluated may show few classes.
    """
    number = len(summary.classes)
    strange = sorted(set(summary.loaded) - set(range(number)) - {summary.ignored_label})
    if is_black_and_white(summary):
        summary.problems[_black_and_white(number)] = []
    elif strange:
        stored = [key for key in summary.stored if key[1] in strange]
        seen = [
            f'{value}{"" if value == label else f" (loaded as {label})"} in {summary.stored[value, label][1]} map(s)'
            for value, label in sorted(stored)
        ] or [f'{label} in {summary.seen_in[label]} map(s)' for label in strange]
        summary.problems[_without_class(summary, strange)] = seen
    elif train and nothing_left(summary):
        summary.problems[_nothing(summary)] = []
    elif train and one_answer(summary):
        summary.problems[_one_answer(summary)] = []
    elif nothing_left(summary):
        summary.warnings.append(f'no pixel has a class, so there is nothing to evaluate: {_nothing(summary)}')
    _warn(summary)


def undecided(summary: SemanticSummary) -> bool:
    """Whether the images seen so far may mislead, so that more of them have to be looked at."""
    return is_black_and_white(summary) or nothing_left(summary) or one_answer(summary)


def is_black_and_white(summary: SemanticSummary) -> bool:
    """Whether the files hold 0 and 255 and nothing else, and 255 is ignored."""
    return summary.stored_values == {0, IGNORED} and summary.ignored_label == IGNORED


def nothing_left(summary: SemanticSummary) -> bool:
    """Whether every pixel is ignored."""
    return bool(summary.loaded) and set(summary.loaded) == {summary.ignored_label}


def one_answer(summary: SemanticSummary) -> bool:
    """Whether the pixels that count all have one class, of several, and others are ignored."""
    shown = set(summary.loaded) - {summary.ignored_label}
    return len(summary.classes) > 1 and len(shown) == 1 and summary.ignored > 0


def plan_repair(values: Iterable[int], number: int) -> dict[int, int] | None:
    """The labels that stored values stand for, where there is one way to see them.

    Args:
        values: All values in the files.
        number: Number of classes; 1 counts as two, since the pixels around the class are one too.

    Returns:
        Value -> label from 0: black and white, with or without the noise of a lossy format, or as many values as
        classes, in their order, or 255 for what is not label 1; None if the values are labels already, or can be seen
        in several ways.
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


def _black_and_white(number: int) -> str:
    text = 'all label maps hold the values 0 and 255 only, and 255 is ignored'
    if number > 2:
        return (
            f'{text}, so that one of the {number} classes is all there is to learn: make maps with the labels 0 to '
            f'{number - 1}, or name in metainfo.classes the two classes that they show and write maps of 0 and 1 with '
            f'{FIX}'
        )
    return (
        f'{text}, so that label 0 is all there is to learn: {FIX} writes maps with label 1 in the place of 255, and '
        'prints the settings that train on them'
    )


def _without_class(summary: SemanticSummary, strange: list[int]) -> str:
    """The kind of problem of labels that no class has, with what to do."""
    number, reduced = len(summary.classes), summary.reduce_zero_label
    first = 1 if reduced else 0
    ignored = '255 (and 0)' if reduced else str(summary.ignored_label)
    allowed = f'{first} to {number - 1 + first}'
    if summary.label_map:
        allowed = f'some of the {summary.label_map} that the type of the dataset has'
    if not reduced and not summary.label_map and strange == [number]:
        advice = (
            'with reduce_zero_label=False label 0 is the first class: set it to True if 0 means "no class", else name '
            f'{number + 1} classes'
        )
    elif plan_repair(summary.stored_values, number) is not None:
        advice = f'{FIX} writes maps with the labels 0 to {max(number, 2) - 1} in their order'
    else:
        advice = 'correct the maps, the classes of metainfo, or reduce_zero_label'
    return f'label values without a class ({number} classes: {allowed}; {ignored} is ignored; {advice})'


def _nothing(summary: SemanticSummary) -> str:
    values = sorted(summary.stored_values)
    held = f' (the files hold {format_list(values)})' if values else ''
    text = f'every pixel of all label maps is ignored{held}: no pixel has one of the {len(summary.classes)} classes'
    if summary.label_map:
        return f'{text} {format_list(summary.classes, limit=4)}; name classes in metainfo.classes that the maps show'
    if summary.reduce_zero_label and values and set(values) <= {0, IGNORED}:
        return f'{text}, since reduce_zero_label=True makes label 0 "no class"; set it to False if 0 is a class'
    return f'{text}; correct the maps, the classes of metainfo, or reduce_zero_label'


def _one_answer(summary: SemanticSummary) -> str:
    label = next(iter(set(summary.loaded) - {summary.ignored_label}))
    values = sorted(summary.stored_values)
    held = f' (the files hold {format_list(values)})' if values else ''
    number = len(summary.classes)
    advice = 'give the ignored pixels a label of their own, or correct the classes of metainfo or reduce_zero_label'
    if summary.label_map:
        advice = 'name classes in metainfo.classes that the maps show'
    elif summary.reduce_zero_label and 0 in values and max(set(values) - {IGNORED}) < number:
        advice = 'reduce_zero_label=True makes label 0 "no class"; set it to False'
    elif plan_repair(values, number) is not None:
        advice = f'{FIX} writes maps with a label for each of the values'
    return (
        f'every pixel of all label maps is {summary.classes[label]!r} or ignored{held}, so that one of {number} '
        f'classes is all there is to learn: {advice}'
    )


def _warn(summary: SemanticSummary) -> None:
    number, values = len(summary.classes), summary.stored_values
    if summary.reduce_zero_label and values - {IGNORED} and 0 not in values and number not in values:
        summary.warnings.append(
            f'reduce_zero_label is True, but no pixel is 0 and none is {number}, the last class: is label 0 a class?'
        )
    empty = [name for name, pixels in zip(summary.classes, summary.pixels, strict=True) if not pixels]
    if empty and summary.images:
        summary.warnings.append(f'{len(empty)} of {number} classes are never seen: {format_list(empty)}')
