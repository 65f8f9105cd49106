"""iTPN (CVPR 2023): the family before Fast-iTPN, with pixel or CLIP supervision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmitpn.checkpoint import FileInfo
from mmitpn.registry import MODELS

from ..cpu_inference import chunk_on_cpu
from ..layers import (
    RELATIVE_POSITIONS,
    LayerNorm,
    Mlp,
    PatchEmbed,
    PatchMerging,
    PointwiseBlock,
    RelativeAttention,
    TransformerBlock,
)
from .fast_itpn import STRIDES, BaseITPN, resolve_arch

STAGE_RATIO, MAIN_RATIO = 3, 4  # hidden channels of the feed-forward networks, in units of their channels


@MODELS.register_module()
class ITPN(BaseITPN):
    """Backbone of the original iTPN (arXiv 2211.12735, first version), exact to the released weights.

    The outputs are those that its pre-trained pyramid (``mmitpn.ITPNPyramid`` with ``kind='linear'``) takes: stages 1
    and 2 just before their merges, and the main stage, which has no final norm. The authors keep tokens in groups of
    4x4; here they are plain maps, which gives the same values. With a relative position table the original raises an
    error for images that are not square; here the table is resized for them, as for any other grid.

    | supervision, task | ``relative_position`` | ``layer_scale_init_value`` |
    |---|---|---|
    | pixel, detection | None | None |
    | pixel, segmentation | ``'table'`` | None |
    | CLIP, detection (the authors') | ``'decomposed'`` | 0.1 |
    | CLIP, otherwise | ``'table'`` | 0.1 |

    Args:
        arch: ``'base'``, ``'large'`` (published), ``'nano'``, ``'tiny'``, ``'small'`` (Fast-iTPN's sizes), or a dict of
            ``depths``, ``embed_dim``, ``num_heads``.
        img_size: Side in pixels of the square image that the position embedding is learned for, a multiple of 16. None
            (default): that of the file that is loaded, so that its outputs at that size are those of the authors'
            network; 224 without a file. A number: the embedding of a file of another size is resized once, when it is
            loaded, as in the authors' fine-tuning. Images of any other size are welcome either way: the embedding is
            resized for them in every forward pass.
        in_channels: Channels of the images.
        in_channels_init: How the first layer's weights of a file for another number of channels are adapted, see
            :class:`mmitpn.FastITPN`.
        out_indices: Which of the maps at strides 4, 8, 16 to return, ascending.
        out_blocks: Blocks of the main stage whose outputs are returned too, see :class:`mmitpn.FastITPN`.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over all blocks.
        relative_position: None, ``'table'`` or ``'decomposed'``, see the table and :class:`RelativeAttention`.
        relative_window: Side in tokens of the grid that relative positions are learned for. None: that of ``img_size``;
            if that is None too, that of the file, and of its position embedding where it has no such positions.
        layer_scale_init_value: Initial layer scale in all stages; None leaves the parameters out.
        with_cp: Recompute every block in the backward pass instead of keeping its activations.
        frozen_stages: -1 trains everything, 0 freezes the patch and position embeddings, 1 and 2 also the stages at
            stride 4 and 8 with the merges after them, 3 the whole backbone.
        weight_init: ``'trunc_normal'`` or ``'xavier'``, see :func:`initialize_weights`.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads any iTPN file as it is.

    Raises:
        ValueError: If an argument is outside what is allowed; the message says what is.
    """

    family = 'iTPN'

    def __init__(
        self,
        arch: str | Mapping = 'base',
        *,
        img_size: int | None = None,
        in_channels: int = 3,
        in_channels_init: str | None = 'repeat',
        out_indices: Sequence[int] = (0, 1, 2),
        out_blocks: Sequence[int] = (),
        drop_path_rate: float = 0.0,
        relative_position: str | None = None,
        relative_window: int | None = None,
        layer_scale_init_value: float | None = None,
        with_cp: bool = False,
        frozen_stages: int = -1,
        weight_init: str = 'trunc_normal',
        init_cfg: Mapping | None = None,
    ) -> None:
        if relative_position not in (None, *RELATIVE_POSITIONS):
            allowed = ', '.join(map(repr, RELATIVE_POSITIONS))
            raise ValueError(f'relative_position is {relative_position!r}; allowed: None, {allowed}')
        if relative_window is not None and (not isinstance(relative_window, int) or relative_window < 1):
            raise ValueError(f'relative_window is {relative_window!r}; give a number of tokens, at least 1, or None')
        sizes = resolve_arch(arch)
        super().__init__(
            sizes,
            img_size=img_size,
            in_channels=in_channels,
            out_indices=out_indices,
            out_blocks=out_blocks,
            drop_path_rate=drop_path_rate,
            with_cp=with_cp,
            frozen_stages=frozen_stages,
            weight_init=weight_init,
            init_cfg=init_cfg,
        )
        fine, middle, main = sizes.channels
        rates = iter(self.drop_path_rates)
        norm_layer = LayerNorm  # with PyTorch's epsilon, read off the released code
        shared = {'layer_scale': layer_scale_init_value, 'norm_layer': norm_layer}
        kind, window = self.file_relative
        file_window = window if kind == relative_position else 0

        def stage(dim: int, depth: int) -> nn.ModuleList:
            return nn.ModuleList(
                PointwiseBlock(dim, STAGE_RATIO * dim, sub_norm=False, drop_path=next(rates), **shared)
                for _ in range(depth)
            )

        def main_block() -> TransformerBlock:
            attention = RelativeAttention(
                main,
                sizes.num_heads,
                relative_position=relative_position,
                window=relative_window or file_window or self.grid[0],
                follow_file=relative_window is None and img_size is None,
            )
            mlp = Mlp(main, MAIN_RATIO * main, sub_norm=False)
            return TransformerBlock(main, attention, mlp, drop_path=next(rates), **shared)

        self.patch_embed = PatchEmbed(
            in_channels, fine, stride=STRIDES[0], in_channels_init=in_channels_init, norm_layer=norm_layer
        )
        self.stage1 = stage(fine, sizes.depths[0])
        self.merge1 = PatchMerging(fine, norm_layer=norm_layer)
        self.stage2 = stage(middle, sizes.depths[1])
        self.merge2 = PatchMerging(middle, norm_layer=norm_layer)
        self.blocks = nn.ModuleList(main_block() for _ in range(sizes.depths[2]))
        self.norm = nn.Identity()
        self.reset_parameters()
        self.freeze()
        chunk_on_cpu(self)

    def reset_parameters(self) -> None:
        """Give every parameter its starting value."""
        super().reset_parameters()
        for block in self.blocks:
            block.attn.reset_positions()

    @classmethod
    def _settings_of(cls, info: FileInfo, given: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`PretrainedModule`."""
        return {**super()._settings_of(info, given), 'relative_position': info.relative_position}
