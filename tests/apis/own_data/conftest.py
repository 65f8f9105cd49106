"""One small dataset, written in every layout that label tools write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

CLASSES = ('bird', 'cat', 'dog')  # sorted by name, as Pascal VOC's layout sorts them
# name, (width, height), and class, (x, y, width, height) of each object
SAMPLES: list[tuple[str, tuple[int, int], list[tuple[int, tuple[int, int, int, int]]]]] = [
    ('b', (48, 32), [(2, (4, 5, 20, 11)), (0, (0, 0, 48, 32))]),
    ('a', (33, 40), [(1, (7, 3, 12, 30))]),
    ('c', (40, 40), []),
    ('d', (64, 48), [(0, (10, 10, 3, 7)), (1, (30, 20, 34, 28))]),
]


def write_images(folder: Path, samples: Sequence[Any], suffix: str = '.jpg') -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, size, _) in enumerate(samples):
        Image.new('RGB', size, (40 * index, 90, 120)).save(folder / f'{name}{suffix}')


def outline(box: tuple[int, int, int, int]) -> list[int]:
    """A triangle with the box as its bounds."""
    x, y, width, height = box
    return [x, y, x + width, y, x, y + height]


def coco_content(samples: Sequence[Any], *, masks: bool = False, group: bool = False) -> dict[str, Any]:
    samples = sorted(samples)
    images = [
        {'id': index + 1, 'file_name': f'{name}.jpg', 'width': size[0], 'height': size[1]}
        for index, (name, size, _) in enumerate(samples)
    ]
    objects = [(image, *one) for image, (_, _, found) in enumerate(samples, start=1) for one in found]
    annotations = [
        {
            'id': index + 1,
            'image_id': image,
            'category_id': label + 1,
            'bbox': list(box),
            'area': box[2] * box[3],
            'iscrowd': 0,
        }
        | ({'segmentation': [outline(box)]} if masks else {})
        for index, (image, label, box) in enumerate(objects)
    ]
    categories = [{'id': index + 1, 'name': name, 'supercategory': 'animals'} for index, name in enumerate(CLASSES)]
    if group:
        categories.insert(0, {'id': 0, 'name': 'animals', 'supercategory': 'none'})
    return {'images': images, 'annotations': annotations, 'categories': categories}


def write_coco(ann_file: Path, images: Path, samples: Sequence[Any], **options: Any) -> None:
    write_images(images, samples)
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    ann_file.write_text(json.dumps(coco_content(samples, **options)))


def write_yolo(images: Path, labels: Path, samples: Sequence[Any], *, masks: bool = False) -> None:
    write_images(images, samples)
    labels.mkdir(parents=True, exist_ok=True)
    for name, size, objects in samples:
        lines = []
        for label, (x, y, width, height) in objects:
            points = outline((x, y, width, height)) if masks else [x + width / 2, y + height / 2, width, height]
            values = np.array(points).reshape(-1, 2) / size
            lines.append(' '.join([str(label), *(f'{value:.6f}' for value in values.ravel())]))
        if lines:  # an image without objects has no file
            (labels / f'{name}.txt').write_text('\n'.join(lines) + '\n')


def write_voc(images: Path, annotations: Path, samples: Sequence[Any]) -> None:
    write_images(images, samples)
    annotations.mkdir(parents=True, exist_ok=True)
    for name, size, objects in samples:
        found = ''.join(
            f'<object><name>{CLASSES[label]}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>'
            f'<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>'
            for label, (x, y, width, height) in objects
        )
        size_text = f'<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>'
        (annotations / f'{name}.xml').write_text(f'<annotation>{size_text}{found}</annotation>')


def label_map(size: tuple[int, int], labels: Sequence[int]) -> np.ndarray:
    """Stripes of labels, uint8 ``(height, width)``."""
    return np.tile(np.array(labels, dtype=np.uint8)[np.arange(size[0]) % len(labels)], (size[1], 1))


def write_maps(
    images: Path, maps: Path, samples: Sequence[Any], labels: Sequence[int] = (0, 1, 2), *, suffix: str = '.png'
) -> None:
    write_images(images, samples)
    maps.mkdir(parents=True, exist_ok=True)
    for name, size, _ in samples:
        Image.fromarray(label_map(size, labels)).save(maps / f'{name}{suffix}')


@pytest.fixture(scope='session')
def layouts() -> SimpleNamespace:
    """The writers above, and the samples."""
    return SimpleNamespace(
        samples=SAMPLES,
        classes=CLASSES,
        images=write_images,
        coco=write_coco,
        yolo=write_yolo,
        voc=write_voc,
        maps=write_maps,
        label_map=label_map,
        outline=outline,
    )
