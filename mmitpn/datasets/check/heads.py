"""How many classes the heads of a model have, and the data set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...config_types import is_type
from .data_sets import DataSet
from .wording import listing

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
"""Parts of a model whose number of classes is that of the data set."""
NUMBERS = ('num_classes', 'num_things_classes', 'num_stuff_classes')
NOT_THE_DATA_SETS = ('STDCHead', 'semantic_head', 'rpn_head')
"""Heads, by type or name, that tell other things apart: edges, stuff beside the data set's things, any object."""


@dataclass(frozen=True)
class Count:
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
    model: Mapping[str, Any], data_sets: Sequence[DataSet], *, allow_other_classes: bool = False
) -> None:
    """Compare the number of classes of all heads with each other and with the data sets.

    Args:
        model: The config's model.
        data_sets: The config's datasets.
        allow_other_classes: Accept fewer classes in the heads than in the datasets, and more where mmdet's metrics do
            not need a category for each.

    Raises:
        ValueError: If they differ, a list of class weights has another length, or a head with a number has no type.
    """
    if classes_are_prompts(model):
        return
    counts = [count for key in HEADS for count in _counts(model.get(key), f'model.{key}')]
    _check_types(model, counts)
    described = next((one for one in data_sets if one.classes is not None), None)
    if described is not None:
        limit = len(described.classes or ()) if described.is_coco else math.inf
        wrong = [
            count
            for count in counts
            if not _fits(count, described) and not (allow_other_classes and count.total <= limit)
        ]
        if wrong:
            raise ValueError(
                f'{described.where} has {_size(described)} (from {described.classes_from}), but '
                f'{"; ".join(map(_say, wrong))}; set every one of them to the number of the dataset, or correct '
                'metainfo.classes'
            )
    elif counts:
        plain = {count.total for count in counts if count.things is None}
        split = {(count.total, count.things) for count in counts if count.things is not None}
        allowed = {number for pair in split for number in pair} if split else plain
        if len(split) > 1 or (len(plain) > 1 and not split) or not plain <= allowed:
            raise ValueError(
                f'the heads differ in their number of classes: {"; ".join(map(_say, counts))}; set all of them to the '
                'number of classes in the data'
            )
    coco = [one for one in data_sets if one.is_coco and one.classes is not None]
    for other in coco[1:]:
        if other.classes != coco[0].classes:
            raise ValueError(
                f'{coco[0].where} and {other.where} have different classes ({listing(coco[0].classes or (), limit=5)} '
                f'and {listing(other.classes or (), limit=5)}); give both the same metainfo, in the same order'
            )


def classes_are_prompts(model: Mapping[str, Any]) -> bool:
    """Whether the classes of a model are words of a prompt, and ``num_classes`` the length of its vocabulary."""
    return 'language_model' in model or 'text_encoder' in model


def _check_types(model: Mapping[str, Any], counts: Sequence[Count]) -> None:
    """A head with a number of classes and no type is an override of one that the base config does not have."""
    for key in HEADS:
        part = model.get(key)
        several = isinstance(part, (list, tuple))
        for index, one in enumerate(part if several else [part]):
            if not isinstance(one, Mapping) or one.get('type') is not None or not any(name in one for name in NUMBERS):
                continue
            where = f'model.{key}[{index}]' if several else f'model.{key}'
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
                f'{where} sets {listing(one, limit=4)} but has no type: the base config has no {key} that these '
                f'settings would change; {advice}'
            )


def _fits(count: Count, data_set: DataSet) -> bool:
    """Whether a head has as many classes as the data set. Box heads of a panoptic model know the things only."""
    classes, things = data_set.classes or (), data_set.things
    if count.things is not None:
        return count.total == len(classes) and (things is None or count.things == len(things))
    return count.total == len(classes) or (things is not None and count.total == len(things))


def _size(data_set: DataSet) -> str:
    """How many classes a data set has, in words."""
    classes = data_set.classes or ()
    names = listing(classes, limit=5)
    if data_set.things is not None:
        return f'{len(data_set.things)} thing and {len(classes) - len(data_set.things)} stuff classes ({names})'
    return f'{len(classes)} class{"es" if len(classes) > 1 else ""} ({names})'


def _say(count: Count) -> str:
    """A head's number of classes, in words."""
    if count.things is None:
        return f'{count.where}.num_classes = {count.total}'
    return f'{count.where} has num_things_classes = {count.things} and num_stuff_classes = {count.total - count.things}'


def _counts(part: Any, where: str) -> Iterator[Count]:
    """All numbers of classes in a head and the heads inside it."""
    if isinstance(part, (list, tuple)):
        for index, one in enumerate(part):
            yield from _counts(one, f'{where}[{index}]')
    if not isinstance(part, Mapping):
        return
    if is_type(part, *NOT_THE_DATA_SETS):
        return
    things, stuff = part.get('num_things_classes'), part.get('num_stuff_classes')
    if isinstance(things, int) and isinstance(stuff, int):
        _check_class_weight(part, things + stuff, where)
        yield Count(where, things + stuff, things)
    elif isinstance(part.get('num_classes'), int):
        yield Count(where, part['num_classes'])
    for key, inner in part.items():
        if key.endswith('_head') and key not in NOT_THE_DATA_SETS:
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
