"""A COCO annotation file: what is in it, and everything that would make training fail or go wrong unnoticed.

:func:`check_coco_json` asks in this order: is it a file in COCO format, do its entries link to each other, does it have
the fields that training and evaluation read, are the images there and of the size it says, are boxes and masks inside
of them, and what does mmdet's dataset keep of it.
"""

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

import numpy as np
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from mmitpn.config_types import is_type

from .coco_annotations import (
    FIX,
    AnnotationProblem,
    box_corners,
    check_boxes,
    check_categories,
    check_classes,
    check_fields,
    check_ids,
    check_image_ids,
    check_images,
    check_links,
    check_mask_presence,
    check_masks,
    check_panoptic,
    flatten,
)
from .dataset_entries import DatasetEntry
from .images import (
    HEADERS_READ,
    build_image_loader,
    check_image_sizes,
    check_segment_pngs,
    find_images,
    pipeline_steps,
)
from .messages import files_near, format_list

SECTIONS = ('images', 'annotations', 'categories')
SMALL, MEDIUM = 32**2, 96**2
MAX_BAD_BOXES = 0.1
MAX_SLIGHT = 0.5


@dataclass(frozen=True)
class CocoSummary:
    """Content of an annotation file.

    Args:
        path: The file.
        images: Number of images.
        annotations: Number of annotations (of segments in a panoptic file).
        crowd: Annotations with ``iscrowd``.
        without_objects: Images without annotation.
        per_category: Annotations of each category, in the file's order.
        sizes: Annotations with a box by size in the image: below 32x32 pixels, below 96x96, the rest.
        images_found: Images looked for, and found, in the image folder.
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
    images_found: int
    warnings: tuple[str, ...]
    image_ids: frozenset[Hashable]
    classes: tuple[str, ...] | None = None
    remainder: KeptAnnotations | None = None


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
    dataset: DatasetEntry | None = None,
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
        masks_read_by: What reads the masks beside the pipeline of ``dataset``, in words; an annotation without one is
            an error then.
        maps_evaluated: Whether a metric reads the PNGs of segments of ``dataset``.
        dataset: The dataset of the config that reads the file, with its pipeline and filter; None takes mmdet's
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
    number = isinstance(max_bad_boxes, (int, float)) and not isinstance(max_bad_boxes, bool)
    if max_bad_boxes is not None and not (number and 0 <= max_bad_boxes <= 1):
        raise ValueError(f'max_bad_boxes is {max_bad_boxes!r}; it must be a fraction from 0 to 1')
    file = _read_file(Path(path), need_annotations=need_annotations)
    _raise(
        file.path,
        check_links(file.annotations, file.sizes, file.names)
        + check_classes(
            list(file.names.values()), classes, allow_class_subset=allow_class_subset, classes_from=classes_from
        ),
    )
    pipeline = None if dataset is None else dataset.cfg.get('pipeline')

    warnings = _check_purpose(file, evaluation=evaluation)
    found, loader = 0, None
    if img_dir is not None:
        found = find_images(file.path, file.images, Path(img_dir), sample_images)
        loader = build_image_loader(pipeline, scope=scope)
    if loader is not None:
        wrong, odd = check_image_sizes(
            file.images,
            Path(img_dir),
            loader,
            corners=box_corners(file.annotations),
            sample=None if sample_images is None else max(sample_images, HEADERS_READ),
            decode=open_images,
        )
        _raise(file.path, wrong)
        warnings += odd
    loaded = None if dataset is None else loads_masks(pipeline)
    boxes, odd = _check_geometry(
        file, max_bad_boxes=max_bad_boxes, masks_are_read=loaded is not False or masks_read_by is not None
    )
    warnings += odd
    of_classes = [one for one in file.annotations if classes is None or file.names[one['category_id']] in classes]
    if not file.panoptic and (masks_read_by is not None or loaded is None):
        wrong, odd = check_mask_presence(of_classes, masks_read_by)
        _raise(file.path, wrong)
        warnings += odd
    remainder = None
    if need_annotations and file.annotations:
        reader = dataset or _default_dataset(file, classes)
        remainder = count_kept(reader, file.content, scope=scope)
        if remainder is not None:
            wrong = []
            if maps_evaluated or loads_label_maps(pipeline):
                wrong = check_segment_pngs(remainder.label_maps, loader, sample=sample_images)
            inside = [one for one in of_classes if one['image_id'] in remainder.maskless]
            wrong += check_mask_presence(inside, f'LoadAnnotations(with_mask=True) of {reader.where}.pipeline')[0]
            if reader.split == 'train' and '.datasets[' not in reader.where:  # one of several may be of background only
                wrong = wrong or nothing_left([remainder])
            _raise(file.path, wrong)
            warnings += remainder.warnings() if reader.split == 'train' else []
    return _summarize(file, boxes, warnings, found=found, classes=classes, remainder=remainder)


@dataclass(frozen=True)
class _File:
    """The content of an annotation file whose entries are well formed.

    Args:
        path: The file.
        content: All of it.
        annotations: Annotations of objects; the segments of a panoptic file one by one.
        names: Category id -> name.
        sizes: Image id -> width and height.
        panoptic: Whether its annotations are of segments.
    """

    path: Path
    content: Mapping[str, Any]
    annotations: Sequence[Mapping]
    names: Mapping[Hashable, str]
    sizes: Mapping[Hashable, tuple[float, float]]
    panoptic: bool

    @property
    def images(self) -> Sequence[Mapping]:
        """The entries of images."""
        return self.content['images']


def _read_file(path: Path, *, need_annotations: bool) -> _File:
    """Read a file and see that its entries have the fields that link them."""
    content = read_coco_json(path, need_annotations=need_annotations)
    images, entries, categories = (content.get(section, []) for section in SECTIONS)
    panoptic = any('segments_info' in entry for entry in entries)
    problems = [*check_images(images), *check_categories(categories, panoptic=panoptic)]
    _raise(path, problems + (check_panoptic(entries) if panoptic else []))
    return _File(
        path,
        content,
        annotations=flatten(entries),
        names={category['id']: category['name'] for category in categories},
        sizes={image['id']: (image['width'], image['height']) for image in images},
        panoptic=panoptic,
    )


def read_coco_json(path: Path, *, need_annotations: bool = True) -> dict[str, Any]:
    """Read a file and see that it has the three lists of COCO's format; without ``need_annotations`` two of them.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is something else than an annotation file.
    """
    if not path.is_file():
        raise FileNotFoundError(f'annotation file {path} not found ({files_near(path)}); correct data_root or ann_file')
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
        seen = format_list(content) if isinstance(content, dict) else f'a {type(content).__name__}'
        raise ValueError(f'{path} is not in COCO format: it needs the lists {format_list(needed)}, and has {seen}')
    for section in needed:
        if not content[section]:
            raise ValueError(f'{path} has no {section}; training and evaluation need at least one')
        if not all(isinstance(entry, Mapping) for entry in content[section]):
            raise ValueError(f'{path}: every entry of {section!r} must be an object with named fields')
    return content


def _raise(path: Path, problems: Sequence[str]) -> None:
    """Raise with all problems, if there are any."""
    problems = [problem.replace('FILE.json', str(path)) for problem in problems]  # the command in some of them
    if len(problems) == 1:
        raise ValueError(f'{path}: {problems[0]}')
    if problems:
        numbered = [f'({number}) {problem}' for number, problem in enumerate(problems, 1)]
        raise ValueError(f'{path}: {len(problems)} problems\n' + '\n'.join(numbered))


def _check_purpose(file: _File, *, evaluation: bool | None) -> list[str]:
    """See that the fields that are read are there; what only an evaluation would read is returned as warnings."""
    _raise(file.path, check_fields(file.annotations, evaluation=False))
    problems = [
        *check_fields(file.annotations, evaluation=True),
        *check_ids(file.annotations),
        *check_image_ids(file.images),
    ]
    if 'info' not in file.content and not file.panoptic and needs_info():
        problems.append('the file lacks "info", which this pycocotools reads: add "info": {}, or update pycocotools')
    # mmitpn.PanopticMetric reads none of these fields, so a panoptic file is not refused where the metric is not known.
    if evaluation or (evaluation is None and not file.panoptic):
        _raise(file.path, problems)
    return [f'an evaluation on this file would go wrong: {text}' for text in problems]


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


def _check_geometry(file: _File, *, max_bad_boxes: float | None, masks_are_read: bool) -> tuple[np.ndarray, list[str]]:
    """Look at boxes and masks; return the boxes, float64 (N, 4), and what is wrong but tolerated."""
    problems, boxes = check_boxes(file.annotations, file.sizes)
    masks = check_masks(file.annotations, file.sizes)
    everything = problems + masks if masks_are_read else masks + problems
    _refuse_bad(file.path, everything if masks_are_read else problems, len(file.annotations), max_bad_boxes)
    return boxes, [problem.text for problem in everything]


def _refuse_bad(path: Path, problems: Sequence[AnnotationProblem], total: int, max_bad_boxes: float | None) -> None:
    """Raise if too many boxes or masks are wrong."""
    limit, slight = (MAX_BAD_BOXES, MAX_SLIGHT) if max_bad_boxes is None else (max_bad_boxes, max_bad_boxes)
    bad = len(frozenset().union(*(problem.ids for problem in problems if not problem.slight)))
    everything = len(frozenset().union(*(problem.ids for problem in problems)))
    exceeded = limit if bad > limit * total else slight if everything > slight * total else None
    if exceeded is not None:
        option = (
            f'that is more than {exceeded:.4g} of the annotations: correct them, or accept a larger fraction with '
            'max_bad_boxes=1.0 in the config (mmitpn data check: --max-bad-boxes 1.0)'
        )
        *texts, last = (problem.text for problem in problems)
        _raise(path, [*texts, f'{last}; {option}'])


def _summarize(
    file: _File,
    boxes: np.ndarray,
    warnings: list[str],
    *,
    found: int,
    classes: Sequence[str] | None,
    remainder: KeptAnnotations | None,
) -> CocoSummary:
    """Count what is in a file."""
    counts = Counter(annotation['category_id'] for annotation in file.annotations)
    areas = boxes[:, 2] * boxes[:, 3]
    small, middle = int((areas < SMALL).sum()), int((areas < MEDIUM).sum())
    unused = [name for category_id, name in file.names.items() if not counts[category_id]]
    if unused and file.annotations:
        warnings = [*warnings, f'categories without any annotation: {format_list(unused)}']
    return CocoSummary(
        path=file.path,
        images=len(file.images),
        annotations=len(file.annotations),
        crowd=sum(1 for annotation in file.annotations if annotation.get('iscrowd')),
        without_objects=len(file.sizes) - len({annotation['image_id'] for annotation in file.annotations}),
        per_category={name: counts[category_id] for category_id, name in file.names.items()},
        sizes=(small, middle - small, len(areas) - middle),
        images_found=found,
        warnings=tuple(text.replace('FILE.json', str(file.path)) for text in warnings),
        image_ids=frozenset(file.sizes),
        classes=None if classes is None else tuple(classes),
        remainder=remainder,
    )


# --- what mmdet's dataset keeps ---

# Reasons for which mmdet leaves objects and images out of training.
CROWD = 'are marked as crowds (iscrowd=1), which training ignores: set iscrowd=0 in annotations of single objects'
IGNORED = 'have ignore=1: remove that field from the objects to learn'
OUTSIDE = 'lie outside their image: correct the boxes'
NO_AREA = f'have an area of 0 or less: correct the field area, or run {FIX}'
TINY = (
    'are narrower or lower than one pixel: bbox is [x, y, width, height] in pixels, so multiply fractions of the '
    "image by the image's width and height"
)
NO_MASK = 'have a mask that is neither run lengths nor a polygon of three points or more: correct segmentation'
UNLABELED = 'have no annotation of the classes: set filter_cfg=dict(filter_empty_gt=False) to train on them too'


@dataclass(frozen=True)
class KeptAnnotations:
    """What is left of an annotation file behind mmdet's loader.

    Args:
        images: Images left.
        objects: Objects left that a model learns: boxes that are no crowd, and segments of stuff.
        dropped: Reason -> objects that are left out for it.
        images_dropped: Reason -> images that are left out for it.
        maskless: Ids of the images with objects that have no mask, if the pipeline loads masks.
        label_maps: Image path -> path of its PNG of segments or labels, where the dataset has a folder of them.
    """

    images: int
    objects: int
    dropped: Mapping[str, int]
    images_dropped: Mapping[str, int]
    maskless: frozenset[Any]
    label_maps: Mapping[str, str]

    def warnings(self) -> list[str]:
        """What is left out beside crowds and images without objects, which are normal."""
        odd = {reason: number for reason, number in self.dropped.items() if reason != CROWD}
        small = {reason: number for reason, number in self.images_dropped.items() if reason != UNLABELED}
        return [
            f'mmdet leaves {what} out of training: {_join(reasons)}'
            for what, reasons in (('objects', odd), ('images', small))
            if reasons
        ]


def require_objects(where: str, kept: Sequence[KeptAnnotations | None]) -> None:
    """Raise a ValueError if no object is left of all annotation files of a training set (None: one is not known)."""
    problems = [] if None in kept else nothing_left(kept)
    if problems:
        raise ValueError(f'{where}: {problems[0]}')


def nothing_left(kept: Sequence[KeptAnnotations]) -> list[str]:
    """A sentence if nothing is left of any annotation file, with the reasons."""
    if not kept or any(one.objects for one in kept):
        return []
    what = 'object' if any(one.images for one in kept) else 'image'
    parts = []
    for name, field in (('images', 'images_dropped'), ('objects', 'dropped')):
        reasons: Counter[str] = Counter()
        for one in kept:
            reasons.update(getattr(one, field))
        if reasons and (name == 'objects' or what == 'image'):
            parts.append(f'of the {name}, {_join(reasons)}')
    return [f'mmdet leaves no {what} to train on: {"; ".join(parts) or "the file has none"}']


def _join(reasons: Mapping[str, int]) -> str:
    """Reasons with their numbers."""
    return '; '.join(f'{number} {reason}' for reason, number in reasons.items())


def _default_dataset(file: _File, classes: Sequence[str] | None) -> DatasetEntry:
    """The dataset of mmdet that reads a file where no config names one, without a filter."""
    kind = 'CocoPanopticDataset' if file.panoptic else 'CocoDataset'
    names = tuple(file.names.values()) if classes is None else tuple(classes)
    try:
        cls = DATASETS.get(f'mmdet.{kind}')
    except ImportError:
        cls = None
    cfg = {'ann_file': str(file.path), 'metainfo': {'classes': names}, 'data_prefix': {'img': ''}}
    return DatasetEntry(
        where=str(file.path),
        split='train',
        cfg=cfg,
        kind=kind,
        cls=cls,
        classes=names,
        things=None,
        classes_from='the file',
        ann_file=str(file.path),
        prefixes={},
    )


def count_kept(
    dataset: DatasetEntry, content: Mapping[str, Any], *, scope: str | None = None
) -> KeptAnnotations | None:
    """Let a dataset's own class parse and filter a file's content, and count what it leaves; None without mmdet.

    The entries of the content must link to each other; mmdet's ``createIndex`` adds fields to it.
    """
    if dataset.cls is None:
        return None
    settings = {key: value for key, value in dataset.cfg.items() if key not in ('type', 'pipeline', 'lazy_init')}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        built = dataset.cls(**{**settings, 'pipeline': [], 'lazy_init': True, 'serialize_data': False})
        built.COCOAPI = _api_of(built.COCOAPI, content)
        built.full_init()
    stuff = {
        label: not category.get('isthing', True)
        for category in content['categories']
        if (label := built.cat2label.get(category['id'])) is not None
    }
    masks = _mask_loader(dataset.cfg.get('pipeline'), scope)
    objects, without_polygon, maskless = 0, 0, []
    for info in built.data_list:
        ignored = [bool(instance['ignore_flag']) for instance in info['instances']]
        if masks is not None and any('mask' not in instance for instance in info['instances']):
            maskless.append(info['img_id'])
        elif masks is not None:
            kept = {'instances': [dict(instance) for instance in info['instances']]}
            masks._process_masks(kept)
            without_polygon += int(kept['gt_ignore_flags'].sum()) - sum(ignored)
            ignored = kept['gt_ignore_flags']
        objects += sum(not flag for flag in ignored)
        objects += sum(stuff[segment['category']] for segment in info.get('segments_info', ()))
    dropped = _reasons(content, set(built.cat_ids))
    if without_polygon:
        dropped[NO_MASK] = without_polygon
    return KeptAnnotations(
        images=len(built.data_list),
        objects=objects,
        dropped=dropped,
        images_dropped=_image_reasons(content['images'], built),
        maskless=frozenset(maskless),
        label_maps={info['img_path']: info['seg_map_path'] for info in built.data_list if info.get('seg_map_path')},
    )


def loads_label_maps(pipeline: Any) -> bool:
    """Whether a pipeline loads PNGs of segments or labels."""
    return any(
        (is_type(step, 'LoadPanopticAnnotations') and (step.get('with_mask', True) or step.get('with_seg', True)))
        or (is_type(step, 'LoadAnnotations') and bool(step.get('with_seg')))
        for step in _annotation_loaders(pipeline)
    )


def loads_masks(pipeline: Any) -> bool | None:
    """Whether a pipeline loads the masks of the annotation file; None where it has no transform that would tell."""
    loaders = _annotation_loaders(pipeline)
    return any(is_type(step, 'LoadAnnotations') and step.get('with_mask') for step in loaders) if loaders else None


def _annotation_loaders(pipeline: Any) -> list[Mapping[str, Any]]:
    """The configs of the transforms that load annotations, those inside other transforms too."""
    steps = (step for step in pipeline_steps(pipeline) if isinstance(step, Mapping))
    return [step for step in steps if is_type(step, 'LoadAnnotations', 'LoadPanopticAnnotations')]


def _mask_loader(pipeline: Any, scope: str | None) -> Any:
    """The transform of a pipeline that loads masks as mmdet does, built; None if it has none."""
    for step in _annotation_loaders(pipeline):
        if is_type(step, 'LoadAnnotations') and step.get('with_mask'):
            with DefaultScope.overwrite_default_scope(scope or 'mmdet'):
                built = TRANSFORMS.build(step)
            return built if hasattr(built, '_process_masks') else None
    return None


def _api_of(api: type, content: Mapping[str, Any]) -> type:
    """A COCO class of mmdet that has read its file already."""

    class Loaded(api):
        def __init__(self, annotation_file: str) -> None:  # noqa: ARG002 - its content is at hand
            super().__init__(None)
            self.dataset = content
            self.createIndex()
            self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    return Loaded


def _reasons(content: Mapping[str, Any], category_ids: set) -> dict[str, int]:
    """Why mmdet's ``parse_data_info`` leaves objects of the classes out, for messages."""
    sides = {image['id']: (image['width'], image['height']) for image in content['images']}
    found: Counter[str] = Counter()
    for entry in content['annotations']:
        for one in entry.get('segments_info', (entry,)):
            if one['category_id'] in category_ids:
                found.update(filter(None, [_reason(one, *sides[entry['image_id']], panoptic=one is not entry)]))
    return dict(found.most_common())


def _reason(annotation: Mapping[str, Any], image_width: float, image_height: float, *, panoptic: bool) -> str | None:
    """Why one object is left out, or None."""
    if not panoptic and annotation.get('ignore'):
        return IGNORED
    x, y, width, height = annotation['bbox']
    if not panoptic and not (min(x + width, image_width) > max(x, 0) and min(y + height, image_height) > max(y, 0)):
        return OUTSIDE
    if annotation['area'] <= 0:
        return NO_AREA
    if width < 1 or height < 1:
        return TINY
    return CROWD if annotation.get('iscrowd') else None


def _image_reasons(images: Sequence[Mapping], built: Any) -> dict[str, int]:
    """Why images are left out, for messages."""
    kept = {info['img_id'] for info in built.data_list}
    smallest = (built.filter_cfg or {}).get('min_size', 0)
    small = f'have a side below {smallest} pixels: set min_size=0 in filter_cfg to train on them too'
    found: Counter[str] = Counter()
    for image in images:
        if image['id'] not in kept and built._indices is None:
            found[small if min(image['width'], image['height']) < smallest else UNLABELED] += 1
    return dict(found.most_common())
