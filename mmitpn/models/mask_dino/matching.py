"""Which query is which object: the cheapest assignment by class, mask and box."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.ops import point_sample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .objects import Objects
from .predictor import Prediction

# Masks of objects that are held in floating point at once.
_CHUNK = 16


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Values of masks at points, a few masks at a time.

    Args:
        masks: ``(n, H, W)``, bool.
        points: ``(n or 1, P, 2)``, x and y from 0 to 1.

    Returns:
        ``(n, P)``, 0 to 1: bilinear.
    """
    points = points.expand(len(masks), -1, -1)
    parts = [
        point_sample(some[:, None].float(), where).squeeze(1)
        for some, where in zip(masks.split(_CHUNK), points.split(_CHUNK), strict=True)
    ]
    return torch.cat(parts) if parts else points.new_zeros(0, points.shape[1])


class Matcher:
    """Assigns every object one query.

    Args:
        costs: mmdet's match costs; they are given ``scores``, ``bboxes`` in pixels, and ``masks`` at points.
        num_points: Points a picture that masks are compared at.
        box_cost_of_stuff: Whether the boxes of what has none to learn (stuff) count, as in the published code.
    """

    def __init__(self, costs: Sequence, num_points: int, *, box_cost_of_stuff: bool) -> None:
        self.costs = costs
        self.num_points = num_points
        self.box_cost_of_stuff = box_cost_of_stuff

    @torch.no_grad()
    def __call__(self, prediction: Prediction, batch: Sequence[Objects]) -> list[tuple[Tensor, Tensor]]:
        """For each picture the queries that are assigned, ascending, and the object of each."""
        return [self._match(prediction, i, objects) for i, objects in enumerate(batch)]

    def _match(self, prediction: Prediction, index: int, objects: Objects) -> tuple[Tensor, Tensor]:
        device = prediction.logits.device
        if not len(objects):
            none = torch.zeros(0, dtype=torch.long, device=device)
            return none, none
        points = torch.rand(1, self.num_points, 2, device=device)
        # Sampling is linear: it is the map that is sampled, once, and no mask is made.
        sampled = point_sample(prediction.features[index : index + 1], points)[0]
        height, width = objects.masks.shape[-2:]
        scale = points.new_tensor([width, height, width, height])
        found = InstanceData(
            scores=prediction.logits[index],
            bboxes=bbox_cxcywh_to_xyxy(prediction.boxes[index]) * scale,
            masks=prediction.kernels[index] @ sampled,
        )
        truth = InstanceData(
            labels=objects.labels,
            bboxes=bbox_cxcywh_to_xyxy(objects.boxes) * scale,
            masks=sample_masks(objects.masks, points),
        )
        total = 0
        for cost in self.costs:
            value = cost(pred_instances=found, gt_instances=truth, img_meta={'img_shape': (height, width)})
            if type(cost).__name__ in ('BBoxL1Cost', 'IoUCost') and not self.box_cost_of_stuff:
                value = value * objects.boxed
            total = total + value
        # A broken prediction is to show in the loss, not to stop here.
        total = torch.nan_to_num(total, nan=1e6, posinf=1e6, neginf=-1e6)
        queries, chosen = linear_sum_assignment(total.cpu())
        return torch.as_tensor(queries, device=device), torch.as_tensor(chosen, device=device)
