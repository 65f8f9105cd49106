"""MaskDINO's released checkpoints (IDEA-Research/MaskDINO, on detectron2): table of names, conversion, loading."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmitpn.checkpoint.diagnostics import Findings, LoadReport, PartReport, group_by_part, some
from mmitpn.checkpoint.formats import unwrap_state_dict
from mmitpn.checkpoint.loader import Match, match_weights
from mmitpn.checkpoint.reader import read_checkpoint

LAYOUT = 'mask_dino_released'
TITLE = 'MaskDINO, the released detectron2 layout'
_HEADS = ('panoptic_head', 'decode_head')  # the attribute of a detector, of a segmentor
# The class weights of the softmax loss, which the criterion computes from its settings.
_IGNORED = ('criterion.empty_weight',)

# --- the table -----------------------------------------------------------------------------------------------------

# Beginnings of released names -> ours; the first that fits counts. One box head and one norm are there several times.
_HEAD_RULES = (
    (r'sem_seg_head\.pixel_decoder\.transformer\.(level_embed|encoder\.)', r'pixel_decoder.\1'),
    (r'sem_seg_head\.pixel_decoder\.adapter_1\.norm\.', r'pixel_decoder.lateral.gn.'),
    (r'sem_seg_head\.pixel_decoder\.adapter_1\.', r'pixel_decoder.lateral.conv.'),
    (r'sem_seg_head\.pixel_decoder\.layer_1\.norm\.', r'pixel_decoder.output.gn.'),
    (r'sem_seg_head\.pixel_decoder\.layer_1\.', r'pixel_decoder.output.conv.'),
    (r'sem_seg_head\.pixel_decoder\.', r'pixel_decoder.'),
    (r'sem_seg_head\.predictor\.(_bbox_embed|(decoder\.)?bbox_embed\.\d+)\.', r'predictor.box_embed.'),
    (r'sem_seg_head\.predictor\.decoder_norm\.', r'predictor.decoder.norm.'),
    (r'sem_seg_head\.predictor\.enc_output_norm\.', r'predictor.memory_norm.'),
    (r'sem_seg_head\.predictor\.enc_output\.', r'predictor.memory_proj.'),
    (r'sem_seg_head\.predictor\.label_enc\.', r'predictor.label_embed.'),
    (r'sem_seg_head\.predictor\.query_feat\.', r'predictor.query_content.'),
    (r'sem_seg_head\.predictor\.query_embed\.', r'predictor.query_boxes.'),
    (r'sem_seg_head\.predictor\.', r'predictor.'),
)
# Inside a layer. The released decoder numbers its norms as another model did.
_FEED_FORWARD = ((r'\.linear1\.', '.ffn.layers.0.0.'), (r'\.linear2\.', '.ffn.layers.1.'))
_LAYER_RULES = {
    'pixel_decoder.encoder.layers.': (*_FEED_FORWARD, (r'\.norm1\.', '.norms.0.'), (r'\.norm2\.', '.norms.1.')),
    'predictor.decoder.layers.': (
        *_FEED_FORWARD,
        (r'\.norm2\.', '.norms.0.'),
        (r'\.norm1\.', '.norms.1.'),
        (r'\.norm3\.', '.norms.2.'),
        (r'\.self_attn\.', '.self_attn.attn.'),
    ),
}
# detectron2's ResNet -> mmdet's; the stages are renumbered in `convert_resnet_key`.
_RESNET_RULES = (
    (r'stem\.conv1\.norm\.(\w+)', r'bn1.\1'),
    (r'stem\.conv1\.(\w+)', r'conv1.\1'),
    (r'(res\d\.\d+)\.conv(\d)\.norm\.(\w+)', r'\1.bn\2.\3'),
    (r'(res\d\.\d+)\.conv(\d)\.(\w+)', r'\1.conv\2.\3'),
    (r'(res\d\.\d+)\.shortcut\.norm\.(\w+)', r'\1.downsample.1.\2'),
    (r'(res\d\.\d+)\.shortcut\.(\w+)', r'\1.downsample.0.\2'),
)


def convert_head_key(released: str) -> str | None:
    """Our name of a released weight of the head, below the head's own prefix; None for any other weight."""
    for pattern, replacement in _HEAD_RULES:
        ours, count = re.subn('^' + pattern, replacement, released)
        if count:
            break
    else:
        return None
    for start, rules in _LAYER_RULES.items():
        if ours.startswith(start):
            for pattern, replacement in rules:
                ours = re.sub(pattern, replacement, ours, count=1)
    return ours


def convert_resnet_key(released: str) -> str | None:
    """The name in mmdet of a weight of detectron2's ResNet, both below the backbone's prefix; None for any other."""
    for pattern, replacement in _RESNET_RULES:
        name, count = re.subn(f'^{pattern}$', replacement, released)
        if count:
            stage = re.match(r'res(\d)\.', name)
            return f'layer{int(stage[1]) - 1}.{name[len(stage[0]) :]}' if stage else name
    return None


# --- conversion ----------------------------------------------------------------------------------------------------


def is_mask_dino(content: Mapping[str, Any]) -> bool:
    """Whether a file holds a released MaskDINO head, wrapped or raw."""
    try:
        state, _ = unwrap_state_dict(content)
    except ValueError:
        return False
    return any(map(convert_head_key, state))


