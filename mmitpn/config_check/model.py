"""Whether the parts of a model fit together and fit the data: numbers of classes, channels, masks, losses.

Four questions, each with a section below: do all heads have the number of classes of the data; does each part take the
channels that the one before it returns; does the pipeline load the masks that a head learns from; can the heads of a
segmentor learn anything. The last section compares the classes of a trained model with those of a dataset.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope

from mmitpn.config_types import is_type, type_name

from .dataset_entries import DatasetEntry
from .messages import as_tuple, format_list, numbered, option_key

# --- numbers of classes ---

HEADS = (
    'bbox_head',
    'roi_head',
    'mask_head',
    'panoptic_head',
    'panoptic_fusion_head',
    'query_head',
    'decode_head',
    'auxiliary_head',
)
"""Parts of a model whose number of classes is that of the dataset."""
NUMBERS = ('num_classes', 'num_things_classes', 'num_stuff_classes')
OTHER_CLASSES = ('STDCHead', 'semantic_head', 'rpn_head')
"""Heads, by type or name, with classes of their own: edges, stuff beside the things of the dataset, any object."""


@dataclass(frozen=True)
class NumClasses:
    """A number of classes in a config.

    Args:
        where: The setting or settings.
        total: All classes.
        things: Thing classes, where they are counted apart.
    """

    where: str
    total: int
    things: int | None = None


def check_num_classes(
    model: Mapping[str, Any], datasets: Sequence[DatasetEntry], *, allow_other_classes: bool = False
) -> None:
    """Compare the number of classes of all heads with each other and with the datasets.

    Args:
        model: The config's model.
        datasets: The config's datasets.
        allow_other_classes: Accept fewer classes in the heads than in the datasets, and more where mmdet's metrics do
            not need a category for each.

    Raises:
        ValueError: If they differ, a list of class weights has another length, or a head with a number has no type.
    """
    if classes_are_prompts(model):
        return
    counts = [count for key in HEADS for count in _counts(model.get(key), f'model.{key}')]
    _check_types(model, counts)
    described = next((one for one in datasets if one.classes is not None), None)
    if described is not None:
        limit = len(described.classes or ()) if described.is_coco else math.inf
        wrong = [
            count
            for count in counts
            if not _fits(count, described) and not (allow_other_classes and count.total <= limit)
        ]
        if wrong:
            raise ValueError(
                f'{described.where} has {_describe_dataset(described)} (from {described.classes_from}), but '
                f'{"; ".join(map(_describe_count, wrong))}; set every one of them to the number of the dataset, or '
                'correct metainfo.classes'
            )
    elif counts:
        plain = {count.total for count in counts if count.things is None}
        split = {(count.total, count.things) for count in counts if count.things is not None}
        allowed = {number for pair in split for number in pair} if split else plain
        if len(split) > 1 or (len(plain) > 1 and not split) or not plain <= allowed:
            raise ValueError(
                f'the heads differ in their number of classes: {"; ".join(map(_describe_count, counts))}; set all of '
                'them to the number of classes in the data'
            )
    coco = [one for one in datasets if one.is_coco and one.classes is not None]
    for other in coco[1:]:
        if other.classes != coco[0].classes:
            raise ValueError(
                f'{coco[0].where} and {other.where} have different classes '
                f'({format_list(coco[0].classes or (), limit=5)} '
                f'and {format_list(other.classes or (), limit=5)}); give both the same metainfo, in the same order'
            )


def classes_are_prompts(model: Mapping[str, Any]) -> bool:
    """Whether the classes of a model are words of a prompt, and ``num_classes`` the length of its vocabulary."""
    return 'language_model' in model or 'text_encoder' in model


def _check_types(model: Mapping[str, Any], counts: Sequence[NumClasses]) -> None:
    """A head with a number of classes and no type is an override of one that the base config does not have."""
    for key in HEADS:
        for where, one in numbered(model.get(key), f'model.{key}'):
            if one.get('type') is not None or not any(name in one for name in NUMBERS):
                continue
            others = [count for count in counts if count.where != where]
            settings = [
                f'{count.where}.{name}'
                for count in others
                for name in (NUMBERS[:1] if count.things is None else NUMBERS[1:])
            ]
            advice = (
                f'leave it out, the numbers of this model are {", ".join(settings)}' if settings else 'add its type'
            )
            if key == 'panoptic_fusion_head':
                kind = 'mmitpn.MaskDINOFusionHead' if is_type(model, 'MaskDINO') else 'MaskFormerFusionHead'
                advice += f"; for settings of its own add type='{kind}'"
            raise ValueError(
                f'{where} sets {format_list(one, limit=4)} but has no type: the base config has no {key} that these '
                f'settings would change; {advice}'
            )


def _fits(count: NumClasses, dataset: DatasetEntry) -> bool:
    """Whether a head has as many classes as the dataset. Box heads of a panoptic model know the things only."""
    classes, things = dataset.classes or (), dataset.things
    if count.things is not None:
        return count.total == len(classes) and (things is None or count.things == len(things))
    return count.total == len(classes) or (things is not None and count.total == len(things))


def _describe_dataset(dataset: DatasetEntry) -> str:
    """How many classes a dataset has, in words."""
    classes = dataset.classes or ()
    names = format_list(classes, limit=5)
    if dataset.things is not None:
        return f'{len(dataset.things)} thing and {len(classes) - len(dataset.things)} stuff classes ({names})'
    return f'{len(classes)} class{"es" if len(classes) > 1 else ""} ({names})'


def _describe_count(count: NumClasses) -> str:
    """A head's number of classes, in words."""
    if count.things is None:
        return f'{count.where}.num_classes = {count.total}'
    return f'{count.where} has num_things_classes = {count.things} and num_stuff_classes = {count.total - count.things}'


