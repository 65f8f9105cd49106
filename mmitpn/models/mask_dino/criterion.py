"""MaskDINO's criterion: targets from ground truth, matching, and the losses of all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.ops import point_sample
from mmdet.models.task_modules.assigners import BBoxL1Cost, IoUCost
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh, get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from mmitpn.registry import MODELS, TASK_UTILS

from ..layers import maybe_checkpoint
from .query_init import DenoisingQueries, masks_to_boxes
from .transformer_decoder import DecoderOutputs, LayerOutputs, mask_logits

# Masks of an image whose loss is computed at once. With more masks, the backward pass computes each chunk again.
_LOSS_CHUNK = 32
# Ground-truth masks that are converted to floating point at once.
_SAMPLE_CHUNK = 16

# For each image: indices of queries, and the index of the object assigned to each.
Matches = list[tuple[Tensor, Tensor]]


# Targets


@dataclass(frozen=True)
class MaskDINOTargets:
    """Ground truth of one image: one mask, box and label for every object and every region of stuff.

    Attributes:
        labels: ``(n,)``.
        boxes: ``(n, 4)`` (cx, cy, w, h) in fractions of the padded image.
        masks: ``(n, H, W)`` of the padded image, bool.
        has_box: Whether the box is learned, ``(n,)`` bool: not for stuff.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor
    has_box: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def targets_from_instances(
    instances: Any, semantic: Any, *, num_things: int, num_stuff: int, size: Sequence[int]
) -> MaskDINOTargets:
    """Targets from mmdet's ground truth.

    Args:
        instances: ``gt_instances`` with ``labels``, ``bboxes`` (x1, y1, x2, y2) in pixels, and ``masks``
            (``BitmapMasks``, ``PolygonMasks`` or a tensor).
        semantic: ``gt_sem_seg`` with the labels of stuff, or None.
        num_things: Number of thing classes; lower labels are things.
        num_stuff: Number of stuff classes, which follow the things; other labels of ``semantic`` are left out.
        size: Height and width of the padded image.

    Returns:
        Things, then stuff.

    Raises:
        ValueError: If there are no masks to learn from.
    """
    labels, device = instances.labels, instances.labels.device
    if 'masks' not in instances:
        raise ValueError(
            'gt_instances have no masks: MaskDINO learns from them; set with_mask=True in LoadAnnotations (LoadPanoptic'
            'Annotations for panoptic data)'
        )
    boxes = _normalize_boxes(get_box_tensor(instances.bboxes).to(device).float().view(-1, 4), size)
    masks = pad_masks(instances.masks, size, device)
    has_box = torch.ones(len(labels), dtype=torch.bool, device=device)
    if num_stuff and semantic is not None:
        label_map = semantic.sem_seg.squeeze(0)
        stuff = targets_from_label_map(label_map, range(num_things, num_things + num_stuff), size)
        labels, boxes = torch.cat((labels, stuff.labels)), torch.cat((boxes, stuff.boxes))
        masks, has_box = torch.cat((masks, stuff.masks)), torch.cat((has_box, torch.zeros_like(stuff.has_box)))
    return MaskDINOTargets(labels, boxes, masks, has_box)


def targets_from_label_map(label_map: Tensor, classes: range, size: Sequence[int]) -> MaskDINOTargets:
    """One target for every class in a label map: the region of the class and the box around it.

    Args:
        label_map: ``(h, w)``.
        classes: Labels to use; others are left out.
        size: Height and width of the padded image.
    """
    labels = label_map.unique()
    labels = labels[(labels >= classes.start) & (labels < classes.stop)]
    masks = pad_masks(label_map == labels[:, None, None], size, label_map.device)
    boxes = masks_to_boxes(masks)[0].float()
    boxes[:, 2:] += 1  # include the last pixel
    has_box = torch.ones(len(labels), dtype=torch.bool, device=label_map.device)
    return MaskDINOTargets(labels.long(), _normalize_boxes(boxes, size), masks, has_box)


def _normalize_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes (x1, y1, x2, y2) in pixels to (cx, cy, w, h) in fractions of the padded image."""
    height, width = size
    return bbox_xyxy_to_cxcywh(boxes) / boxes.new_tensor([width, height, width, height])


def pad_masks(masks: Any, size: Sequence[int], device: torch.device) -> Tensor:
    """Masks of an image padded with False to ``size``, ``(n, H, W)`` bool."""
    if not isinstance(masks, Tensor):
        masks = masks.to_tensor(dtype=torch.bool, device='cpu')
    masks = masks.to(device=device, dtype=torch.bool)
    height, width = size
    if tuple(masks.shape[-2:]) == (height, width):
        return masks
    padded = masks.new_zeros(len(masks), height, width)
    padded[:, : masks.shape[-2], : masks.shape[-1]] = masks
    return padded


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Sample masks at points, a few masks at a time.

    Args:
        masks: ``(n, H, W)``, bool.
        points: ``(n or 1, P, 2)``, x and y from 0 to 1.

    Returns:
        ``(n, P)``, 0 to 1: bilinear.
    """
    points = points.expand(len(masks), -1, -1)
    samples = [
        point_sample(chunk[:, None].float(), where).squeeze(1)
        for chunk, where in zip(masks.split(_SAMPLE_CHUNK), points.split(_SAMPLE_CHUNK), strict=True)
    ]
    return torch.cat(samples) if samples else points.new_zeros(0, points.shape[1])


