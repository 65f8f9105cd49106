"""Predictions beside the ground truth: boxes and masks, panoptic segments, label maps, each from files as one PNG."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mmitpn.utils import check_int, evenly_spaced, rgb2id

from .image_grid import AnnotatedImage, draw_image_grid, paint, save_figure

KINDS = ('ground truth', 'prediction')


def decode(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Decode a COCO segmentation, polygons or RLE, to bool ``(height, width)``; an empty one has no pixel."""
    if not segmentation:
        return np.zeros((height, width), dtype=bool)
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation['counts'], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(segmentation).astype(bool)


def read_coco_images(
    ann_file: str | Path,
    img_dir: str | Path,
    results: str | Path | Sequence[dict] | None = None,
    *,
    number: int,
    score_threshold: float = 0.0,
    masks: bool = True,
) -> tuple[list[AnnotatedImage], list[AnnotatedImage], dict[str, int]]:
    """Read evenly spaced images of a COCO file with their objects.

    Args:
        ann_file: COCO instances.
        img_dir: Folder that its file names start from.
        results: COCO detections, or the JSON file of them; None: the ground truth alone.
        number: At most how many images.
        score_threshold: Predictions below it are left out.
        masks: Whether masks are read too.

    Returns:
        The images with the ground truth, the same images with the predictions (best first), and the classes:
        name -> index.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not a COCO file, the two do not belong together, or an argument is out of range.
    """
    if number < 1 or not 0 <= score_threshold <= 1:
        raise ValueError(f'number is {number} and score_threshold {score_threshold}; allowed: 1 and up, 0 to 1')
    content = _read_json(ann_file, 'annotation file')
    keys = {'images', 'annotations', 'categories'}
    if not isinstance(content, dict) or not keys <= set(content) or not content['images']:
        raise ValueError(f'{ann_file} is not a COCO file with images, annotations and categories')
    found = _read_json(results, 'file of results') if isinstance(results, str | Path) else list(results or ())
    if not isinstance(found, list) or any(not {'image_id', 'category_id', 'bbox', 'score'} <= set(r) for r in found):
        raise ValueError(
            'the results are not a list of COCO detections (image_id, category_id, bbox, score each); mmdet writes them'
            " with test_evaluator.outfile_prefix='...', into '....bbox.json'"
        )
    names = {category['id']: category['name'] for category in content['categories']}
    objects: tuple[dict, dict] = (defaultdict(list), defaultdict(list))
    for one in content['annotations']:
        objects[0][one['image_id']].append(one)
    image_ids = {image['id'] for image in content['images']}
    for one in sorted(found, key=lambda result: -result['score']):
        if one['image_id'] not in image_ids or one['category_id'] not in names:
            raise ValueError(
                f'a result names image {one["image_id"]!r} and category {one["category_id"]!r}, which {ann_file} does'
                ' not have: the results belong to another dataset'
            )
        if one['score'] >= score_threshold:
            objects[1][one['image_id']].append(one)
    drawn: tuple[list, list] = ([], [])
    for info in evenly_spaced(content['images'], number):
        path = Path(img_dir) / info['file_name']
        if not path.is_file():
            raise FileNotFoundError(f'no image at {path}; is {img_dir} the folder of {ann_file}?')
        image = read_rgb(path)
        for images, by_image in zip(drawn, objects, strict=True):
            images.append(annotate_objects(image, by_image[info['id']], names, masks=masks))
    return *drawn, {name: index for index, name in enumerate(names.values())}


def annotate_objects(
    image: np.ndarray, objects: Sequence[dict], names: dict[int, str], *, masks: bool = True
) -> AnnotatedImage:
    """Put objects of COCO, annotations or detections, on an image.

    Args:
        image: RGB, uint8 ``(H, W, 3)``.
        objects: The most important first.
        names: Category id -> name; a class index is the position in it.
        masks: Whether masks are decoded too.
    """
    order = {category_id: index for index, category_id in enumerate(names)}
    return AnnotatedImage(
        image,
        labels=[order[one['category_id']] for one in objects],
        texts=[names[one['category_id']] + (f' {one["score"]:.2f}' if 'score' in one else '') for one in objects],
        boxes=[(x, y, x + w, y + h) for x, y, w, h in (one['bbox'] for one in objects)],
        masks=[decode(one.get('segmentation'), *image.shape[:2]) for one in objects] if masks else (),
        crowd=[index for index, one in enumerate(objects) if one.get('iscrowd')],
    )


def draw_predictions(
    ann_file: str | Path,
    img_dir: str | Path,
    results: str | Path | Sequence[dict],
    out_file: str | Path,
    *,
    number: int = 12,
    score_threshold: float = 0.3,
    masks: bool = False,
    title: str = '',
    **layout: int,
) -> Path:
    """Draw images in pairs, the ground truth on the left and the predictions on the right, into one PNG file.

    Args:
        ann_file: COCO instances.
        img_dir: Folder that its file names start from.
        results: COCO detections, or the JSON file of them.
        out_file: The PNG file; returned.
        number: At most how many images.
        score_threshold: Predictions below it are left out.
        masks: Whether masks are drawn too, where the files have them.
        title: One line above all.
        layout: ``columns``, pairs per row, and ``tile``, the longer side of each image in pixels (at least 32).

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not a COCO file, the two do not belong together, or an argument is out of range.
    """
    *both, names = read_coco_images(
        ann_file, img_dir, results, number=number, score_threshold=score_threshold, masks=masks
    )
    groups = [
        [
            replace(one, title=f'{kind}: {len(one.labels) - len(one.crowd) or "none"}')
            for kind, one in zip(KINDS, pair, strict=True)
        ]
        for pair in zip(*both, strict=True)
    ]
    seen = {label for pair in groups for one in pair for label in one.labels}
    legend = {name: index for name, index in names.items() if index in seen}
    title = f'{title or Path(ann_file).name}   (score at least {score_threshold:g})'
    return _save_groups(groups, legend, out_file, title=title, **{'tile': 260, **layout})


