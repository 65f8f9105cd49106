"""A semantic data set: every picture with its label map, and everything that would make a training fail or go wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .wording import listing

IGNORED = 255


@dataclass
class SemanticSummary:
    """What a semantic data set holds.

    Args:
        where: Its place in the config.
        classes: Names of its classes.
        pictures: Number of pictures looked at.
        pixels: Pixels of each class, in the order of ``classes``.
        seen_in: Pictures that show each class.
        ignored: Pixels of no class.
        problems: What is wrong: kind -> the files, each with what was seen.
        warnings: What is odd but trains.
    """

    where: str
    classes: tuple[str, ...]
    pictures: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    seen_in: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    ignored: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """One sentence for each kind of problem, with the first files and what to do."""
        return [f'{len(files)} {kind}: {listing(files, limit=3)}' for kind, files in self.problems.items()]


def check_semantic(
    where: str,
    pairs: Sequence[tuple[str, str | None]],
    classes: Sequence[str],
    *,
    reduce_zero_label: bool,
    label_map: Mapping[int, int] | None = None,
    progress: Iterable[int] | None = None,
) -> SemanticSummary:
    """Open every picture and its label map.

    Args:
        where: Place of the data set in the config, for messages.
        pairs: Paths of each picture and its map; None where there is no map.
        classes: Names of the classes.
        reduce_zero_label: Whether label 0 means "no class" and label 1 is the first class, as in ADE20K.
        label_map: Label in the file -> label trained on (mmseg's, where a data set uses some of its classes only).
        progress: Indices to look at; shows progress while it is gone through. None looks at all.

    Returns:
        The counts and the problems; nothing is raised for a broken file.
    """
    summary = SemanticSummary(where, tuple(classes))
    counts, seen = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    for index in range(len(pairs)) if progress is None else progress:
        picture, label = pairs[index]
        summary.pictures += 1
        size, problem = _picture_size(picture)
        labels, label_problem = _read_map(label)
        for kind in filter(None, (problem, label_problem)):
            summary.problems.setdefault(kind, []).append(str(picture if kind is problem else label))
        if labels is None:
            continue
        if size is not None and labels.shape != size:
            text = f'{label} ({labels.shape[1]}x{labels.shape[0]}, the picture {size[1]}x{size[0]})'
            summary.problems.setdefault('label maps of another size than their picture', []).append(text)
        here = np.bincount(labels.ravel(), minlength=256)
        counts += here
        seen += here > 0
    _count(summary, counts, seen, reduce_zero_label=reduce_zero_label, label_map=label_map)
    return summary


def _count(
    summary: SemanticSummary,
    counts: np.ndarray,
    seen: np.ndarray,
    *,
    reduce_zero_label: bool,
    label_map: Mapping[int, int] | None,
) -> None:
    """Turn label values into classes, and find the values that no class has."""
    number = len(summary.classes)
    first = 1 if reduce_zero_label else 0
    known = {value: value - first for value in range(first, number + first)}
    if label_map:
        known = {old: new for old, new in label_map.items() if 0 <= new < number}
    summary.pixels = np.zeros(number, dtype=np.int64)
    summary.seen_in = np.zeros(number, dtype=np.int64)
    for value, target in known.items():
        summary.pixels[target] += counts[value]
        summary.seen_in[target] += seen[value]
    void = {IGNORED} | ({0} if reduce_zero_label else set()) | (set(label_map or ()) - set(known))
    summary.ignored = int(sum(counts[value] for value in void))
    unknown = [value for value in np.flatnonzero(counts) if value not in known and value not in void]
    if unknown:
        allowed = f'{first} to {number - 1 + first}'
        ignored = '255 (and 0)' if reduce_zero_label else '255'
        advice = (
            'with reduce_zero_label=False label 0 is the first class: set it to True if 0 means "no class"'
            if not reduce_zero_label and max(unknown) == number
            else 'correct the maps, the classes of metainfo, or reduce_zero_label'
        )
        summary.problems[
            f'label values without a class ({number} classes: {allowed}; {ignored} is ignored; {advice})'
        ] = [f'{value} in {seen[value]} map(s)' for value in unknown]
    if reduce_zero_label and not counts[0] and counts[:IGNORED].any() and not counts[number]:
        summary.warnings.append(
            f'reduce_zero_label is True, but no pixel is 0 and none is {number}, the last class: is label 0 a class?'
        )
    empty = [name for name, pixels in zip(summary.classes, summary.pixels, strict=True) if not pixels]
    if empty and summary.pictures:
        summary.warnings.append(f'{len(empty)} of {number} classes are never seen: {listing(empty)}')


def _picture_size(path: str) -> tuple[tuple[int, int] | None, str]:
    """Height and width of a picture, or None and what is wrong."""
    if not Path(path).is_file():
        return None, 'missing pictures'
    try:
        with Image.open(path) as image:
            image.load()
            return (image.height, image.width), ''
    except (OSError, ValueError, SyntaxError):
        return None, 'pictures that cannot be read'


def _read_map(path: str | None) -> tuple[np.ndarray | None, str]:
    """The labels of a map ``(height, width)``, or None and what is wrong."""
    if path is None or not Path(path).is_file():
        return None, 'missing label maps'
    try:
        with Image.open(path) as image:
            labels: Any = np.asarray(image)
    except (OSError, ValueError, SyntaxError):
        return None, 'label maps that cannot be read'
    if labels.ndim != 2:
        return None, 'label maps that are colour pictures; a map has one channel, whose values are the labels'
    if labels.size and (labels.min() < 0 or labels.max() > IGNORED):
        return None, 'label maps with values above 255'
    return labels.astype(np.uint8), ''
