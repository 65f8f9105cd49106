"""From MaskDINO's queries to instances, panoptic segments and label maps (arXiv 2206.02777; IDEA-Research/MaskDINO).

It needs torch and torchvision alone: predictions of exported networks go the same way without mmdet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

INSTANCE_OFFSET = 1000  # mmdet's panoptic ids: class + 1000 * number of the thing
DEFAULTS: dict[str, Any] = {
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

# --- predictions of the network ---------------------------------------------------------------------------------------


class LayerOutputs(NamedTuple):
    """Predictions of one layer, or of several with L as first dimension of all but the map for the masks.

    Attributes:
        logits: Class logits, ``(B, Q, K)``, or ``(B, Q, K + 1)`` with a background class.
        boxes: ``(B, Q, 4)`` (cx, cy, w, h) in fractions of the padded image.
        mask_embed: Mask embeddings of the queries, ``(B, Q, C)``.
        mask_features: The map for the masks, ``(B, C, H, W)``.
    """

    logits: Tensor
    boxes: Tensor
    mask_embed: Tensor
    mask_features: Tensor

    def masks(self, index: Tensor | None = None) -> Tensor:
        """Mask logits ``(B, Q, H, W)``.

        Args:
            index: Only these queries, ``(n,)``, for outputs of a single image (without B): ``(n, H, W)``; None: all.
        """
        return mask_logits(self.mask_embed if index is None else self.mask_embed[index], self.mask_features)

    def queries(self, start: int, stop: int) -> LayerOutputs:
        """Predictions of the queries ``start`` to ``stop - 1``."""
        return LayerOutputs(*(values[..., start:stop, :] for values in self[:3]), self.mask_features)

    def layer(self, index: int | slice) -> LayerOutputs:
        """Predictions of one of several layers, or of a slice of them."""
        return LayerOutputs(*(values[index] for values in self[:3]), self.mask_features)


class MaskOutputs(NamedTuple):
    """:class:`LayerOutputs` of a network that computes the masks itself, such as an exported one.

    Attributes:
        logits: Class logits, ``(B, Q, K)``, or ``(B, Q, K + 1)`` with a background class.
        boxes: ``(B, Q, 4)`` (cx, cy, w, h) in fractions of the padded image.
        mask_logits: ``(B, Q, H, W)``.
    """

    logits: Tensor
    boxes: Tensor
    mask_logits: Tensor

    def masks(self, index: Tensor | None = None) -> Tensor:
        """See :meth:`LayerOutputs.masks`."""
        return self.mask_logits if index is None else self.mask_logits[index]


def mask_logits(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Mask logits ``(..., Q, H, W)`` from embeddings ``(..., Q, C)`` and the map for the masks ``(..., C, H, W)``."""
    return torch.einsum('...qc,...chw->...qhw', mask_embed, mask_features)


def class_scores(logits: Tensor, num_classes: int) -> Tensor:
    """Scores ``(..., K)`` of class logits: a sigmoid, or a softmax without its last class if there is one more."""
    return logits.sigmoid() if logits.shape[-1] == num_classes else logits.softmax(-1)[..., :-1]


def segmentation_scores(logits: Tensor, num_classes: int, temperature: float | None) -> Tensor:
    """Class scores ``(..., K)`` that weight the masks where they compete for pixels.

    Args:
        logits: ``(..., K)``, or ``(..., K + 1)`` with a background class.
        num_classes: K.
        temperature: Sigmoid scores are sharpened by a softmax with this temperature; None: unchanged. Softmax scores
            are always unchanged.
    """
    scores = class_scores(logits, num_classes)
    if temperature is None or logits.shape[-1] > num_classes:
        return scores
    return (scores / temperature).softmax(-1)


# --- what is selected -------------------------------------------------------------------------------------------------


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


class InstancePredictions(NamedTuple):
    """Instances of an image, in its pixels.

    Attributes:
        bboxes: ``(M, 4)``, x1, y1, x2, y2.
        labels: ``(M,)``.
        scores: Class score times the mean probability inside the mask, ``(M,)``.
        masks: ``(M, h, w)`` bool.
    """

    bboxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor


class ImagePredictions(NamedTuple):
    """Results of an image; None for those that are switched off.

    Attributes:
        instances: The instances.
        panoptic: ``(h, w)``, class + 1000 * number of the thing; the number of classes where there is no segment.
        semantic: Label map, ``(h, w)``.
    """

    instances: InstancePredictions | None
    panoptic: Tensor | None
    semantic: Tensor | None


