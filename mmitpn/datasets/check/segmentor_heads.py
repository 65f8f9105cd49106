"""Whether the heads of a segmentor can learn the classes of its data: single channels, single classes."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.registry import DefaultScope

from mmitpn.config_types import is_type, type_name

from .data_sets import DataSet
from .wording import as_tuple

HEADS = ('decode_head', 'auxiliary_head')


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
        for place, loss in _losses(head, where):
            weight = loss.get('class_weight')
            softmax = is_type(loss, 'CrossEntropyLoss') and not loss.get('use_sigmoid', False)
            if softmax and isinstance(weight, (list, tuple)) and len(weight) != channels:
                raise ValueError(
                    f'{place}.class_weight has {len(weight)} numbers, but {where} has {channels} channels; give one '
                    'for each, or None'
                )
            if channels == 1 and head.get('num_classes') != 1 and _teaches_nothing(loss):
                raise ValueError(
                    f'{where} has one channel, over which the softmax of {type_name(loss)} is always 1 and its loss 0: '
                    f'set {place}.use_sigmoid=True, or {where}.out_channels={head.get("num_classes")}'
                )


def one_class_reason(cfg: Mapping[str, Any], data_set: DataSet) -> str | None:
    """Why a single class cannot be learned or evaluated: pixels that are not of it need a class too.

    Args:
        cfg: The config.
        data_set: One of its semantic datasets.

    Returns:
        The reason; None where the dataset has several classes, or the config gets along with one.
    """
    heads = [(where, head) for where, head in segmentor_heads(cfg.get('model') or {}) if _has_number(head)]
    if len(data_set.classes or ()) != 1 or not heads:
        return None
    for where, head in heads:
        if head['num_classes'] != 1:
            return f'{where}.num_classes is {head["num_classes"]}'
        if not _is_pixel_head(head) and where.startswith('model.decode_head'):
            return f'mmseg makes no labels of the single score of {type_name(head)}'
        if output_channels(head) == 1 and any(_teaches_nothing(loss) for _, loss in _losses(head, where)):
            return f'the softmax over the single channel of {where} is always 1 and its loss 0'
    if any(compares_labels(cfg.get(f'{split}_evaluator')) for split in ('val', 'test')):
        return 'IoUMetric counts all pixels as one class where there is one name'
    return None


def two_class_options(
    cfg: Mapping[str, Any], data_sets: Sequence[DataSet], *, zero_is_background: bool = True
) -> list[str]:
    """The settings that make a background and one class of a single class.

    Args:
        cfg: The config.
        data_sets: Its datasets.
        zero_is_background: Whether label 0 of the maps is the background, so that ``reduce_zero_label`` is False.

    Returns:
        ``KEY=VALUE`` of each, for ``--cfg-options``.
    """
    options = []
    for one in data_sets:
        if len(one.classes or ()) != 1:
            continue
        place = option_place(one.where)
        options.append(f'{place}.metainfo.classes={as_tuple(("background", *one.classes))}'.replace(', ', ','))
        palette = (one.cfg.get('metainfo') or {}).get('palette')
        if palette is not None and len(palette) == 1:
            options.append(f'{place}.metainfo.palette={[[0, 0, 0], list(palette[0])]}'.replace(', ', ','))
        if zero_is_background and one.cfg.get('reduce_zero_label', False):
            options.append(f'{place}.reduce_zero_label=False')
    for where, head in segmentor_heads(cfg.get('model') or {}):
        if head.get('num_classes') == 1:
            options.append(f'{option_place(where)}.num_classes=2')
        single = output_channels(head) == 1 and not any(_teaches_nothing(loss) for _, loss in _losses(head, where))
        if single != (head.get('out_channels') == 1):
            options.append(f'{option_place(where)}.out_channels={1 if single else 2}')
        channels = 1 if single else 2
        for place, loss in _losses(head, where):
            weight = loss.get('class_weight')
            if isinstance(weight, (list, tuple)) and len(weight) != channels:
                options.append(f'{option_place(place)}.class_weight=None')
    return options


def option_place(where: str) -> str:
    """A position in a config as ``--cfg-options`` takes it: ``a.datasets[0]`` is ``a.datasets.0``."""
    return where.replace('[', '.').replace(']', '')


def quoted(option: str) -> str:
    """An option as it is typed into a shell."""
    key, _, value = option.partition('=')
    if any(sign in value for sign in '"$`\\!'):
        return shlex.quote(option)
    return f'{key}="{value}"' if any(sign in value for sign in "([' ;&|<>*?#~{") else option


def segmentor_heads(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The heads of a segmentor, each with its place in the config."""
    for key in HEADS:
        part = model.get(key)
        if isinstance(part, Mapping):
            yield f'model.{key}', part
        elif isinstance(part, (list, tuple)):
            yield from ((f'model.{key}[{index}]', one) for index, one in enumerate(part) if isinstance(one, Mapping))


def output_channels(head: Mapping[str, Any]) -> int | None:
    """How many scores a head gives each pixel, as far as its config tells."""
    channels = head.get('out_channels')
    channels = head.get('num_classes') if channels is None else channels
    return channels if isinstance(channels, int) else None


def compares_labels(evaluators: Any) -> bool:
    """Whether one of the metrics compares label maps class by class."""
    several = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    return any(
        isinstance(one, Mapping) and is_type(one, 'IoUMetric') and not one.get('format_only', False) for one in several
    )


def _has_number(head: Mapping[str, Any]) -> bool:
    return isinstance(head.get('num_classes'), int)


def _is_pixel_head(head: Mapping[str, Any]) -> bool:
    """Whether a head is one of mmseg's that scores each pixel."""
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.registry import MODELS

    kind = head.get('type')
    if isinstance(kind, str):
        with DefaultScope.overwrite_default_scope('mmseg'):
            kind = MODELS.get(kind)
    return isinstance(kind, type) and issubclass(kind, BaseDecodeHead)


def _losses(head: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The losses of a head, each with its place in the config."""
    losses = head.get('loss_decode', {'type': 'CrossEntropyLoss'})
    if isinstance(losses, Mapping):
        yield f'{where}.loss_decode', losses
    elif isinstance(losses, (list, tuple)):
        for index, one in enumerate(losses):
            if isinstance(one, Mapping):
                yield f'{where}.loss_decode[{index}]', one


def _teaches_nothing(loss: Mapping[str, Any]) -> bool:
    """Whether a loss has no gradient for a single channel; one that cannot be computed counts as teaching."""
    from mmseg.registry import MODELS

    scores = torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4).requires_grad_()
    try:
        with DefaultScope.overwrite_default_scope('mmseg'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            built = MODELS.build({**loss, 'class_weight': None} if 'class_weight' in loss else dict(loss))
            value = built(scores, torch.zeros(1, 4, 4, dtype=torch.long), ignore_index=255)
            (gradient,) = torch.autograd.grad(value.sum(), scores, allow_unused=True)
    except Exception:  # noqa: BLE001 - a loss of the user's own may need more; it is reported when it is used
        return False
    return gradient is None or not bool(gradient.abs().any())
