"""A sheet of predicted panoptic segments next to the ground truth, for a person to look at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mmitpn.utils import rgb2id

from .semantic_sheet import LabelMap, draw_maps, evenly


def segments_of(path: str | Path) -> np.ndarray:
    """Numbers of segments, ``(h, w)``, of a COCO panoptic PNG."""
    with Image.open(path) as opened:
        return rgb2id(np.asarray(opened.convert('RGB')))


def draw_segments(
    ann_file: str | Path,
    img_dir: str | Path,
    seg_dir: str | Path,
    results_dir: str | Path,
    out_file: str | Path,
    *,
    number: int = 8,
    columns: int = 2,
    tile: int = 220,
    title: str = '',
) -> Path:
    """Draw images in threes, the image, the true and the predicted segments, into one PNG.

    Args:
        ann_file: COCO panoptic annotations.
        img_dir: Folder of the images.
        seg_dir: Folder of the true segments.
        results_dir: Folder of the predicted ones, as ``PanopticMetric(output_dir=...)`` writes them: their numbers are
            class + 1000 * number of the thing.
        out_file: Where to write it; folders are made.
        number: Images, taken evenly.
        columns: Threes in a row.
        tile: Side of an image on the sheet in pixels, at least 64.
        title: One line above all.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there is no image, or an argument is out of range.
    """
    content = json.loads(Path(ann_file).read_text(encoding='utf-8'))
    names = [category['name'] for category in content['categories']]
    places = {category['id']: place for place, category in enumerate(content['categories'])}
    files = {image['id']: image['file_name'] for image in content['images']}
    images = []
    for one in evenly(content['annotations'], number, columns=columns, tile=tile):
        true = segments_of(Path(seg_dir) / one['file_name'])
        labels = np.full(true.shape, len(names))
        for segment in one['segments_info']:
            labels[true == segment['id']] = places[segment['category_id']]
        found = segments_of(Path(results_dir) / one['file_name'])
        predicted = LabelMap(np.minimum(found % 1000, len(names)), found)
        images.append((Path(img_dir) / files[one['image_id']], LabelMap(labels, true), predicted))
    return draw_maps(images, names, out_file, columns=columns, tile=tile, title=title)
