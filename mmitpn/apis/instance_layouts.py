"""Boxes and masks in the layouts of COCO, YOLO and Pascal VOC, read as COCO annotations.

Images are sorted by file name, the objects of an image keep the order of their file, and what is not COCO already is
rounded to hundredths of a pixel: the coordinates of a YOLO file are fractions of the image's sides, so that the three
layouts of a dataset agree to the last digit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
import yaml
from pycocotools import mask as coco_mask

from mmitpn.config_check.dataset_entries import IMAGES
from mmitpn.config_check.images import stored_size
from mmitpn.config_check.messages import did_you_mean, format_list

SPLIT_WORDS = {
    'train': ('train', 'training'),
    'test': ('test', 'testing'),
    'val': ('val', 'valid', 'validation', 'dev'),
}
OTHER_JSON = ('panoptic', 'captions', 'keypoints', 'stuff', 'info', 'unlabeled')  # words in names of COCO's other files
VOC_FOLDERS = ('Annotations', 'annotations')
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


# --- COCO ------------------------------------------------------------------------------------------------------------


def find_coco(root: Path) -> dict[Path, dict[str, Any]]:
    """The COCO annotation files of instances of a folder, with what they hold.

    Raises:
        ValueError: If a file ending in .json is none.
    """
    folders = [root, root / 'annotations', *split_folders(root).values()]
    found = {}
    for path in sorted({path for folder in folders for path in folder.glob('*.json')}):
        if set(re.findall('[a-z]+', path.stem.lower())) & set(OTHER_JSON):
            continue
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f'{path} is broken: {error}; write it again, or remove it') from error
        if isinstance(content, dict) and isinstance(content.get('images'), list) and 'categories' in content:
            found[path] = content
    return found


def read_coco(
    root: Path, files: dict[Path, dict[str, Any]], classes: Sequence[str] | None, progress: Progress
) -> InstanceData:
    """Read COCO's layout, under any file names; Roboflow's and CVAT's too.

    A file is used as it is, unless its images are not sorted by name, its categories not by id, those of two files
    differ, or Roboflow's category 0, which only names the group of the others, has to be dropped.

    Args:
        root: The folder.
        files: What :func:`find_coco` found in it.
        classes: The classes in the order wanted; None takes them by category id.
        progress: Wraps what is gone through.

    Raises:
        ValueError: If two files are of the same split, the classes of two splits differ, or there are none.
        FileNotFoundError: If no folder has the images.
    """
    del progress
    by_split: dict[str, list[Path]] = {}
    for path in files:
        folder = '' if path.parent == root else path.parent.name
        by_split.setdefault(split_of(path.stem) or split_of(folder) or '', []).append(path)
    notes = []
    if list(by_split) == ['']:
        by_split = {'train': by_split['']}
    unnamed = by_split.pop('', [])
    notes += [f'{path} is passed over: its name says neither train, val nor test' for path in unnamed]
    chosen = {split: _choose(split, paths) for split, paths in by_split.items()}
    contents = {split: files[path] for split, path in chosen.items()}
    group = _group_category(list(contents.values()))
    if group is not None:
        notes.append(f'category 0 {group!r}, which has no object and names the group of the others, is dropped')
    categories = _order_categories(chosen, contents, group, classes)
    splits = {}
    for split, path in chosen.items():
        content = {'info': {}, 'licenses': [], 'annotations': [], **contents[split]}
        ordered = _canonical(content, categories, path)
        as_it_is = all(ordered[key] == contents[split].get(key) for key in ('images', 'annotations', 'categories'))
        if not as_it_is and group is None:
            notes.append(f'{path}: images are sorted by name and categories by id in a copy')
        images = _find_image_folder(root, path, [one['file_name'] for one in ordered['images']], split)
        splits[split] = InstanceSplit(images, ordered, path if as_it_is else None)
    return InstanceData(tuple(categories), splits, tuple(notes))


def _choose(split: str, paths: list[Path]) -> Path:
    """The one file of a split."""
    instances = [path for path in paths if path.name.startswith('instances')]
    if len(paths) > 1 and len(instances) != 1:
        raise ValueError(
            f'{format_list([str(path) for path in paths])} are all COCO files for {split}; keep one of them in the '
            'folder'
        )
    return instances[0] if len(paths) > 1 else paths[0]


def _group_category(contents: list[dict[str, Any]]) -> str | None:
    """The name of Roboflow's category 0, which stands for all others and has no object; None without one."""
    for content in contents:
        for category in content['categories']:
            others = [one for one in content['categories'] if one is not category]
            if category['id'] == 0 and any(one.get('supercategory') == category['name'] for one in others):
                used = any(one['category_id'] == 0 for each in contents for one in each.get('annotations', ()))
                return None if used else category['name']
    return None


