"""One image: textured regions behind, shapes before them, and which pixel shows what."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .classes import SHAPES_CLASSES, SHAPES_STUFF
from .outlines import Outline, Window, coverage
from .textures import FIELDS, background_colors, between, blend, object_colors, pick, value_noise

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
    """One to three textured regions parted by wavy lines.

    Returns:
        tuple: Colors float64 (height, width, 3) and stuff labels int32 (height, width) as in ``DrawnImage``.
    """
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

    Args:
        rng: Source of the shape and its position.
        instances: The visible object of each pixel, as in ``DrawnImage``.
        full_areas: Pixels of each earlier object when it was drawn.
        placed: The earlier objects.

    Returns:
        tuple | None: The shape with its coverage and window as ``coverage`` gives them, or None when the image has no
            room for it.
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
