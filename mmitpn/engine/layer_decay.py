"""Layer-wise learning-rate decay; the backbone's ``get_layer_depth`` (mmpretrain's convention) gives the layers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm, _InstanceNorm
from torch import nn

from mmitpn.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmitpn.tables import format_table

NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
# Parameters of more than one dimension that hold positions or tokens, by the last part of their name.
POSITIONS = re.compile(r'(^|_)(pos(ition)?_embed(ding|s)?|(cls|mask)_token|relative_position_bias_table|rel_pos_[hw])$')

DEFAULTS: dict[str, Any] = {
    'decay_rate': None,
    'neck_lr_mult': None,
    'norm_decay_mult': 0.0,
    'bias_decay_mult': 0.0,
    'flat_decay_mult': 0.0,
    'pos_decay_mult': 0.0,
    'embedding_decay_mult': 1.0,
    'custom_keys': {},
}
# Keys of the frameworks' constructors that users bring along, and what to do about them.
HINTS = {
    'layer_decay_rate': "call it 'decay_rate'",
    'num_layers': 'leave it out: the number of layers is asked from the backbone',
    'decay_type': 'leave it out: the kind of decay is always by layer',
}
# What torch.compile, activation checkpointing and FSDP put into parameter names.
WRAPPED = re.compile(r'(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.')


@dataclass
class _Group:
    """Parameters with the same scale and weight decay."""

    part: str
    layer_id: int
    scale: float
    decay: float | None
    names: list[str] = field(default_factory=list)
    params: list[nn.Parameter] = field(default_factory=list)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Build the optimizer of any model whose backbone has ``get_layer_depth``, with a learning rate falling by layer.

    The learning rate of a backbone parameter is ``lr * decay_rate ** (num_layers - 1 - layer_id)``, with both numbers
    from ``backbone.get_layer_depth(name)``, so the last block is exactly one step below the head, whose scale is 1.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper, with an ``optimizer`` that has an ``lr``.
        paramwise_cfg: Settings:

            - ``decay_rate`` (required): the step between two layers, in (0, 1]; 1 is no decay.
            - ``neck_lr_mult``: scale of the neck; ``None`` is the backbone's top rate, which is 1.
            - ``norm_decay_mult``, ``bias_decay_mult``, ``flat_decay_mult``: factors of the weight decay for
              normalization layers, for biases (``q_bias`` and ``v_bias`` included) and for the other one-dimensional
              parameters (layer scale). Default 0, as in every ViT recipe.
            - ``pos_decay_mult``: the same for position embeddings and class and mask tokens. Default 0.
            - ``embedding_decay_mult``: the same for ``nn.Embedding`` weights (queries, level embeddings). Default 1,
              as in DINO; Mask2Former uses 0.
            - ``custom_keys``: a dict from a part of a parameter's name to ``dict(lr_mult=..., decay_mult=...)``; the
              longest key in a name applies. ``lr_mult`` multiplies the layer's scale; ``decay_mult`` replaces
              the rules above, which apply where it is not given.

    Raises:
        ValueError: On an unknown setting, a ``decay_rate`` outside (0, 1], a model without a backbone that has
            ``get_layer_depth``, a ``get_layer_depth`` that does not know its backbone's names, or a trainable
            parameter that is in no group or in two.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        if paramwise_cfg is not None and not isinstance(paramwise_cfg, Mapping):
            raise TypeError(
                f'paramwise_cfg is a {type(paramwise_cfg).__name__}; allowed: a dict with at least decay_rate'
            )
        given = dict(paramwise_cfg or {})
        for name in given:
            if name not in DEFAULTS:
                todo = HINTS.get(name, 'correct or remove it')
                raise ValueError(
                    f'paramwise_cfg has an unknown setting {name!r}; allowed: {", ".join(DEFAULTS)}; {todo}'
                )
        super().__init__(optim_wrapper_cfg, {**DEFAULTS, **given})

    def _validate_cfg(self) -> None:
        """Check the settings when they are read, long before the model is built."""
        rate = self.paramwise_cfg['decay_rate']
        if not _is_number(rate) or not 0 < rate <= 1:
            raise ValueError(
                f'paramwise_cfg.decay_rate is {rate!r}; allowed: a number above 0 and up to 1, for example 0.9'
            )
        if not _is_number(self.base_lr):
            raise ValueError(f'optimizer.lr is {self.base_lr!r}; layer decay scales it, so give the optimizer a number')
        for name in DEFAULTS:
            value = self.paramwise_cfg[name]
            valid = (_is_number(value) and value >= 0) or (name, value) == ('neck_lr_mult', None)
            if name.endswith('_mult') and not valid:
                raise ValueError(f'paramwise_cfg.{name} is {value!r}; allowed: a number from 0 up')
        keys = self.paramwise_cfg['custom_keys']
        if not isinstance(keys, Mapping):
            raise TypeError(f'paramwise_cfg.custom_keys is a {type(keys).__name__}; allowed: a dict of dicts')
        for key, setting in keys.items():
            unknown = set(setting) - {'lr_mult', 'decay_mult'} if isinstance(setting, Mapping) else {str(setting)}
            if unknown:
                raise ValueError(
                    f'paramwise_cfg.custom_keys[{key!r}] has {sorted(unknown)};'
                    ' allowed: dict(lr_mult=..., decay_mult=...)'
                )

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '') -> None:
        """Append the parameter groups of a complete model to ``params``, and log them once.

        Args:
            params: The list to extend, as mmengine's constructor passes it.
            module: The model, unwrapped.
            prefix: Part of mmengine's signature; the names given to ``custom_keys`` start with it.
        """
        groups = self._group(module, prefix)
        for group in groups:
            entry = {'params': group.params, 'lr': self.base_lr * group.scale}
            if group.decay is not None:
                entry['weight_decay'] = group.decay
            params.append({**entry, 'lr_scale': group.scale, 'layer_id': group.layer_id, 'part': group.part})
        print_log(self._table(groups), logger='current')

    def _group(self, model: nn.Module, prefix: str) -> list[_Group]:
        """Put every trainable parameter of ``model`` into exactly one group, the deepest layers first."""
        backbones = _find_backbones(model)
        necks = tuple(f'{name.rpartition("backbone")[0]}neck.' for name in backbones)
        groups: dict[tuple, _Group] = {}
        owner: dict[nn.Parameter, tuple[tuple, str]] = {}
        top = 0
        used: set[str] = set()
        depths = {name: set() for name in backbones}
        for name, module, param in _named_parameters(model):
            if not param.requires_grad:
                continue
            custom = self._custom_key(f'{prefix}{name}')
            used.add(custom)
            backbone = next((b for b in backbones if name.startswith(f'{b}.')), None)
            if backbone is not None:
                layer_id, num_layers = _layer_depth(backbones[backbone], name[len(backbone) + 1 :])
                depths[backbone].add(layer_id)
                top = max(top, num_layers - 1)
                part, scale = 'backbone', self.paramwise_cfg['decay_rate'] ** (num_layers - 1 - layer_id)
            elif name.startswith(necks):
                neck_mult = self.paramwise_cfg['neck_lr_mult']
                part, layer_id, scale = 'neck', -1, 1.0 if neck_mult is None else float(neck_mult)
            else:
                part, layer_id, scale = 'head', -1, 1.0
            scale *= self.paramwise_cfg['custom_keys'].get(custom, {}).get('lr_mult', 1.0)
            key = (part, layer_id, scale, self._weight_decay(name, module, param, custom))
            if param in owner:  # a shared parameter has several names, which must agree
                if owner[param][0] != key:
                    raise ValueError(
                        f'{owner[param][1]!r} and {name!r} share one parameter, but belong to two groups:'
                        f' {owner[param][0]} and {key} (part, layer, scale, weight decay); make the two agree'
                        ' by custom_keys, or do not share the parameter'
                    )
                continue
            owner[param] = (key, name)
            group = groups.setdefault(key, _Group(*key))
            group.names.append(name)
            group.params.append(param)
        for backbone, seen in depths.items():
            _check_depths(backbones[backbone], backbone, seen)
        _check_partition(model, groups.values())
        for unused in set(self.paramwise_cfg['custom_keys']) - used:
            print_log(
                f'custom_keys[{unused!r}] fits the name of no trainable parameter', 'current', level=logging.WARNING
            )
        order = {'backbone': 0, 'neck': 1, 'head': 2}
        for group in groups.values():
            group.layer_id = top if group.layer_id < 0 else group.layer_id
        return sorted(groups.values(), key=lambda g: (order[g.part], g.layer_id, g.decay or 0.0, g.scale))

    def _custom_key(self, name: str) -> str:
        """Return the longest custom key in a parameter's name, the first by alphabet among equals, or ''."""
        fitting = sorted(key for key in self.paramwise_cfg['custom_keys'] if key in name)
        return max(fitting, key=len, default='')

    def _weight_decay(self, name: str, module: nn.Module, param: nn.Parameter, custom: str) -> float | None:
        """Return the weight decay of a parameter, or None where the optimizer has none."""
        if self.base_wd is None:
            return None
        cfg = self.paramwise_cfg
        leaf = name.rpartition('.')[2]
        if 'decay_mult' in cfg['custom_keys'].get(custom, {}):
            return self.base_wd * cfg['custom_keys'][custom]['decay_mult']
        if isinstance(module, NORMS):
            return self.base_wd * cfg['norm_decay_mult']
        if leaf.endswith('bias'):
            return self.base_wd * cfg['bias_decay_mult']
        if POSITIONS.search(leaf):
            return self.base_wd * cfg['pos_decay_mult']
        if param.ndim <= 1:
            return self.base_wd * cfg['flat_decay_mult']
        if isinstance(module, nn.Embedding):
            return self.base_wd * cfg['embedding_decay_mult']
        return self.base_wd

    def _table(self, groups: list[_Group]) -> str:
        """Return the groups as a table: one line each."""
        rows = [
            (
                group.part,
                group.layer_id if group.part == 'backbone' else '-',
                f'{group.scale:.4g}',
                f'{self.base_lr * group.scale:.3g}',
                '-' if group.decay is None else f'{group.decay:.3g}',
                len(group.params),
                f'{sum(param.numel() for param in group.params):,}',
            )
            for group in groups
        ]
        table = format_table(('part', 'layer', 'scale', 'lr', 'wd', 'tensors', 'parameters'), rows)
        return f'Layer decay {self.paramwise_cfg["decay_rate"]:g}: {len(groups)} parameter groups\n{table}'