# Matching


class HungarianMatcher:
    """Assigns one query to every object: the assignment of least cost by class, mask and box.

    Args:
        costs: mmdet's match costs; they receive ``scores``, ``bboxes`` in pixels, and ``masks`` at points.
        num_points: Points per image at which masks are compared.
        stuff_box_cost: Whether the costs of boxes (``BBoxL1Cost``, ``IoUCost`` and classes derived from them) count
            for targets without a box to learn, as in the released code.
    """

    def __init__(self, costs: Sequence, num_points: int, *, stuff_box_cost: bool) -> None:
        self.costs = costs
        self.num_points = num_points
        self.stuff_box_cost = stuff_box_cost

    @torch.no_grad()
    def __call__(self, outputs: LayerOutputs, targets: Sequence[MaskDINOTargets]) -> Matches:
        """Match each image.

        Returns:
            For each image the assigned queries, ascending, and the object of each.
        """
        return [self._match(outputs, i, target) for i, target in enumerate(targets)]

    def _match(self, outputs: LayerOutputs, index: int, target: MaskDINOTargets) -> tuple[Tensor, Tensor]:
        device = outputs.logits.device
        if not len(target):
            none = torch.zeros(0, dtype=torch.long, device=device)
            return none, none
        points = torch.rand(1, self.num_points, 2, device=device)
        # Sampling is linear: the features are sampled once, and no full mask is computed.
        sampled = point_sample(outputs.mask_features[index : index + 1], points)[0]
        height, width = target.masks.shape[-2:]
        scale = points.new_tensor([width, height, width, height])
        predictions = InstanceData(
            scores=outputs.logits[index],
            bboxes=bbox_cxcywh_to_xyxy(outputs.boxes[index]) * scale,
            masks=outputs.mask_embed[index] @ sampled,
        )
        ground_truth = InstanceData(
            labels=target.labels,
            bboxes=bbox_cxcywh_to_xyxy(target.boxes) * scale,
            masks=sample_masks(target.masks, points),
        )
        total = 0
        for cost in self.costs:
            value = cost(pred_instances=predictions, gt_instances=ground_truth, img_meta={'img_shape': (height, width)})
            if isinstance(cost, (BBoxL1Cost, IoUCost)) and not self.stuff_box_cost:
                value = value * target.has_box
            total = total + value
        # NaN or infinite predictions must show in the loss, not raise here.
        total = torch.nan_to_num(total, nan=1e6, posinf=1e6, neginf=-1e6)
        queries, objects = linear_sum_assignment(total.cpu())
        return torch.as_tensor(queries, device=device), torch.as_tensor(objects, device=device)


def match_denoising_queries(dn_queries: DenoisingQueries, targets: Sequence[MaskDINOTargets]) -> Matches:
    """Every denoising query and the object that it is a copy of."""
    device = dn_queries.labels.device
    groups = torch.arange(dn_queries.groups, device=device)[:, None] * dn_queries.size
    matches = []
    for target in targets:
        objects = torch.arange(len(target), device=device)
        matches.append(((groups + objects).flatten(), objects.repeat(dn_queries.groups)))
    return matches


# Losses