def _order_categories(
    paths: dict[str, Path], contents: dict[str, dict[str, Any]], group: str | None, classes: Sequence[str] | None
) -> dict[str, int]:
    """Names of the classes in the order of their labels, with the ids of the training file."""
    first = 'train' if 'train' in contents else next(iter(contents))
    ids = {
        one['name']: one['id']
        for one in sorted(contents[first]['categories'], key=lambda one: one['id'])
        if not (one['id'] == 0 and one['name'] == group)
    }
    if not ids:
        raise ValueError(f'{paths[first]} has no categories, so there is no class to learn; name them in it')
    for split, content in contents.items():
        names = {one['id']: one['name'] for one in content['categories']}
        used = {names.get(one['category_id']) for one in content.get('annotations', ())}
        for name in sorted(name for name in used if name is not None and name not in ids):
            raise ValueError(
                f'{paths[split]} has objects of the category {name!r}, which {paths[first]} does not have'
                f'{did_you_mean(name, list(ids))}; give all splits the same categories'
            )
    if classes is None:
        return ids
    check_same_names(classes, list(ids), str(paths[first]))
    return {name: number for number, name in enumerate(classes, start=1)}


def _canonical(content: dict[str, Any], categories: dict[str, int], path: Path) -> dict[str, Any]:
    """The same annotations with images by name, and the categories of the training file."""
    entries = {one['name']: one for one in content['categories']}
    own = {one['id']: one['name'] for one in content['categories']}
    unknown = sorted({one['category_id'] for one in content['annotations'] if own.get(one['category_id']) is None})
    if unknown:
        raise ValueError(f'{path} has objects of the category ids {format_list(unknown)}, which it does not name')
    images = sorted(content['images'], key=lambda one: (Path(one['file_name']).name, one['file_name']))
    return {
        **content,
        'images': images,
        'annotations': [{**one, 'category_id': categories[own[one['category_id']]]} for one in content['annotations']],
        'categories': [{**entries.get(name, {'name': name}), 'id': number} for name, number in categories.items()],
    }


