"""MaskDINO's pixel decoder: a deformable encoder over several strides, and a stride-4 map for the masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.layers import SinePositionalEncoding
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmitpn.models.transformer import DinoTransformerEncoder
from mmitpn.models.transformer.running import full_precision

from .flat import flat_padding, level_starts
from .levels import Levels

_GROUPS = 32


class MaskDINOPixelDecoder(BaseModule):
    """Deformable encoder, extra coarse levels, and one FPN level of stride 4 (arXiv 2206.02777).

    It works in fp32 under autocast, as the published one does. Positions and references are fractions of the padded
    picture.

    Args:
        in_channels: Channels of the maps it is given.
        strides: Their strides, finest first; the first must be 4.
        feat_channels: Width of the encoder.
        out_channels: Channels of the map for the masks.
        num_inputs: The coarsest so many maps go into the encoder.
        num_levels: Levels of the encoder; those beyond ``num_inputs`` are made by 3x3 convolutions of stride 2.
        num_layers: Layers of the encoder.
        num_heads: Attention heads.
        num_points: Sampling points of a head and level.
        feedforward_channels: Hidden channels of the feed-forward networks.
        order: The encoder's order of levels: ``'low2high'`` has the finest first, ``'high2low'`` the coarsest (the
            published words). It matters for weights only.
        released_order: As the published code: with two or more extra levels these are in the wrong order, or their
            position codes are, and they start from the map with the most channels. Released weights were trained so.
            Ours: finest to coarsest, or the reverse, with their own positions, starting from the coarsest map.
        with_cp: Recompute the encoder's activations in the backward pass; see :class:`DinoTransformerEncoder`.
        init_cfg: As in mmengine.

    Raises:
        ValueError: If more levels are asked for than there are maps, or the strides do not fit.
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
        self.levels = Levels(in_channels, strides, num_inputs, num_levels, order, released=released_order)
        if feat_channels % _GROUPS or feat_channels % num_heads:
            raise ValueError(
                f'feat_channels is {feat_channels}; give a multiple of {_GROUPS} (GroupNorm) and of num_heads'
                f' ({num_heads})'
            )
        self.num_levels = num_levels
        convs = [nn.Conv2d(in_channels[i], feat_channels, 1) for i in self.levels.inputs]
        for number in range(num_levels - num_inputs):
            width = feat_channels if number else in_channels[self.levels.base]
            convs.append(nn.Conv2d(width, feat_channels, 3, stride=2, padding=1))
        self.input_proj = nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(_GROUPS, feat_channels)) for conv in convs)
        self.level_embed = nn.Parameter(torch.randn(num_levels, feat_channels))
        self.positions = SinePositionalEncoding(feat_channels // 2, normalize=True)
        attention = {'num_heads': num_heads, 'num_levels': num_levels, 'num_points': num_points, 'dropout': 0.0}
        self.encoder = DinoTransformerEncoder(
            num_layers,
            {
                'self_attn_cfg': {'embed_dims': feat_channels, **attention},
                'ffn_cfg': {'embed_dims': feat_channels, 'feedforward_channels': feedforward_channels},
            },
            with_cp=with_cp,
        )
        norm = {'type': 'GN', 'num_groups': _GROUPS}
        self.lateral = ConvModule(in_channels[0], feat_channels, 1, bias=False, norm_cfg=norm, act_cfg=None)
        self.output = ConvModule(feat_channels, feat_channels, 3, padding=1, bias=False, norm_cfg=norm)
        self.mask_features = nn.Conv2d(feat_channels, out_channels, 1)

    def init_weights(self) -> None:
        """Initialise as published: Xavier for the encoder and what leads to it, He's for what makes the masks."""
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

    def forward(self, maps: Sequence[Tensor], padding: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Mix the levels.

        Args:
            maps: ``(B, C_i, H_i, W_i)``, finest first.
            padding: ``(B, H, W)``, True where the picture is padding, at any resolution; None where nothing is.

        Returns:
            The map for the masks ``(B, out_channels, H / 4, W / 4)``, and the encoder's levels in its order.

        Raises:
            ValueError: If there are not as many maps as the decoder was built for.
        """
        if len(maps) < len(self.levels.inputs) or maps[0].shape[1] != self.lateral.conv.in_channels:
            raise ValueError(
                f'the pixel decoder was given {len(maps)} maps, the finest of {maps[0].shape[1]} channels; it was built'
                f' for {self.lateral.conv.in_channels} channels there: let in_channels be what the neck gives'
            )
        with full_precision(maps[0]):
            maps = [level.float() for level in maps]
            sources = self._project(maps)
            shapes = [tuple(source.shape[-2:]) for source in sources]
            spatial_shapes = torch.tensor(shapes, device=maps[0].device)
            memory = self.encoder(
                query=torch.cat([source.flatten(2).transpose(1, 2) for source in sources], 1),
                query_pos=self._position_codes(shapes, maps[0]),
                key_padding_mask=flat_padding(padding, shapes),
                spatial_shapes=spatial_shapes,
                level_start_index=level_starts(spatial_shapes),
                valid_ratios=maps[0].new_ones(len(maps[0]), len(shapes), 2),
            )
            outputs = [
                level.transpose(1, 2).unflatten(2, shape)
                for level, shape in zip(memory.split([h * w for h, w in shapes], 1), shapes, strict=True)
            ]
            fine = self.lateral(maps[0])
            finest = outputs[self.levels.finest]
            fine = fine + F.interpolate(finest, size=fine.shape[-2:], mode='bilinear', align_corners=False)
            return self.mask_features(self.output(fine)), outputs

    def _project(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's levels ``(B, C, H_i, W_i)``, in its order."""
        inputs = self.levels.inputs
        projected = [project(maps[i]) for project, i in zip(self.input_proj, inputs, strict=False)]
        last = maps[self.levels.base]
        for project in self.input_proj[len(inputs) :]:
            last = project(last)
            projected.append(last)
        return [projected[i] for i in self.levels.order]

    def _position_codes(self, shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
        """Codes of place and level ``(B, N, C)`` in the encoder's order."""
        shape_of = dict(zip(self.levels.order, shapes, strict=True))
        codes = [
            self.positions(torch.zeros(1, *shape_of[i], dtype=torch.bool, device=like.device)).flatten(2).mT
            + self.level_embed[number]
            for number, i in enumerate(self.levels.positions)
        ]
        return torch.cat(codes, 1).expand(len(like), -1, -1)
