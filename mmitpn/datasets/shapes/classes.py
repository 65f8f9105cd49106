"""The classes of the generated dataset: things are shapes, stuff is the texture behind them."""

from __future__ import annotations

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
