"""Sizes and family of a network, read off its weights, named as ours or as the authors'."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt

from torch import Tensor

from mmitpn.checkpoint.names import FAST, ITPN

# Blocks at strides 4, 8, 16 and channels at stride 16 -> name of the arch. The modules' own table is that of the
# backbones (``archs.ARCHS``), which this package does not import.
PUBLISHED = {
    (1, 1, 4, 192): 'nano',
    (1, 1, 12, 384): 'tiny',
    (2, 2, 20, 384): 'small',
    (3, 3, 24, 512): 'base',
    (2, 2, 40, 768): 'large',
}


@dataclass(frozen=True)
class Arch:
    """Size of a backbone as its weights tell it; ``name`` is that of ``PUBLISHED``, if it is there."""

    depths: tuple[int, int, int]
    embed_dim: int
    name: str | None = None

    def __str__(self) -> str:
        sizes = f'{"/".join(map(str, self.depths))} blocks, {self.embed_dim} channels'
        return f'{self.name} ({sizes})' if self.name else sizes

    @property
    def setting(self) -> str:
        """What to write into a config: ``arch='base'``, or the dict."""
        if self.name:
            return f"arch='{self.name}'"
        return f'arch=dict(depths={self.depths}, embed_dim={self.embed_dim}, num_heads={self.num_heads})'

    @property
    def num_heads(self) -> int:
        """Attention heads: 64 channels each in the whole family."""
        return max(self.embed_dim // 64, 1)


@dataclass(frozen=True)
class Pyramid:
    """Size of a pyramid as its weights tell it: channels out, blocks a merge, hidden channels, channels in, family."""

    out_channels: int
    depth: int
    hidden_channels: int
    embed_dim: int
    family: str = FAST

    @property
    def kind(self) -> str:
        """The ``kind`` of :class:`mmitpn.ITPNPyramid`."""
        return 'linear' if self.family == ITPN else 'fast'

    @property
    def default_hidden(self) -> int:
        """Hidden channels that follow from the others."""
        return 4 * self.out_channels if self.family == ITPN else int(self.out_channels * 8 / 3)

    def __str__(self) -> str:
        return f'{self.out_channels} channels, {self.depth} block(s) a merge, {self.hidden_channels} hidden'


def arch_of(body: Mapping[str, Tensor]) -> Arch | None:
    """Size of the backbone in weights named as ours or as the authors'; None if its merges are not both there."""
    if 'merge2.reduction.weight' in body and 'merge1.reduction.weight' in body:
        depths = tuple(len(_indices(body, stage)) for stage in ('stage1', 'stage2', 'blocks'))
        embed_dim = body['merge2.reduction.weight'].shape[0]
    else:
        blocks = _indices(body, 'blocks')
        merges = sorted(i for i in blocks if f'blocks.{i}.reduction.weight' in body)
        if len(merges) != 2:
            return None
        first, second = merges
        # Counted up to the last block, so that a block missing from the file is missed and does not shift the others.
        depths = (first, second - first - 1, max(blocks) - second)
        embed_dim = body[f'blocks.{second}.reduction.weight'].shape[0]
    return Arch(depths, embed_dim, PUBLISHED.get((*depths, embed_dim)))


def pyramid_of(body: Mapping[str, Tensor]) -> Pyramid | None:
    """Size of the pyramid in weights named as ours or as the authors'; None if there is none."""
    for align, out, blocks in (('align8', 'out16', 'blocks8'), ('align_dim_16to8', 'fpn_modules.0', 'block_16to8')):
        if f'{align}.weight' in body and f'{out}.mlp.fc1.weight' in body:
            out_channels, half = body[f'{align}.weight'].shape[:2]
            hidden = body[f'{out}.mlp.fc1.weight'].shape[0]
            return Pyramid(out_channels, len(_indices(body, blocks)), hidden, 2 * half, family_of(body))
    return None


def family_of(body: Mapping[str, Tensor]) -> str:
    """The family that weights named as ours or as the authors' belong to: ``FAST``, ``ITPN``, or '' if none."""
    if any(name.endswith(('.mlp.ffn_ln.weight', '.mlp.w1.weight')) for name in body):
        return FAST
    merge = next((name for name in body if re.fullmatch(r'(merge\d|blocks\.\d+)\.reduction\.weight', name)), None)
    if merge is not None:
        return FAST if body[merge].ndim == 4 else ITPN
    for name in ('align8', 'align_dim_16to8'):
        if f'{name}.weight' in body:
            return FAST if f'{name}.bias' in body else ITPN
    names = ('patch_embed.norm.weight', 'absolute_pos_embed', 'lm_cls_head.weight', 'decoder_pred.weight')
    return ITPN if any(name in body for name in names) else ''


def relative_of(body: Mapping[str, Tensor]) -> tuple[str | None, int]:
    """How weights of the main stage hold relative positions, and for which window; None and 0 if they do not."""
    for leaf, kind in (('.relative_position_bias_table', 'table'), ('.rel_pos_h', 'decomposed')):
        value = next((value for name, value in body.items() if name.endswith(leaf)), None)
        if value is not None:
            side = len(value) if kind == 'decomposed' else isqrt(len(value))
            return kind, (side + 1) // 2
    return None, 0


def _indices(body: Iterable[str], stage: str) -> set[int]:
    matches = (re.match(rf'{re.escape(stage)}\.(\d+)\.', name) for name in body)
    return {int(match[1]) for match in matches if match}
