"""DINO for mmdet, with the same parameters on every version of mmdet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.detectors import DINO as MMDetDINO  # noqa: N811 (this class has the same name, in its own scope)
from mmdet.models.layers import SinePositionalEncoding
from mmdet.structures import OptSampleList, SampleList
from mmengine.model import initialize
from torch import Tensor, nn

from mmitpn.checkpoint import QuietInit
from mmitpn.config_types import is_type
from mmitpn.models.dino import DinoTransformerDecoder, DinoTransformerEncoder, autocast_disabled
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
        bbox_head: Config of the head, as mmdet's ``DINOHead``.
        positional_encoding: Config of mmdet's ``SinePositionalEncoding``.
        num_queries: Number of queries that are matched to objects. An image with fewer positions is padded to this
            number; padded queries have no influence, are not matched and are never returned.
        num_feature_levels: Number of maps.
        with_box_refine: Must be True. Accepted because mmdet's configs contain it.
        as_two_stage: Must be True. Accepted because mmdet's configs contain it.
        dn_cfg: Denoising queries: ``label_noise_scale``, ``box_noise_scale`` and ``group_cfg``, as in mmdet. None:
            the published setting, 0.5, 1.0 and groups for 100 queries.
        train_cfg: Config of the assigner.
        test_cfg: ``dict(max_per_img=300)``.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: As in mmengine; ``Pretrained`` loads a complete detector here.

    Raises:
        ValueError: If settings are inconsistent; the message names the value, the allowed values and the remedy.
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
        super().__init__(
            backbone=backbone,
            neck=neck,
            encoder=deepcopy(encoder),
            decoder=deepcopy(decoder),
            bbox_head=deepcopy(bbox_head),
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
        outputs = self.forward_transformer(self.extract_feat(batch_inputs), batch_data_samples)
        with autocast_disabled(batch_inputs):
            return self.bbox_head.loss(**outputs, batch_data_samples=batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Detect objects.

        Args:
            batch_inputs: Normalized images ``(B, 3, H, W)``.
            batch_data_samples: One sample per image.
            rescale: Return boxes in pixels of the image before resizing.

        Returns:
            The samples with ``pred_instances``: bboxes ``(n, 4)`` (x1, y1, x2, y2), scores ``(n,)``, labels ``(n,)``.
        """
        outputs = self.forward_transformer(self.extract_feat(batch_inputs), batch_data_samples)
        with autocast_disabled(batch_inputs):
            logits, boxes = self.bbox_head(**outputs)
            missing = self.num_queries - logits.shape[2]
            if missing:
                # mmdet takes max_per_img candidates even if there are fewer: queries of score 0 fill up the number.
                no_object = logits.new_full((logits.shape[-1],), float('-inf'))
                if not self.bbox_head.loss_cls.use_sigmoid:
                    no_object[-1] = 0.0  # the background class of the softmax
                logits = torch.cat((logits, no_object.expand(*logits.shape[:2], missing, -1)), 2)
                boxes = F.pad(boxes, (0, 0, 0, missing))
            metas = [sample.metainfo for sample in batch_data_samples]
            results = self.bbox_head.predict_by_feat(logits, boxes, batch_img_metas=metas, rescale=rescale)
            if missing:
                results = [result[result.scores > 0] for result in results]
        return self.add_pred_to_datasample(batch_data_samples, results)

    def forward_transformer(
        self, img_feats: tuple[Tensor, ...], batch_data_samples: SampleList | None = None
    ) -> dict[str, Any]:
        """Run encoder, query selection and decoder.

        Args:
            img_feats: The neck's maps ``(B, C, H, W)``, finest first.
            batch_data_samples: One sample per image.

        Returns:
            Inputs of the head: ``hidden_states`` ``(layers, B, Q, C)`` and ``references``, a list of ``(B, Q, 4)``; in
            training also ``enc_outputs_class``, ``enc_outputs_coord`` and ``dn_meta``. All tensors are fp32. Q is
            ``num_queries``, or the number of positions if there are fewer; in training, denoising queries come first.

        Raises:
            ValueError: If the maps and the transformer differ in number or channels.
        """
        _check_features(img_feats, embed_dims=self.embed_dims, num_feature_levels=self.num_feature_levels)
        # mmdet's masks, valid ratios and so reference points have the dtype of the maps: bf16 is exact only up to 256.
        return super().forward_transformer(tuple(level.float() for level in img_feats), batch_data_samples)

    def pre_decoder(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        spatial_shapes: Tensor,
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict, dict]:
        """Select the queries as mmdet does, but in fp32, and an image may have fewer positions than there are queries.

        Scores in half precision have ties that make the selection arbitrary. Positions are padded to ``num_queries``
        with scores of minus infinity: the padded ones are the last of the selected.

        Args:
            memory: The encoder's output, ``(B, N, C)``.
            memory_mask: ``(B, N)``, True on padding of the images, or None.
            spatial_shapes: ``(levels, 2)`` height and width of the maps.
            batch_data_samples: One sample per image; in training with ``gt_instances``.

        Returns:
            Inputs of :meth:`forward_decoder`, always for ``num_queries`` (and the denoising) queries; and, in training,
            those of the head's loss, without the padded ones.
        """
        with autocast_disabled(memory):
            memory = memory.float()
            hidden, proposals = self.gen_encoder_output_proposals(memory, memory_mask, spatial_shapes)
            padding = (0, 0, 0, self._num_padded(memory))
            last = self.decoder.num_layers
            logits = F.pad(self.bbox_head.cls_branches[last](hidden), padding, value=float('-inf'))
            # Infinite box logits mark invalid proposals in mmdet.
            boxes = F.pad(self.bbox_head.reg_branches[last](hidden) + proposals, padding, value=float('inf'))
            selected = logits.amax(-1).topk(self.num_queries, dim=1).indices.unsqueeze(-1)
            logits = logits.gather(1, selected.expand(-1, -1, logits.shape[-1]))
            boxes = boxes.gather(1, selected.expand(-1, -1, 4))
            query = self.query_embedding.weight.expand(len(memory), -1, -1)
            references, dn_mask, head_inputs = boxes.detach(), None, {}
            if self.training:
                dn_query, dn_boxes, dn_mask, dn_meta = self.dn_query_generator(batch_data_samples)
                query = torch.cat((dn_query, query), 1)
                references = torch.cat((dn_boxes, references), 1)
                real = slice(self.num_queries - self._num_padded(memory))
                head_inputs = {
                    'enc_outputs_class': logits[:, real],
                    'enc_outputs_coord': boxes[:, real].sigmoid(),
                    'dn_meta': dn_meta,
                }
        decoder_inputs = {
            'query': query,
            'memory': memory,
            'reference_points': references.sigmoid(),
            'dn_mask': dn_mask,
        }
        return decoder_inputs, head_inputs

    def forward_decoder(self, query: Tensor, memory: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Run mmdet's ``forward_decoder`` and remove the outputs of padded queries.

        Without denoising queries, the label embedding is kept in the graph with a gradient of 0.
        """
        padded = self._num_padded(memory)
        outputs = super().forward_decoder(query, memory=memory, num_padded=padded, **kwargs)
        if self.training and query.shape[1] == self.num_queries:
            zero = self.dn_query_generator.label_embedding.weight.sum() * 0.0
            outputs['hidden_states'] = outputs['hidden_states'] + zero
        if padded:
            outputs['hidden_states'] = outputs['hidden_states'][:, :, :-padded]
            outputs['references'] = [boxes[:, :-padded] for boxes in outputs['references']]
        return outputs

    def _num_padded(self, memory: Tensor) -> int:
        """Number of queries beyond the positions of ``memory`` ``(B, N, C)``."""
        return max(self.num_queries - memory.shape[1], 0)


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
