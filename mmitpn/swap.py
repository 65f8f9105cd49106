"""Which settings of a config change when its backbone becomes Fast-iTPN with its pyramid."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmitpn.config_types import type_name
from mmitpn.models.backbones.archs import resolve_arch
from mmitpn.models.necks.itpn_pyramid import MAX_LEVELS, STARTS

from .maps import Map, observe_maps

WIDTH = 256  # channels of the pyramid where the heads name no width of their own: the released pyramids'
DECAY = {'large': 0.95}
DECODE_HEADS = ('decode_head', 'auxiliary_head')  # mmseg's
NO_HEADS = ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg')
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


class SwapError(ValueError):
    """A config that cannot be changed, with the field and the reason."""


@dataclass(frozen=True)
class Change:
    """One setting: its place in the config, its value before (None: absent) and after."""

    where: str
    before: Any
    after: Any


def plan_swap(
    cfg: Mapping[str, Any], *, arch: str = 'base', weights: str | None = None, with_cp: bool = True
) -> tuple[dict[str, Any], list[Change]]:
    """Work out the settings that turn a config of mmdet or mmseg into one with FastITPN and ITPNPyramid.

    Backbone and neck are run once to see which maps the heads are given; the pyramid then gives maps of the same
    strides, and of the same channels where the neck's all have the same.

    Args:
        cfg: The whole config; not changed. The host's scope must be the default one.
        arch: A name of the family.
        weights: File or address of pre-trained weights for backbone and pyramid.
        with_cp: Recompute activations in the backward pass.

    Returns:
        The settings to merge into the config, nested as it is, and the list of them.

    Raises:
        SwapError: If the config has no backbone, or wants maps that the pyramid cannot give.
    """
    cfg = cfg.to_dict() if hasattr(cfg, 'to_dict') else dict(cfg)
    path, model = _find_model(cfg)
    try:
        maps = observe_maps(model)
    except ValueError as error:
        raise SwapError(f'{".".join(path)}: {error}') from None
    levels = _levels(maps, '.'.join(path))
    heads = {key: part for key, part in model.items() if key not in NO_HEADS and _holds(part)}
    if levels != sorted(levels):  # branches: only heads that pick a map by its index can be given another one
        heads = {key: _with_index(part) if key in DECODE_HEADS else part for key, part in heads.items()}
        if not heads or not all(_picks(part) for part in heads.values()):
            strides = [one.stride for one in maps]
            raise SwapError(f'{".".join(path)}: its maps do not get coarser one after the other (strides {strides})')
    uniform = len({one.channels for one in maps}) == 1 and model.get('neck') is not None
    width = maps[0].channels if uniform else WIDTH
    start = min(levels)
    number = max(max(levels) - start + 1, 3 - start)
    init = {'init_cfg': {'type': 'Pretrained', 'checkpoint': weights}} if weights else {}
    channels = resolve_arch(arch).channels
    neck = {'type': 'mmitpn.ITPNPyramid', 'in_channels': channels, 'out_channels': width, 'num_outs': number}
    if start:
        neck['start_level'] = start
    new: dict[str, Any] = {
        'backbone': {'_delete_': True, 'type': 'mmitpn.FastITPN', 'arch': arch, 'with_cp': with_cp, **init},
        'neck': {'_delete_': True, **neck, **init},
    }
    if 'neck' not in model:
        new['neck'].pop('_delete_')
    places = [level - start for level in levels]  # of each old map among the new ones
    for key, part in heads.items():
        changed = _with_channels(part, maps, places, width, f'{".".join(path)}.{key}')
        if changed != model[key]:
            new[key] = _difference(model[key], changed)
    for key in ('pretrained', 'init_cfg'):
        if model.get(key):
            new[key] = None
    new |= _preprocessor(model.get('data_preprocessor'))
    options: dict[str, Any] = {}
    _nest(options, path, new)
    options |= _optimizer(cfg, arch)
    if isinstance(cfg.get('data_preprocessor'), Mapping) and not model.get('data_preprocessor'):
        options |= _preprocessor(cfg['data_preprocessor'])
    return options, _changes(cfg, options)


def _find_model(cfg: Mapping[str, Any]) -> tuple[list[str], Mapping[str, Any]]:
    """The part of the config with the backbone: the model, or the detector inside it."""
    model, path = cfg.get('model'), ['model']
    while isinstance(model, Mapping) and 'backbone' not in model:
        inner = next((key for key in ('detector', 'model', 'segmentor') if isinstance(model.get(key), Mapping)), None)
        if inner is None:
            raise SwapError(f'{".".join(path)} has no backbone (its settings: {", ".join(model)})')
        model, path = model[inner], [*path, inner]
    if not isinstance(model, Mapping):
        raise SwapError('the config has no model')
    return path, model


def _levels(maps: Sequence[Map], where: str) -> list[int]:
    """The pyramid's level for each map: 0 for stride 4, 1 for stride 8, ..."""
    strides = [one.stride for one in maps]
    levels = {4 << level: level for level in range(len(STARTS) - 1 + MAX_LEVELS)}
    unknown = sorted(set(strides) - set(levels))
    if unknown:
        raise SwapError(f'{where}: its heads want maps of stride {unknown}; the pyramid gives {sorted(levels)}')
    found = [levels[stride] for stride in strides]
    first, last = min(found), max(found)
    if first >= len(STARTS) or last - first + 1 > MAX_LEVELS:
        raise SwapError(
            f'{where}: its heads want the strides {sorted(set(strides))}; the pyramid starts at one of {STARTS} and '
            f'has at most {MAX_LEVELS} levels'
        )
    return found


