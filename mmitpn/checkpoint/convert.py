"""The names and shapes of Fast-iTPN's weights, ours and the authors': one table, read in both directions.

The authors keep one flat list of blocks with the merges inside, three attention projections, and 1x1 convolutions. Ours
are stages, one ``qkv`` matrix (rows q, k, v) and linear layers. Nothing else differs, so conversion is bit-exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmitpn.checkpoint.layouts import AUTHORS_FAST, OURS, FileInfo, arch_of, identify, part_of, pyramid_of

_WB = ('weight', 'bias')
# Names of one block below its own prefix: (ours, authors').
_POINTWISE = (('norm', 'norm2'), ('mlp.fc1', 'mlp.fc1'), ('mlp.fc2', 'mlp.fc2'))
_SUB_NORM = ('mlp.ffn_ln', 'mlp.ffn_ln')
_MERGE = (('norm', 'norm'), ('reduction', 'reduction'))
_MAIN = (
    *(
        f'{layer}.{kind}'
        for layer in ('norm1', 'attn.proj', 'norm2', 'mlp.w1', 'mlp.w2', 'mlp.ffn_ln', 'mlp.w3')
        for kind in _WB
    ),
    *('gamma_1', 'gamma_2', 'attn.q_bias', 'attn.v_bias'),
)
_PYRAMID_LINEARS = (('align16', 'align_dim_16tofpn'), ('align8', 'align_dim_16to8'), ('align4', 'align_dim_8to4'))
_PYRAMID_SPLITS = (('split8', 'split_16to8'), ('split4', 'split_8to4'))
_PYRAMID_MERGED = (('blocks8', 'block_16to8'), ('blocks4', 'block_8to4'))
_PYRAMID_OUTS = (('out16', 'fpn_modules.0'), ('out8', 'fpn_modules.1'), ('out4', 'fpn_modules.2'))
# Weights of pre-training, of classification and of weight averaging that no detector or segmentor has.
_IGNORED = ('mask_token', 'decoder_embed.', 'lm_head.', 'head.', 'fc_norm.', 'steps')


class Pair(NamedTuple):
    """One of our weights and the authors' one or three (q, k, v) that it is; ``conv``: theirs is a 1x1 convolution."""

    ours: str
    authors: tuple[str, ...]
    conv: bool = False


@dataclass
class Weights:
    """Weights of backbone and pyramid in our layout.

    Attributes:
        state: Our name -> tensor, in the file's own type.
        ignored: Names in the file that are left out by rule.
        unexpected: Names in the file that no rule knows.
        notes: What was done beyond renaming, one sentence each.
    """

    state: dict[str, Tensor]
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def name_pairs(depths: tuple[int, int, int], *, pyramid_depth: int = 1) -> Iterator[Pair]:
    """All weights of a Fast-iTPN with its pyramid.

    Args:
        depths: Blocks of the three stages.
        pyramid_depth: Blocks after each merge of two pyramid levels.
    """
    yield Pair('pos_embed', ('pos_embed',))
    yield from _same(f'{name}.{kind}' for name in ('patch_embed.proj', 'norm') for kind in _WB)
    index = 0
    for stage, depth in enumerate(depths[:2], start=1):
        for i in range(depth):
            yield from _layers(f'stage{stage}.{i}.', f'blocks.{index}.', (*_POINTWISE, _SUB_NORM))
            index += 1
        yield from _layers(f'merge{stage}.', f'blocks.{index}.', _MERGE)
        index += 1
    for i in range(depths[2]):
        theirs = f'blocks.{index + i}.'
        yield from (Pair(f'blocks.{i}.{name}', (theirs + name,)) for name in _MAIN)
        yield Pair(f'blocks.{i}.attn.qkv.weight', tuple(f'{theirs}attn.{x}_proj.weight' for x in 'qkv'))
    for ours, theirs in _PYRAMID_LINEARS:
        yield from (Pair(f'{ours}.{kind}', (f'{theirs}.{kind}',), kind == 'weight') for kind in _WB)
    for ours, theirs in _PYRAMID_SPLITS:
        yield from _layers(f'{ours}.', f'{theirs}.', _MERGE)
    for ours, theirs in _PYRAMID_MERGED:
        for i in range(pyramid_depth):
            yield from _layers(f'{ours}.{i}.', f'{theirs}.{i}.', _POINTWISE)
    for ours, theirs in _PYRAMID_OUTS:
        yield from _layers(f'{ours}.', f'{theirs}.', _POINTWISE)


