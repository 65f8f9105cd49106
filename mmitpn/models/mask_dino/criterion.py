"""MaskDINO's criterion: the losses of all layers, each computed once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmcv.ops import point_sample
from mmdet.models.losses.utils import reduce_loss
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from mmitpn.models.mask_dino_postprocess import LayerOutputs, mask_logits
from mmitpn.registry import MODELS, TASK_UTILS

from ..layers import maybe_checkpoint
from .matching import MatchingCosts
from .query_init import DenoisingQueries
from .targets import MaskDINOTargets, sample_masks
from .transformer_decoder import DecoderOutputs

# Masks of an image whose loss is computed at once. If a layer has more masks than that, the backward pass computes each
# chunk again.
_LOSS_CHUNK = 32


@MODELS.register_module()
class UnitGIoULoss(nn.Module):
    """Generalized IoU loss of boxes in fractions of the image, as in MaskDINO: 1e-6 is added to both divisors.

    Args:
        loss_weight: Factor of the loss.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor, reduction_override: str = 'none') -> Tensor:
        """The loss of each box ``(n, 4)`` (x1, y1, x2, y2), ``(n,)``; or their ``'sum'`` or ``'mean'``."""
        inner = torch.minimum(pred[:, 2:], target[:, 2:]) - torch.maximum(pred[:, :2], target[:, :2])
        outer = torch.maximum(pred[:, 2:], target[:, 2:]) - torch.minimum(pred[:, :2], target[:, :2])
        overlap, enclosing = inner.clamp(min=0).prod(1), outer.prod(1)
        union = (pred[:, 2:] - pred[:, :2]).prod(1) + (target[:, 2:] - target[:, :2]).prod(1) - overlap
        loss = 1 - overlap / (union + 1e-6) + (enclosing - union) / (enclosing + 1e-6)
        return self.loss_weight * reduce_loss(loss, reduction_override)


