"""DINO for mmdet, with the same parameters on every version of mmdet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.detectors import DINO as MMDetDINO  # noqa: N811 (this class has the same name, in its own scope)
from mmdet.models.layers import SinePositionalEncoding
from mmdet.structures import SampleList
from mmengine.model import initialize
from torch import Tensor, nn

from mmitpn.checkpoint import QuietInit
from mmitpn.config_types import is_type
from mmitpn.models.dino import (
    DinoTransformerDecoder,
    DinoTransformerEncoder,
    FeatureLevels,
    autocast_disabled,
    count_padded_queries,
    make_padding_mask,
)
from mmitpn.models.dino.denoising import ContrastiveDenoising
from mmitpn.models.dino.matching import BoxTargets, assign
from mmitpn.models.heads.dino_head import DINOHead
from mmitpn.registry import MODELS
from mmitpn.utils import check_int

# Settings that the detector computes.
_COMPUTED_HEAD_SETTINGS = ('share_pred_layer', 'num_pred_layer', 'as_two_stage')
_COMPUTED_DN_SETTINGS = ('num_classes', 'num_queries', 'hidden_dim', 'embed_dims', 'num_matching_queries')


@MODELS.register_module()
class DINO(QuietInit, MMDetDINO):
    """DINO (arXiv 2203.03605) that trains and loads the same on mmdet 3.3.0 and onedl-mmdetection 3.5.1.

    It is mmdet's DINO, with its arguments, parameter names and initialization; in a config, change the type only.
    Differences:

    - Its own decoder, whose shapes do not depend on the version of mmdet: a checkpoint from one version loads on the
      other, and so do those that mmdet publishes for DINO, such as ``dino-4scale_r50_8xb2-12e_coco``.
    - Every parameter gets a gradient in every step, also on a process whose images have no objects, so distributed
      training needs no ``find_unused_parameters``.
    - Sampling, box refinement, matching and losses run in fp32 under autocast.
    - The host waits for a GPU a few times in a step, whatever the number of layers, images and objects; a prediction is
      one graph (:meth:`forward_tensors`).
    - ``with_cp`` in ``encoder`` and ``decoder`` (True, or the number of layers from the first) switches on PyTorch's
      activation checkpointing; mmdet's ``num_cp``, which needs fairscale, is rejected.
    - Self-attention is fused, and inconsistent settings are reported before training.

    If an image has more objects than ``num_dn_queries``, all of them form one denoising group with two queries per
    object: memory grows with the largest number of objects in an image.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck; it must give ``num_feature_levels`` maps of ``embed_dims`` channels, finest first.
        encoder: Config of :class:`DinoTransformerEncoder`.
        decoder: Config of :class:`DinoTransformerDecoder`.
        bbox_head: Config of :class:`DINOHead`; mmdet's ``DINOHead`` becomes one, which has the same parameters and
            losses.
        positional_encoding: Config of mmdet's ``SinePositionalEncoding``.
        num_queries: Number of queries that are matched to objects. An image with fewer positions is padded to this
            number; padded queries have no influence, are not matched and are never returned.
        num_feature_levels: Number of maps.
        with_box_refine: Must be True. Accepted because mmdet's configs contain it.
        as_two_stage: Must be True. Accepted because mmdet's configs contain it.
        dn_cfg: Denoising queries: ``label_noise_scale``, ``box_noise_scale`` and ``group_cfg``, as in mmdet. None:
            the published setting, 0.5, 1.0 and groups for 100 queries.
        train_cfg: ``assigner``: config of mmdet's assigner, whose costs match queries to objects; None: the detector
            cannot be trained.
        test_cfg: ``max_per_img``: maximum number of detections per image; None: the number of queries.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: As in mmengine; ``Pretrained`` loads a complete detector here.

    Raises:
        ValueError: If settings are inconsistent; the message names the value, the allowed values and the remedy.
        TypeError: If ``bbox_head`` is another head.
    """

    def __init__(
        self,
        backbone: Mapping,
        neck: Mapping | None = None,
        *,
        encoder: Mapping,
        decoder: Mapping,
        bbox_head: Mapping,
        positional_encoding: Mapping,
        num_queries: int = 900,
        num_feature_levels: int = 4,
        with_box_refine: bool = True,
        as_two_stage: bool = True,
        dn_cfg: Mapping | None = None,
        train_cfg: Mapping | None = None,
        test_cfg: Mapping | None = None,
        data_preprocessor: Mapping | None = None,
        init_cfg: Mapping | Sequence[Mapping] | None = None,
    ) -> None:
        check_int('num_queries', num_queries)
        check_int('num_feature_levels', num_feature_levels)
        if with_box_refine is not True or as_two_stage is not True:
            raise ValueError(
                f'with_box_refine is {with_box_refine!r}, as_two_stage {as_two_stage!r}; DINO allows True only: leave'
                ' both out'
            )
        _check_head(bbox_head, num_queries=num_queries, test_cfg=test_cfg)
        if dn_cfg is None:
            dn_cfg = {'label_noise_scale': 0.5, 'box_noise_scale': 1.0, 'group_cfg': {'num_dn_queries': 100}}
        _check_denoising(dn_cfg)
        if 'num_cp' in encoder:
            raise ValueError(f'encoder sets num_cp={encoder["num_cp"]!r}, which needs fairscale: write with_cp instead')
        # mmdet changes the configs it receives: with a copy, the same config can build a second model.
        bbox_head = deepcopy(bbox_head)
        if is_type(bbox_head, 'mmdet.DINOHead') or bbox_head.get('type') == 'DINOHead':
            bbox_head['type'] = DINOHead
        super().__init__(
            backbone=backbone,
            neck=neck,
            encoder=deepcopy(encoder),
            decoder=deepcopy(decoder),
            bbox_head=bbox_head,
            positional_encoding=positional_encoding,
            num_queries=num_queries,
            num_feature_levels=num_feature_levels,
            with_box_refine=True,
            as_two_stage=True,
            dn_cfg=deepcopy(dn_cfg),
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        if not isinstance(self.bbox_head, DINOHead):
            raise TypeError(
                f'bbox_head is a {type(self.bbox_head).__name__}; allowed: mmitpn.DINOHead (also written DINOHead) and'
                ' classes derived from it'
            )
        label_embedding = self.dn_query_generator.label_embedding
        self.dn_query_generator = ContrastiveDenoising(label_embedding, num_queries, **dn_cfg)
        if self.with_neck:
            _check_neck(self.neck, neck, embed_dims=self.embed_dims, num_feature_levels=num_feature_levels)

    def _init_layers(self) -> None:
        """Build the modules between the neck and the head."""
        for name, part, attention in (
            ('encoder', self.encoder, 'self_attn_cfg'),
            ('decoder', self.decoder, 'cross_attn_cfg'),
        ):
            settings = part['layer_cfg'].get(attention, {})
            _check_levels(f'{name}.layer_cfg.{attention}', settings, self.num_feature_levels)
        self.positional_encoding = SinePositionalEncoding(**self.positional_encoding)
        self.encoder = DinoTransformerEncoder(**self.encoder)
        self.decoder = DinoTransformerDecoder(**self.decoder)
        self.embed_dims = self.encoder.embed_dims
        _check_widths(
            {
                'embed_dims of the encoder': self.embed_dims,
                'embed_dims of the decoder': self.decoder.embed_dims,
                'embed_dims of bbox_head': self.bbox_head.embed_dims,
                'twice num_feats of positional_encoding': 2 * self.positional_encoding.num_feats,
            }
        )
        self.query_embedding = nn.Embedding(self.num_queries, self.embed_dims)
        self.level_embed = nn.Parameter(torch.randn(self.num_feature_levels, self.embed_dims))
        self.memory_trans_fc = nn.Linear(self.embed_dims, self.embed_dims)
        self.memory_trans_norm = nn.LayerNorm(self.embed_dims)

    def init_weights(self) -> None:
        """Initialize as mmdet. Weights of a ``Pretrained`` init_cfg of the detector stay; mmdet overwrites them."""
        super().init_weights()
        settings = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg or []
        for setting in settings:
            if is_type(setting, 'Pretrained', 'PretrainedInit'):
                initialize(self, setting)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch_inputs: Normalized images ``(B, 3, H, W)``.
            batch_data_samples: One sample per image, with ``gt_instances``: boxes ``(n, 4)`` (x1, y1, x2, y2) in pixels
                and labels ``(n,)``; n may be 0.

        Returns:
            The losses by name: of every decoder layer, of the encoder's boxes and of the denoising queries.
        """
        padding_mask = _padding_mask_of(batch_data_samples, batch_inputs.device)
        return self.loss_tensors(batch_inputs, padding_mask, _targets_of(batch_data_samples))

    def loss_tensors(self, images: Tensor, padding_mask: Tensor | None, targets: BoxTargets) -> dict[str, Tensor]:
        """Losses without data samples, for ``torch.compile``: two graphs, before and after the matching on the host.

        Args:
            images: Normalized images ``(B, 3, H, W)``.
            padding_mask: See :meth:`forward_tensors`.
            targets: Objects of the batch.
        """
        outputs = self.forward_queries(self.extract_feat(images), padding_mask, targets)
        dn_meta, head = outputs['dn_meta'], self.bbox_head
        with autocast_disabled(images):
            encoder = outputs['enc_outputs_class'], outputs['enc_outputs_coord']
            predictions = head.with_encoder(*head(outputs['hidden_states'], outputs['references']), *encoder, dn_meta)
            costs = head.match_costs(predictions, targets, dn_meta)
        assigned = assign(costs, targets.valid)
        with autocast_disabled(images):
            return head.loss_by_assignment(predictions, targets, assigned, dn_meta)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Detect objects.

        Args:
            batch_inputs: Normalized images ``(B, 3, H, W)``.
            batch_data_samples: One sample per image.
            rescale: Return boxes in pixels of the image before resizing.

        Returns:
            The samples with ``pred_instances``: bboxes ``(n, 4)`` (x1, y1, x2, y2), scores ``(n,)``, labels ``(n,)``.
        """
        logits, boxes = self.forward_tensors(batch_inputs, _padding_mask_of(batch_data_samples, batch_inputs.device))
        metas = [sample.metainfo for sample in batch_data_samples]
        results = self.bbox_head.predict_by_feat(logits[None], boxes[None], batch_img_metas=metas, rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def forward_tensors(self, images: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The network without data samples: one graph, for ``torch.compile`` and export.

        Args:
            images: Normalized images ``(B, 3, H, W)``.
            padding_mask: ``(B, H, W)`` bool, True on padding, see :func:`~mmitpn.models.dino.make_padding_mask`; None
                without padding.

        Returns:
            Of the last layer class logits ``(B, Q, K)`` and boxes ``(B, Q, 4)`` (cx, cy, w, h) in fractions of the
            image, fp32.
        """
        outputs = self.forward_queries(self.extract_feat(images), padding_mask)
        last = self.decoder.num_layers - 1
        with autocast_disabled(images):
            return self.bbox_head.forward_layer(last, outputs['hidden_states'][last], outputs['references'][last])

    def forward_transformer(
        self, img_feats: Sequence[Tensor], batch_data_samples: SampleList | None = None
    ) -> dict[str, Any]:
        """Run encoder, query selection and decoder, as mmdet's method of this name; see :meth:`forward_queries`."""
        padding_mask = _padding_mask_of(batch_data_samples or [], img_feats[0].device)
        return self.forward_queries(img_feats, padding_mask, _targets_of(batch_data_samples) if self.training else None)

    def forward_queries(
        self, maps: Sequence[Tensor], padding_mask: Tensor | None = None, targets: BoxTargets | None = None
    ) -> dict[str, Any]:
        """Run encoder, query selection and decoder.

        Args:
            maps: The neck's maps ``(B, C, H_i, W_i)``, finest first.
            padding_mask: See :meth:`forward_tensors`.
            targets: Objects of the batch, for denoising queries; None: a prediction.

        Returns:
            Inputs of the head: ``hidden_states`` ``(layers, B, Q, C)`` and ``references``, a list of ``(B, Q, 4)``;
            with targets also ``enc_outputs_class``, ``enc_outputs_coord`` and ``dn_meta``. All tensors are fp32. Q is
            ``num_queries``, or the number of positions if there are fewer; denoising queries come first.

        Raises:
            ValueError: If the maps and the transformer differ in number or channels.
        """
        _check_features(maps, embed_dims=self.embed_dims, num_feature_levels=self.num_feature_levels)
        levels = FeatureLevels.of(maps, padding_mask)
        position = levels.position_embedding(self.positional_encoding) + levels.level_embedding(self.level_embed)
        # Positions and samples are fp32: bf16 is exact only up to 256.
        memory = self.encoder(levels.flatten(maps).float(), position, levels).float()
        num_padded = count_padded_queries(self.num_queries, levels.num_positions)
        with autocast_disabled(memory):
            enc_logits, enc_boxes = self._select_queries(memory, levels, num_padded)
            denoising = None if targets is None else self.dn_query_generator(targets)
        query = self.query_embedding.weight.expand(memory.shape[0], -1, -1)
        references, mask, num_dn, groups = enc_boxes.detach(), None, 0, 1
        if denoising is not None:
            query = torch.cat((denoising.content, query), 1)
            references = torch.cat((denoising.boxes, references), 1)
            mask, num_dn, groups = denoising.attention_mask, denoising.content.shape[1], denoising.groups
        states, references = self.decoder(
            query,
            memory,
            levels,
            reference_points=references.sigmoid(),
            reg_branches=self.bbox_head.reg_branches,
            self_attn_mask=mask,
            num_padded=num_padded,
        )
        if targets is not None and denoising is None:
            # In the graph: other processes, whose images have objects, would wait for the gradient.
            states = states + self.dn_query_generator.label_embedding.weight.sum() * 0.0
        real = self.num_queries - num_padded
        outputs = {
            'hidden_states': states[:, :, : num_dn + real],
            'references': [boxes[:, : num_dn + real] for boxes in references],
        }
        if targets is not None:
            outputs |= {
                'enc_outputs_class': enc_logits[:, :real],
                'enc_outputs_coord': enc_boxes[:, :real].sigmoid(),
                'dn_meta': {'num_denoising_queries': num_dn, 'num_denoising_groups': groups},
            }
        return outputs

    def _select_queries(self, memory: Tensor, levels: FeatureLevels, num_padded: int) -> tuple[Tensor, Tensor]:
        """The positions with the highest scores, in fp32: scores in half precision have ties.

        If there are fewer positions than queries, they are padded with scores of minus infinity: the padded ones are
        the last of the selected.

        Returns:
            Class logits ``(B, num_queries, K)`` and box logits ``(B, num_queries, 4)``.
        """
        proposals, valid = levels.proposals()
        hidden = self.memory_trans_norm(self.memory_trans_fc(memory.masked_fill(~valid, 0.0)))
        last, padding = self.decoder.num_layers, (0, 0, 0, num_padded)
        logits = F.pad(self.bbox_head.cls_branches[last](hidden), padding, value=float('-inf'))
        # Infinite box logits mark invalid proposals in mmdet.
        boxes = F.pad(self.bbox_head.reg_branches[last](hidden) + proposals, padding, value=float('inf'))
        index = logits.amax(-1).topk(self.num_queries, dim=1).indices.unsqueeze(-1)
        return logits.gather(1, index.expand(-1, -1, logits.shape[-1])), boxes.gather(1, index.expand(-1, -1, 4))


