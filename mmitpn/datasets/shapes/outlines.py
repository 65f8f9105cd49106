"""The shapes as coverage: how much of each pixel lies inside, from 4x4 points per pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

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
