"""A sheet of predictions next to the ground truth, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from .coco_sheet_data import SheetImage, Thing, read_sheet_images
from .contact_sheet import decode
from .palette import class_colour, text_colour

DPI = 100
_GAP = 8  # pixels between the two halves of a pair
_MARGIN = 18  # pixels around a pair
_CAPTION = 22  # pixels for the line above an image
_TITLE = 44  # pixels for the title
_LEGEND_ROW = 20  # pixels for a row of the legend
_FONT = 8.5  # points
_CHARACTER, _LINE = 0.61 * _FONT * DPI / 72, 1.45 * _FONT * DPI / 72  # pixels, at most, for a letter and a line


def _fit(path: Path, tile: int) -> tuple[np.ndarray, float, tuple[int, int]]:
    """An image scaled to fit the tile, the factor, and its own width and height.

    Small ones grow by whole pixels' worth: nothing is invented.
    """
    with Image.open(path) as opened:
        image = opened.convert('RGB')
    factor = tile / max(image.size)
    size = tuple(max(1, round(side * factor)) for side in image.size)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS)), factor, image.size


def _place_label(
    box: tuple[float, float, float, float], width: float, limits: tuple[float, float], taken: list[tuple]
) -> tuple[float, float] | None:
    """Top left corner of a free place for a label at a box: above, below or inside; None if all are taken."""
    x, y, w, h = box
    left = min(max(x, 0), max(limits[0] - width, 0))
    right = min(max(x + w - width, 0), max(limits[0] - width, 0))
    tops = (y - _LINE - 2, y + h + 2, y + 2, y + h - _LINE - 2)
    for top in tops:
        for start in (left, right):
            if top < 0 or top + _LINE > limits[1]:
                continue
            if all(start + width <= a or start >= a + c or top + _LINE <= b or top >= b + d for a, b, c, d in taken):
                taken.append((start, top, width, _LINE))
                return start, top
    return None


def _draw_things(axes: Axes, things: Sequence[Thing], factor: float, limits: tuple[float, float], names: list) -> None:
    taken: list[tuple] = []
    outline = [withStroke(linewidth=3.4, foreground=(0, 0, 0, 0.75))]
    for thing in things:
        x, y, w, h = (value * factor for value in thing.box)
        colour = class_colour(thing.category)
        axes.add_patch(
            Rectangle(
                (x, y),
                w,
                h,
                fill=False,
                edgecolor=colour,
                linewidth=1.7,
                linestyle=':' if thing.crowd else '-',
                path_effects=outline,
            )
        )
    for thing in things:
        colour = class_colour(thing.category)
        words = names[thing.category] if thing.score is None else f'{names[thing.category]} {thing.score:.2f}'
        width = len(words) * _CHARACTER + 4
        box = tuple(value * factor for value in thing.box)
        place = _place_label(box, width, limits, taken)
        if place is None:
            continue
        axes.add_patch(Rectangle(place, width, _LINE, facecolor=colour, edgecolor='none', zorder=3))
        axes.text(
            place[0] + width / 2,
            place[1] + _LINE / 2,
            words,
            color=text_colour(colour),
            fontsize=_FONT,
            ha='center',
            va='center_baseline',
            zorder=4,
        )


def _draw_masks(axes: Axes, things: Sequence[Thing], size: tuple[int, int], limits: tuple[float, float]) -> None:
    """Shade the masks, the last ones first, so that the best one is on top."""
    width, height = size
    shade = np.zeros((height, width, 4))
    for thing in reversed(things):
        if thing.segmentation:
            shade[decode(thing.segmentation, height, width)] = (*class_colour(thing.category), 0.55)
    axes.imshow(shade, extent=(0, limits[0], limits[1], 0), interpolation='nearest')


def _caption(sheet_image: SheetImage, *, ground_truth: bool) -> str:
    if ground_truth:
        number = sum(not thing.crowd for thing in sheet_image.ground_truth)
        return f'ground truth: {number or "no"} object{"" if number == 1 else "s"}'
    return f'prediction: {len(sheet_image.found) or "none"}'


def draw_predictions(
    ann_file: str | Path,
    img_dir: str | Path,
    results: str | Path | Sequence[dict],
    out_file: str | Path,
    *,
    number: int = 12,
    score_threshold: float = 0.3,
    columns: int = 2,
    tile: int = 260,
    title: str = '',
    masks: bool = False,
) -> Path:
    """Draw images in pairs, the ground truth on the left and the predictions on the right, into one PNG.

    Images are taken evenly from the whole file. A label that would lie on another one is left out; the colour still
    names the class.

    Args:
        ann_file: COCO instances.
        img_dir: Folder that its file names start from.
        results: COCO detections (bbox as x, y, width, height in pixels), or the JSON file of them.
        out_file: Where to write it; folders are made.
        number: Images.
        score_threshold: Predictions below are not drawn.
        columns: Pairs in a row.
        tile: Longer side of every image on the sheet, in pixels, at least 64.
        title: One line above all.
        masks: Shade the masks too, where both files have them.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is no COCO file, the two do not belong together, or an argument is out of range.
    """
    if columns < 1 or tile < 64:
        raise ValueError(f'columns is {columns} and tile {tile}; allowed: 1 and up, 64 and up')
    sheet_images, names = read_sheet_images(ann_file, img_dir, results, number=number, score_threshold=score_threshold)
    columns = min(columns, len(sheet_images))
    rows = -(-len(sheet_images) // columns)
    fitted = [_fit(sheet_image.path, tile) for sheet_image in sheet_images]
    heights = [max(image.shape[0] for image, _, _ in fitted[r * columns : (r + 1) * columns]) for r in range(rows)]

    pair = 2 * tile + _GAP
    width = columns * (pair + _MARGIN) + _MARGIN
    used = sorted({thing.category for one in sheet_images for thing in (*one.ground_truth, *one.found)})
    a_row = max(1, int((width - 2 * _MARGIN) // (max((len(names[i]) for i in used), default=1) * _CHARACTER + 50)))
    legend = -(-len(used) // a_row) * _LEGEND_ROW + (_MARGIN if used else 0)
    height = _TITLE + sum(heights) + rows * (_CAPTION + _MARGIN) + legend
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor='white')
    FigureCanvasAgg(figure)
    heading = title or Path(ann_file).name
    figure.text(
        _MARGIN / width, 1 - _TITLE / 2 / height, f'{heading}   (score at least {score_threshold:g})', fontsize=12,
        va='center',
    )  # fmt: skip

    top = _TITLE
    for row in range(rows):
        for column in range(columns):
            index = row * columns + column
            if index >= len(sheet_images):
                break
            sheet_image, (image, factor, own_size) = sheet_images[index], fitted[index]
            for half in (0, 1):
                left = _MARGIN + column * (pair + _MARGIN) + half * (tile + _GAP)
                caption = _caption(sheet_image, ground_truth=half == 0)
                figure.text(
                    left / width, 1 - (top + _CAPTION - 4) / height, caption, fontsize=9.5, va='bottom',
                    color='#333333',
                )  # fmt: skip
                h, w = image.shape[:2]
                axes = figure.add_axes((left / width, 1 - (top + _CAPTION + h) / height, w / width, h / height))
                axes.imshow(image, extent=(0, w, h, 0), interpolation='nearest')
                axes.set(xlim=(0, w), ylim=(h, 0))
                axes.axis('off')
                things = sheet_image.found if half else sheet_image.ground_truth
                if masks:
                    _draw_masks(axes, things, own_size, (w, h))
                _draw_things(axes, things, factor, (w, h), names)
        top += heights[row] + _CAPTION + _MARGIN
    if used:
        handles = [Line2D([], [], color=class_colour(i), linewidth=5, label=names[i]) for i in used]
        figure.legend(
            handles=handles, loc='lower center', ncol=a_row, frameon=False, fontsize=9.5, handlelength=1.2,
            columnspacing=1.6, borderaxespad=0.4,
        )  # fmt: skip
    path = Path(out_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format='png', dpi=DPI)
    return path
