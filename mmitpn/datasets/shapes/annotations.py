"""The truth of a picture as the COCO and ADE20K formats write it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .classes import SHAPES_CLASSES, SHAPES_PALETTE, SHAPES_STUFF, SHAPES_STUFF_PALETTE
from .drawing import Picture
from .polygons import segmentation_of


def thing_categories() -> list[dict[str, Any]]:
    """Categories of the instance files, ids from 1."""
    return [{'id': i + 1, 'name': name, 'supercategory': 'shape'} for i, name in enumerate(SHAPES_CLASSES)]


def panoptic_categories() -> list[dict[str, Any]]:
    """Categories of the panoptic files: the things, then the stuff."""
    names = (*SHAPES_CLASSES, *SHAPES_STUFF)
    colours = (*SHAPES_PALETTE, *SHAPES_STUFF_PALETTE)
    return [
        {
            'id': i + 1,
            'name': name,
            'supercategory': 'shape' if i < len(SHAPES_CLASSES) else 'texture',
            'isthing': int(i < len(SHAPES_CLASSES)),
            'color': list(colour),
        }
        for i, (name, colour) in enumerate(zip(names, colours, strict=True))
    ]


def tight_box(mask: np.ndarray) -> list[int]:
    """The smallest box around a mask's pixels.

    Args:
        mask: bool (height, width) with at least one pixel.

    Returns:
        list: x, y, width, height in pixels.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def instance_annotations(picture: Picture, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO instance annotations of a picture.

    Args:
        picture: The picture.
        image_id: Its id.
        first_id: Id of the first annotation; the others count on.

    Returns:
        list: One dictionary an object, of its visible pixels.
    """
    annotations = []
    for index, label in enumerate(picture.objects):
        mask = picture.instances == index + 1
        annotations.append(
            {
                'id': first_id + index,
                'image_id': image_id,
                'category_id': label + 1,
                'bbox': tight_box(mask),
                'area': int(mask.sum()),
                'iscrowd': 0,
                'segmentation': segmentation_of(mask),
            }
        )
    return annotations


def panoptic_annotation(picture: Picture, image_id: int, file_name: str) -> tuple[dict[str, Any], np.ndarray]:
    """COCO panoptic annotation of a picture.

    Args:
        picture: The picture.
        image_id: Its id.
        file_name: Name of the PNG that will hold the segments.

    Returns:
        tuple: The annotation, and the PNG's pixels, uint8 (height, width, 3), whose R + 256 G + 65536 B is the
            id of the segment, 0 where nothing is labelled.
    """
    segments: list[dict[str, Any]] = []
    ids = np.zeros(picture.instances.shape, dtype=np.int64)
    masks = [(label + 1, picture.instances == i + 1) for i, label in enumerate(picture.objects)]
    behind = picture.instances == 0
    masks += [(len(SHAPES_CLASSES) + i + 1, behind & (picture.stuff == i + 1)) for i in range(len(SHAPES_STUFF))]
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
                'bbox': tight_box(mask),
                'area': int(mask.sum()),
                'iscrowd': 0,
            }
        )
    pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    return {'image_id': image_id, 'file_name': file_name, 'segments_info': segments}, pixels


def semantic_labels(picture: Picture) -> np.ndarray:
    """Labels in ADE20K's convention.

    Args:
        picture: The picture.

    Returns:
        np.ndarray: uint8 (height, width): 0 unlabelled, 1 to 5 the things, 6 to 9 the stuff.
    """
    stuff = np.where(picture.stuff > 0, picture.stuff + len(SHAPES_CLASSES), 0)
    things = np.array([0, *(label + 1 for label in picture.objects)])[picture.instances]
    return np.where(picture.instances > 0, things, stuff).astype(np.uint8)
