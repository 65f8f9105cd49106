"""Conversion of weights between the authors' layouts and ours: one table of names and shapes, used in both directions.

The authors keep one flat list of blocks with the merges inside. Fast-iTPN's have three attention projections and 1x1
convolutions where ours have one ``qkv`` matrix (rows q, k, v) and linear layers; iTPN's pyramid splits by a linear
layer where ours has the equivalent transposed convolution. Conversion is bit-exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mmitpn.checkpoint.formats import AUTHORS, FAST, ITPN, OURS, FileInfo, identify, part_of

# --- the table -----------------------------------------------------------------------------------------------------

_WB = ('weight', 'bias')
# Layers of one block below its own prefix: (ours, authors').
_POINTWISE = (('norm', 'norm2'), ('mlp.fc1', 'mlp.fc1'), ('mlp.fc2', 'mlp.fc2'))
_SUB_NORM = ('mlp.ffn_ln', 'mlp.ffn_ln')
_MERGE = (('norm', 'norm'), ('reduction', 'reduction'))
_BLOCK = ('norm1', 'attn.proj', 'norm2')
_MAIN_LAYERS = {FAST: (*_BLOCK, 'mlp.w1', 'mlp.w2', 'mlp.ffn_ln', 'mlp.w3'), ITPN: (*_BLOCK, 'mlp.fc1', 'mlp.fc2')}
_MAIN_SINGLE = {
    FAST: ('gamma_1', 'gamma_2', 'attn.q_bias', 'attn.v_bias'),
    ITPN: (
        *('gamma_1', 'gamma_2', 'attn.qkv.weight', 'attn.qkv.bias'),
        *('attn.relative_position_bias_table', 'attn.rel_pos_h', 'attn.rel_pos_w'),
    ),
}
_ALIGNS = (('align16', 'align_dim_16tofpn'), ('align8', 'align_dim_16to8'), ('align4', 'align_dim_8to4'))
_SPLITS = (('split8', 'split_16to8'), ('split4', 'split_8to4'))
_MERGED = (('blocks8', 'block_16to8'), ('blocks4', 'block_8to4'))
_OUTS = (('out16', 'fpn_modules.0'), ('out8', 'fpn_modules.1'), ('out4', 'fpn_modules.2'))
# Weights of pre-training, classification and weight averaging that a detector or segmentor does not have.
_IGNORED_EVERYWHERE = ('mask_token', 'decoder_embed.', 'lm_head.', 'head.', 'fc_norm.', 'steps')
_IGNORED_ITPN = ('decoder_', 'lm_cls_head.', 'norm_cls.', 'cls_pt_layers.', 'norm.', 'relative_position_index')


class KeyMap(NamedTuple):
    """One of our weights and the authors' one or three (q, k, v) that it corresponds to.

    Attributes:
        ours: Our name.
        authors: The authors' names.
        reshape: How the shapes differ: ``'same'``; ``'conv'``: theirs is a 1x1 convolution, ours a linear layer;
            ``'split'``: theirs is a linear layer ``(4 F, C)``, ours a transposed convolution ``(C, F, 2, 2)``.
    """

    ours: str
    authors: tuple[str, ...]
    reshape: str = 'same'

    def from_authors(self, values: list[Tensor]) -> Tensor:
        """The authors' weights, in the order of their names, as ours."""
        value = values[0] if len(values) == 1 else torch.cat(values)
        if self.reshape == 'conv' and value.shape[2:] == (1, 1):
            return value.flatten(1)
        if self.reshape == 'split' and value.ndim == 2 and len(value) % 4 == 0:
            return value.view(2, 2, -1, value.shape[1]).permute(3, 2, 0, 1).contiguous()
        return value

    def to_authors(self, value: Tensor) -> list[Tensor]:
        """Our weight as the authors', in the order of their names."""
        if self.reshape == 'conv' and value.ndim == 2:
            value = value[:, :, None, None]
        elif self.reshape == 'split' and value.ndim == 4:
            value = value.permute(2, 3, 1, 0).reshape(-1, len(value))
        if len(self.authors) == 1:
            return [value]
        return [part.clone() for part in value.chunk(3)]  # cloned: safetensors refuses tensors that share memory


def key_maps(family: str, depths: tuple[int, int, int], *, pyramid_depth: int = 1) -> Iterator[KeyMap]:
    """All weights that a backbone of the family and its pyramid can have.

    Args:
        family: ``FAST`` or ``ITPN``.
        depths: Blocks of the three stages.
        pyramid_depth: Blocks after each merge of two pyramid levels.
    """
    fast = family == FAST
    reshape = 'conv' if fast else 'same'
    yield KeyMap('pos_embed', ('pos_embed' if fast else 'absolute_pos_embed',))
    for layer in ('patch_embed.proj', 'norm' if fast else 'patch_embed.norm'):
        yield from (KeyMap(f'{layer}.{kind}', (f'{layer}.{kind}',)) for kind in _WB)
    index = 0
    for stage, depth in enumerate(depths[:2], start=1):
        for i in range(depth):
            ours, theirs = f'stage{stage}.{i}.', f'blocks.{index}.'
            yield from _layers(ours, theirs, (*_POINTWISE, _SUB_NORM) if fast else _POINTWISE, reshape)
            if not fast:
                yield KeyMap(f'{ours}gamma', (f'{theirs}gamma_2',))
            index += 1
        yield from _layers(f'merge{stage}.', f'blocks.{index}.', _MERGE)
        index += 1
    for i in range(depths[2]):
        ours, theirs = f'blocks.{i}.', f'blocks.{index + i}.'
        yield from _layers(ours, theirs, ((name, name) for name in _MAIN_LAYERS[family]))
        yield from (KeyMap(ours + name, (theirs + name,)) for name in _MAIN_SINGLE[family])
        if fast:
            yield KeyMap(f'{ours}attn.qkv.weight', tuple(f'{theirs}attn.{x}_proj.weight' for x in 'qkv'))
    for ours, theirs in _ALIGNS:
        yield KeyMap(f'{ours}.weight', (f'{theirs}.weight',), reshape)
        yield KeyMap(f'{ours}.bias', (f'{theirs}.bias',))
    for ours, theirs in _SPLITS:
        yield from _layers(f'{ours}.', f'{theirs}.', _MERGE, 'same' if fast else 'split')
    for ours, theirs in _MERGED:
        for i in range(pyramid_depth):
            yield from _layers(f'{ours}.{i}.', f'{theirs}.{i}.', _POINTWISE, reshape)
    for ours, theirs in _OUTS:
        yield from _layers(f'{ours}.', f'{theirs}.', _POINTWISE, reshape)


