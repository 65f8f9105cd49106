"""Encoder and decoder of DINO, with the same parameters on every version of mmdet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.layers import (
    MLP,
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
    inverse_sigmoid,
)
from mmdet.models.layers.transformer.deformable_detr_layers import (
    DeformableDetrTransformerDecoderLayer,
    DeformableDetrTransformerEncoderLayer,
)
from mmengine.model import ModuleList
from torch import Tensor, nn

from ..layers import maybe_checkpoint
from .deformable_attention import MultiScaleDeformableAttention, autocast_disabled
from .levels import FeatureLevels, sine_embedding


class DinoEncoderLayer(DeformableDetrTransformerEncoderLayer):
    """mmdet's encoder layer with this project's deformable attention."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.self_attn = MultiScaleDeformableAttention(**self.self_attn_cfg)


class DinoTransformerEncoder(DeformableDetrTransformerEncoder):
    """Deformable DETR's encoder (arXiv 2010.04159), with mmdet's parameter names and initialization.

    Args:
        num_layers: Number of layers.
        layer_cfg: Settings of each layer, as in mmdet: ``self_attn_cfg``, ``ffn_cfg``, ``norm_cfg``.
        with_cp: Activation checkpointing of all layers (True) or of the first N layers (an integer). It uses PyTorch's
            checkpointing; mmdet's ``num_cp`` needs fairscale.
        init_cfg: As in mmengine.
    """

    def __init__(
        self, num_layers: int, layer_cfg: Mapping, *, with_cp: bool | int = False, init_cfg: Mapping | None = None
    ) -> None:
        super().__init__(num_layers, layer_cfg, init_cfg=init_cfg)
        self.num_recomputed = resolve_num_recomputed(with_cp, num_layers)

    def _init_layers(self) -> None:
        self.layers = ModuleList(DinoEncoderLayer(**self.layer_cfg) for _ in range(self.num_layers))
        self.embed_dims = self.layers[0].embed_dims

    def forward(self, query: Tensor, query_pos: Tensor, levels: FeatureLevels) -> Tensor:
        """Exchange information between all positions of all levels.

        Args:
            query: ``(B, N, C)``, the flattened maps, level by level.
            query_pos: ``(B or 1, N, C)``, their position embeddings.
            levels: The levels, with their padding.

        Returns:
            ``(B, N, C)``.
        """
        reference_points = levels.reference_points().expand(query.shape[0], -1, -1, -1)
        for index, layer in enumerate(self.layers):
            query = maybe_checkpoint(
                layer,
                query,
                query_pos,
                levels.padding_mask,
                recompute=index < self.num_recomputed,
                level_shapes=levels.shapes,
                reference_points=reference_points,
            )
        return query


class FusedAttention(nn.MultiheadAttention):
    """PyTorch's attention without returned weights: the full Q x Q matrix is never allocated."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """As PyTorch's, with None for the weights."""
        return super().forward(query, key, value, **kwargs, need_weights=False)


class DinoDecoderLayer(DeformableDetrTransformerDecoderLayer):
    """mmdet's layer with fused self-attention and this project's deformable attention; same parameter names."""

    def _init_layers(self) -> None:
        super()._init_layers()
        attn = self.self_attn.attn
        self.self_attn.attn = FusedAttention(attn.embed_dim, attn.num_heads, dropout=attn.dropout)
        self.cross_attn = MultiScaleDeformableAttention(**self.cross_attn_cfg)


