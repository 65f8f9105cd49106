"""What mmdet's dataset makes of a COCO annotation file: the images and objects that are left to train on."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from mmitpn.config_types import is_type

from .coco_entries import FIX
from .data_sets import DataSet

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
class Remainder:
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
    maskless: tuple[Any, ...]
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


def require_objects(where: str, remainders: Sequence[Remainder | None]) -> None:
    """See that a training set has anything to learn.

    Args:
        where: What is trained on, for the message.
        remainders: What is left of each of its annotation files; None for one that is not known.

    Raises:
        ValueError: If no image or no object is left.
    """
    known = [one for one in remainders if one is not None]
    problems = nothing_left(known) if len(known) == len(remainders) else []
    if problems:
        raise ValueError(f'{where}: {problems[0]}')


def nothing_left(remainders: Sequence[Remainder]) -> list[str]:
    """A sentence if nothing is left of any annotation file, with the reasons."""
    if not remainders or any(one.objects for one in remainders):
        return []
    what = 'object' if any(one.images for one in remainders) else 'image'
    parts = []
    for name, field in (('images', 'images_dropped'), ('objects', 'dropped')):
        reasons: Counter[str] = Counter()
        for one in remainders:
            reasons.update(getattr(one, field))
        if reasons and (name == 'objects' or what == 'image'):
            parts.append(f'of the {name}, {_join(reasons)}')
    return [f'mmdet leaves no {what} to train on: {"; ".join(parts) or "the file has none"}']


def _join(reasons: Mapping[str, int]) -> str:
    """Reasons with their numbers."""
    return '; '.join(f'{number} {reason}' for reason, number in reasons.items())


def dataset_of_file(path: Path, content: Mapping[str, Any], classes: Sequence[str] | None) -> DataSet:
    """The dataset of mmdet that reads an annotation file where no config names one, without a filter.

    Args:
        path: The annotation file.
        content: Its content.
        classes: Classes that are trained on; None takes all categories.
    """
    panoptic = any('segments_info' in entry for entry in content['annotations'])
    kind = 'CocoPanopticDataset' if panoptic else 'CocoDataset'
    names = tuple(category['name'] for category in content['categories']) if classes is None else tuple(classes)
    try:
        cls = DATASETS.get(f'mmdet.{kind}')
    except ImportError:
        cls = None
    cfg = {
        'ann_file': str(path),
        'metainfo': {'classes': names},
        'data_prefix': {'img': ''},
    }
    return DataSet(
        where=str(path),
        split='train',
        cfg=cfg,
        kind=kind,
        cls=cls,
        classes=names,
        things=None,
        classes_from='the file',
        ann_file=str(path),
        prefixes={},
    )


def look_at_remainder(data_set: DataSet, content: Mapping[str, Any], *, scope: str | None = None) -> Remainder | None:
    """Let a dataset's own class parse and filter an annotation file, and count what it leaves.

    Args:
        data_set: The dataset that reads it.
        content: The file's content, with images, annotations and categories that link to each other. mmdet's
            ``createIndex`` adds fields to it.
        scope: The config's ``default_scope``.

    Returns:
        The counts; None where mmdet is not installed.
    """
    if data_set.cls is None:
        return None
    settings = {key: value for key, value in data_set.cfg.items() if key not in ('type', 'pipeline', 'lazy_init')}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        built = data_set.cls(**{**settings, 'pipeline': [], 'lazy_init': True, 'serialize_data': False})
        built.COCOAPI = _api_of(built.COCOAPI, content)
        built.full_init()
    stuff = {
        label: not category.get('isthing', True)
        for category in content['categories']
        if (label := built.cat2label.get(category['id'])) is not None
    }
    masks = _mask_loader(data_set.cfg.get('pipeline'), scope)
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
    return Remainder(
        images=len(built.data_list),
        objects=objects,
        dropped=dropped,
        images_dropped=_image_reasons(content['images'], built),
        maskless=tuple(maskless),
        label_maps={info['img_path']: info['seg_map_path'] for info in built.data_list if info.get('seg_map_path')},
    )


def loads_label_maps(pipeline: Any) -> bool:
    """Whether a pipeline loads PNGs of segments or labels."""
    return any(
        (is_type(step, 'LoadPanopticAnnotations') and (step.get('with_mask', True) or step.get('with_seg', True)))
        or (is_type(step, 'LoadAnnotations') and bool(step.get('with_seg')))
        for step in _steps(pipeline)
    )


def loads_masks(pipeline: Any) -> bool | None:
    """Whether a pipeline loads the masks of the annotation file; None where it has no transform that would tell."""
    steps = [step for step in _steps(pipeline) if is_type(step, 'LoadAnnotations', 'LoadPanopticAnnotations')]
    if not steps:
        return None
    return any(is_type(step, 'LoadAnnotations') and bool(step.get('with_mask')) for step in steps)


def _steps(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    """The transforms of a pipeline, those inside other transforms too."""
    for step in pipeline if isinstance(pipeline, (list, tuple)) else ():
        if isinstance(step, Mapping):
            yield step
            yield from _steps(step.get('transforms'))
        else:
            yield from _steps(step)


def _mask_loader(pipeline: Any, scope: str | None) -> Any:
    """The transform of a pipeline that loads masks as mmdet does, built; None if it has none."""
    for step in _steps(pipeline):
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
