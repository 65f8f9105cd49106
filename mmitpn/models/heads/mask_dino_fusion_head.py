"""MaskDINO's fusion head: predictions of the queries to instances, panoptic segments and label maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.model import BaseModule
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmitpn.models.mask_dino.transformer_decoder import LayerOutputs, class_scores, mask_logits, segmentation_scores
from mmitpn.registry import MODELS

_DEFAULTS = {
    'instance_on': True,
    'panoptic_on': False,
    'semantic_on': False,
    'max_per_image': 100,
    'object_mask_thr': 0.25,
    'iou_thr': 0.8,
    'temperature': 0.06,
}
# Values of full-size masks that are allocated at once.
_MAX_VALUES = 2**24


@MODELS.register_module()
class MaskDINOFusionHead(BaseModule):
    """Post-processing of each of the three tasks (arXiv 2206.02777; IDEA-Research/MaskDINO).

    Masks are upsampled to full size a few at a time, and only those that are needed.

    Args:
        num_things_classes: Number of thing classes.
        num_stuff_classes: Number of stuff classes.
        test_cfg: ``instance_on``, ``panoptic_on``, ``semantic_on``: the results to compute. ``max_per_image``: maximum
            number of instances per image. ``object_mask_thr``: minimum score of a panoptic segment; ``iou_thr``:
            minimum fraction of its mask that is not covered by others. ``temperature``: of the softmax over sigmoid
            scores that weights segments and label maps; None: the scores themselves.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If ``test_cfg`` has an unknown setting, or switches off all results.
    """

    def __init__(
        self,
        num_things_classes: int = 80,
        num_stuff_classes: int = 0,
        *,
        test_cfg: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        unknown = set(test_cfg or {}) - set(_DEFAULTS)
        if unknown:
            raise ValueError(f'test_cfg has {", ".join(sorted(unknown))}; allowed: {", ".join(_DEFAULTS)}')
        self.test_cfg = {**_DEFAULTS, **(test_cfg or {})}
        if not any(self.test_cfg[name] for name in ('instance_on', 'panoptic_on', 'semantic_on')):
            raise ValueError('test_cfg switches everything off: set instance_on, panoptic_on or semantic_on')
        self.num_things_classes = num_things_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = num_things_classes + num_stuff_classes

    def predict(
        self, outputs: LayerOutputs, batch_data_samples: Sequence[Any], *, rescale: bool = True
    ) -> list[dict[str, Any]]:
        """Results of a batch.

        Args:
            outputs: Predictions of the last layer.
            batch_data_samples: One sample per image.
            rescale: Results in pixels of the image before resizing.

        Returns:
            One dict per image, with the results that ``test_cfg`` switches on: ``ins_results`` (``InstanceData``:
            bboxes, labels, scores, masks), ``pan_results`` (``PixelData``: ``sem_seg`` ``(1, h, w)``, class + 1000 *
            number of the thing), ``sem_results`` (``PixelData``: ``sem_seg`` ``(1, h, w)``).
        """
        results = []
        for i, sample in enumerate(batch_data_samples):
            meta = sample.metainfo
            logits, boxes = outputs.logits[i].float(), outputs.boxes[i].float()
            embed, features = outputs.mask_embed[i].float(), outputs.mask_features[i].float()
            result: dict[str, Any] = {}
            if self.test_cfg['panoptic_on']:
                result['pan_results'] = self.panoptic(logits, embed, features, meta, rescale=rescale)
            if self.test_cfg['instance_on']:
                result['ins_results'] = self.instances(logits, boxes, embed, features, meta, rescale=rescale)
            if self.test_cfg['semantic_on']:
                scores = self.semantic_scores(logits, embed, features, meta, rescale=rescale)
                result['sem_results'] = PixelData(sem_seg=scores.argmax(0, keepdim=True))
            results.append(result)
        return results

    def instances(
        self, logits: Tensor, boxes: Tensor, mask_embed: Tensor, mask_features: Tensor, meta: Mapping, *, rescale: bool
    ) -> InstanceData:
        """The instances of things with the highest class scores; a query may give several.

        The score of an instance is its class score times the mean probability inside its mask.

        Args:
            logits: ``(Q, K)``, or ``(Q, K + 1)`` with a background class.
            boxes: ``(Q, 4)`` (cx, cy, w, h) in fractions of the padded image.
            mask_embed: ``(Q, C)``.
            mask_features: ``(C, H / 4, W / 4)``.
            meta: See :func:`upsample_masks`; and ``scale_factor``.
            rescale: See :meth:`predict`.
        """
        scores = class_scores(logits, self.num_classes)[:, : self.num_things_classes]
        num_things = max(scores.shape[1], 1)
        best, index = scores.flatten().topk(min(self.test_cfg['max_per_image'], scores.numel()))
        queries = index // num_things
        used, whose = queries.unique(return_inverse=True)
        height, width = meta['ori_shape'][:2] if rescale else meta['img_shape'][:2]
        masks = torch.zeros(len(used), height, width, dtype=torch.bool, device=logits.device)
        mask_scores = scores.new_zeros(len(used))
        for part, large in upsample_masks(mask_logits(mask_embed[used], mask_features), meta, rescale=rescale):
            masks[part] = large > 0
            mask_scores[part] = (large.sigmoid() * masks[part]).sum((1, 2)) / (masks[part].sum((1, 2)) + 1e-6)
        padded_height, padded_width = meta.get('batch_input_shape', meta['img_shape'])[:2]
        bboxes = bbox_cxcywh_to_xyxy(boxes[queries]) * boxes.new_tensor([padded_width, padded_height] * 2)
        if rescale:
            bboxes = bboxes / bboxes.new_tensor(meta['scale_factor']).repeat(2)
        bboxes[:, 0::2].clamp_(0, width)
        bboxes[:, 1::2].clamp_(0, height)
        return InstanceData(
            bboxes=bboxes, labels=index % num_things, scores=best * mask_scores[whose], masks=masks[whose]
        )

    def panoptic(
        self, logits: Tensor, mask_embed: Tensor, mask_features: Tensor, meta: Mapping, *, rescale: bool
    ) -> PixelData:
        """Each pixel belongs to the query whose score times mask is highest, if that query keeps enough of its mask.

        See :meth:`instances` for the arguments.
        """
        best, _ = class_scores(logits, self.num_classes).max(-1)
        weights, labels = segmentation_scores(logits, self.num_classes, self.test_cfg['temperature']).max(-1)
        keep = best > self.test_cfg['object_mask_thr']
        if logits.shape[-1] > self.num_classes:
            keep &= logits.argmax(-1) != self.num_classes
        weights, labels = weights[keep], labels[keep]
        height, width = meta['ori_shape'][:2] if rescale else meta['img_shape'][:2]
        label_map = torch.full((height, width), self.num_classes, dtype=torch.int32, device=logits.device)
        if len(labels):
            masks = mask_logits(mask_embed[keep], mask_features)
            winner, confident, areas = _assign_pixels(masks, weights, meta, rescale=rescale)
            assigned = torch.bincount(winner.flatten(), minlength=len(labels))
            visible = torch.bincount(winner[confident], minlength=len(labels))
            valid = (visible > 0) & (areas > 0) & (assigned >= self.test_cfg['iou_thr'] * areas)
            is_thing = labels < self.num_things_classes
            number = torch.where(is_thing, (valid & is_thing).cumsum(0), 0)
            segments = torch.where(valid, labels + number * INSTANCE_OFFSET, self.num_classes).int()
            label_map = torch.where(confident, segments[winner], label_map)
        return PixelData(sem_seg=label_map[None])

    def semantic_scores(
        self, logits: Tensor, mask_embed: Tensor, mask_features: Tensor, meta: Mapping, *, rescale: bool
    ) -> Tensor:
        """Scores ``(K, h, w)`` of every class: the sum over queries of class score times mask.

        See :meth:`instances` for the arguments.
        """
        weights = segmentation_scores(logits, self.num_classes, self.test_cfg['temperature'])
        total = 0
        for part, large in upsample_masks(mask_logits(mask_embed, mask_features), meta, rescale=rescale):
            total = total + torch.einsum('qk,qhw->khw', weights[part], large.sigmoid())
        return total


def upsample_masks(masks: Tensor, meta: Mapping, *, rescale: bool) -> Iterator[tuple[slice, Tensor]]:
    """Resize mask logits to the size of the image, a few at a time.

    Args:
        masks: ``(n, H / 4, W / 4)``, of the padded image.
        meta: ``batch_input_shape``, ``img_shape`` (without padding) and ``ori_shape`` of the image.
        rescale: To the size before resizing (``ori_shape``), else to ``img_shape``.

    Yields:
        A slice of the masks, and their logits ``(k, h, w)``: upsampled to the padded image, cropped, resized; both
        steps bilinear.
    """
    height, width = meta['img_shape'][:2]
    padded = tuple(meta.get('batch_input_shape', (height, width)))
    size = tuple(meta['ori_shape'][:2]) if rescale else (height, width)
    step = max(1, _MAX_VALUES // max(padded[0] * padded[1], size[0] * size[1]))
    for first in range(0, len(masks), step):
        part = slice(first, min(first + step, len(masks)))
        large = F.interpolate(masks[part, None], size=padded, mode='bilinear', align_corners=False)
        large = large[:, :, :height, :width]
        if size != (height, width):
            large = F.interpolate(large, size=size, mode='bilinear', align_corners=False)
        yield part, large[:, 0]


def _assign_pixels(masks: Tensor, weights: Tensor, meta: Mapping, *, rescale: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The mask with the highest weighted probability at each pixel.

    Returns:
        Its index ``(h, w)``; whether its probability is at least 0.5, ``(h, w)``; and the number of pixels at which
        each mask has a probability of at least 0.5, ``(n,)``.
    """
    highest = winner = probability = None
    areas = []
    for part, large in upsample_masks(masks, meta, rescale=rescale):
        probabilities = large.sigmoid()
        areas.append((probabilities >= 0.5).sum((1, 2)))
        value, index = (probabilities * weights[part, None, None]).max(0)
        chosen = probabilities.gather(0, index[None])[0]
        if highest is None:
            highest, winner, probability = value, index, chosen
        else:
            better = value > highest
            highest = torch.where(better, value, highest)
            winner = torch.where(better, index + part.start, winner)
            probability = torch.where(better, chosen, probability)
    return winner, probability >= 0.5, torch.cat(areas)