class QueryPostprocessor:
    """Post-processing of each of the three tasks.

    Masks are upsampled to full size a few at a time, and only those that are needed.

    Args:
        num_things: Number of thing classes, which come first.
        num_classes: Number of all classes.
        settings: See :class:`mmitpn.MaskDINOFusionHead`, ``test_cfg``; complete.
    """

    def __init__(self, num_things: int, num_classes: int, settings: Mapping[str, Any]) -> None:
        self.num_things, self.num_classes, self.settings = num_things, num_classes, settings

    def predict(
        self, outputs: LayerOutputs | MaskOutputs, metas: Sequence[Mapping[str, Any]], *, rescale: bool = True
    ) -> list[ImagePredictions]:
        """Results of a batch.

        Args:
            outputs: Predictions of the last layer.
            metas: Of each image ``img_shape``, ``ori_shape``, ``scale_factor`` and ``batch_input_shape``.
            rescale: Results in pixels of the image before resizing.
        """
        outputs = type(outputs)(*(values.float() for values in outputs))
        instances = self.select_instances(outputs.logits) if self.settings['instance_on'] else None
        segments = self.select_segments(outputs.logits) if self.settings['panoptic_on'] else None
        used = [selected.used.sum(1) for selected in (instances, segments) if selected is not None]
        # How many masks each image needs: all that the host waits for.
        numbers = torch.stack(used, -1).tolist() if used else [[] for _ in metas]
        results = []
        for i, (meta, number) in enumerate(zip(metas, numbers, strict=True)):
            image = type(outputs)(*(values[i] for values in outputs))
            found = segmented = labels = None
            if instances is not None:
                selected = Instances(*(values[i] for values in instances))
                found = self.instances(image, selected, number[0], meta, rescale=rescale)
            if segments is not None:
                chosen = Segments(*(values[i] for values in segments))
                segmented = self.panoptic(image, chosen, number[-1], meta, rescale=rescale)
            if self.settings['semantic_on']:
                labels = self.semantic_scores(image, meta, rescale=rescale).argmax(0)
            results.append(ImagePredictions(found, segmented, labels))
        return results

    def select_instances(self, logits: Tensor) -> Instances:
        """The instances of things with the highest class scores; a query may give several.

        Args:
            logits: ``(B, Q, K)``, or ``(B, Q, K + 1)`` with a background class.
        """
        scores = class_scores(logits, self.num_classes)[..., : self.num_things]
        num_things = max(scores.shape[2], 1)
        best, index = scores.flatten(1).topk(min(self.settings['max_per_image'], scores[0].numel()))
        queries = index // num_things
        used = torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device).scatter(1, queries, True)
        return Instances(best, index % num_things, queries, used)

    def select_segments(self, logits: Tensor) -> Segments:
        """The queries that compete for the pixels of panoptic segments; see :meth:`select_instances`."""
        best, _ = class_scores(logits, self.num_classes).max(-1)
        weights, labels = segmentation_scores(logits, self.num_classes, self.settings['temperature']).max(-1)
        used = best > self.settings['object_mask_thr']
        if logits.shape[-1] > self.num_classes:
            used &= logits.argmax(-1) != self.num_classes
        return Segments(weights, labels, used)

    def instances(
        self, outputs: LayerOutputs | MaskOutputs, selected: Instances, number: int, meta: Mapping, *, rescale: bool
    ) -> InstancePredictions:
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
        wanted = outputs.masks(indices_of(selected.used, number))
        for part, large in upsample_masks(wanted, meta, rescale=rescale):
            masks[part] = large > 0
            mask_scores[part] = (large.sigmoid() * masks[part]).sum((1, 2)) / (masks[part].sum((1, 2)) + 1e-6)
        x, y = box_convert(outputs.boxes[selected.queries], 'cxcywh', 'xyxy').unflatten(1, (2, 2)).unbind(-1)
        padded_height, padded_width = meta.get('batch_input_shape', meta['img_shape'])[:2]
        x, y = x * padded_width, y * padded_height
        if rescale:
            scale_x, scale_y = map(float, meta['scale_factor'])
            x, y = x / scale_x, y / scale_y
        whose = selected.used.cumsum(0)[selected.queries] - 1
        return InstancePredictions(
            bboxes=torch.stack((x.clamp(0, width), y.clamp(0, height)), -1).flatten(1),
            labels=selected.labels,
            scores=selected.scores * mask_scores[whose],
            masks=masks[whose],
        )

    def panoptic(
        self, outputs: LayerOutputs | MaskOutputs, selected: Segments, number: int, meta: Mapping, *, rescale: bool
    ) -> Tensor:
        """Each pixel belongs to the query whose score times mask is highest, if that query keeps enough of its mask.

        See :meth:`instances` for the arguments.
        """
        height, width = meta['ori_shape'][:2] if rescale else meta['img_shape'][:2]
        device = selected.labels.device
        label_map = torch.full((height, width), self.num_classes, dtype=torch.int32, device=device)
        if number:
            index = indices_of(selected.used, number)
            weights, labels = selected.weights[index], selected.labels[index]
            winner, confident, areas = _assign_pixels(outputs.masks(index), weights, meta, rescale=rescale)
            pixels = torch.stack((torch.ones_like(confident), confident)).flatten(1).long()
            counts = torch.zeros(2, number, dtype=torch.long, device=device)
            assigned, visible = counts.scatter_add(1, winner.flatten().expand(2, -1), pixels)
            valid = (visible > 0) & (areas > 0) & (assigned >= self.settings['iou_thr'] * areas)
            is_thing = labels < self.num_things
            instance = torch.where(is_thing, (valid & is_thing).cumsum(0), 0)
            segments = torch.where(valid, labels + instance * INSTANCE_OFFSET, self.num_classes).int()
            label_map = torch.where(confident, segments[winner], label_map)
        return label_map

    def semantic_scores(self, outputs: LayerOutputs | MaskOutputs, meta: Mapping, *, rescale: bool) -> Tensor:
        """Scores ``(K, h, w)`` of every class: the sum over queries of class score times mask.

        See :meth:`instances` for the arguments.
        """
        weights = segmentation_scores(outputs.logits, self.num_classes, self.settings['temperature'])
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
