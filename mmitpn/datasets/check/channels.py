"""Whether backbone, neck and heads agree in the channels of the maps they hand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...config_types import is_type

Channels = tuple[int, ...]


def check_channels(model: Mapping[str, Any]) -> None:
    """Compare the channels that each part of a model gives with those the next one takes.

    Only what the config says is compared: the maps of a ``FastITPN``, a neck's ``in_channels``, ``out_channels`` and
    ``num_outs``, and the ``in_channels`` of heads.

    Args:
        model: The config's model.

    Raises:
        ValueError: If they differ.
    """
    maps = _backbone_maps(model.get('backbone'))
    source = 'the backbone'
    neck = model.get('neck')
    for index, part in enumerate(neck if isinstance(neck, (list, tuple)) else [neck] if neck else []):
        where = f'model.neck[{index}]' if isinstance(neck, (list, tuple)) else 'model.neck'
        taken = part.get('in_channels')
        if maps is not None and isinstance(taken, (list, tuple)) and tuple(taken) != maps:
            raise ValueError(
                f'{where}.in_channels is {_plain(taken)}, but {source} gives maps of {_plain(maps)} channels: '
                f'set in_channels={_plain(maps)}'
            )
        maps, source = _neck_maps(part, maps), where
    if neck is None and maps is None:
        return
    for where, taken, picked in _takers(model):
        _compare(where, taken, picked, maps, source)


def _backbone_maps(backbone: Any) -> Channels | None:
    """Channels of the maps of a FastITPN or ITPN; None for other backbones, which do not tell."""
    if not isinstance(backbone, Mapping):
        return None
    if not is_type(backbone, 'FastITPN', 'ITPN'):
        return None
    from ...models.backbones import resolve_arch

    channels = resolve_arch(backbone.get('arch', 'base')).channels
    indices = backbone.get('out_indices', (0, 1, 2))
    if not isinstance(indices, (list, tuple)) or not all(isinstance(i, int) and 0 <= i < 3 for i in indices):
        raise ValueError(
            f'model.backbone.out_indices is {indices!r}; it takes 0, 1 and 2, the maps at strides 4, 8 and 16'
        )
    return tuple(channels[i] for i in indices)


def _neck_maps(neck: Mapping[str, Any], maps: Channels | None) -> Channels | None:
    """Channels of a neck's maps, where its config tells; ``maps`` are those it is given."""
    width, number = neck.get('out_channels'), neck.get('num_outs')
    if is_type(neck, 'ITPNPyramid'):
        width, number = neck.get('out_channels', 256), neck.get('num_outs', 5)
        if neck.get('concat_backbone') and isinstance(width, int) and isinstance(number, int):
            inner = maps or tuple(neck.get('in_channels', ()))
            levels = [width + channels for channels in inner[min(neck.get('start_level', 0), 2) :]]
            return tuple([*levels, *levels[-1:] * number][:number])
    return (width,) * number if isinstance(width, int) and isinstance(number, int) else None


def _takers(model: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Settings that say how many channels a head takes: place, channels, and the maps it picks."""
    found: list[tuple[str, Any, Any]] = []
    for key in ('rpn_head', 'bbox_head', 'panoptic_head', 'decode_head', 'auxiliary_head', 'mask_head'):
        parts = model.get(key)
        for index, part in enumerate(parts if isinstance(parts, (list, tuple)) else [parts]):
            if isinstance(part, Mapping) and 'in_channels' in part:
                where = f'model.{key}[{index}]' if isinstance(parts, (list, tuple)) else f'model.{key}'
                found.append((f'{where}.in_channels', part['in_channels'], part.get('in_index')))
    roi_head = model.get('roi_head')
    if isinstance(roi_head, Mapping):
        for key in ('bbox_roi_extractor', 'mask_roi_extractor'):
            parts = roi_head.get(key)
            several = parts if isinstance(parts, (list, tuple)) else [parts]
            where = f'model.roi_head.{key}.out_channels'
            taken = [part['out_channels'] for part in several if isinstance(part, Mapping) and 'out_channels' in part]
            found += [(where, channels, None) for channels in taken]
    return found


def _compare(where: str, taken: Any, picked: Any, maps: Channels | None, source: str) -> None:
    """Compare what a head takes with the maps it gets."""
    if maps is None:
        return
    if isinstance(taken, int):
        wanted = maps[picked] if isinstance(picked, int) and -len(maps) <= picked < len(maps) else None
        allowed = {wanted} if wanted is not None else set(maps)
        if taken not in allowed:
            raise ValueError(
                f'{where} is {taken}, but {source} gives maps of {_plain(maps)} channels: '
                f'set it to {" or ".join(map(str, sorted(allowed)))}'
            )
        if isinstance(picked, int) and wanted is None:
            raise ValueError(f'{where}: in_index {picked} is out of range, {source} gives {len(maps)} maps')
        return
    if not isinstance(taken, (list, tuple)):
        return
    indices = list(picked) if isinstance(picked, (list, tuple)) else list(range(len(taken)))
    if indices and not -len(maps) <= min(indices) <= max(indices) < len(maps):
        raise ValueError(
            f'{where} is {_plain(taken)} for the maps {_plain(indices)}, but {source} gives {len(maps)} maps '
            f'of {_plain(maps)} channels'
        )
    given = tuple(maps[i] for i in indices)
    if tuple(taken) != given:
        raise ValueError(
            f'{where} is {_plain(taken)}, but {source} gives maps of {_plain(given)} channels: '
            f'set it to {_plain(given)}'
        )


def _plain(numbers: Sequence[int]) -> str:
    """Numbers as a config writes them."""
    return str(tuple(numbers))
