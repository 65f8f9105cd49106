"""MaskDINO's pixel decoder: a deformable encoder over several strides, and a stride-4 map for the masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.layers import SinePositionalEncoding
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmitpn.models.dino import DinoTransformerEncoder, FeatureLevels, autocast_disabled

ORDERS = ('low2high', 'high2low')
_NUM_GROUPS = 32  # of GroupNorm


class LevelLayout:
    """Source and order of the encoder's levels.

    Projections are numbered as in the released weights: the maps in the encoder's order, then the extra levels from
    finer to coarser.

    Args:
        in_channels: Channels of the maps, finest first.
        strides: Strides of the maps, finest first.
        num_inputs: Number of maps that enter the encoder: the coarsest ones.
        num_levels: Levels of the encoder.
        order: ``'low2high'`` (finest first) or ``'high2low'``.
        released: See ``released_order`` of :class:`MaskDINOPixelDecoder`.

    Attributes:
        inputs: Index of the map that each of the first projections takes.
        base: Index of the map that the extra levels start from.
        order: The encoder's levels, as numbers of projections.
        positions: The projections whose position embeddings the encoder's levels get, in its order. Equal to
            ``order``, except for a difference of the released code.
        finest: Index of the finest level in ``order``.

    Raises:
        ValueError: If the numbers are inconsistent.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_inputs: int,
        num_levels: int,
        order: str,
        *,
        released: bool,
    ) -> None:
        num_maps = len(in_channels)
        if len(strides) != num_maps or list(strides) != sorted(set(strides)) or strides[0] != 4:
            raise ValueError(
                f'the pixel decoder has strides {tuple(strides)} for maps of {tuple(in_channels)} channels; give one'
                ' stride per map, finest first, beginning with 4 (the masks are made there)'
            )
        if not isinstance(num_inputs, int) or not 1 <= num_inputs <= num_maps:
            raise ValueError(
                f'num_inputs is {num_inputs!r}, but there are {num_maps} maps (strides {tuple(strides)}): allowed 1 to'
                f' {num_maps}; let the neck give more maps (num_outs), or make the other levels by num_levels'
            )
        if not isinstance(num_levels, int) or num_levels < num_inputs:
            raise ValueError(
                f'num_levels is {num_levels!r}; allowed: num_inputs={num_inputs} or more (convolutions make the extra'
                ' levels)'
            )
        if order not in ORDERS:
            raise ValueError(f'order is {order!r}; allowed: {", ".join(map(repr, ORDERS))}')
        finest_first = order == 'low2high'
        used = list(range(num_maps - num_inputs, num_maps))
        self.inputs = used if finest_first else used[::-1]
        # The released code takes the map with the most channels; if several have as many, the first of them.
        widest = max(self.inputs[::-1], key=lambda i: in_channels[i])
        self.base = widest if released else used[-1]
        maps, extra = list(range(num_inputs)), list(range(num_inputs, num_levels))
        coarser_first = extra[::-1]
        if finest_first:
            self.order = maps + (coarser_first if released else extra)
            self.positions = maps + extra
        else:
            self.order = coarser_first + maps
            self.positions = (extra if released else coarser_first) + maps
        self.finest = 0 if finest_first else num_levels - 1