class DinoTransformerDecoder(DeformableDetrTransformerDecoder):
    """DINO's decoder (arXiv 2203.03605): boxes are refined layer by layer, with "look forward twice".

    ``ref_point_head`` always takes ``2 * embed_dims`` features, as in DINO and in mmdet 3.3.0, so a checkpoint moves
    between versions of mmdet (onedl-mmdetection 3.5.1 takes ``4 * embed_dims``). Sine embedding and box refinement
    run in fp32 under autocast.

    Args:
        num_layers: Number of layers.
        layer_cfg: Settings of each layer, as in mmdet: ``self_attn_cfg``, ``cross_attn_cfg``, ``ffn_cfg`` ...
        with_cp: Activation checkpointing of all layers (True) or of the first N layers (an integer).
        eps: Distance that refined boxes keep from 0 and 1: DINO 1e-3, MaskDINO 1e-5.
        post_norm_cfg: Must be None: the decoder has its own norm. Accepted because mmdet's configs contain it.
        return_intermediate: Must be True: DINO learns from every layer. Accepted because mmdet's configs contain it.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If the width is not a multiple of 4, or one of the fixed settings has another value.
    """

    def __init__(
        self,
        num_layers: int,
        layer_cfg: Mapping,
        *,
        with_cp: bool | int = False,
        eps: float = 1e-3,
        post_norm_cfg: Mapping | None = None,
        return_intermediate: bool = True,
        init_cfg: Mapping | None = None,
    ) -> None:
        if post_norm_cfg is not None or return_intermediate is not True:
            raise ValueError(
                f'decoder has post_norm_cfg={post_norm_cfg!r}, return_intermediate={return_intermediate!r}; DINO allows'
                ' None and True only: leave both out'
            )
        super().__init__(num_layers, layer_cfg, post_norm_cfg=None, init_cfg=init_cfg)
        self.num_recomputed = resolve_num_recomputed(with_cp, num_layers)
        self.eps = eps

    def _init_layers(self) -> None:
        self.layers = ModuleList(DinoDecoderLayer(**self.layer_cfg) for _ in range(self.num_layers))
        self.embed_dims = self.layers[0].embed_dims
        if self.embed_dims % 4:
            raise ValueError(f'embed_dims of the decoder is {self.embed_dims}; give a multiple of 4')
        self.ref_point_head = MLP(2 * self.embed_dims, self.embed_dims, self.embed_dims, 2)
        self.norm = nn.LayerNorm(self.embed_dims)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        levels: FeatureLevels,
        *,
        reference_points: Tensor,
        reg_branches: Sequence[nn.Module],
        self_attn_mask: Tensor | None = None,
        num_padded: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Refine queries and boxes.

        Args:
            query: ``(B, Q, C)``.
            value: ``(B, N, C)``, the encoder's output, level by level.
            levels: The levels, with their padding.
            reference_points: ``(B, Q, 4)`` initial boxes (cx, cy, w, h), in fractions of the image.
            reg_branches: The head's box branches, one per layer.
            self_attn_mask: ``(Q, Q)``, True where a query must not attend, or None.
            num_padded: The last ``num_padded`` queries are padding, in an image with fewer positions than queries. No
                query attends to them, so the other queries are computed as without padding.

        Returns:
            Normalized queries of every layer ``(layers, B, Q, C)``; boxes before the first and after every layer
            ``(layers + 1, B, Q, 4)``, fp32.
        """
        if num_padded:
            self_attn_mask = mask_padded_queries(self_attn_mask, query, num_padded)
        ratios = levels.valid_ratios.repeat(1, 1, 2)[:, None]
        boxes = reference_points.float()
        queries, references = [], [boxes]
        for index, layer in enumerate(self.layers):
            level_boxes = boxes[:, :, None] * ratios
            first = level_boxes[:, :, 0]
            center = first[..., :2].flip(-1)  # the published order: cy, cx, w, h
            query_pos = sine_embedding(torch.cat((center, first[..., 2:]), -1), self.embed_dims // 2)
            query = maybe_checkpoint(
                layer,
                query,
                recompute=index < self.num_recomputed,
                query_pos=self.ref_point_head(query_pos),
                value=value,
                key_padding_mask=levels.padding_mask,
                self_attn_mask=self_attn_mask,
                level_shapes=levels.shapes,
                reference_points=level_boxes,
            )
            with autocast_disabled(query):
                refined = (reg_branches[index](query.float()) + inverse_sigmoid(boxes, eps=self.eps)).sigmoid()
            # "Look forward twice": the next layer starts from detached boxes, but the loss of the next layer's boxes
            # uses the boxes with their gradient as reference.
            boxes = refined.detach()
            queries.append(self.norm(query))
            references.append(refined)
        return torch.stack(queries), torch.stack(references)


def mask_padded_queries(self_attn_mask: Tensor | None, query: Tensor, num_padded: int) -> Tensor:
    """Exclude the last ``num_padded`` queries from self-attention.

    The padded queries themselves attend to the others: a row that attends to nothing would be NaN.

    Args:
        self_attn_mask: ``(Q, Q)`` bool, True where a query must not attend, or None.
        query: ``(B, Q, C)``.
        num_padded: Number of padded queries, less than Q.

    Returns:
        A new mask ``(Q, Q)``.
    """
    number = query.shape[1]
    padded = torch.arange(number, device=query.device) >= number - num_padded
    masked = padded.expand(number, number)
    return masked if self_attn_mask is None else self_attn_mask | masked


def resolve_num_recomputed(with_cp: bool | int, num_layers: int) -> int:
    """Number of leading layers with activation checkpointing.

    Args:
        with_cp: False for none, True for all, or the number of layers, counted from the first.
        num_layers: Number of layers of the module.

    Raises:
        ValueError: If ``with_cp`` is none of these.
    """
    if isinstance(with_cp, bool):
        return num_layers if with_cp else 0
    if not isinstance(with_cp, int) or not 0 <= with_cp <= num_layers:
        raise ValueError(
            f'with_cp is {with_cp!r}; give True (recompute all {num_layers} layers), False (none), or the number of'
            f' layers to recompute, counted from the first (0 to {num_layers})'
        )
    return with_cp