def _find_backbones(model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules called ``backbone`` by full name: the model's own, or those of models inside of it.

    Raises a ValueError if there is none, or one that trains lacks ``get_layer_depth``.
    """
    found: dict[str, nn.Module] = {}
    without: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        if name.rpartition('.')[2] == 'backbone' and not any(name.startswith(f'{outer}.') for outer in found):
            if callable(getattr(module, 'get_layer_depth', None)):
                found[WRAPPED.sub('', name)] = module
            elif any(param.requires_grad for param in module.parameters()):
                without.append((name, type(module).__name__))
    # A backbone may wrap another one that knows the depths of its own parameters.
    without = [f'{name} ({kind})' for name, kind in without if not any(inner.startswith(f'{name}.') for inner in found)]
    if without:
        raise ValueError(
            f'layer decay asks the backbone how deep its parameters lie, but {", ".join(without)} has no'
            " get_layer_depth; use a backbone that has it (mmitpn's, or mmpretrain's transformers), or mmengine's"
            ' default constructor'
        )
    if not found:
        children = ', '.join(name for name, _ in model.named_children()) or 'nothing'
        raise ValueError(
            f"layer decay found no part called 'backbone' in {type(model).__name__} (it has {children});"
            ' use it on a detector, segmentor or classifier, or remove constructor from optim_wrapper'
        )
    return found


def _named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Yield the name, module and parameter of all parameters, a shared one under each of its names."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, param in module.named_parameters(prefix, recurse=False, remove_duplicate=False):
            yield WRAPPED.sub('', leaf), module, param


def _layer_depth(backbone: nn.Module, name: str) -> tuple[int, int]:
    """Ask a backbone for the layer of a parameter, 0 being the stem, and the number of layers; check the answer."""
    layer_id, num_layers = backbone.get_layer_depth(name)
    if not 0 <= layer_id < num_layers:
        raise ValueError(
            f'{type(backbone).__name__}.get_layer_depth({name!r}) returned layer {layer_id} of {num_layers},'
            f' so the parameter is in no group; allowed: 0 to {num_layers - 1}'
        )
    return layer_id, num_layers


def _check_depths(backbone: nn.Module, name: str, seen: set[int]) -> None:
    """Refuse a ``get_layer_depth`` that does not know the names of its own blocks (mmpretrain's HiViT).

    Then no parameter lies between the first and the last layer although there are more than two. ``seen`` are the
    layers of the trainable parameters; an entirely frozen backbone is not checked.
    """
    probe = {_layer_depth(backbone, WRAPPED.sub('', key)) for key, _ in backbone.named_parameters()}
    inner = {layer for layer, num_layers in probe if 0 < layer < num_layers - 1}
    if seen and not inner and any(num_layers > 2 for _, num_layers in probe):
        raise ValueError(
            f'{type(backbone).__name__}.get_layer_depth puts no parameter of {name} between the first and last'
            ' layer: it does not know the names of its blocks, and layer decay would do nothing; correct it or use'
            ' another backbone'
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_partition(model: nn.Module, groups: Iterable[_Group]) -> None:
    """Refuse to train with a parameter that the optimizer does not have, or has twice."""
    placed = [param for group in groups for param in group.params]
    trainable = {param: name for name, param in model.named_parameters() if param.requires_grad}
    distinct = set(placed)
    missing = [name for param, name in trainable.items() if param not in distinct]
    if missing or len(placed) != len(trainable):
        raise ValueError(
            f'{len(missing)} of {len(trainable)} trainable parameters are in no group ({", ".join(missing[:3])}),'
            f' {len(placed) - len(distinct)} in two; this is a mistake of layer decay, please report it'
        )
