"""The layout of YOLO: a text file of boxes or polygons for each image, with or without ``data.yaml``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmitpn.config_check.messages import format_list
from mmitpn.utils import IMAGES

from .instance_layouts import (
    InstanceData,
    Progress,
    has_files,
    image_size,
    list_images,
    no_classes,
    read_class_list,
    refuse_without_image,
    split_folders,
    split_of,
    to_coco,
)


def find_yolo(root: Path) -> dict[str, list[tuple[Path, Path]]]:
    """The folders of images and labels of YOLO's layout by split, with or without a ``data.yaml``."""
    config = find_data_yaml(root)
    found = {} if config is None else _folders_of_yaml(*config)
    if found:
        return found
    for split, folder in split_folders(root / 'images').items():
        if has_files(root / 'labels' / folder.name, '*.txt'):
            found[split] = [(folder, root / 'labels' / folder.name)]
    for split, folder in split_folders(root).items():
        if has_files(folder / 'labels', '*.txt') and (folder / 'images').is_dir():
            found[split] = [(folder / 'images', folder / 'labels')]
    if not found and has_files(root / 'labels', '*.txt') and (root / 'images').is_dir():
        found['train'] = [(root / 'images', root / 'labels')]
    return found


def find_data_yaml(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file of YOLO's layout that names classes and folders, with what it holds; None without one."""
    from supervision.utils.file import read_yaml_file

    files = sorted([*root.glob('*.yaml'), *root.glob('*.yml')], key=lambda path: (path.stem != 'data', path))
    for path in files:
        try:
            content = read_yaml_file(str(path))
        except Exception as error:  # of the YAML library, which is supervision's
            raise ValueError(f'{path} is broken: {" ".join(str(error).split())}; write it again') from error
        if isinstance(content, dict) and ('names' in content or 'nc' in content):
            return path, content
    return None


def _folders_of_yaml(path: Path, content: dict[str, Any]) -> dict[str, list[tuple[Path, Path]]]:
    """The folders that a ``data.yaml`` names, as Ultralytics (``path:``) and Roboflow (``../train/images``) write."""
    found = {}
    for key in ('train', 'val', 'valid', 'test'):
        values = content.get(key)
        if not values:
            continue
        split = split_of(key) or key
        folders = []
        for value in values if isinstance(values, list) else [values]:
            name = str(value)
            bases = [path.parent / str(content.get('path') or ''), path.parent]
            inside = re.sub(r'^(\.\./|\./)+', '', name)  # Roboflow's ../train/images is train/images
            tried = [base / one for one in (inside, name) for base in bases]
            folder = next((one.resolve() for one in tried if one.is_dir()), None)
            if folder is not None:
                folders += [(one, _labels_of(one)) for one in _with_images(folder)]
            elif name.endswith('.txt'):
                raise ValueError(f'{path}: {key} is {name!r}; a list of images is not read, give a folder of images')
            elif split != 'test':  # Roboflow names a test set whether there is one or not
                raise FileNotFoundError(f'{path}: {key} is {name!r}, which does not exist; correct {key} or path')
        if folders:
            found[split] = folders
    return found


def _with_images(folder: Path) -> list[Path]:
    """A folder and those below it that hold images."""
    return sorted({path.parent for path in list_images(folder)}) or [folder]


def _labels_of(images: Path) -> Path:
    """The folder of the labels of a folder of images: ``labels`` for the last ``images``, else the same folder."""
    parts = list(images.parts)
    if 'images' not in parts:
        return images
    last = len(parts) - 1 - parts[::-1].index('images')
    return Path(*parts[:last], 'labels', *parts[last + 1 :])


def read_yolo(
    root: Path,
    found: dict[str, list[tuple[Path, Path]]],
    classes: Sequence[str] | None,
    progress: Progress,
) -> InstanceData:
    """Read YOLO's layout: boxes, polygons, or both. An image without a label file has no object.

    Args:
        root: The folder.
        found: What :func:`find_yolo` found in it.
        classes: The classes by index; None takes those of ``data.yaml``, or of ``classes.txt``.
        progress: Wraps what is gone through.

    Raises:
        ValueError: If the classes are not known, or a label file is broken, has no image, or has a class index without
            a name.
    """
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections

    config = find_data_yaml(root)
    names = tuple(classes or _yolo_names(root, config))
    keypoints = int(np.prod((config[1].get('kpt_shape') or [0]) if config else [0]))
    splits = {}
    for split, folders in found.items():
        pairs = [
            (path, labels / f'{path.stem}.txt')
            for images, labels in folders
            for path in sorted(images.iterdir())
            if path.suffix.lower() in IMAGES
        ]
        for images, labels in folders:
            refuse_without_image(labels, '.txt', {file for _, file in pairs}, images)
        entries = []
        for path, file in progress(sorted(pairs, key=lambda pair: (pair[0].name, pair[0])), f'reading {split}'):
            size = image_size(path)
            lines = file.read_text(encoding='utf-8').splitlines() if file.is_file() else []
            lines = [line for line in map(str.split, lines) if line]
            lines = [line[:5] if keypoints and len(line) == 5 + keypoints else line for line in lines]
            try:
                read = yolo_annotations_to_detections([' '.join(line) for line in lines], size, with_masks=False)
            except ValueError as error:
                raise ValueError(f'{file} is not a label file of YOLO: {error}') from error
            labels = [] if read.class_id is None else read.class_id.tolist()
            wrong = sorted({label for label in labels if not 0 <= label < len(names)})
            if wrong:
                raise ValueError(
                    f'{file} has the class {format_list(wrong)}, but there are {len(names)} classes, 0 to '
                    f'{len(names) - 1} ({format_list(names)}); correct the file or the names'
                )
            polygons = [_yolo_polygon(line, size) if len(line) > 6 else None for line in lines]
            entries.append((path, size, list(zip(labels, read.xyxy.tolist(), polygons, strict=True))))
        splits[split] = entries
    return to_coco(root, names, splits)


def _yolo_names(root: Path, config: tuple[Path, dict[str, Any]] | None) -> list[str]:
    """The names of the classes of YOLO's layout by index."""
    if config is None:
        names = read_class_list(root)
        if not names:
            raise no_classes(root, 'data.yaml with names, or classes.txt')
        return names
    path, content = config
    names = content.get('names')
    if isinstance(names, dict) and all(str(key).isdigit() for key in names):
        numbers = {int(key): str(name) for key, name in names.items()}
        if sorted(numbers) != list(range(len(numbers))):
            raise ValueError(f'{path}: names has the indices {sorted(numbers)}; number the classes from 0 without gaps')
        names = [numbers[index] for index in range(len(numbers))]
    if not isinstance(names, list) or not names:
        raise ValueError(f'{path} names no classes (names is {names!r}); write names: [cat, dog]')
    return list(map(str, names))


def _yolo_polygon(line: list[str], size: tuple[int, int]) -> list[float]:
    """The points of a polygon in pixels; a single number that is left over is a confidence."""
    values = np.array(line[1 : len(line) - (len(line) + 1) % 2], dtype=float).reshape(-1, 2)
    return np.round(values * size, 2).ravel().tolist()