def _padding_mask_of(samples: SampleList, device: torch.device) -> Tensor | None:
    """Padding of the images of a batch; None without samples."""
    if not samples:
        return None
    shapes = [sample.metainfo['img_shape'] for sample in samples]
    return make_padding_mask(shapes, samples[0].metainfo['batch_input_shape'], device)


def _targets_of(samples: SampleList) -> BoxTargets:
    """The objects of a batch."""
    return BoxTargets.of([sample.gt_instances for sample in samples], [sample.metainfo for sample in samples])


def _check_head(bbox_head: Mapping, *, num_queries: int, test_cfg: Mapping | None) -> None:
    """Compare the head's settings with the detector's."""
    given = [name for name in _COMPUTED_HEAD_SETTINGS if name in bbox_head]
    if given:
        raise ValueError(f'bbox_head sets {", ".join(given)}; mmitpn.DINO sets these itself: leave them out')
    if 'num_classes' not in bbox_head:
        raise ValueError('bbox_head has no num_classes; give the number of categories of the data')
    check_int('num_classes of bbox_head', bbox_head['num_classes'])
    candidates = num_queries * bbox_head['num_classes']
    max_per_img = (test_cfg or {}).get('max_per_img', num_queries)
    if max_per_img > candidates:
        raise ValueError(
            f'test_cfg.max_per_img is {max_per_img}, but {num_queries} queries of {bbox_head["num_classes"]} classes'
            f' give {candidates} candidates: set max_per_img to at most {candidates}, or raise num_queries'
        )


