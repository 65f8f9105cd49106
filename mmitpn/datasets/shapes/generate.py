"""Generating the dataset: parameters, folders and files, and the stamp that marks a complete dataset."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmitpn.atomic import write_atomic
from mmitpn.utils import is_int

from .annotations import (
    instance_annotations,
    panoptic_annotation,
    panoptic_categories,
    semantic_labels,
    thing_categories,
)
from .drawing import EMPTY_EVERY, DrawnImage, draw_image

VERSION = 2
"""Raised whenever a seed gives other images or labels than before, so that older datasets are generated again."""
STAMP = 'shapes.json'
"""Written last: a folder with it is complete."""
STARTED = 'shapes.unfinished'
"""Written first, removed last: a folder with it was being generated."""
SMALLEST_SIDE = 32
SPLITS = {'train': 0, 'val': 1, 'unlabelled': 2}
"""Number of each split in the seed of its images: no image of one is in another."""
FIRST_ID = {'train': 1, 'val': 500_001, 'unlabelled': 1}


def generate_shapes(
    out_dir: str | Path,
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    size: tuple[int, int] = (128, 192),
    overwrite: bool = False,
) -> Path:
    """Generate the dataset of the quick start: shapes on textured backgrounds, in COCO's and ADE20K's layout.

    An image depends on the seed, its split and its index alone, on any machine. A complete dataset is kept.

    Args:
        out_dir: Folder of the dataset; ``coco/`` and ``ade/`` are created in it.
        num_train: Number of training images, 1 to 499,999.
        num_val: Number of held-out images, 1 to 499,999.
        seed: An integer from 0.
        size: Shortest and longest side of an image in pixels, at least 32.
        overwrite: Generate the dataset again, and replace another one.

    Returns:
        Path: The folder of the dataset.

    Raises:
        ValueError: If a parameter is out of range, or the folder holds another dataset or other files.
        TypeError: If a number is not an integer.
    """
    _check_numbers(num_train=num_train, num_val=num_val)
    parameters = {'kind': 'shapes', **_common(seed, size), 'num_train': num_train, 'num_val': num_val}
    splits = {'train': num_train, 'val': num_val}
    files = {folder: n for split, n in splits.items() for folder in folders_of(split).values()}
    root = Path(out_dir)
    if _is_complete(root, parameters, files, overwrite=overwrite):
        return root
    _begin(root, ('coco', 'ade'))
    made = {
        split: write_split(root, split, number, seed=seed, size=(size[0], size[1])) for split, number in splits.items()
    }
    _finish(root, parameters, made)
    return root


def generate_images(
    out_dir: str | Path,
    num_images: int = 1000,
    seed: int = 0,
    size: tuple[int, int] = (128, 192),
    overwrite: bool = False,
) -> Path:
    """Generate images of the same kind without labels, for pre-training. None of them is in the labeled dataset.

    Args:
        out_dir: Folder of the dataset; ``images/`` is created in it.
        num_images: Number of images, 1 to 499,999.
        seed: An integer from 0.
        size: Shortest and longest side of an image in pixels, at least 32.
        overwrite: Generate the dataset again, and replace another one.

    Returns:
        Path: The folder with the images.

    Raises:
        ValueError: If a parameter is out of range, or the folder holds another dataset or other files.
        TypeError: If a number is not an integer.
    """
    _check_numbers(num_images=num_images)
    parameters = {'kind': 'shapes without labels', **_common(seed, size), 'num_images': num_images}
    root = Path(out_dir)
    images = root / 'images'
    if _is_complete(root, parameters, {'images': num_images}, overwrite=overwrite):
        return images
    _begin(root, ('images',))
    images.mkdir()
    for index in range(num_images):
        drawn = image_of(seed, 'unlabelled', index, (size[0], size[1]))
        (images / f'{FIRST_ID["unlabelled"] + index:012d}.jpg').write_bytes(jpeg_of(drawn.image))
    _finish(root, parameters, {'unlabelled': {'images': num_images}})
    return images


def read_stamp(root: str | Path) -> dict[str, Any] | None:
    """Read the parameters and counts of a complete dataset; None without one.

    Args:
        root: Folder of the dataset.

    Returns:
        dict | None: Keys ``parameters`` and ``made`` (counts by split).
    """
    try:
        stamp = json.loads((Path(root) / STAMP).read_text(encoding='utf-8'))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return stamp if isinstance(stamp, dict) and {'parameters', 'made'} <= set(stamp) else None


def _common(seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """Check seed and size; the stamp's entries for them."""
    if not is_int(seed):
        raise TypeError(f'seed must be an integer, but got {seed!r}')
    if seed < 0:
        raise ValueError(f'seed must be 0 or more, but got {seed}')
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise TypeError(f'size must be the shortest and the longest side as two integers, but got {size!r}')
    if not SMALLEST_SIDE <= size[0] <= size[1]:
        raise ValueError(
            f'size must be (shortest, longest) side with {SMALLEST_SIDE} <= shortest <= longest, got {size}'
        )
    return {'version': VERSION, 'seed': seed, 'size': list(size)}


def _check_numbers(**numbers: int) -> None:
    """Refuse counts of images that are not integers from 1."""
    for name, number in numbers.items():
        if not is_int(number):
            raise TypeError(f'{name} must be an integer, but got {number!r}')
        if not 1 <= number < 500_000:
            raise ValueError(f'{name} must be from 1 to 499999, but got {number}')


def _is_complete(root: Path, parameters: dict[str, Any], files: dict[str, int], *, overwrite: bool) -> bool:
    """Whether the dataset exists already, with ``files`` in each folder; a ValueError if other files are there."""
    if root.exists() and not root.is_dir():
        raise ValueError(f'{root} is a file; give a folder for the generated dataset')
    stamp = read_stamp(root)
    generated = stamp is not None or (root / STARTED).exists() or (root / STAMP).exists()
    if not generated and root.exists() and any(root.iterdir()):
        raise ValueError(
            f'{root} holds files that are not a generated dataset (no {STAMP} in it); give a new or empty folder, '
            'so that nothing of yours is replaced'
        )
    if overwrite or stamp is None:
        return False
    if stamp['parameters'] != parameters:
        seen = {key: value for key, value in stamp['parameters'].items() if parameters.get(key) != value}
        wanted = {key: parameters.get(key) for key in seen}
        raise ValueError(
            f'{root} holds a generated dataset made with {seen}, but {wanted} is wanted; give another folder, '
            'or overwrite=True (--overwrite) to replace it'
        )
    return all(sum(1 for _ in (root / f).glob('*.*')) == n for f, n in files.items())


def _begin(root: Path, folders: tuple[str, ...]) -> None:
    """Mark the folder as unfinished, and remove what an earlier run left in it."""
    root.mkdir(parents=True, exist_ok=True)
    (root / STARTED).touch()
    (root / STAMP).unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(root / folder, ignore_errors=True)


def _finish(root: Path, parameters: dict[str, Any], made: dict[str, dict[str, int]]) -> None:
    """Write the stamp."""
    write_atomic(root / STAMP, f'{json.dumps({"parameters": parameters, "made": made}, indent=1)}\n'.encode())
    (root / STARTED).unlink()


# --- images and files ---


def image_of(seed: int, split: str, index: int, size: tuple[int, int]) -> DrawnImage:
    """Draw image ``index`` of a split (of ``SPLITS``); it depends on the arguments alone.

    Height and width are drawn separately between the two of ``size``, in pixels.
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
    """Draw ``train`` or ``val`` and write it in both layouts; returns counts of images, objects and empty images."""
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
