"""Contact sheets: pictures of a data set side by side, with their boxes, masks and names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Labelled:
    """A picture and the labels to draw on it.

    Args:
        image: RGB, uint8 (height, width, 3).
        boxes: x1, y1, x2, y2 in pixels for each object.
        names: What to write at each box.
        colours: RGB of each box.
        masks: bool (height, width) for each object, or none at all.
    """

    image: np.ndarray
    boxes: Sequence[Sequence[float]] = ()
    names: Sequence[str] = ()
    colours: Sequence[Colour] = ()
    masks: Sequence[np.ndarray] = field(default=())


def colour_of(index: int) -> Colour:
    """A colour for class ``index``: neighbours differ clearly."""
    hue = (index * 0.618034) % 1
    sector, rest = int(hue * 6), int((hue * 6 % 1) * 200)
    ramps = ((255, 55 + rest, 55), (255 - rest, 255, 55), (55, 255, 55 + rest))
    ramps += ((55, 255 - rest, 255), (55 + rest, 55, 255), (255, 55, 255 - rest))
    return ramps[sector]


def draw_sheet(pictures: Iterable[Labelled], *, columns: int = 6, tile: int = 224) -> Image.Image:
    """Draw a contact sheet.

    Args:
        pictures: What to show, row by row.
        columns: Pictures in a row.
        tile: Side of the square each picture is fitted into, in pixels.

    Returns:
        Image: RGB, ``columns * tile`` pixels wide.
    """
    tiles = [_tile(picture, tile) for picture in pictures]
    rows = -(-len(tiles) // columns)
    sheet = Image.new('RGB', (columns * tile, max(rows, 1) * tile), (24, 24, 24))
    for index, one in enumerate(tiles):
        sheet.paste(one, (index % columns * tile, index // columns * tile))
    return sheet


def coco_pictures(ann_file: str | Path, img_dir: str | Path, *, number: int = 24) -> list[Labelled]:
    """Read evenly spaced pictures of a COCO data set with their labels.

    Args:
        ann_file: Annotation file with instances.
        img_dir: Folder of the pictures.
        number: How many pictures at most.

    Returns:
        list: The pictures.
    """
    content = json.loads(Path(ann_file).read_text(encoding='utf-8'))
    names = {category['id']: category['name'] for category in content['categories']}
    order = {category_id: index for index, category_id in enumerate(names)}
    by_image = defaultdict(list)
    for annotation in content['annotations']:
        by_image[annotation['image_id']].append(annotation)
    images = content['images']
    step = max(len(images) / max(number, 1), 1)
    chosen = [images[int(i * step)] for i in range(min(number, len(images)))]
    pictures = []
    for info in chosen:
        with Image.open(Path(img_dir) / info['file_name']) as opened:
            image = np.asarray(opened.convert('RGB'))
        annotations = by_image[info['id']]
        pictures.append(
            Labelled(
                image=image,
                boxes=[_corners(annotation['bbox']) for annotation in annotations],
                names=[names[annotation['category_id']] for annotation in annotations],
                colours=[colour_of(order[annotation['category_id']]) for annotation in annotations],
                masks=[decode(annotation.get('segmentation') or [], *image.shape[:2]) for annotation in annotations],
            )
        )
    return pictures


def decode(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Pixels of a COCO segmentation: polygons, RLE or compressed RLE; no pixel for an empty one.

    Args:
        segmentation: As in the annotation file.
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.

    Returns:
        np.ndarray: bool (height, width).
    """
    if not segmentation:
        return np.zeros((height, width), dtype=bool)
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation['counts'], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return coco_mask.decode(rle).astype(bool)


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    """A COCO box as its two corners."""
    x, y, width, height = box
    return x, y, x + width, y + height


def _tile(picture: Labelled, side: int) -> Image.Image:
    """One picture with its labels, fitted into a square of ``side`` pixels."""
    pixels = picture.image.astype(np.float64)
    for mask, colour in zip(picture.masks, picture.colours[: len(picture.masks)], strict=True):
        pixels[mask] = 0.75 * pixels[mask] + 0.25 * np.asarray(colour)
    height, width = pixels.shape[:2]
    scale = (side - 4) / max(height, width)
    fitted = Image.fromarray(pixels.astype(np.uint8)).resize(
        (max(round(width * scale), 1), max(round(height * scale), 1)), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(fitted)
    for box, name, colour in zip(picture.boxes, picture.names, picture.colours, strict=True):
        corners = [float(value) * scale for value in box]
        draw.rectangle(corners, outline=colour)
        place = (corners[0] + 2, max(corners[1] - 11, 0))
        draw.rectangle(draw.textbbox(place, name), fill=(0, 0, 0))
        draw.text(place, name, fill=colour)
    tile = Image.new('RGB', (side, side), (24, 24, 24))
    tile.paste(fitted, (2, 2))
    return tile
