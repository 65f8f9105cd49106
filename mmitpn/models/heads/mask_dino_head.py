"""MaskDINO's head for mmdet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmitpn.models.mask_dino.core import MaskDINOCore, padding_mask_of
from mmitpn.models.mask_dino.targets import MaskDINOTargets, targets_from_instances
from mmitpn.models.mask_dino_postprocess import LayerOutputs
from mmitpn.registry import MODELS
from mmitpn.utils import check_int


@MODELS.register_module()
class MaskDINOHead(MaskDINOCore):
    """MaskDINO (arXiv 2206.02777) for instance, panoptic and semantic segmentation in mmdet.

    Args:
        in_channels: Channels of the maps.
        strides: Their strides, finest first, beginning with 4.
        num_things_classes: Number of thing classes.
        num_stuff_classes: Number of stuff classes, whose labels follow those of things.
        test_cfg: Of the fusion head; not used here.
        **settings: See :class:`~mmitpn.models.mask_dino.MaskDINOCore`: ``num_queries``, ``pixel_decoder``,
            ``decoder``, ``two_stage``, ``box_start``, ``denoising``, ``released``, losses, ``train_cfg`` and others.

    Raises:
        ValueError: If settings are inconsistent; the message names the allowed values.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int] = (4, 8, 16, 32),
        *,
        num_things_classes: int = 80,
        num_stuff_classes: int = 0,
        test_cfg: Mapping | None = None,
        **settings: Any,
    ) -> None:
        check_int('num_things_classes', num_things_classes, least=0)
        check_int('num_stuff_classes', num_stuff_classes, least=0)
        num_classes = num_things_classes + num_stuff_classes
        check_int('num_things_classes + num_stuff_classes', num_classes)
        super().__init__(in_channels, strides, num_classes=num_classes, **settings)
        self.num_things_classes = num_things_classes
        self.num_stuff_classes = num_stuff_classes
        self.test_cfg = test_cfg

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of a batch of mmdet.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            batch_data_samples: See :meth:`targets_of`.

        Returns:
            The losses by name; see :class:`~mmitpn.models.mask_dino.MaskDINOCriterion`.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        return self.loss_by_targets(x, padding_mask_of(metas, x[0].device), self.targets_of(batch_data_samples))

    def targets_of(self, batch_data_samples: Sequence[Any]) -> MaskDINOTargets:
        """Targets of a batch of mmdet.

        Args:
            batch_data_samples: One sample per image, with ``gt_instances`` and, for panoptic segmentation,
                ``gt_sem_seg``.

        Raises:
            ValueError: If there are no masks, or no label map of stuff although there are stuff classes.
        """
        label_maps = [sample.gt_sem_seg.sem_seg.squeeze(0) for sample in batch_data_samples if 'gt_sem_seg' in sample]
        if self.num_stuff_classes and len(label_maps) < len(batch_data_samples):
            raise ValueError(
                f'the head has {self.num_stuff_classes} classes of stuff, but the data have no gt_sem_seg: use a'
                ' panoptic dataset with LoadPanopticAnnotations, or num_stuff_classes=0'
            )
        return targets_from_instances(
            [sample.gt_instances for sample in batch_data_samples],
            label_maps,
            num_things=self.num_things_classes,
            num_stuff=self.num_stuff_classes,
            size=tuple(batch_data_samples[0].metainfo['batch_input_shape']),
        )

    def predict(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> LayerOutputs:
        """Predictions of the last layer.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            batch_data_samples: One sample per image.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        return self.forward_tensors(x, padding_mask_of(metas, x[0].device))
