"""A COCO annotation file: what is in it, and everything that would make a training fail or go wrong unnoticed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .coco_entries import check_boxes, check_categories, check_images, check_links, flatten
from .coco_masks import check_masks, check_pictures
from .wording import as_tuple, listing, meant

SECTIONS = ('images', 'annotations', 'categories')
SMALL, MEDIUM = 32**2, 96**2


@dataclass(frozen=True)
class CocoSummary:
    """What an annotation file holds.

    Args:
        path: The file.
        images: Number of pictures.
        annotations: Number of annotations (of segments in a panoptic file).
        crowd: Annotations with ``iscrowd``.
        without_objects: Pictures without annotation.
        per_category: Annotations of each category, in the file's order.
        sizes: Annotations with a box by size in the picture: below 32x32 pixels, below 96x96, the rest.
        pictures_found: Pictures looked for, and found, in the image folder.
        warnings: What the hosts pass over in silence.
        image_ids: Ids of the pictures.
    """

    path: Path
    images: int
    annotations: int
    crowd: int
    without_objects: int
    per_category: dict[str, int]
    sizes: tuple[int, int, int]
    pictures_found: int
    warnings: tuple[str, ...]
    image_ids: frozenset[Hashable]


def check_coco_json(
    path: str | Path,
    classes: Sequence[str] | None = None,
    img_dir: str | Path | None = None,
    *,
    sample_images: int | None = 20,
    allow_class_subset: bool = False,
    need_annotations: bool = True,
    max_bad_boxes: float = 0.001,
    open_images: bool = False,
    classes_from: str = 'the config',
) -> CocoSummary:
    """Check a COCO annotation file (instances or panoptic) and count what is in it.

    Args:
        path: The file.
        classes: Names the model is trained on; None compares none.
        img_dir: Folder of the pictures; None looks for none.
        sample_images: How many pictures, evenly spaced, to look for; None looks for all.
        allow_class_subset: Accept categories of the file that ``classes`` lacks.
        need_annotations: Refuse a file without annotations.
        max_bad_boxes: Share of boxes without area and of boxes or masks reaching outside the picture up to which they
            are a warning: the hosts leave them out or cut them, and COCO itself has a few.
        open_images: Open every picture of ``img_dir`` and compare its size with the file's.
        classes_from: Where ``classes`` come from, for the messages.

    Returns:
        CocoSummary: The counts.

    Raises:
        FileNotFoundError: If the file, the folder of the pictures or a picture is not there.
        ValueError: If the content is wrong; the message names all that was found. Also if ``classes`` is a string.
    """
    if isinstance(classes, str):
        raise ValueError(  # noqa: TRY004 - one kind of error for this mistake wherever it is made
            f'classes must be a tuple or list of names, but got the string {classes!r}; write ({classes!r},)'
        )
    path = Path(path)
    content = _read(path, need_annotations=need_annotations)
    images, entries, categories = (content.get(section, []) for section in SECTIONS)
    problems = [*check_images(images), *check_categories(categories)]
    _raise(path, problems)
    annotations = flatten(entries)
    names = {category['id']: category['name'] for category in categories}
    sizes = {image['id']: (image['width'], image['height']) for image in images}
    problems += check_links(annotations, sizes, names)
    problems += check_classes(
        list(names.values()), classes, allow_class_subset=allow_class_subset, classes_from=classes_from
    )
    _raise(path, problems)
    bad, boxes = check_boxes(annotations, sizes)
    bad += check_masks(annotations, sizes)
    if sum(count for count, _ in bad) > max_bad_boxes * len(boxes):
        _raise(path, [text for _, text in bad])

    found = 0 if img_dir is None else _check_files(path, images, Path(img_dir), sample_images)
    if img_dir is not None and open_images:
        _raise(path, check_pictures(images, Path(img_dir)))
    counts = Counter(annotation['category_id'] for annotation in annotations)
    areas = boxes[:, 2] * boxes[:, 3]
    small, middle = int((areas < SMALL).sum()), int((areas < MEDIUM).sum())
    warnings = [text for _, text in bad]
    unused = [name for category_id, name in names.items() if not counts[category_id]]
    if unused and annotations:
        warnings.append(f'categories without any annotation: {listing(unused)}')
    return CocoSummary(
        path=path,
        images=len(images),
        annotations=len(annotations),
        crowd=sum(1 for annotation in annotations if annotation.get('iscrowd')),
        without_objects=len(sizes) - len({annotation['image_id'] for annotation in annotations}),
        per_category={name: counts[category_id] for category_id, name in names.items()},
        sizes=(small, middle - small, len(areas) - middle),
        pictures_found=found,
        warnings=tuple(warnings),
        image_ids=frozenset(sizes),
    )


def check_classes(
    in_file: Sequence[str],
    classes: Sequence[str] | None,
    *,
    allow_class_subset: bool = False,
    classes_from: str = 'the config',
) -> list[str]:
    """Compare the names of an annotation file with those a model is trained on.

    Args:
        in_file: Names of the file's categories, in its order.
        classes: Names the model is trained on.
        allow_class_subset: Accept names of the file that ``classes`` lacks.
        classes_from: Where ``classes`` come from.

    Returns:
        list: One sentence for each thing that is wrong.
    """
    if classes is None:
        return []
    problems = []
    unknown = [name for name in in_file if name not in classes]
    if unknown and not (allow_class_subset and len(unknown) < len(in_file)):
        near = meant(unknown[0], [name for name in classes if name not in in_file])
        problems.append(
            f'the file has categories that {classes_from} lacks: {listing(unknown)}{near} '
            '(to leave categories out on purpose, set allow_class_subset=True in the config)'
        )
    absent = [name for name in classes if name not in in_file]
    if absent:
        near = meant(absent[0], unknown)
        problems.append(f'{classes_from} has classes that the file lacks: {listing(absent)}{near}')
    if problems:
        names = as_tuple(in_file) if len(in_file) <= 20 else f'(all {len(in_file)} names of the file, in its order)'
        problems[-1] += f'; set metainfo=dict(classes={names}) and num_classes={len(in_file)}, or correct the file'
    order = [name for name in in_file if name in classes]
    if not problems and order != list(classes):
        problems.append(
            f'{classes_from} has the classes in another order than the file, whose order the labels follow, so that '
            f'names would be swapped in results and pictures; use classes={as_tuple(order)}'
        )
    return problems


def _raise(path: Path, problems: Sequence[str]) -> None:
    """Raise with all problems, if there are any."""
    if len(problems) == 1:
        raise ValueError(f'{path}: {problems[0]}')
    if problems:
        numbered = [f'({number}) {problem}' for number, problem in enumerate(problems, 1)]
        raise ValueError(f'{path}: {len(problems)} problems\n' + '\n'.join(numbered))


def _read(path: Path, *, need_annotations: bool) -> dict[str, Any]:
    """Read a file and see that it has the three lists of COCO's format."""
    if not path.is_file():
        near = sorted(found.name for found in path.parent.glob('*.json')) if path.parent.is_dir() else []
        there = f'{path.parent} holds {listing(near)}' if near else f'{path.parent} holds no .json file'
        raise FileNotFoundError(f'annotation file {path} not found ({there}); correct data_root or ann_file')
    text = path.read_bytes()
    if not text.strip():
        raise ValueError(f'{path} is empty; make or download the annotation file again')
    if text.startswith(b'version https://git-lfs'):
        raise ValueError(f'{path} is a git-lfs pointer, not the annotations; fetch it with `git lfs pull`')
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f'{path} is not valid JSON ({error}; {len(text)} bytes); it may be cut off: make or download it again'
        ) from None
    needed = SECTIONS if need_annotations else ('images', 'categories')
    if not isinstance(content, dict) or not all(isinstance(content.get(section), list) for section in needed):
        seen = listing(content) if isinstance(content, dict) else f'a {type(content).__name__}'
        raise ValueError(f'{path} is not in COCO format: it needs the lists {listing(needed)}, and has {seen}')
    for section in needed:
        if not content[section]:
            raise ValueError(f'{path} has no {section}; training and evaluation need at least one')
        if not all(isinstance(entry, Mapping) for entry in content[section]):
            raise ValueError(f'{path}: every entry of {section!r} must be an object with named fields')
    return content


def _check_files(path: Path, images: Sequence[Mapping], img_dir: Path, sample_images: int | None) -> int:
    """Look for pictures, evenly spaced over the file, and return how many; all of them are there."""
    if not img_dir.is_dir():
        raise FileNotFoundError(
            f'image folder {img_dir} of {path} not found; correct data_root or data_prefix, or put the pictures there'
        )
    number = len(images) if sample_images is None else min(sample_images, len(images))
    chosen = [images[i * len(images) // max(number, 1)]['file_name'] for i in range(number)]
    missing = [name for name in chosen if not (img_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {number} pictures of {path} looked for are not in {img_dir}: '
            f'{listing(missing, limit=4)}; correct data_root or data_prefix, or put the pictures there'
        )
    return number
