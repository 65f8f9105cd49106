"""The two ways the weights start: for fine-tuning heads on top, and for learning from nothing."""

from __future__ import annotations

import math

from torch import nn

from .attention import Attention

WEIGHT_INITS = ('trunc_normal', 'xavier')


def check_weight_init(weight_init: str) -> str:
    """Return the name of an initialisation or raise ValueError."""
    if weight_init not in WEIGHT_INITS:
        raise ValueError(f'weight_init is {weight_init!r}; allowed: {", ".join(WEIGHT_INITS)}')
    return weight_init


def initialize_weights(root: nn.Module, *, weight_init: str, sub_ln_depth: int | None = None) -> None:
    """Initialise every linear, convolution and norm layer below ``root`` in place; biases start at 0, norms at 1.

    Args:
        root: Module to initialise.
        weight_init: ``'trunc_normal'``: standard deviation 0.02. ``'xavier'``: Xavier-normal, the authors' choice for
            pre-training, with the value and output projections and the MLPs scaled by ``sqrt(ln(2 * sub_ln_depth))``
            as sub-LN asks (read off the released code).
        sub_ln_depth: Transformer blocks of the main stage, for that scale; None (the pyramid, no sub-LN) scales
            nothing.
    """
    check_weight_init(weight_init)
    gain = 1.0 if sub_ln_depth is None else math.sqrt(math.log(2 * sub_ln_depth))
    for name, module in root.named_modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if weight_init == 'trunc_normal':
                nn.init.trunc_normal_(module.weight, std=0.02)
                continue
            scaled = '.mlp.' in f'.{name}.' or name.endswith('attn.proj')
            nn.init.xavier_normal_(module.weight.flatten(1), gain=gain if scaled else 1.0)
    for module in root.modules():
        if isinstance(module, Attention):
            nn.init.zeros_(module.q_bias)
            nn.init.zeros_(module.v_bias)
            if weight_init == 'xavier':  # the three projections start as three matrices
                query, key, value = module.qkv.weight.chunk(3)
                nn.init.xavier_normal_(query)
                nn.init.xavier_normal_(key)
                nn.init.xavier_normal_(value, gain=gain)
