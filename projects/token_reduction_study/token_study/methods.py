"""The compared methods as token reducers (ToMe, prune-then-merge, GTP-ViT, STViT-R), three simple scores, their names.

They are registered as users register their own, so that ``token_migration=dict(type='TokenMerging')`` and
``token_migration=dict(score='mean')`` are found.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmitpn.models.token_reduction import (
    SCORES,
    BaseTokenReducer,
    TokenMigration,
    WindowedTokens,
    WindowPartition,
    gather_tokens,
    register_reducer,
    register_score,
)

# name -> (type of token_migration or None, whether token_gathering is on), in the order of the tables
METHODS: dict[str, tuple[str | None, bool]] = {
    'global': (None, False),
    'gathering': (None, True),
    'migration': ('TokenMigration', False),
    'gathering+migration': ('TokenMigration', True),
    'gathering+ToMe': ('TokenMerging', True),
    'gathering+GTP': ('TokenPropagation', True),
    'gathering+STViT-R': ('SemanticTokens', True),
}
OWN_METHODS = ('global', 'gathering', 'migration', 'gathering+migration')
"""The methods that need nothing but the package."""


def drops_tokens(method: str) -> bool:
    """Whether a method has a fraction of tokens to keep."""
    return METHODS[method][0] is not None


def backbone_settings(method: str, *, keep_ratio: float = 0.5, **gathering: Any) -> dict[str, Any]:
    """Arguments of ``FastITPN`` for a method.

    Args:
        method: A name of ``METHODS``.
        keep_ratio: Fraction of the tokens that stay, where the method drops some.
        **gathering: Settings of token gathering, where the method has it.

    Raises:
        ValueError: If there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f'unknown method {method!r}; allowed: {", ".join(map(repr, METHODS))}')
    kind, gathers = METHODS[method]
    settings: dict[str, Any] = {}
    if kind is not None:
        settings['token_migration'] = {'type': kind, 'keep_ratio': keep_ratio}
    if gathers:
        settings['token_gathering'] = gathering
    return settings