def _counts(part: Any, where: str) -> Iterator[NumClasses]:
    """All numbers of classes in a head and the heads inside it."""
    if isinstance(part, (list, tuple)):
        for index, one in enumerate(part):
            yield from _counts(one, f'{where}[{index}]')
    if not isinstance(part, Mapping):
        return
    if is_type(part, *OTHER_CLASSES):
        return
    things, stuff = part.get('num_things_classes'), part.get('num_stuff_classes')
    if isinstance(things, int) and isinstance(stuff, int):
        _check_class_weight(part, things + stuff, where)
        yield NumClasses(where, things + stuff, things)
    elif isinstance(part.get('num_classes'), int):
        yield NumClasses(where, part['num_classes'])
    for key, inner in part.items():
        if key.endswith('_head') and key not in OTHER_CLASSES:
            yield from _counts(inner, f'{where}.{key}')


def _check_class_weight(head: Mapping[str, Any], classes: int, where: str) -> None:
    """A mask classification head weighs each class and 'no object'; the list is easily forgotten."""
    loss = head.get('loss_cls')
    weight = loss.get('class_weight') if isinstance(loss, Mapping) else None
    if isinstance(weight, (list, tuple)) and len(weight) != classes + 1:
        raise ValueError(
            f'{where}.loss_cls.class_weight has {len(weight)} numbers, but the head has {classes} classes: it needs '
            f'{classes + 1}, the last for "no object": [1.0] * {classes} + [0.1]'
        )


# --- channels ---

Channels = tuple[int, ...]


