"""Semantic tokens with recovery, to compare migration with."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from .migration import TokenReducer
from .windows import TokenSet


class SemanticTokens(TokenReducer):
    """STViT-R (arXiv 2303.08685): a few semantic tokens a window stand for it, and the full grid is recovered.

    Each semantic token starts as the mean of a cell of its window and takes in the window by attention; the blocks then
    work on semantic tokens only. At the end every token of the grid takes in the semantic tokens by attention. The
    paper trains layers for both; here both are the attention of the block at hand, without new parameters, so that it
    can be compared on the same weights: our adaptation.

    Args:
        depth: Blocks of the main stage.
        **ratios: See :class:`TokenReducer`. Only one place in ``at``.
    """

    def __init__(self, depth: int, **ratios: object) -> None:
        super().__init__(depth, **ratios)
        if len(self.at) != 1:
            raise ValueError(f'at is {self.at}; semantic tokens are made once: give one block')

    def reduce(self, tokens: TokenSet, block: nn.Module, keep: int) -> TokenSet:
        """About ``keep`` semantic tokens for every window."""
        cut = tokens.grid.cut(keep, exact=False)
        cell, middles = tokens.grid.cells(cut, tokens.x.device), tokens.grid.middles(cut, tokens.x.device)
        weights = tokens.weights()
        size = weights.new_zeros(*weights.shape[:2], len(middles)).index_add(2, cell, weights)
        seeds = tokens.x.new_zeros(*size.shape, tokens.x.shape[-1]).index_add(2, cell, tokens.x * weights.unsqueeze(-1))
        seeds = seeds / size.clamp(min=1).unsqueeze(-1)
        seeds = seeds + _cross(block, seeds, tokens.x, weights)
        undo = lambda x: tokens.x + _cross(block, tokens.x, x, size)  # noqa: E731 - one line says it
        return replace(tokens, x=seeds, weight=size, place=middles.expand(size.shape), undo=(*tokens.undo, undo))


def _cross(block: nn.Module, query: Tensor, source: Tensor, weights: Tensor) -> Tensor:
    """The attention branch of a block, window by window, from one set of tokens to another."""
    attention = block.attn
    windows, dim = query.shape[1], query.shape[-1]
    heads = attention.num_heads
    bias = weights.log().flatten(0, 1)[:, None, None]

    def project(x: Tensor, part: int, offset: Tensor | None) -> Tensor:
        weight = attention.qkv.weight[part * dim : (part + 1) * dim]
        return F.linear(block.norm1(x), weight, offset).flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        project(query, 0, attention.q_bias), project(source, 1, None), project(source, 2, attention.v_bias), bias
    )
    mixed = attention.proj(mixed.transpose(1, 2).flatten(2)).unflatten(0, (-1, windows))
    return mixed if block.gamma_1 is None else block.gamma_1 * mixed
