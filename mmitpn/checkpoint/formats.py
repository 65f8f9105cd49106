"""Identify a checkpoint: unwrap the state dict, strip prefixes, recognize the layout, infer the network's sizes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from torch import Tensor

FAST, ITPN = 'Fast-iTPN', 'iTPN'  # the two families
PYRAMID_KINDS = {FAST: 'fast', ITPN: 'linear'}  # the `kind` of mmitpn.ITPNPyramid

FAST_PRETRAIN = 'fast_itpn_pretrain'
FAST_FINETUNED = 'fast_itpn_finetuned'
ITPN_PIXEL = 'itpn_pixel'
ITPN_CLIP = 'itpn_clip'
OURS = 'mmitpn'
FOREIGN = 'foreign'

TITLES = {
    FAST_PRETRAIN: "Fast-iTPN with its pyramid, the authors' pre-training layout",
    FAST_FINETUNED: "Fast-iTPN without a pyramid, the authors' fine-tuned layout",
    ITPN_PIXEL: 'iTPN with pixel supervision (or HiViT), the 2023 family',
    ITPN_CLIP: 'iTPN with CLIP supervision, the 2023 family',
    OURS: 'mmitpn, as its own modules and detectors save it',
    FOREIGN: 'none of the known layouts',
}
AUTHORS = (FAST_PRETRAIN, FAST_FINETUNED, ITPN_PIXEL, ITPN_CLIP)

# Keys that a state dict is stored under, in order of preference; the last two are averaged weights stored alone.
_WRAPPERS = ('module', 'model', 'state_dict', 'ema_state_dict', 'model_ema')
_AUTHORS_PYRAMID = ('align_dim_', 'split_16to8.', 'split_8to4.', 'block_16to8.', 'block_8to4.', 'fpn_modules.')
_OUR_PYRAMID = (
    *('align16.', 'align8.', 'align4.', 'split8.', 'split4.'),
    *('blocks8.', 'blocks4.', 'out16.', 'out8.', 'out4.'),
)
# Networks of other families that are recognized: (a key, the network).
_OTHER_NETWORKS = (
    (r'layer1\.0\.conv1\.', 'a ResNet'),
    (r'(stages|layers)\.\d+\.blocks\.\d+\.attn\.(w_msa\.)?relative_position_bias_table$', 'a Swin Transformer'),
    (r'(downsample_layers\.|stages\.\d+\.\d+\.(dwconv|depthwise_conv)\.)', 'a ConvNeXt'),
    (r'(blocks\.0\.attn\.q_proj\.weight|blocks\.0\.mlp\.w1\.weight)$', 'an EVA-02'),
    (r'(cls_token|class_embedding)$', 'a plain vision transformer'),
)
# Blocks at strides 4, 8, 16 and channels at stride 16 -> name of the arch, as in the table of the backbones, which
# this package does not import.
PUBLISHED_ARCHS = {
    (1, 1, 4, 192): 'nano',
    (1, 1, 12, 384): 'tiny',
    (2, 2, 20, 384): 'small',
    (3, 3, 24, 512): 'base',
    (2, 2, 40, 768): 'large',
}


@dataclass(frozen=True)
class InferredArch:
    """Size of a backbone, inferred from its weights; ``name`` is that of ``PUBLISHED_ARCHS``, if it is there."""

    depths: tuple[int, int, int]
    embed_dim: int
    name: str | None = None

    def __str__(self) -> str:
        sizes = f'{"/".join(map(str, self.depths))} blocks, {self.embed_dim} channels'
        return f'{self.name} ({sizes})' if self.name else sizes

    @property
    def setting(self) -> str:
        """The setting in a config: ``arch='base'``, or the dict."""
        if self.name:
            return f"arch='{self.name}'"
        return f'arch=dict(depths={self.depths}, embed_dim={self.embed_dim}, num_heads={self.num_heads})'

    @property
    def num_heads(self) -> int:
        """Attention heads: 64 channels each in both families."""
        return max(self.embed_dim // 64, 1)


@dataclass(frozen=True)
class InferredPyramid:
    """Size of a pyramid, inferred from its weights.

    Attributes:
        out_channels: Channels of the levels.
        depth: Blocks per merge.
        hidden_channels: Hidden channels of the blocks.
        embed_dim: Channels of the coarsest map that it takes.
        family: ``'Fast-iTPN'`` or ``'iTPN'``.
    """

    out_channels: int
    depth: int
    hidden_channels: int
    embed_dim: int
    family: str = FAST

    @property
    def kind(self) -> str:
        """The ``kind`` of :class:`mmitpn.ITPNPyramid`."""
        return PYRAMID_KINDS.get(self.family, 'fast')

    @property
    def default_hidden(self) -> int:
        """Hidden channels that follow from the other sizes."""
        return 4 * self.out_channels if self.family == ITPN else int(self.out_channels * 8 / 3)

    def __str__(self) -> str:
        return f'{self.out_channels} channels, {self.depth} block(s) per merge, {self.hidden_channels} hidden'


@dataclass
class FileInfo:
    """Layout, weights and sizes of a checkpoint.

    Attributes:
        layout: One of the keys of ``TITLES``.
        body: The weights of backbone and pyramid under their own names (prefixes stripped), in the file's layout.
        rest: All other weights (heads), under their names in the file.
        wrappers: The keys that the state dict was stored under, outermost first.
        prefixes: The prefixes that were stripped from the names.
        looks_like: For a foreign file, the network it looks like; else ''.
        arch: Size of the backbone, if there is one.
        pyramid: Size of the pyramid, if there is one.
        family: ``'Fast-iTPN'`` or ``'iTPN'``; '' if that cannot be inferred.
        layer_scale: Whether the main stage has layer scale; None without a backbone.
        relative_position: How the main stage stores relative positions, see :class:`mmitpn.ITPN`.
        relative_window: Side in tokens of the grid they are for; 0 without them.
        positions: Tokens of the position embedding; 0 without one.
        in_channels: Channels of the images; 0 without a first layer.
        dtype: The floating-point type of most weights.
    """

    layout: str
    body: dict[str, Tensor]
    rest: dict[str, Tensor] = field(default_factory=dict)
    wrappers: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    looks_like: str = ''
    arch: InferredArch | None = None
    pyramid: InferredPyramid | None = None
    family: str = ''
    layer_scale: bool | None = None
    relative_position: str | None = None
    relative_window: int = 0
    positions: int = 0
    in_channels: int = 0
    dtype: str = ''

    @property
    def title(self) -> str:
        """The layout in words."""
        looks = f'; it looks like {self.looks_like}' if self.looks_like else ''
        return f'{TITLES[self.layout]}{looks}'

    @property
    def description(self) -> str:
        """Layout, sizes and type in one line."""
        sizes = [str(self.arch)] if self.arch else []
        sizes += [f'pyramid of {self.pyramid}'] if self.pyramid else []
        return '; '.join([self.title, *sizes, self.dtype or 'no floating-point weights'])

    @property
    def grid(self) -> tuple[int, int] | None:
        """Grid of the position embedding in tokens, if it is square."""
        side = isqrt(self.positions)
        return (side, side) if side and side * side == self.positions else None

    def examples(self, count: int = 3) -> str:
        """The first names in the file, for messages."""
        names = list(self.body) + list(self.rest)
        return ', '.join(names[:count]) + (', ...' if len(names) > count else '')


def identify(checkpoint: Mapping[str, Any], *, prefix: str | None = None) -> FileInfo:
    """Identify a checkpoint.

    Args:
        checkpoint: The contents of the file, wrapped or raw: see :func:`mmitpn.checkpoint.read_checkpoint`.
        prefix: Take only the weights below this prefix (``'backbone.'``, ``'teacher.'``) and strip it.

    Returns:
        Layout, family and sizes of the network in the file, and its weights.

    Raises:
        ValueError: If there are no tensors in it, or none below the prefix.
    """
    state, wrappers = unwrap_state_dict(checkpoint)
    prefixes: tuple[str, ...] = ()
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        state, prefixes = _below(prefix, state), (prefix,)
    state, stripped = _strip_prefixes(state)
    prefixes += stripped
    body, rest = _split_heads(state)
    if len(body) < len(state) and any(name.startswith('backbone.') for name in state):
        prefixes += ('backbone.',)
    layout = _infer_layout(body)
    arch = infer_arch(body)
    relative_position, relative_window = infer_relative_position(body)
    return FileInfo(
        layout,
        body,
        rest,
        wrappers,
        prefixes,
        looks_like=_infer_other_network(body) if layout == FOREIGN else '',
        arch=arch,
        pyramid=infer_pyramid(body),
        family=infer_family(body),
        layer_scale=any(name.endswith('.gamma_1') for name in body) if arch else None,
        relative_position=relative_position,
        relative_window=relative_window,
        positions=_count_positions(body),
        in_channels=_count_in_channels(body),
        dtype=_infer_dtype(state),
    )


# --- wrappers and prefixes -----------------------------------------------------------------------------------------


def unwrap_state_dict(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Find the state dict in the contents of a checkpoint file.

    Args:
        checkpoint: The contents: weights by name, alone or below (nested) keys such as ``'state_dict'``, ``'model'``
            or ``'module'``. Averaged weights are taken where there are no others.

    Returns:
        The tensors by name, and the keys they were stored under, outermost first.

    Raises:
        ValueError: If there are no tensors in it.
    """
    for key in _WRAPPERS:
        inner = checkpoint.get(key)
        if isinstance(inner, Mapping) and inner:
            state, wrappers = unwrap_state_dict(inner)
            return state, (key, *wrappers)
    state = {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not state:
        keys = ', '.join(map(str, list(checkpoint)[:5])) or 'nothing'
        raise ValueError(f'no weights by name: the file holds {keys}; save model.state_dict()')
    return state, ()


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    chosen = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    if not chosen:
        raise ValueError(f'no weight is below the prefix {prefix!r}; the file has {_top_level(state)}')
    return chosen


def _strip_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Strip the prefixes that DataParallel, torch.compile and Lightning add to every name."""
    found = []
    for prefix in ('module.', '_orig_mod.', 'model.', 'module.'):
        count = sum(name.startswith(prefix) for name in state)
        # The counter of an averaged model has no prefix; a submodule of that name has only a part of the weights.
        if count > len(state) // 2:
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            found.append(prefix)
    return state, tuple(found)


def _split_heads(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Backbone and pyramid under their own names, and the rest."""
    if not any(name.startswith(('backbone.', 'neck.')) for name in state):
        return dict(state), {}
    body, rest = {}, {}
    for name, value in state.items():
        inner = name.removeprefix('backbone.').removeprefix('neck.')
        if name.startswith('backbone.') or (name.startswith('neck.') and inner.startswith(_OUR_PYRAMID)):
            body[inner] = value
        else:
            rest[name] = value
    return body, rest


# --- layout --------------------------------------------------------------------------------------------------------


def part_of(name: str) -> str:
    """The part of the network that a name in our layout belongs to: stem, stages, main, pyramid, or other."""
    if name.startswith(('pos_embed', 'patch_embed.')):
        return 'stem'
    if name.startswith(('stage1.', 'stage2.', 'merge1.', 'merge2.')):
        return 'stages'
    if name.startswith(('blocks.', 'norm.')):
        return 'main'
    return 'pyramid' if name.startswith(_OUR_PYRAMID) else 'other'


def part_in_file(name: str) -> str:
    """As ``part_of``, for a name in the authors' layout, whose flat list of blocks counts as the main stage."""
    return 'pyramid' if name.startswith(_AUTHORS_PYRAMID) else part_of(name)


def _infer_layout(body: Mapping[str, Tensor]) -> str:
    merges = any(re.fullmatch(r'blocks\.\d+\.reduction\.weight', name) for name in body)
    if any(name in body for name in ('merge1.reduction.weight', 'stage1.0.norm.weight', 'align8.weight')):
        return OURS
    swiglu = merges and any(name.endswith('.mlp.w1.weight') for name in body)
    if swiglu or ('blocks.0.mlp.ffn_ln.weight' in body and 'blocks.0.attn.proj.weight' not in body):
        return FAST_PRETRAIN if any(name.startswith(_AUTHORS_PYRAMID) for name in body) else FAST_FINETUNED
    names = {name.split('.', 1)[0] for name in body}
    if 'lm_cls_head' in names or (merges and 'blocks.0.gamma_2' in body):
        return ITPN_CLIP
    if 'decoder_pred' in names or (merges and 'absolute_pos_embed' in names):
        return ITPN_PIXEL
    return FAST_PRETRAIN if 'lm_head' in names and merges else FOREIGN


def _infer_other_network(body: Iterable[str]) -> str:
    return next((network for key, network in _OTHER_NETWORKS if any(re.match(key, name) for name in body)), '')


def _infer_dtype(state: Mapping[str, Tensor]) -> str:
    floats = Counter(value.dtype for value in state.values() if value.is_floating_point())
    return str(floats.most_common(1)[0][0]).removeprefix('torch.') if floats else ''


def _top_level(state: Iterable[str]) -> str:
    tops = [f'{top}. ({count})' for top, count in Counter(name.split('.', 1)[0] for name in state).items()]
    return ', '.join(tops[:8]) + (', ...' if len(tops) > 8 else '')


# --- sizes, of weights named as ours or as the authors' ------------------------------------------------------------


def infer_family(body: Mapping[str, Tensor]) -> str:
    """The family of the network: ``FAST``, ``ITPN``, or '' if it is neither.

    Args:
        body: Weights of backbone or pyramid, named as ours or as the authors'; the same for the functions below.
    """
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


def infer_arch(body: Mapping[str, Tensor]) -> InferredArch | None:
    """Size of the backbone; None if not both of its merges are there."""
    if 'merge2.reduction.weight' in body and 'merge1.reduction.weight' in body:
        depths = tuple(len(_indices(body, stage)) for stage in ('stage1', 'stage2', 'blocks'))
        embed_dim = body['merge2.reduction.weight'].shape[0]
    else:
        blocks = _indices(body, 'blocks')
        merges = sorted(i for i in blocks if f'blocks.{i}.reduction.weight' in body)
        if len(merges) != 2:
            return None
        first, second = merges
        # Counted up to the last block, so that a missing block is reported as missing and does not shift the others.
        depths = (first, second - first - 1, max(blocks) - second)
        embed_dim = body[f'blocks.{second}.reduction.weight'].shape[0]
    return InferredArch(depths, embed_dim, PUBLISHED_ARCHS.get((*depths, embed_dim)))


def infer_pyramid(body: Mapping[str, Tensor]) -> InferredPyramid | None:
    """Size of the pyramid; None if there is none."""
    for align, out, blocks in (('align8', 'out16', 'blocks8'), ('align_dim_16to8', 'fpn_modules.0', 'block_16to8')):
        if f'{align}.weight' in body and f'{out}.mlp.fc1.weight' in body:
            out_channels, half = body[f'{align}.weight'].shape[:2]
            hidden = body[f'{out}.mlp.fc1.weight'].shape[0]
            return InferredPyramid(out_channels, len(_indices(body, blocks)), hidden, 2 * half, infer_family(body))
    return None


def infer_relative_position(body: Mapping[str, Tensor]) -> tuple[str | None, int]:
    """How the main stage stores relative positions, and for which window; None and 0 if it has none."""
    for leaf, kind in (('.relative_position_bias_table', 'table'), ('.rel_pos_h', 'decomposed')):
        value = next((value for name, value in body.items() if name.endswith(leaf)), None)
        if value is not None:
            side = len(value) if kind == 'decomposed' else isqrt(len(value))
            return kind, (side + 1) // 2
    return None, 0


def _count_positions(body: Mapping[str, Tensor]) -> int:
    embedding = next((body[name] for name in ('pos_embed', 'absolute_pos_embed') if name in body), None)
    return embedding.shape[1] if embedding is not None and embedding.ndim == 3 else 0


def _count_in_channels(body: Mapping[str, Tensor]) -> int:
    weight = body.get('patch_embed.proj.weight')
    return weight.shape[1] if weight is not None and weight.ndim == 4 else 0


def _indices(body: Iterable[str], stage: str) -> set[int]:
    matches = (re.match(rf'{re.escape(stage)}\.(\d+)\.', name) for name in body)
    return {int(match[1]) for match in matches if match}
