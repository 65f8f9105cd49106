"""A semantic dataset: every image with its label map, and what would make a training run fail or go wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .image_size import ImageLoader, read_header
from .label_loading import LabelLoader
from .wording import listing

IGNORED = 255
FIX = 'tools/data/check_semantic.py CONFIG --fix OUT'
"""The command that repairs what can be repaired without asking."""


@dataclass
class SemanticSummary:
    """What a semantic dataset holds.

    Args:
        where: Its place in the config.
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
            f'{len(files)} {kind}: {listing(files, limit=3)}' if files else kind
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
        indices: Which images to look at; shows progress while it is gone through. None looks at all.

    Returns:
        ``summary``; nothing is raised for a broken file.
    """
    turned: list[str] = []
    for index in range(len(dataset)) if indices is None else indices:
        info = dataset.get_data_info(index)
        summary.images += 1
        size = _image_size(summary, info, images, turned)
        if labels is not None:
            _look_at_map(summary, info, labels, images, size)
    if turned:
        summary.warnings.append(
            f'{len(turned)} images are turned or mirrored by their EXIF orientation tag when they are loaded '
            f'({listing(turned, limit=2)}), and their size does not tell whether their label maps are made for the '
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


def _look_at_map(
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
