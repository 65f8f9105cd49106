"""MaskDINO as a decode head of mmseg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmitpn.models.mask_dino.core import CROSS_ENTROPY, MaskDINOCore
from mmitpn.models.mask_dino.targets import MaskDINOTargets, targets_from_label_maps
from mmitpn.models.mask_dino_postprocess import LayerOutputs, segmentation_scores
from mmitpn.registry import MODELS


@MODELS.register_module()
class MaskDINODecodeHead(BaseModule):
    """MaskDINO (arXiv 2206.02777) for semantic segmentation in mmseg, on whole images or sliding windows.

    Every class in a label map is one object: its region, and the box around it.

    The head runs a :class:`~mmitpn.models.mask_dino.MaskDINOCore`, whose parts are registered as the head's own: its
    state dict has ``pixel_decoder.*`` and ``predictor.*``, as that of :class:`MaskDINOHead` and the released files.

    Args:
        in_channels: Channels of the maps.
        strides: Their strides, finest first, beginning with 4.
        num_classes: Number of classes.
        align_corners: As in mmseg, for the final upsampling.
        ignore_index: Label of pixels without a class.
        temperature: See :class:`MaskDINOFusionHead`; for the sigmoid loss only.
        test_cfg: Not used: mmseg passes the segmentor's to :meth:`predict`.
        init_cfg: As in mmengine.
        **settings: See :class:`~mmitpn.models.mask_dino.MaskDINOCore`. Defaults are those published for ADE20K: 100
            learned queries, ``box_start='no'``, a softmax loss with a background class.

    Raises:
        ValueError: If settings are inconsistent; the message names the allowed values.
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
        test_cfg: Mapping | None = None,  # noqa: ARG002
        init_cfg: Mapping | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        published = {'num_queries': 100, 'two_stage': False, 'box_start': 'no', 'loss_cls': CROSS_ENTROPY}
        core = MaskDINOCore(in_channels, strides, num_classes=num_classes, **{**published, **settings})
        self.pixel_decoder, self.predictor, self.criterion = core.pixel_decoder, core.predictor, core.criterion
        # Not registered as a submodule: a state dict would have every weight twice.
        self.__dict__['core'] = core
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.ignore_index = ignore_index
        self.temperature = temperature
        self.out_channels = num_classes

    def forward(self, x: Sequence[Tensor]) -> LayerOutputs:
        """Predictions of the last layer, for mmseg's ``mode='tensor'``."""
        return self.forward_tensors(x)

    def forward_tensors(self, x: Sequence[Tensor]) -> LayerOutputs:
        """Predictions of the last layer from maps ``(B, C_i, H_i, W_i)``, finest first: one graph."""
        return self.core.forward_tensors(x)

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any], train_cfg: Mapping) -> dict[str, Tensor]:  # noqa: ARG002
        """Losses of a batch of mmseg.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            batch_data_samples: One sample per image, with ``gt_sem_seg``.
            train_cfg: Not used.
        """
        targets = self.targets_of([sample.gt_sem_seg.data[0] for sample in batch_data_samples])
        return self.core.loss_by_targets(x, None, targets)

    def targets_of(self, label_maps: Sequence[Tensor]) -> MaskDINOTargets:
        """Targets of the label maps ``(h, w)`` of a batch."""
        label_maps = [one.masked_fill(one == self.ignore_index, -1) for one in label_maps]
        return targets_from_label_maps(label_maps, range(self.num_classes), tuple(label_maps[0].shape))

    def predict(self, x: Sequence[Tensor], batch_img_metas: Sequence[Mapping], test_cfg: Mapping) -> Tensor:  # noqa: ARG002
        """Scores of every class.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            batch_img_metas: Of the images; for sliding windows mmseg writes the window's size into ``img_shape``.
            test_cfg: Not used.

        Returns:
            ``(B, num_classes, h, w)`` at the size of the image or window from which the maps were computed.
        """
        last = self.forward_tensors(x)
        scores = segmentation_scores(last.logits, self.num_classes, self.temperature)
        size = input_size(batch_img_metas)
        masks = F.interpolate(last.masks(), size=size, mode='bilinear', align_corners=self.align_corners)
        return torch.einsum('bqk,bqhw->bkhw', scores, masks.sigmoid())


def input_size(metas: Sequence[Mapping]) -> tuple[int, int]:
    """Height and width of the image or window that a head receives, by the rule of mmseg's own heads."""
    shape = metas[0]['img_shape']
    if not isinstance(shape, torch.Size) and 'pad_shape' in metas[0]:
        shape = metas[0]['pad_shape']
    return int(shape[0]), int(shape[1])