class MaskDINOPixelDecoder(BaseModule):
    """Deformable encoder, extra coarse levels, and one FPN level of stride 4 (arXiv 2206.02777).

    It runs in fp32 under autocast, as the released one does. Positions and references are fractions of the padded
    image.

    Args:
        in_channels: Channels of the input maps, finest first.
        strides: Their strides, finest first; the first must be 4.
        feat_channels: Width of the encoder.
        out_channels: Channels of the map for the masks.
        num_inputs: Number of maps that enter the encoder: the coarsest ones.
        num_levels: Levels of the encoder; 3x3 convolutions of stride 2 make those beyond ``num_inputs``.
        num_layers: Layers of the encoder.
        num_heads: Attention heads.
        num_points: Sampling points per head and level.
        feedforward_channels: Hidden channels of the feed-forward networks.
        order: Order of the encoder's levels: ``'low2high'`` is finest first, ``'high2low'`` coarsest first (the
            authors' terms). It matters for released weights only.
        released_order: As the released code: with two or more extra levels, these levels or their position embeddings
            are in the wrong order, and they start from the map with the most channels. Released weights need it.
            False: finest to coarsest, or the reverse, each with its own position embedding, starting from the
            coarsest map.
        with_cp: Activation checkpointing of the encoder; see :class:`~mmitpn.models.dino.DinoTransformerEncoder`.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If there are fewer maps than levels require, or the strides are inconsistent.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int] = (4, 8, 16, 32),
        *,
        feat_channels: int = 256,
        out_channels: int = 256,
        num_inputs: int = 3,
        num_levels: int = 4,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 1024,
        order: str = 'low2high',
        released_order: bool = False,
        with_cp: bool | int = False,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.layout = LevelLayout(in_channels, strides, num_inputs, num_levels, order, released=released_order)
        if feat_channels % _NUM_GROUPS or feat_channels % num_heads:
            raise ValueError(
                f'feat_channels is {feat_channels}; give a multiple of {_NUM_GROUPS} (GroupNorm) and of num_heads'
                f' ({num_heads})'
            )
        self.num_levels = num_levels
        convs = [nn.Conv2d(in_channels[i], feat_channels, 1) for i in self.layout.inputs]
        for number in range(num_levels - num_inputs):
            width = feat_channels if number else in_channels[self.layout.base]
            convs.append(nn.Conv2d(width, feat_channels, 3, stride=2, padding=1))
        self.input_proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(_NUM_GROUPS, feat_channels)) for conv in convs)
        self.level_embed = nn.Parameter(torch.randn(num_levels, feat_channels))
        self.positional_encoding = SinePositionalEncoding(feat_channels // 2, normalize=True)
        attention = {'num_heads': num_heads, 'num_levels': num_levels, 'num_points': num_points, 'dropout': 0.0}
        self.encoder = DinoTransformerEncoder(
            num_layers,
            {
                'self_attn_cfg': {'embed_dims': feat_channels, **attention},
                'ffn_cfg': {'embed_dims': feat_channels, 'feedforward_channels': feedforward_channels},
            },
            with_cp=with_cp,
        )
        norm = {'type': 'GN', 'num_groups': _NUM_GROUPS}
        self.lateral = ConvModule(in_channels[0], feat_channels, 1, bias=False, norm_cfg=norm, act_cfg=None)
        self.output = ConvModule(feat_channels, feat_channels, 3, padding=1, bias=False, norm_cfg=norm)
        self.mask_features = nn.Conv2d(feat_channels, out_channels, 1)

    def init_weights(self) -> None:
        """Initialize as the released code: Xavier up to the encoder, Kaiming for the FPN level and mask features."""
        super().init_weights()
        for name, weight in self.encoder.named_parameters():
            if weight.dim() > 1 and 'sampling_offsets' not in name and 'attention_weights' not in name:
                nn.init.xavier_uniform_(weight)
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        for conv in (self.lateral.conv, self.output.conv, self.mask_features):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, maps: Sequence[Tensor], padding_mask: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Encode the maps and compute the map for the masks.

        Args:
            maps: ``(B, C_i, H_i, W_i)``, finest first.
            padding_mask: ``(B, H, W)``, True where the image is padding, at any resolution; None without padding.

        Returns:
            The map for the masks ``(B, out_channels, H / 4, W / 4)``, and the encoder's levels in its order.

        Raises:
            ValueError: If the number of maps or the channels of the finest differ from what the decoder was built for.
        """
        if len(maps) < len(self.layout.inputs) or maps[0].shape[1] != self.lateral.conv.in_channels:
            raise ValueError(
                f'the pixel decoder was given {len(maps)} maps, the finest of {maps[0].shape[1]} channels; it was built'
                f' for {self.lateral.conv.in_channels} channels there: let in_channels be what the neck gives'
            )
        with autocast_disabled(maps[0]):
            maps = [level.float() for level in maps]
            projected = self._project(maps)
            levels = FeatureLevels.of(projected, padding_mask, fractions_of_padded=True)
            encoded = levels.unflatten(
                self.encoder(levels.flatten(projected), self._position_embeddings(levels), levels)
            )
            fine = self.lateral(maps[0])
            finest = encoded[self.layout.finest]
            fine = fine + F.interpolate(finest, size=fine.shape[-2:], mode='bilinear', align_corners=False)
            return self.mask_features(self.output(fine)), encoded

    def _project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's levels ``(B, C, H_i, W_i)``, in its order."""
        inputs = self.layout.inputs
        projected = [project(maps[i]) for project, i in zip(self.input_proj, inputs, strict=False)]
        coarsest = maps[self.layout.base]
        for project in self.input_proj[len(inputs) :]:
            coarsest = project(coarsest)
            projected.append(coarsest)
        return [projected[i] for i in self.layout.order]

    def _position_embeddings(self, levels: FeatureLevels) -> Tensor:
        """Embeddings of position and level ``(1, N, C)`` in the encoder's order."""
        shape_of = dict(zip(self.layout.order, levels.shapes, strict=True))
        embedded = FeatureLevels(tuple(shape_of[projection] for projection in self.layout.positions), levels.device)
        return embedded.position_embedding(self.positional_encoding) + embedded.level_embedding(self.level_embed)
