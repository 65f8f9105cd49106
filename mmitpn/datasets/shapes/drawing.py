"""One generated image: textured regions behind, shapes before them, and the class of every pixel.

The drawing comes first, then the shapes as coverage of pixels, then the textures. Only ``Generator.random`` is drawn
from, and everything is computed in float64, so that a seed gives the same image on any machine and numpy version.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SHAPES_CLASSES: tuple[str, ...] = ('circle', 'square', 'triangle', 'star', 'ring')
"""Thing classes. Category ids 1 to 5 in the COCO files, labels 1 to 5 in the ADE20K images."""

SHAPES_STUFF: tuple[str, ...] = ('gradient', 'noise', 'stripes', 'checker')
"""Stuff classes. Category ids 6 to 9 in the panoptic files, labels 6 to 9 in the ADE20K images."""

SHAPES_PALETTE: tuple[tuple[int, int, int], ...] = (
    (230, 60, 60),
    (60, 120, 240),
    (250, 190, 30),
    (170, 70, 220),
    (40, 200, 130),
)
"""RGB colors of the things, for drawing."""

SHAPES_STUFF_PALETTE: tuple[tuple[int, int, int], ...] = (
    (150, 170, 190),
    (140, 120, 90),
    (90, 130, 140),
    (190, 180, 150),
)
"""RGB colors of the stuff, for drawing."""

MAX_OBJECTS = 5
SIDE_RANGE = (12.0, 96.0)
"""Diameter of an object in pixels."""
MIN_VISIBLE_PIXELS = 20
"""No object shows less than this."""
MIN_VISIBLE_FRACTION = 0.55
"""Later objects leave at least this much of an earlier one."""
EDGE_REACH = 0.7
"""No object reaches further over the image's edge than this fraction of its radius."""
MASK_FROM = 0.5
"""A pixel belongs to an object that covers at least this much of it."""
EMPTY_EVERY = 25
"""One image in this many has no object: 4 %."""


@dataclass(frozen=True)
class DrawnImage:
    """A drawn image and its ground truth.

    Args:
        image: RGB, uint8 (height, width, 3).
        objects: Index into ``SHAPES_CLASSES`` of each object, in the order of drawing.
        instances: int32 (height, width): 0 where no object is seen, i + 1 where object i is.
        stuff: int32 (height, width): 0 on the seam between two textures, otherwise 1 + index into ``SHAPES_STUFF`` of
            the texture, also behind objects.
    """

    image: np.ndarray
    objects: tuple[int, ...]
    instances: np.ndarray
    stuff: np.ndarray


def draw_image(rng: np.random.Generator, height: int, width: int, *, empty: bool = False) -> DrawnImage:
    """Draw an image.

    Args:
        rng: Source of everything that is drawn.
        height: Height in pixels.
        width: Width in pixels.
        empty: Draw no objects.

    Returns:
        DrawnImage: The image and its ground truth.
    """
    canvas, stuff = _background(rng, height, width)
    instances = np.zeros((height, width), dtype=np.int32)
    objects: list[int] = []
    full_areas: list[int] = []
    placed: list[Outline] = []
    for _ in range(0 if empty else 1 + int(rng.random() * MAX_OBJECTS)):
        shape = _place(rng, instances, full_areas, placed)
        if shape is None:
            continue
        outline, alpha, window = shape
        mask = alpha >= MASK_FROM
        _paint(rng, canvas, outline, alpha, window)
        placed.append(outline)
        objects.append(SHAPES_CLASSES.index(outline.kind))
        full_areas.append(int(mask.sum()))
        instances[window][mask] = len(objects)

    light = 1 + between(rng, -0.25, 0.25) * (FIELDS['gradient'](rng, height, width) - 0.5)
    grain = between(rng, 2, 16) * (rng.random((height, width, 3)) - 0.5)
    image = np.clip(np.rint(canvas * light[..., None] + grain), 0, 255).astype(np.uint8)
    return DrawnImage(image=image, objects=tuple(objects), instances=instances, stuff=stuff)


