"""Norm, feed-forward networks, residual blocks, their initialization, and activation checkpointing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

WEIGHT_INITS = ('trunc_normal', 'xavier')

# Matrix products are up to a third faster where rows have a multiple of this many values: 682 hidden channels, those of
# the pyramid, are computed as 688, of which the last 6 are zero (and GELU leaves zero alone).
_ALIGNMENT = 16

NormLayer = Callable[[int], nn.Module]


class LayerNorm(nn.LayerNorm):
    """LayerNorm that takes bf16 as it is under autocast.

    On a GPU, autocast casts to fp32 before a norm, and the linear layer after it casts back: these casts took as long
    as the norms (docs/gpu.md). The kernel sums in fp32 in either case. On a CPU, autocast leaves norms alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to the same shape."""
        device = x.device.type
        if x.dtype is not torch.bfloat16 or device == 'cpu' or not torch.is_autocast_enabled(device):
            return super().forward(x)
        with torch.autocast(device, enabled=False):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def layer_norm(dim: int) -> LayerNorm:
    """LayerNorm over the last (channel) dimension with Fast-iTPN's epsilon, as in the released code.

    The original iTPN uses PyTorch's own default in detection and segmentation: it passes :class:`LayerNorm`.
    """
    return LayerNorm(dim, eps=1e-6)


# --- feed-forward networks -----------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """Two linear layers with GELU between them.

    Args:
        dim: Channels in and out.
        hidden: Channels between the two layers.
        sub_norm: Whether a LayerNorm follows the GELU (sub-LN): stages 1 and 2 of Fast-iTPN have it, iTPN and the
            pyramid have not.
        norm_layer: Makes that LayerNorm.
    """

    def __init__(self, dim: int, hidden: int, *, sub_norm: bool, norm_layer: NormLayer = layer_norm) -> None:
        super().__init__()
        self.hidden = hidden
        self.fc1 = nn.Linear(dim, hidden)
        self.ffn_ln = norm_layer(hidden) if sub_norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)
        self._padding = 0 if sub_norm else -hidden % _ALIGNMENT

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        if not self._padding:
            return self.fc2(self.ffn_ln(F.gelu(self.fc1(x))))
        x = F.linear(x, F.pad(self.fc1.weight, (0, 0, 0, self._padding)), F.pad(self.fc1.bias, (0, self._padding)))
        return F.linear(F.gelu(x), F.pad(self.fc2.weight, (0, self._padding)), self.fc2.bias)

    def sub_ln_layers(self) -> tuple[nn.Linear, ...]:
        """The linear layers whose initial weights sub-LN scales, see :func:`initialize_weights`."""
        return self.fc1, self.fc2


class SwiGLU(nn.Module):
    """``w3(LN(silu(w1 x) * w2 x))``, the feed-forward network of Fast-iTPN's main stage.

    Args:
        dim: Channels in and out.
        hidden: Channels of the two gates.
        norm_layer: Makes the LayerNorm.
    """

    def __init__(self, dim: int, hidden: int, *, norm_layer: NormLayer = layer_norm) -> None:
        super().__init__()
        self.hidden = hidden
        self.w1 = nn.Linear(dim, hidden)
        self.w2 = nn.Linear(dim, hidden)
        self.ffn_ln = norm_layer(hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        return self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))

    def sub_ln_layers(self) -> tuple[nn.Linear, ...]:
        """The linear layers whose initial weights sub-LN scales, see :func:`initialize_weights`."""
        return self.w1, self.w2, self.w3


# --- residual blocks -----------------------------------------------------------------------------------------------


class PointwiseBlock(nn.Module):
    """Attention-free residual block: ``x + gamma * Mlp(norm(x))`` at every position by itself.

    Args:
        dim: Channels.
        hidden: Hidden channels of the MLP.
        sub_norm: LayerNorm on the hidden channels.
        layer_scale: Initial value of ``gamma``; None leaves it out.
        drop_path: Probability of skipping the branch for a sample while training.
        norm_layer: Makes the LayerNorms.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        sub_norm: bool,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        norm_layer: NormLayer = layer_norm,
    ) -> None:
        super().__init__()
        self.norm = norm_layer(dim)
        self.mlp = Mlp(dim, hidden, sub_norm=sub_norm, norm_layer=norm_layer)
        self.drop_path = StochasticDepth(drop_path, 'row')
        self.gamma = _layer_scale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ..., dim)`` to ``(B, ..., dim)``."""
        return _add(x, self.drop_path(self.mlp(self.norm(x))), self.gamma)


class TransformerBlock(nn.Module):
    """Pre-norm transformer block of the main stage, with layer scale.

    Args:
        dim: Channels.
        attn: The attention, from and to the block's own shape.
        mlp: The feed-forward network.
        layer_scale: Initial value of ``gamma_1`` and ``gamma_2``; None leaves them out.
        drop_path: Probability of skipping a branch for a sample while training.
        norm_layer: Makes the two LayerNorms.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp: nn.Module,
        *,
        layer_scale: float | None = 0.1,
        drop_path: float = 0.0,
        norm_layer: NormLayer = layer_norm,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = attn
        self.norm2 = norm_layer(dim)
        self.mlp = mlp
        self.drop_path = StochasticDepth(drop_path, 'row')
        self.gamma_1 = _layer_scale(dim, layer_scale)
        self.gamma_2 = _layer_scale(dim, layer_scale)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """``(B, ..., dim)`` to ``(B, ..., dim)``; ``context`` are further arguments of the attention."""
        return self.forward_mlp(self.forward_attn(x, *context))

    def forward_attn(self, x: Tensor, *context: Any) -> Tensor:
        """The first half, where tokens see each other."""
        return _add(x, self.drop_path(self.attn(self.norm1(x), *context)), self.gamma_1)

    def forward_mlp(self, x: Tensor) -> Tensor:
        """The second half, every token by itself."""
        return _add(x, self.drop_path(self.mlp(self.norm2(x))), self.gamma_2)


