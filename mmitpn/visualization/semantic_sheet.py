"""A sheet of predicted label maps next to the truth, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from mmitpn.utils import evenly_spaced

from .palette import class_colour

DPI = 100
_STRENGTH = 0.65  # of the colour over the picture


@dataclass(frozen=True)
class LabelMap:
    """What each pixel is.

    Attributes:
        labels: Class of every pixel, ``(h, w)``; numbers from the number of classes on are none.
        segments: Number of the segment that every pixel belongs to, ``(h, w)``; None: a class is one segment.
    """

    labels: np.ndarray
    segments: np.ndarray | None = None


def overlay(image: np.ndarray, shown: LabelMap, classes: int) -> np.ndarray:
    """The picture with each class in its colour and a line between segments; pixels of no class stay grey."""
    colours = np.array([class_colour(index) for index in range(classes)]) * 255
    known = shown.labels < classes
    grey = image.mean(axis=2, keepdims=True)
    target = np.where(known[..., None], colours[np.where(known, shown.labels, 0)], grey)
    pixels = grey + _STRENGTH * (target - grey)
    if shown.segments is not None:
        border = np.zeros(known.shape, dtype=bool)
        border[1:] |= shown.segments[1:] != shown.segments[:-1]
        border[:, 1:] |= shown.segments[:, 1:] != shown.segments[:, :-1]
        pixels[border] = 255
    return np.rint(pixels).astype(np.uint8)


def draw_maps(
    pictures: Sequence[tuple[str | Path, LabelMap, LabelMap]],
    classes: Sequence[str],
    out_file: str | Path,
    *,
    columns: int,
    tile: int,
    title: str,
) -> Path:
    """Draw pictures in threes, the picture, the truth and the prediction, into one PNG.

    Args:
        pictures: Path of the picture, truth and prediction.
        classes: Names of the classes.
        out_file: Where to write it; folders are made.
        columns: Threes in a row.
        tile: Side of a picture on the sheet in pixels.
        title: One line above all.

    Returns:
        The path written.
    """
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(columns * 3 * tile / DPI, (rows * (tile + 24) + 90) / DPI), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.subplots(rows, 3 * columns, squeeze=False)
    seen: set[int] = set()
    for axes in grid.flat:
        axes.axis('off')
    for index, (picture, truth, predicted) in enumerate(pictures):
        row, start = index // columns, 3 * (index % columns)
        with Image.open(picture) as opened:
            image = np.asarray(opened.convert('RGB'))
        grid[row][start].imshow(image)
        grid[row][start].set_title(Path(picture).stem, fontsize=7)
        for offset, (name, shown) in enumerate((('truth', truth), ('prediction', predicted)), start=1):
            seen |= set(np.unique(shown.labels[shown.labels < len(classes)]).tolist())
            grid[row][start + offset].imshow(overlay(image, shown, len(classes)))
            grid[row][start + offset].set_title(name, fontsize=7)
    handles = [Patch(color=class_colour(index), label=classes[index]) for index in sorted(seen)]
    if handles:
        figure.legend(handles=handles, loc='outside lower center', ncol=min(len(handles), 9), fontsize=8, frameon=False)
    path = Path(out_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format='png', dpi=DPI)
    return path


def evenly(pictures: Sequence, number: int, *, columns: int, tile: int) -> list:
    """So many of the pictures, from all of them.

    Raises:
        ValueError: If there is no picture, or an argument is out of range.
    """
    if columns < 1 or tile < 64 or number < 1:
        raise ValueError(f'columns, tile, number are {columns}, {tile}, {number}; allowed: from 1, from 64, from 1')
    if not pictures:
        raise ValueError('there is no picture to draw')
    return evenly_spaced(pictures, number)


def draw_label_maps(
    pictures: Sequence[tuple[str | Path, str | Path, str | Path]],
    classes: Sequence[str],
    out_file: str | Path,
    *,
    reduce_zero_label: bool = False,
    number: int = 8,
    columns: int = 2,
    tile: int = 220,
    title: str = '',
) -> Path:
    """Draw pictures in threes, the picture, the truth and the prediction, into one PNG.

    Args:
        pictures: Paths of picture, label map and predicted label map; taken evenly.
        classes: Names of the classes.
        out_file: Where to write it; folders are made.
        reduce_zero_label: Whether both maps hold 0 for no class and 1 for the first one, as ADE20K's.
        number: Pictures.
        columns: Threes in a row.
        tile: Side of a picture on the sheet in pixels, at least 64.
        title: One line above all.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is no picture, or an argument is out of range.
    """
    chosen = evenly(pictures, number, columns=columns, tile=tile)
    maps = [
        (picture, *(LabelMap(_read(path, reduce_zero_label=reduce_zero_label)) for path in paths))
        for picture, *paths in chosen
    ]
    return draw_maps(maps, classes, out_file, columns=columns, tile=tile, title=title)


def _read(path: str | Path, *, reduce_zero_label: bool) -> np.ndarray:
    with Image.open(path) as opened:
        labels = np.asarray(opened).astype(np.int64)
    if reduce_zero_label:
        labels = np.where(labels == 255, 255, labels - 1)
    return np.where(labels < 0, 255, labels)
