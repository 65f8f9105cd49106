"""The feature pyramid that is pre-trained together with the backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmitpn.checkpoint import FileInfo, PretrainedModule
from mmitpn.registry import MODELS

from ..cpu_inference import apply_in_bands, chunk_on_cpu
from ..layers import (
    LayerNorm,
    PatchSplit,
    PointwiseBlock,
    check_weight_init,
    initialize_weights,
    layer_norm,
    nchw_to_nhwc,
    nhwc_to_nchw,
    run_blocks,
)

KINDS = ('fast', 'linear')
EXTRA_POOLS = ('avg', 'max')
MAX_LEVELS = 5
STARTS = (4, 8, 16, 32)  # strides at which the levels may start


@MODELS.register_module()
class ITPNPyramid(PretrainedModule):
    """Pyramid of Fast-iTPN and iTPN: every operation is per position, none is attention.

    From the main stage downwards: align, split, add the finer backbone map, attention-free blocks; then one block per
    level for the output. Layout and sizes are read off the released code and weights.

    Args:
        in_channels: Channels of the backbone's maps at strides 4, 8, 16.
        out_channels: Channels of every level, F.
        num_outs: Levels to return, at most 5; with ``start_level=0`` 3 (strides 4, 8, 16), 4 (also 32) or 5 (also 64).
        start_level: First level to return: 0 starts at stride 4, 1 at stride 8, 2 at stride 16, 3 at stride 32. Finer
            ones are not trained, and those that nothing needs are not run.
        kind: ``'fast'`` is Fast-iTPN's, ``'linear'`` the original iTPN's: no biases where levels meet, wider blocks,
            and stride 16 is not aligned if it has F channels already.
        extra_pool: How strides 32, 64, ... come from stride 16: ``'avg'`` as the authors do in detection, ``'max'`` as
            they do in segmentation.
        depth: Blocks after each merge of two levels.
        concat_backbone: Each level is the pyramid's followed by the backbone's map of that stride, as the authors do
            in segmentation: F + C_i channels (``level_channels``).
        hidden_channels: Hidden channels of the blocks; None means ``int(F * 8 / 3)`` (the released 682 for 256), or
            4 F of the linear kind.
        with_cp: Recompute every block in the backward pass instead of keeping its activations.
        weight_init: ``'trunc_normal'`` or ``'xavier'``, see :func:`initialize_weights`.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads the pyramid of any pre-training file: of Fast-iTPN
            with ``kind='fast'``, of iTPN with ``kind='linear'``.

    Attributes:
        strides: Strides of the returned levels.
        level_channels: Channels of each returned level: F, or F + C_i with ``concat_backbone``; C_i of strides from 32
            on is that of stride 16.

    Raises:
        ValueError: If an argument is outside what is allowed; the message says what is.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        out_channels: int = 256,
        num_outs: int = 5,
        start_level: int = 0,
        kind: str = 'fast',
        extra_pool: str = 'avg',
        concat_backbone: bool = False,
        depth: int = 1,
        hidden_channels: int | None = None,
        with_cp: bool = False,
        weight_init: str = 'trunc_normal',
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if len(in_channels) != 3:
            raise ValueError(
                f'in_channels are {tuple(in_channels)}; the pyramid takes three maps, strides 4, 8, 16: give the'
                " backbone's out_channels, and the backbone out_indices=(0, 1, 2)"
            )
        if start_level not in range(len(STARTS)):
            raise ValueError(
                f'start_level is {start_level!r}; allowed: 0, 1, 2, 3 (the first level at stride 4, 8, 16, 32)'
            )
        fewest = max(3 - start_level, 1)
        if num_outs not in range(fewest, MAX_LEVELS + 1):
            raise ValueError(
                f'num_outs is {num_outs!r}; with start_level={start_level} allowed: {fewest} to {MAX_LEVELS}'
            )
        if kind not in KINDS:
            raise ValueError(f'kind is {kind!r}; allowed: {", ".join(map(repr, KINDS))}')
        if extra_pool not in EXTRA_POOLS:
            raise ValueError(f'extra_pool is {extra_pool!r}; allowed: {", ".join(map(repr, EXTRA_POOLS))}')
        for name, value in (('out_channels', out_channels), ('depth', depth), ('hidden_channels', hidden_channels)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f'{name} is {value!r}; give an integer of at least 1')

        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.concat_backbone = concat_backbone
        channels = [out_channels + (channels if concat_backbone else 0) for channels in in_channels]
        channels += channels[-1:] * MAX_LEVELS
        self.level_channels = tuple(channels[start_level : start_level + num_outs])
        self.num_outs = num_outs
        self.start_level = start_level
        self.strides = tuple(4 << level for level in range(start_level, start_level + num_outs))
        self.extra_pool = extra_pool
        self.with_cp = with_cp
        self.weight_init = check_weight_init(weight_init)
        linear = kind == 'linear'
        norm_layer = LayerNorm if linear else layer_norm  # iTPN's has PyTorch's epsilon
        hidden = hidden_channels or (4 * out_channels if linear else int(out_channels * 8 / 3))
        fine, middle, main = in_channels

        def block() -> PointwiseBlock:
            return PointwiseBlock(out_channels, hidden, sub_norm=False, norm_layer=norm_layer)

        self.align16 = nn.Identity() if linear and main == out_channels else nn.Linear(main, out_channels)
        self.align8 = nn.Linear(middle, out_channels, bias=not linear)
        self.align4 = nn.Linear(fine, out_channels, bias=not linear)
        self.split8 = PatchSplit(main, out_channels, bias=not linear, norm_layer=norm_layer)
        self.split4 = PatchSplit(out_channels, out_channels, bias=not linear, norm_layer=norm_layer)
        self.blocks8 = nn.ModuleList(block() for _ in range(depth))
        self.blocks4 = nn.ModuleList(block() for _ in range(depth))
        self.out16, self.out8, self.out4 = block(), block(), block()
        self.reset_parameters()
        self._freeze_unused()
        chunk_on_cpu(self)

    @classmethod
    def _settings_of(cls, info: FileInfo, given: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`PretrainedModule`: channels, kind, depth and hidden channels of a file's pyramid."""
        del given  # one that does not fit is reported by the loader, with the setting
        pyramid = info.pyramid
        if pyramid is None:
            raise ValueError(
                f'there is no pyramid in it: it is {info.description}. Give a pre-training file, or build ITPNPyramid'
                '(in_channels) to start with fresh weights'
            )
        return {
            'in_channels': tuple(pyramid.embed_dim // part for part in (4, 2, 1)),
            'out_channels': pyramid.out_channels,
            'kind': pyramid.kind,
            'depth': pyramid.depth,
            'hidden_channels': pyramid.hidden_channels,
        }

    def _freeze_unused(self) -> None:
        unused = [self.align4, self.split4, self.blocks4, self.out4] if self.start_level > 0 else []
        unused += [self.align8, self.split8, self.blocks8, self.out8] if self.start_level > 1 else []
        for part in unused:
            part.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Give every parameter its starting value."""
        initialize_weights(self, weight_init=self.weight_init)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            inputs: Maps ``(B, C_i, H_i, W_i)`` at strides 4, 8, 16; sides as ceil(side / stride) of one image.

        Returns:
            ``num_outs`` maps ``(B, level_channels[i], H, W)``, finest first: strides 4, 8, 16 (from ``start_level``
            on), then 32, 64, ... by pooling with the side rounded up.

        Raises:
            ValueError: If the number of maps, their channels or their sizes do not fit.
        """
        self._check(inputs)
        self._remind_of_init_cfg()
        fine, middle, main = (nchw_to_nhwc(x) for x in inputs)
        outs, top = [run_blocks([self.out16], self.align16(main), recompute=self.with_cp)], main
        if self.start_level < 2:
            top, out = self._finer(top, middle, self.split8, self.align8, self.blocks8, self.out8)
            outs.insert(0, out)
        if self.start_level < 1:
            _, out = self._finer(top, fine, self.split4, self.align4, self.blocks4, self.out4, last=True)
            outs.insert(0, out)
        if self.concat_backbone:
            inner = (fine, middle, main)[min(self.start_level, 2) :]
            outs = [torch.cat(pair, dim=-1) for pair in zip(outs, inner, strict=True)]
        # Heads view their inputs in various ways, so they get plain (B, C, H, W) memory.
        outs = [nhwc_to_nchw(x).contiguous() for x in outs]
        coarser = max(self.start_level - 2, 0)  # levels that are only pooled from
        while len(outs) < coarser + self.num_outs:
            outs.append(self._pool(outs[-1]))
        return tuple(outs[coarser:])

    def _finer(
        self,
        coarse: Tensor,
        fine: Tensor,
        split: nn.Module,
        align: nn.Module,
        blocks: nn.ModuleList,
        out: nn.Module,
        *,
        last: bool = False,
    ) -> tuple[Tensor | None, Tensor]:
        """The next finer level ``(B, H, W, out_channels)``: for the level after it, unless last, and for heads."""

        def merge(coarse: Tensor, fine: Tensor) -> tuple[Tensor | None, Tensor]:
            # The split map is cut to the finer one's odd sides.
            x = split(coarse)[:, : fine.shape[1], : fine.shape[2]] + align(fine)
            x = run_blocks(blocks, x, recompute=self.with_cp)
            return None if last else x, run_blocks([out], x, recompute=self.with_cp)

        return apply_in_bands(merge, coarse, fine, self.out_channels)

    def _pool(self, x: Tensor) -> Tensor:
        # ceil_mode keeps a side of 1 at 1; the average counts existing values only.
        if self.extra_pool == 'avg':
            return F.avg_pool2d(x, 2, stride=2, ceil_mode=True, count_include_pad=False)
        return F.max_pool2d(x, 2, stride=2, ceil_mode=True)

    def _check(self, inputs: Sequence[Tensor]) -> None:
        if len(inputs) != 3:
            raise ValueError(f'the pyramid was given {len(inputs)} map(s); it takes three: out_indices=(0, 1, 2)')
        channels = tuple(x.shape[1] for x in inputs)
        if channels != self.in_channels:
            raise ValueError(
                f'the pyramid was given maps of {channels} channels, but in_channels are {self.in_channels}:'
                f" set the neck's in_channels to {channels}"
            )
        sides = [tuple(x.shape[-2:]) for x in inputs]
        for finer, coarser in pairwise(sides):
            if any(-(-a // 2) != b for a, b in zip(finer, coarser, strict=True)):
                raise ValueError(f'the pyramid was given maps of sides {sides}; each must be half of the one before')
