"""MaskDINO's losses: of every layer, of the chosen places, and of the denoising queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.ops import point_sample
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import reduce_mean
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import generalized_box_iou_loss

from mmitpn.registry import MODELS, TASK_UTILS

from .denoising import Noised
from .matching import Matcher, sample_masks
from .objects import Objects
from .predictor import Prediction, Predictions

# Masks of a picture whose loss is computed at once; more are computed again in the backward pass, part by part.
_CHUNK = 32

Pairs = list[tuple[Tensor, Tensor]]  # for every picture: queries, and the object of each


@MODELS.register_module()
class UnitGIoULoss(nn.Module):
    """Generalised IoU loss of boxes in fractions of the picture, as in MaskDINO: 1e-6 is added to both divisors.

    Args:
        loss_weight: What it is multiplied with.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor, avg_factor: float | Tensor) -> Tensor:
        """Sum over boxes ``(n, 4)`` (x1, y1, x2, y2), divided by ``avg_factor``."""
        return self.loss_weight * generalized_box_iou_loss(pred, target, reduction='sum', eps=1e-6) / avg_factor


class MaskDINOLosses(nn.Module):
    """Matches and scores what all layers say.

    Args:
        num_classes: Classes.
        loss_cls: Config of the class loss; with a sigmoid, or a softmax over one more class.
        loss_mask: Config of the loss at points of the masks.
        loss_dice: Config of the dice loss at these points.
        loss_bbox: Config of the loss of boxes (cx, cy, w, h).
        loss_iou: Config of the overlap loss of boxes (x1, y1, x2, y2).
        match_costs: Configs of the costs of matching.
        num_points: Points of a mask.
        oversample_ratio: So many times as many points are drawn at first ...
        importance_sample_ratio: ... and this share of the points are the most uncertain of them.
        masks_of_denoising: Denoising queries learn masks too (``seg``).
        box_cost_of_stuff: See :class:`Matcher`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        loss_cls: dict,
        loss_mask: dict,
        loss_dice: dict,
        loss_bbox: dict,
        loss_iou: dict,
        match_costs: Sequence[dict],
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
        masks_of_denoising: bool,
        box_cost_of_stuff: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        loss_cls = dict(loss_cls)
        self.background = not loss_cls.get('use_sigmoid', False)
        if self.background:
            weights = loss_cls.get('class_weight') or [1.0] * num_classes + [0.1]
            if len(weights) != num_classes + 1:
                raise ValueError(
                    f'class_weight of loss_cls has {len(weights)} numbers; the softmax loss wants num_classes + 1 ='
                    f' {num_classes + 1}, the last one for nothing (published: 1 and 0.1)'
                )
            loss_cls['class_weight'] = list(weights)
            self.register_buffer('class_weight', torch.tensor(loss_cls['class_weight']), persistent=False)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_mask = MODELS.build(loss_mask)
        self.loss_dice = MODELS.build(loss_dice)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.loss_iou = MODELS.build(loss_iou)
        self.matcher = Matcher(
            [TASK_UTILS.build(cost) for cost in match_costs], num_points, box_cost_of_stuff=box_cost_of_stuff
        )
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.masks_of_denoising = masks_of_denoising

    def forward(
        self, predictions: Predictions, batch: Sequence[Objects], noised: Noised | None, *, denoising: bool
    ) -> dict[str, Tensor]:
        """All losses by name.

        Args:
            predictions: What the decoder says.
            batch: The objects of every picture.
            noised: The noised objects among its queries.
            denoising: The model learns from denoising queries: where there are none, their losses are 0.

        Returns:
            ``loss_cls``, ``loss_mask``, ``loss_dice``, ``loss_bbox`` and ``loss_iou`` of the last layer; those before
            it as ``d0.loss_cls`` and so on (0: before the first layer), those of the chosen places as ``enc_loss_cls``,
            those of denoising queries as ``dn_loss_cls`` and ``d0.dn_loss_cls``.
        """
        total = predictions.layers[0].logits.new_tensor(float(sum(map(len, batch))))
        number = reduce_mean(total).clamp(min=1)
        losses: dict[str, Tensor] = {}
        names = [*(f'd{i}.' for i in range(len(predictions.layers) - 1)), '']
        if predictions.selected is not None:
            losses |= self._named('enc_', self._matched(predictions.selected, batch, number))
        for name, layer in zip(names, predictions.layers, strict=True):
            losses |= self._named(name, self._matched(layer, batch, number))
        if denoising:
            pairs = None if noised is None else denoising_pairs(noised, batch)
            for i, name in enumerate(names):
                if i == 0 and predictions.selected is None:
                    continue  # learned queries: the first denoising queries are bare label embeddings
                losses |= self._named(f'{name}dn_', self._denoised(predictions, i, batch, pairs, noised, number))
        return losses

    @staticmethod
    def _named(prefix: str, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f'{prefix}{name}': value for name, value in losses.items()}

    def _matched(self, prediction: Prediction, batch: Sequence[Objects], number: Tensor) -> dict[str, Tensor]:
        return self._losses(prediction, batch, self.matcher(prediction, batch), number)

    def _denoised(
        self,
        predictions: Predictions,
        layer: int,
        batch: Sequence[Objects],
        pairs: Pairs | None,
        noised: Noised | None,
        number: Tensor,
    ) -> dict[str, Tensor]:
        if noised is None or pairs is None:
            zero = predictions.layers[layer].logits.new_zeros(())
            if self.background:
                reduce_mean(zero)  # the processes with objects wait for this one's part of their divisor
            names = ['cls', *(['mask', 'dice'] if self.masks_of_denoising else []), 'bbox', 'iou']
            return {f'loss_{name}': zero for name in names}
        prediction = predictions.denoising[layer]
        return self._losses(prediction, batch, pairs, number * noised.groups, masks=self.masks_of_denoising)

    def _losses(
        self, prediction: Prediction, batch: Sequence[Objects], pairs: Pairs, number: Tensor, *, masks: bool = True
    ) -> dict[str, Tensor]:
        """The losses of one layer; ``number`` is what sums over objects are divided by."""
        losses = {'loss_cls': self._class_loss(prediction, batch, pairs, number)}
        if masks:
            losses |= self._mask_losses(prediction, batch, pairs, number)
        return losses | self._box_losses(prediction, batch, pairs, number)

    def _class_loss(self, prediction: Prediction, batch: Sequence[Objects], pairs: Pairs, number: Tensor) -> Tensor:
        logits = prediction.logits
        labels = torch.full(logits.shape[:2], self.num_classes, dtype=torch.long, device=logits.device)
        for i, (objects, (queries, chosen)) in enumerate(zip(batch, pairs, strict=True)):
            labels[i, queries] = objects.labels[chosen]
        labels = labels.flatten()
        # Of all processes: a mean over each one's own queries would make the result depend on their number.
        divisor = reduce_mean(self.class_weight[labels].sum()) if self.background else number
        return self.loss_cls(logits.flatten(0, 1), labels, avg_factor=divisor)

    def _box_losses(
        self, prediction: Prediction, batch: Sequence[Objects], pairs: Pairs, number: Tensor
    ) -> dict[str, Tensor]:
        found, truth = [], []
        for i, (objects, (queries, chosen)) in enumerate(zip(batch, pairs, strict=True)):
            boxed = objects.boxed[chosen]
            found.append(prediction.boxes[i, queries[boxed]])
            truth.append(objects.boxes[chosen[boxed]])
        found, truth = torch.cat(found), torch.cat(truth)
        if not len(found):
            nothing = _nothing(prediction.boxes)
            return {'loss_bbox': nothing, 'loss_iou': nothing}
        return {
            'loss_bbox': self.loss_bbox(found, truth, avg_factor=number),
            'loss_iou': self.loss_iou(bbox_cxcywh_to_xyxy(found), bbox_cxcywh_to_xyxy(truth), avg_factor=number),
        }

    def _mask_losses(
        self, prediction: Prediction, batch: Sequence[Objects], pairs: Pairs, number: Tensor
    ) -> dict[str, Tensor]:
        # In the graph also where there is nothing to learn: a rank without objects must not hold the others up.
        mask = dice = _nothing(prediction.kernels) + _nothing(prediction.features)
        for i, (objects, (queries, chosen)) in enumerate(zip(batch, pairs, strict=True)):
            many = len(queries) > _CHUNK and torch.is_grad_enabled()
            features = prediction.features[i]
            for some, whose in zip(queries.split(_CHUNK), chosen.split(_CHUNK), strict=True):
                if not len(some):
                    continue
                kernels = prediction.kernels[i, some]
                points, truth = self._points(kernels, features, objects.masks[whose])
                given = (kernels, features, points, truth, number)
                losses = checkpoint(self._losses_at, *given, use_reentrant=False) if many else self._losses_at(*given)
                mask, dice = mask + losses[0], dice + losses[1]
        return {'loss_mask': mask, 'loss_dice': dice}

    @torch.no_grad()
    def _points(self, kernels: Tensor, features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Points that the masks are learned at, ``(n, P, 2)``, and what is there, ``(n, P)``."""
        points = get_uncertain_point_coords_with_randomness(
            _masks(kernels, features), None, self.num_points, self.oversample_ratio, self.importance_sample_ratio
        )
        return points, sample_masks(masks, points)

    def _losses_at(
        self, kernels: Tensor, features: Tensor, points: Tensor, truth: Tensor, number: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of some masks of one picture, at points."""
        found = point_sample(_masks(kernels, features), points).squeeze(1)
        dice = self.loss_dice(found, truth, avg_factor=number)
        return self.loss_mask(found.flatten(), truth.flatten(), avg_factor=number * self.num_points), dice


def _masks(kernels: Tensor, features: Tensor) -> Tensor:
    """``(n, C)`` and ``(C, H, W)`` to ``(n, 1, H, W)``."""
    return torch.einsum('nc,chw->nhw', kernels, features).unsqueeze(1)


def denoising_pairs(noised: Noised, batch: Sequence[Objects]) -> Pairs:
    """Every denoising query and the object that it was made of."""
    groups = torch.arange(noised.groups, device=noised.labels.device)[:, None] * noised.size
    pairs = []
    for objects in batch:
        chosen = torch.arange(len(objects), device=noised.labels.device)
        pairs.append(((groups + chosen).flatten(), chosen.repeat(noised.groups)))
    return pairs


def _nothing(x: Tensor) -> Tensor:
    """0, in the graph of ``x``, whatever it holds."""
    return x.flatten()[:0].sum() * 0
