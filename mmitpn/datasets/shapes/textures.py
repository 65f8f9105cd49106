"""Textures: a field of values in [0, 1] for each kind, and the colors blended along it.

Only ``Generator.random`` is drawn from, and everything is computed in float64, so that a seed gives the same image on
any machine and numpy version.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np

Rgb = tuple[float, float, float]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between low and high."""
    return low + (high - low) * rng.random()


def pick(rng: np.random.Generator, options: tuple) -> object:
    """Draw one of the options, each as likely as another."""
    return options[int(rng.random() * len(options))]


def value_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth random values, interpolated between the points of a random grid.

    Args:
        rng: Source of the grid's values.
        height: Height in pixels.
        width: Width in pixels.
        cell: Distance of the grid's points in pixels.

    Returns:
        np.ndarray: float64 (height, width) in [0, 1].
    """
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
    """Colors along a field.

    Args:
        field: (height, width) in [0, 1].
        first: RGB in [0, 1] where the field is 0.
        second: RGB in [0, 1] where the field is 1.

    Returns:
        np.ndarray: float64 (height, width, 3) in [0, 255].
    """
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
    """Two vivid colors of an object that stand out from what is behind it.

    Args:
        rng: Source of the colors.
        behind: Mean RGB behind the object, (3,) in [0, 255].

    Returns:
        tuple: Two RGB colors in [0, 1].
    """
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
