"""One-to-one matching of queries and objects, of all layers and images with one wait for the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.task_modules.assigners import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh, get_box_tensor
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmitpn.utils import copy_to_device


class BoxTargets(NamedTuple):
    """Objects of a batch, padded to the same number N for each image: the largest, or 1 where there are none.

    Attributes:
        labels: ``(B, N)``, 0 on padding.
        boxes: ``(B, N, 4)`` (cx, cy, w, h) in fractions of the image, 0 on padding.
        valid: Which are objects and no padding, ``(B, N)`` bool.
        sizes: ``(B, 4)`` width, height, width, height of what the boxes are fractions of, in pixels.
        empty: Whether the batch has no object.
    """

    labels: Tensor
    boxes: Tensor
    valid: Tensor
    sizes: Tensor
    empty: bool

    @classmethod
    def pad(cls, labels: Sequence[Tensor], boxes: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> BoxTargets:
        """Targets from those of each image.

        Args:
            labels: ``(n_i,)``.
            boxes: ``(n_i, 4)`` (x1, y1, x2, y2) in pixels.
            shapes: Height and width of each image, in pixels.
        """
        sizes = copy_to_device([[width, height] * 2 for height, width in shapes], boxes[0].device).to(boxes[0].dtype)
        normalized = bbox_xyxy_to_cxcywh(pad_objects(boxes) / sizes[:, None])
        valid = pad_objects([torch.ones_like(one, dtype=torch.bool) for one in labels])
        return cls(pad_objects(labels), normalized, valid, sizes, not any(map(len, labels)))

    @classmethod
    def of(cls, instances: Sequence[InstanceData], metas: Sequence[Mapping[str, Any]]) -> BoxTargets:
        """Targets from mmdet's ``gt_instances`` and metainfo of each image; boxes are fractions of ``img_shape``."""
        boxes = [get_box_tensor(one.bboxes) for one in instances]
        return cls.pad([one.labels for one in instances], boxes, [meta['img_shape'][:2] for meta in metas])

    def repeat(self, times: int) -> BoxTargets:
        """All objects several times, ``(B, times * N)``."""
        return self._replace(
            labels=self.labels.repeat(1, times),
            boxes=self.boxes.repeat(1, times, 1),
            valid=self.valid.repeat(1, times),
        )


def pad_objects(values: Sequence[Tensor]) -> Tensor:
    """Values ``(n_i, ...)`` of the objects of each image to ``(B, N, ...)``, with zeros; N is at least 1."""
    number = max(1, *map(len, values))
    trailing = (0, 0) * (values[0].dim() - 1)
    return torch.stack([F.pad(one, (*trailing, 0, number - len(one))) for one in values])


# Costs


class BoxPredictions(NamedTuple):
    """What costs compare with targets.

    Attributes:
        logits: ``(..., B, Q, K)``.
        boxes: ``(..., B, Q, 4)`` (cx, cy, w, h) in fractions of the image.
    """

    logits: Tensor
    boxes: Tensor


Cost = Callable[[Any, BoxPredictions, BoxTargets], Tensor]


def _of_labels(scores: Tensor, targets: BoxTargets) -> Tensor:
    """Scores ``(..., B, Q, K)`` of the class of each object, ``(..., B, Q, N)``."""
    index = targets.labels[:, None].expand(*scores.shape[:-1], -1)
    return scores.gather(-1, index)


def _focal_cost(cost: FocalLossCost, predictions: BoxPredictions, targets: BoxTargets) -> Tensor:
    probability = _of_labels(predictions.logits, targets).sigmoid()
    negative = -(1 - probability + cost.eps).log() * (1 - cost.alpha) * probability.pow(cost.gamma)
    positive = -(probability + cost.eps).log() * cost.alpha * (1 - probability).pow(cost.gamma)
    return (positive - negative) * cost.weight


def _classification_cost(cost: ClassificationCost, predictions: BoxPredictions, targets: BoxTargets) -> Tensor:
    return -_of_labels(predictions.logits.softmax(-1), targets) * cost.weight


def _l1_cost(cost: BBoxL1Cost, predictions: BoxPredictions, targets: BoxTargets) -> Tensor:
    boxes, gt_boxes = predictions.boxes, targets.boxes
    if cost.box_format == 'xyxy':
        boxes, gt_boxes = bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(gt_boxes)
    return torch.cdist(boxes, gt_boxes.expand(*boxes.shape[:-2], -1, -1), p=1) * cost.weight


def _iou_cost(cost: IoUCost, predictions: BoxPredictions, targets: BoxTargets) -> Tensor:
    sizes = targets.sizes[:, None]
    boxes = bbox_cxcywh_to_xyxy(predictions.boxes) * sizes
    gt_boxes = bbox_cxcywh_to_xyxy(targets.boxes) * sizes
    return -pairwise_iou(boxes, gt_boxes, generalized=cost.iou_mode == 'giou') * cost.weight


