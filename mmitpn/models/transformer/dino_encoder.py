"""The encoder of DINO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmdet.models.layers.transformer.deformable_detr_layers import DeformableDetrTransformerEncoderLayer
from mmengine.model import ModuleList
from torch import Tensor

from .deformable_attention import MultiScaleDeformableAttention
from .running import count_recomputed, run


class DinoEncoderLayer(DeformableDetrTransformerEncoderLayer):
    """mmdet's layer with our deformable attention."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.self_attn = MultiScaleDeformableAttention(**self.self_attn_cfg)


class DinoTransformerEncoder(DeformableDetrTransformerEncoder):
    """Deformable DETR's encoder (arXiv 2010.04159), with mmdet's parameter names and initialisation.

    Args:
        num_layers: Number of layers.
        layer_cfg: Settings of each layer, as in mmdet: ``self_attn_cfg``, ``ffn_cfg``, ``norm_cfg``.
        with_cp: Recompute the activations of all layers (True), or of so many from the first on, in the backward pass
            instead of keeping them: PyTorch's own checkpointing, not fairscale's, which mmdet's ``num_cp`` needs.
        init_cfg: As in mmengine.
    """

    def __init__(
        self, num_layers: int, layer_cfg: Mapping, *, with_cp: bool | int = False, init_cfg: Mapping | None = None
    ) -> None:
        super().__init__(num_layers, layer_cfg, init_cfg=init_cfg)
        self.num_recomputed = count_recomputed(with_cp, num_layers)

    def _init_layers(self) -> None:
        self.layers = ModuleList(DinoEncoderLayer(**self.layer_cfg) for _ in range(self.num_layers))
        self.embed_dims = self.layers[0].embed_dims

    def forward(
        self, query: Tensor, query_pos: Tensor, key_padding_mask: Tensor | None, spatial_shapes: Tensor, **kwargs: Any
    ) -> Tensor:
        """Mix the levels.

        Args:
            query: ``(B, N, C)``, the flattened maps, level by level.
            query_pos: ``(B, N, C)``.
            key_padding_mask: ``(B, N)``, True on padding, or None where there is none.
            spatial_shapes: ``(levels, 2)`` height and width of the maps.
            **kwargs: ``level_start_index`` ``(levels,)`` and ``valid_ratios`` ``(B, levels, 2)``.

        Returns:
            ``(B, N, C)``.
        """
        reference_points = self.get_encoder_reference_points(
            spatial_shapes, kwargs['valid_ratios'], device=query.device
        )
        level_shapes = spatial_shapes.tolist()
        for index, layer in enumerate(self.layers):
            query = run(
                layer,
                query,
                query_pos,
                key_padding_mask,
                recompute=index < self.num_recomputed,
                spatial_shapes=spatial_shapes,
                level_shapes=level_shapes,
                reference_points=reference_points,
                **kwargs,
            )
        return query
