"""Masks as COCO segmentations: polygons along the pixels' edges, which decode to exactly the mask they came from."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Point = tuple[int, int]


def segmentation_of(mask: np.ndarray) -> list[list[int]] | dict[str, Any]:
    """Write a mask as a COCO segmentation.

    Args:
        mask: bool (height, width), the whole image.

    Returns:
        list | dict: Polygons ``[[x, y, x, y, ...], ...]`` that decode to the same pixels; a compressed RLE where
            polygons cannot (COCO's readers rasterize them in their own way).
    """
    height, width = mask.shape
    polygons = [[c for point in loop for c in point] for loop in trace(mask)]
    if polygons:
        decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        if np.array_equal(decoded.astype(bool), mask):
            return polygons
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': [height, width], 'counts': rle['counts'].decode('ascii')}


def trace(mask: np.ndarray, *, offset: Point = (0, 0)) -> list[list[Point]]:
    """Outlines of a mask along pixel edges. A mask with a hole is cut in two through it: COCO polygons have no holes.

    Args:
        mask: bool (height, width).
        offset: (x, y) added to every point.

    Returns:
        list: Loops of corner points (x, y), clockwise, one for each part.
    """
    loops = _loops(mask)
    for loop in loops:
        if _is_hole(loop):
            cut = (min(x for x, _ in loop) + max(x for x, _ in loop)) // 2
            left = trace(mask[:, :cut], offset=offset)
            return left + trace(mask[:, cut:], offset=(offset[0] + cut, offset[1]))
    return [[(x + offset[0], y + offset[1]) for x, y in loop] for loop in loops]


def _is_hole(loop: list[Point]) -> bool:
    """Whether a loop runs around a hole: counter-clockwise, its area counts below 0."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1], strict=True)) < 0


def _loops(mask: np.ndarray) -> list[list[Point]]:
    """Follow the edges between inside and outside, the inside on the right hand; straight runs are joined."""
    padded = np.pad(mask.astype(bool), 1)
    inside = padded[1:-1, 1:-1]
    sides = (  # the pixel's side, as the neighbor it looks at, where it starts and the step along it
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (0, 1)),
        (padded[2:, 1:-1], (1, 1), (-1, 0)),
        (padded[1:-1, :-2], (0, 1), (0, -1)),
    )
    steps: dict[Point, list[Point]] = {}
    for neighbor, (dx, dy), step in sides:
        for y, x in np.argwhere(inside & ~neighbor).tolist():
            steps.setdefault((x + dx, y + dy), []).append(step)

    loops = []
    while steps:
        point = start = next(iter(steps))
        step, loop = (0, 0), []
        while point in steps:
            # Where two pixels touch at a corner only, the right turn stays with the pixel it came along.
            options = steps[point]
            turn = (-step[1], step[0])
            chosen = turn if turn in options else options[0]
            options.remove(chosen)
            if not options:
                del steps[point]
            if chosen != step:
                loop.append(point)
            step = chosen
            point = (point[0] + step[0], point[1] + step[1])
        if point != start:
            raise RuntimeError(f'the outline of a mask of {int(mask.sum())} pixels does not close at {point}')
        loops.append(loop)
    return loops
