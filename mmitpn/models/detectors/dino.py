"""DINO on mmdet, the same on every version of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.detectors import DINO as HostDINO  # noqa: N811 (ours has the name, in our own scope)
from mmdet.models.layers import SinePositionalEncoding
from mmdet.structures import OptSampleList, SampleList
from mmengine.model import initialize
from torch import Tensor, nn

from mmitpn.checkpoint import QuietInit
from mmitpn.config_types import is_type
from mmitpn.models.transformer import DinoTransformerDecoder, DinoTransformerEncoder
from mmitpn.models.transformer.running import full_precision
from mmitpn.registry import MODELS

from . import dino_checks as checks


@MODELS.register_module()
class DINO(QuietInit, HostDINO):
    """DINO (arXiv 2203.03605) that trains and loads the same on mmdet 3.3.0 and onedl-mmdetection 3.5.1.

    It is mmdet's DINO, with its arguments, parameter names and initialisation; a config needs only the type changed.
    What differs:

    - Its own decoder, whose shapes do not depend on the version of mmdet: a checkpoint made on one loads on the other,
      and so do those mmdet publishes for DINO, such as ``dino-4scale_r50_8xb2-12e_coco``.
    - Every parameter gets a gradient in every step, also on a process whose pictures have no objects, so distributed
      training needs no ``find_unused_parameters``.
    - Sampling, box refinement, matching and losses run in fp32 under autocast.
    - ``with_cp`` in ``encoder`` and ``decoder`` (True, or so many layers from the first on) recomputes activations with
      PyTorch's checkpointing; mmdet's ``num_cp``, which needs fairscale, is refused.
    - Self-attention is fused, and settings that do not fit are told before training.

    More objects in a picture than ``num_dn_queries`` gives one denoising group of them all, twice as many queries as
    objects: memory grows with the fullest picture.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck; it must give ``num_feature_levels`` maps of ``embed_dims`` channels, finest first.
        encoder: Config of :class:`DinoTransformerEncoder`.
        decoder: Config of :class:`DinoTransformerDecoder`.
        bbox_head: Config of the head, as mmdet's ``DINOHead``.
        positional_encoding: Config of mmdet's ``SinePositionalEncoding``.
        num_queries: Number of queries that are matched to objects. An image with fewer positions is padded to this
            number; padded queries influence nothing, are matched to nothing and are never returned.
        num_feature_levels: Number of maps.
        with_box_refine: Must be True. Here because mmdet's configs write it.
        as_two_stage: Must be True. Here because mmdet's configs write it.
        dn_cfg: Denoising queries: ``label_noise_scale``, ``box_noise_scale`` and ``group_cfg``, as in mmdet. None is
            the published setting: 0.5, 1.0 and groups for 100 queries.
        train_cfg: Config of the assigner.
        test_cfg: ``dict(max_per_img=300)``.
        data_preprocessor: Config of the data preprocessor.
        init_cfg: As in mmengine; ``Pretrained`` here loads a whole detector.

    Raises:
        ValueError: If settings do not fit together; the message says what was seen, what is allowed, what to do.
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
        checks.check_count('num_queries', num_queries)
        checks.check_count('num_feature_levels', num_feature_levels)
        if with_box_refine is not True or as_two_stage is not True:
            raise ValueError(
                f'with_box_refine is {with_box_refine!r}, as_two_stage {as_two_stage!r}; DINO allows True only: leave'
                ' both out'
            )
        checks.check_head(bbox_head, num_queries=num_queries, test_cfg=test_cfg)
        if dn_cfg is None:
            dn_cfg = {'label_noise_scale': 0.5, 'box_noise_scale': 1.0, 'group_cfg': {'num_dn_queries': 100}}
        checks.check_denoising(dn_cfg)
        if 'num_cp' in encoder:
            raise ValueError(f'encoder sets num_cp={encoder["num_cp"]!r}, which needs fairscale: write with_cp instead')
        # mmdet writes into the configs it is given: a copy lets the same config build a second model.
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
            checks.check_neck(self.neck, neck, embed_dims=self.embed_dims, num_feature_levels=num_feature_levels)

    def _init_layers(self) -> None:
        """Build what stands between the neck and the head."""
        for name, part, attention in (
            ('encoder', self.encoder, 'self_attn_cfg'),
            ('decoder', self.decoder, 'cross_attn_cfg'),
        ):
            settings = part['layer_cfg'].get(attention, {})
            checks.check_levels(f'{name}.layer_cfg.{attention}', settings, self.num_feature_levels)
        self.positional_encoding = SinePositionalEncoding(**self.positional_encoding)
        self.encoder = DinoTransformerEncoder(**self.encoder)
        self.decoder = DinoTransformerDecoder(**self.decoder)
        self.embed_dims = self.encoder.embed_dims
        checks.check_widths(
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
        """Initialise as mmdet does. A ``Pretrained`` init_cfg of the detector stays loaded, which mmdet overwrites."""
        super().init_weights()
        settings = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else self.init_cfg or []
        for setting in settings:
            if is_type(setting, 'Pretrained', 'PretrainedInit'):
                initialize(self, setting)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch_inputs: Normalised pictures ``(B, 3, H, W)``.
            batch_data_samples: One sample a picture, with ``gt_instances``: boxes ``(n, 4)`` (x1, y1, x2, y2) in pixels
                and labels ``(n,)``; n may be 0.

        Returns:
            The losses by name: of every decoder layer, of the encoder's boxes and of the denoising queries.
        """
        outputs = self.forward_transformer(self.extract_feat(batch_inputs), batch_data_samples)
        with full_precision(batch_inputs):
            return self.bbox_head.loss(**outputs, batch_data_samples=batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """Detect objects.

        Args:
            batch_inputs: Normalised pictures ``(B, 3, H, W)``.
            batch_data_samples: One sample a picture.
            rescale: Give boxes in pixels of the picture as it was before resizing.

        Returns:
            The samples with ``pred_instances``: bboxes ``(n, 4)`` (x1, y1, x2, y2), scores ``(n,)``, labels ``(n,)``.
        """
        outputs = self.forward_transformer(self.extract_feat(batch_inputs), batch_data_samples)
        with full_precision(batch_inputs):
            logits, boxes = self.bbox_head(**outputs)
            missing = self.num_queries - logits.shape[2]
            if missing:
                # mmdet takes the best max_per_img, however many there are: queries of score 0 make up the number.
                nothing = logits.new_full((logits.shape[-1],), float('-inf'))
                if not self.bbox_head.loss_cls.use_sigmoid:
                    nothing[-1] = 0.0  # the softmax's class for no object
                logits = torch.cat((logits, nothing.expand(*logits.shape[:2], missing, -1)), 2)
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
            batch_data_samples: One sample a picture.

        Returns:
            What the head takes: ``hidden_states`` ``(layers, B, Q, C)`` and ``references``, a list of ``(B, Q, 4)``; in
            training also ``enc_outputs_class``, ``enc_outputs_coord`` and ``dn_meta``. All tensors are fp32. Q is
            ``num_queries``, or the number of positions where there are fewer; in training denoising queries precede.

        Raises:
            ValueError: If the maps do not fit the transformer.
        """
        checks.check_features(img_feats, embed_dims=self.embed_dims, num_feature_levels=self.num_feature_levels)
        # mmdet takes the type of masks, valid ratios and so of reference points from the maps: bf16 counts only to 256.
        return super().forward_transformer(tuple(level.float() for level in img_feats), batch_data_samples)

    def pre_decoder(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        spatial_shapes: Tensor,
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict, dict]:
        """Choose the queries: as mmdet's, but in fp32, and an image may have fewer positions than there are queries.

        Scores in half precision have ties that make the choice of queries arbitrary. Positions are padded to
        ``num_queries`` with scores of minus infinity: the padded ones are the last of the chosen.

        Args:
            memory: The encoder's output, ``(B, N, C)``.
            memory_mask: ``(B, N)``, True on padding of the images, or None.
            spatial_shapes: ``(levels, 2)`` height and width of the maps.
            batch_data_samples: One sample per image; in training with ``gt_instances``.

        Returns:
            Inputs of :meth:`forward_decoder`, always for ``num_queries`` (and the denoising) queries; and, in training,
            those of the head's loss, without the padded ones.
        """
        with full_precision(memory):
            memory = memory.float()
            hidden, proposals = self.gen_encoder_output_proposals(memory, memory_mask, spatial_shapes)
            padding = (0, 0, 0, self._num_padded(memory))
            last = self.decoder.num_layers
            logits = F.pad(self.bbox_head.cls_branches[last](hidden), padding, value=float('-inf'))
            # An infinite logit is a box that is not there, as mmdet marks invalid proposals.
            boxes = F.pad(self.bbox_head.reg_branches[last](hidden) + proposals, padding, value=float('inf'))
            chosen = logits.amax(-1).topk(self.num_queries, dim=1).indices.unsqueeze(-1)
            logits = logits.gather(1, chosen.expand(-1, -1, logits.shape[-1]))
            boxes = boxes.gather(1, chosen.expand(-1, -1, 4))
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
        """As mmdet's, without what padded queries give.

        The label embedding stays in the graph when there is no denoising query to keep it there.
        """
        padded = self._num_padded(memory)
        outputs = super().forward_decoder(query, memory=memory, num_padded=padded, **kwargs)
        if self.training and query.shape[1] == self.num_queries:
            nothing = self.dn_query_generator.label_embedding.weight.sum() * 0.0
            outputs['hidden_states'] = outputs['hidden_states'] + nothing
        if padded:
            outputs['hidden_states'] = outputs['hidden_states'][:, :, :-padded]
            outputs['references'] = [boxes[:, :-padded] for boxes in outputs['references']]
        return outputs

    def _num_padded(self, memory: Tensor) -> int:
        """How many queries an image with the positions of ``memory`` ``(B, N, C)`` lacks."""
        return max(self.num_queries - memory.shape[1], 0)
