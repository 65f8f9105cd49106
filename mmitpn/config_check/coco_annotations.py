"""The entries of a COCO annotation file, one kind after another: images, categories, annotations, boxes, masks.

Fields are those that mmdet's datasets and metrics and pycocotools read:

====================  =====================================================  ===========================================
entry                 to be loaded at all                                    to be evaluated on (CocoMetric)
====================  =====================================================  ===========================================
images                id, file_name, width, height                           ids of one type
categories            id, name; isthing in a panoptic file
annotations           id (each its own), image_id, category_id, bbox, area   iscrowd, area; id a number other than 0;
                                                                             segmentation for the metric 'segm'
panoptic annotations  image_id, segments_info with id, category_id, bbox,    iscrowd, area; id other than 0
                      area                                                   (CocoPanopticMetric)
====================  =====================================================  ===========================================

``segmentation`` is read too where a pipeline has ``LoadAnnotations(with_mask=True)``; ``ignore`` and, in training,
``iscrowd`` may be absent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .messages import as_tuple, did_you_mean, failed, format_list

NEAR = 0.1
"""Fraction of an image's side by which a box may reach outside it and still be called a little outside."""
FIX = 'mmitpn data check FILE.json --fix OUT.json'
"""The command that repairs a file; the name of the file is put in where a message is raised."""


@dataclass(frozen=True)
class AnnotationProblem:
    """Annotations that are wrong in one way.

    Args:
        ids: Their ids.
        text: A sentence about them.
        slight: Whether mmdet puts them right by itself, as it clips boxes.
    """

    ids: frozenset[Hashable]
    text: str
    slight: bool = False


def _repeated(values: Iterable[Hashable]) -> list[Hashable]:
    """Values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _lacking(entries: Sequence[Mapping], what: str, fields: Sequence[str], advice: str = 'add it') -> list[str]:
    """A sentence if some entries lack a field."""
    lacking = [(i, field) for i, entry in enumerate(entries) for field in fields if field not in entry]
    if not lacking:
        return []
    index, field = lacking[0]
    number = len({i for i, _ in lacking})
    return [f'{number} of {len(entries)} {what} lack a field, first entry {index} without {field!r}; {advice}']


def _not_ids(entries: Sequence[Mapping], what: str, fields: Sequence[str]) -> list[str]:
    """A sentence if some ids are lists or objects."""
    wrong = [entry[field] for entry in entries for field in fields if isinstance(entry[field], (list, dict))]
    return failed((wrong, f'{" and ".join(fields)} of {what} must be numbers, but are {{first}}; correct them'))


def is_number(value: object) -> bool:
    """Whether a value is a finite number; JSON's true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_images(images: Sequence[Mapping]) -> list[str]:
    """What is wrong with the entries of images."""
    problems = _lacking(images, 'images', ('id', 'file_name', 'width', 'height')) or _not_ids(images, 'images', ('id',))
    if problems:
        return problems
    repeated = _repeated(image['id'] for image in images)
    names = [image['file_name'] for image in images if not isinstance(image['file_name'], str)]
    sides = [
        image['id']
        for image in images
        if not all(is_number(image[side]) and image[side] > 0 for side in ('width', 'height'))
    ]
    return failed(
        (repeated, 'image ids are used twice: {first}; give each image its own'),
        (names, 'file_name must be a string, but is {first}'),
        (sides, 'width and height must be above 0; they are not in images {first}'),
    )


def check_categories(categories: Sequence[Mapping], *, panoptic: bool = False) -> list[str]:
    """What is wrong with the categories."""
    problems = _lacking(categories, 'categories', ('id', 'name')) or _not_ids(categories, 'categories', ('id',))
    if problems:
        return problems
    wrong = [category['name'] for category in categories if not isinstance(category['name'], str)]
    if wrong:
        return failed((wrong, 'category names must be strings, but are {first}; write them in quotes'))
    problems = failed(
        *(
            (
                _repeated(category[field] for category in categories),
                f'two categories share the {field} {{first}}; make it different',
            )
            for field in ('id', 'name')
        )
    )
    if panoptic:
        advice = 'add 1 for things (countable objects), 0 for stuff'
        odd = [category['id'] for category in categories if type(category['id']) is not int]
        problems += _lacking(categories, 'categories', ('isthing',), advice)
        problems += failed((odd, 'category ids of a panoptic file must be integers, but are {first}'))
    return problems


