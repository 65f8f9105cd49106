"""MaskDINO's transformer decoder and its prediction heads: encoder levels to classes, boxes and masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from mmdet.models.layers import MLP
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmitpn.models.dino import DinoTransformerDecoder, FeatureLevels, autocast_disabled, count_padded_queries
from mmitpn.models.mask_dino_postprocess import LayerOutputs

from .query_init import (
    BOX_STARTS,
    EPS,
    DenoisingQueries,
    SelectedQueries,
    box_logits,
    init_reference_boxes,
    select_queries,
)


class DecoderOutputs(NamedTuple):
    """Predictions of all layers.

    Attributes:
        layers: Before the first layer and after each, L = layers + 1, without denoising queries; or L = 1: after the
            last layer.
        denoising: The same for the denoising queries; None without them.
        encoder: Predictions of the selected encoder positions; None without query selection.
        selected: The selected queries; None without query selection.
        references: Boxes that each layer starts from and the last layer's refined boxes, ``(layers + 1, B, Q, 4)``.

    Q is the number of queries, or of positions if queries are selected and an image has fewer positions.
    """

    layers: LayerOutputs
    denoising: LayerOutputs | None
    encoder: LayerOutputs | None
    selected: SelectedQueries | None
    references: Tensor

    @property
    def last(self) -> LayerOutputs:
        """Predictions of the last layer."""
        return self.layers.layer(-1)

    def matched(self) -> LayerOutputs:
        """All predictions that are matched with objects: the encoder's, if there are any, then those of all layers."""
        if self.encoder is None:
            return self.layers
        pairs = zip(self.encoder[:3], self.layers[:3], strict=True)
        return LayerOutputs(*(torch.cat((one[None], others)) for one, others in pairs), self.layers.mask_features)