def pairwise_iou(boxes: Tensor, others: Tensor, *, generalized: bool, eps: float = 1e-6) -> Tensor:
    """IoU or generalized IoU of each pair, as mmdet's ``bbox_overlaps``, which copies a number to the device.

    Args:
        boxes: ``(..., Q, 4)`` (x1, y1, x2, y2).
        others: ``(..., N, 4)``.
        generalized: Generalized IoU (arXiv 1902.09630).
        eps: Smallest divisor.

    Returns:
        ``(..., Q, N)``.
    """
    boxes, others = boxes[..., :, None, :], others[..., None, :, :]
    areas = [(one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1]) for one in (boxes, others)]
    inner = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    overlap = inner.clamp(min=0).prod(-1)
    union = (areas[0] + areas[1] - overlap).clamp(min=eps)
    iou = overlap / union
    if not generalized:
        return iou
    outer = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    enclosing = outer.clamp(min=0).prod(-1).clamp(min=eps)
    return iou - (enclosing - union) / enclosing


# mmdet's costs by their exact class, since a class derived from one may compute something else.
BOX_COSTS: dict[type, Cost] = {
    FocalLossCost: _focal_cost,
    ClassificationCost: _classification_cost,
    BBoxL1Cost: _l1_cost,
    IoUCost: _iou_cost,
}


def box_costs(costs: Sequence[Any], predictions: BoxPredictions, targets: BoxTargets) -> Tensor:
    """The weighted sum of match costs, ``(L, B, Q, N)``; values on padding have no meaning.

    Args:
        costs: mmdet's match costs. Other classes, and a focal cost of masks, are called for each image and layer, and
            may wait for a GPU each time.
        predictions: ``(L, B, Q, ...)``.
        targets: Targets of the batch.
    """
    total = predictions.boxes.new_zeros(())
    for cost in costs:
        batched = BOX_COSTS.get(type(cost))
        if batched is None or getattr(cost, 'binary_input', False):
            batched = call_per_image
        total = total + batched(cost, predictions, targets)
    return total


def call_per_image(
    cost: Any, predictions: BoxPredictions, targets: BoxTargets, masks: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Call a match cost as mmdet does, image by image, with boxes (x1, y1, x2, y2) in pixels: ``(L, B, Q, N)``.

    ``masks``: mask logits ``(L, B, Q, P)`` and masks of the objects ``(L, B, N, P)`` at points, for costs of masks.
    """
    boxes, gt_boxes = (bbox_cxcywh_to_xyxy(one) * targets.sizes[:, None] for one in (predictions.boxes, targets.boxes))
    values = boxes.new_zeros(*boxes.shape[:-1], targets.labels.shape[1])
    counts = targets.valid.sum(1).tolist()
    for image, (count, (width, height, *_)) in enumerate(zip(counts, targets.sizes.int().tolist(), strict=True)):
        ground_truth = InstanceData(labels=targets.labels[image, :count], bboxes=gt_boxes[image, :count])
        for layer in range(len(boxes) if count else 0):
            found = InstanceData(scores=predictions.logits[layer, image], bboxes=boxes[layer, image])
            if masks is not None:
                found.masks, ground_truth.masks = masks[0][layer, image], masks[1][layer, image, :count]
            values[layer, image, :, :count] = cost(
                pred_instances=found, gt_instances=ground_truth, img_meta={'img_shape': (height, width)}
            )
    return values


# Assignment


@torch.compiler.disable  # the one break of a compiled training step
def assign(costs: Tensor, valid: Tensor) -> Tensor:
    """The assignment of least cost of one query to each object, of each layer and image.

    The costs are copied to the host once, and the queries back once.

    Args:
        costs: ``(L, B, Q, N)``. NaN and infinite ones must show in the loss, not raise here.
        valid: Which are objects and no padding, ``(B, N)``; padding comes last.

    Returns:
        The query of each object, ``(L, B, N)`` int64; -1 on padding, and for objects that are left over where there are
        more of them than queries.
    """
    costs = torch.nan_to_num(costs.detach(), nan=1e6, posinf=1e6, neginf=-1e6)
    host = costs.masked_fill(~valid[:, None], float('nan')).cpu().numpy()  # padding is seen there by its costs
    counts = (~np.isnan(host[0, :, 0])).sum(-1)
    assigned = torch.full((host.shape[0], host.shape[1], host.shape[3]), -1)
    for layer, images in enumerate(host):
        for image, (count, matrix) in enumerate(zip(counts, images, strict=True)):
            queries, objects = linear_sum_assignment(matrix[:, :count])
            assigned[layer, image, objects] = torch.from_numpy(queries)
    return copy_to_device(assigned, costs.device)
