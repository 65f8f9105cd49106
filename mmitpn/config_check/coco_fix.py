"""Fix what has exactly one right answer in a COCO annotation file."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .coco import MAX_BAD_BOXES, needs_info, read_coco_json
from .coco_annotations import box_corners, corner_fits, far_outside, flatten, is_box, is_number
from .images import ImageLoader, build_image_loader, read_header

Changes = Counter[str]


def fix_coco_json(
    path: str | Path, out: str | Path, img_dir: str | Path | None = None, *, seg_dir: str | Path | None = None
) -> dict[str, int]:
    """Write a copy of an annotation file in which everything is fixed that has exactly one right answer.

    Instance files: annotation ids that are 0, not numbers or used twice are renumbered from 1; ``area`` is computed
    where it is not a number above 0 (of the mask where there is one, else of the box), ``bbox`` from the mask where it
    is absent; ``iscrowd`` becomes 0 where it is absent, and a number where it is a string; boxes are clipped to the
    image and those without area removed; an empty ``segmentation`` is removed. Panoptic files: ``iscrowd`` likewise,
    and ``bbox`` and ``area`` from the PNGs in ``seg_dir``. Both: an empty ``info`` is added where the installed
    pycocotools needs one; names of categories become strings without spaces around them; with ``img_dir``, width and
    height become those of the image as loaded (EXIF orientation included) where they are absent or not above 0, or
    where the boxes of the image fit that size only.

    Args:
        path: The annotation file.
        out: The file to write; it must not exist.
        img_dir: Folder of the images; None leaves the sizes as they are.
        seg_dir: Folder of the PNGs of a panoptic file.

    Returns:
        What was changed -> how often. Empty if the copy has the same content.

    Raises:
        FileExistsError: If ``out`` exists.
        FileNotFoundError: If ``path`` does not.
        ValueError: If it is no annotation file.
    """
    from mmitpn.atomic import write_atomic

    path, out = Path(path), Path(out)
    if out.exists():
        what = 'is the input itself' if path.exists() and out.samefile(path) else 'exists already'
        raise FileExistsError(f'--fix {out}: the file {what}, and nothing is overwritten; give another name')
    content = read_coco_json(path, need_annotations=False)
    content, changes = fix_content(content, img_dir, seg_dir=seg_dir)
    write_atomic(out, json.dumps(content).encode())
    return dict(changes)


def fix_content(
    content: Mapping[str, Any], img_dir: str | Path | None = None, *, seg_dir: str | Path | None = None
) -> tuple[dict[str, Any], Changes]:
    """Repair the content of an annotation file; see :func:`fix_coco_json`.

    Args:
        content: The file's content; it is not changed.
        img_dir: Folder of the images.
        seg_dir: Folder of the PNGs of a panoptic file.

    Returns:
        tuple: The repaired content, and what was changed -> how often.
    """
    content = copy.deepcopy(dict(content))
    changes: Changes = Counter()
    if 'info' not in content and needs_info():
        content['info'] = {}
        changes['info added, which the installed pycocotools reads'] += 1
    _fix_names(content['categories'], changes)
    if img_dir is not None:
        _fix_sizes(content, Path(img_dir), changes)
    sizes = {
        image['id']: (image['width'], image['height'])
        for image in content['images']
        if 'id' in image and all(is_number(image.get(side)) and image[side] > 0 for side in ('width', 'height'))
    }
    entries = content.get('annotations') or []
    if any('segments_info' in entry for entry in entries):
        _fix_panoptic(content, None if seg_dir is None else Path(seg_dir), changes)
        return content, changes
    clip = _may_clip(entries, sizes)
    kept = [entry for entry in entries if _fix_annotation(entry, sizes.get(entry.get('image_id')), changes, clip=clip)]
    _fix_ids(kept, changes)
    if 'annotations' in content:
        content['annotations'] = kept
    return content, changes


def _fix_names(categories: list[dict[str, Any]], changes: Changes) -> None:
    """Names as strings, without spaces around them, unless two would become one."""
    names = [category.get('name') for category in categories]
    right = [name.strip() if isinstance(name, str) else str(name) if is_number(name) else name for name in names]
    if len(set(map(str, right))) < len(right):
        return
    for category, old, new in zip(categories, names, right, strict=True):
        if old != new:
            category['name'] = new
            changes['category names made strings without spaces around them'] += 1


def _fix_sizes(content: Mapping[str, Any], img_dir: Path, changes: Changes) -> None:
    """Width and height of images as they are loaded, where the boxes leave no other answer."""
    loader = build_image_loader(None)
    corners = box_corners(flatten(content.get('annotations') or []))
    for image in content['images']:
        size = _loaded_size(loader, img_dir / str(image.get('file_name')))
        if size is None or size == (image.get('width'), image.get('height')):
            continue
        given = (image.get('width'), image.get('height'))
        known = all(is_number(side) and side > 0 for side in given)
        corner = corners.get(image.get('id'))
        # A size that the boxes fit as well may be right: that of the image before an orientation tag turns it.
        wrong = (
            not known or not corner_fits(corner, given) or _swapped_fields(given, size, img_dir / image['file_name'])
        )
        if wrong and corner_fits(corner, size):
            image['width'], image['height'] = size
            changes['width and height set to those of the image as loaded'] += 1


def _swapped_fields(given: tuple[float, float], size: tuple[int, int], file: Path) -> bool:
    """Whether width and height are exchanged although the image has no orientation tag that would explain it."""
    header = read_header(file)
    return given == size[::-1] and header is not None and header.size == size and header.orientation in (0, 1)


def _loaded_size(loader: ImageLoader | None, file: Path) -> tuple[int, int] | None:
    """Size of an image as loaded, or None if it cannot be loaded."""
    try:
        return loader.quick_size(file) if file.is_file() else None
    except OSError:
        return None


def _may_clip(entries: list[dict[str, Any]], sizes: Mapping[Any, tuple[float, float]]) -> bool:
    """Whether boxes far outside are so few that clipping is the right answer, and not two corners read as a size."""
    known = [
        (entry['bbox'], sizes[entry['image_id']])
        for entry in entries
        if entry.get('image_id') in sizes and is_box(entry.get('bbox')) and all(map(is_number, entry['bbox']))
    ]
    boxes, sides = (np.array([pair[i] for pair in known], dtype=np.float64).reshape(-1, (4, 2)[i]) for i in (0, 1))
    return not known or float(far_outside(boxes, sides).mean()) <= MAX_BAD_BOXES


def _fix_annotation(
    annotation: dict[str, Any], size: tuple[float, float] | None, changes: Changes, *, clip: bool
) -> bool:
    """Repair the fields of an annotation of an instance file.

    Args:
        annotation: The annotation, changed in place.
        size: Width and height of its image, None if they are not known.
        changes: Counts what is changed.
        clip: Clip the box to the image.

    Returns:
        Whether the annotation is kept.
    """
    if 'segmentation' in annotation and not _has_points(annotation['segmentation']):
        del annotation['segmentation']
        changes['empty segmentation removed'] += 1
    mask = None if size is None else _run_lengths(annotation.get('segmentation'), size)
    if 'bbox' not in annotation and mask is not None:
        from pycocotools import mask as coco_mask

        annotation['bbox'] = [float(value) for value in coco_mask.toBbox(mask)]
        changes['bbox computed from the mask'] += 1
    box = annotation.get('bbox')
    if is_box(box):
        clipped = _clip(box, size) if clip and size is not None else box
        if not all(map(is_number, clipped)) or min(clipped[2:]) <= 0:
            changes['annotations removed whose box has no area in the image'] += 1
            return False
        if clipped != box:
            if annotation.get('area') == box[2] * box[3]:
                annotation['area'] = clipped[2] * clipped[3]
            annotation['bbox'] = box = clipped
            changes['boxes clipped to the image'] += 1
    area = annotation.get('area')
    if is_box(box) and not (is_number(area) and area > 0):
        annotation['area'] = _mask_area(mask) or box[2] * box[3]
        changes['area computed'] += 1
    _fix_crowd(annotation, changes)
    return True


def _fix_crowd(annotation: dict[str, Any], changes: Changes) -> None:
    """``iscrowd`` as a number."""
    value = annotation.get('iscrowd')
    if isinstance(value, str) and value.strip().lower() in ('0', '1', 'false', 'true', ''):
        annotation['iscrowd'] = int(value.strip().lower() in ('1', 'true'))
        changes['iscrowd made a number'] += 1
    elif value is None:
        annotation['iscrowd'] = 0
        changes['iscrowd=0 added'] += 1


def _fix_ids(annotations: list[dict[str, Any]], changes: Changes) -> None:
    """Annotation ids from 1, if one is 0, not a number or used twice."""
    ids = [annotation.get('id') for annotation in annotations]
    if all(is_number(one) and one != 0 for one in ids) and len(set(ids)) == len(ids):
        return
    for number, annotation in enumerate(annotations, 1):
        annotation['id'] = number
    changes['annotation ids renumbered from 1'] += len(annotations)


def _fix_panoptic(content: Mapping[str, Any], seg_dir: Path | None, changes: Changes) -> None:
    """Repair the segments of a panoptic file."""
    files = {image.get('id'): image.get('file_name') for image in content['images']}
    for entry in content['annotations']:
        segments = entry.get('segments_info') or []
        for segment in segments:
            _fix_crowd(segment, changes)
        lacking = [one for one in segments if not is_box(one.get('bbox')) or not is_number(one.get('area'))]
        name = str(files.get(entry.get('image_id'))).replace('.jpg', '.png')  # as mmdet derives it
        if not lacking or seg_dir is None or not (seg_dir / name).is_file():
            continue
        from PIL import Image

        from mmitpn.utils import mask_to_box, rgb2id

        with Image.open(seg_dir / name) as image:
            ids = rgb2id(np.asarray(image.convert('RGB')))
        for one in lacking:
            mask = ids == one.get('id')
            if mask.any():
                one['bbox'], one['area'] = mask_to_box(mask), int(mask.sum())
                changes['bbox and area computed from the PNG'] += 1


def _has_points(mask: Any) -> bool:
    """Whether a mask has anything in it: ``[]``, ``[[]]``, ``{}``, ``null`` have not."""
    return any(bool(part) for part in mask) if isinstance(mask, list) else bool(mask)


def _run_lengths(mask: Any, size: tuple[float, float]) -> dict[str, Any] | None:
    """A mask as pycocotools' run lengths; None for what is none."""
    from pycocotools import mask as coco_mask

    width, height = int(size[0]), int(size[1])
    if isinstance(mask, list):
        polygons = [part for part in mask if isinstance(part, list) and len(part) >= 6 and all(map(is_number, part))]
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)) if polygons else None
    if not isinstance(mask, Mapping) or mask.get('size') != [height, width]:
        return None
    if isinstance(mask.get('counts'), list):
        return coco_mask.frPyObjects(dict(mask), height, width)
    return {**mask, 'counts': mask['counts'].encode()} if isinstance(mask.get('counts'), str) else None


def _mask_area(mask: dict[str, Any] | None) -> float:
    """Pixels of a mask, 0 for none."""
    from pycocotools import mask as coco_mask

    return 0.0 if mask is None else float(coco_mask.area(mask))


def _clip(box: list[float], size: tuple[float, float]) -> list[float]:
    """A box [x, y, width, height] cut to the image; one inside it as it is."""
    x, y, width, height = box
    if x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]:
        return box
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + width, size[0]) - left, min(y + height, size[1]) - top]
