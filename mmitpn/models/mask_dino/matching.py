"""Costs of matching queries with objects in MaskDINO: of classes, boxes and masks, for all layers and images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import point_sample
from mmdet.models.task_modules.assigners import BBoxL1Cost, CrossEntropyLossCost, DiceCost, IoUCost
from torch import Tensor

from mmitpn.models.dino.matching import BOX_COSTS, BoxPredictions, call_per_image
from mmitpn.models.mask_dino_postprocess import LayerOutputs

from .targets import MaskDINOTargets, sample_masks


def _cross_entropy_cost(cost: CrossEntropyLossCost, masks: Tensor, gt: Tensor) -> Tensor:
    # softplus(-x) is the loss where the mask is, and x less than the loss elsewhere, softplus(x).
    return (F.softplus(masks).sum(-1, keepdim=True) - masks @ gt.mT) / masks.shape[-1] * cost.weight


def _dice_cost(cost: DiceCost, masks: Tensor, gt: Tensor) -> Tensor:
    masks = masks.sigmoid() if cost.pred_act else masks
    power = 1 if cost.naive_dice else 2
    areas = masks.pow(power).sum(-1)[..., None] + gt.pow(power).sum(-1)[..., None, :]
    return (1 - (2 * masks @ gt.mT + cost.eps) / (areas + cost.eps)) * cost.weight


# mmdet's costs by their exact class, as BOX_COSTS: of mask logits ``(..., Q, P)`` and masks ``(..., N, P)`` at points.
MASK_COSTS: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    CrossEntropyLossCost: _cross_entropy_cost,
    DiceCost: _dice_cost,
}


class MatchingCosts:
    """Costs of assigning a query to an object: the weighted sum of costs of class, mask and box.

    Args:
        costs: mmdet's match costs. Classes other than those of ``BOX_COSTS`` and ``MASK_COSTS`` are called for each
            image and layer with ``scores``, ``bboxes`` in pixels, and ``masks`` at points, and may wait for a GPU each
            time.
        num_points: Points per image at which masks are compared.
        stuff_box_cost: Whether the costs of boxes (``BBoxL1Cost``, ``IoUCost`` and classes derived from them) count
            for targets without a box to learn, as in the released code.
    """

    def __init__(self, costs: Sequence[Any], num_points: int, *, stuff_box_cost: bool) -> None:
        self.costs = costs
        self.num_points = num_points
        self.stuff_box_cost = stuff_box_cost

    @torch.no_grad()
    def __call__(self, outputs: LayerOutputs, targets: MaskDINOTargets) -> Tensor:
        """Costs of all layers and images.

        Args:
            outputs: Predictions of L layers.
            targets: Targets of the batch.

        Returns:
            ``(L, B, Q, N)``, for :func:`~mmitpn.models.dino.matching.assign`; values on padding have no meaning.
        """
        if targets.objects.empty:
            return outputs.logits.new_zeros(*outputs.logits.shape[:3], 1)
        total = torch.zeros((), device=outputs.logits.device)
        others = []
        for cost in self.costs:
            if type(cost) in BOX_COSTS and not getattr(cost, 'binary_input', False):
                value = BOX_COSTS[type(cost)](cost, BoxPredictions(outputs.logits, outputs.boxes), targets.objects)
                total = total + self._without_stuff(cost, value, targets)
            else:
                others.append(cost)
        if not others:
            return total
        points = self.draw_points(*outputs.logits.shape[:2], outputs.logits.device)
        of_layers = []
        for layer, layer_points in enumerate(points):
            # Sampling is linear: the features are sampled once, and no full mask is computed.
            masks = outputs.mask_embed[layer] @ point_sample(outputs.mask_features, layer_points)
            gt_masks = sample_objects(targets, layer_points)
            of_layers.append(
                sum(self._mask_cost(cost, outputs.layer(layer), masks, gt_masks, targets) for cost in others)
            )
        return total + torch.stack(of_layers)

    def _mask_cost(
        self, cost: Any, outputs: LayerOutputs, masks: Tensor, gt_masks: Tensor, targets: MaskDINOTargets
    ) -> Tensor:
        """A cost of one layer ``(B, Q, N)`` that is computed from masks, or that is not known here."""
        if type(cost) in MASK_COSTS:
            return MASK_COSTS[type(cost)](cost, masks, gt_masks)
        predictions = BoxPredictions(outputs.logits[None], outputs.boxes[None])
        value = call_per_image(cost, predictions, targets.objects, (masks[None], gt_masks[None]))[0]
        return self._without_stuff(cost, value, targets)

    def _without_stuff(self, cost: Any, value: Tensor, targets: MaskDINOTargets) -> Tensor:
        """The costs ``(..., B, Q, N)``, 0 for boxes of stuff unless they count."""
        if self.stuff_box_cost or not isinstance(cost, (BBoxL1Cost, IoUCost)):
            return value
        return value * targets.has_box[:, None]

    def draw_points(self, num_layers: int, batch_size: int, device: torch.device) -> Tensor:
        """Points at which masks are compared, other ones for each layer and image: ``(L, B, P, 2)``, x and y."""
        points = torch.rand(num_layers * batch_size, self.num_points, 2, device=device)
        return points.unflatten(0, (num_layers, batch_size))


def sample_objects(targets: MaskDINOTargets, points: Tensor) -> Tensor:
    """Masks of the objects at points ``(B, P, 2)`` of each image: ``(B, N, P)``, 0 on padding."""
    batch, number = targets.objects.valid.shape
    index = torch.arange(len(targets.masks), device=points.device)
    slots = (~targets.objects.valid).flatten().byte().argsort(stable=True)[: len(index)]  # of the objects in B * N
    samples = sample_masks(targets.masks, index, points[slots // number])
    padded = samples.new_zeros(batch * number, samples.shape[1]).index_copy(0, slots, samples)
    return padded.unflatten(0, (batch, number))
