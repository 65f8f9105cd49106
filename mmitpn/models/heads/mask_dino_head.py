"""MaskDINO's head: maps of a backbone or neck to queries with classes, boxes and masks, and their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmitpn.models.mask_dino.denoising import DENOISING, Noised, add_noise
from mmitpn.models.mask_dino.losses import MaskDINOLosses
from mmitpn.models.mask_dino.objects import Objects, objects_of_instances
from mmitpn.models.mask_dino.pixel_decoder import MaskDINOPixelDecoder
from mmitpn.models.mask_dino.predictor import MaskDINOPredictor, Prediction, Predictions
from mmitpn.models.transformer.running import full_precision
from mmitpn.registry import MODELS

FOCAL = {'type': 'mmdet.FocalLoss', 'use_sigmoid': True, 'gamma': 2.0, 'alpha': 0.25, 'loss_weight': 4.0}
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
# The class cost is focal also where the class loss is a softmax, as in the published code.
COSTS = (
    {'type': 'mmdet.FocalLossCost', 'weight': 4.0},
    {'type': 'mmdet.CrossEntropyLossCost', 'weight': 5.0, 'use_sigmoid': True},
    {'type': 'mmdet.DiceCost', 'weight': 5.0, 'pred_act': True, 'eps': 1.0},
    {'type': 'mmdet.BBoxL1Cost', 'weight': 5.0, 'box_format': 'xywh'},
    {'type': 'mmdet.IoUCost', 'weight': 2.0, 'iou_mode': 'giou'},
)
POINTS = {'num_points': 12544, 'oversample_ratio': 3.0, 'importance_sample_ratio': 0.75}


@MODELS.register_module()
class MaskDINOHead(BaseModule):
    """MaskDINO (arXiv 2206.02777) for instance, panoptic and semantic segmentation.

    Boxes are fractions of the padded picture everywhere, masks cover all of it, and attention does not look at padding.
    Matching and losses work in fp32.

    Args:
        in_channels: Channels of the maps.
        strides: Their strides, finest first, beginning with 4.
        num_things_classes: Classes of things.
        num_stuff_classes: Classes of stuff, whose labels follow those of things.
        feat_channels: Width of encoder and decoder.
        out_channels: Channels of the map for the masks.
        num_queries: Queries that are matched to objects.
        pixel_decoder: More settings of :class:`MaskDINOPixelDecoder`.
        decoder: More settings of :class:`MaskDINOPredictor`: layers, heads, points, hidden channels, checkpointing.
        two_stage: See :class:`MaskDINOPredictor`.
        learn_queries: See there.
        box_start: See there.
        denoising: ``kind`` (``'seg'`` learns masks too, ``'standard'`` classes and boxes, ``'no'``), ``num_queries``
            and ``noise_scale``; published: ``'seg'``, 100, 0.4.
        released: Everything as in the published code where ours differs on purpose: ``released_order`` of the pixel
            decoder, first boxes of empty masks, class heads without a prior, padding that is attended to, and boxes of
            stuff that count in matching. Released weights were trained so.
        loss_cls: Config of the class loss; a softmax loss has one more class, for nothing.
        loss_mask: Config of the loss at points of the masks.
        loss_dice: Config of the dice loss there.
        loss_bbox: Config of the loss of boxes (cx, cy, w, h).
        loss_iou: Config of the overlap loss of boxes (x1, y1, x2, y2).
        train_cfg: ``match_costs``, ``num_points``, ``oversample_ratio``, ``importance_sample_ratio``; by default the
            published ones.
        test_cfg: Of the fusion head; not used here.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If settings do not fit together; the message says what is allowed.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int] = (4, 8, 16, 32),
        *,
        num_things_classes: int = 80,
        num_stuff_classes: int = 0,
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
        test_cfg: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        for name, value, least in (
            ('num_things_classes', num_things_classes, 0),
            ('num_stuff_classes', num_stuff_classes, 0),
            ('num_things_classes + num_stuff_classes', num_things_classes + num_stuff_classes, 1),
            ('num_queries', num_queries, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f'{name} is {value!r}; give a whole number of at least {least}')
        noise = {'kind': 'seg', 'num_queries': 100, 'noise_scale': 0.4, **(denoising or {})}
        if noise['kind'] not in DENOISING or noise.keys() != {'kind', 'num_queries', 'noise_scale'}:
            raise ValueError(
                f'denoising is {dict(denoising or {})}; give kind ({", ".join(map(repr, DENOISING))}), num_queries and'
                ' noise_scale'
            )
        self.num_things_classes = num_things_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = num_things_classes + num_stuff_classes
        self.num_queries = num_queries
        self.denoising = noise
        self.released = released
        self.test_cfg = test_cfg
        widths = {'feat_channels': feat_channels, 'out_channels': out_channels}
        self.pixel_decoder = MaskDINOPixelDecoder(
            in_channels, strides, **{'released_order': released, **widths, **(pixel_decoder or {})}
        )
        self.predictor = MaskDINOPredictor(
            self.num_classes,
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
        self.losses = MaskDINOLosses(
            self.num_classes,
            loss_cls=loss_cls,
            loss_mask=loss_mask,
            loss_dice=loss_dice,
            loss_bbox=loss_bbox,
            loss_iou=loss_iou,
            **settings,
            masks_of_denoising=noise['kind'] == 'seg',
            box_cost_of_stuff=released,
        )

    def forward(
        self, x: Sequence[Tensor], metas: Sequence[Mapping] = (), batch: Sequence[Objects] | None = None
    ) -> tuple[Predictions, Noised | None]:
        """Predict.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            metas: ``img_shape`` and ``batch_input_shape`` of every picture, for its padding; () where there is none.
            batch: The objects of every picture, to learn from noised ones too; None: not.

        Returns:
            What every layer says where objects are given, else the last one only; and the noised objects.
        """
        padding = None if self.released else padding_of(metas, x[0].device)
        features, levels = self.pixel_decoder(x, padding)
        noised = self._noised(batch)
        found = self.predictor(features, levels, padding, noised, all_layers=batch is not None)
        return found, noised

    def _noised(self, batch: Sequence[Objects] | None) -> Noised | None:
        if batch is None or self.denoising['kind'] == 'no':
            return None
        return add_noise(
            [objects.labels for objects in batch],
            [objects.boxes for objects in batch],
            num_queries=self.denoising['num_queries'],
            num_classes=self.num_classes,
            noise_scale=self.denoising['noise_scale'],
        )

    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Losses of a batch of mmdet.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            batch_data_samples: One sample a picture, with ``gt_instances`` and, for panoptic segmentation,
                ``gt_sem_seg``.

        Returns:
            See :class:`MaskDINOLosses`.

        Raises:
            ValueError: If there are no masks, or no map of stuff where there are classes of stuff.
        """
        batch = []
        for sample in batch_data_samples:
            semantic = sample.gt_sem_seg if 'gt_sem_seg' in sample else None
            if self.num_stuff_classes and semantic is None:
                raise ValueError(
                    f'the head has {self.num_stuff_classes} classes of stuff, but the data have no gt_sem_seg: use a'
                    ' panoptic data set with LoadPanopticAnnotations, or num_stuff_classes=0'
                )
            batch.append(
                objects_of_instances(
                    sample.gt_instances,
                    semantic,
                    num_things=self.num_things_classes,
                    num_stuff=self.num_stuff_classes,
                    size=sample.metainfo['batch_input_shape'],
                )
            )
        return self.loss_of(x, [sample.metainfo for sample in batch_data_samples], batch)

    def loss_of(self, x: Sequence[Tensor], metas: Sequence[Mapping], batch: Sequence[Objects]) -> dict[str, Tensor]:
        """Losses of pictures whose objects are known; see :meth:`loss`."""
        found, noised = self(x, metas, batch)
        with full_precision(x[0]):
            losses = self.losses(found, batch, noised, denoising=self.denoising['kind'] != 'no')
        return self._with_all_parameters(losses)

    def _with_all_parameters(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep in the graph what a batch may not use, so that no rank waits for another's gradient."""
        unused = self.predictor.label_embed.weight.flatten()[:0].sum()
        return {**losses, 'loss_cls': losses['loss_cls'] + unused}

    def predict(self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]) -> Prediction:
        """What the last layer says.

        Args:
            x: Maps ``(B, C_i, H_i, W_i)``, finest first.
            batch_data_samples: One sample a picture.
        """
        found, _ = self(x, [sample.metainfo for sample in batch_data_samples])
        return found.layers[-1]


def padding_of(metas: Sequence[Mapping], device: torch.device) -> Tensor | None:
    """Where pictures are padded, at a quarter of their size, ``(B, H / 4, W / 4)``; None where none is."""
    sizes = [(meta['img_shape'][:2], meta['batch_input_shape']) for meta in metas if 'batch_input_shape' in meta]
    if all(tuple(shape) == tuple(padded) for shape, padded in sizes):
        return None
    height, width = sizes[0][1]
    y = torch.arange(-(-height // 4), device=device)[:, None] * 4
    x = torch.arange(-(-width // 4), device=device) * 4
    return torch.stack([(y >= shape[0]) | (x >= shape[1]) for shape, _ in sizes])