def to_ours(info: FileInfo) -> Weights:
    """Backbone and pyramid of a Fast-iTPN file in our layout, types and values unchanged.

    Args:
        info: A file in our layout or in one of the authors' Fast-iTPN layouts.

    Raises:
        ValueError: If it is in another layout, or so incomplete that its blocks cannot be told apart.
    """
    if info.layout not in (OURS, *AUTHORS_FAST):
        raise ValueError(f'this is not a Fast-iTPN file: {info.title} ({info.examples()})')
    weights = Weights({})
    left = dict(info.body)
    if info.layout == OURS:
        known = {name for name in left if part_of(name) != 'other'}
        weights.state = {name: left.pop(name) for name in list(left) if name in known}
    else:
        if info.arch is None:
            raise ValueError(
                f'the two merges (blocks.N.reduction.weight) are not both in it: it is cut off ({info.examples()})'
            )
        if 'norm.weight' not in left and 'fc_norm.weight' in left:
            for kind in _WB:
                left[f'norm.{kind}'] = left.pop(f'fc_norm.{kind}')
            weights.notes.append(
                'fc_norm (norm after mean pooling) was loaded into norm: the file has no norm of its own'
            )
        for pair in name_pairs(info.arch.depths, pyramid_depth=info.pyramid.depth if info.pyramid else 1):
            if all(name in left for name in pair.authors):
                tensors = [left.pop(name) for name in pair.authors]
                value = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
                weights.state[pair.ours] = value.flatten(1) if pair.conv and value.shape[2:] == (1, 1) else value
    for name in left:
        (weights.ignored if name.startswith(_IGNORED) else weights.unexpected).append(name)
    return weights


def to_authors(state: Mapping[str, Tensor], depths: tuple[int, int, int] | None = None) -> dict[str, Tensor]:
    """Weights named as the authors name them, bit-equal: the inverse of the conversion that loading does.

    Args:
        state: State dict of a FastITPN, an ITPNPyramid, or a model with them as ``backbone`` and ``neck``.
        depths: Blocks of the three stages; None reads them off the weights. A pyramid alone needs none.

    Returns:
        Backbone and pyramid weights; those of heads are left out.

    Raises:
        ValueError: If the weights are in another layout, or some of a layer's are missing.
    """
    info = identify(state)
    if info.layout != OURS:
        raise ValueError(f"only mmitpn's own weights are converted to the authors' layout, but this is {info.title}")
    arch, pyramid = arch_of(info.body), pyramid_of(info.body)
    if depths is None:
        depths = arch.depths if arch else (0, 0, 0)
    result: dict[str, Tensor] = {}
    left = dict(info.body)
    for pair in name_pairs(depths, pyramid_depth=pyramid.depth if pyramid else 1):
        if pair.ours not in left:
            continue
        value = left.pop(pair.ours)
        if pair.conv and value.ndim == 2:
            value = value[:, :, None, None]
        # Cloned: safetensors refuses tensors that share memory.
        parts = [part.clone() for part in value.chunk(3)] if len(pair.authors) == 3 else [value]
        result.update(zip(pair.authors, parts, strict=True))
    lost = [name for name in left if part_of(name) != 'other']
    if lost:
        raise ValueError(f'{len(lost)} weights have no place in a network of depths {depths}: {", ".join(lost[:3])}')
    return result


def resize_pos_embed(embedding: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resize a position embedding by target size: bicubic, no ``align_corners``, no antialiasing, in fp32.

    Args:
        embedding: ``(1, N, C)``, ``N = grid[0] * grid[1]``.
        grid: Its rows and columns, in tokens.
        target: Rows and columns wanted.

    Returns:
        ``(1, target[0] * target[1], C)``.
    """
    dim = embedding.shape[-1]
    maps = embedding.float().reshape(1, *grid, dim).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=target, mode='bicubic', align_corners=False)
    return maps.permute(0, 2, 3, 1).reshape(1, target[0] * target[1], dim)


def _same(names: Iterable[str]) -> Iterator[Pair]:
    return (Pair(name, (name,)) for name in names)


def _layers(ours: str, theirs: str, layers: Iterable[tuple[str, str]]) -> Iterator[Pair]:
    for mine, other in layers:
        for kind in _WB:
            conv = kind == 'weight' and mine.endswith(('fc1', 'fc2'))
            yield Pair(f'{ours}{mine}.{kind}', (f'{theirs}{other}.{kind}',), conv)
