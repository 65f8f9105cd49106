"""FastITPN and ITPNPyramid in a config of mmdet or mmseg that was written for another backbone.

:func:`plan_swap` runs the old backbone and neck to see which feature maps the heads take and works out the settings
that change, :func:`write_config` writes a config that inherits the original, :func:`try_model` trains it for one step.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS

from mmitpn.config_types import type_name
from mmitpn.engine.config_utils import resolve_config
from mmitpn.models.backbones import FastITPN, resolve_arch
from mmitpn.models.necks.itpn_pyramid import MAX_LEVELS, STARTS
from mmitpn.testing import demo_inputs
from mmitpn.utils import IMAGENET_MEAN, IMAGENET_STD

# Decay of the learning rate from layer to layer, as in this project's configs.
LAYER_DECAY = {'nano': 0.9, 'tiny': 0.9, 'small': 0.9, 'base': 0.9, 'large': 0.95}
WIDTH = 256  # channels of the pyramid where the old maps have different ones: those of the released pyramids
INPUT_SIDE = 256  # pixels of the square image that the old backbone is run on, unless its config has an img_size
TRIAL_SIZE = (384, 416)  # pixels: 3x3 positions at stride 128, and more positions than detectors have queries
NO_HEADS = ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg')


class SwapError(ValueError):
    """A config whose backbone cannot be swapped, with the field and the reason."""


class ConfigChange(NamedTuple):
    """One setting: its dotted key, its value before (None: absent) and after."""

    key: str
    before: Any
    after: Any


def plan_swap(
    cfg: Mapping[str, Any],
    *,
    arch: str | Mapping = 'base',
    weights: str | None = None,
    with_cp: bool = True,
    layer_decay: float | None = None,
) -> tuple[dict[str, Any], list[ConfigChange]]:
    """Work out the settings that turn a config of mmdet or mmseg into one with FastITPN and ITPNPyramid.

    The pyramid gets levels of the strides that the heads take, and the channels of the old neck where all of its maps
    have the same.

    Args:
        cfg: The whole config; not changed. The framework's scope must be the default one.
        arch: A name of FastITPN's architectures, or a dict.
        weights: File or address of pre-trained weights for backbone and pyramid.
        with_cp: Recompute activations in the backward pass.
        layer_decay: Decay of the learning rate from layer to layer; None takes that of ``LAYER_DECAY``.

    Returns:
        The settings to merge into the config, nested as it is, and the list of them.

    Raises:
        SwapError: If the config has no backbone, wants maps that the pyramid cannot give, or no layer decay is known.
    """
    layer_decay = layer_decay or (LAYER_DECAY.get(arch) if isinstance(arch, str) else None)
    if layer_decay is None:
        raise SwapError(f'arch {arch!r} has no layer decay ({", ".join(LAYER_DECAY)} have one); give layer_decay')
    cfg = cfg.to_dict() if hasattr(cfg, 'to_dict') else dict(cfg)
    path, model = _find_model(cfg)
    where = '.'.join(path)
    channels, strides = feature_info(model, where)
    levels = _levels(strides, where)
    heads = {key: part for key, part in model.items() if key not in NO_HEADS and _configs(part)}
    if levels != sorted(levels):  # branches: only heads that select a map by its index can take another one
        for key in heads.keys() & {'decode_head', 'auxiliary_head'}:  # mmseg's, which take the last map by default
            indexed = [{'in_index': -1, **part} for part in _configs(heads[key])]
            heads[key] = indexed if isinstance(heads[key], (list, tuple)) else indexed[0]
        if not heads or not all('in_index' in one for part in heads.values() for one in _configs(part)):
            raise SwapError(f'{where}: its maps do not get coarser one after the other (strides {strides})')
    uniform = model.get('neck') is not None and len(set(channels)) == 1
    width = channels[0] if uniform else WIDTH
    start = min(levels)
    init = {'init_cfg': {'type': 'Pretrained', 'checkpoint': weights}} if weights else {}
    new: dict[str, Any] = {
        'backbone': {'_delete_': True, 'type': 'mmitpn.FastITPN', 'arch': arch, 'with_cp': with_cp, **init},
        'neck': {
            **({'_delete_': True} if 'neck' in model else {}),
            'type': 'mmitpn.ITPNPyramid',
            'in_channels': resolve_arch(arch).channels,
            'out_channels': width,
            'num_outs': max(max(levels) - start + 1, 3 - start),
            **({'start_level': start} if start else {}),
            **init,
        },
    }
    index = [level - start for level in levels]  # of each old map among the pyramid's
    for key, part in heads.items():
        changed = _with_channels(part, channels, index, width)
        if changed != model[key]:
            new[key] = _difference(model[key], changed)
    new |= {key: None for key in ('pretrained', 'init_cfg') if model.get(key)}
    new |= _preprocessor(model.get('data_preprocessor'))
    options: dict[str, Any] = {path[-1]: new}
    for key in reversed(path[:-1]):
        options = {key: options}
    options['optim_wrapper'] = _optimizer(cfg.get('optim_wrapper'), layer_decay)
    if isinstance(cfg.get('data_preprocessor'), Mapping) and not model.get('data_preprocessor'):
        options |= _preprocessor(cfg['data_preprocessor'])
    return options, _changes(cfg, options)


def feature_info(model: Mapping[str, Any], where: str = 'model') -> tuple[list[int], list[int]]:
    """Run a model's backbone and neck on random images.

    Args:
        model: The config's part with ``backbone`` and, perhaps, ``neck``.
        where: Its dotted key, for errors.

    Returns:
        Channels and strides (in pixels) of the maps that its heads take, in order.

    Raises:
        SwapError: If they cannot be run, or return something else than a sequence of maps.
    """
    # Some transformers take no other size than the one they were built for.
    size = model['backbone'].get('img_size') or INPUT_SIDE
    side = size if isinstance(size, int) else size[0]
    necks = model.get('neck') or []
    try:
        with torch.no_grad():
            x: Any = torch.randn(2, 3, side, side)
            for part in (model['backbone'], *(necks if isinstance(necks, Sequence) else [necks])):
                # A single process cannot run a synchronized norm.
                module = revert_sync_batchnorm(MODELS.build(ConfigDict(demo_inputs.without_pretrained(part))))
                module.eval()  # not chained: the train() of some backbones of mmdet and mmseg returns nothing
                x = module(x)
    except Exception as error:  # noqa: BLE001 - whatever another project's module raises, the user sees what and where
        reason = f'{type(error).__name__}: {error}'
        raise SwapError(f'{where}: its backbone and neck cannot be run on an image: {reason}') from None
    maps = [x] if isinstance(x, torch.Tensor) else x
    if not isinstance(maps, Sequence) or any(getattr(one, 'ndim', None) != 4 for one in maps):
        raise SwapError(f'{where}: its backbone and neck give {type(x).__name__}, not a sequence of maps (B, C, H, W)')
    return [one.shape[1] for one in maps], [round(side / one.shape[-1]) for one in maps]


def _find_model(cfg: Mapping[str, Any]) -> tuple[list[str], Mapping[str, Any]]:
    """Keys and config of the part with the backbone: the model, or the detector inside it."""
    model, path = cfg.get('model'), ['model']
    while isinstance(model, Mapping) and 'backbone' not in model:
        inner = next((key for key in ('detector', 'model', 'segmentor') if isinstance(model.get(key), Mapping)), None)
        if inner is None:
            raise SwapError(f'{".".join(path)} has no backbone (its settings: {", ".join(model)})')
        model, path = model[inner], [*path, inner]
    if not isinstance(model, Mapping):
        raise SwapError('the config has no model')
    return path, model


def _levels(strides: list[int], where: str) -> list[int]:
    """The pyramid's level for each stride: 0 for stride 4, 1 for stride 8, ..."""
    levels = {4 << level: level for level in range(len(STARTS) - 1 + MAX_LEVELS)}
    unknown = sorted(set(strides) - set(levels))
    if unknown:
        raise SwapError(f'{where}: its heads want maps of stride {unknown}; the pyramid gives {sorted(levels)}')
    found = [levels[stride] for stride in strides]
    if min(found) >= len(STARTS) or max(found) - min(found) + 1 > MAX_LEVELS:
        allowed = f'the pyramid starts at one of {STARTS} and has at most {MAX_LEVELS} levels'
        raise SwapError(f'{where}: its heads want the strides {sorted(set(strides))}; {allowed}')
    return found


