"""The layout of Pascal VOC: an XML file for each image, in folders of their own or beside the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import ParseError, parse

import numpy as np

from mmitpn.config_check.messages import format_list
from mmitpn.utils import IMAGES

from .instance_layouts import (
    IMAGE_FOLDERS,
    InstanceData,
    Progress,
    check_same_names,
    has_files,
    image_size,
    no_classes,
    read_split_lists,
    refuse_without_image,
    split_folders,
    to_coco,
)

VOC_FOLDERS = ('Annotations', 'annotations')


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
        refuse_without_image(folder, '.xml', {file for _, file in pairs}, images)
        read[split] = [_read_xml(path, file) for path, file in progress(pairs, f'reading {split or "annotations"}')]
    by_name = sorted({name for entries in read.values() for *_, objects in entries for name, *_ in objects})
    if not by_name:
        raise no_classes(root, 'objects in the XML files')
    if classes is not None:
        check_same_names(classes, by_name, str(root))
    names = tuple(classes or by_name)
    labeled = {
        split: [
            (path, size, [(names.index(name), *rest) for name, *rest in objects]) for path, size, objects in entries
        ]
        for split, entries in read.items()
    }
    return to_coco(root, names, _split_by_lists(root / 'ImageSets' / 'Main', labeled))


def _read_xml(path: Path, file: Path) -> tuple[Path, tuple[int, int], list[tuple[str, list[float], list | None]]]:
    """Read the annotations of an image: path, size, and name, box and polygons of each object."""
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
        raise ValueError(f'{file} is not an annotation file of Pascal VOC: {error}') from error
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
