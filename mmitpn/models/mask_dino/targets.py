"""MaskDINO's targets: boxes, labels and masks of all images of a batch, from mmdet's ground truth or label maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops import point_sample
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh, get_box_tensor
from torch import Tensor

from mmitpn.models.dino.levels import level_sizes
from mmitpn.models.dino.matching import BoxTargets, pad_objects
from mmitpn.utils import copy_to_device

from .query_init import masks_to_boxes

# Masks that a CPU converts to floating point at once.
_SAMPLE_CHUNK = 16


class MaskDINOTargets(NamedTuple):
    """Ground truth of a batch: one mask, box and label for each object and each region of stuff.

    Attributes:
        objects: Labels and boxes, padded to N for each image, in fractions of the padded image.
        has_box: Whether the box is learned, ``(B, N)`` bool: not on padding and not for stuff.
        masks: ``(T, H, W)`` bool, of the padded images: the objects of the first image, then those of the second, and
            so on, without padding.
        counts: Number of objects of each image. A compiled graph does not use it, to serve all numbers.
    """

    objects: BoxTargets
    has_box: Tensor
    masks: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
        masks: Tensor,
        num_with_box: Sequence[int] | None = None,
    ) -> MaskDINOTargets:
        """Targets from those of each image.

        Args:
            labels: ``(n_i,)``.
            boxes: ``(n_i, 4)`` (x1, y1, x2, y2) in pixels.
            masks: ``(T, H, W)`` bool.
            num_with_box: Number of leading objects of each image whose box is learned; None: of all.
        """
        height, width = masks.shape[-2:]
        sizes = level_sizes(((height, width),), masks.device).repeat(len(labels), 2)
        normalized = bbox_xyxy_to_cxcywh(pad_objects(boxes)) / sizes[:, None]
        valid = pad_objects([torch.ones_like(one, dtype=torch.bool) for one in labels])
        counts = tuple(map(len, labels))
        objects = BoxTargets(pad_objects(labels), normalized, valid, sizes, not any(counts))
        index = torch.arange(valid.shape[1], device=masks.device)
        with_box = [index < number for number in (num_with_box or counts)]
        return cls(objects, torch.stack(with_box) & valid, masks, counts)

    def mask_index(self) -> Tensor:
        """Index in ``masks`` of each object, ``(B, N)``; on padding that of another one."""
        return (self.objects.valid.flatten().cumsum(0) - 1).clamp(min=0).view_as(self.objects.valid)


@torch.compiler.disable
def targets_from_instances(
    instances: Sequence[Any],
    label_maps: Sequence[Tensor] | None = None,
    *,
    num_things: int,
    num_stuff: int,
    size: tuple[int, int],
) -> MaskDINOTargets:
    """Targets from mmdet's ground truth: for each image its things, then its stuff.

    Args:
        instances: ``gt_instances`` of each image, with ``labels``, ``bboxes`` (x1, y1, x2, y2) in pixels, and ``masks``
            (``BitmapMasks``, ``PolygonMasks`` or a tensor).
        label_maps: Label map ``(h, w)`` of each image, with the labels of stuff; used if ``num_stuff`` is not 0.
        num_things: Number of thing classes; lower labels are things.
        num_stuff: Number of stuff classes, which follow the things; other labels of the maps are left out.
        size: Height and width of the padded images.

    Raises:
        ValueError: If there are no masks to learn from.
    """
    if any('masks' not in one for one in instances):
        raise ValueError(
            'gt_instances have no masks: MaskDINO learns from them; set with_mask=True in LoadAnnotations (LoadPanoptic'
            'Annotations for panoptic data)'
        )
    labels = [one.labels for one in instances]
    counts, device = list(map(len, labels)), labels[0].device
    boxes = [get_box_tensor(one.bboxes).to(device).float().view(-1, 4) for one in instances]
    masks = stack_masks([one.masks for one in instances], size, device)
    if num_stuff and label_maps is not None:
        regions = regions_of_label_maps(label_maps, range(num_things, num_things + num_stuff), size)
        stuff_labels, stuff_boxes, stuff_masks = zip(*regions, strict=True)
        labels = [torch.cat(pair) for pair in zip(labels, stuff_labels, strict=True)]
        boxes = [torch.cat(pair) for pair in zip(boxes, stuff_boxes, strict=True)]
        masks = torch.cat([one for pair in zip(masks.split(counts), stuff_masks, strict=True) for one in pair])
    return MaskDINOTargets.of(labels, boxes, masks, counts)


@torch.compiler.disable
def targets_from_label_maps(label_maps: Sequence[Tensor], classes: range, size: tuple[int, int]) -> MaskDINOTargets:
    """One target for each class in a label map: the region of the class and the box around it.

    Args:
        label_maps: ``(h, w)`` of each image.
        classes: Labels to use; others are left out.
        size: Height and width of the padded images.
    """
    labels, boxes, masks = zip(*regions_of_label_maps(label_maps, classes, size), strict=True)
    return MaskDINOTargets.of(labels, boxes, torch.cat(masks))


def regions_of_label_maps(
    label_maps: Sequence[Tensor], classes: range, size: tuple[int, int]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each image labels ``(n,)``, ascending, boxes ``(n, 4)`` (x1, y1, x2, y2) in pixels, and masks ``(n, H, W)``.

    The numbers of regions of all images are copied to the host at once. See :func:`targets_from_label_maps`.
    """
    number, device = len(classes), label_maps[0].device
    present = torch.zeros(len(label_maps), number + 1, dtype=torch.bool, device=device)
    for row, label_map in zip(present, label_maps, strict=True):
        index = label_map.flatten().long() - classes.start
        row.scatter_(0, torch.where((index >= 0) & (index < number), index, number), True)
    present = present[:, :number]
    labels = torch.arange(classes.start, classes.stop, device=device)
    labels = torch.where(present, labels, classes.stop).sort(1).values
    regions = []
    for label_map, row, count in zip(label_maps, labels, present.sum(1).tolist(), strict=True):
        masks = pad_masks(label_map == row[:count, None, None], size)
        boxes = masks_to_boxes(masks)[0].float()
        boxes[:, 2:] += 1  # include the last pixel
        regions.append((row[:count], boxes, masks))
    return regions