def check_classes(
    in_file: Sequence[str],
    classes: Sequence[str] | None,
    *,
    allow_class_subset: bool = False,
    classes_from: str = 'the config',
) -> list[str]:
    """Compare the names of an annotation file with those a model is trained on.

    Args:
        in_file: Names of the file's categories, in its order.
        classes: Names the model is trained on.
        allow_class_subset: Accept names of the file that ``classes`` lacks.
        classes_from: Where ``classes`` come from.

    Returns:
        list: One sentence for each thing that is wrong.
    """
    if classes is None:
        return []
    problems = []
    unknown = [name for name in in_file if name not in classes]
    if unknown and not (allow_class_subset and len(unknown) < len(in_file)):
        near = did_you_mean(unknown[0], [name for name in classes if name not in in_file])
        problems.append(
            f'the file has categories that {classes_from} lacks: {format_list(unknown)}{near} '
            '(to leave categories out on purpose, set allow_class_subset=True in the config)'
        )
    absent = [name for name in classes if name not in in_file]
    if absent:
        near = did_you_mean(absent[0], unknown)
        problems.append(f'{classes_from} has classes that the file lacks: {format_list(absent)}{near}')
    if problems:
        names = as_tuple(in_file) if len(in_file) <= 20 else f'(all {len(in_file)} names of the file, in its order)'
        problems[-1] += f'; set metainfo=dict(classes={names}) and num_classes={len(in_file)}, or correct the file'
    order = [name for name in in_file if name in classes]
    if not problems and order != list(classes):
        problems.append(
            f'{classes_from} has the classes in another order than the file, whose order the labels follow, so that '
            f'names would be swapped in results and drawings; use classes={as_tuple(order)}'
        )
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
            {**segment, **shared, **({'id': (entry.get('image_id'), segment['id'])} if 'id' in segment else {})}
            for segment in entry['segments_info']
        ]
    return flat


def check_panoptic(entries: Sequence[Mapping]) -> list[str]:
    """What is wrong with the annotations of a panoptic file, one for each image."""
    problems = _lacking(entries, 'annotations', ('image_id', 'segments_info')) or _not_ids(
        entries, 'annotations', ('image_id',)
    )
    if problems:
        return problems
    odd = [
        entry['image_id']
        for entry in entries
        if not isinstance(entry['segments_info'], list)
        or not all(isinstance(s, Mapping) for s in entry['segments_info'])
    ]
    repeated = _repeated(entry['image_id'] for entry in entries)
    return failed(
        (odd, 'segments_info must be a list of objects with named fields; it is not in images {first}'),
        (repeated, 'images have two annotations: image_id {first}; join their segments_info'),
    )


def check_links(annotations: Sequence[Mapping], images: Mapping, categories: Mapping) -> list[str]:
    """What is wrong with the annotations' ids."""
    fields = ('id', 'image_id', 'category_id')
    problems = _lacking(annotations, 'annotations', fields) or _not_ids(annotations, 'annotations', fields)
    if problems:
        return problems
    problems = failed(
        (
            _repeated(annotation['id'] for annotation in annotations),
            f'annotation ids are used twice: {{first}}; give each annotation its own, or let {FIX} number them from 1',
        )
    )
    for field, known, what in (('image_id', images, 'image'), ('category_id', categories, 'category')):
        stray = [annotation['id'] for annotation in annotations if annotation[field] not in known]
        if stray:
            unknown = {annotation[field]: None for annotation in annotations if annotation[field] not in known}
            problems.append(
                f'{len(stray)} annotations have an {field} of no {what} in the file: {field} {format_list(unknown)} in '
                f'annotations {format_list(stray)}; correct the id, or remove the annotations'
            )
    return problems


