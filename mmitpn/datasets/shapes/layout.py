"""Folders and files of the generated dataset: COCO's and ADE20K's."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .annotations import (
    instance_annotations,
    panoptic_annotation,
    panoptic_categories,
    semantic_labels,
    thing_categories,
)
from .drawing import EMPTY_EVERY, DrawnImage, draw_image

SPLITS = {'train': 0, 'val': 1, 'unlabelled': 2}
"""Number of each split in the seed of its images: no image of one is in another."""
FIRST_ID = {'train': 1, 'val': 500_001, 'unlabelled': 1}


def image_of(seed: int, split: str, index: int, size: tuple[int, int]) -> DrawnImage:
    """Draw image ``index`` of a split; it depends on these four alone, not on the number of images.

    Args:
        seed: Seed of the dataset.
        split: A key of ``SPLITS``.
        index: Number of the image, from 0.
        size: Shortest and longest side in pixels; height and width are drawn separately.

    Returns:
        DrawnImage: The image and its ground truth.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLITS[split], index])))
    low, high = size
    height, width = (low + int(rng.random() * (high - low + 1)) for _ in range(2))
    return draw_image(rng, height, width, empty=index % EMPTY_EVERY == 7)


def folders_of(split: str) -> dict[str, str]:
    """Folders of a split below the root of the dataset, by what they hold."""
    long = {'train': 'training', 'val': 'validation'}[split]
    return {
        'coco_images': f'coco/{split}2017',
        'panoptic': f'coco/annotations/panoptic_{split}2017',
        'ade_images': f'ade/ADEChallengeData2016/images/{long}',
        'ade_labels': f'ade/ADEChallengeData2016/annotations/{long}',
    }


def write_split(root: Path, split: str, number: int, *, seed: int, size: tuple[int, int]) -> dict[str, int]:
    """Draw a split and write it in both layouts.

    Args:
        root: Root folder of the dataset.
        split: ``train`` or ``val``.
        number: How many images.
        seed: Seed of the dataset.
        size: Shortest and longest side in pixels.

    Returns:
        dict: Counts of images, objects and images without objects.
    """
    folders = {name: root / folder for name, folder in folders_of(split).items()}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    panoptic: list[dict[str, Any]] = []
    for index in range(number):
        drawn = image_of(seed, split, index, size)
        height, width = drawn.instances.shape
        image_id = FIRST_ID[split] + index
        stem, ade_stem = f'{image_id:012d}', f'ADE_{split}_{index + 1:08d}'
        images.append({'id': image_id, 'file_name': f'{stem}.jpg', 'height': height, 'width': width})
        instances += instance_annotations(drawn, image_id, first_id=len(instances) + 1)
        segments, pixels = panoptic_annotation(drawn, image_id, f'{stem}.png')
        panoptic.append(segments)

        jpeg = jpeg_of(drawn.image)
        (folders['coco_images'] / f'{stem}.jpg').write_bytes(jpeg)
        (folders['ade_images'] / f'{ade_stem}.jpg').write_bytes(jpeg)
        Image.fromarray(pixels).save(folders['panoptic'] / f'{stem}.png')
        Image.fromarray(semantic_labels(drawn)).save(folders['ade_labels'] / f'{ade_stem}.png')

    info = {'description': f'mmitpn generated shapes, seed {seed}, {split}'}
    for name, entries, categories in (
        ('instances', instances, thing_categories()),
        ('panoptic', panoptic, panoptic_categories()),
    ):
        content = {'info': info, 'images': images, 'annotations': entries, 'categories': categories}
        (root / f'coco/annotations/{name}_{split}2017.json').write_text(json.dumps(content), encoding='utf-8')
    return {
        'images': number,
        'objects': len(instances),
        'without objects': number - len({instance['image_id'] for instance in instances}),
    }


def jpeg_of(image: np.ndarray) -> bytes:
    """Encode an RGB image, uint8 (height, width, 3), as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=92)
    return buffer.getvalue()
