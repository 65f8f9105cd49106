"""MaskDINO for mmdet: instance, panoptic and semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping

from mmdet.models.detectors import MaskFormer
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from torch import Tensor

from mmitpn.checkpoint import QuietInit
from mmitpn.models.dino.matching import assign
from mmitpn.models.mask_dino.core import padding_mask_of
from mmitpn.models.mask_dino.targets import MaskDINOTargets
from mmitpn.models.mask_dino_postprocess import LayerOutputs
from mmitpn.registry import MODELS


@MODELS.register_module()
class MaskDINO(QuietInit, MaskFormer):
    """MaskDINO (arXiv 2206.02777), trained and tested like any detector of mmdet.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck, if there is one; the maps of backbone or neck must start at stride 4, finest first.
        panoptic_head: Config of :class:`MaskDINOHead`.
        panoptic_fusion_head: Config of :class:`MaskDINOFusionHead`; None: its defaults, with the head's classes.
        train_cfg: Of the head.
        test_cfg: Of the fusion head.
        data_preprocessor: Config of the data preprocessor; ``pad_mask=True`` (and ``pad_seg`` for panoptic data).
        init_cfg: As in mmengine.

    Raises:
        ValueError: If the two heads have different numbers of classes.
    """

    def __init__(
        self,
        backbone: Mapping,
        neck: Mapping | None = None,
        panoptic_head: Mapping | None = None,
        panoptic_fusion_head: Mapping | None = None,
        train_cfg: Mapping | None = None,
        test_cfg: Mapping | None = None,
        data_preprocessor: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        head = ConfigDict(panoptic_head or {})
        fusion = ConfigDict(panoptic_fusion_head or {'type': 'mmitpn.MaskDINOFusionHead'})
        for name, default in (('num_things_classes', 80), ('num_stuff_classes', 0)):
            number = head.get(name, default)
            fusion_number = fusion.setdefault(name, number)
            if fusion_number != number:
                raise ValueError(
                    f'panoptic_head has {name}={number}, panoptic_fusion_head {fusion_number}: give both the number of'
                    ' the dataset, or leave it out of the second'
                )
        super().__init__(
            backbone=backbone,
            neck=neck,
            panoptic_head=head,
            panoptic_fusion_head=fusion,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch_inputs: Normalized images ``(B, 3, H, W)``.
            batch_data_samples: See :meth:`MaskDINOHead.targets_of`.

        Returns:
            The losses by name; see :class:`~mmitpn.models.mask_dino.MaskDINOCriterion`.
        """
        padding_mask = padding_mask_of([sample.metainfo for sample in batch_data_samples], batch_inputs.device)
        return self.loss_tensors(batch_inputs, padding_mask, self.panoptic_head.targets_of(batch_data_samples))

    def loss_tensors(self, images: Tensor, padding_mask: Tensor | None, targets: MaskDINOTargets) -> dict[str, Tensor]:
        """Losses without data samples, for ``torch.compile``: two graphs, before and after the matching on the host.

        Args:
            images: Normalized images ``(B, 3, H, W)``.
            padding_mask: See :meth:`forward_tensors`.
            targets: Targets of the batch.
        """
        head = self.panoptic_head
        outputs, dn_queries = head(self.extract_feat(images), padding_mask, targets)
        queries = assign(head.match_costs(outputs, targets), targets.objects.valid)
        return head.loss_by_assignment(outputs, targets, queries, dn_queries)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Predict instances, panoptic segments and label maps.

        Args:
            batch_inputs: Normalized images ``(B, 3, H, W)``.
            batch_data_samples: One sample per image.
            rescale: Results in pixels of the image before resizing.

        Returns:
            The samples with ``pred_instances``, ``pred_panoptic_seg`` and ``pred_sem_seg``, those that ``test_cfg``
            switches on; see :class:`MaskDINOFusionHead`.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        outputs = self.forward_tensors(batch_inputs, padding_mask_of(metas, batch_inputs.device))
        results = self.panoptic_fusion_head.predict(outputs, batch_data_samples, rescale=rescale)
        for sample, result in zip(batch_data_samples, results, strict=True):
            if 'sem_results' in result:
                sample.pred_sem_seg = result.pop('sem_results')
        return self.add_pred_to_datasample(batch_data_samples, results)

    def forward_tensors(self, images: Tensor, padding_mask: Tensor | None = None) -> LayerOutputs:
        """The network without data samples: one graph, for ``torch.compile`` and export.

        Args:
            images: Normalized images ``(B, 3, H, W)``.
            padding_mask: ``(B, H, W)`` bool, True on padding, see :func:`~mmitpn.models.dino.make_padding_mask`; None
                without padding.

        Returns:
            Of the last layer class logits, boxes, mask embeddings and the map for the masks, fp32.
        """
        return self.panoptic_head.forward_tensors(self.extract_feat(images), padding_mask)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None) -> tuple[Tensor, ...]:
        """Class logits, boxes and mask logits of the last layer as tensors, for tracing and FLOP counting."""
        metas = [sample.metainfo for sample in batch_data_samples or []]
        last = self.forward_tensors(batch_inputs, padding_mask_of(metas, batch_inputs.device))
        return last.logits, last.boxes, last.masks()