def _find_image_folder(root: Path, ann_file: Path, names: list[str], split: str) -> Path:
    """The folder that the file names of an annotation file start from."""
    if not names:
        raise ValueError(f'{ann_file} lists no image, so the {split} split is empty; correct or remove it')
    folders = [ann_file.parent, root, *sorted(path for path in root.rglob('*') if path.is_dir())]
    folders.sort(key=lambda folder: (split_of(folder.name) != split, len(folder.parts)))
    sample = names[:: max(len(names) // 10, 1)]
    best = max(folders, key=lambda folder: sum((folder / name).is_file() for name in sample))
    if not any((best / name).is_file() for name in sample):
        raise FileNotFoundError(
            f'no folder in {root} has the images of {ann_file} (looked for {names[0]!r} and others); put them there'
        )
    return best


# --- YOLO ------------------------------------------------------------------------------------------------------------


def find_yolo(root: Path) -> dict[str, list[tuple[Path, Path]]]:
    """The folders of images and labels of YOLO's layout by split, with or without a ``data.yaml``."""
    config = find_data_yaml(root)
    if config is not None:
        return _folders_of_yaml(*config)
    found = {}
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
    files = sorted([*root.glob('*.yaml'), *root.glob('*.yml')], key=lambda path: (path.stem != 'data', path))
    for path in files:
        try:
            content = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
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
                raise FileNotFoundError(f'{path}: {key} is {name!r}, which is not there; correct it (or path)')
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
        ValueError: If the classes are not known, a label file is broken, has no image, or a class that is none.
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
            _refuse_without_image(labels, '.txt', {file for _, file in pairs}, images)
        entries = []
        for path, file in progress(sorted(pairs, key=lambda pair: (pair[0].name, pair[0])), f'reading {split}'):
            size = image_size(path)
            lines = file.read_text(encoding='utf-8').splitlines() if file.is_file() else []
            lines = [line for line in map(str.split, lines) if line]
            lines = [line[:5] if keypoints and len(line) == 5 + keypoints else line for line in lines]
            try:
                read = yolo_annotations_to_detections([' '.join(line) for line in lines], size, with_masks=False)
            except ValueError as error:
                raise ValueError(f'{file} is no label file of YOLO: {error}') from error
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
    return _to_coco(root, names, splits)


def _yolo_names(root: Path, config: tuple[Path, dict[str, Any]] | None) -> list[str]:
    """The names of the classes of YOLO's layout by index."""
    if config is None:
        return read_class_list(root) or _no_classes(root, 'data.yaml with names, or classes.txt')
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


# --- Pascal VOC ------------------------------------------------------------------------------------------------------


def find_voc(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of images and XML files of Pascal VOC's layout by split; '' where files of names tell the splits."""
    for name in VOC_FOLDERS:
        if has_files(root / name, '*.xml'):
            images = [root / one for one in IMAGE_FOLDERS if (root / one).is_dir()] or [root]
            return {'': (images[0], root / name)}
    found = {}
    for split, folder in split_folders(root).items():
        annotations = [one for one in (folder, *(folder / name for name in VOC_FOLDERS)) if has_files(one, '*.xml')]
        images = [folder / one for one in IMAGE_FOLDERS if (folder / one).is_dir()] or [folder]
        if annotations:
            found[split] = (images[0], annotations[0])
    if not found and has_files(root, '*.xml') and any(path.suffix.lower() in IMAGES for path in root.iterdir()):
        return {'': (root, root)}
    return found


def read_voc(
    root: Path, found: dict[str, tuple[Path, Path]], classes: Sequence[str] | None, progress: Progress
) -> InstanceData:
    """Read Pascal VOC's layout: boxes, and polygons where an object has one. Classes are sorted by name.

    Pixels are counted from 1 there: ``xmin`` 1 is the left edge of the image, ``xmax`` its width the right one.

    Args:
        root: The folder.
        found: What :func:`find_voc` found in it.
        classes: The classes in the order wanted; None sorts them by name.
        progress: Wraps what is gone through.

    Raises:
        ValueError: If a file is broken or has no image, or there is no object at all.
    """
    read = {}
    for split, (images, folder) in found.items():
        pairs = [
            (path, folder / f'{path.stem}.xml') for path in sorted(images.iterdir()) if path.suffix.lower() in IMAGES
        ]
        if not pairs:
            raise ValueError(f'{images} holds no image, but {folder} holds annotations; put the images there')
        _refuse_without_image(folder, '.xml', {file for _, file in pairs}, images)
        read[split] = [_read_xml(path, file) for path, file in progress(pairs, f'reading {split or "annotations"}')]
    by_name = sorted({name for entries in read.values() for *_, objects in entries for name, *_ in objects})
    if not by_name:
        _no_classes(root, 'objects in the XML files')
    if classes is not None:
        check_same_names(classes, by_name, str(root))
    names = tuple(classes or by_name)
    labeled = {
        split: [
            (path, size, [(names.index(name), *rest) for name, *rest in objects]) for path, size, objects in entries
        ]
        for split, entries in read.items()
    }
    return _to_coco(root, names, _split_by_lists(root / 'ImageSets' / 'Main', labeled))


def _read_xml(path: Path, file: Path) -> tuple[Path, tuple[int, int], list[tuple[str, list[float], list | None]]]:
    """Read the annotations of an image: path, size, and name, box and polygons of each object."""
    from defusedxml.ElementTree import parse
    from supervision.dataset.formats.pascal_voc import detections_from_xml_obj, parse_polygon_points

    size = image_size(path)
    if not file.is_file():
        return path, size, []
    try:
        tree = parse(file).getroot()
        outlines = [
            [np.round(parse_polygon_points(one) - 1, 2).ravel().tolist() for one in element.findall('polygon')] or None
            for element in tree.findall('object')
        ]
        for element in tree.findall('object'):
            for polygon in element.findall('polygon'):
                element.remove(polygon)  # read above, without drawing it
        found, names = detections_from_xml_obj(tree, [], size)
    except (ParseError, ValueError) as error:
        raise ValueError(f'{file} is no annotation file of Pascal VOC: {error}') from error
    labels = [] if found.class_id is None else found.class_id.tolist()
    return (
        path,
        size,
        [(names[at], box, one) for at, box, one in zip(labels, found.xyxy.tolist(), outlines, strict=True)],
    )


def _split_by_lists(folder: Path, entries: dict[str, list]) -> dict[str, list]:
    """Divide what is in one folder by the names in ``train.txt``, ``val.txt`` and ``test.txt``, if they are there."""
    if list(entries) != ['']:
        return entries
    lists = read_split_lists(folder)
    if not lists:
        return {'train': entries['']}
    by_stem = {entry[0].stem: entry for entry in entries['']}
    for split, stems in lists.items():
        missing = [stem for stem in stems if stem not in by_stem]
        if missing:
            raise ValueError(
                f'{folder / split}.txt names {len(missing)} images that are not there: {format_list(missing, limit=4)}'
            )
    return {split: [by_stem[stem] for stem in sorted(stems)] for split, stems in lists.items()}


def read_split_lists(folder: Path) -> dict[str, list[str]]:
    """The names of images in ``train.txt``, ``val.txt`` and ``test.txt`` of a folder; trainval.txt is not read."""
    return {
        split: [line.split()[0] for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
        for split in ('train', 'val', 'test')
        if (path := folder / f'{split}.txt').is_file()
    }


# --- what the readers share ------------------------------------------------------------------------------------------


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


def _no_classes(root: Path, needed: str) -> list[str]:
    raise ValueError(f'no classes found in {root}: it has no {needed}; add them, or give --classes NAME NAME ...')


def _refuse_without_image(folder: Path, suffix: str, known: set[Path], images: Path) -> None:
    """Raise where annotation files have no image: their objects would be lost."""
    files = sorted(folder.glob(f'*{suffix}')) if folder.is_dir() else []
    lost = [path.name for path in files if path not in known and path.name != 'classes.txt']
    if lost:
        raise ValueError(
            f'{len(lost)} files of {folder} have no image in {images}: {format_list(lost, limit=4)}; add the images, '
            'or remove the files'
        )


def _to_coco(root: Path, classes: tuple[str, ...], splits: dict[str, list]) -> InstanceData:
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
            path = path.resolve()
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