def _layer_scale(dim: int, value: float | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(torch.full((dim,), float(value)))


def _add(x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
    return x + branch if gamma is None else torch.addcmul(x, gamma, branch)


# --- activation checkpointing --------------------------------------------------------------------------------------


def maybe_checkpoint(layer: Callable[..., Any], *args: Any, recompute: bool, **kwargs: Any) -> Any:
    """Call a layer; with ``recompute``, keep only its inputs and compute it again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False, **kwargs)
    return layer(*args, **kwargs)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, *, recompute: bool) -> Tensor:
    """Run blocks that keep the shape, one after the other, each as :func:`maybe_checkpoint` does."""
    for block in blocks:
        x = maybe_checkpoint(block, x, recompute=recompute)
    return x


# --- initialization ------------------------------------------------------------------------------------------------


def check_weight_init(weight_init: str) -> str:
    """Return the name of an initialization or raise ValueError."""
    if weight_init not in WEIGHT_INITS:
        raise ValueError(f'weight_init is {weight_init!r}; allowed: {", ".join(WEIGHT_INITS)}')
    return weight_init


def initialize_weights(root: nn.Module, *, weight_init: str, sub_ln_depth: int | None = None) -> None:
    """Initialize every linear, convolution and norm layer below ``root`` in place; biases start at 0, norms at 1.

    A layer that sub-LN scales names its linear layers by ``sub_ln_layers()``; one that starts in a way of its own
    defines ``reset_projections(weight_init, gain)``, which is called last.

    Args:
        root: Module to initialize.
        weight_init: ``'trunc_normal'``: standard deviation 0.02. ``'xavier'``: Xavier-normal, the authors' choice for
            pre-training, with the value and output projections and the MLPs scaled by ``sqrt(ln(2 * sub_ln_depth))``
            as sub-LN asks (read off the released code).
        sub_ln_depth: Transformer blocks of the main stage, for that scale; None (the pyramid, no sub-LN) scales
            nothing.
    """
    check_weight_init(weight_init)
    gain = 1.0 if sub_ln_depth is None else math.sqrt(math.log(2 * sub_ln_depth))
    modules = list(root.modules())
    scaled = {layer for module in modules if hasattr(module, 'sub_ln_layers') for layer in module.sub_ln_layers()}
    for module in modules:
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if weight_init == 'trunc_normal':
                nn.init.trunc_normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_normal_(module.weight.flatten(1), gain=gain if module in scaled else 1.0)
    for module in modules:
        if hasattr(module, 'reset_projections'):
            module.reset_projections(weight_init, gain)
