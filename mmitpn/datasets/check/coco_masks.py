"""The masks of a COCO annotation file and the picture files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .wording import listing


def check_masks(annotations: Sequence[Mapping], images: Mapping) -> list[tuple[int, str]]:
    """Look at the masks: polygons and run lengths.

    Args:
        annotations: Annotations; those without ``segmentation`` are passed over.
        images: Image id -> (width, height).

    Returns:
        How many are wrong in a way with a sentence about it, for each way.
    """
    broken, outside, other_size = [], [], []
    for annotation in annotations:
        mask, (width, height) = annotation.get('segmentation'), images[annotation['image_id']]
        if mask is None:
            continue
        if isinstance(mask, Mapping):
            if list(mask.get('size', ())) != [height, width]:
                other_size.append(f'{annotation["id"]}: {mask.get("size")} for {[height, width]}')
        elif not isinstance(mask, list) or not mask or not all(map(_is_polygon, mask)):
            broken.append(annotation['id'])
        else:
            points = np.concatenate([np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in mask])
            # A pixel over the edge is rounding; a nan fails every comparison, so what is right is asked for.
            if not ((points >= -1) & (points <= (width + 1, height + 1))).all():
                outside.append(annotation['id'])
    found = []
    for ids, text in (
        (broken, 'masks are neither run lengths nor polygons of at least three points x, y'),
        (outside, 'masks reach outside their picture'),
        (other_size, 'run-length masks have another [height, width] than their picture'),
    ):
        if ids:
            found.append((len(ids), f'{len(ids)} {text}: annotation {listing(ids, limit=4)}'))
    return found


def check_pictures(images: Sequence[Mapping], img_dir: Path) -> list[str]:
    """Open every picture.

    Args:
        images: Entries of the annotation file.
        img_dir: Folder that their ``file_name`` starts from.

    Returns:
        One sentence for each way in which some are wrong.
    """
    unreadable, other_size = [], []
    for image in images:
        try:
            with Image.open(img_dir / image['file_name']) as opened:
                opened.load()
                size = opened.size
        except FileNotFoundError:
            continue  # told by the search for missing files
        except (OSError, ValueError, SyntaxError):
            unreadable.append(image['file_name'])
            continue
        if size != (image['width'], image['height']):
            other_size.append(f'{image["file_name"]} is {size[0]}x{size[1]}, not {image["width"]}x{image["height"]}')
    problems = []
    if unreadable:
        problems.append(f'{len(unreadable)} pictures cannot be read: {listing(unreadable, limit=4)}; get them again')
    if other_size:
        problems.append(
            f'{len(other_size)} pictures have another size than the file says: {listing(other_size, limit=4)}; the '
            'boxes may be of other pictures'
        )
    return problems


def _is_polygon(value: object) -> bool:
    """Whether a value is a flat list of at least three points."""
    return (
        isinstance(value, list)
        and len(value) >= 6
        and len(value) % 2 == 0
        and all(isinstance(number, (int, float)) for number in value)
    )