def _holds(part: Any) -> bool:
    return isinstance(part, Mapping) or (
        isinstance(part, (list, tuple)) and bool(part) and all(isinstance(one, Mapping) for one in part)
    )


def _with_channels(
    part: Any, maps: Sequence[Map], places: list[int], width: int, where: str, *, nested: bool = False
) -> Any:
    """A copy of a head in which the channels of maps are the pyramid's."""
    if isinstance(part, (list, tuple)):
        return type(part)(
            _with_channels(one, maps, places, width, f'{where}[{i}]', nested=nested)
            if isinstance(one, Mapping)
            else one
            for i, one in enumerate(part)
        )
    changed = {key: copy.deepcopy(value) for key, value in part.items()}
    given = [one.channels for one in maps]
    index = part.get('in_index')
    value = part.get('in_channels')
    if isinstance(value, (list, tuple)):
        if _picked(given, index, len(value)) == list(value):
            changed['in_channels'] = [width] * len(value)
    elif isinstance(value, int) and not (nested and index is None and len(set(given)) > 1):
        # A number deep inside that picks no map is a width of the head's own, where the maps' widths differ.
        allowed = given if index is None else _picked(given, [index], 1)
        if value in allowed:
            changed['in_channels'] = width
    if part.get('c1_in_channels') == given[0]:  # DeepLabV3+ takes the finest map beside the one of in_index
        changed['c1_in_channels'] = width
    if isinstance(index, int) and -len(given) <= index < len(given):
        changed['in_index'] = places[index]
    elif isinstance(index, (list, tuple)) and all(-len(given) <= one < len(given) for one in index):
        changed['in_index'] = [places[one] for one in index]
    for key, value in part.items():
        if _holds(value):
            changed[key] = _with_channels(value, maps, places, width, f'{where}.{key}', nested=True)
    return changed


def _with_index(part: Any) -> Any:
    """A decode head, or a list of them, with the index of the map that it takes by default: the last one."""
    if isinstance(part, (list, tuple)):
        return type(part)(_with_index(one) for one in part)
    return {'in_index': -1, **part}


def _picks(part: Any) -> bool:
    """Whether a head, or each of a list of heads, picks its maps by an index."""
    return all(map(_picks, part)) if isinstance(part, (list, tuple)) else 'in_index' in part


def _picked(given: list[int], index: Any, count: int) -> list[int]:
    if isinstance(index, (list, tuple)):
        return [given[one] for one in index] if all(-len(given) <= one < len(given) for one in index) else []
    return given[:count] if count <= len(given) else []


def _preprocessor(settings: Any) -> dict[str, Any]:
    """The pictures as the authors' weights expect them: RGB, ImageNet's mean and deviation."""
    if not isinstance(settings, Mapping) or 'mean' not in settings:
        return {}
    wanted: dict[str, Any] = {'mean': MEAN, 'std': STD}
    wanted['to_rgb' if 'to_rgb' in settings else 'bgr_to_rgb'] = True
    different = {key: value for key, value in wanted.items() if settings.get(key) != value}
    if different and settings.get('rgb_to_bgr'):
        different['rgb_to_bgr'] = False
    return {'data_preprocessor': different} if different else {}


def _optimizer(cfg: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """AdamW with layer decay; the learning rate is the config's own if it used AdamW, else 1e-4."""
    wrapper = cfg.get('optim_wrapper')
    optimizer = wrapper.get('optimizer', {}) if isinstance(wrapper, Mapping) else {}
    rate = optimizer.get('lr', 1e-4) if type_name(optimizer).startswith('Adam') else 1e-4
    settings: dict[str, Any] = {
        'optimizer': {'_delete_': True, 'type': 'AdamW', 'lr': rate, 'weight_decay': 0.05},
        'constructor': 'mmitpn.LayerDecayOptimWrapperConstructor',
        'paramwise_cfg': {'_delete_': True, 'decay_rate': DECAY.get(arch, 0.9)},
    }
    if not isinstance(wrapper, Mapping):
        settings = {'type': 'OptimWrapper', **settings}
    for key in ('optimizer', 'paramwise_cfg'):
        if not isinstance(wrapper, Mapping) or not isinstance(wrapper.get(key), Mapping):
            settings[key].pop('_delete_')
    return {'optim_wrapper': settings}


def _difference(before: Any, after: Any) -> Any:
    """The settings to merge so that ``before`` becomes ``after``; lists are written whole."""
    if not isinstance(before, Mapping):
        return after
    return {
        key: _difference(before[key], value) if isinstance(before.get(key), Mapping) else value
        for key, value in after.items()
        if key not in before or before[key] != value
    }


def _nest(options: dict[str, Any], path: Sequence[str], value: dict[str, Any]) -> None:
    for key in path[:-1]:
        options = options.setdefault(key, {})
    options[path[-1]] = value


def _changes(cfg: Any, options: Mapping[str, Any], where: str = '') -> list[Change]:
    found: list[Change] = []
    for key, value in options.items():
        before = cfg.get(key) if isinstance(cfg, Mapping) else None
        place = f'{where}.{key}' if where else key
        if isinstance(value, Mapping) and not value.get('_delete_') and isinstance(before, Mapping):
            found += _changes(before, value, place)
        else:
            found.append(Change(place, before, value))
    return found
