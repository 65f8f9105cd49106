"""MaskDINO as a decode head of mmseg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor

from mmitpn.models.heads.mask_dino_head import MaskDINOHead
from mmitpn.models.mask_dino.objects import Objects, regions_of_map
from mmitpn.registry import MODELS

CROSS_ENTROPY = {'type': 'mmdet.CrossEntropyLoss', 'use_sigmoid': False, 'loss_weight': 4.0}


@MODELS.register_module()
class MaskDINODecodeHead(MaskDINOHead):
    """MaskDINO (arXiv 2206.02777) for semantic segmentation in mmseg, whole pictures or sliding windows.

    Every class of a label map is one object: its region, and the box around it.

    Args:
        in_channels: Channels of the maps.
        strides: Their strides, finest first, beginning with 4.
        num_classes: Classes of the data.
        align_corners: As in mmseg; of the last upsampling.
        ignore_index: Label of pixels that belong to no class.
        temperature: See :class:`MaskDINOFusionHead`; of the sigmoid loss only.
        **settings: Of :class:`MaskDINOHead`; by default those published for ADE20K: 100 learned queries, boxes not made
            from masks, a softmax loss with one more class.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int] = (4, 8, 16, 32),
        *,
        num_classes: int,
        align_corners: bool = False,
        ignore_index: int = 255,
        temperature: float | None = 0.06,
        **settings: Any,
    ) -> None:
        published = {'num_queries': 100, 'two_stage': False, 'box_start': 'no', 'loss_cls': CROSS_ENTROPY}
        super().__init__(in_channels, strides, num_things_classes=num_classes, **{**published, **settings})
        self.align_corners = align_corners
        self.ignore_index = ignore_index
        self.temperature = temperature
        self.out_channels = num_classes

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any], train_cfg: Mapping) -> dict[str, Tensor]:  # noqa: ARG002
        """Losses of a batch of mmseg.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            batch_data_samples: One sample a picture, with ``gt_sem_seg``.
            train_cfg: Not used.
        """
        return self.loss_of(x, [], [self._objects(sample.gt_sem_seg.data[0]) for sample in batch_data_samples])

    def _objects(self, labels: Tensor) -> Objects:
        size = tuple(labels.shape)
        labels = labels.masked_fill(labels == self.ignore_index, -1)
        regions = regions_of_map(labels, range(self.num_classes), size)
        boxes = bbox_xyxy_to_cxcywh(regions.boxes) / regions.boxes.new_tensor([size[1], size[0]] * 2)
        return Objects(regions.labels, boxes, regions.masks, regions.boxed)

    def predict(self, x: Sequence[Tensor], batch_img_metas: Sequence[Mapping], test_cfg: Mapping) -> Tensor:  # noqa: ARG002
        """Scores of every class.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            batch_img_metas: Of the pictures; in sliding windows mmseg writes the window's size into ``img_shape``.
            test_cfg: Not used.

        Returns:
            ``(B, num_classes, h, w)`` at the size of the picture or window that the maps are of.
        """
        found, _ = self(x)
        last = found.layers[-1]
        scores = last.logits.sigmoid()
        if last.logits.shape[-1] > self.num_classes:
            scores = last.logits.softmax(-1)[..., :-1]
        elif self.temperature is not None:
            scores = (scores / self.temperature).softmax(-1)
        size = size_of_window(batch_img_metas)
        masks = F.interpolate(last.masks(), size=size, mode='bilinear', align_corners=self.align_corners)
        return torch.einsum('bqk,bqhw->bkhw', scores, masks.sigmoid())


def size_of_window(metas: Sequence[Mapping]) -> tuple[int, int]:
    """Height and width of what a head is shown, as mmseg's own heads tell it."""
    shape = metas[0]['img_shape']
    if not isinstance(shape, torch.Size) and 'pad_shape' in metas[0]:
        shape = metas[0]['pad_shape']
    return int(shape[0]), int(shape[1])
