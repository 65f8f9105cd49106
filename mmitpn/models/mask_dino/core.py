"""MaskDINO without a framework: maps to predictions, and targets to losses. The heads of mmdet and mmseg use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmitpn.models.dino import autocast_disabled
from mmitpn.utils import check_int

from .criterion import MaskDINOCriterion, MaskDINOTargets
from .pixel_decoder import MaskDINOPixelDecoder
from .query_init import DENOISING, DenoisingQueries, make_denoising_queries
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
        self, x: Sequence[Tensor], metas: Sequence[Mapping] = (), targets: Sequence[MaskDINOTargets] | None = None
    ) -> tuple[DecoderOutputs, DenoisingQueries | None]:
        """Predict classes, boxes and masks.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            metas: ``img_shape`` and ``batch_input_shape`` of every image, for its padding; () without padding.
            targets: Targets of every image, for denoising queries and predictions of all layers; None: no denoising
                queries, and predictions of the last layer only.

        Returns:
            The predictions, and the denoising queries.
        """
        padding_mask = None if self.released else padding_mask_of(metas, x[0].device)
        mask_features, levels = self.pixel_decoder(x, padding_mask)
        dn_queries = None
        if targets is not None and self.denoising['kind'] != 'no':
            dn_queries = make_denoising_queries(
                [target.labels for target in targets],
                [target.boxes for target in targets],
                num_queries=self.denoising['num_queries'],
                num_classes=self.num_classes,
                noise_scale=self.denoising['noise_scale'],
            )
        outputs = self.predictor(mask_features, levels, padding_mask, dn_queries, all_layers=targets is not None)
        return outputs, dn_queries

    def loss_by_targets(
        self, x: Sequence[Tensor], metas: Sequence[Mapping], targets: Sequence[MaskDINOTargets]
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            metas: See :meth:`forward`.
            targets: Targets of every image.

        Returns:
            The losses by name; see :class:`~.criterion.MaskDINOCriterion`.
        """
        outputs, dn_queries = self(x, metas, targets)
        with autocast_disabled(x[0]):
            losses = self.criterion(outputs, targets, dn_queries, denoising=self.denoising['kind'] != 'no')
        # A batch without denoising queries must keep their embedding in the graph: otherwise other processes would wait
        # for its gradient.
        unused = self.predictor.label_embed.weight.flatten()[:0].sum()
        return {**losses, 'loss_cls': losses['loss_cls'] + unused}


def padding_mask_of(metas: Sequence[Mapping], device: torch.device) -> Tensor | None:
    """Padding of the images at a quarter of their size, ``(B, H / 4, W / 4)``, True on padding; None without any."""
    sizes = [(meta['img_shape'][:2], meta['batch_input_shape']) for meta in metas if 'batch_input_shape' in meta]
    if all(tuple(shape) == tuple(padded) for shape, padded in sizes):
        return None
    height, width = sizes[0][1]
    y = torch.arange(-(-height // 4), device=device)[:, None] * 4
    x = torch.arange(-(-width // 4), device=device) * 4
    return torch.stack([(y >= shape[0]) | (x >= shape[1]) for shape, _ in sizes])