def check_channels(model: Mapping[str, Any], *, scope: str | None = None) -> None:
    """Compare the channels that each part of a model returns with those that the next one takes.

    Backbones of this package and necks are built on torch's meta device and asked; other backbones do not tell. Of
    heads, the ``in_channels`` in the config are compared.

    Args:
        model: The config's model.
        scope: The config's ``default_scope``.

    Raises:
        ValueError: If they differ, or the backbone cannot be built.
    """
    maps, source = _backbone_channels(model.get('backbone'), scope), 'the backbone'
    for where, part in numbered(model.get('neck'), 'model.neck'):
        taken = part.get('in_channels')
        if maps is not None and isinstance(taken, (list, tuple)) and tuple(taken) != maps:
            raise ValueError(
                f'{where}.in_channels is {tuple(taken)}, but {source} gives maps of {maps} channels: '
                f'set in_channels={maps}'
            )
        maps, source = _neck_channels(part, scope), where
    for where, taken, picked in _takers(model) if maps is not None else ():
        if isinstance(taken, int):
            _compare_one(where, taken, picked, maps, source)
        elif isinstance(taken, (list, tuple)):
            _compare_several(where, taken, picked, maps, source)


def _build_on_meta(part: Mapping[str, Any], scope: str | None) -> Any:
    """Build a part of a model without memory for its weights; None if its type is not registered."""
    with DefaultScope.overwrite_default_scope(scope):
        cls = MODELS.get(part['type']) if isinstance(part.get('type'), str) else part.get('type')
        if not isinstance(cls, type):
            return None
        with torch.device('meta'):
            return cls(**deepcopy({key: value for key, value in part.items() if key != 'type'}))


def _backbone_channels(backbone: Any, scope: str | None) -> Channels | None:
    """Channels of the maps of a FastITPN or ITPN; None for other backbones."""
    if not isinstance(backbone, Mapping) or not is_type(backbone, 'FastITPN', 'ITPN'):
        return None
    indices = backbone.get('out_indices', (0, 1, 2))
    if not isinstance(indices, (list, tuple)) or not all(isinstance(i, int) and 0 <= i < 3 for i in indices):
        raise ValueError(
            f'model.backbone.out_indices is {indices!r}; it takes 0, 1 and 2, the maps at strides 4, 8 and 16'
        )
    built = _build_on_meta(backbone, scope)
    return None if built is None else tuple(built.out_channels)


def _neck_channels(neck: Mapping[str, Any], scope: str | None) -> Channels | None:
    """Channels of a neck's maps; None where neither the built neck nor its config tells."""
    try:
        built = _build_on_meta(neck, scope)
    except Exception:  # noqa: BLE001 - what is wrong with it is reported when the model is built
        built = None
    levels = getattr(built, 'level_channels', None)
    if levels is not None:
        return tuple(levels)
    width, number = (getattr(built, key, neck.get(key)) for key in ('out_channels', 'num_outs'))
    return (width,) * number if isinstance(width, int) and isinstance(number, int) else None


