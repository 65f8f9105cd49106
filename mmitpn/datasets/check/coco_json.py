"""A COCO annotation file: what is in it, and everything that would make training fail or go wrong unnoticed."""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .coco_dataset import (
    Remainder,
    dataset_of_file,
    loads_label_maps,
    loads_masks,
    look_at_remainder,
    nothing_left,
)
from .coco_entries import (
    Finding,
    box_corners,
    check_boxes,
    check_categories,
    check_fields,
    check_ids,
    check_image_ids,
    check_images,
    check_links,
    check_panoptic,
    flatten,
)
from .coco_images import HEADERS_READ, check_image_sizes, check_label_maps, find_images
from .coco_masks import check_mask_presence, check_masks
from .data_sets import DataSet
from .image_size import build_image_loader
from .wording import as_tuple, listing, meant

SECTIONS = ('images', 'annotations', 'categories')
SMALL, MEDIUM = 32**2, 96**2
MAX_BAD_BOXES = 0.1
MAX_SLIGHT = 0.5


@dataclass(frozen=True)
class CocoSummary:
    """What an annotation file holds.

    Args:
        path: The file.
        images: Number of images.
        annotations: Number of annotations (of segments in a panoptic file).
        crowd: Annotations with ``iscrowd``.
        without_objects: Images without annotation.
        per_category: Annotations of each category, in the file's order.
        sizes: Annotations with a box by size in the image: below 32x32 pixels, below 96x96, the rest.
        pictures_found: Images looked for, and found, in the image folder.
        warnings: What mmdet passes over in silence.
        image_ids: Ids of the images.
        classes: Names the model is trained on, if they were given.
        remainder: What mmdet's loader leaves of the file; None if that was not looked at.
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
    classes: tuple[str, ...] | None = None
    remainder: Remainder | None = None


def check_coco_json(
    path: str | Path,
    classes: Sequence[str] | None = None,
    img_dir: str | Path | None = None,
    *,
    sample_images: int | None = 20,
    allow_class_subset: bool = False,
    need_annotations: bool = True,
    max_bad_boxes: float | None = None,
    open_images: bool = False,
    classes_from: str = 'the config',
    evaluation: bool | None = None,
    masks_read_by: str | None = None,
    maps_evaluated: bool = False,
    data_set: DataSet | None = None,
    scope: str | None = None,
) -> CocoSummary:
    """Check a COCO annotation file (instances or panoptic) and count what is in it.

    Args:
        path: The file.
        classes: Names the model is trained on; None compares none.
        img_dir: Folder of the images; None looks for none.
        sample_images: How many images, evenly spaced, to look for; None looks for all.
        allow_class_subset: Accept categories of the file that ``classes`` lacks.
        need_annotations: Refuse a file without annotations, or of which mmdet's loader leaves nothing.
        max_bad_boxes: Fraction of boxes without area and of boxes or masks reaching outside the image up to which they
            are a warning: mmdet leaves them out or clips them, and COCO itself has a few. None takes 0.1; boxes that
            reach outside by less than a tenth of the image's side are refused above 0.5 only.
        open_images: Load every image of ``img_dir``; else the headers of at most 1,000 images, evenly spaced, are
            read to compare the size with the file's.
        classes_from: Where ``classes`` come from, for the messages.
        evaluation: Whether a metric compares predictions with this file (CocoMetric, or CocoPanopticMetric), which
            reads more fields than training does. None, if that is not known, asks for all that CocoMetric reads.
        masks_read_by: What reads the masks beside the pipeline of ``data_set``, in words; an annotation without one is
            an error then.
        maps_evaluated: Whether a metric reads the PNGs of segments of ``data_set``.
        data_set: The dataset of the config that reads the file, with its pipeline and filter; None takes mmdet's
            defaults.
        scope: The config's ``default_scope``.

    Returns:
        CocoSummary: The counts.

    Raises:
        FileNotFoundError: If the file, the folder of the images or an image is not there.
        ValueError: If the content is wrong; the message names all that was found. Also if ``classes`` is a string, or
            ``max_bad_boxes`` no fraction.
    """
    if isinstance(classes, str):
        raise ValueError(  # noqa: TRY004 - one kind of error for this mistake wherever it is made
            f'classes must be a tuple or list of names, but got the string {classes!r}; write ({classes!r},)'
        )
    _check_fraction(max_bad_boxes)
    path = Path(path)
    content = read_coco_json(path, need_annotations=need_annotations)
    images, entries, categories = (content.get(section, []) for section in SECTIONS)
    panoptic = any('segments_info' in entry for entry in entries)
    problems = [*check_images(images), *check_categories(categories, panoptic=panoptic)]
    problems += check_panoptic(entries) if panoptic else []
    _raise(path, problems)
    annotations = flatten(entries)
    names = {category['id']: category['name'] for category in categories}
    sizes = {image['id']: (image['width'], image['height']) for image in images}
    problems += check_links(annotations, sizes, names)
    problems += check_classes(
        list(names.values()), classes, allow_class_subset=allow_class_subset, classes_from=classes_from
    )
    _raise(path, problems)
    warnings: list[str] = []
    problems += _check_purpose(content, annotations, evaluation=evaluation, panoptic=panoptic, warnings=warnings)
    _raise(path, problems)

    found, loader = 0, None
    pipeline = None if data_set is None else data_set.cfg.get('pipeline')
    if img_dir is not None:
        found = find_images(path, images, Path(img_dir), sample_images)
        loader = build_image_loader(pipeline, scope=scope)
    if loader is not None:
        number = None if sample_images is None else max(sample_images, HEADERS_READ)
        corners = box_corners(annotations)
        wrong, odd = check_image_sizes(
            images, Path(img_dir), loader, corners=corners, sample=number, decode=open_images
        )
        _raise(path, wrong)
        warnings += odd

    findings, boxes = check_boxes(annotations, sizes)
    loaded = None if data_set is None else loads_masks(pipeline)
    masks = check_masks(annotations, sizes)
    if loaded is False and masks_read_by is None:  # nobody reads them
        warnings += [finding.text for finding in masks]
    else:
        findings += masks
    _refuse_bad(path, findings, len(annotations), max_bad_boxes)
    warnings += [finding.text for finding in findings]
    of_classes = annotations if classes is None else [a for a in annotations if names[a['category_id']] in classes]
    if not panoptic and (masks_read_by is not None or loaded is None):
        wrong, odd = check_mask_presence(of_classes, masks_read_by)
        _raise(path, wrong)
        warnings += odd

    remainder = None
    if need_annotations and annotations:
        reader = data_set or dataset_of_file(path, content, classes)
        remainder = look_at_remainder(reader, content, scope=scope)
    if remainder is not None:
        wrong = []
        if maps_evaluated or loads_label_maps(pipeline):
            wrong += check_label_maps(remainder.label_maps, loader, sample=sample_images)
        if remainder.maskless:
            inside = [annotation for annotation in of_classes if annotation['image_id'] in set(remainder.maskless)]
            wrong += check_mask_presence(inside, f'LoadAnnotations(with_mask=True) of {reader.where}.pipeline')[0]
        _raise(path, wrong)
        if reader.split == 'train':
            if '.datasets[' not in reader.where:  # one of several may be of background only
                _raise(path, nothing_left([remainder]))
            warnings += remainder.warnings()
    counts = Counter(annotation['category_id'] for annotation in annotations)
    areas = boxes[:, 2] * boxes[:, 3]
    small, middle = int((areas < SMALL).sum()), int((areas < MEDIUM).sum())
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
        warnings=tuple(text.replace('FILE.json', str(path)) for text in warnings),
        image_ids=frozenset(sizes),
        classes=None if classes is None else tuple(classes),
        remainder=remainder,
    )


def _check_fraction(max_bad_boxes: object) -> None:
    """See that a limit is a fraction."""
    if max_bad_boxes is None:
        return
    number = isinstance(max_bad_boxes, (int, float)) and not isinstance(max_bad_boxes, bool)
    if not number or not 0 <= max_bad_boxes <= 1:
        raise ValueError(f'max_bad_boxes is {max_bad_boxes!r}; it must be a fraction from 0 to 1')


def _check_purpose(
    content: Mapping[str, Any],
    annotations: Sequence[Mapping],
    *,
    evaluation: bool | None,
    panoptic: bool,
    warnings: list[str],
) -> list[str]:
    """Look at the fields that are read; what only an evaluation reads is a warning where there is none."""
    problems = check_fields(annotations, evaluation=False)
    if problems:
        return problems
    judged = [
        *check_fields(annotations, evaluation=True),
        *check_ids(annotations),
        *check_image_ids(content['images']),
    ]
    if 'info' not in content and not panoptic and needs_info():
        judged.append('the file has no "info", which the installed pycocotools reads: add "info": {}, or update it')
    # mmitpn.PanopticMetric reads none of these fields, so a panoptic file is not refused where the metric is not known.
    if evaluation or (evaluation is None and not panoptic):
        return judged
    warnings += [f'an evaluation on this file would go wrong: {text}' for text in judged]
    return []


@cache
def needs_info() -> bool:
    """Whether the installed pycocotools reads the field ``info`` of an annotation file, as 2.0.9 and 2.0.10 do."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        return False
    box = {'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 1, 1]}
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = {'images': [{'id': 1}], 'annotations': [], 'categories': [{'id': 1, 'name': 'a'}]}
        api.createIndex()
        try:
            api.loadRes([{**box, 'score': 1.0}])
        except KeyError:
            return True
    return False


def _refuse_bad(path: Path, findings: Sequence[Finding], total: int, max_bad_boxes: float | None) -> None:
    """Raise if too many boxes or masks are wrong."""
    limit = MAX_BAD_BOXES if max_bad_boxes is None else max_bad_boxes
    slight = MAX_SLIGHT if max_bad_boxes is None else max_bad_boxes
    bad = len(frozenset().union(*(finding.ids for finding in findings if not finding.slight)))
    everything = len(frozenset().union(*(finding.ids for finding in findings)))
    exceeded = limit if bad > limit * total else slight if everything > slight * total else None
    if exceeded is not None:
        option = (
            f'that is more than {exceeded:.4g} of the annotations: correct them, or accept a larger fraction with '
            'max_bad_boxes=1.0 in the config (check_coco.py: --max-bad-boxes 1.0)'
        )
        texts = [finding.text for finding in findings]
        _raise(path, [*texts[:-1], f'{texts[-1]}; {option}'])


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
            f'names would be swapped in results and drawings; use classes={as_tuple(order)}'
        )
    return problems


def _raise(path: Path, problems: Sequence[str]) -> None:
    """Raise with all problems, if there are any."""
    problems = [problem.replace('FILE.json', str(path)) for problem in problems]  # the command in some of them
    if len(problems) == 1:
        raise ValueError(f'{path}: {problems[0]}')
    if problems:
        numbered = [f'({number}) {problem}' for number, problem in enumerate(problems, 1)]
        raise ValueError(f'{path}: {len(problems)} problems\n' + '\n'.join(numbered))


def read_coco_json(path: Path, *, need_annotations: bool = True) -> dict[str, Any]:
    """Read a file and see that it has the three lists of COCO's format.

    Args:
        path: The file.
        need_annotations: Refuse a file without annotations.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is something else than an annotation file.
    """
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
