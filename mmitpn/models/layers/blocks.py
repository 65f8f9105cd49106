"""The two residual blocks that everything is stacked from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from .mlp import Mlp
from .norm import layer_norm
from .parts import run_in_parts


class PointwiseBlock(nn.Module):
    """Attention-free residual block: ``x + gamma * Mlp(norm(x))`` at every position for itself.

    Args:
        dim: Channels.
        hidden: Hidden channels of the MLP.
        sub_norm: LayerNorm on the hidden channels.
        layer_scale: Initial value of ``gamma``; None leaves it out.
        drop_path: Probability of skipping the branch for a sample while training.
    """

    def __init__(
        self, dim: int, hidden: int, *, sub_norm: bool, layer_scale: float | None = None, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.mlp = Mlp(dim, hidden, sub_norm=sub_norm)
        self.drop_path = StochasticDepth(drop_path, 'row')
        self.gamma = _layer_scale(dim, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ..., dim)`` to ``(B, ..., dim)``."""
        # Stochastic depth skips whole samples, not rows of a part.
        return self._whole(x) if self.training else run_in_parts(self._whole, x, self.mlp.hidden)

    def _whole(self, x: Tensor) -> Tensor:
        return _add(x, self.drop_path(self.mlp(self.norm(x))), self.gamma)


class TransformerBlock(nn.Module):
    """Pre-norm transformer block of the main stage, with layer scale.

    Args:
        dim: Channels.
        attn: The attention, from and to the block's own shape.
        mlp: The feed-forward network.
        layer_scale: Initial value of ``gamma_1`` and ``gamma_2``; None leaves them out.
        drop_path: Probability of skipping a branch for a sample while training.
    """

    def __init__(
        self, dim: int, attn: nn.Module, mlp: nn.Module, *, layer_scale: float | None = 0.1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = attn
        self.norm2 = layer_norm(dim)
        self.mlp = mlp
        self.drop_path = StochasticDepth(drop_path, 'row')
        self.gamma_1 = _layer_scale(dim, layer_scale)
        self.gamma_2 = _layer_scale(dim, layer_scale)

    def forward(self, x: Tensor, *attend: Callable) -> Tensor:
        """``(B, ..., dim)`` to ``(B, ..., dim)``; ``attend`` is handed to the attention."""
        return self.feed(self.mix(x, *attend))

    def mix(self, x: Tensor, *attend: Callable) -> Tensor:
        """The first half: what tokens take in from each other."""
        return _add(x, self.drop_path(self.attn(self.norm1(x), *attend)), self.gamma_1)

    def feed(self, x: Tensor) -> Tensor:
        """The second half: every token for itself."""
        return self._feed(x) if self.training else run_in_parts(self._feed, x, self.mlp.hidden)

    def _feed(self, x: Tensor) -> Tensor:
        return _add(x, self.drop_path(self.mlp(self.norm2(x))), self.gamma_2)


def _layer_scale(dim: int, value: float | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(torch.full((dim,), float(value)))


def _add(x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
    return x + branch if gamma is None else torch.addcmul(x, gamma, branch)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, *, recompute: bool) -> Tensor:
    """Run blocks one after the other.

    Args:
        blocks: Modules that keep the shape.
        x: Their input.
        recompute: Keep only the input of every block for the backward pass and compute the rest again there.

    Returns:
        The last block's output.
    """
    for block in blocks:
        x = run_block(block, x, recompute=recompute)
    return x


def run_block(block: Callable[..., Tensor], x: Tensor, *more: Any, recompute: bool) -> Tensor:
    """Run one block, or a part of one, as :func:`run_blocks` does, with more arguments."""
    return (
        checkpoint(block, x, *more, use_reentrant=False) if recompute and torch.is_grad_enabled() else block(x, *more)
    )
