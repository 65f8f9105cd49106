"""From the outputs of an exported network to predictions in pixels of each image, by the eager models' functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

from mmitpn.deploy.metadata import ExportInfo
from mmitpn.deploy.preprocessing import PreparedImage
from mmitpn.models.mask_dino_postprocess import MaskOutputs, QueryPostprocessor

Values = dict[str, np.ndarray]


def read_detections(outputs: Mapping[str, np.ndarray], images: Sequence[PreparedImage]) -> list[Values]:
    """Boxes, scores and labels from ``boxes`` in pixels of the input, ``scores`` and ``labels``."""
    results = []
    for index, image in enumerate(images):
        height, width = image.size
        boxes = outputs['boxes'][index].clip(0, (width, height, width, height)) / np.tile(image.scale, 2)
        results.append(
            {
                'boxes': boxes.astype(np.float32),
                'scores': outputs['scores'][index],
                'labels': outputs['labels'][index].astype(np.int64),
            }
        )
    return results


def read_queries(
    outputs: Mapping[str, np.ndarray], images: Sequence[PreparedImage], padded: tuple[int, int], info: ExportInfo
) -> list[Values]:
    """Instances, segments and label maps from ``logits``, ``boxes`` and ``masks`` of MaskDINO's queries."""
    logits, boxes, masks = (torch.from_numpy(outputs[name]) for name in ('logits', 'boxes', 'masks'))
    boxes = box_convert(boxes / boxes.new_tensor([padded[1], padded[0]] * 2), 'xyxy', 'cxcywh')
    metas = [
        {
            'img_shape': image.size,
            'ori_shape': image.original,
            'scale_factor': image.scale,
            'batch_input_shape': padded,
        }
        for image in images
    ]
    number = len(images)
    found = QueryPostprocessor(info.settings['num_things'], len(info.classes), info.settings['test_cfg']).predict(
        MaskOutputs(logits[:number], boxes[:number], masks[:number]), metas
    )
    results = []
    for instances, panoptic, semantic in found:
        values: dict[str, Any] = {}
        if instances is not None:
            values |= {'boxes': instances.bboxes, 'scores': instances.scores}
            values |= {'labels': instances.labels, 'masks': instances.masks}
        if panoptic is not None:
            values['panoptic'] = panoptic
        if semantic is not None:
            values['semantic'] = semantic
        results.append({name: value.numpy() for name, value in values.items()})
    return results


def class_maps(outputs: Mapping[str, np.ndarray], size: tuple[int, int], info: ExportInfo) -> Tensor:
    """Scores of the classes ``(B, K, H, W)`` at the size of the network's input, of a segmentor."""
    align = info.settings['align_corners']
    if info.task == 'segmentation':
        return _resize(torch.from_numpy(outputs['logits']), size, align)
    masks = _resize(torch.from_numpy(outputs['masks']), size, align).sigmoid()
    return torch.einsum('bqk,bqhw->bkhw', torch.from_numpy(outputs['class_scores']), masks)


def read_label_map(scores: Tensor, image: PreparedImage, info: ExportInfo) -> Values:
    """The label map from class scores ``(K, H, W)``, of which the image is the upper left part."""
    scores = scores[:, : image.size[0], : image.size[1]]
    scores = _resize(scores[None], image.original, info.settings['align_corners'])[0]
    is_binary = len(scores) == 1
    labels = (scores[0].sigmoid() > info.settings['threshold']).long() if is_binary else scores.argmax(0)
    return {'semantic': labels.numpy()}


def read_probabilities(outputs: Mapping[str, np.ndarray], images: Sequence[PreparedImage]) -> list[Values]:
    """Probabilities of a classifier."""
    return [{'probabilities': outputs['probabilities'][index]} for index in range(len(images))]


def _resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=align_corners)
