"""MaskDINO's released checkpoints (IDEA-Research/MaskDINO, on detectron2) into our head and a model's backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmitpn.checkpoint.explain import some
from mmitpn.checkpoint.io import read_checkpoint
from mmitpn.checkpoint.mask_dino_names import IGNORED, our_name, resnet_name
from mmitpn.checkpoint.report import LoadReport

LAYOUT = 'mask_dino_released'
TITLE = 'MaskDINO, the released detectron2 layout'
HEADS = ('panoptic_head', 'decode_head')


def is_mask_dino(content: Mapping[str, Any]) -> bool:
    """Whether a file holds a released MaskDINO head, wrapped in ``model`` or not."""
    inner = content.get('model', content)
    return isinstance(inner, Mapping) and any(our_name(str(name)) for name in inner)


def released_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a released file by name.

    Args:
        content: What the file holds, wrapped in ``model`` or not.

    Raises:
        ValueError: If there is no MaskDINO head in it.
    """
    inner = content.get('model', content)
    if not is_mask_dino(content):
        raise ValueError(
            f'this is no released MaskDINO checkpoint: no weight is below sem_seg_head. (it holds'
            f' {some(list(map(str, inner)))})'
        )
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}


def to_our_head(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of the head by our names.

    The box head and a norm are in a file under several names, of which any one will do.

    Args:
        weights: Of a released file, by name.

    Returns:
        Ours, and the names of those that hold another value than their double.
    """
    ours: dict[str, Tensor] = {}
    differing = []
    for name, value in weights.items():
        new = our_name(name)
        if new is None:
            continue
        if new not in ours:
            ours[new] = value
        elif ours[new].shape != value.shape or not torch.equal(ours[new], value):
            differing.append(name)
    return ours, differing


def to_our_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a ResNet or Swin Transformer as mmdet names them.

    Args:
        weights: Of a released file, by name.
    """
    inner = {name.removeprefix('backbone.'): v for name, v in weights.items() if name.startswith('backbone.')}
    if 'patch_embed.proj.weight' in inner:
        from mmdet.models.backbones.swin import swin_converter

        return {name.removeprefix('backbone.'): value for name, value in swin_converter(inner).items()}
    return {new: value for name, value in inner.items() if (new := resnet_name(name)) is not None}


def load_mask_dino(module: nn.Module, source: str | os.PathLike | Mapping[str, Any], strict: bool = True) -> LoadReport:
    """Load a released MaskDINO checkpoint.

    Args:
        module: A :class:`mmitpn.MaskDINOHead`, built with the settings of the file and ``released=True``; or a detector
            or segmentor with one, whose ResNet or Swin Transformer is loaded too. Another backbone keeps its weights.
        source: Path or address of the file (``.pth`` or ``.pkl``), or what it holds.
        strict: Raise unless everything is loaded. False: load what fits and log a warning.

    Returns:
        What was loaded, by part.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is another, or does not fit and ``strict`` is True.
    """
    content, name = (source, 'a dict') if isinstance(source, Mapping) else (read_checkpoint(source), os.fspath(source))
    weights = released_weights(content)
    head, differing = to_our_head(weights)
    report = LoadReport(name, LAYOUT, TITLE)
    report.part('other').ignored += [key for key in IGNORED if key in weights]
    owner = next((one for one in HEADS if isinstance(getattr(module, one, None), nn.Module)), None)
    prefix = '' if owner is None else f'{owner}.'
    own, given = module.state_dict(), {f'{prefix}{key}': value for key, value in head.items()}
    if owner is not None:
        backbone = {f'backbone.{key}': value for key, value in to_our_backbone(weights).items()}
        if backbone.keys() & own.keys():
            given |= backbone
        else:
            own = {key: value for key, value in own.items() if key.startswith(prefix)}
            report.part('backbone').ignored += backbone
            report.warnings.append('the backbone of the file is another one: the backbone of the model stays as it is')
    wrong = _match(own, given, prefix, report)
    if differing:
        wrong.append(f'one weight has two values in the file: {some(differing)}')
    report.errors += wrong if len(wrong) <= 3 else [*wrong[:3], f'{len(wrong)} in all; {settings_of(head)}']
    report.log()
    if strict:
        report.raise_if_not_loaded()
    fitting = {key for part in report.parts.values() for key in part.matched}
    module.load_state_dict({key: given[key] for key in fitting}, strict=False)
    return report


def _match(own: Mapping[str, Tensor], given: Mapping[str, Tensor], prefix: str, report: LoadReport) -> list[str]:
    """Compare model and file, fill the report, and say what does not fit."""
    wrong = []
    for key, value in own.items():
        if key.endswith('num_batches_tracked'):
            continue  # frozen norms have none
        part = report.part(key.removeprefix(prefix).split('.')[0])
        there = given.get(key)
        if there is not None and there.shape == value.shape:
            part.matched.append(key)
            continue
        part.missing.append(key)
        shape = 'not there' if there is None else tuple(there.shape)
        wrong.append(f'{key} is {tuple(value.shape)} in the model, and {shape} in the file')
    for key, value in given.items():
        if key not in own:
            report.part(key.removeprefix(prefix).split('.')[0]).unexpected.append(key)
            wrong.append(f'{key} {tuple(value.shape)} of the file has no place in the model')
    return wrong


def settings_of(head: Mapping[str, Tensor]) -> str:
    """The settings that a file's weights tell, as one writes them."""
    levels = head['pixel_decoder.level_embed'].shape[0] if 'pixel_decoder.level_embed' in head else '?'
    hidden = head.get('pixel_decoder.encoder.layers.0.ffn.layers.0.0.weight')
    labels = head.get('predictor.label_embed.weight')
    classes = '?' if labels is None else labels.shape[0]
    return (
        f'the file has num_levels={levels}, feedforward_channels={"?" if hidden is None else hidden.shape[0]} in the'
        f' pixel decoder, {classes} classes, two_stage={"predictor.memory_proj.weight" in head}'
    )