def _check_denoising(dn_cfg: Mapping) -> None:
    """Check the settings of the denoising queries."""
    given = [name for name in _COMPUTED_DN_SETTINGS if name in dn_cfg]
    if given:
        raise ValueError(f'dn_cfg sets {", ".join(given)}; mmitpn.DINO sets these itself: leave them out')
    for name in ('label_noise_scale', 'box_noise_scale'):
        if not dn_cfg.get(name, 1.0) > 0:
            raise ValueError(f'dn_cfg.{name} is {dn_cfg[name]!r}; give a number above 0 (DINO: 0.5 labels, 1.0 boxes)')
    groups = dn_cfg.get('group_cfg') or {}
    name, default = ('num_dn_queries', 100) if groups.get('dynamic', True) else ('num_groups', None)
    check_int(f'dn_cfg.group_cfg.{name}', groups.get(name, default))


def _check_levels(name: str, attention: Mapping, num_feature_levels: int) -> None:
    """Raise unless a deformable attention has ``num_feature_levels`` levels (its default is 4)."""
    if attention.get('num_levels', 4) != num_feature_levels:
        raise ValueError(
            f'{name}.num_levels is {attention.get("num_levels", "4 (by default)")}, but num_feature_levels is'
            f' {num_feature_levels}: set both to the number of maps the neck gives'
        )