def _layers(ours: str, theirs: str, layers: Iterable[tuple[str, str]], reshape: str = 'same') -> Iterator[KeyMap]:
    for our_layer, their_layer in layers:
        is_norm = our_layer.startswith(('norm', 'mlp.ffn_ln'))
        yield KeyMap(f'{ours}{our_layer}.weight', (f'{theirs}{their_layer}.weight',), 'same' if is_norm else reshape)
        yield KeyMap(f'{ours}{our_layer}.bias', (f'{theirs}{their_layer}.bias',))


def is_ignored(family: str, name: str) -> bool:
    """Whether a weight of the authors' files is one that a detector or segmentor does not have."""
    rules = _IGNORED_EVERYWHERE if family == FAST else _IGNORED_EVERYWHERE + _IGNORED_ITPN
    return name.startswith(rules) or (family == ITPN and name.endswith('.relative_position_index'))


# --- the two directions --------------------------------------------------------------------------------------------


@dataclass
class ConvertedState:
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


def convert_from_authors(info: FileInfo) -> ConvertedState:
    """Backbone and pyramid of a file of either family in our layout, types and values unchanged.

    Args:
        info: A file in one of the authors' layouts, or in ours, whose names stay.

    Returns:
        ``state``: the weights by our names; ``ignored``: names in the file that are left out by rule; ``unexpected``:
        names that no rule knows; ``notes``: what was done beyond renaming.

    Raises:
        ValueError: If it is in another layout, or so incomplete that its blocks cannot be numbered.
    """
    if info.layout not in (OURS, *AUTHORS):
        raise ValueError(f'this is not a file of the iTPN family: {info.title} ({info.examples()})')
    left, notes = dict(info.body), []
    if info.layout == OURS:
        state = {name: left.pop(name) for name in list(left) if part_of(name) != 'other'}
    else:
        if info.arch is None:
            raise ValueError(
                f'the file lacks one or both merges (blocks.N.reduction.weight): it is cut off ({info.examples()})'
            )
        if info.family != ITPN and 'norm.weight' not in left and 'fc_norm.weight' in left:
            for kind in _WB:
                left[f'norm.{kind}'] = left.pop(f'fc_norm.{kind}')
            notes.append('fc_norm (norm after mean pooling) was loaded into norm: the file has no norm of its own')
        state = {}
        pyramid_depth = info.pyramid.depth if info.pyramid else 1
        for key_map in key_maps(info.family, info.arch.depths, pyramid_depth=pyramid_depth):
            if all(name in left for name in key_map.authors):
                state[key_map.ours] = key_map.from_authors([left.pop(name) for name in key_map.authors])
    ignored = [name for name in left if is_ignored(info.family, name)]
    unexpected = [name for name in left if not is_ignored(info.family, name)]
    return ConvertedState(state, ignored, unexpected, notes)


def convert_to_authors(state: Mapping[str, Tensor], depths: tuple[int, int, int] | None = None) -> dict[str, Tensor]:
    """Weights named as the authors name them, bit-equal: the inverse of the conversion that loading does.

    Args:
        state: State dict of a FastITPN, an ITPN, an ITPNPyramid, or a model with them as ``backbone`` and ``neck``.
        depths: Blocks of the three stages; None infers them from the weights. A pyramid alone needs none.

    Returns:
        Backbone and pyramid weights; those of heads are left out.

    Raises:
        ValueError: If the weights are in another layout, or some of a layer's are missing.
    """
    info = identify(state)
    if info.layout != OURS:
        raise ValueError(f"only mmitpn's own weights are converted to the authors' layout, but this is {info.title}")
    if depths is None:
        depths = info.arch.depths if info.arch else (0, 0, 0)
    result: dict[str, Tensor] = {}
    left = dict(info.body)
    for key_map in key_maps(info.family, depths, pyramid_depth=info.pyramid.depth if info.pyramid else 1):
        if key_map.ours in left:
            values = key_map.to_authors(left.pop(key_map.ours))
            result.update(zip(key_map.authors, values, strict=True))
    lost = [name for name in left if part_of(name) != 'other']
    if lost:
        raise ValueError(f'{len(lost)} weights have no place in a network of depths {depths}: {", ".join(lost[:3])}')
    return result