class MaskDINOCriterion(nn.Module):
    """The losses of matched predictions of all layers, and the costs of matching (``match_costs``).

    Losses are mmdet's or others that take ``reduction_override='none'``.

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
        stuff_box_cost: See :class:`~.matching.MatchingCosts`.

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
            # Weighted here: mmdet's loss copies the weights to the device in every call.
            loss_cls['class_weight'] = None
            self.register_buffer('class_weight', torch.tensor(weights), persistent=False)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_mask = MODELS.build(loss_mask)
        self.loss_dice = MODELS.build(loss_dice)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.loss_iou = MODELS.build(loss_iou)
        self.match_costs = MatchingCosts(
            [TASK_UTILS.build(cost) for cost in match_costs], num_points, stuff_box_cost=stuff_box_cost
        )
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.denoise_masks = denoise_masks

    def forward(
        self,
        outputs: DecoderOutputs,
        targets: MaskDINOTargets,
        queries: Tensor,
        dn_queries: DenoisingQueries | None,
        *,
        denoising: bool,
    ) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            outputs: Predictions of all layers.
            targets: Targets of the batch.
            queries: The query of each object in each of ``outputs.matched()``, ``(L, B, N)``; -1 without any. See
                :func:`~mmitpn.models.dino.matching.assign`.
            dn_queries: The denoising queries of the batch, if there are any.
            denoising: Whether the model has a denoising loss; it is 0 for a batch without denoising queries.

        Returns:
            ``loss_cls``, ``loss_mask``, ``loss_dice``, ``loss_bbox`` and ``loss_iou`` of the last layer. Earlier layers
            have the prefix ``d0.`` and so on (0: before the first layer), selected encoder positions ``enc_``,
            denoising queries ``dn_`` and ``d0.dn_``.
        """
        logits = outputs.layers.logits
        avg_factor = reduce_mean(targets.objects.valid.sum().float()).clamp(min=1)
        two_stage = outputs.encoder is not None
        layers = [*(f'd{i}.' for i in range(len(logits) - 1)), '']
        prefixes = ['enc_', *layers] if two_stage else layers
        losses = _by_layer(prefixes, self._losses(outputs.matched(), targets, queries[:, :, None], avg_factor))
        if not denoising:
            return losses
        # Learned queries: before the first layer, denoising queries are only label embeddings.
        first = 0 if two_stage else 1
        prefixes = [f'{prefix}dn_' for prefix in layers[first:]]
        if dn_queries is None:
            zero = logits.new_zeros(len(prefixes))
            if self.background:
                reduce_mean(zero)  # processes with objects reduce the divisor of this loss: all must take part
            names = ['cls', *(['mask', 'dice'] if self.denoise_masks else []), 'bbox', 'iou']
            return losses | _by_layer(prefixes, {f'loss_{name}': zero for name in names})
        index = torch.arange(dn_queries.number, device=logits.device)
        copies = torch.where(dn_queries.valid, index, -1).unflatten(1, (dn_queries.groups, -1))
        of_copies = self._losses(
            outputs.denoising.layer(slice(first, None)),
            targets,
            copies.expand(len(prefixes), -1, -1, -1),
            avg_factor * dn_queries.groups,
            masks=self.denoise_masks,
        )
        return losses | _by_layer(prefixes, of_copies)

    def _losses(
        self,
        outputs: LayerOutputs,
        targets: MaskDINOTargets,
        queries: Tensor,
        avg_factor: Tensor,
        *,
        masks: bool = True,
    ) -> dict[str, Tensor]:
        """The losses of L layers, ``(L,)`` each; sums over objects are divided by ``avg_factor``.

        Args:
            outputs: Predictions of the layers.
            targets: Targets of the batch.
            queries: The queries of each object, one for each of G groups, ``(L, B, G, N)``; -1 without any.
            avg_factor: Divisor.
            masks: Whether masks are learned.
        """
        losses = {'loss_cls': self._class_loss(outputs.logits, targets, queries, avg_factor)}
        if masks:
            losses |= self._mask_losses(outputs, targets, queries, avg_factor)
        return losses | self._box_losses(outputs.boxes, targets, queries, avg_factor)

    def _class_loss(self, logits: Tensor, targets: MaskDINOTargets, queries: Tensor, avg_factor: Tensor) -> Tensor:
        layers, batch, number = logits.shape[:3]
        # Objects without a query go to one more, which is left out.
        index = torch.where(queries < 0, number, queries).flatten(2)
        labels = targets.objects.labels[:, None].expand_as(queries).flatten(2)
        none = torch.full((layers, batch, number + 1), self.num_classes, device=logits.device)
        labels = none.scatter(2, index, labels)[..., :-1].flatten()
        values = self.loss_cls(logits.flatten(0, 2), labels, reduction_override='none')
        if self.background:
            weights = self.class_weight[labels]
            values = values * weights
            # Over all processes: a mean over the queries of each process would depend on the number of processes.
            avg_factor = reduce_mean(weights.view(layers, -1).sum(1))
        return values.view(layers, -1).sum(1) / avg_factor

    def _box_losses(
        self, boxes: Tensor, targets: MaskDINOTargets, queries: Tensor, avg_factor: Tensor
    ) -> dict[str, Tensor]:
        learned = (queries >= 0) & targets.has_box[:, None]  # L, B, G, N
        index = queries.flatten(2).clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, 4)
        boxes = boxes.gather(2, index).view(*queries.shape, 4)
        # The others get equal boxes, whose losses and gradients are finite.
        boxes, gt_boxes = (
            torch.where(learned.unsqueeze(-1), one, 0.5).view(-1, 4) for one in (boxes, targets.objects.boxes[:, None])
        )
        corners, gt_corners = bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(gt_boxes)
        values = {
            'loss_bbox': self.loss_bbox(boxes, gt_boxes, reduction_override='none'),
            'loss_iou': self.loss_iou(corners, gt_corners, reduction_override='none'),
        }
        return {
            name: (value.view(*learned.shape, -1) * learned.unsqueeze(-1)).flatten(1).sum(1) / avg_factor
            for name, value in values.items()
        }

    def _mask_losses(
        self, outputs: LayerOutputs, targets: MaskDINOTargets, queries: Tensor, avg_factor: Tensor
    ) -> dict[str, Tensor]:
        layers, batch, groups, number = queries.shape
        # In the graph also without objects: otherwise other processes would wait for this one's gradients.
        zero = _zero_in_graph(outputs.mask_embed) + _zero_in_graph(outputs.mask_features)
        losses = zero.expand(2, layers)
        mask_index = targets.mask_index()
        compiling = torch.compiler.is_compiling()  # one graph then serves all numbers of objects, with padding
        for i in range(0 if targets.objects.empty else batch):
            count = number if compiling else targets.counts[i]
            if not count:
                continue
            chosen = queries[:, i, :, :count].flatten(1)
            index = chosen.clamp(min=0).unsqueeze(-1).expand(-1, -1, outputs.mask_embed.shape[-1])
            embed = outputs.mask_embed[:, i].gather(1, index).flatten(0, 1)
            objects = mask_index[i, :count].repeat(layers * groups)
            step = len(objects) if compiling else _LOSS_CHUNK
            recompute = groups * count > _LOSS_CHUNK
            values = []
            for some, some_objects in zip(embed.split(step), objects.split(step), strict=True):
                points, gt = self._sample(some, outputs.mask_features[i], targets.masks, some_objects)
                args = (some, outputs.mask_features[i], points, gt)
                values.append(maybe_checkpoint(self._point_losses, *args, recompute=recompute))
            losses = losses + (torch.cat(values, 1).view(2, layers, -1) * (chosen >= 0)).sum(2)
        return dict(zip(('loss_mask', 'loss_dice'), losses / avg_factor, strict=True))

    @torch.no_grad()
    def _sample(
        self, mask_embed: Tensor, mask_features: Tensor, gt_masks: Tensor, objects: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Points at which masks are learned, ``(n, P, 2)``, and the masks ``objects`` there, ``(n, P)``."""
        points = self._sample_points(mask_logits(mask_embed, mask_features).unsqueeze(1))
        return points, sample_masks(gt_masks, objects, points)

    def _point_losses(self, mask_embed: Tensor, mask_features: Tensor, points: Tensor, gt: Tensor) -> Tensor:
        """Mask and dice loss of some masks of one image at points, ``(2, n)``."""
        logits = point_sample(mask_logits(mask_embed, mask_features).unsqueeze(1), points).squeeze(1)
        values = self.loss_mask(logits.flatten(), gt.flatten(), reduction_override='none').view_as(logits).mean(1)
        return torch.stack((values, self.loss_dice(logits, gt, reduction_override='none')))

    def _sample_points(self, masks: Tensor) -> Tensor:
        """Points at which masks are learned, ``(n, P, 2)``, from their logits ``(n, 1, H / 4, W / 4)``."""
        return get_uncertain_point_coords_with_randomness(
            masks, None, self.num_points, self.oversample_ratio, self.importance_sample_ratio
        )


def _by_layer(prefixes: Sequence[str], losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Losses ``(L,)`` by name to those of each layer, by the layer's prefix and name."""
    return {f'{prefix}{name}': values[i] for i, prefix in enumerate(prefixes) for name, values in losses.items()}


def _zero_in_graph(x: Tensor) -> Tensor:
    """0 in the graph of ``x``, even if ``x`` has NaN or infinite values."""
    return x.flatten()[:0].sum() * 0