def check_fields(annotations: Sequence[Mapping], *, evaluation: bool) -> list[str]:
    """What is wrong with the fields that mmdet's loaders, and for ``evaluation`` its metrics, read.

    Args:
        annotations: Annotations of objects, one by one.
        evaluation: Whether a metric compares predictions with the file.
    """
    read = [one for one in annotations if evaluation or not one.get('ignore')]  # mmdet's loader passes over ignore=1
    without = [one['id'] for one in read if 'bbox' not in one]
    odd = [one['id'] for one in read if 'bbox' in one and not is_box(one['bbox'])]
    problems = failed(
        (without, '{n} annotations have no bbox: {first}; add it'),
        (odd, 'a bbox is [x, y, width, height] in numbers; it is not in annotations {first}'),
    )
    problems += _field(read, 'area', 'the area of the object in square pixels')
    if evaluation:
        return problems + _field(read, 'iscrowd', '0 for single objects', '; it is read by the metrics only')
    # '0' is true in Python, so that mmdet would take the object for a crowd.
    texts = [one['id'] for one in read if isinstance(one.get('iscrowd'), str)]
    return problems + failed((texts, f'iscrowd must be 0 or 1, but is a string in annotations {{first}}; or run {FIX}'))


def _field(annotations: Sequence[Mapping], field: str, meaning: str, note: str = '') -> list[str]:
    """A sentence if a field that must be a number is absent or something else."""
    wrong = [one for one in annotations if not isinstance(one.get(field), (int, float))]
    if not wrong:
        return []
    seen = f'{wrong[0][field]!r}' if field in wrong[0] else 'absent'
    text = (
        f'{len(wrong)} of {len(annotations)} annotations have no number in the field {field!r} (in annotation '
        f'{wrong[0]["id"]} it is {seen}){note}; add {meaning}, or run {FIX}'
    )
    return [text]


def check_ids(annotations: Sequence[Mapping]) -> list[str]:
    """What is wrong with the annotation ids for an evaluation: pycocotools takes a match with id 0 for none."""
    ids = [one['id'] for one in annotations]
    advice = f'number the annotations from 1, as {FIX} does'
    if ids and isinstance(ids[0], tuple):  # (image id, segment id)
        wrong = [(image, one) for image, one in ids if type(one) is not int or not 0 < one < 256**3]
        kind = 'segment ids must be integers from 1 to 16777215: in the PNG 0 marks pixels without a segment, and '
        return failed((wrong, f'{kind}{{n}} are not (image id, segment id): {{first}}'))
    numbers = [_as_float(one) for one in ids]
    if 0.0 in numbers:
        text = 'an annotation has the id 0, which pycocotools reads as "no match": the object counts as missed and its '
        return [f'{text}detection as false, so that the AP of perfect predictions is below 1; {advice}']
    texts = [one for one, number in zip(ids, numbers, strict=True) if number is None]
    return failed((texts, f'annotation ids must be numbers for an evaluation, but are {{first}}; {advice}'))


def _as_float(value: object) -> float | None:
    """A value as numpy stores it in an array of floats, as pycocotools does with ids; None where it cannot."""
    try:
        return float('nan' if value is None else value)
    except (TypeError, ValueError, OverflowError):
        return None


def check_image_ids(images: Sequence[Mapping]) -> list[str]:
    """What is wrong with the image ids for an evaluation, which sorts them with numpy."""
    kinds = {isinstance(image['id'], str) for image in images}
    if len(kinds) < 2:
        return []
    some = [next(image['id'] for image in images if isinstance(image['id'], str) is kind) for kind in (True, False)]
    text = f'image ids are partly strings, partly numbers, as {format_list(some)}, which pycocotools mixes up'
    return [f'{text}; use one type']