@register_reducer
class TokenMerging(BaseTokenReducer):
    """ToMe (arXiv 2210.09461), also the pooling half of PPT (arXiv 2310.01812), with the tokens unmerged at the end.

    Every second token of a window may merge into the most similar of the others, judged by their keys; the most similar
    pairs merge first. A merged token is the mean of the tokens that it stands for and counts as many times in the
    softmax. For the pyramid each position gets the token that stands for it, as in ToMe for Stable Diffusion
    (arXiv 2303.17604). Merging within windows is our interpretation.

    Args:
        depth: Blocks of the main stage.
        **ratios: See :class:`BaseTokenReducer`.
    """

    def reduce(self, tokens: WindowedTokens, block: nn.Module, keep: int) -> WindowedTokens:
        """Merge until ``keep`` tokens per window are left: at most half of them at a time."""
        while (count := tokens.x.shape[2]) > keep:
            tokens = _merge(tokens, _keys(tokens.x, block), min(count - keep, count // 2))
        return tokens


@torch.no_grad()
def _keys(x: Tensor, block: nn.Module) -> Tensor:
    """Keys of the block that follows, averaged over its heads, of length 1: ``(B, windows, m, d)``."""
    dim = x.shape[-1]
    weight = block.attn.qkv.weight[dim : 2 * dim].view(block.attn.num_heads, -1, dim).mean(0)
    return F.normalize(F.linear(block.norm1(x), weight).float(), dim=-1)


def _merge(tokens: WindowedTokens, keys: Tensor, number: int) -> WindowedTokens:
    """Merge ``number`` tokens of every window into others."""
    weights = tokens.weights()
    count = int(tokens.x.shape[2])
    first, second = torch.arange(0, count, 2, device=keys.device), torch.arange(1, count, 2, device=keys.device)
    similarity, partner = (keys[:, :, first] @ keys[:, :, second].transpose(-1, -2)).max(-1)
    similarity = similarity.masked_fill(weights[:, :, first] == 0, float('inf'))  # padding merges first
    order = similarity.topk(int(similarity.shape[-1])).indices
    merged, alone = order[..., :number], order[..., number:].sort(-1).values
    partner = partner.gather(-1, merged)
    # The new tokens: those of the first half that stay alone, then the second half.
    x, size = tokens.x * weights.unsqueeze(-1), weights
    x_second, size_second = x[:, :, second], size[:, :, second]
    merged_index, alone_index = merged * 2, alone * 2
    x_second = x_second.scatter_add(
        2, partner.unsqueeze(-1).expand(*partner.shape, x.shape[-1]), gather_tokens(x, merged_index)
    )
    size_second = size_second.scatter_add(2, partner, size.gather(2, merged_index))
    x_second = x_second / size_second.clamp(min=1).unsqueeze(-1)
    positions = tokens.positions()
    target = torch.empty_like(positions)  # present token -> new token that stands for it
    target.scatter_(2, alone_index, torch.arange(alone.shape[-1], device=target.device).expand_as(alone))
    target.scatter_(2, merged_index, partner + alone.shape[-1])
    target[:, :, second] = torch.arange(alone.shape[-1], alone.shape[-1] + len(second), device=target.device)
    return replace(
        tokens,
        x=torch.cat((gather_tokens(tokens.x, alone_index), x_second), 2),
        weight=torch.cat((size.gather(2, alone_index), size_second), 2),
        index=torch.cat((positions.gather(2, alone_index), positions[:, :, second]), 2),
        unmerge=(*tokens.unmerge, lambda x: gather_tokens(x, target)),
    )


@register_reducer
class PruneThenMerge(TokenMerging):
    """Prune the least attended tokens, then merge the most similar of those that are left, down to the same number.

    PPT (arXiv 2310.01812) prunes by the attention of the class token in some blocks and pools as ToMe does in others;
    Prune and Merge (arXiv 2503.23455) does both before a block, with trained matrices, and brings pruned tokens back by
    a shortcut for segmentation. Ours needs no class token and no training, which is our interpretation: before one
    block a fraction of the tokens to remove is pruned and the rest merged (:class:`TokenMerging`). The importance of a
    token is the attention of the block at hand that it receives from the mean query of its window, averaged over the
    heads. For the pyramid pruned tokens return unchanged, and merged ones as the token that stands for them.

    Args:
        depth: Blocks of the main stage.
        pruned: Fraction of the removed tokens that are pruned; the others are merged.
        **ratios: See :class:`BaseTokenReducer`.
    """

    def __init__(self, depth: int, *, pruned: float = 0.5, **ratios: object) -> None:
        super().__init__(depth, **ratios)
        if isinstance(pruned, bool) or not isinstance(pruned, (int, float)) or not 0 <= pruned <= 1:
            raise ValueError(f'pruned is {pruned!r}; allowed: 0 (all are merged) to 1 (all are pruned)')
        self.pruned = pruned

    def reduce(self, tokens: WindowedTokens, block: nn.Module, keep: int) -> WindowedTokens:
        """Prune and merge until ``keep`` tokens per window are left."""
        count = int(tokens.x.shape[2])
        stay = count - round(self.pruned * (count - keep))
        if stay < count:
            order = _importance(tokens, block).topk(count).indices
            tokens = tokens.select(order[..., :stay].sort(-1).values, order[..., stay:].sort(-1).values)
        return super().reduce(tokens, block, keep)


@torch.no_grad()
def _importance(tokens: WindowedTokens, block: nn.Module) -> Tensor:
    """Attention that each token receives from its window's mean query, ``(B, windows, m)``; padding is below all."""
    attention, dim = block.attn, tokens.x.shape[-1]
    weights = tokens.weights().float()
    x = block.norm1(tokens.x)
    mean = (x * weights.unsqueeze(-1).to(x.dtype)).sum(2, keepdim=True) / weights.sum(-1).clamp(min=1)[..., None, None]
    query = F.linear(mean.to(x.dtype), attention.qkv.weight[:dim], attention.q_bias)
    key = F.linear(x, attention.qkv.weight[dim : 2 * dim])
    query, key = (part.float().unflatten(-1, (attention.num_heads, -1)) for part in (query, key))
    scores = (query * key).sum(-1) / query.shape[-1] ** 0.5 + weights.log().unsqueeze(-1)  # B, windows, m, heads
    return scores.softmax(2).mean(-1).masked_fill(weights == 0, -1.0)


@register_reducer
class TokenPropagation(TokenMigration):
    """GTP-ViT (arXiv 2311.03035): dropped tokens are first propagated to the kept ones, along a graph.

    The graph joins every dropped token with the tokens around it and with those most similar to it. A kept token
    receives ``alpha`` times the sum of its dropped neighbors, each divided by its number of neighbors, and counts in
    the softmax by as much more. The paper selects by the attention map, which fused attention never computes: here
    tokens are selected by a score of token migration, all at once. That dropped tokens are restored is our
    interpretation; the paper classifies and needs them no more.

    Args:
        depth: Blocks of the main stage.
        alpha: Fraction of a dropped token that is propagated.
        neighbours: Number of most similar kept tokens that each dropped token is joined with.
        score: See :class:`TokenMigration`.
        **ratios: See :class:`BaseTokenReducer`.
    """

    def __init__(
        self, depth: int, *, alpha: float = 0.1, neighbours: int = 8, score: str = 'neighborhood', **ratios: object
    ) -> None:
        super().__init__(depth, score=score, rounds=1, follow=False, **ratios)
        if not 0 <= alpha <= 1:
            raise ValueError(f'alpha is {alpha!r}; allowed: 0 to 1')
        if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 1:
            raise ValueError(f'neighbours is {neighbours!r}; allowed: integers from 1')
        self.alpha = alpha
        self.neighbours = neighbours

    def reduce(self, tokens: WindowedTokens, _block: nn.Module, keep: int) -> WindowedTokens:
        """Propagate and drop all but ``keep`` tokens of every window."""
        features = F.normalize(tokens.x.detach().float(), dim=-1)
        kept, dropped = self._split(tokens, features, keep)
        reduced = tokens.select(kept, dropped)
        graph = self._graph(tokens, features, kept, dropped)
        weight = tokens.weights().gather(-1, dropped).unsqueeze(-1)  # padding, of weight 0, is not propagated
        x = reduced.x + self.alpha * (graph @ (gather_tokens(tokens.x, dropped) * (weight > 0)))
        size = reduced.weights() + self.alpha * (graph @ weight).squeeze(-1)
        return replace(reduced, x=x, weight=size * (reduced.weights() > 0))

    @torch.no_grad()
    def _split(self, tokens: WindowedTokens, features: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Indices ``(B, windows, ...)`` of the kept and of the dropped tokens, both ascending; padding goes first."""
        redundancy = SCORES[self.score](features, tokens.positions(), tokens.grid)
        redundancy = redundancy.masked_fill(tokens.weights() == 0, float('inf'))
        order = redundancy.topk(int(redundancy.shape[-1]), largest=False).indices  # a sort that ONNX has too
        return order[..., :keep].sort(-1).values, order[..., keep:].sort(-1).values

    @torch.no_grad()
    def _graph(self, tokens: WindowedTokens, features: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
        """Weights of the edges, ``(B, windows, kept, dropped)``; each column sums to 1."""
        similarity = gather_tokens(features, kept) @ gather_tokens(features, dropped).transpose(-1, -2)
        nearest = similarity.topk(min(self.neighbours, kept.shape[-1]), dim=2).indices
        joined = torch.zeros_like(similarity).scatter_(2, nearest, 1.0)
        positions, width = tokens.positions(), tokens.grid.window_w
        row_distance, column_distance = (
            (position.gather(-1, kept).unsqueeze(-1) - position.gather(-1, dropped).unsqueeze(-2)).abs_()
            for position in (positions // width, positions % width)
        )
        joined = joined.masked_fill_((row_distance <= 1) & (column_distance <= 1), 1.0)
        return (joined / joined.sum(2, keepdim=True)).to(tokens.x.dtype)


@register_reducer
class SemanticTokens(BaseTokenReducer):
    """STViT-R (arXiv 2303.08685): a few semantic tokens per window stand for it, and the full grid is recovered.

    Each semantic token starts as the mean of a cell of its window and attends to the window; the blocks then work on
    semantic tokens only. At the end every token of the grid attends to the semantic tokens. The paper trains layers for
    both; here both use the attention of the block at hand, without new parameters, so that the method runs with the
    same weights: our interpretation.

    Args:
        depth: Blocks of the main stage.
        **ratios: See :class:`BaseTokenReducer`; ``at`` has one block only.
    """

    def __init__(self, depth: int, **ratios: object) -> None:
        super().__init__(depth, **ratios)
        if len(self.at) != 1:
            raise ValueError(f'at is {self.at}; semantic tokens are made once: give one block')

    def reduce(self, tokens: WindowedTokens, block: nn.Module, keep: int) -> WindowedTokens:
        """About ``keep`` semantic tokens for every window."""
        cut = tokens.grid.cut(keep, exact=False)
        cell, middles = tokens.grid.cells(cut, tokens.x.device), tokens.grid.middles(cut, tokens.x.device)
        weights = tokens.weights()
        size = weights.new_zeros(*weights.shape[:2], len(middles)).index_add(2, cell, weights)
        seeds = tokens.x.new_zeros(*size.shape, tokens.x.shape[-1]).index_add(2, cell, tokens.x * weights.unsqueeze(-1))
        seeds = seeds / size.clamp(min=1).unsqueeze(-1)
        seeds = seeds + _cross_attention(block, seeds, tokens.x, weights)

        def recover(x: Tensor) -> Tensor:
            return tokens.x + _cross_attention(block, tokens.x, x, size)

        return replace(
            tokens, x=seeds, weight=size, index=middles.expand(size.shape), unmerge=(*tokens.unmerge, recover)
        )


def _cross_attention(block: nn.Module, query: Tensor, source: Tensor, weights: Tensor) -> Tensor:
    """The attention branch of a block, window by window, from ``query`` ``(B, windows, m, C)`` to ``source``."""
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


@register_score('mean')
def mean_similarity(features: Tensor, _positions: Tensor, _grid: WindowPartition) -> Tensor:
    """Cosine similarity to the mean of the window's tokens."""
    return (features * F.normalize(features.mean(2, keepdim=True), dim=-1)).sum(-1)


@register_score('checkerboard')
def checkerboard(features: Tensor, positions: Tensor, grid: WindowPartition) -> Tensor:
    """Every second token, whatever it shows."""
    return ((positions // grid.window_w + positions % grid.window_w) % 2).to(features.dtype)


@register_score('random')
def random_score(features: Tensor, positions: Tensor, _grid: WindowPartition) -> Tensor:
    """Random tokens, others at every call."""
    return torch.rand(positions.shape, device=features.device)