def stack_masks(masks: Sequence[Any], size: tuple[int, int], device: torch.device) -> Tensor:
    """Masks of a batch, padded with False: ``(T, H, W)`` bool. Masks on the host are copied to the device at once.

    Args:
        masks: For each image ``BitmapMasks``, ``PolygonMasks``, or a tensor ``(n, h, w)`` (all of them then).
        size: H and W.
        device: Device of the result.
    """
    if all(isinstance(one, Tensor) for one in masks):
        return torch.cat([pad_masks(one.to(device=device, dtype=torch.bool), size) for one in masks])
    stacked = np.zeros((sum(map(len, masks)), *size), bool)
    start = 0
    for one in masks:
        array = one.to_ndarray()
        stacked[start : start + len(one), : array.shape[-2], : array.shape[-1]] = array
        start += len(one)
    return copy_to_device(stacked, device)


def pad_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks ``(n, h, w)`` padded with False below and on the right to ``(n, *size)``."""
    return F.pad(masks, (0, size[1] - masks.shape[-1], 0, size[0] - masks.shape[-2]))


def sample_masks(masks: Tensor, index: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of masks, as ``grid_sample``; on a GPU and in a graph without masks in floating point.

    Args:
        masks: ``(T, H, W)`` bool.
        index: The mask to sample, ``(n,)``.
        points: Where, ``(n, P, 2)``, x and y from 0 to 1.

    Returns:
        ``(n, P)``, 0 to 1.
    """
    if masks.device.type == 'cpu' and not torch.compiler.is_compiling():
        chunks = zip(index.split(_SAMPLE_CHUNK), points.split(_SAMPLE_CHUNK), strict=True)
        return torch.cat([point_sample(masks[some, None].float(), where).squeeze(1) for some, where in chunks])
    height, width = masks.shape[-2:]
    cells, weights = [], []
    for coordinate, size in zip(points.unbind(-1), (width, height), strict=True):
        position = (coordinate * size - 0.5).unsqueeze(-1)
        cell = position.floor() + torch.arange(2, device=points.device)  # n, P, 2: before and after
        inside = (cell >= 0) & (cell < size)
        weights.append((1 - (position - cell).abs()) * inside)
        cells.append(cell.long().clamp(0, size - 1))
    (columns, rows), (across, down) = cells, weights
    corners = rows.unsqueeze(-1) * width + columns.unsqueeze(-2)  # n, P, 2, 2
    values = masks.flatten(1)[index[:, None, None, None], corners]
    return (values * down.unsqueeze(-1) * across.unsqueeze(-2)).sum((-1, -2))
