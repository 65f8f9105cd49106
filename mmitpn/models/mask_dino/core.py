"""MaskDINO without a framework: maps to predictions, and targets to losses. The heads of mmdet and mmseg use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmitpn.models.dino import autocast_disabled, make_padding_mask
from mmitpn.models.dino.matching import assign
from mmitpn.models.mask_dino_postprocess import LayerOutputs
from mmitpn.utils import check_int

from .criterion import MaskDINOCriterion
from .pixel_decoder import MaskDINOPixelDecoder
from .query_init import DENOISING, DenoisingQueries, make_denoising_queries
from .targets import MaskDINOTargets
from .transformer_decoder import DecoderOutputs, MaskDINOTransformerDecoder

FOCAL = {'type': 'mmdet.FocalLoss', 'use_sigmoid': True, 'gamma': 2.0, 'alpha': 0.25, 'loss_weight': 4.0}
CROSS_ENTROPY = {'type': 'mmdet.CrossEntropyLoss', 'use_sigmoid': False, 'loss_weight': 4.0}
MASK = {'type': 'mmdet.CrossEntropyLoss', 'use_sigmoid': True, 'loss_weight': 5.0}
DICE = {
    'type': 'mmdet.DiceLoss',
    'use_sigmoid': True,
    'activate': True,
    'naive_dice': True,
    'eps': 1.0,
    'loss_weight': 5.0,
}
L1 = {'type': 'mmdet.L1Loss', 'loss_weight': 5.0}
GIOU = {'type': 'mmitpn.UnitGIoULoss', 'loss_weight': 2.0}
# The class cost is focal also with a softmax class loss, as in the released code.
COSTS = (
    {'type': 'mmdet.FocalLossCost', 'weight': 4.0},
    {'type': 'mmdet.CrossEntropyLossCost', 'weight': 5.0, 'use_sigmoid': True},
    {'type': 'mmdet.DiceCost', 'weight': 5.0, 'pred_act': True, 'eps': 1.0},
    {'type': 'mmdet.BBoxL1Cost', 'weight': 5.0, 'box_format': 'xywh'},
    {'type': 'mmdet.IoUCost', 'weight': 2.0, 'iou_mode': 'giou'},
)
POINTS = {'num_points': 12544, 'oversample_ratio': 3.0, 'importance_sample_ratio': 0.75}
NOISE = {'kind': 'seg', 'num_queries': 100, 'noise_scale': 0.4}


class MaskDINOCore(BaseModule):
    """Pixel decoder, transformer decoder and criterion of MaskDINO (arXiv 2206.02777).

    Boxes are fractions of the padded image everywhere, masks cover the padded image, and attention ignores padding.
    Matching and losses run in fp32.

    Args:
        in_channels: Channels of the maps.
        strides: Their strides, finest first, beginning with 4.
        num_classes: Number of classes.
        feat_channels: Width of encoder and decoder.
        out_channels: Channels of the map for the masks.
        num_queries: Queries that are matched to objects.
        pixel_decoder: Further settings of :class:`~.pixel_decoder.MaskDINOPixelDecoder`.
        decoder: Further settings of :class:`~.transformer_decoder.MaskDINOTransformerDecoder`: layers, heads, points,
            hidden channels, checkpointing.
        two_stage: Queries are selected from the encoder's positions; False: they are learned.
        learn_queries: With ``two_stage``: selection gives the boxes only, the content of the queries is learned.
        box_start: Boxes that the decoder starts from: ``'mask2box'`` and ``'bitmask'`` are made from masks, ``'no'``
            from the selected proposals; see :func:`~.query_init.init_reference_boxes`.
        denoising: ``kind`` (``'seg'`` learns masks too, ``'standard'`` classes and boxes, ``'no'``), ``num_queries``
            and ``noise_scale``; published: ``'seg'``, 100, 0.4.
        released: Everything as in the released code where this project differs on purpose: ``released_order`` of the
            pixel decoder, initial boxes of empty masks, class head without a prior, attention to padding, and box
            costs of stuff in matching. Released weights were trained that way.
        loss_cls: Config of the class loss; a softmax loss has one more class, for background.
        loss_mask: Config of the mask loss, at points.
        loss_dice: Config of the dice loss, at the same points.
        loss_bbox: Config of the loss of boxes (cx, cy, w, h).
        loss_iou: Config of the IoU loss of boxes (x1, y1, x2, y2).
        train_cfg: ``match_costs``, ``num_points``, ``oversample_ratio``, ``importance_sample_ratio``; by default the
            published ones.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If settings are inconsistent; the message names the allowed values.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int] = (4, 8, 16, 32),
        *,
        num_classes: int,
        feat_channels: int = 256,
        out_channels: int = 256,
        num_queries: int = 300,
        pixel_decoder: Mapping | None = None,
        decoder: Mapping | None = None,
        two_stage: bool = True,
        learn_queries: bool = False,
        box_start: str = 'mask2box',
        denoising: Mapping | None = None,
        released: bool = False,
        loss_cls: Mapping = FOCAL,
        loss_mask: Mapping = MASK,
        loss_dice: Mapping = DICE,
        loss_bbox: Mapping = L1,
        loss_iou: Mapping = GIOU,
        train_cfg: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_int('num_classes', num_classes)
        check_int('num_queries', num_queries)
        noise = {**NOISE, **(denoising or {})}
        if noise['kind'] not in DENOISING or noise.keys() != NOISE.keys():
            raise ValueError(
                f'denoising is {dict(denoising or {})}; give kind ({", ".join(map(repr, DENOISING))}), num_queries and'
                ' noise_scale'
            )
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.denoising = noise
        self.released = released
        widths = {'feat_channels': feat_channels, 'out_channels': out_channels}
        self.pixel_decoder = MaskDINOPixelDecoder(
            in_channels, strides, **{'released_order': released, **widths, **(pixel_decoder or {})}
        )
        self.predictor = MaskDINOTransformerDecoder(
            num_classes,
            **widths,
            num_queries=num_queries,
            num_levels=self.pixel_decoder.num_levels,
            two_stage=two_stage,
            learn_queries=learn_queries,
            box_start=box_start,
            background=not loss_cls.get('use_sigmoid', False),
            released=released,
            **(decoder or {}),
        )
        settings = {'match_costs': COSTS, **POINTS, **(train_cfg or {})}
        unknown = settings.keys() - {'match_costs', *POINTS}
        if unknown:
            raise ValueError(f'train_cfg has {", ".join(sorted(unknown))}; allowed: match_costs, {", ".join(POINTS)}')
        self.criterion = MaskDINOCriterion(
            num_classes,
            loss_cls=loss_cls,
            loss_mask=loss_mask,
            loss_dice=loss_dice,
            loss_bbox=loss_bbox,
            loss_iou=loss_iou,
            **settings,
            denoise_masks=noise['kind'] == 'seg',
            stuff_box_cost=released,
        )

    def forward(
        self, x: Sequence[Tensor], padding_mask: Tensor | None = None, targets: MaskDINOTargets | None = None
    ) -> tuple[DecoderOutputs, DenoisingQueries | None]:
        """Predict classes, boxes and masks.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            padding_mask: ``(B, H, W)`` bool of the images, True on padding, see
                :func:`~mmitpn.models.dino.make_padding_mask`; None without padding.
            targets: Targets of the batch, for denoising queries and predictions of all layers; None: no denoising
                queries, and predictions of the last layer only.

        Returns:
            The predictions, and the denoising queries.
        """
        padding_mask = None if padding_mask is None or self.released else padding_mask[:, ::4, ::4]
        mask_features, levels = self.pixel_decoder(x, padding_mask)
        dn_queries = None
        if targets is not None and self.denoising['kind'] != 'no':
            dn_queries = make_denoising_queries(
                targets.objects,
                num_queries=self.denoising['num_queries'],
                num_classes=self.num_classes,
                noise_scale=self.denoising['noise_scale'],
            )
        outputs = self.predictor(mask_features, levels, padding_mask, dn_queries, all_layers=targets is not None)
        return outputs, dn_queries

    def forward_tensors(self, x: Sequence[Tensor], padding_mask: Tensor | None = None) -> LayerOutputs:
        """Predictions of the last layer: one graph, for ``torch.compile`` and export; see :meth:`forward`."""
        return self(x, padding_mask)[0].last

    def loss_by_targets(
        self, x: Sequence[Tensor], padding_mask: Tensor | None, targets: MaskDINOTargets
    ) -> dict[str, Tensor]:
        """Losses of a batch: two graphs for ``torch.compile``, before and after the matching on the host.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            padding_mask: See :meth:`forward`.
            targets: Targets of the batch.

        Returns:
            The losses by name; see :class:`~.criterion.MaskDINOCriterion`.
        """
        outputs, dn_queries = self(x, padding_mask, targets)
        queries = assign(self.match_costs(outputs, targets), targets.objects.valid)
        return self.loss_by_assignment(outputs, targets, queries, dn_queries)

    def match_costs(self, outputs: DecoderOutputs, targets: MaskDINOTargets) -> Tensor:
        """Costs of matching, see :class:`~.matching.MatchingCosts`, of ``outputs.matched()``."""
        with autocast_disabled(outputs.layers.logits):
            return self.criterion.match_costs(outputs.matched(), targets)

    def loss_by_assignment(
        self,
        outputs: DecoderOutputs,
        targets: MaskDINOTargets,
        queries: Tensor,
        dn_queries: DenoisingQueries | None,
    ) -> dict[str, Tensor]:
        """Losses of matched predictions; see :meth:`.criterion.MaskDINOCriterion.forward` for the arguments."""
        with autocast_disabled(queries):
            losses = self.criterion(outputs, targets, queries, dn_queries, denoising=self.denoising['kind'] != 'no')
        # A batch without denoising queries must keep their embedding in the graph: otherwise other processes would wait
        # for its gradient.
        unused = self.predictor.label_embed.weight.flatten()[:0].sum()
        return {**losses, 'loss_cls': losses['loss_cls'] + unused}


def padding_mask_of(metas: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor | None:
    """Padding of images by their ``img_shape`` and ``batch_input_shape``, ``(B, H, W)``; None without padding."""
    if not metas or 'batch_input_shape' not in metas[0]:
        return None
    return make_padding_mask([meta['img_shape'] for meta in metas], metas[0]['batch_input_shape'], device)