def _takers(model: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Settings that say how many channels a head takes: position, channels, and the indices of its maps."""
    for key in ('rpn_head', 'bbox_head', 'panoptic_head', 'decode_head', 'auxiliary_head', 'mask_head'):
        for where, part in numbered(model.get(key), f'model.{key}'):
            if 'in_channels' in part:
                yield f'{where}.in_channels', part['in_channels'], part.get('in_index')
    roi_head = model.get('roi_head')
    for key in ('bbox_roi_extractor', 'mask_roi_extractor') if isinstance(roi_head, Mapping) else ():
        for _, part in numbered(roi_head.get(key), key):
            if 'out_channels' in part:
                yield f'model.roi_head.{key}.out_channels', part['out_channels'], None


def _compare_one(where: str, taken: int, picked: Any, maps: Channels, source: str) -> None:
    """Compare the channels that a head takes of one map, or of any, with those of the maps."""
    wanted = maps[picked] if isinstance(picked, int) and -len(maps) <= picked < len(maps) else None
    allowed = {wanted} if wanted is not None else set(maps)
    if taken not in allowed:
        raise ValueError(
            f'{where} is {taken}, but {source} gives maps of {maps} channels: '
            f'set it to {" or ".join(map(str, sorted(allowed)))}'
        )
    if isinstance(picked, int) and wanted is None:
        raise ValueError(f'{where}: in_index {picked} is out of range, {source} gives {len(maps)} maps')


def _compare_several(where: str, taken: Sequence[int], picked: Any, maps: Channels, source: str) -> None:
    """Compare the channels that a head takes of several maps with those of the maps."""
    indices = tuple(picked) if isinstance(picked, (list, tuple)) else tuple(range(len(taken)))
    if indices and not -len(maps) <= min(indices) <= max(indices) < len(maps):
        raise ValueError(
            f'{where} is {tuple(taken)} for the maps {indices}, but {source} gives {len(maps)} maps of {maps} channels'
        )
    given = tuple(maps[index] for index in indices)
    if tuple(taken) != given:
        raise ValueError(f'{where} is {tuple(taken)}, but {source} gives maps of {given} channels: set it to {given}')


# --- masks ---

_NEEDS_MASKS = ('MaskDINOHead', 'Mask2FormerHead', 'MaskFormerHead')


def check_mask_loading(model: Mapping[str, Any], datasets: Sequence[DatasetEntry]) -> None:
    """Look for masks, and for the map of stuff, in the training pipeline of MaskDINO and its kind.

    Args:
        model: The config's model.
        datasets: The config's datasets.

    Raises:
        ValueError: If annotations are loaded without what the head learns from.
    """
    head = model.get('panoptic_head')
    if not isinstance(head, Mapping) or not is_type(head, *_NEEDS_MASKS):
        return
    stuff = head.get('num_stuff_classes') or 0
    for dataset in datasets:
        pipeline = dataset.cfg.get('pipeline')
        if dataset.split != 'train' or not isinstance(pipeline, Sequence):
            continue
        steps = [step for step in pipeline if isinstance(step, Mapping)]
        loading = {type_name(step): step for step in steps}
        panoptic, plain = loading.get('LoadPanopticAnnotations'), loading.get('LoadAnnotations')
        if panoptic is None and plain is None:
            continue  # a transform of the user's own
        masks = panoptic.get('with_mask', True) if panoptic is not None else plain.get('with_mask', False)
        if not masks:
            raise ValueError(
                f'{dataset.where}.pipeline loads no masks, but {type_name(head)} learns from them (box_start='
                f'{head.get("box_start", "mask2box")!r} computes its first boxes from them too): set with_mask=True in'
                ' LoadAnnotations, and pad_mask=True in the data preprocessor'
            )
        if stuff and panoptic is None and not plain.get('with_seg', False):
            raise ValueError(
                f'{dataset.where}.pipeline loads no map of stuff, but {type_name(head)} has num_stuff_classes='
                f'{stuff}: use a CocoPanopticDataset with mmitpn.LoadPanopticAnnotations, or num_stuff_classes=0'
            )


# --- heads of segmentors ---

SEGMENTOR_HEADS = ('decode_head', 'auxiliary_head')


def check_segmentor_heads(model: Mapping[str, Any]) -> None:
    """Look for heads whose loss cannot teach them anything.

    Args:
        model: The config's model.

    Raises:
        ValueError: If a head has one channel and a loss without a gradient, such as a softmax over it, or as many class
            weights as it has no channels.
    """
    for where, head in segmentor_heads(model):
        channels = output_channels(head)
        if channels is None or not _is_pixel_head(head):
            continue
        for key, loss in _losses(head, where):
            weight = loss.get('class_weight')
            softmax = is_type(loss, 'CrossEntropyLoss') and not loss.get('use_sigmoid', False)
            if softmax and isinstance(weight, (list, tuple)) and len(weight) != channels:
                raise ValueError(
                    f'{key}.class_weight has {len(weight)} numbers, but {where} has {channels} channels; give one '
                    'for each, or None'
                )
            if channels == 1 and head.get('num_classes') != 1 and _teaches_nothing(loss):
                raise ValueError(
                    f'{where} has one channel, over which the softmax of {type_name(loss)} is always 1 and its loss 0: '
                    f'set {key}.use_sigmoid=True, or {where}.out_channels={head.get("num_classes")}'
                )


def one_class_reason(cfg: Mapping[str, Any], dataset: DatasetEntry) -> str | None:
    """Why a single class cannot be learned or evaluated: pixels that are not of it need a class too.

    Args:
        cfg: The config.
        dataset: One of its semantic datasets.

    Returns:
        The reason; None where the dataset has several classes, or the config gets along with one.
    """
    heads = [(where, head) for where, head in segmentor_heads(cfg.get('model') or {}) if _has_number(head)]
    if len(dataset.classes or ()) != 1 or not heads:
        return None
    for where, head in heads:
        if head['num_classes'] != 1:
            return f'{where}.num_classes is {head["num_classes"]}'
        if not _is_pixel_head(head) and where.startswith('model.decode_head'):
            return f'mmseg cannot make labels from the single score of {type_name(head)}'
        if output_channels(head) == 1 and any(_teaches_nothing(loss) for _, loss in _losses(head, where)):
            return f'the softmax over the single channel of {where} is always 1 and its loss 0'
    if any(compares_labels(cfg.get(f'{split}_evaluator')) for split in ('val', 'test')):
        return 'IoUMetric counts all pixels as one class if the dataset has one class'
    return None


def two_class_options(
    cfg: Mapping[str, Any], datasets: Sequence[DatasetEntry], *, zero_is_background: bool = True
) -> list[str]:
    """The settings that make a background and one class of a single class.

    Args:
        cfg: The config.
        datasets: Its datasets.
        zero_is_background: Whether label 0 of the maps is the background, so that ``reduce_zero_label`` is False.

    Returns:
        ``KEY=VALUE`` of each, for ``--cfg-options``.
    """
    options = []
    for one in datasets:
        if len(one.classes or ()) != 1:
            continue
        key = option_key(one.where)
        options.append(f'{key}.metainfo.classes={as_tuple(("background", *one.classes))}'.replace(', ', ','))
        palette = (one.cfg.get('metainfo') or {}).get('palette')
        if palette is not None and len(palette) == 1:
            options.append(f'{key}.metainfo.palette={[[0, 0, 0], list(palette[0])]}'.replace(', ', ','))
        if zero_is_background and one.cfg.get('reduce_zero_label', False):
            options.append(f'{key}.reduce_zero_label=False')
    for where, head in segmentor_heads(cfg.get('model') or {}):
        if head.get('num_classes') == 1:
            options.append(f'{option_key(where)}.num_classes=2')
        single = output_channels(head) == 1 and not any(_teaches_nothing(loss) for _, loss in _losses(head, where))
        if single != (head.get('out_channels') == 1):
            options.append(f'{option_key(where)}.out_channels={1 if single else 2}')
        channels = 1 if single else 2
        for key, loss in _losses(head, where):
            weight = loss.get('class_weight')
            if isinstance(weight, (list, tuple)) and len(weight) != channels:
                options.append(f'{option_key(key)}.class_weight=None')
    return options


def segmentor_heads(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The heads of a segmentor, each with its position in the config."""
    for key in SEGMENTOR_HEADS:
        yield from numbered(model.get(key), f'model.{key}')


def output_channels(head: Mapping[str, Any]) -> int | None:
    """How many scores a head gives each pixel, as far as its config tells."""
    channels = head.get('out_channels')
    channels = head.get('num_classes') if channels is None else channels
    return channels if isinstance(channels, int) else None


def compares_labels(evaluators: Any) -> bool:
    """Whether one of the metrics compares label maps class by class."""
    return any(
        is_type(one, 'IoUMetric') and not one.get('format_only', False) for _, one in numbered(evaluators, 'evaluator')
    )


def _has_number(head: Mapping[str, Any]) -> bool:
    return isinstance(head.get('num_classes'), int)


def _is_pixel_head(head: Mapping[str, Any]) -> bool:
    """Whether a head is one of mmseg's that scores each pixel."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.registry import MODELS as MMSEG_MODELS

    kind = head.get('type')
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope('mmseg'):
            kind = MMSEG_MODELS.get(kind)
    return isinstance(kind, type) and issubclass(kind, BaseDecodeHead)


def _losses(head: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The losses of a head, each with its position in the config."""
    return numbered(head.get('loss_decode', {'type': 'CrossEntropyLoss'}), f'{where}.loss_decode')


def _teaches_nothing(loss: Mapping[str, Any]) -> bool:
    """Whether a loss has no gradient for a single channel; one that cannot be computed counts as teaching."""
    from mmseg.registry import MODELS as MMSEG_MODELS

    scores = torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4).requires_grad_()
    try:
        with DefaultScope.overwrite_default_scope('mmseg'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            built = MMSEG_MODELS.build({**loss, 'class_weight': None} if 'class_weight' in loss else dict(loss))
            value = built(scores, torch.zeros(1, 4, 4, dtype=torch.long), ignore_index=255)
            (gradient,) = torch.autograd.grad(value.sum(), scores, allow_unused=True)
    except Exception:  # noqa: BLE001 - a loss of the user's own may need more; it is reported when it is used
        return False
    return gradient is None or not bool(gradient.abs().any())


# --- classes of a trained model ---


def classes_of_meta(meta: Any) -> tuple[str, ...] | None:
    """The names of the classes that a checkpoint's model was trained on.

    mmengine stores the ``metainfo`` of the training dataset as ``meta['dataset_meta']``; versions 2 of mmdet and 0 of
    mmseg and mmpretrain stored ``meta['CLASSES']``.

    Args:
        meta: What the checkpoint holds under ``meta``.

    Returns:
        The names by index, or None where the checkpoint does not tell.
    """
    for holder in (meta.get('dataset_meta') if isinstance(meta, Mapping) else None, meta):
        if not isinstance(holder, Mapping):
            continue
        names = holder.get('classes', holder.get('CLASSES'))
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None


def compare_classes(model: Sequence[str], dataset: Sequence[str], *, checkpoint: str, where: str) -> str | None:
    """Compare the classes of a model with those of a dataset, whatever their case.

    Labels are indices: with the same names in another order, class 0 of the model would be compared with another
    class, as with other names.

    Args:
        model: Names that the model was trained on, by index.
        dataset: Names of the dataset, by index.
        checkpoint: The model's file, for the message.
        where: Position of the dataset in the config, for the message.

    Returns:
        What differs, as a sentence without its end; None where nothing does.
    """
    model_names, dataset_names = [name.lower() for name in model], [name.lower() for name in dataset]
    if model_names == dataset_names:
        return None
    if set(model_names) == set(dataset_names) and len(model_names) == len(dataset_names):
        index = next(i for i, (one, other) in enumerate(zip(model_names, dataset_names, strict=True)) if one != other)
        order = as_tuple(model) if len(model) <= 20 else "the checkpoint's order"
        return (
            f'{where} has the classes of {checkpoint} in another order (index {index} is {dataset[index]!r} there and '
            f'{model[index]!r} in the model), so that labels would be compared with other ones; use the order {order} '
            'in the dataset: its metainfo.classes, and its categories or labels'
        )
    only_model = [name for name, low in zip(model, model_names, strict=True) if low not in dataset_names]
    only_dataset = [name for name, low in zip(dataset, dataset_names, strict=True) if low not in model_names]
    differences = [
        f'{format_list(names, limit=5)} only in the {side}'
        for names, side in ((only_model, 'checkpoint'), (only_dataset, 'dataset'))
        if names
    ]
    return (
        f'{checkpoint} was trained on {_describe_names(model)}, but {where} has {_describe_names(dataset)}'
        f'{": " if differences else ""}{", ".join(differences)}; evaluate it on data with its classes: set data_root '
        f'and metainfo.classes of {where}, and the annotation file of test_evaluator, as for its training'
    )


def _describe_names(names: Sequence[str]) -> str:
    """How many classes, and the first names."""
    return f'{len(names)} class{"" if len(names) == 1 else "es"} ({format_list(names, limit=5)})'