def _configs(part: Any) -> list[Mapping[str, Any]]:
    """The configs of a setting that is a config, or a list of nothing but configs; else none."""
    parts = list(part) if isinstance(part, (list, tuple)) else [part]
    return parts if all(isinstance(one, Mapping) for one in parts) else []


def _with_channels(part: Any, channels: list[int], index: list[int], width: int, *, nested: bool = False) -> Any:
    """A copy of a head, or a list of heads, with the channels (``width``) and indices of the pyramid's maps.

    ``channels`` are those of the old maps, ``index`` their positions among the pyramid's; ``nested``: part of a head.
    """
    if isinstance(part, (list, tuple)):
        return type(part)(_with_channels(one, channels, index, width, nested=nested) for one in part)
    changed = {key: copy.deepcopy(value) for key, value in part.items()}
    selected, value = part.get('in_index'), part.get('in_channels')
    # Deep inside a head that selects no map, in_channels is a width of the head's own if the maps' widths differ.
    own_width = nested and selected is None and len(set(channels)) > 1
    if isinstance(value, (list, tuple)):
        if list(value) == _at(channels, selected if isinstance(selected, (list, tuple)) else [*range(len(value))]):
            changed['in_channels'] = [width] * len(value)
    elif not own_width and value in (channels if selected is None else [_at(channels, selected)]):
        changed['in_channels'] = width
    if part.get('c1_in_channels') == channels[0]:  # DeepLabV3+ takes the finest map beside the one of in_index
        changed['c1_in_channels'] = width
    if _at(index, selected) is not None:
        changed['in_index'] = _at(index, selected)
    for key, value in part.items():
        if _configs(value):
            changed[key] = _with_channels(value, channels, index, width, nested=True)
    return changed


