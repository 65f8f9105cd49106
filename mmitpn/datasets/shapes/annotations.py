"""The ground truth of an image as the COCO and ADE20K formats write it."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mmitpn.utils import id2rgb, mask_to_box

from .drawing import SHAPES_CLASSES, SHAPES_PALETTE, SHAPES_STUFF, SHAPES_STUFF_PALETTE, DrawnImage


def thing_categories() -> list[dict[str, Any]]:
    """Categories of the instance files, ids from 1."""
    return [{'id': i + 1, 'name': name, 'supercategory': 'shape'} for i, name in enumerate(SHAPES_CLASSES)]


def panoptic_categories() -> list[dict[str, Any]]:
    """Categories of the panoptic files: the things, then the stuff."""
    names = (*SHAPES_CLASSES, *SHAPES_STUFF)
    colors = (*SHAPES_PALETTE, *SHAPES_STUFF_PALETTE)
    return [
        {
            'id': i + 1,
            'name': name,
            'supercategory': 'shape' if i < len(SHAPES_CLASSES) else 'texture',
            'isthing': int(i < len(SHAPES_CLASSES)),
            'color': list(color),
        }
        for i, (name, color) in enumerate(zip(names, colors, strict=True))
    ]


def instance_annotations(drawn: DrawnImage, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO instance annotations of an image.

    Args:
        drawn: The image and its ground truth.
        image_id: Its id.
        first_id: Id of the first annotation; the others count on.

    Returns:
        list: One dictionary per object, of its visible pixels.
    """
    annotations = []
    for index, label in enumerate(drawn.objects):
        mask = drawn.instances == index + 1
        annotations.append(
            {
                'id': first_id + index,
                'image_id': image_id,
                'category_id': label + 1,
                'bbox': mask_to_box(mask),
                'area': int(mask.sum()),
                'iscrowd': 0,
                'segmentation': segmentation_of(mask),
            }
        )
    return annotations


def panoptic_annotation(drawn: DrawnImage, image_id: int, file_name: str) -> tuple[dict[str, Any], np.ndarray]:
    """COCO panoptic annotation of an image.

    Args:
        drawn: The image and its ground truth.
        image_id: Its id.
        file_name: Name of the PNG that will hold the segments.

    Returns:
        tuple: The annotation, and the PNG's pixels, uint8 (height, width, 3), whose R + 256 G + 65536 B is the
            id of the segment, 0 where nothing is labeled.
    """
    segments: list[dict[str, Any]] = []
    ids = np.zeros(drawn.instances.shape, dtype=np.int64)
    masks = [(label + 1, drawn.instances == i + 1) for i, label in enumerate(drawn.objects)]
    behind = drawn.instances == 0
    masks += [(len(SHAPES_CLASSES) + i + 1, behind & (drawn.stuff == i + 1)) for i in range(len(SHAPES_STUFF))]
    for number, (category, mask) in enumerate(masks):
        if not mask.any():
            continue
        # Ids far apart, so that the PNG shows the segments to the eye.
        segment_id = 1 + (number + 1) * 1_234_567 + category
        ids[mask] = segment_id
        segments.append(
            {
                'id': segment_id,
                'category_id': category,
                'bbox': mask_to_box(mask),
                'area': int(mask.sum()),
                'iscrowd': 0,
            }
        )
    return {'image_id': image_id, 'file_name': file_name, 'segments_info': segments}, id2rgb(ids)


def semantic_labels(drawn: DrawnImage) -> np.ndarray:
    """Labels in ADE20K's convention.

    Args:
        drawn: The image and its ground truth.

    Returns:
        np.ndarray: uint8 (height, width): 0 unlabeled, 1 to 5 the things, 6 to 9 the stuff.
    """
    stuff = np.where(drawn.stuff > 0, drawn.stuff + len(SHAPES_CLASSES), 0)
    things = np.array([0, *(label + 1 for label in drawn.objects)])[drawn.instances]
    return np.where(drawn.instances > 0, things, stuff).astype(np.uint8)


# --- masks as polygons along the edges of pixels, which decode to exactly the mask they came from ---

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