class MaskDINOTransformerDecoder(BaseModule):
    """Query selection, decoder layers and prediction heads (arXiv 2206.02777).

    All layers share one class head, one box head and one mask head.

    Args:
        num_classes: Number of classes.
        feat_channels: Width of the decoder and of the encoder's levels.
        out_channels: Channels of the map for the masks.
        num_queries: Queries that are matched to objects.
        num_levels: Levels of the encoder.
        num_layers: Layers of the decoder.
        num_heads: Attention heads.
        num_points: Sampling points per head and level.
        feedforward_channels: Hidden channels of the feed-forward networks.
        two_stage: Queries are selected from the encoder's positions; False: they are learned.
        learn_queries: With ``two_stage``: selection gives the boxes only, the content of the queries is learned.
        box_start: ``'mask2box'``, ``'bitmask'`` or ``'no'``; see :func:`~.query_init.init_reference_boxes`.
        background: One more class, for background: the softmax loss needs it, the focal loss does not.
        released: See :func:`~.query_init.init_reference_boxes`; and the class head is initialized without a prior (the
            first focal loss is then about 1e4).
        with_cp: Activation checkpointing; see :class:`~mmitpn.models.dino.DinoTransformerDecoder`.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If the settings are inconsistent.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        feat_channels: int = 256,
        out_channels: int = 256,
        num_queries: int = 300,
        num_levels: int = 4,
        num_layers: int = 9,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 2048,
        two_stage: bool = True,
        learn_queries: bool = False,
        box_start: str = 'mask2box',
        background: bool = False,
        released: bool = False,
        with_cp: bool | int = False,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if box_start not in BOX_STARTS:
            raise ValueError(f'box_start is {box_start!r}; allowed: {", ".join(map(repr, BOX_STARTS))}')
        if box_start != 'no' and not two_stage:
            raise ValueError(
                f'box_start={box_start!r} makes boxes from the masks of selected queries, but two_stage is False: use'
                " box_start='no', or two_stage=True"
            )
        self.num_queries = num_queries
        self.box_start = box_start
        self.released = released
        self.two_stage = two_stage
        width = feat_channels
        attention = {'embed_dims': width, 'num_heads': num_heads, 'dropout': 0.0}
        self.decoder = DinoTransformerDecoder(
            num_layers,
            {
                'self_attn_cfg': dict(attention),
                'cross_attn_cfg': {**attention, 'num_levels': num_levels, 'num_points': num_points},
                'ffn_cfg': {'embed_dims': width, 'feedforward_channels': feedforward_channels},
            },
            with_cp=with_cp,
            eps=EPS,
        )
        self.class_embed = nn.Linear(width, num_classes + background)
        self.box_embed = MLP(width, width, 4, 3)
        self.mask_embed = MLP(width, width, out_channels, 3)
        self.label_embed = nn.Embedding(num_classes, width)
        if two_stage:
            self.memory_proj = nn.Linear(width, width)
            self.memory_norm = nn.LayerNorm(width)
        self.query_content = nn.Embedding(num_queries, width) if learn_queries or not two_stage else None
        self.query_boxes = nn.Embedding(num_queries, 4) if not two_stage else None

    def init_weights(self) -> None:
        """Initialize as the released code, with a prior of 0.01 for every class unless ``released``."""
        super().init_weights()
        for layer in self.decoder.layers:
            for name, weight in layer.named_parameters():
                if weight.dim() > 1 and 'sampling_offsets' not in name and 'attention_weights' not in name:
                    nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.box_embed.layers[-1].weight)
        nn.init.zeros_(self.box_embed.layers[-1].bias)
        if not self.released:
            nn.init.constant_(self.class_embed.bias, -math.log((1 - 0.01) / 0.01))

    def forward(
        self,
        mask_features: Tensor,
        levels: Sequence[Tensor],
        padding_mask: Tensor | None = None,
        dn_queries: DenoisingQueries | None = None,
        *,
        all_layers: bool = True,
    ) -> DecoderOutputs:
        """Predict classes, boxes and masks.

        Args:
            mask_features: The map for the masks, ``(B, C, H, W)``.
            levels: The encoder's levels ``(B, C, H_i, W_i)``, in its order.
            padding_mask: ``(B, H, W)``, True on padding, at any resolution; None without padding.
            dn_queries: Denoising queries of the batch; None: without denoising.
            all_layers: Predict before the first layer and after every layer; False: after the last layer only.

        Returns:
            The predictions, in fp32. If queries are selected and there are fewer positions than queries, the decoder
            runs with padded queries. No other query attends to them, and the predictions do not contain them.
        """
        with autocast_disabled(mask_features):
            # The decoder takes the levels in the reverse of the encoder's order.
            levels = [level.float() for level in reversed(levels)]
            return self._forward(mask_features.float(), levels, padding_mask, dn_queries, all_layers=all_layers)

    def _forward(
        self,
        mask_features: Tensor,
        levels: list[Tensor],
        padding_mask: Tensor | None,
        dn_queries: DenoisingQueries | None,
        *,
        all_layers: bool,
    ) -> DecoderOutputs:
        memory = FeatureLevels.flatten(levels)
        levels = FeatureLevels.of(levels, padding_mask, fractions_of_padded=True)
        num_dn = 0 if dn_queries is None else dn_queries.number

        content, boxes, selected, encoder_outputs = self._init_queries(memory, levels, mask_features)
        num_padded = count_padded_queries(self.num_queries, memory.shape[1]) if self.two_stage else 0
        num_real = self.num_queries - num_padded
        if dn_queries is not None:
            content = torch.cat((self.label_embed(dn_queries.labels) * dn_queries.valid.unsqueeze(-1), content), 1)
            boxes = torch.cat((dn_queries.boxes, boxes), 1)
        states, references = self.decoder(
            content,
            memory,
            levels,
            self_attn_mask=None if dn_queries is None else dn_queries.attention_mask(self.num_queries),
            reference_points=boxes.sigmoid(),
            reg_branches=[self.box_embed] * self.decoder.num_layers,
            num_padded=num_padded,
        )
        first = 0 if all_layers else -1
        states = states[first:]
        refined = (self.box_embed(states) + box_logits(references[:-1][first:])).sigmoid()
        if all_layers:
            states, refined = torch.cat((content[None], states)), torch.cat((references[:1], refined))
        outputs = self._forward_head(states, refined, mask_features)
        return DecoderOutputs(
            layers=outputs.queries(num_dn, num_dn + num_real),
            denoising=outputs.queries(0, num_dn) if num_dn else None,
            encoder=None if encoder_outputs is None else encoder_outputs.queries(0, num_real),
            selected=None if selected is None else selected.first(num_real),
            references=references[:, :, num_dn : num_dn + num_real],
        )

    def _init_queries(
        self, memory: Tensor, levels: FeatureLevels, mask_features: Tensor
    ) -> tuple[Tensor, Tensor, SelectedQueries | None, LayerOutputs | None]:
        """Content ``(B, Q, C)`` and box logits ``(B, Q, 4)`` of the matching queries, and where they were selected."""
        batch_size = memory.shape[0]
        if not self.two_stage:
            content, boxes = self.query_content.weight, self.query_boxes.weight
            return content.expand(batch_size, -1, -1), boxes.expand(batch_size, -1, -1), None, None
        selected = select_queries(
            memory,
            levels,
            number=self.num_queries,
            transform=lambda x: self.memory_norm(self.memory_proj(x)),
            classify=self.class_embed,
            refine=self.box_embed,
        )
        outputs = self._forward_head(selected.content, selected.boxes.sigmoid(), mask_features)
        masks = outputs.masks().detach() if self.box_start != 'no' else mask_features
        boxes = init_reference_boxes(masks, selected.boxes, self.box_start, released=self.released)
        content = selected.content.detach()
        if self.query_content is not None:
            content = self.query_content.weight.expand(batch_size, -1, -1)
        return content, boxes, selected, outputs

    def _forward_head(self, state: Tensor, boxes: Tensor, mask_features: Tensor) -> LayerOutputs:
        """Apply the decoder's norm, then the class and mask heads.

        As in the released code, the outputs of layers are normalized twice: by the decoder and here.
        """
        state = self.decoder.norm(state)
        return LayerOutputs(self.class_embed(state), boxes, self.mask_embed(state), mask_features)