def _at(values: list[int], index: Any) -> Any:
    """The value at an index, or a list for a list of them; None where there is none."""
    if isinstance(index, (list, tuple)):
        found = [_at(values, one) for one in index]
        return None if None in found else found
    return values[index] if isinstance(index, int) and -len(values) <= index < len(values) else None


def _preprocessor(settings: Any) -> dict[str, Any]:
    """Images as the authors' weights expect them: RGB, with ImageNet's mean and standard deviation."""
    if not isinstance(settings, Mapping) or 'mean' not in settings:
        return {}
    to_rgb = 'to_rgb' if 'to_rgb' in settings else 'bgr_to_rgb'
    wanted: dict[str, Any] = {'mean': list(IMAGENET_MEAN), 'std': list(IMAGENET_STD), to_rgb: True}
    changed = {key: value for key, value in wanted.items() if settings.get(key) != value}
    if changed and settings.get('rgb_to_bgr'):
        changed['rgb_to_bgr'] = False
    return {'data_preprocessor': changed} if changed else {}


def _optimizer(wrapper: Any, layer_decay: float) -> dict[str, Any]:
    """AdamW with layer decay; the learning rate is the config's own if it used Adam or AdamW, else 1e-4."""
    before = wrapper if isinstance(wrapper, Mapping) else {}
    optimizer = before.get('optimizer', {})
    rate = optimizer.get('lr', 1e-4) if type_name(optimizer).startswith('Adam') else 1e-4
    settings: dict[str, Any] = {
        'optimizer': {'type': 'AdamW', 'lr': rate, 'weight_decay': 0.05},
        'constructor': 'mmitpn.LayerDecayOptimWrapperConstructor',
        'paramwise_cfg': {'decay_rate': layer_decay},
    }
    for key in ('optimizer', 'paramwise_cfg'):
        if isinstance(before.get(key), Mapping):
            settings[key] = {'_delete_': True, **settings[key]}
    return settings if isinstance(wrapper, Mapping) else {'type': 'OptimWrapper', **settings}


def _difference(before: Any, after: Any) -> Any:
    """The settings to merge so that ``before`` becomes ``after``; lists are written whole."""
    if not isinstance(before, Mapping):
        return after
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    return {key: _difference(before.get(key), value) for key, value in changed.items()}


