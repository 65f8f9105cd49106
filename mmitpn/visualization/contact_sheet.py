"""Contact sheets: images of a dataset side by side, with their boxes, masks and names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from mmitpn.utils import evenly_spaced

from .palette import class_colour

Color = tuple[int, int, int]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and the labels to draw on it.

    Args:
        image: RGB, uint8 (height, width, 3).
        boxes: x1, y1, x2, y2 in pixels for each object.
        names: What to write at each box.
        colors: RGB of each box.
        masks: bool (height, width) for each object, or none at all.
    """

    image: np.ndarray
    boxes: Sequence[Sequence[float]] = ()
    names: Sequence[str] = ()
    colors: Sequence[Color] = ()
    masks: Sequence[np.ndarray] = field(default=())


def class_rgb(index: int) -> Color:
    """RGB of class ``index``, 0 to 255."""
    red, green, blue = class_colour(index)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_grid(images: Iterable[AnnotatedImage], *, columns: int = 6, tile: int = 224) -> Image.Image:
    """Draw a grid of images.

    Args:
        images: The images, row by row.
        columns: Images per row.
        tile: Side of the square that each image is fitted into, in pixels.

    Returns:
        Image: RGB, ``columns * tile`` pixels wide.
    """
    tiles = [_tile(image, tile) for image in images]
    rows = -(-len(tiles) // columns)
    grid = Image.new('RGB', (columns * tile, max(rows, 1) * tile), (24, 24, 24))
    for index, one in enumerate(tiles):
        grid.paste(one, (index % columns * tile, index // columns * tile))
    return grid


def coco_images(ann_file: str | Path, img_dir: str | Path, *, number: int = 24) -> list[AnnotatedImage]:
    """Read evenly spaced images of a COCO dataset with their labels.

    Args:
        ann_file: Annotation file with instances.
        img_dir: Folder of the images.
        number: How many images at most.

    Returns:
        list: The images.
    """
    content = json.loads(Path(ann_file).read_text(encoding='utf-8'))
    names = {category['id']: category['name'] for category in content['categories']}
    order = {category_id: index for index, category_id in enumerate(names)}
    by_image = defaultdict(list)
    for annotation in content['annotations']:
        by_image[annotation['image_id']].append(annotation)
    found = []
    for info in evenly_spaced(content['images'], number):
        with Image.open(Path(img_dir) / info['file_name']) as opened:
            image = np.asarray(opened.convert('RGB'))
        annotations = by_image[info['id']]
        found.append(
            AnnotatedImage(
                image=image,
                boxes=[_corners(annotation['bbox']) for annotation in annotations],
                names=[names[annotation['category_id']] for annotation in annotations],
                colors=[class_rgb(order[annotation['category_id']]) for annotation in annotations],
                masks=[decode(annotation.get('segmentation') or [], *image.shape[:2]) for annotation in annotations],
            )
        )
    return found


def decode(segmentation: list | dict, height: int, width: int) -> np.ndarray:
    """Pixels of a COCO segmentation: polygons, RLE or compressed RLE; no pixel for an empty one.

    Args:
        segmentation: As in the annotation file.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

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


def _tile(image: AnnotatedImage, side: int) -> Image.Image:
    """One image with its labels, fitted into a square of ``side`` pixels."""
    pixels = image.image.astype(np.float64)
    for mask, color in zip(image.masks, image.colors[: len(image.masks)], strict=True):
        pixels[mask] = 0.75 * pixels[mask] + 0.25 * np.asarray(color)
    height, width = pixels.shape[:2]
    scale = (side - 4) / max(height, width)
    fitted = Image.fromarray(pixels.astype(np.uint8)).resize(
        (max(round(width * scale), 1), max(round(height * scale), 1)), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(fitted)
    for box, name, color in zip(image.boxes, image.names, image.colors, strict=True):
        corners = [float(value) * scale for value in box]
        draw.rectangle(corners, outline=color)
        corner = (corners[0] + 2, max(corners[1] - 11, 0))
        draw.rectangle(draw.textbbox(corner, name), fill=(0, 0, 0))
        draw.text(corner, name, fill=color)
    tile = Image.new('RGB', (side, side), (24, 24, 24))
    tile.paste(fitted, (2, 2))
    return tile