@MODELS.register_module()
class UnitGIoULoss(nn.Module):
    """Generalized IoU loss of boxes in fractions of the image, as in MaskDINO: 1e-6 is added to both divisors.

    Args:
        loss_weight: Factor of the loss.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor, avg_factor: float | Tensor) -> Tensor:
        """Sum over boxes ``(n, 4)`` (x1, y1, x2, y2), divided by ``avg_factor``."""
        return self.loss_weight * generalized_box_iou_loss(pred, target, reduction='sum', eps=1e-6) / avg_factor


class MaskDINOCriterion(nn.Module):
    """Matches the predictions of every layer with the targets and computes their losses.

    Args:
        num_classes: Number of classes.
        loss_cls: Config of the class loss: sigmoid, or softmax with an additional background class.
        loss_mask: Config of the mask loss, at points.
        loss_dice: Config of the dice loss, at the same points.
        loss_bbox: Config of the loss of boxes (cx, cy, w, h).
        loss_iou: Config of the IoU loss of boxes (x1, y1, x2, y2).
        match_costs: Configs of the matching costs.
        num_points: Points per mask.
        oversample_ratio: Candidate points sampled per point.
        importance_sample_ratio: Fraction of the points chosen by uncertainty (PointRend).
        denoise_masks: Whether denoising queries learn masks too (``seg``).
        stuff_box_cost: See :class:`HungarianMatcher`.

    Raises:
        ValueError: If ``class_weight`` of ``loss_cls`` has the wrong length.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        loss_cls: Mapping,
        loss_mask: Mapping,
        loss_dice: Mapping,
        loss_bbox: Mapping,
        loss_iou: Mapping,
        match_costs: Sequence[Mapping],
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        denoise_masks: bool,
        stuff_box_cost: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        loss_cls = dict(loss_cls)
        self.background = not loss_cls.get('use_sigmoid', False)
        if self.background:
            weights = loss_cls.get('class_weight') or [1.0] * num_classes + [0.1]
            if len(weights) != num_classes + 1:
                raise ValueError(
                    f'class_weight of loss_cls has {len(weights)} numbers; the softmax loss needs num_classes + 1 ='
                    f' {num_classes + 1}, the last one for the background (published: 1 and 0.1)'
                )
            loss_cls['class_weight'] = list(weights)
            self.register_buffer('class_weight', torch.tensor(loss_cls['class_weight']), persistent=False)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_mask = MODELS.build(loss_mask)
        self.loss_dice = MODELS.build(loss_dice)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.loss_iou = MODELS.build(loss_iou)
        self.matcher = HungarianMatcher(
            [TASK_UTILS.build(cost) for cost in match_costs], num_points, stuff_box_cost=stuff_box_cost
        )
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.denoise_masks = denoise_masks

    def forward(
        self,
        outputs: DecoderOutputs,
        targets: Sequence[MaskDINOTargets],
        dn_queries: DenoisingQueries | None,
        *,
        denoising: bool,
    ) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            outputs: Predictions of all layers.
            targets: Targets of every image.
            dn_queries: The denoising queries of the batch, if there are any.
            denoising: Whether the model has a denoising loss; it is 0 for a batch without denoising queries.

        Returns:
            ``loss_cls``, ``loss_mask``, ``loss_dice``, ``loss_bbox`` and ``loss_iou`` of the last layer. Earlier layers
            have the prefix ``d0.`` and so on (0: before the first layer), selected encoder positions ``enc_``,
            denoising queries ``dn_`` and ``d0.dn_``.
        """
        num_objects = outputs.layers[0].logits.new_tensor(float(sum(map(len, targets))))
        avg_factor = reduce_mean(num_objects).clamp(min=1)
        losses: dict[str, Tensor] = {}
        prefixes = [*(f'd{i}.' for i in range(len(outputs.layers) - 1)), '']
        if outputs.encoder is not None:
            losses |= self._add_prefix('enc_', self._matched_losses(outputs.encoder, targets, avg_factor))
        for prefix, layer in zip(prefixes, outputs.layers, strict=True):
            losses |= self._add_prefix(prefix, self._matched_losses(layer, targets, avg_factor))
        if denoising:
            matches = None if dn_queries is None else match_denoising_queries(dn_queries, targets)
            for i, prefix in enumerate(prefixes):
                if i == 0 and outputs.encoder is None:
                    continue  # learned queries: before the first layer, denoising queries are only label embeddings
                layer = self._denoising_losses(outputs, i, targets, matches, dn_queries, avg_factor)
                losses |= self._add_prefix(f'{prefix}dn_', layer)
        return losses

    @staticmethod
    def _add_prefix(prefix: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f'{prefix}{name}': value for name, value in losses.items()}

    def _matched_losses(
        self, outputs: LayerOutputs, targets: Sequence[MaskDINOTargets], avg_factor: Tensor
    ) -> dict[str, Tensor]:
        return self._layer_losses(outputs, targets, self.matcher(outputs, targets), avg_factor)

    def _denoising_losses(
        self,
        outputs: DecoderOutputs,
        layer: int,
        targets: Sequence[MaskDINOTargets],
        matches: Matches | None,
        dn_queries: DenoisingQueries | None,
        avg_factor: Tensor,
    ) -> dict[str, Tensor]:
        if dn_queries is None or matches is None:
            zero = outputs.layers[layer].logits.new_zeros(())
            if self.background:
                reduce_mean(zero)  # processes with objects reduce the divisor of this loss: all must take part
            names = ['cls', *(['mask', 'dice'] if self.denoise_masks else []), 'bbox', 'iou']
            return {f'loss_{name}': zero for name in names}
        avg_factor = avg_factor * dn_queries.groups
        return self._layer_losses(outputs.denoising[layer], targets, matches, avg_factor, masks=self.denoise_masks)

    def _layer_losses(
        self,
        outputs: LayerOutputs,
        targets: Sequence[MaskDINOTargets],
        matches: Matches,
        avg_factor: Tensor,
        *,
        masks: bool = True,
    ) -> dict[str, Tensor]:
        """The losses of one layer; sums over objects are divided by ``avg_factor``."""
        losses = {'loss_cls': self._class_loss(outputs, targets, matches, avg_factor)}
        if masks:
            losses |= self._mask_losses(outputs, targets, matches, avg_factor)
        return losses | self._box_losses(outputs, targets, matches, avg_factor)

    def _class_loss(
        self, outputs: LayerOutputs, targets: Sequence[MaskDINOTargets], matches: Matches, avg_factor: Tensor
    ) -> Tensor:
        logits = outputs.logits
        labels = torch.full(logits.shape[:2], self.num_classes, dtype=torch.long, device=logits.device)
        for i, (target, (queries, objects)) in enumerate(zip(targets, matches, strict=True)):
            labels[i, queries] = target.labels[objects]
        labels = labels.flatten()
        if self.background:
            # Over all processes: a mean over the queries of each process would depend on the number of processes.
            avg_factor = reduce_mean(self.class_weight[labels].sum())
        return self.loss_cls(logits.flatten(0, 1), labels, avg_factor=avg_factor)

    def _box_losses(
        self, outputs: LayerOutputs, targets: Sequence[MaskDINOTargets], matches: Matches, avg_factor: Tensor
    ) -> dict[str, Tensor]:
        boxes, gt_boxes = [], []
        for i, (target, (queries, objects)) in enumerate(zip(targets, matches, strict=True)):
            has_box = target.has_box[objects]
            boxes.append(outputs.boxes[i, queries[has_box]])
            gt_boxes.append(target.boxes[objects[has_box]])
        boxes, gt_boxes = torch.cat(boxes), torch.cat(gt_boxes)
        if not len(boxes):
            zero = _zero_in_graph(outputs.boxes)
            return {'loss_bbox': zero, 'loss_iou': zero}
        return {
            'loss_bbox': self.loss_bbox(boxes, gt_boxes, avg_factor=avg_factor),
            'loss_iou': self.loss_iou(bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(gt_boxes), avg_factor=avg_factor),
        }

    def _mask_losses(
        self, outputs: LayerOutputs, targets: Sequence[MaskDINOTargets], matches: Matches, avg_factor: Tensor
    ) -> dict[str, Tensor]:
        # In the graph also without objects: otherwise other processes would wait for this one's gradients.
        loss_mask = loss_dice = _zero_in_graph(outputs.mask_embed) + _zero_in_graph(outputs.mask_features)
        for i, (target, (queries, objects)) in enumerate(zip(targets, matches, strict=True)):
            recompute = len(queries) > _LOSS_CHUNK and torch.is_grad_enabled()
            features = outputs.mask_features[i]
            for some_queries, some_objects in zip(queries.split(_LOSS_CHUNK), objects.split(_LOSS_CHUNK), strict=True):
                if not len(some_queries):
                    continue
                embed = outputs.mask_embed[i, some_queries]
                points, gt = self._sample_points(embed, features, target.masks[some_objects])
                args = (embed, features, points, gt, avg_factor)
                chunk = maybe_checkpoint(self._point_losses, *args, recompute=recompute)
                loss_mask, loss_dice = loss_mask + chunk[0], loss_dice + chunk[1]
        return {'loss_mask': loss_mask, 'loss_dice': loss_dice}

    @torch.no_grad()
    def _sample_points(self, mask_embed: Tensor, mask_features: Tensor, gt_masks: Tensor) -> tuple[Tensor, Tensor]:
        """Points at which masks are learned, ``(n, P, 2)``, and the ground truth there, ``(n, P)``."""
        points = get_uncertain_point_coords_with_randomness(
            mask_logits(mask_embed, mask_features).unsqueeze(1),
            None,
            self.num_points,
            self.oversample_ratio,
            self.importance_sample_ratio,
        )
        return points, sample_masks(gt_masks, points)

    def _point_losses(
        self, mask_embed: Tensor, mask_features: Tensor, points: Tensor, gt: Tensor, avg_factor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask and dice loss of some masks of one image, at points."""
        logits = point_sample(mask_logits(mask_embed, mask_features).unsqueeze(1), points).squeeze(1)
        dice = self.loss_dice(logits, gt, avg_factor=avg_factor)
        return self.loss_mask(logits.flatten(), gt.flatten(), avg_factor=avg_factor * self.num_points), dice


def _zero_in_graph(x: Tensor) -> Tensor:
    """0 in the graph of ``x``, even if ``x`` has NaN or infinite values."""
    return x.flatten()[:0].sum() * 0
