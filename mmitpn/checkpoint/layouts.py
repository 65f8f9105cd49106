"""Which file is this: open its wrappers, strip its prefixes, name its layout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from torch import Tensor

from mmitpn.checkpoint.sizes import Arch, Pyramid, arch_of, family_of, pyramid_of, relative_of

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
AUTHORS_FAST = (FAST_PRETRAIN, FAST_FINETUNED)
AUTHORS = (*AUTHORS_FAST, ITPN_PIXEL, ITPN_CLIP)

# Opened in this order; the last two are averaged weights that are stored alone.
_WRAPPERS = ('module', 'model', 'state_dict', 'ema_state_dict', 'model_ema')
_AUTHORS_PYRAMID = ('align_dim_', 'split_16to8.', 'split_8to4.', 'block_16to8.', 'block_8to4.', 'fpn_modules.')
_OUR_PYRAMID = (
    *('align16.', 'align8.', 'align4.', 'split8.', 'split4.'),
    *('blocks8.', 'blocks4.', 'out16.', 'out8.', 'out4.'),
)
# Why a foreign file is foreign, where that can be told: (keys it has, what it is).
_STRANGERS = (
    (r'layer1\.0\.conv1\.', 'a ResNet'),
    (r'(stages|layers)\.\d+\.blocks\.\d+\.attn\.(w_msa\.)?relative_position_bias_table$', 'a Swin Transformer'),
    (r'(downsample_layers\.|stages\.\d+\.\d+\.(dwconv|depthwise_conv)\.)', 'a ConvNeXt'),
    (r'(blocks\.0\.attn\.q_proj\.weight|blocks\.0\.mlp\.w1\.weight)$', 'an EVA-02'),
    (r'(cls_token|class_embedding)$', 'a plain vision transformer'),
)


@dataclass
class FileInfo:
    """What a checkpoint is.

    Attributes:
        layout: One of the keys of ``TITLES``.
        body: The weights of backbone and pyramid under their own names (prefixes stripped), in the file's layout.
        rest: All other weights (heads), under their names in the file.
        wrappers: The keys that were opened to get at the weights, outermost first.
        prefixes: The prefixes that were stripped from the names.
        stranger: For a foreign file, what it looks like; else ''.
        arch: Size of the backbone, if there is one.
        pyramid: Size of the pyramid, if there is one.
        family: ``'Fast-iTPN'`` or ``'iTPN'``; '' if that cannot be told.
        layer_scale: Whether the main stage has layer scale; None without a backbone.
        relative_position: How the main stage knows relative positions, see :class:`mmitpn.ITPN`.
        relative_window: Side in tokens of the grid they are for; 0 without them.
        positions: Tokens of the position embedding; 0 without one.
        dtype: The floating-point type of most weights.
    """

    layout: str
    body: dict[str, Tensor]
    rest: dict[str, Tensor] = field(default_factory=dict)
    wrappers: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    stranger: str = ''
    arch: Arch | None = None
    pyramid: Pyramid | None = None
    family: str = ''
    layer_scale: bool | None = None
    relative_position: str | None = None
    relative_window: int = 0
    positions: int = 0
    dtype: str = ''

    @property
    def title(self) -> str:
        """The layout in words."""
        looks = f'; it looks like {self.stranger}' if self.stranger else ''
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
    """Tell what a checkpoint is.

    Args:
        checkpoint: What the file holds, wrapped or raw: see :func:`mmitpn.checkpoint.read_checkpoint`.
        prefix: Take only the weights below this prefix (``'backbone.'``, ``'teacher.'``) and strip it.

    Raises:
        ValueError: If there are no tensors in it, or none below the prefix.
    """
    state, wrappers = _unwrap(checkpoint)
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        chosen = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        if not chosen:
            raise ValueError(f'no weight is below the prefix {prefix!r}; the file has {_top_level(state)}')
        state = chosen
    state, prefixes = _strip(state)
    body, rest = _split(state)
    if len(body) < len(state) and any(name.startswith('backbone.') for name in state):
        prefixes += ('backbone.',)
    info = FileInfo(_layout(body), body, rest, wrappers, ((prefix,) if prefix else ()) + prefixes)
    if info.layout == FOREIGN:
        info.stranger = next((name for keys, name in _STRANGERS if any(re.match(keys, key) for key in body)), '')
    floats = Counter(value.dtype for value in state.values() if value.is_floating_point())
    info.dtype = str(floats.most_common(1)[0][0]).removeprefix('torch.') if floats else ''
    info.arch, info.pyramid, info.family = arch_of(body), pyramid_of(body), family_of(body)
    info.relative_position, info.relative_window = relative_of(body)
    if info.arch:
        info.layer_scale = any(name.endswith('.gamma_1') for name in body)
    positions = next((body[name] for name in ('pos_embed', 'absolute_pos_embed') if name in body), None)
    info.positions = positions.shape[1] if positions is not None and positions.ndim == 3 else 0
    return info


def is_our_pyramid(name: str) -> bool:
    """Whether a name is one of a pyramid's in our layout."""
    return name.startswith(_OUR_PYRAMID)


