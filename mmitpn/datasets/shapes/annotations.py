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


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool (height, width), as COCO's compressed RLE, which JSON can hold."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {**rle, 'counts': rle['counts'].decode('ascii')}


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
                'segmentation': encode_mask(mask),
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
