"""A sheet of predicted label maps next to the ground truth, for a person to look at."""

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
_STRENGTH = 0.65  # of the colour over the image


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
    """The image with each class in its colour and a line between segments; pixels of no class stay grey."""
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
    images: Sequence[tuple[str | Path, LabelMap, LabelMap]],
    classes: Sequence[str],
    out_file: str | Path,
    *,
    columns: int,
    tile: int,
    title: str,
) -> Path:
    """Draw images in threes, the image, the ground truth and the prediction, into one PNG.

    Args:
        images: Path of the image, ground truth and prediction.
        classes: Names of the classes.
        out_file: Where to write it; folders are made.
        columns: Threes in a row.
        tile: Side of an image on the sheet in pixels.
        title: One line above all.

    Returns:
        The path written.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * 3 * tile / DPI, (rows * (tile + 24) + 90) / DPI), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.subplots(rows, 3 * columns, squeeze=False)
    seen: set[int] = set()
    for axes in grid.flat:
        axes.axis('off')
    for index, (image_file, ground_truth, predicted) in enumerate(images):
        row, start = index // columns, 3 * (index % columns)
        with Image.open(image_file) as opened:
            image = np.asarray(opened.convert('RGB'))
        grid[row][start].imshow(image)
        grid[row][start].set_title(Path(image_file).stem, fontsize=7)
        for offset, (name, shown) in enumerate((('ground truth', ground_truth), ('prediction', predicted)), start=1):
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


def evenly(images: Sequence, number: int, *, columns: int, tile: int) -> list:
    """At most ``number`` of the images, evenly spaced over all of them.

    Raises:
        ValueError: If there is no image, or an argument is out of range.
    """
    if columns < 1 or tile < 64 or number < 1:
        raise ValueError(f'columns, tile, number are {columns}, {tile}, {number}; allowed: from 1, from 64, from 1')
    if not images:
        raise ValueError('there is no image to draw')
    return evenly_spaced(images, number)


def draw_label_maps(
    images: Sequence[tuple[str | Path, str | Path, str | Path]],
    classes: Sequence[str],
    out_file: str | Path,
    *,
    reduce_zero_label: bool = False,
    number: int = 8,
    columns: int = 2,
    tile: int = 220,
    title: str = '',
) -> Path:
    """Draw images in threes, the image, the ground truth and the prediction, into one PNG.

    Args:
        images: Paths of image, label map and predicted label map; taken evenly.
        classes: Names of the classes.
        out_file: Where to write it; folders are made.
        reduce_zero_label: Whether both maps hold 0 for no class and 1 for the first one, as ADE20K's.
        number: Images.
        columns: Threes in a row.
        tile: Side of an image on the sheet in pixels, at least 64.
        title: One line above all.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is no image, or an argument is out of range.
    """
    chosen = evenly(images, number, columns=columns, tile=tile)
    maps = [
        (image_file, *(LabelMap(_read(path, reduce_zero_label=reduce_zero_label)) for path in paths))
        for image_file, *paths in chosen
    ]
    return draw_maps(maps, classes, out_file, columns=columns, tile=tile, title=title)


def _read(path: str | Path, *, reduce_zero_label: bool) -> np.ndarray:
    with Image.open(path) as opened:
        labels = np.asarray(opened).astype(np.int64)
    if reduce_zero_label:
        labels = np.where(labels == 255, 255, labels - 1)
    return np.where(labels < 0, 255, labels)
