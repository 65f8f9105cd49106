"""What a sheet of predictions shows: pictures, their objects and what a detector found, from COCO files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmitpn.utils import evenly_spaced


@dataclass(frozen=True)
class Thing:
    """An object, true or found.

    Attributes:
        box: x, y, width, height in pixels.
        category: Place of its class, from 0.
        score: Of a found one; None for a true one.
        crowd: A true region of many, which the metric ignores.
        segmentation: Its mask as COCO has it, polygons or RLE; None where there is none.
    """

    box: tuple[float, float, float, float]
    category: int
    score: float | None = None
    crowd: bool = False
    segmentation: list | dict | None = None


@dataclass
class Picture:
    """A picture with both.

    Attributes:
        path: Its file.
        truth: True objects.
        found: Predictions of at least the threshold, best first.
    """

    path: Path
    truth: list[Thing] = field(default_factory=list)
    found: list[Thing] = field(default_factory=list)


def _read(path: str | Path, what: str) -> Any:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f'no {what} at {file}')
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        raise ValueError(f'the {what} {file} is not JSON: {error}') from error


def _results(results: str | Path | Sequence[dict]) -> list[dict]:
    found = _read(results, 'file of results') if isinstance(results, str | Path) else list(results)
    if not isinstance(found, list) or any(not {'image_id', 'category_id', 'bbox', 'score'} <= set(r) for r in found):
        raise ValueError(
            'the results are no list of COCO detections (image_id, category_id, bbox, score each); mmdet writes them'
            " with test_evaluator.outfile_prefix='...', into '....bbox.json'"
        )
    return found


def read_pictures(
    ann_file: str | Path,
    img_dir: str | Path,
    results: str | Path | Sequence[dict],
    *,
    number: int,
    score_threshold: float,
) -> tuple[list[Picture], list[str]]:
    """Choose pictures evenly from an annotation file and collect what is on them.

    Args:
        ann_file: COCO instances.
        img_dir: Folder that its file names start from.
        results: COCO detections, or the JSON file of them.
        number: Pictures wanted; fewer where the file has fewer.
        score_threshold: Predictions below are left out.

    Returns:
        The pictures, and the class names by place.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is no COCO file, the two do not belong together, or an argument is out of range.
    """
    if number < 1 or not 0 <= score_threshold <= 1:
        raise ValueError(f'number is {number} and score_threshold {score_threshold}; allowed: 1 and up, 0 to 1')
    truth = _read(ann_file, 'annotation file')
    if not isinstance(truth, dict) or not {'images', 'annotations', 'categories'} <= set(truth) or not truth['images']:
        raise ValueError(f'{ann_file} is no COCO file with images, annotations and categories')
    places = {category['id']: place for place, category in enumerate(truth['categories'])}
    images = truth['images']
    pictures = {image['id']: Picture(Path(img_dir) / image['file_name']) for image in images}
    for one in truth['annotations']:
        pictures[one['image_id']].truth.append(
            Thing(
                tuple(one['bbox']),
                places[one['category_id']],
                crowd=bool(one.get('iscrowd', 0)),
                segmentation=one.get('segmentation'),
            )
        )
    by_image = defaultdict(list)
    for one in _results(results):
        if one['image_id'] not in pictures or one['category_id'] not in places:
            raise ValueError(
                f'a result names image {one["image_id"]!r} and category {one["category_id"]!r}, which {ann_file} does'
                ' not have: the results belong to another data set'
            )
        if one['score'] >= score_threshold:
            by_image[one['image_id']].append(
                Thing(
                    tuple(one['bbox']),
                    places[one['category_id']],
                    one['score'],
                    segmentation=one.get('segmentation'),
                )
            )
    chosen = [image['id'] for image in evenly_spaced(images, number)]
    for image_id in chosen:
        pictures[image_id].found = sorted(by_image[image_id], key=lambda thing: -thing.score)
        if not pictures[image_id].path.is_file():
            raise FileNotFoundError(f'no picture at {pictures[image_id].path}; is {img_dir} the folder of {ann_file}?')
    return [pictures[image_id] for image_id in chosen], [category['name'] for category in truth['categories']]