def _check_widths(widths: Mapping[str, int]) -> None:
    """Raise unless all modules have the same width; the keys of ``widths`` name the settings."""
    if len(set(widths.values())) > 1:
        seen = ', '.join(f'{name} = {width}' for name, width in widths.items())
        raise ValueError(f'the parts of DINO differ in width: {seen}; set all to the same number')


def _check_neck(neck: nn.Module, neck_cfg: Mapping, *, embed_dims: int, num_feature_levels: int) -> None:
    """Check channels and number of maps, as far as the neck's attributes or config state them.

    The maps of other necks are checked in the first forward pass.
    """
    cfg = neck_cfg if isinstance(neck_cfg, Mapping) else {}
    channels = getattr(neck, 'out_channels', cfg.get('out_channels'))
    num_maps = getattr(neck, 'num_outs', cfg.get('num_outs'))
    _check_maps(
        channels if isinstance(channels, int) else embed_dims,
        num_maps if isinstance(num_maps, int) else num_feature_levels,
        embed_dims=embed_dims,
        num_feature_levels=num_feature_levels,
    )


def _check_features(maps: Sequence[Tensor], *, embed_dims: int, num_feature_levels: int) -> None:
    """Check channels and number of the neck's maps ``(B, C, H, W)``."""
    for level in maps:
        _check_maps(level.shape[1], len(maps), embed_dims=embed_dims, num_feature_levels=num_feature_levels)


def _check_maps(channels: int, num_maps: int, *, embed_dims: int, num_feature_levels: int) -> None:
    if channels != embed_dims:
        raise ValueError(
            f"the neck gives {channels} channels, but the transformer is {embed_dims} wide: set the neck's out_channels"
            f' to {embed_dims}, or embed_dims of encoder, decoder and bbox_head to {channels}'
        )
    if num_maps != num_feature_levels:
        raise ValueError(
            f"the neck gives {num_maps} maps, but num_feature_levels is {num_feature_levels}: set the neck's num_outs"
            f' to {num_feature_levels}, or num_feature_levels and num_levels of encoder and decoder to {num_maps}'
        )
