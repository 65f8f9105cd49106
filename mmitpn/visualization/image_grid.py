"""Images with their boxes, masks and class names, drawn side by side by matplotlib."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.transforms import Bbox

DPI = 100
# Legible as thin lines on photographs; classes beyond these twelve get hues by the golden ratio.
_COLORS = (
    *('#e6194b', '#3cb44b', '#ffd500', '#2f6bff', '#f58231', '#c13cff'),
    *('#22d3d3', '#ff5cc8', '#9ad100', '#a0522d', '#008f7a', '#b8a2ff'),
)


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and what to draw on it.

    Attributes:
        image: RGB, uint8 ``(H, W, 3)``.
        title: One line above it.
        labels: Class index of each object.
        texts: What to write at each box.
        boxes: x1, y1, x2, y2 in pixels of each object; empty for none at all.
        masks: bool ``(H, W)`` of each object, the most important first; empty for none at all.
        crowd: Indices of objects that are COCO crowd regions: their boxes are dotted.
    """

    image: np.ndarray
    title: str = ''
    labels: Sequence[int] = ()
    texts: Sequence[str] = ()
    boxes: Sequence[Sequence[float]] = ()
    masks: Sequence[np.ndarray] = ()
    crowd: Sequence[int] = ()


def class_color(index: int) -> tuple[float, float, float]:
    """RGB in [0, 1] of the class with an index from 0.

    Raises:
        ValueError: If the index is negative.
    """
    if index < 0:
        raise ValueError(f'class index is {index}; allowed: 0 and up')
    if index < len(_COLORS):
        return to_rgb(_COLORS[index])
    return colorsys.hsv_to_rgb(index * 0.61803398875 % 1, 0.55 + 0.4 * (index % 2), 0.95 - 0.25 * (index % 3 == 0))


def text_color(background: Sequence[float]) -> str:
    """Black or white, whichever is more legible on a color (RGB in [0, 1])."""
    return 'black' if np.dot(background, (0.299, 0.587, 0.114)) > 0.55 else 'white'


def paint(image: np.ndarray, labels: np.ndarray, strength: float) -> np.ndarray:
    """Blend an image ``(H, W, 3)`` with the color of each pixel's class ``(H, W)``; negative classes stay unpainted."""
    classes, index = np.unique(labels, return_inverse=True)
    colors = np.array([(0, 0, 0) if label < 0 else class_color(label) for label in classes.tolist()]) * 255
    blended = image + strength * (colors[index.reshape(labels.shape)] - image)
    return np.where((labels < 0)[..., None], image, np.rint(blended)).astype(np.uint8)


def draw_image_grid(
    images: Iterable[AnnotatedImage], *, columns: int, tile: int, title: str = '', legend: dict[str, int] | None = None
) -> Figure:
    """Draw images row by row.

    Args:
        images: The images.
        columns: Images per row.
        tile: Side of the square that each image is fitted into, in pixels.
        title: One line above all.
        legend: Class name -> class index.

    Returns:
        The figure, ``columns * tile`` pixels wide.

    Raises:
        ValueError: If there is no image, or an argument is out of range.
    """
    images, legend = list(images), legend or {}
    if columns < 1 or tile < 32:
        raise ValueError(f'columns is {columns} and tile {tile}; allowed: 1 and up, 32 and up')
    if not images:
        raise ValueError('there is no image to draw')
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights = [
        tile * max(min(1.0, one.image.shape[0] / one.image.shape[1]) for one in row)
        + 22 * any(one.title for one in row)
        for row in rows
    ]
    per_row = max(1, min(len(legend), columns * tile // (8 * max(map(len, legend), default=0) + 50)))
    height = sum(heights) + (34 if title else 0) + (20 * -(-len(legend) // per_row) + 12 if legend else 0)
    figure = Figure(figsize=(columns * tile / DPI, round(height) / DPI), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=4 / DPI, h_pad=4 / DPI, wspace=0, hspace=0)
    figure.suptitle(title, fontsize=12)
    if legend:
        handles = [Patch(color=class_color(index), label=name) for name, index in legend.items()]
        style = {'fontsize': 9, 'frameon': False, 'handlelength': 1.2}
        figure.legend(handles=handles, loc='outside lower center', ncol=per_row, **style)
    grid = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={'height_ratios': heights}).ravel()
    for axes in grid:
        axes.axis('off')
        axes.set_anchor('N')
    for axes, one in zip(grid, images, strict=False):
        axes.set_title(one.title, fontsize=9, pad=3)
        axes.imshow(_with_masks(one))
    figure.draw_without_rendering()  # places the axes; texts are placed by their size in pixels
    figure.set_layout_engine('none')
    for axes, one in zip(grid, images, strict=False):
        _draw_boxes(axes, one)
    return figure


def save_figure(figure: Figure, out_file: str | Path) -> Path:
    """Write a figure as a PNG file, and create its folder; returns its path."""
    path = Path(out_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format='png', dpi=figure.dpi)
    return path


def _with_masks(one: AnnotatedImage) -> np.ndarray:
    labels = np.full(one.image.shape[:2], -1)
    for mask, label in reversed(list(zip(one.masks, one.labels, strict=False))):
        labels[mask] = label
    return paint(one.image, labels, 0.5)


def _draw_boxes(axes: Axes, one: AnnotatedImage) -> None:
    """Draw boxes and their texts; a text that has no free position is left out, the color names the class."""
    outline = [withStroke(linewidth=3.2, foreground=(0, 0, 0, 0.7))]
    for index, (box, label) in enumerate(zip(one.boxes, one.labels, strict=False)):
        x1, y1, x2, y2 = box
        style = {'linewidth': 1.6, 'linestyle': ':' if index in one.crowd else '-', 'path_effects': outline}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=class_color(label), **style))
    taken: list[Bbox] = []
    for box, label, words in zip(one.boxes, one.labels, one.texts, strict=False):
        color = class_color(label)
        background = {'facecolor': color, 'edgecolor': 'none', 'pad': 1.5}
        text = axes.text(0, 0, words, fontsize=8, color=text_color(color), bbox=background, zorder=4)
        if not _place(text, box, one.image.shape[1], axes.bbox.padded(1), taken):
            text.remove()


def _place(text: Text, box: Sequence[float], width: int, inside: Bbox, taken: list[Bbox]) -> bool:
    """Move a text to a free position above, below or inside its box; whether there is one."""
    x1, y1, x2, y2 = box
    for y, vertical in ((y1, 'bottom'), (y2, 'top'), (y1, 'top'), (y2, 'bottom')):
        for x, horizontal in ((max(x1, 0), 'left'), (min(x2, width), 'right')):
            text.set(position=(x, y), ha=horizontal, va=vertical)
            extent = text.get_window_extent().padded(1.5 * DPI / 72)
            if not extent.count_overlaps(taken) and Bbox.union([extent, inside]).size.tolist() == inside.size.tolist():
                taken.append(extent)
                return True
    return False
