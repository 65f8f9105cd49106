"""MaskDINO's released checkpoints (IDEA-Research/MaskDINO, on detectron2) into our head and its ResNet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmitpn.checkpoint.explain import some
from mmitpn.checkpoint.io import read_checkpoint
from mmitpn.checkpoint.mask_dino_names import IGNORED, our_name
from mmitpn.checkpoint.report import LoadReport

LAYOUT = 'mask_dino_released'
TITLE = 'MaskDINO, the released detectron2 layout'


def released_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a released file by name.

    Args:
        content: What the file holds, wrapped in ``model`` or not.

    Raises:
        ValueError: If there is no MaskDINO head in it.
    """
    inner = content.get('model', content)
    weights = {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    if not any(our_name(name) for name in weights):
        raise ValueError(
            f'this is no released MaskDINO checkpoint: no weight is below sem_seg_head. (it holds'
            f' {some(list(map(str, inner)))})'
        )
    return weights


def to_our_head(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Weights of the head by our names.

    Args:
        weights: Of a released file, by name.

    Returns:
        Ours; names that are left out by rule; names of the head that hold another value than their double.

    The box head and a norm are in a file under several names. Where they differ the first one counts, and the others
    are told.
    """
    ours: dict[str, Tensor] = {}
    ignored, differing = [], []
    for name, value in weights.items():
        new = our_name(name)
        if new is None:
            ignored.extend([name] if name in IGNORED else [])
        elif new not in ours:
            ours[new] = value
        elif ours[new].shape != value.shape or not torch.equal(ours[new], value):
            differing.append(name)
    return ours, ignored, differing


def load_mask_dino(head: nn.Module, source: str | os.PathLike | Mapping[str, Any], strict: bool = True) -> LoadReport:
    """Load a released MaskDINO checkpoint into a :class:`mmitpn.MaskDINOHead`.

    Args:
        head: The head, built with the settings of the file and ``released=True``.
        source: Path or address of the file (``.pth`` or ``.pkl``), or what it holds.
        strict: Raise unless the head is completely loaded. False: load what fits and log a warning.

    Returns:
        What was loaded, by part: ``pixel_decoder`` and ``predictor``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is another, or does not fit and ``strict`` is True.
    """
    content, name = (source, 'a dict') if isinstance(source, Mapping) else (read_checkpoint(source), os.fspath(source))
    weights = released_weights(content)
    given, ignored, differing = to_our_head(weights)
    report = LoadReport(name, LAYOUT, TITLE)
    report.part('other').ignored += ignored
    own, fitting = head.state_dict(), {}
    for key, value in own.items():
        part = report.part(key.split('.')[0])
        if key in given and given[key].shape == value.shape:
            part.matched.append(key)
            fitting[key] = given[key]
        else:
            part.missing.append(key)
            there = tuple(given[key].shape) if key in given else 'not there'
            report.errors.append(f'{key} is {tuple(value.shape)} in the head, and {there} in the file')
    for key in given:
        if key not in own:
            report.part(key.split('.')[0]).unexpected.append(key)
            report.errors.append(f'{key} {tuple(given[key].shape)} of the file has no place in the head')
    if differing:
        report.errors.append(f'one weight has two values in the file: {some(differing)}')
    if len(report.errors) > 3:
        report.errors[3:] = [f'... {len(report.errors)} in all; {settings_of(given)}']
    report.log()
    if strict:
        report.raise_if_not_loaded()
    head.load_state_dict(fitting, strict=False)
    return report


def settings_of(given: Mapping[str, Tensor]) -> str:
    """The settings that a file's weights tell, as one writes them."""
    levels = given['pixel_decoder.level_embed'].shape[0] if 'pixel_decoder.level_embed' in given else '?'
    hidden = given.get('pixel_decoder.encoder.layers.0.ffn.layers.0.0.weight')
    labels = given.get('predictor.label_embed.weight')
    classes = '?' if labels is None else labels.shape[0]
    return (
        f'the file has num_levels={levels}, feedforward_channels={"?" if hidden is None else hidden.shape[0]} in the'
        f' pixel decoder, {classes} classes, two_stage={"predictor.memory_proj.weight" in given}'
    )
