"""MaskDINO's fusion head: predictions of the queries to instances, panoptic segments and label maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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


class Instances(NamedTuple):
    """Instances that are selected in a batch.

    Attributes:
        scores: Class scores, highest first, ``(B, M)``.
        labels: ``(B, M)``.
        queries: The query of each, ``(B, M)``.
        used: Which queries give any, ``(B, Q)``.
    """

    scores: Tensor
    labels: Tensor
    queries: Tensor
    used: Tensor


class Segments(NamedTuple):
    """Queries that may become panoptic segments in a batch.

    Attributes:
        weights: Their scores where they compete for pixels, ``(B, Q)``.
        labels: ``(B, Q)``.
        used: Which queries compete, ``(B, Q)``.
    """

    weights: Tensor
    labels: Tensor
    used: Tensor


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
        outputs = LayerOutputs(*(values.float() for values in outputs))
        instances = self.select_instances(outputs.logits) if self.test_cfg['instance_on'] else None
        segments = self.select_segments(outputs.logits) if self.test_cfg['panoptic_on'] else None
        used = [selected.used.sum(1) for selected in (instances, segments) if selected is not None]
        # How many masks each image needs: all that the host waits for.
        numbers = torch.stack(used, -1).tolist() if used else [[] for _ in batch_data_samples]
        results = []
        for i, (sample, number) in enumerate(zip(batch_data_samples, numbers, strict=True)):
            image, meta = LayerOutputs(*(values[i] for values in outputs)), sample.metainfo
            result: dict[str, Any] = {}
            if instances is not None:
                selected = Instances(*(values[i] for values in instances))
                result['ins_results'] = self.instances(image, selected, number[0], meta, rescale=rescale)
            if segments is not None:
                selected = Segments(*(values[i] for values in segments))
                result['pan_results'] = self.panoptic(image, selected, number[-1], meta, rescale=rescale)
            if self.test_cfg['semantic_on']:
                scores = self.semantic_scores(image, meta, rescale=rescale)
                result['sem_results'] = PixelData(sem_seg=scores.argmax(0, keepdim=True))
            results.append(result)
        return results

    def select_instances(self, logits: Tensor) -> Instances:
        """The instances of things with the highest class scores; a query may give several.

        Args:
            logits: ``(B, Q, K)``, or ``(B, Q, K + 1)`` with a background class.
        """
        scores = class_scores(logits, self.num_classes)[..., : self.num_things_classes]
        num_things = max(scores.shape[2], 1)
        best, index = scores.flatten(1).topk(min(self.test_cfg['max_per_image'], scores[0].numel()))
        queries = index // num_things
        used = torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device).scatter(1, queries, True)
        return Instances(best, index % num_things, queries, used)

    def select_segments(self, logits: Tensor) -> Segments:
        """The queries that compete for the pixels of panoptic segments; see :meth:`select_instances`."""
        best, _ = class_scores(logits, self.num_classes).max(-1)
        weights, labels = segmentation_scores(logits, self.num_classes, self.test_cfg['temperature']).max(-1)
        used = best > self.test_cfg['object_mask_thr']
        if logits.shape[-1] > self.num_classes:
            used &= logits.argmax(-1) != self.num_classes
        return Segments(weights, labels, used)

    def instances(
        self, outputs: LayerOutputs, selected: Instances, number: int, meta: Mapping, *, rescale: bool
    ) -> InstanceData:
        """The selected instances of an image.

        The score of an instance is its class score times the mean probability inside its mask.

        Args:
            outputs: Predictions of the image, without B.
            selected: Of the image, without B.
            number: Number of ``selected.used``.
            meta: See :func:`upsample_masks`; and ``scale_factor``.
            rescale: See :meth:`predict`.
        """
        height, width = meta['ori_shape'][:2] if rescale else meta['img_shape'][:2]
        masks = torch.zeros(number, height, width, dtype=torch.bool, device=outputs.boxes.device)
        mask_scores = outputs.boxes.new_zeros(number)
        embed = outputs.mask_embed[indices_of(selected.used, number)]
        for part, large in upsample_masks(mask_logits(embed, outputs.mask_features), meta, rescale=rescale):
            masks[part] = large > 0
            mask_scores[part] = (large.sigmoid() * masks[part]).sum((1, 2)) / (masks[part].sum((1, 2)) + 1e-6)
        x, y = bbox_cxcywh_to_xyxy(outputs.boxes[selected.queries]).unflatten(1, (2, 2)).unbind(-1)
        padded_height, padded_width = meta.get('batch_input_shape', meta['img_shape'])[:2]
        x, y = x * padded_width, y * padded_height
        if rescale:
            scale_x, scale_y = map(float, meta['scale_factor'])
            x, y = x / scale_x, y / scale_y
        whose = selected.used.cumsum(0)[selected.queries] - 1
        return InstanceData(
            bboxes=torch.stack((x.clamp(0, width), y.clamp(0, height)), -1).flatten(1),
            labels=selected.labels,
            scores=selected.scores * mask_scores[whose],
            masks=masks[whose],
        )

    def panoptic(
        self, outputs: LayerOutputs, selected: Segments, number: int, meta: Mapping, *, rescale: bool
    ) -> PixelData:
        """Each pixel belongs to the query whose score times mask is highest, if that query keeps enough of its mask.

        See :meth:`instances` for the arguments.
        """
        height, width = meta['ori_shape'][:2] if rescale else meta['img_shape'][:2]
        device = selected.labels.device
        label_map = torch.full((height, width), self.num_classes, dtype=torch.int32, device=device)
        if number:
            index = indices_of(selected.used, number)
            weights, labels = selected.weights[index], selected.labels[index]
            masks = mask_logits(outputs.mask_embed[index], outputs.mask_features)
            winner, confident, areas = _assign_pixels(masks, weights, meta, rescale=rescale)
            pixels = torch.stack((torch.ones_like(confident), confident)).flatten(1).long()
            counts = torch.zeros(2, number, dtype=torch.long, device=device)
            assigned, visible = counts.scatter_add(1, winner.flatten().expand(2, -1), pixels)
            valid = (visible > 0) & (areas > 0) & (assigned >= self.test_cfg['iou_thr'] * areas)
            is_thing = labels < self.num_things_classes
            instance = torch.where(is_thing, (valid & is_thing).cumsum(0), 0)
            segments = torch.where(valid, labels + instance * INSTANCE_OFFSET, self.num_classes).int()
            label_map = torch.where(confident, segments[winner], label_map)
        return PixelData(sem_seg=label_map[None])

    def semantic_scores(self, outputs: LayerOutputs, meta: Mapping, *, rescale: bool) -> Tensor:
        """Scores ``(K, h, w)`` of every class: the sum over queries of class score times mask.

        See :meth:`instances` for the arguments.
        """
        weights = segmentation_scores(outputs.logits, self.num_classes, self.test_cfg['temperature'])
        total = 0
        for part, large in upsample_masks(outputs.masks(), meta, rescale=rescale):
            total = total + torch.einsum('qk,qhw->khw', weights[part], large.sigmoid())
        return total


def indices_of(used: Tensor, number: int) -> Tensor:
    """Indices of the ``number`` True values of ``(n,)``, ascending. ``nonzero`` would wait for a GPU."""
    return (~used).byte().argsort(stable=True)[:number]


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
