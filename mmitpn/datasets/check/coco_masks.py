"""The masks of a COCO annotation file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .coco_entries import NEAR, Finding
from .wording import listing


def has_mask(annotation: Mapping) -> bool:
    """Whether an annotation has a mask; mmdet takes an empty list, as box-only files have it, for none."""
    return bool(annotation.get('segmentation'))


def check_masks(annotations: Sequence[Mapping], images: Mapping) -> list[Finding]:
    """Look at the masks: polygons and run lengths.

    Args:
        annotations: Annotations; those without a mask are passed over.
        images: Image id -> (width, height).

    Returns:
        What is wrong.
    """
    broken, outside, slightly, other_size = [], [], [], {}
    for annotation in annotations:
        mask, (width, height) = annotation.get('segmentation'), images[annotation['image_id']]
        if not mask:
            continue
        if isinstance(mask, Mapping):
            if list(mask.get('size', ())) != [height, width]:
                other_size[annotation['id']] = f'{annotation["id"]}: {mask.get("size")} for {[height, width]}'
            elif not isinstance(mask.get('counts'), (list, str)):
                broken.append(annotation['id'])
        elif not isinstance(mask, list) or not all(map(_is_polygon, mask)):
            broken.append(annotation['id'])
        else:
            points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in mask])
            # A nan fails every comparison, so what is right is asked for.
            over = np.maximum(-points, points - (width, height)).max(axis=0)
            if not (over <= 1).all():  # a pixel over the edge is rounding
                near = bool((over <= np.maximum(NEAR * np.array([width, height]), 1)).all())
                (slightly if near else outside).append(annotation['id'])
    found = []
    for ids, slight, text in (
        (broken, False, 'masks are neither run lengths nor polygons of at least three points x, y'),
        (outside, False, 'masks reach outside their image'),
        (slightly, True, f'masks reach outside their image by at most {NEAR:.0%} of its side, and are clipped'),
        (other_size, False, 'run-length masks have another [height, width] than their image'),
    ):
        if ids:
            shown = ids.values() if isinstance(ids, dict) else ids
            text = f'{len(ids)} {text}: annotation {listing(shown, limit=4)}'
            found.append(Finding(frozenset(ids), text, slight))
    return found


def check_mask_presence(annotations: Sequence[Mapping], reader: str | None) -> tuple[list[str], list[str]]:
    """Look for annotations without a mask.

    Args:
        annotations: Annotations of objects, one by one.
        reader: What reads the masks, in words; None if that is not known.

    Returns:
        Sentences about what is wrong, and about what would be for a model that learns from masks.
    """
    without = [annotation['id'] for annotation in annotations if not has_mask(annotation)]
    if not without:
        return [], []
    text = (
        f'{len(without)} of {len(annotations)} annotations have no mask (segmentation is empty or absent): annotation '
        f'{listing(without, limit=4)}'
    )
    if reader is not None:
        advice = 'add masks, or use a model that learns from boxes only (with_mask=False, metric="bbox")'
        return [f'{text}; {reader} reads it: {advice}'], []
    return [], [f'{text}; box detectors train, models that learn from masks do not'] if len(without) < len(
        annotations
    ) else []


def _is_polygon(value: object) -> bool:
    """Whether a value is a flat list of at least three points."""
    return (
        isinstance(value, list)
        and len(value) >= 6
        and len(value) % 2 == 0
        and all(isinstance(number, (int, float)) for number in value)
    )
