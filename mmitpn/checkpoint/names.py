"""The names and shapes of the family's weights, ours and the authors': one table, read in both directions.

The authors keep one flat list of blocks with the merges inside. Fast-iTPN's are three attention projections and 1x1
convolutions where ours are one ``qkv`` matrix (rows q, k, v) and linear layers; iTPN's pyramid splits by a linear layer
where ours is the transposed convolution that it equals. Conversion is bit-exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor

FAST, ITPN = 'Fast-iTPN', 'iTPN'

_WB = ('weight', 'bias')
# Names of one block below its own prefix: (ours, authors').
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
# Weights of pre-training, of classification and of weight averaging that no detector or segmentor has.
_IGNORED_EVERYWHERE = ('mask_token', 'decoder_embed.', 'lm_head.', 'head.', 'fc_norm.', 'steps')
_IGNORED_ITPN = ('decoder_', 'lm_cls_head.', 'norm_cls.', 'cls_pt_layers.', 'norm.', 'relative_position_index')


class Pair(NamedTuple):
    """One of our weights and the authors' one or three (q, k, v) that it is.

    ``form`` says how the shapes differ: ``'same'``; ``'conv'``: theirs is a 1x1 convolution, ours a linear layer;
    ``'split'``: theirs is a linear layer ``(4 F, C)``, ours a transposed convolution ``(C, F, 2, 2)``.
    """

    ours: str
    authors: tuple[str, ...]
    form: str = 'same'

    def to_ours(self, value: Tensor) -> Tensor:
        """The authors' weight in our shape."""
        if self.form == 'conv' and value.shape[2:] == (1, 1):
            return value.flatten(1)
        if self.form == 'split' and value.ndim == 2 and len(value) % 4 == 0:
            return value.view(2, 2, -1, value.shape[1]).permute(3, 2, 0, 1).contiguous()
        return value

    def to_authors(self, value: Tensor) -> Tensor:
        """Our weight in the authors' shape."""
        if self.form == 'conv' and value.ndim == 2:
            return value[:, :, None, None]
        if self.form == 'split' and value.ndim == 4:
            return value.permute(2, 3, 1, 0).reshape(-1, len(value))
        return value


def name_pairs(family: str, depths: tuple[int, int, int], *, pyramid_depth: int = 1) -> Iterator[Pair]:
    """All weights that a backbone of the family and its pyramid can have.

    Args:
        family: ``FAST`` or ``ITPN``.
        depths: Blocks of the three stages.
        pyramid_depth: Blocks after each merge of two pyramid levels.
    """
    fast = family == FAST
    form = 'conv' if fast else 'same'
    yield Pair('pos_embed', ('pos_embed' if fast else 'absolute_pos_embed',))
    yield from _same(
        f'{name}.{kind}' for name in ('patch_embed.proj', 'norm' if fast else 'patch_embed.norm') for kind in _WB
    )
    index = 0
    for stage, depth in enumerate(depths[:2], start=1):
        for i in range(depth):
            ours, theirs = f'stage{stage}.{i}.', f'blocks.{index}.'
            yield from _layers(ours, theirs, (*_POINTWISE, _SUB_NORM) if fast else _POINTWISE, form)
            if not fast:
                yield Pair(f'{ours}gamma', (f'{theirs}gamma_2',))
            index += 1
        yield from _layers(f'merge{stage}.', f'blocks.{index}.', _MERGE)
        index += 1
    for i in range(depths[2]):
        ours, theirs = f'blocks.{i}.', f'blocks.{index + i}.'
        yield from _layers(ours, theirs, ((name, name) for name in _MAIN_LAYERS[family]))
        yield from (Pair(ours + name, (theirs + name,)) for name in _MAIN_SINGLE[family])
        if fast:
            yield Pair(f'{ours}attn.qkv.weight', tuple(f'{theirs}attn.{x}_proj.weight' for x in 'qkv'))
    for ours, theirs in _ALIGNS:
        yield from (Pair(f'{ours}.{kind}', (f'{theirs}.{kind}',), form if kind == 'weight' else 'same') for kind in _WB)
    for ours, theirs in _SPLITS:
        yield from _layers(f'{ours}.', f'{theirs}.', _MERGE, 'same' if fast else 'split')
    for ours, theirs in _MERGED:
        for i in range(pyramid_depth):
            yield from _layers(f'{ours}.{i}.', f'{theirs}.{i}.', _POINTWISE, form)
    for ours, theirs in _OUTS:
        yield from _layers(f'{ours}.', f'{theirs}.', _POINTWISE, form)


def is_ignored(family: str, name: str) -> bool:
    """Whether a weight of the authors' files is one that no detector or segmentor has."""
    rules = _IGNORED_EVERYWHERE if family == FAST else _IGNORED_EVERYWHERE + _IGNORED_ITPN
    return name.startswith(rules) or (family == ITPN and name.endswith('.relative_position_index'))


def _same(names: Iterable[str]) -> Iterator[Pair]:
    return (Pair(name, (name,)) for name in names)


def _layers(ours: str, theirs: str, layers: Iterable[tuple[str, str]], form: str = 'same') -> Iterator[Pair]:
    for mine, other in layers:
        for kind in _WB:
            shaped = kind == 'weight' and not mine.startswith(('norm', 'mlp.ffn_ln'))
            yield Pair(f'{ours}{mine}.{kind}', (f'{theirs}{other}.{kind}',), form if shaped else 'same')