def part_of(name: str) -> str:
    """The part of the network that a name in our layout belongs to: stem, stages, main, pyramid, or other."""
    if name.startswith(('pos_embed', 'patch_embed.')):
        return 'stem'
    if name.startswith(('stage1.', 'stage2.', 'merge1.', 'merge2.')):
        return 'stages'
    if name.startswith(('blocks.', 'norm.')):
        return 'main'
    return 'pyramid' if is_our_pyramid(name) else 'other'


def _unwrap(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    for key in _WRAPPERS:
        inner = checkpoint.get(key)
        if isinstance(inner, Mapping) and inner:
            state, wrappers = _unwrap(inner)
            return state, (key, *wrappers)
    state = {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if not state:
        keys = ', '.join(map(str, list(checkpoint)[:5])) or 'nothing'
        raise ValueError(f'no weights by name: the file holds {keys}; save model.state_dict()')
    return state, ()


def _strip(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Strip what DataParallel, torch.compile and Lightning put before every name."""
    found = []
    for prefix in ('module.', '_orig_mod.', 'model.', 'module.'):
        with_it = sum(name.startswith(prefix) for name in state)
        # An averaged model's counter has no prefix; below a real submodule of that name there is only a part.
        if with_it > len(state) // 2:
            state = {name.removeprefix(prefix): value for name, value in state.items()}
            found.append(prefix)
    return state, tuple(found)


def _split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Backbone and pyramid under their own names, and the rest."""
    if not any(name.startswith(('backbone.', 'neck.')) for name in state):
        return dict(state), {}
    body, rest = {}, {}
    for name, value in state.items():
        inner = name.removeprefix('backbone.').removeprefix('neck.')
        if name.startswith('backbone.') or (name.startswith('neck.') and is_our_pyramid(inner)):
            body[inner] = value
        else:
            rest[name] = value
    return body, rest


def _layout(body: Mapping[str, Tensor]) -> str:
    merges = any(re.fullmatch(r'blocks\.\d+\.reduction\.weight', name) for name in body)
    if any(name in body for name in ('merge1.reduction.weight', 'stage1.0.norm.weight', 'align8.weight')):
        return OURS
    swiglu = merges and any(name.endswith('.mlp.w1.weight') for name in body)
    if swiglu or ('blocks.0.mlp.ffn_ln.weight' in body and 'blocks.0.attn.proj.weight' not in body):
        return FAST_PRETRAIN if any(name.startswith(_AUTHORS_PYRAMID) for name in body) else FAST_FINETUNED
    names = set(_tops(body))
    if 'lm_cls_head' in names or (merges and 'blocks.0.gamma_2' in body):
        return ITPN_CLIP
    if 'decoder_pred' in names or (merges and 'absolute_pos_embed' in names):
        return ITPN_PIXEL
    return FAST_PRETRAIN if 'lm_head' in names and merges else FOREIGN


def _tops(state: Iterable[str]) -> dict[str, int]:
    return Counter(name.split('.', 1)[0] for name in state)


def _top_level(state: Iterable[str]) -> str:
    tops = [f'{top}. ({count})' for top, count in _tops(state).items()]
    return ', '.join(tops[:8]) + (', ...' if len(tops) > 8 else '')
