"""MaskDINO's transformer decoder with its prediction heads: levels and mask features to classes, boxes and masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mmdet.models.layers import MLP
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmitpn.models.transformer import DinoTransformerDecoder
from mmitpn.models.transformer.running import full_precision

from .boxes import BOX_STARTS, EPS, box_logits, first_boxes
from .denoising import Noised
from .flat import flat_padding, level_starts
from .selection import Selection, select_queries


@dataclass(frozen=True)
class Prediction:
    """What one layer says of its queries.

    Attributes:
        logits: Of the classes, ``(B, Q, K)``, K + 1 with a class for nothing.
        boxes: ``(B, Q, 4)`` (cx, cy, w, h) in fractions of the padded picture.
        kernels: What masks are made with, ``(B, Q, C)``.
        features: The map of the masks, ``(B, C, H, W)``.
    """

    logits: Tensor
    boxes: Tensor
    kernels: Tensor
    features: Tensor

    def masks(self) -> Tensor:
        """Mask logits of all queries, ``(B, Q, H, W)``."""
        return torch.einsum('bqc,bchw->bqhw', self.kernels, self.features)

    def part(self, first: int, last: int) -> Prediction:
        """The queries from ``first`` up to ``last``."""
        span = slice(first, last)
        return Prediction(self.logits[:, span], self.boxes[:, span], self.kernels[:, span], self.features)


@dataclass(frozen=True)
class Predictions:
    """What all layers say.

    Attributes:
        layers: Before the first layer, and after each; denoising queries are taken out.
        denoising: Of the denoising queries the same; empty without them.
        selected: Of the chosen positions of the encoder's maps; None without query selection.
        selection: Which these are; None without query selection.
        references: Boxes that each layer starts from, ``(layers + 1, B, Q, 4)``, the last layer's own included.

    Q is the number of queries, or that of positions where queries are selected and an image has fewer.
    """

    layers: list[Prediction]
    denoising: list[Prediction]
    selected: Prediction | None
    selection: Selection | None
    references: Tensor


class MaskDINOPredictor(BaseModule):
    """Queries to classes, boxes and masks (arXiv 2206.02777), with one class head and one box head for all layers.

    Args:
        num_classes: Classes that a query may have.
        feat_channels: Width of the decoder and of the levels.
        out_channels: Channels of the map for the masks.
        num_queries: Queries that are matched to objects.
        num_levels: Levels of the encoder.
        num_layers: Layers of the decoder.
        num_heads: Attention heads.
        num_points: Sampling points of a head and level.
        feedforward_channels: Hidden channels of the feed-forward networks.
        two_stage: Queries are places of the encoder's maps; False: they are learned.
        learn_queries: With ``two_stage``: the places give boxes only, what queries hold is learned.
        box_start: ``'mask2box'``, ``'bitmask'`` or ``'no'``; see :func:`first_boxes`.
        background: One more class, for nothing (the softmax loss has it, the focal loss has not).
        released: See :func:`first_boxes`; and class heads start without a prior (the first focal loss is then huge).
        with_cp: Recompute the decoder's activations in the backward pass; see :class:`DinoTransformerDecoder`.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If the settings do not fit together.
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
        """As published, with a prior of 0.01 for every class unless ``released``."""
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
        features: Tensor,
        levels: Sequence[Tensor],
        padding: Tensor | None = None,
        noised: Noised | None = None,
        *,
        all_layers: bool = True,
    ) -> Predictions:
        """Predict.

        Args:
            features: The map for the masks, ``(B, C, H, W)``.
            levels: The encoder's levels ``(B, C, H_i, W_i)``, in its order.
            padding: ``(B, H, W)``, True on padding, at any resolution; None where nothing is.
            noised: The batch's noised objects, if it is to learn from them.
            all_layers: Predict before the first layer and after every one; False: after the last one only.

        Returns:
            The predictions, in fp32. Where queries are selected and there are fewer positions than queries, the decoder
            runs with padded queries, which no other query attends to and which are left out here.
        """
        with full_precision(features):
            return self._predict(
                features.float(), [level.float() for level in reversed(levels)], padding, noised, all_layers=all_layers
            )

    def _predict(
        self,
        features: Tensor,
        levels: list[Tensor],
        padding: Tensor | None,
        noised: Noised | None,
        *,
        all_layers: bool,
    ) -> Predictions:
        # The decoder has the levels in the reverse of the encoder's order.
        shapes = [tuple(level.shape[-2:]) for level in levels]
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        hidden = flat_padding(padding, shapes)
        batch, extra = len(memory), 0 if noised is None else noised.number

        content, boxes, selection, selected = self._queries(memory, shapes, hidden, features)
        padded = max(self.num_queries - memory.shape[1], 0) if self.two_stage else 0
        real = self.num_queries - padded
        if noised is not None:
            content = torch.cat((noised.scatter(self.label_embed(noised.labels), batch), content), 1)
            boxes = torch.cat((noised.scatter(noised.boxes, batch), boxes), 1)
        spatial_shapes = torch.tensor(shapes, device=memory.device)
        states, references = self.decoder(
            query=content,
            value=memory,
            key_padding_mask=hidden,
            self_attn_mask=None if noised is None else noised.attention_mask(self.num_queries),
            reference_points=boxes.sigmoid(),
            spatial_shapes=spatial_shapes,
            level_start_index=level_starts(spatial_shapes),
            valid_ratios=memory.new_ones(batch, len(shapes), 2),
            reg_branches=[self.box_embed] * self.decoder.num_layers,
            num_padded=padded,
        )
        found = [self._say(content, references[0], features)] if all_layers else []
        for state, reference in list(zip(states, references[:-1], strict=True))[0 if all_layers else -1 :]:
            found.append(self._say(state, (self.box_embed(state) + box_logits(reference)).sigmoid(), features))
        return Predictions(
            layers=[one.part(extra, extra + real) for one in found],
            denoising=[one.part(0, extra) for one in found] if extra else [],
            selected=None if selected is None else selected.part(0, real),
            selection=None if selection is None else selection.part(real),
            references=references[:, :, extra : extra + real],
        )

    def _queries(
        self, memory: Tensor, shapes: list[tuple[int, int]], hidden: Tensor | None, features: Tensor
    ) -> tuple[Tensor, Tensor, Selection | None, Prediction | None]:
        """Content ``(B, Q, C)`` and box logits ``(B, Q, 4)`` of the matching queries, and what they were chosen by."""
        batch = len(memory)
        if not self.two_stage:
            content, boxes = self.query_content.weight, self.query_boxes.weight
            return content.expand(batch, -1, -1), boxes.expand(batch, -1, -1), None, None
        selection = select_queries(
            memory,
            shapes,
            hidden,
            number=self.num_queries,
            transform=lambda x: self.memory_norm(self.memory_proj(x)),
            classify=self.class_embed,
            refine=self.box_embed,
        )
        selected = self._say(selection.content, selection.boxes.sigmoid(), features)
        masks = selected.masks().detach() if self.box_start != 'no' else features
        boxes = first_boxes(masks, selection.boxes, self.box_start, released=self.released)
        content = selection.content.detach()
        if self.query_content is not None:
            content = self.query_content.weight.expand(batch, -1, -1)
        return content, boxes, selection, selected

    def _say(self, state: Tensor, boxes: Tensor, features: Tensor) -> Prediction:
        """Predictions of the decoder's states: their norm is applied here (to layers' outputs a second time)."""
        state = self.decoder.norm(state)
        return Prediction(self.class_embed(state), boxes, self.mask_embed(state), features)
