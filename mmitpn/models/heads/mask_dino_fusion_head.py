"""From MaskDINO's queries to instances, panoptic segments and a label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.model import BaseModule
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmitpn.models.mask_dino.predictor import Prediction
from mmitpn.models.mask_dino.upsampling import upsampled
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


@MODELS.register_module()
class MaskDINOFusionHead(BaseModule):
    """What the queries of a picture mean, for each of the three tasks (arXiv 2206.02777; IDEA-Research/MaskDINO).

    Masks are made at full size a few at a time, and only those that are needed.

    Args:
        num_things_classes: Classes of things.
        num_stuff_classes: Classes of stuff.
        test_cfg: ``instance_on``, ``panoptic_on``, ``semantic_on``: what is made. ``max_per_image``: instances a
            picture. ``object_mask_thr``: score from which a query is a panoptic segment; ``iou_thr``: share of its mask
            that must be left to it. ``temperature``: of the softmax over sigmoid scores that segments and label maps
            are weighed with; None: the scores themselves.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If ``test_cfg`` has an unknown setting, or nothing is to be made.
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
        self, prediction: Prediction, batch_data_samples: Sequence[Any], *, rescale: bool = True
    ) -> list[dict[str, Any]]:
        """Results of a batch.

        Args:
            prediction: What the last layer says.
            batch_data_samples: One sample a picture.
            rescale: In pixels of the picture before resizing.

        Returns:
            One dict a picture: ``ins_results`` (``InstanceData``: bboxes, labels, scores, masks), ``pan_results``
            (``PixelData``: ``sem_seg`` ``(1, h, w)``, class + 1000 * number of the thing), ``sem_results``
            (``PixelData``: ``sem_seg`` ``(1, h, w)``), as far as they are switched on.
        """
        results = []
        for i, sample in enumerate(batch_data_samples):
            meta = sample.metainfo
            logits, boxes = prediction.logits[i].float(), prediction.boxes[i].float()
            kernels, features = prediction.kernels[i], prediction.features[i]
            found: dict[str, Any] = {}
            if self.test_cfg['panoptic_on']:
                found['pan_results'] = self.panoptic(logits, kernels, features, meta, rescale=rescale)
            if self.test_cfg['instance_on']:
                found['ins_results'] = self.instances(logits, boxes, kernels, features, meta, rescale=rescale)
            if self.test_cfg['semantic_on']:
                scores = self.semantic_scores(logits, kernels, features, meta, rescale=rescale)
                found['sem_results'] = PixelData(sem_seg=scores.argmax(0, keepdim=True))
            results.append(found)
        return results

    def scores(self, logits: Tensor) -> Tensor:
        """Scores ``(Q, K)`` of class logits ``(Q, K)``, or of ``(Q, K + 1)`` with a class for nothing."""
        return logits.sigmoid() if logits.shape[-1] == self.num_classes else logits.softmax(-1)[:, :-1]

    def weights(self, logits: Tensor) -> Tensor:
        """What classes weigh where masks compete: a sharp softmax of sigmoid scores, or the softmax scores."""
        scores, temperature = self.scores(logits), self.test_cfg['temperature']
        return (
            scores if temperature is None or logits.shape[-1] > self.num_classes else (scores / temperature).softmax(-1)
        )

    def instances(
        self, logits: Tensor, boxes: Tensor, kernels: Tensor, features: Tensor, meta: Mapping, *, rescale: bool
    ) -> InstanceData:
        """The best things; a query may be several. The score is that of the class times the mean of the mask inside.

        Args:
            logits: ``(Q, K)`` or ``(Q, K + 1)``.
            boxes: ``(Q, 4)`` (cx, cy, w, h) in fractions of the padded picture.
            kernels: ``(Q, C)``.
            features: ``(C, H / 4, W / 4)``.
            meta: See :func:`upsampled`; and ``scale_factor``.
            rescale: See :meth:`predict`.
        """
        scores = self.scores(logits)[:, : self.num_things_classes]
        number = min(self.test_cfg['max_per_image'], scores.numel())
        best, places = scores.flatten().topk(number)
        queries = places // max(scores.shape[1], 1)
        chosen, whose = queries.unique(return_inverse=True)
        height, width = meta['ori_shape'][:2] if rescale else meta['img_shape'][:2]
        masks = torch.zeros(len(chosen), height, width, dtype=torch.bool, device=logits.device)
        inside = scores.new_zeros(len(chosen))
        for some, large in upsampled(_masks(kernels[chosen], features), meta, rescale=rescale):
            masks[some] = large > 0
            inside[some] = (large.sigmoid() * masks[some]).sum((1, 2)) / (masks[some].sum((1, 2)) + 1e-6)
        padded_height, padded_width = meta.get('batch_input_shape', meta['img_shape'])[:2]
        found = bbox_cxcywh_to_xyxy(boxes[queries]) * boxes.new_tensor([padded_width, padded_height] * 2)
        if rescale:
            found = found / found.new_tensor(meta['scale_factor']).repeat(2)
        found[:, 0::2].clamp_(0, width)
        found[:, 1::2].clamp_(0, height)
        return InstanceData(
            bboxes=found, labels=places % max(scores.shape[1], 1), scores=best * inside[whose], masks=masks[whose]
        )

    def panoptic(self, logits: Tensor, kernels: Tensor, features: Tensor, meta: Mapping, *, rescale: bool) -> PixelData:
        """One label a pixel: that of the query whose weight times mask is largest, if enough of its mask is left to it.

        See :meth:`instances` for the arguments.
        """
        best, _ = self.scores(logits).max(-1)
        weights, labels = self.weights(logits).max(-1)
        keep = best > self.test_cfg['object_mask_thr']
        if logits.shape[-1] > self.num_classes:
            keep &= logits.argmax(-1) != self.num_classes
        weights, labels = weights[keep], labels[keep]
        height, width = meta['ori_shape'][:2] if rescale else meta['img_shape'][:2]
        label_map = torch.full((height, width), self.num_classes, dtype=torch.int32, device=logits.device)
        if len(labels):
            winner, sure, areas = _compete(_masks(kernels[keep], features), weights, meta, rescale=rescale)
            won = torch.bincount(winner.flatten(), minlength=len(labels))
            left = torch.bincount(winner[sure], minlength=len(labels))
            valid = (left > 0) & (areas > 0) & (won >= self.test_cfg['iou_thr'] * areas)
            is_thing = labels < self.num_things_classes
            number = torch.where(is_thing, (valid & is_thing).cumsum(0), 0)
            segments = torch.where(valid, labels + number * INSTANCE_OFFSET, self.num_classes).int()
            label_map = torch.where(sure, segments[winner], label_map)
        return PixelData(sem_seg=label_map[None])

    def semantic_scores(
        self, logits: Tensor, kernels: Tensor, features: Tensor, meta: Mapping, *, rescale: bool
    ) -> Tensor:
        """Scores ``(K, h, w)`` of every class: the sum over queries of weight times mask.

        See :meth:`instances` for the arguments.
        """
        weights, total = self.weights(logits), 0
        for some, large in upsampled(_masks(kernels, features), meta, rescale=rescale):
            total = total + torch.einsum('qk,qhw->khw', weights[some], large.sigmoid())
        return total


def _masks(kernels: Tensor, features: Tensor) -> Tensor:
    return torch.einsum('qc,chw->qhw', kernels.float(), features.float())


def _compete(masks: Tensor, weights: Tensor, meta: Mapping, *, rescale: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Which mask has each pixel, whether that mask is sure of it (0.5), and the area each mask is sure of."""
    top = winner = mask_there = None
    areas = []
    for some, large in upsampled(masks, meta, rescale=rescale):
        inside = large.sigmoid()
        areas.append((inside >= 0.5).sum((1, 2)))
        value, place = (inside * weights[some, None, None]).max(0)
        here = inside.gather(0, place[None])[0]
        if top is None:
            top, winner, mask_there = value, place, here
        else:
            better = value > top
            top = torch.where(better, value, top)
            winner = torch.where(better, place + some.start, winner)
            mask_there = torch.where(better, here, mask_there)
    return winner, mask_there >= 0.5, torch.cat(areas)
