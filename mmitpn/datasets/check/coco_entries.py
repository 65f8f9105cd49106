"""The entries of a COCO annotation file, one kind after another: pictures, categories, annotations, boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from .wording import listing


def _repeated(values: Iterable[Hashable]) -> list[Hashable]:
    """Values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _lacking(entries: Sequence[Mapping], what: str, fields: Sequence[str]) -> list[str]:
    """A sentence if some entries lack a field."""
    lacking = [(i, field) for i, entry in enumerate(entries) for field in fields if field not in entry]
    if not lacking:
        return []
    index, field = lacking[0]
    number = len({i for i, _ in lacking})
    return [f'{number} of {len(entries)} {what} lack a field, first entry {index} without {field!r}; add it']


def check_images(images: Sequence[Mapping]) -> list[str]:
    """What is wrong with the pictures' entries."""
    problems = _lacking(images, 'images', ('id', 'file_name', 'width', 'height'))
    if problems:
        return problems
    repeated = _repeated(image['id'] for image in images)
    if repeated:
        problems.append(f'image ids are used twice: {listing(repeated)}; give each picture its own')
    wrong = [image['file_name'] for image in images if not isinstance(image['file_name'], str)]
    if wrong:
        problems.append(f'file_name must be a string, but is {listing(wrong)}')
    sides = [image['id'] for image in images if not _positive(image['width']) or not _positive(image['height'])]
    if sides:
        problems.append(f'width and height must be above 0; they are not in images {listing(sides)}')
    return problems


def _positive(value: object) -> bool:
    """Whether a value is a number above 0."""
    return isinstance(value, (int, float)) and value > 0


def _is_box(value: object) -> bool:
    """Whether a value is a list of four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, (int, float)) for number in value)


def check_categories(categories: Sequence[Mapping]) -> list[str]:
    """What is wrong with the categories."""
    problems = _lacking(categories, 'categories', ('id', 'name'))
    if problems:
        return problems
    wrong = [category['name'] for category in categories if not isinstance(category['name'], str)]
    if wrong:
        problems.append(f'category names must be strings, but are {listing(wrong)}; write them in quotes')
    for field in ('id', 'name'):
        repeated = _repeated(category[field] for category in categories)
        if repeated:
            problems.append(f'two categories share the {field} {listing(repeated)}; make it different')
    return problems


def flatten(entries: Sequence[Mapping]) -> list[Mapping]:
    """Annotations of objects; those of a panoptic file lie one level deeper and have ids of their own."""
    flat: list[Mapping] = []
    for entry in entries:
        if 'segments_info' not in entry:
            flat.append(entry)
            continue
        shared = {'image_id': entry.get('image_id')}
        flat += [
            {**segment, **shared, 'id': (entry.get('image_id'), segment.get('id'))}
            for segment in entry['segments_info']
        ]
    return flat


def check_links(annotations: Sequence[Mapping], images: Mapping, categories: Mapping) -> list[str]:
    """What is wrong with the annotations' ids."""
    problems = _lacking(annotations, 'annotations', ('id', 'image_id', 'category_id'))
    if problems:
        return problems
    repeated = _repeated(annotation['id'] for annotation in annotations)
    if repeated:
        problems.append(f'annotation ids are used twice: {listing(repeated)}; give each annotation its own')
    for field, known, what in (('image_id', images, 'image'), ('category_id', categories, 'category')):
        stray = [annotation['id'] for annotation in annotations if annotation[field] not in known]
        if stray:
            unknown = {annotation[field]: None for annotation in annotations if annotation[field] not in known}
            problems.append(
                f'{len(stray)} annotations have an {field} of no {what} in the file: {field} {listing(unknown)} in '
                f'annotations {listing(stray)}; correct the id, or remove the annotations'
            )
    return problems


def check_boxes(annotations: Sequence[Mapping], images: Mapping) -> tuple[list[tuple[int, str]], np.ndarray]:
    """Look at the boxes.

    Returns:
        tuple: How many are wrong in a way with a sentence about it, for each way; and all boxes, float64 (N, 4).
    """
    with_box = [annotation for annotation in annotations if 'bbox' in annotation]
    odd = [a['id'] for a in with_box if not _is_box(a['bbox'])]
    if odd:
        text = f'a bbox is [x, y, width, height] in numbers; it is not in annotations {listing(odd)}'
        return [(len(odd), text)], np.zeros((0, 4))
    without = [a['id'] for a in annotations if 'bbox' not in a]
    found: list[tuple[int, str]] = []
    if without:
        found.append((len(without), f'{len(without)} annotations have no bbox: {listing(without)}; add it'))
    boxes = np.array([annotation['bbox'] for annotation in with_box], dtype=np.float64).reshape(-1, 4)
    sides = np.array([images[annotation['image_id']] for annotation in with_box], dtype=np.float64).reshape(-1, 2)
    # A pixel over the edge is rounding; a nan fails every comparison, so what is right is asked for.
    flat = ~(boxes[:, 2:] > 0).all(axis=1)
    within = (boxes[:, :2] >= -1).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] <= sides + 1).all(axis=1)
    outside = ~flat & ~within
    for wrong, text in (
        (flat, 'boxes have no area (bbox is [x, y, width, height], width and height above 0)'),
        (outside, 'boxes reach outside their picture (bbox is [x, y, width, height], not two corners)'),
    ):
        if wrong.any():
            first = [f'{with_box[i]["id"]}: {with_box[i]["bbox"]}' for i in np.flatnonzero(wrong)[:4]]
            more = ', ...' if wrong.sum() > len(first) else ''
            found.append(
                (int(wrong.sum()), f'{int(wrong.sum())} of {len(boxes)} {text}: annotation {"; ".join(first)}{more}')
            )
    return found, boxes