def _changes(cfg: Any, options: Mapping[str, Any], prefix: str = '') -> list[ConfigChange]:
    changes: list[ConfigChange] = []
    for key, value in options.items():
        before = cfg.get(key) if isinstance(cfg, Mapping) else None
        if isinstance(value, Mapping) and not value.get('_delete_') and isinstance(before, Mapping):
            changes += _changes(before, value, f'{prefix}{key}.')
        else:
            changes.append(ConfigChange(f'{prefix}{key}', before, value))
    return changes


def write_config(original: str, options: Mapping[str, Any], out: Path, *, comment: str) -> None:
    """Write a short config that inherits the original: a text config by ``_base_``, a pure Python one by an import.

    All settings are written where a pure Python original cannot be imported (``faster-rcnn.py`` is no Python name).

    Args:
        original: Path of the config it inherits, or ``FRAMEWORK::NAME``.
        options: The settings that differ.
        out: File to write; its folder is created.
        comment: First line, without the sign.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    path = resolve_config(original)
    if Config._is_lazy_import(str(path)):
        text = _pure_python(path, options, out)
    else:
        base = original if original.endswith('.py') else f'{original}.py'
        base = base if '::' in original else os.path.relpath(path.resolve(), out.parent.resolve())
        text = '\n'.join([f'_base_ = {base!r}', '', *(_text(key, value) for key, value in options.items())])
    out.write_text(f'# {comment}\n{text}\n', encoding='utf-8')


def _pure_python(original: Path, options: Mapping[str, Any], out: Path) -> str:
    """A pure Python config that imports the original, or all of the settings."""
    cfg = Config.fromfile(original)
    parts = Path(os.path.relpath(original.resolve().with_suffix(''), out.parent.resolve())).parts
    up = parts.count('..')
    if not all(name.isidentifier() for name in parts[up:]):
        cfg.merge_from_dict(copy.deepcopy(dict(options)))  # merging removes _delete_ from a dict
        return cfg.pretty_text
    lines = ['from mmengine.config import read_base', '', 'with read_base():']
    lines += [f'    from .{"." * up}{".".join(parts[up:])} import *  # noqa: F403', '']
    for key, value in options.items():
        text = _text(key, value)
        lines.append(f'{key}.merge({text.removeprefix(f"{key} = ")})' if isinstance(cfg.get(key), Mapping) else text)
    return '\n'.join(lines)


def _text(key: str, value: Any) -> str:
    """A setting as mmengine writes it: ``key = dict(...)``."""
    return Config({key: copy.deepcopy(value)}).pretty_text.strip()


def try_model(config: str | Path, *, size: tuple[int, int] = TRIAL_SIZE) -> float:
    """Build a config's model with random weights, run it forward and backward on random images, and let it predict.

    Args:
        config: The config file.
        size: Height and width of the images.

    Returns:
        The loss.

    Raises:
        ValueError: If the model has no FastITPN, the loss is not finite, or the backbone gets no gradient.
    """
    demo_inputs.set_training_progress()
    with ExitStack() as stack:
        if dist.is_available() and not dist.is_initialized():  # mmcv's MMSyncBN needs a process group when it is built
            dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
            stack.callback(dist.destroy_process_group)
        model = revert_sync_batchnorm(demo_inputs.build_from_config(config))
    torch.manual_seed(0)
    inputs, samples = torch.randn(2, 3, *size), partial(demo_inputs.make_samples, model, size, objects=2, device='cpu')
    loss = demo_inputs.loss_call(model, inputs, samples(batch=2))()
    loss.backward()
    if not loss.isfinite():
        raise ValueError(f'the loss of the first step is {float(loss)}')
    backbone = next((module for module in model.modules() if isinstance(module, FastITPN)), None)
    if backbone is None:
        raise ValueError('the model has no mmitpn.FastITPN; give the config that mmitpn swap wrote')
    if backbone.blocks[0].attn.qkv.weight.grad is None:
        raise ValueError('the backbone gets no gradient')
    model.eval()
    with torch.no_grad():
        demo_inputs.inference_call(model, inputs[:1], samples(batch=1), predict=True)()
    return float(loss.detach())