def _background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """One to three textured regions parted by wavy lines: colors (height, width, 3), and labels of ``DrawnImage``."""
    kinds = list(SHAPES_STUFF)
    canvas = np.zeros((height, width, 3))
    stuff = np.zeros((height, width), dtype=np.int32)
    seam = np.zeros((height, width), dtype=bool)
    draw = rng.random()
    for region in range(1 if draw < 0.4 else 2 if draw < 0.8 else 3):
        kind = kinds.pop(int(rng.random() * len(kinds)))
        first, second = background_colors(rng, kind)
        colors = blend(FIELDS[kind](rng, height, width), first, second)
        if region == 0:
            cover = np.ones((height, width))
        else:
            distance = _wavy_line(rng, height, width)
            cover = np.clip(distance + 0.5, 0, 1)
            seam |= np.abs(distance) < 1
        canvas += cover[..., None] * (colors - canvas)
        stuff[cover >= 0.5] = 1 + SHAPES_STUFF.index(kind)
    stuff[seam] = 0
    return canvas, stuff


def _wavy_line(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """About the distance in pixels from a random wavy line, positive on one side of it: (height, width)."""
    angle = between(rng, 0, 2 * math.pi)
    y0, x0 = between(rng, 0.3, 0.7) * height, between(rng, 0.3, 0.7) * width
    straight = (np.arange(height)[:, None] - y0) * math.sin(angle) + (np.arange(width)[None, :] - x0) * math.cos(angle)
    return straight + between(rng, 0, 30) * (value_noise(rng, height, width, 45) - 0.5)


def _place(
    rng: np.random.Generator, instances: np.ndarray, full_areas: list[int], placed: list[Outline]
) -> tuple[Outline, np.ndarray, Window] | None:
    """Find a shape and a position that leave enough of it, and of every earlier object, visible.

    ``full_areas`` are the pixels of the earlier objects (``placed``) when they were drawn. Returns the shape with what
    ``coverage`` returns for it, or None when the image has no room for it.
    """
    height, width = instances.shape
    low, high = SIDE_RANGE[0], min(SIDE_RANGE[1], 0.75 * min(height, width))
    # Two fifths of the objects come out below 32x32 pixels in area, as small as COCO counts, but few are tiny.
    radius = 0.5 * low * (high / low) ** (rng.random() ** 0.4)
    kind = str(pick(rng, SHAPES_CLASSES))
    angle, squeeze = between(rng, 0, 2 * math.pi), between(rng, 0.82, 1.0)
    waist = between(rng, 0.36, 0.52) if kind == 'star' else between(rng, 0.45, 0.68)
    near = bool(placed) and rng.random() < 0.3
    cut = rng.random() < 0.12
    seen = np.bincount(instances.ravel(), minlength=len(full_areas) + 1)
    for _ in range(12):
        if near:
            other = placed[int(rng.random() * len(placed))]
            reach, direction = (other.radius + radius) * between(rng, 0.5, 0.95), between(rng, 0, 2 * math.pi)
            x, y = other.x + reach * math.cos(direction), other.y + reach * math.sin(direction)
        else:
            margin = (1 - EDGE_REACH) * radius if cut else radius
            x, y = between(rng, margin, width - margin), between(rng, margin, height - margin)
        outline = Outline(kind=kind, x=x, y=y, radius=radius, angle=angle, squeeze=squeeze, waist=waist)
        alpha, window = coverage(outline, height, width)
        mask = alpha >= MASK_FROM
        covered = np.bincount(instances[window][mask], minlength=len(full_areas) + 1)
        left = (seen - covered)[1:]
        others_seen = np.all(left >= np.maximum(MIN_VISIBLE_PIXELS, MIN_VISIBLE_FRACTION * np.array(full_areas)))
        inner = (1 - EDGE_REACH) * radius
        within = inner <= x <= width - inner and inner <= y <= height - inner
        if within and others_seen and mask.sum() >= MIN_VISIBLE_PIXELS:
            return outline, alpha, window
    return None


def _paint(rng: np.random.Generator, canvas: np.ndarray, outline: Outline, alpha: np.ndarray, window: Window) -> None:
    """Paint a shape over the canvas (height, width, 3), in place, with a texture and sometimes a rim."""
    rows, columns = alpha.shape
    behind = canvas[window].reshape(-1, 3).mean(axis=0)
    first, second = object_colors(rng, behind)
    kind = str(pick(rng, ('flat', 'flat', 'gradient', 'gradient', 'noise', 'stripes')))
    field = np.zeros((rows, columns)) if kind == 'flat' else FIELDS[kind](rng, rows, columns)
    colors = blend(field, first, second)
    if rng.random() < 0.3 and outline.kind != 'ring' and outline.radius > 8:
        rim = 255.0 * (rng.random() < 0.5) * np.ones(3)
        inner, _ = coverage(outline, *canvas.shape[:2], scale=1 - 2.0 / outline.radius)
        colors = rim + inner[..., None] * (colors - rim)
    canvas[window] += alpha[..., None] * (colors - canvas[window])


# --- shapes: how much of each pixel lies inside, from 4x4 points per pixel ---

SAMPLES = 4
"""Points per side of a pixel."""
Window = tuple[slice, slice]
"""Rows and columns of an image."""


@dataclass(frozen=True)
class Outline:
    """Where and how a shape is drawn.

    Args:
        kind: One of ``SHAPES_CLASSES``.
        x: Center in pixels from the left edge.
        y: Center in pixels from the top edge.
        radius: Radius of the circle around the shape in pixels.
        angle: Turn in radians.
        squeeze: Width over height before the turn.
        waist: Inner over outer radius of a star (its dents) and of a ring (its hole).
    """

    kind: str
    x: float
    y: float
    radius: float
    angle: float
    squeeze: float
    waist: float


def _corners(outline: Outline) -> list[tuple[float, float]]:
    """Corners of a polygon on the unit circle, before squeeze and turn."""
    steps = {'square': 4, 'triangle': 3, 'star': 10}[outline.kind]
    radii = (1.0, outline.waist) if outline.kind == 'star' else (1.0, 1.0)
    return [
        (radii[i % 2] * math.cos(2 * math.pi * i / steps), radii[i % 2] * math.sin(2 * math.pi * i / steps))
        for i in range(steps)
    ]


def _inside_polygon(u: np.ndarray, v: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Even-odd test of points against a polygon, same shape as u and v, bool."""
    inside = np.zeros(u.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 != y1:
            inside ^= ((v < y0) != (v < y1)) & (u < x0 + (v - y0) * ((x1 - x0) / (y1 - y0)))
    return inside


def coverage(outline: Outline, height: int, width: int, *, scale: float = 1.0) -> tuple[np.ndarray, Window]:
    """How much of each pixel a shape covers.

    Args:
        outline: The shape.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        scale: Below 1 shrinks the shape about its center (for the inner part of an outlined shape).

    Returns:
        tuple: float64 (h, w) in [0, 1], and the rows and columns of the image it stands for. Both are empty where the
            shape lies outside the image.
    """
    y_first, y_last = max(int(outline.y - outline.radius) - 1, 0), min(int(outline.y + outline.radius) + 2, height)
    x_first, x_last = max(int(outline.x - outline.radius) - 1, 0), min(int(outline.x + outline.radius) + 2, width)
    rows, columns = max(y_last - y_first, 0), max(x_last - x_first, 0)
    window = slice(y_first, y_first + rows), slice(x_first, x_first + columns)
    if rows == 0 or columns == 0:
        return np.zeros((rows, columns)), window

    radius = outline.radius * scale
    y = ((np.arange(rows * SAMPLES) + 0.5) / SAMPLES + y_first - outline.y)[:, None] / radius
    x = ((np.arange(columns * SAMPLES) + 0.5) / SAMPLES + x_first - outline.x)[None, :] / radius
    cos, sin = math.cos(outline.angle), math.sin(outline.angle)
    u, v = (x * cos + y * sin) / outline.squeeze, y * cos - x * sin
    if outline.kind in ('circle', 'ring'):
        square = u * u + v * v
        inside = square < 1
        if outline.kind == 'ring':
            inside &= square > outline.waist * outline.waist
    else:
        inside = _inside_polygon(u, v, _corners(outline))
    # Sums of slices: several times as fast as a sum over two axes of a reshaped view.
    lines = sum(inside[i::SAMPLES].astype(np.uint8) for i in range(SAMPLES))
    points = sum(lines[:, i::SAMPLES] for i in range(SAMPLES))
    return points / (SAMPLES * SAMPLES), window


# --- textures: a field of values in [0, 1] for each kind, and the colors blended along it ---

Rgb = tuple[float, float, float]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between low and high."""
    return low + (high - low) * rng.random()


def pick(rng: np.random.Generator, options: tuple) -> object:
    """Draw one of the options, each as likely as another."""
    return options[int(rng.random() * len(options))]


def value_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth random values, (height, width) in [0, 1], between the points of a random grid ``cell`` pixels apart."""
    rows, columns = int(height / cell) + 2, int(width / cell) + 2
    grid = rng.random((rows, columns))
    y, x = np.arange(height) / cell, np.arange(width) / cell
    y0, x0 = y.astype(np.int64), x.astype(np.int64)
    ty, tx = y - y0, x - x0
    ty, tx = (ty * ty * (3 - 2 * ty))[:, None], tx * tx * (3 - 2 * tx)
    lines = grid[y0] * (1 - ty) + grid[y0 + 1] * ty
    return lines[:, x0] * (1 - tx) + lines[:, x0 + 1] * tx


def _turned(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates turned by a random angle: two arrays (height, width)."""
    angle = between(rng, 0, math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    return x * cos + y * sin, y * cos - x * sin


def gradient_field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A linear or radial slope over the whole area, (height, width) in [0, 1]."""
    if rng.random() < 0.6:
        field, _ = _turned(rng, height, width)
    else:
        cy, cx = rng.random() * height, rng.random() * width
        field = np.sqrt((np.arange(height)[:, None] - cy) ** 2 + (np.arange(width)[None, :] - cx) ** 2)
    low, high = float(field.min()), float(field.max())
    return (field - low) / max(high - low, 1e-6)


def noise_field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Blotches: value noise of three sizes, (height, width) in [0, 1]."""
    cell = between(rng, 10, 22)
    field = 0.5 * value_noise(rng, height, width, cell)
    field += 0.3 * value_noise(rng, height, width, cell / 2)
    field += 0.2 * value_noise(rng, height, width, cell / 5)
    return np.clip((field - 0.5) * 2.2 + 0.5, 0, 1)


def stripes_field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Soft-edged, slightly wavy stripes, (height, width) in [0, 1]."""
    period = between(rng, 7, 18)
    along, _ = _turned(rng, height, width)
    wave = between(rng, 0, 0.5) * value_noise(rng, height, width, 40)
    return np.clip(0.5 + 1.2 * np.sin(2 * math.pi * (along / period + wave)), 0, 1)


def checker_field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A soft-edged checker board, (height, width) in [0, 1]."""
    cell = between(rng, 6, 13)
    u, v = _turned(rng, height, width)
    return np.clip(0.5 + 2.0 * np.sin(math.pi * u / cell) * np.sin(math.pi * v / cell), 0, 1)


FIELDS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    'gradient': gradient_field,
    'noise': noise_field,
    'stripes': stripes_field,
    'checker': checker_field,
}
"""The field of each kind of texture; the keys are the stuff classes."""


def blend(field: np.ndarray, first: Rgb, second: Rgb) -> np.ndarray:
    """Colors (height, width, 3) to 255 along a field (height, width): from ``first`` at 0 to ``second`` at 1."""
    low, high = 255 * np.asarray(first), 255 * np.asarray(second)
    return low + field[..., None] * (high - low)


def background_colors(rng: np.random.Generator, kind: str) -> tuple[Rgb, Rgb]:
    """Two colors of a background: muted, and close to each other in the kinds that have edges."""
    hue, saturation, value = rng.random(), between(rng, 0.05, 0.5), between(rng, 0.3, 0.85)
    if kind in ('gradient', 'noise'):
        hue_step, value_step = between(rng, -0.18, 0.18), between(rng, 0.2, 0.4)
    else:
        hue_step, value_step = between(rng, -0.06, 0.06), between(rng, 0.14, 0.26)
    other = value - value_step if value > 0.55 else value + value_step
    return colorsys.hsv_to_rgb(hue, saturation, value), colorsys.hsv_to_rgb((hue + hue_step) % 1, saturation, other)


def object_colors(rng: np.random.Generator, behind: np.ndarray) -> tuple[Rgb, Rgb]:
    """Two vivid RGB colors in [0, 1] that stand out from the mean RGB behind an object, (3,) in [0, 255]."""
    best, best_distance = (0.0, 1.0, 1.0), -1.0
    for _ in range(8):
        hsv = (rng.random(), between(rng, 0.25, 1.0), between(rng, 0.15, 1.0))
        distance = math.dist([255 * c for c in colorsys.hsv_to_rgb(*hsv)], behind.tolist())
        if distance > best_distance:
            best, best_distance = hsv, distance
        if distance > 110:
            break
    hue, saturation, value = best
    other_value = min(max(value + between(rng, -0.3, 0.3), 0.05), 1.0)
    other = colorsys.hsv_to_rgb((hue + between(rng, -0.07, 0.07)) % 1, saturation, other_value)
    return colorsys.hsv_to_rgb(hue, saturation, value), other