def convert_head(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of the head of a released file by our names, and the names of those that contradict another.

    The box head and a norm are in a file under several names with the same values, of which the first is taken.
    """
    ours: dict[str, Tensor] = {}
    differing = []
    for name, value in weights.items():
        new = convert_head_key(name)
        if new is None:
            continue
        if new not in ours:
            ours[new] = value
        elif ours[new].shape != value.shape or not torch.equal(ours[new], value):
            differing.append(name)
    return ours, differing


def convert_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the ResNet or Swin Transformer of a released file as mmdet names them."""
    inner = {name.removeprefix('backbone.'): v for name, v in weights.items() if name.startswith('backbone.')}
    if 'patch_embed.proj.weight' in inner:
        from mmdet.models.backbones.swin import swin_converter

        return {name.removeprefix('backbone.'): value for name, value in swin_converter(inner).items()}
    return {new: value for name, value in inner.items() if (new := convert_resnet_key(name)) is not None}


# --- loading -------------------------------------------------------------------------------------------------------


def load_mask_dino_checkpoint(
    module: nn.Module, source: str | os.PathLike | Mapping[str, Any], strict: bool = True
) -> LoadReport:
    """Load a released MaskDINO checkpoint.

    Args:
        module: A :class:`mmitpn.MaskDINOHead`, built with the settings of the file and ``released=True``; or a detector
            or segmentor with one, whose ResNet or Swin Transformer is loaded too. Another backbone keeps its weights.
        source: Path or address of the file (``.pth`` or ``.pkl``), or its contents.
        strict: Raise unless everything is loaded. False: load what fits and log a warning.

    Returns:
        What was loaded, by part.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is another file, or does not fit and ``strict`` is True.
    """
    content, name = (source, 'a dict') if isinstance(source, Mapping) else (read_checkpoint(source), os.fspath(source))
    weights = _released_weights(content)
    findings, state = _match_file(module, weights)
    report = LoadReport.from_findings(name, LAYOUT, TITLE, [findings])
    report.log()
    if strict:
        report.raise_if_not_loaded()
    module.load_state_dict(state, strict=False)
    return report


def _released_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    if not is_mask_dino(content):
        inner = content.get('model', content)
        raise ValueError(
            f'this is not a released MaskDINO checkpoint: no weight is below sem_seg_head. (it holds'
            f' {some(list(map(str, inner)))})'
        )
    return unwrap_state_dict(content)[0]


def _match_file(module: nn.Module, weights: Mapping[str, Tensor]) -> tuple[Findings, dict[str, Tensor]]:
    """Compare a file with a head, or with a model: the findings, and the weights that are loaded."""
    head, differing = convert_head(weights)
    owner = next((name for name in _HEADS if isinstance(getattr(module, name, None), nn.Module)), None)
    prefix = '' if owner is None else f'{owner}.'
    own, given = module.state_dict(), {f'{prefix}{key}': value for key, value in head.items()}
    other = PartReport(ignored=[key for key in _IGNORED if key in weights])
    findings = Findings({'other': other})
    if owner is not None:
        backbone = {f'backbone.{key}': value for key, value in convert_backbone(weights).items()}
        if backbone.keys() & own.keys():
            given |= backbone
        else:
            own = {key: value for key, value in own.items() if key.startswith(prefix)}
            findings.parts['backbone'] = PartReport(ignored=list(backbone))
            findings.warnings.append('the file has another backbone: the backbone of the model stays unchanged')
    own = {key: value for key, value in own.items() if not key.endswith('num_batches_tracked')}  # frozen norms: none

    match = match_weights(own, given)
    findings.parts |= group_by_part(
        lambda key: key.removeprefix(prefix).split('.')[0],
        [*own, *given],
        matched=match.matched,
        missing=match.missing,
        unexpected=[key for key in match.unexpected if key not in own],
    )
    errors = _explain_keys(match, own, given)
    if differing:
        errors.append(f'one weight has two values in the file: {some(differing)}')
    findings.errors += errors if len(errors) <= 3 else [*errors[:3], f'{len(errors)} in all; {_describe_sizes(head)}']
    return findings, match.state


def _explain_keys(match: Match, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What does not fit, one sentence per weight."""
    shapes = {key: tuple(value.shape) for key, value in given.items()}
    missing = (
        f'{key} is {tuple(own[key].shape)} in the model, and {shapes.get(key, "not there")} in the file'
        for key in match.missing
    )
    left = (key for key in match.unexpected if key not in own)
    return [*missing, *(f'{key} {shapes[key]} of the file has no place in the model' for key in left)]


def _describe_sizes(head: Mapping[str, Tensor]) -> str:
    """The settings of the head that a file's weights were trained with, as far as shapes show them."""
    levels = head['pixel_decoder.level_embed'].shape[0] if 'pixel_decoder.level_embed' in head else '?'
    hidden = head.get('pixel_decoder.encoder.layers.0.ffn.layers.0.0.weight')
    labels = head.get('predictor.label_embed.weight')
    classes = '?' if labels is None else labels.shape[0]
    return (
        f'the file has num_levels={levels}, feedforward_channels={"?" if hidden is None else hidden.shape[0]} in the'
        f' pixel decoder, {classes} classes, two_stage={"predictor.memory_proj.weight" in head}'
    )
