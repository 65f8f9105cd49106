"""Boxes and masks as COCO annotations: what the readers of COCO's, YOLO's and Pascal VOC's layout share.

Images are sorted by file name, the objects of an image keep the order of their file, and what is not COCO already is
rounded to hundredths of a pixel: the coordinates of a YOLO file are fractions of the image's sides, so that the three
layouts of a dataset agree to the last digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from mmitpn.config_check.images import stored_size
from mmitpn.config_check.messages import did_you_mean, format_list
from mmitpn.utils import IMAGES

SPLIT_WORDS = {
    'train': ('train', 'training'),
    'test': ('test', 'testing'),
    'val': ('val', 'valid', 'validation', 'dev'),
}
IMAGE_FOLDERS = ('JPEGImages', 'images', 'imgs', 'img')

Progress = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class InstanceSplit:
    """One split of a dataset of boxes or masks.

    Attributes:
        images: Folder that the file names start from.
        content: The annotations in COCO's format.
        ann_file: The file that holds them; None where it is still to be written.
    """

    images: Path
    content: dict[str, Any]
    ann_file: Path | None = None

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.content['images'])

    @property
    def num_objects(self) -> int:
        """Number of annotations."""
        return len(self.content['annotations'])

    @property
    def num_masks(self) -> int:
        """Number of annotations with a mask."""
        return sum(bool(one.get('segmentation')) for one in self.content['annotations'])

    @property
    def num_images_with_objects(self) -> int:
        """Number of images with at least one annotation."""
        return len({one['image_id'] for one in self.content['annotations']})

    def select(self, indices: Iterable[int]) -> InstanceSplit:
        """The images with these indices, in their order, and their annotations."""
        images = [self.content['images'][index] for index in sorted(indices)]
        kept = {image['id'] for image in images}
        annotations = [one for one in self.content['annotations'] if one['image_id'] in kept]
        return replace(self, content={**self.content, 'images': images, 'annotations': annotations}, ann_file=None)


@dataclass(frozen=True)
class InstanceData:
    """What a reader found: classes in the order of their labels, splits by name, and remarks for the log."""

    classes: tuple[str, ...]
    splits: dict[str, InstanceSplit]
    notes: tuple[str, ...] = ()


def split_of(name: str) -> str | None:
    """The split that a name speaks of (``instances_train2017``, ``valid``), or None."""
    words = re.findall('[a-z]+', name.lower())
    return next((split for split, known in SPLIT_WORDS.items() if any(word in known for word in words)), None)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders in ``root`` that are named for a split.

    Raises:
        ValueError: If two are named for the same split.
    """
    found: dict[str, Path] = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        split = split_of(folder.name) if folder.is_dir() else None
        if split is not None and split in found:
            raise ValueError(
                f'{root} has the folders {found[split].name!r} and {folder.name!r}, both for {split}; keep one of them'
            )
        if split is not None:
            found[split] = folder
    return found


def list_images(folder: Path) -> list[Path]:
    """The images in a folder and below it, sorted by name."""
    found = (path for path in folder.rglob('*') if path.suffix.lower() in IMAGES and not path.name.startswith('.'))
    return sorted(found, key=lambda path: (path.name, path))


def has_files(folder: Path, pattern: str) -> bool:
    """Whether a folder holds a file of this pattern."""
    return folder.is_dir() and next(folder.glob(pattern), None) is not None


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is loaded, turned by its EXIF orientation."""
    try:
        (width, height), orientation = stored_size(path)
    except OSError as error:
        raise ValueError(f'{path} cannot be read as an image; replace it, or remove it with its labels') from error
    return (height, width) if orientation >= 5 else (width, height)


def read_split_lists(folder: Path) -> dict[str, list[str]]:
    """The names of images in ``train.txt``, ``val.txt`` and ``test.txt`` of a folder; trainval.txt is not read."""
    return {
        split: [line.split()[0] for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
        for split in ('train', 'val', 'test')
        if (path := folder / f'{split}.txt').is_file()
    }


def read_class_list(root: Path) -> list[str] | None:
    """The names in ``classes.txt`` (or obj.names, labels.txt), one a line; None without such a file."""
    for name in ('classes.txt', 'obj.names', 'labels.txt'):
        if (root / name).is_file():
            return [line.strip() for line in (root / name).read_text(encoding='utf-8').splitlines() if line.strip()]
    return None


def check_same_names(wanted: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raise unless the classes that are asked for are those of the data, in any order."""
    for name in wanted:
        if name not in known:
            raise ValueError(
                f'--classes names {name!r}, but {where} has no such class{did_you_mean(name, known)}; it has '
                f'{format_list(known)}'
            )
    left = [name for name in known if name not in wanted]
    if left or len(set(wanted)) != len(wanted):
        raise ValueError(
            f'--classes must name each class of {where} once, but leaves out {format_list(left) or "none"} and names '
            f'{len(wanted)}'
        )


def no_classes(root: Path, needed: str) -> ValueError:
    """The error of data whose classes no file names."""
    return ValueError(f'no classes found in {root}: it has no {needed}; add them, or give --classes NAME NAME ...')


def refuse_without_image(folder: Path, suffix: str, known: set[Path], images: Path) -> None:
    """Raise where annotation files have no image: their objects would be lost."""
    files = sorted(folder.glob(f'*{suffix}')) if folder.is_dir() else []
    lost = [path.name for path in files if path not in known and path.name != 'classes.txt']
    if lost:
        raise ValueError(
            f'{len(lost)} files of {folder} have no image in {images}: {format_list(lost, limit=4)}; add the images, '
            'or remove the files'
        )


def to_coco(root: Path, classes: tuple[str, ...], splits: dict[str, list]) -> InstanceData:
    """Write what a reader found as COCO content; file names start from ``root``.

    Args:
        root: Folder of the dataset.
        classes: Names by label.
        splits: For each split the images: path, (width, height), and label, x1 y1 x2 y2 and polygons of each object.
    """
    clipped = 0
    root = root.resolve()
    converted = {}
    for split, entries in splits.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for path, (width, height), objects in entries:
            name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
            images.append({'id': len(images) + 1, 'file_name': name, 'width': width, 'height': height})
            for label, corners, polygons in objects:
                if isinstance(polygons, list) and polygons and not isinstance(polygons[0], list):
                    polygons = [polygons]
                x1, y1, x2, y2 = (round(value, 2) for value in corners)
                inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
                clipped += inside != (x1, y1, x2, y2)
                one = {
                    'id': len(annotations) + 1,
                    'image_id': images[-1]['id'],
                    'category_id': label + 1,
                    'bbox': [*inside[:2], round(inside[2] - inside[0], 2), round(inside[3] - inside[1], 2)],
                    'iscrowd': 0,
                }
                one['area'] = round(one['bbox'][2] * one['bbox'][3], 2)
                if polygons:
                    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
                    one.update(segmentation=polygons, area=float(coco_mask.area(merged)))
                annotations.append(one)
        categories = [{'id': index + 1, 'name': name} for index, name in enumerate(classes)]
        content = {'info': {}, 'licenses': [], 'images': images, 'annotations': annotations, 'categories': categories}
        converted[split] = InstanceSplit(root, content)
    notes = (f'{clipped} boxes reach outside their image and are clipped to it',) if clipped else ()
    return InstanceData(classes, converted, notes)


def iterate(items: Sequence[Any], text: str) -> Iterator[Any]:
    """Go through items without showing progress."""
    del text
    yield from items
