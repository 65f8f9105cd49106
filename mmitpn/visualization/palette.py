"""Class colours that stay apart on photographs."""

from __future__ import annotations

import colorsys

Colour = tuple[float, float, float]

# Strong enough for a thin line on any background; the first twelve are chosen by eye, the rest by the golden ratio.
_FIRST = (
    '#e6194b',
    '#3cb44b',
    '#ffd500',
    '#2f6bff',
    '#f58231',
    '#c13cff',
    '#22d3d3',
    '#ff5cc8',
    '#9ad100',
    '#a0522d',
    '#008f7a',
    '#b8a2ff',
)
_GOLDEN = 0.61803398875


def class_colour(index: int) -> Colour:
    """RGB in [0, 1] of a class.

    Args:
        index: Place of the class, from 0.

    Raises:
        ValueError: If the index is negative.
    """
    if index < 0:
        raise ValueError(f'class index is {index}; allowed: 0 and up')
    if index < len(_FIRST):
        digits = _FIRST[index]
        red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return red, green, blue
    return colorsys.hsv_to_rgb(index * _GOLDEN % 1, 0.55 + 0.4 * (index % 2), 0.95 - 0.25 * (index % 3 == 0))


def text_colour(background: Colour) -> str:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = background
    return 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else 'white'