def draw_segments(
    ann_file: str | Path,
    img_dir: str | Path,
    seg_dir: str | Path,
    results_dir: str | Path,
    out_file: str | Path,
    *,
    number: int = 8,
    **layout: Any,
) -> Path:
    """Draw each image beside its panoptic ground truth and prediction, into one PNG file.

    Args:
        ann_file: COCO panoptic annotations.
        img_dir: Folder of the images.
        seg_dir: Folder of the ground truth's segments.
        results_dir: Folder of the predicted ones, as ``PanopticMetric(output_dir=...)`` writes them: an id is
            class index + 1000 * index of the segment.
        out_file: The PNG file; returned.
        number: At most how many images, evenly spaced over the file.
        layout: ``columns``, groups of three images per row, ``tile`` and ``title`` as :func:`draw_predictions`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is no image, or an argument is out of range.
    """
    check_int('number', number)
    content = _read_json(ann_file, 'annotation file')
    order = {category['id']: index for index, category in enumerate(content['categories'])}
    files = {image['id']: image['file_name'] for image in content['images']}
    images = []
    for one in evenly_spaced(content['annotations'], number):
        ids = rgb2id(read_rgb(Path(seg_dir) / one['file_name']))
        labels = np.full(ids.shape, -1)
        for segment in one['segments_info']:
            labels[ids == segment['id']] = order[segment['category_id']]
        predicted = rgb2id(read_rgb(Path(results_dir) / one['file_name']))
        images.append((Path(img_dir) / files[one['image_id']], (labels, ids), (predicted % 1000, predicted)))
    return _draw_maps(images, [category['name'] for category in content['categories']], out_file, **layout)


def draw_label_maps(
    images: Sequence[tuple[str | Path, str | Path, str | Path]],
    classes: Sequence[str],
    out_file: str | Path,
    *,
    reduce_zero_label: bool = False,
    number: int = 8,
    **layout: Any,
) -> Path:
    """Draw each image beside its label map and the predicted one, into one PNG file.

    Args:
        images: Paths of image, label map and predicted label map.
        classes: Names of the classes.
        out_file: The PNG file; returned.
        reduce_zero_label: Whether both maps have 0 for no class and 1 for the first one, as ADE20K's.
        number: At most how many images, evenly spaced over all.
        layout: ``columns``, groups of three images per row, ``tile`` and ``title`` as :func:`draw_predictions`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is no image, or an argument is out of range.
    """
    check_int('number', number)
    maps = []
    for image, *paths in evenly_spaced(images, number):
        labels = [np.asarray(Image.open(path)).astype(np.int64) for path in paths]
        labels = [np.where(one == 255, 255, one - 1) if reduce_zero_label else one for one in labels]
        maps.append((image, *((one, None) for one in labels)))
    return _draw_maps(maps, classes, out_file, **layout)


def paint_labels(image: np.ndarray, labels: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
    """Paint each pixel's class over an image in gray, with a white line between segments.

    Args:
        image: RGB, uint8 ``(H, W, 3)``.
        labels: Class index of each pixel, ``(H, W)``; negative ones stay gray.
        ids: Segment of each pixel, ``(H, W)``; None draws no lines.

    Returns:
        RGB, uint8 ``(H, W, 3)``.
    """
    pixels = paint(np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2), labels, 0.65)
    if ids is not None:
        pixels[1:][ids[1:] != ids[:-1]] = 255
        pixels[:, 1:][ids[:, 1:] != ids[:, :-1]] = 255
    return pixels


def _draw_maps(images: list[tuple], classes: Sequence[str], out_file: str | Path, **layout: Any) -> Path:
    """Draw images with (labels, segment ids or None) of ground truth and prediction; no class is gray."""
    groups, seen = [], set()
    for path, *maps in images:
        image = read_rgb(path)
        group = [AnnotatedImage(image, Path(path).stem)]
        for (labels, ids), kind in zip(maps, KINDS, strict=True):
            known = np.where(labels < len(classes), labels, -1)
            seen |= set(np.unique(known).tolist())
            pixels = paint_labels(image, known, ids)
            group.append(AnnotatedImage(pixels, kind))
        groups.append(group)
    return _save_groups(groups, {classes[label]: label for label in sorted(seen) if label >= 0}, out_file, **layout)


def _save_groups(
    groups: Sequence[Sequence[AnnotatedImage]],
    legend: dict[str, int],
    out_file: str | Path,
    *,
    columns: int = 2,
    tile: int = 220,
    title: str = '',
) -> Path:
    """Draw groups of images, ``columns`` groups per row."""
    images = [image for group in groups for image in group]
    columns = min(columns, len(groups)) * len(groups[0]) if groups else columns
    return save_figure(draw_image_grid(images, columns=columns, tile=tile, title=title, legend=legend), out_file)


def read_rgb(path: str | Path) -> np.ndarray:
    """Read an image file as RGB, uint8 ``(H, W, 3)``."""
    with Image.open(path) as opened:
        return np.asarray(opened.convert('RGB'))


def _read_json(path: str | Path, what: str) -> Any:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f'no {what} at {file}')
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        raise ValueError(f'the {what} {file} is not JSON: {error}') from error