def is_box(value: object) -> bool:
    """Whether a value is a list of four numbers."""
    return isinstance(value, list) and len(value) == 4 and all(isinstance(number, (int, float)) for number in value)


def check_boxes(annotations: Sequence[Mapping], images: Mapping) -> tuple[list[AnnotationProblem], np.ndarray]:
    """Look at the boxes.

    Args:
        annotations: Annotations; those without a box are passed over.
        images: Image id -> (width, height).

    Returns:
        tuple: What is wrong, and all boxes, float64 (N, 4).
    """
    with_box = [annotation for annotation in annotations if is_box(annotation.get('bbox'))]
    boxes = np.array([annotation['bbox'] for annotation in with_box], dtype=np.float64).reshape(-1, 4)
    sides = np.array([images[annotation['image_id']] for annotation in with_box], dtype=np.float64).reshape(-1, 2)
    # A nan fails every comparison, so what is right is asked for.
    flat = ~(boxes[:, 2:] > 0).all(axis=1)
    outside = ~flat & ~_within(boxes, sides, 1)  # a pixel over the edge is rounding
    far = outside & far_outside(boxes, sides)
    found: list[AnnotationProblem] = []
    for wrong, slight, text in (
        (flat, False, 'boxes have no area (bbox is [x, y, width, height], width and height above 0)'),
        (far, False, 'boxes reach outside their image (bbox is [x, y, width, height], not two corners)'),
        (
            outside & ~far,
            True,
            f'boxes reach outside their image by at most {NEAR:.0%} of its side, and are clipped in training',
        ),
    ):
        indices = np.flatnonzero(wrong)
        if len(indices):
            first = [f'{with_box[i]["id"]}: {with_box[i]["bbox"]}' for i in indices[:4]]
            more = ', ...' if len(indices) > len(first) else ''
            text = f'{len(indices)} of {len(boxes)} {text}: annotation {"; ".join(first)}{more}'
            found.append(AnnotationProblem(frozenset(with_box[i]['id'] for i in indices), text, slight))
    return found, boxes


def box_corners(annotations: Iterable[Mapping]) -> dict[Hashable, tuple[float, float]]:
    """Image id -> the largest x and y in pixels that the boxes of the image reach; images without boxes are absent."""
    corners: dict[Hashable, tuple[float, float]] = {}
    for one in annotations:
        if is_box(one.get('bbox')) and all(map(is_number, one['bbox'])):
            x, y, width, height = one['bbox']
            right, bottom = corners.get(one.get('image_id'), (0.0, 0.0))
            corners[one.get('image_id')] = max(right, x + width), max(bottom, y + height)
    return corners


def corner_fits(corner: tuple[float, float] | None, size: Sequence[float]) -> bool:
    """Whether boxes up to a corner lie in an image of this width and height, but for a pixel of rounding."""
    return corner is None or (corner[0] <= size[0] + 1 and corner[1] <= size[1] + 1)


def far_outside(boxes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Which boxes (N, 4) reach outside images of these sides (N, 2) by more than `NEAR` of the side, bool (N,)."""
    return ~_within(boxes, sides, np.maximum(NEAR * sides, 1))


def _within(boxes: np.ndarray, sides: np.ndarray, margin: float | np.ndarray) -> np.ndarray:
    """Which boxes (N, 4) lie in images of these sides (N, 2) but for a margin in pixels."""
    return (boxes[:, :2] >= -margin).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] <= sides + margin).all(axis=1)


def has_mask(annotation: Mapping) -> bool:
    """Whether an annotation has a mask; mmdet takes an empty list, as box-only files have it, for none."""
    return bool(annotation.get('segmentation'))


def check_masks(annotations: Sequence[Mapping], images: Mapping) -> list[AnnotationProblem]:
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
            text = f'{len(ids)} {text}: annotation {format_list(shown, limit=4)}'
            found.append(AnnotationProblem(frozenset(ids), text, slight))
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
        f'{format_list(without, limit=4)}'
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
