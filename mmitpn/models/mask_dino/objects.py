"""What a picture shows, as MaskDINO learns it: one mask, box and label for every object and every region of stuff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh, get_box_tensor
from torch import Tensor
from torchvision.ops import masks_to_boxes


@dataclass(frozen=True)
class Objects:
    """The objects of one picture.

    Attributes:
        labels: ``(n,)``.
        boxes: ``(n, 4)`` (cx, cy, w, h) in fractions of the padded picture.
        masks: ``(n, H, W)`` of the padded picture, bool.
        boxed: Whose boxes are to be learned, ``(n,)`` bool: not those of stuff.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor
    boxed: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def objects_of_instances(
    instances: Any, semantic: Any, *, num_things: int, num_stuff: int, size: Sequence[int]
) -> Objects:
    """The objects of mmdet's ground truth.

    Args:
        instances: ``gt_instances`` with ``labels``, ``bboxes`` (x1, y1, x2, y2) in pixels, and ``masks``
            (``BitmapMasks``, ``PolygonMasks`` or a tensor).
        semantic: ``gt_sem_seg`` with the labels of stuff, or None.
        num_things: Labels below are things.
        num_stuff: So many labels after them are stuff; all others in ``semantic`` are left out.
        size: Height and width of the padded picture.

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
    boxes = get_box_tensor(instances.bboxes).to(device).float().view(-1, 4)
    masks = pad_masks(instances.masks, size, device)
    boxed = torch.ones(len(labels), dtype=torch.bool, device=device)
    if num_stuff and semantic is not None:
        stuff = regions_of_map(semantic.sem_seg.squeeze(0), range(num_things, num_things + num_stuff), size)
        labels, boxes = torch.cat((labels, stuff.labels)), torch.cat((boxes, stuff.boxes))
        masks, boxed = torch.cat((masks, stuff.masks)), torch.cat((boxed, ~stuff.boxed))
    height, width = size
    return Objects(labels, bbox_xyxy_to_cxcywh(boxes) / boxes.new_tensor([width, height, width, height]), masks, boxed)


def regions_of_map(labels: Tensor, wanted: range, size: Sequence[int]) -> Objects:
    """One object for every label of a label map; boxes in pixels here, (x1, y1, x2, y2), around each region.

    Args:
        labels: ``(h, w)``.
        wanted: Labels that count.
        size: Height and width of the padded picture.
    """
    found = labels.unique()
    found = found[(found >= wanted.start) & (found < wanted.stop)]
    masks = pad_masks(labels == found[:, None, None], size, labels.device)
    boxes = masks_to_boxes(masks) + masks.new_tensor([0, 0, 1, 1], dtype=torch.float32) if len(masks) else None
    if boxes is None:
        boxes = torch.zeros(0, 4, device=labels.device)
    return Objects(found.long(), boxes, masks, torch.ones(len(found), dtype=torch.bool, device=labels.device))


def pad_masks(masks: Any, size: Sequence[int], device: torch.device) -> Tensor:
    """Masks of a picture, ``(n, H, W)`` bool, with nothing where it is padded to ``size``."""
    if not isinstance(masks, Tensor):
        masks = masks.to_tensor(dtype=torch.bool, device='cpu')
    masks = masks.to(device=device, dtype=torch.bool)
    height, width = size
    if tuple(masks.shape[-2:]) == (height, width):
        return masks
    padded = masks.new_zeros(len(masks), height, width)
    padded[:, : masks.shape[-2], : masks.shape[-1]] = masks
    return padded
