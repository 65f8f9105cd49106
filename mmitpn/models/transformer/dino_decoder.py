"""The decoder of DINO, the same on every version of mmdet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from mmdet.models.layers import MLP, DeformableDetrTransformerDecoder, inverse_sigmoid
from mmdet.models.layers.transformer.deformable_detr_layers import DeformableDetrTransformerDecoderLayer
from mmengine.model import ModuleList
from torch import Tensor, nn

from .deformable_attention import MultiScaleDeformableAttention
from .running import count_recomputed, full_precision, run


def sine_embedding(boxes: Tensor, num_feats: int, *, temperature: float = 10000.0) -> Tensor:
    """Embed boxes by sines and cosines, in fp32 (DAB-DETR, arXiv 2201.12329, as DINO's authors wrote it).

    Args:
        boxes: ``(..., 4)`` boxes (cx, cy, w, h) in fractions of the picture.
        num_feats: Even number of features of each coordinate.
        temperature: Ratio of the longest to the shortest wave, about.

    Returns:
        ``(..., 4 * num_feats)``: cy, cx, w, h; of each, sine and cosine in turn, from the shortest wave on.
    """
    waves = torch.arange(num_feats // 2, dtype=torch.float32, device=boxes.device)
    waves = temperature ** (2 * waves / num_feats)
    y, x, w, h = 1, 0, 2, 3
    angles = boxes.float()[..., [y, x, w, h], None] * (2 * math.pi) / waves
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-3)


def hide_padded(self_attn_mask: Tensor | None, query: Tensor, num_padded: int) -> Tensor:
    """Let no query attend to the last ``num_padded`` ones.

    The padded queries themselves attend to the others: a row that attends to nothing would be NaN.

    Args:
        self_attn_mask: ``(Q, Q)`` bool, True where a query must not attend, or None.
        query: ``(B, Q, C)``.
        num_padded: Number of padded queries, fewer than Q.

    Returns:
        A new mask ``(Q, Q)``.
    """
    number = query.shape[1]
    padded = torch.arange(number, device=query.device) >= number - num_padded
    hidden = padded.expand(number, number)
    return hidden if self_attn_mask is None else self_attn_mask | hidden


class FusedAttention(nn.MultiheadAttention):
    """PyTorch's attention, asked not to return its weights: so it never holds the whole Q x Q matrix."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        """As PyTorch's, with None for the weights."""
        return super().forward(query, key, value, **kwargs, need_weights=False)


class DinoDecoderLayer(DeformableDetrTransformerDecoderLayer):
    """mmdet's layer with fused self-attention and our deformable attention; same parameter names."""

    def _init_layers(self) -> None:
        super()._init_layers()
        host = self.self_attn.attn
        self.self_attn.attn = FusedAttention(host.embed_dim, host.num_heads, dropout=host.dropout)
        self.cross_attn = MultiScaleDeformableAttention(**self.cross_attn_cfg)


class DinoTransformerDecoder(DeformableDetrTransformerDecoder):
    """DINO's decoder (arXiv 2203.03605): boxes refined layer by layer, looking forward twice.

    ``ref_point_head`` always takes ``2 * embed_dims`` features, as in DINO and in mmdet 3.3.0, so a checkpoint moves
    between versions of mmdet (onedl-mmdetection 3.5.1 takes ``4 * embed_dims``). Sine embedding and box refinement
    run in fp32 under autocast.

    Args:
        num_layers: Number of layers.
        layer_cfg: Settings of each layer, as in mmdet: ``self_attn_cfg``, ``cross_attn_cfg``, ``ffn_cfg`` ...
        with_cp: Recompute the activations of all layers (True), or of so many from the first on, in the backward pass.
        eps: How far from 0 and 1 boxes are kept when they are refined: DINO's 1e-3, MaskDINO's 1e-5.
        post_norm_cfg: Must be None: the decoder has its own norm. Here because mmdet's configs write it.
        return_intermediate: Must be True: DINO learns from every layer. Here because mmdet's configs write it.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If the width is no multiple of 4, or one of the fixed settings is another.
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
        self.num_recomputed = count_recomputed(with_cp, num_layers)
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
        key_padding_mask: Tensor | None,
        self_attn_mask: Tensor | None,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        valid_ratios: Tensor,
        reg_branches: nn.ModuleList,
        *,
        num_padded: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Refine queries and boxes.

        Args:
            query: ``(B, Q, C)``.
            value: ``(B, N, C)``, the encoder's output, level by level.
            key_padding_mask: ``(B, N)``, True on padding, or None.
            self_attn_mask: ``(Q, Q)``, True where a query must not look, or None.
            reference_points: ``(B, Q, 4)`` first boxes (cx, cy, w, h), in fractions of the picture without padding.
            spatial_shapes: ``(levels, 2)`` height and width of the maps.
            level_start_index: ``(levels,)`` first position of each level in ``value``.
            valid_ratios: ``(B, levels, 2)`` share of each map (x, y) that is not padding.
            reg_branches: The head's box branches, one a layer.
            num_padded: The last ``num_padded`` queries are padding, in an image with fewer positions than queries: no
                query attends to them, so that the others are what they are without padding.

        Returns:
            Queries of every layer ``(layers, B, Q, C)``, normed; boxes before the first and after every layer
            ``(layers + 1, B, Q, 4)``, fp32.
        """
        level_shapes = spatial_shapes.tolist()
        if num_padded:
            self_attn_mask = hide_padded(self_attn_mask, query, num_padded)
        ratios = torch.cat([valid_ratios, valid_ratios], dim=-1).float()[:, None]
        boxes = reference_points.float()
        queries, references = [], [boxes]
        for index, layer in enumerate(self.layers):
            level_boxes = boxes[:, :, None] * ratios
            query = run(
                layer,
                query,
                recompute=index < self.num_recomputed,
                query_pos=self.ref_point_head(sine_embedding(level_boxes[:, :, 0], self.embed_dims // 2)),
                value=value,
                key_padding_mask=key_padding_mask,
                self_attn_mask=self_attn_mask,
                spatial_shapes=spatial_shapes,
                level_shapes=level_shapes,
                level_start_index=level_start_index,
                reference_points=level_boxes,
            )
            with full_precision(query):
                refined = (reg_branches[index](query.float()) + inverse_sigmoid(boxes, eps=self.eps)).sigmoid()
            # The next layer starts from these boxes without their gradient; the loss of the next layer's boxes, whose
            # reference this is, keeps it: "look forward twice".
            boxes = refined.detach()
            queries.append(self.norm(query))
            references.append(refined)
        return torch.stack(queries), torch.stack(references)
