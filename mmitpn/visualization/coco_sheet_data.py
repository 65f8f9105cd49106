"""What a sheet of predictions shows: images, their objects and what a detector found, from COCO files."""

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
class SheetImage:
    """An image with its true objects and the predicted ones.

    Attributes:
        path: Its file.
        ground_truth: True objects.
        found: Predictions of at least the threshold, best first.
    """

    path: Path
    ground_truth: list[Thing] = field(default_factory=list)
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


def read_sheet_images(
    ann_file: str | Path,
    img_dir: str | Path,
    results: str | Path | Sequence[dict],
    *,
    number: int,
    score_threshold: float,
) -> tuple[list[SheetImage], list[str]]:
    """Choose images evenly from an annotation file and collect what is on them.

    Args:
        ann_file: COCO instances.
        img_dir: Folder that its file names start from.
        results: COCO detections, or the JSON file of them.
        number: Images wanted; fewer where the file has fewer.
        score_threshold: Predictions below are left out.

    Returns:
        The images, and the class names by place.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is no COCO file, the two do not belong together, or an argument is out of range.
    """
    if number < 1 or not 0 <= score_threshold <= 1:
        raise ValueError(f'number is {number} and score_threshold {score_threshold}; allowed: 1 and up, 0 to 1')
    content = _read(ann_file, 'annotation file')
    if (
        not isinstance(content, dict)
        or not {'images', 'annotations', 'categories'} <= set(content)
        or not content['images']
    ):
        raise ValueError(f'{ann_file} is no COCO file with images, annotations and categories')
    places = {category['id']: place for place, category in enumerate(content['categories'])}
    images = content['images']
    sheet_images = {image['id']: SheetImage(Path(img_dir) / image['file_name']) for image in images}
    for one in content['annotations']:
        sheet_images[one['image_id']].ground_truth.append(
            Thing(
                tuple(one['bbox']),
                places[one['category_id']],
                crowd=bool(one.get('iscrowd', 0)),
                segmentation=one.get('segmentation'),
            )
        )
    by_image = defaultdict(list)
    for one in _results(results):
        if one['image_id'] not in sheet_images or one['category_id'] not in places:
            raise ValueError(
                f'a result names image {one["image_id"]!r} and category {one["category_id"]!r}, which {ann_file} does'
                ' not have: the results belong to another dataset'
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
        sheet_images[image_id].found = sorted(by_image[image_id], key=lambda thing: -thing.score)
        if not sheet_images[image_id].path.is_file():
            raise FileNotFoundError(
                f'no image at {sheet_images[image_id].path}; is {img_dir} the folder of {ann_file}?'
            )
    names = [category['name'] for category in content['categories']]
    return [sheet_images[image_id] for image_id in chosen], names
