"""DINO's head for mmdet: all layers matched at once, losses and predictions that do not wait for a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import DINOHead as MMDetDINOHead
from mmdet.models.layers import inverse_sigmoid
from mmdet.models.losses import QualityFocalLoss
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from mmitpn.models.dino.matching import BoxPredictions, BoxTargets, assign, box_costs
from mmitpn.registry import MODELS

_EPS = torch.finfo(torch.float32).eps  # mmdet adds it to the divisors of losses


@MODELS.register_module()
class DINOHead(MMDetDINOHead):
    """mmdet's ``DINOHead``: the same arguments, parameters, losses and predictions.

    The costs of all layers and images go to the host in one copy, the assignments come back in one, and each loss is
    computed once for all layers and for denoising and matched queries together. mmdet's head waits for the GPU several
    times for every layer and image.
    """

    def forward(self, hidden_states: Tensor, references: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Class logits ``(layers, B, Q, K)`` and boxes ``(layers, B, Q, 4)`` (cx, cy, w, h) of all layers.

        Args:
            hidden_states: Queries of every layer, ``(layers, B, Q, C)``.
            references: The boxes that each layer started from, ``(B, Q, 4)``.
        """
        layers = [self.forward_layer(i, state, references[i]) for i, state in enumerate(hidden_states)]
        logits, boxes = zip(*layers, strict=True)
        return torch.stack(logits), torch.stack(boxes)

    def forward_layer(self, layer: int, state: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits ``(B, Q, K)`` and boxes ``(B, Q, 4)`` of one layer; see :meth:`forward`."""
        boxes = (self.reg_branches[layer](state) + inverse_sigmoid(reference)).sigmoid()
        return self.cls_branches[layer](state), boxes

    # --- losses ---------------------------------------------------------------------------------------------------

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        enc_cls_scores: Tensor,
        enc_bbox_preds: Tensor,
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[Mapping[str, Any]],
        dn_meta: Mapping[str, int],
        batch_gt_instances_ignore: None = None,
    ) -> dict[str, Tensor]:
        """Losses from mmdet's ground truth; see :meth:`loss_by_assignment`.

        Raises:
            ValueError: If ``batch_gt_instances_ignore`` is given.
        """
        if batch_gt_instances_ignore is not None:
            raise ValueError('DINO does not use batch_gt_instances_ignore: leave it out')
        targets = BoxTargets.of(batch_gt_instances, batch_img_metas)
        predictions = self.with_encoder(
            all_layers_cls_scores, all_layers_bbox_preds, enc_cls_scores, enc_bbox_preds, dn_meta
        )
        assigned = assign(self.match_costs(predictions, targets, dn_meta), targets.valid)
        return self.loss_by_assignment(predictions, targets, assigned, dn_meta)

    @staticmethod
    def with_encoder(
        logits: Tensor, boxes: Tensor, enc_logits: Tensor, enc_boxes: Tensor, dn_meta: Mapping[str, int]
    ) -> BoxPredictions:
        """Predictions of all layers, with the encoder as the last one, whose denoising queries are not looked at.

        Args:
            logits: ``(layers, B, D + Q, K)``, denoising queries first.
            boxes: ``(layers, B, D + Q, 4)`` (cx, cy, w, h) in fractions of the image.
            enc_logits: Of the selected positions of the encoder, ``(B, Q, K)``.
            enc_boxes: Their boxes, ``(B, Q, 4)``.
            dn_meta: ``num_denoising_queries``, D, and ``num_denoising_groups``.
        """
        padding = (0, 0, dn_meta['num_denoising_queries'], 0)
        return BoxPredictions(
            torch.cat((logits, F.pad(enc_logits, padding)[None])), torch.cat((boxes, F.pad(enc_boxes, padding)[None]))
        )

    @torch.no_grad()
    def match_costs(self, predictions: BoxPredictions, targets: BoxTargets, dn_meta: Mapping[str, int]) -> Tensor:
        """Costs of matching, ``(layers + 1, B, Q, N)``, of the queries that are no denoising queries."""
        number = dn_meta['num_denoising_queries']
        matched = BoxPredictions(predictions.logits[:, :, number:], predictions.boxes[:, :, number:])
        return box_costs(self.assigner.match_costs, matched, targets)

    def loss_by_assignment(
        self, predictions: BoxPredictions, targets: BoxTargets, assigned: Tensor, dn_meta: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Losses of all layers.

        Args:
            predictions: Of :meth:`with_encoder`.
            targets: Objects of the batch.
            assigned: The query of each object, ``(layers + 1, B, N)``, of :func:`~mmitpn.models.dino.matching.assign`.
            dn_meta: ``num_denoising_queries`` and ``num_denoising_groups``.

        Returns:
            ``loss_cls``, ``loss_bbox`` and ``loss_iou`` of the last layer; with ``d0.`` and so on those of earlier
            layers, with ``enc_`` those of the encoder, with ``dn_`` and ``d0.dn_`` those of denoising queries.
        """
        logits, boxes = predictions
        layers, num_dn = len(logits) - 1, dn_meta['num_denoising_queries']
        groups = dn_meta['num_denoising_groups'] if num_dn else 0
        numbers = torch.stack((targets.valid.sum() * groups, (assigned[0] >= 0).sum())).float()
        factors = reduce_mean(numbers).clamp(min=1)
        cls_factors = factors if self.sync_cls_avg_factor else numbers.clamp(min=1)

        with_dn = assign_denoising_queries(targets, num_dn, groups).expand(layers + 1, -1, -1)
        assigned = torch.cat((with_dn, torch.where(assigned < 0, -1, assigned + num_dn)), 2)
        targets = targets.repeat(groups + 1)
        found = boxes.gather(2, assigned.clamp(min=0)[..., None].expand(-1, -1, -1, 4))
        valid = assigned >= 0
        bbox, iou = (one * valid for one in self._box_losses(found, targets))
        cls = self._class_losses(logits, found, assigned, targets)
        of_dn = groups * (assigned.shape[2] // (groups + 1))
        losses = {}
        dn_losses = {}
        for name, values, split, divisors in (
            ('loss_cls', cls, num_dn, cls_factors),
            ('loss_bbox', bbox, of_dn, factors),
            ('loss_iou', iou, of_dn, factors),
        ):
            dn_losses[name] = values[:layers, :, :split].flatten(1).sum(1) / (divisors[0] + _EPS)
            losses[name] = values[:, :, split:].flatten(1).sum(1) / (divisors[1] + _EPS)
        prefixes = [*(f'd{i}.' for i in range(layers - 1)), '']
        return {
            f'{prefix}{name}': value
            for one, names in ((losses, [*prefixes, 'enc_']), (dn_losses, [f'{prefix}dn_' for prefix in prefixes]))
            for name, values in one.items()
            for prefix, value in zip(names, values.unbind(), strict=True)
        }

    def _box_losses(self, boxes: Tensor, targets: BoxTargets) -> tuple[Tensor, Tensor]:
        """L1 and IoU loss of each predicted box ``(L, B, N, 4)``, both ``(L, B, N)``."""
        gt_boxes = targets.boxes.expand_as(boxes)
        sizes = targets.sizes[:, None]  # the IoU loss is defined in pixels
        corners, gt_corners = (bbox_cxcywh_to_xyxy(one) * sizes for one in (boxes, gt_boxes))
        bbox = self.loss_bbox(boxes, gt_boxes, reduction_override='none').sum(-1)
        iou = self.loss_iou(corners.flatten(0, 2), gt_corners.flatten(0, 2), reduction_override='none')
        return bbox, iou.view(bbox.shape)

    def _class_losses(self, logits: Tensor, boxes: Tensor, assigned: Tensor, targets: BoxTargets) -> Tensor:
        """Class loss of each query, ``(L, B, D + Q)``.

        Args:
            logits: ``(L, B, D + Q, K)``.
            boxes: Predicted boxes of the objects, ``(L, B, N, 4)``.
            assigned: The query of each object, ``(L, B, N)``.
            targets: The objects.
        """
        shape = logits.shape[:3]
        # Padding goes to one more query, which is left out.
        index = torch.where(assigned < 0, shape[2], assigned)
        labels = torch.full((*shape[:2], shape[2] + 1), self.num_classes, device=logits.device)
        labels = labels.scatter(2, index, targets.labels.expand_as(index))[..., :-1].flatten()
        target: Any = labels
        if isinstance(self.loss_cls, QualityFocalLoss):
            gt_boxes = bbox_cxcywh_to_xyxy(targets.boxes).expand_as(boxes)
            iou = bbox_overlaps(bbox_cxcywh_to_xyxy(boxes.detach()), gt_boxes, is_aligned=True)
            scores = logits.new_zeros(*shape[:2], shape[2] + 1).scatter(2, index, iou)
            target = labels, scores[..., :-1].flatten()
        losses = self.loss_cls(logits.flatten(0, 2), target, reduction_override='none')
        return losses.view(*shape, -1).sum(-1)

    # --- predictions ----------------------------------------------------------------------------------------------

    def select(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates with the highest scores; with a sigmoid, a query may be several of them.

        Args:
            logits: ``(B, Q, K)``, or ``(B, Q, K + 1)`` with a background class.
            boxes: ``(B, Q, 4)`` (cx, cy, w, h) in fractions of the image.

        Returns:
            Scores ``(B, M)``, highest first, labels ``(B, M)`` and boxes ``(B, M, 4)`` (x1, y1, x2, y2) in fractions of
            the image; M is ``max_per_img``, or the number of all candidates if there are fewer.
        """
        number = (self.test_cfg or {}).get('max_per_img', logits.shape[1])
        if self.loss_cls.use_sigmoid:
            candidates = logits.sigmoid().flatten(1)
            scores, index = candidates.topk(min(number, candidates.shape[1]))
            labels, index = index % self.num_classes, index // self.num_classes
        else:
            best, classes = logits.softmax(-1)[..., :-1].max(-1)
            scores, index = best.topk(min(number, best.shape[1]))
            labels = classes.gather(1, index)
        return scores, labels, bbox_cxcywh_to_xyxy(boxes.gather(1, index[..., None].expand(-1, -1, 4)))

    def predict_by_feat(
        self,
        layer_cls_scores: Tensor,
        layer_bbox_preds: Tensor,
        batch_img_metas: Sequence[Mapping[str, Any]],
        rescale: bool = True,
    ) -> list[InstanceData]:
        """Detections of a batch.

        Args:
            layer_cls_scores: ``(layers, B, Q, K)``; the last layer counts.
            layer_bbox_preds: ``(layers, B, Q, 4)`` (cx, cy, w, h) in fractions of the image.
            batch_img_metas: ``img_shape`` and ``scale_factor`` of each image.
            rescale: Boxes in pixels of the image before resizing.

        Returns:
            For each image scores ``(M,)``, labels ``(M,)``, bboxes ``(M, 4)`` (x1, y1, x2, y2) in pixels.
        """
        results = []
        selected = self.select(layer_cls_scores[-1], layer_bbox_preds[-1])
        for scores, labels, boxes, meta in zip(*selected, batch_img_metas, strict=True):
            x, y = boxes[:, 0::2], boxes[:, 1::2]
            height, width = meta['img_shape'][:2]
            x, y = (x * width).clamp(0, width), (y * height).clamp(0, height)
            if rescale:
                scale_x, scale_y = map(float, meta['scale_factor'])
                x, y = x / scale_x, y / scale_y
            bboxes = torch.stack((x, y), -1).flatten(1)
            results.append(InstanceData(bboxes=bboxes, scores=scores, labels=labels))
        return results


def assign_denoising_queries(targets: BoxTargets, num_dn_queries: int, num_groups: int) -> Tensor:
    """The denoising query of each object in each group, ``(B, groups * N)``; -1 on padding.

    The first half of a group are copies of the objects; the other half, the negative ones, have no object.

    Args:
        targets: The objects.
        num_dn_queries: Number of denoising queries.
        num_groups: Number of their groups.
    """
    device = targets.labels.device
    if not num_groups:
        return torch.empty(len(targets.labels), 0, dtype=torch.long, device=device)
    starts = torch.arange(num_groups, device=device)[:, None] * (num_dn_queries // num_groups)
    index = starts + torch.arange(targets.labels.shape[1], device=device)
    return torch.where(targets.valid[:, None], index, -1).flatten(1)
