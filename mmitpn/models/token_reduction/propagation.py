"""Graph-based token propagation, to compare migration with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from .migration import TokenMigration, split_by_redundancy, unit_features
from .windows import TokenSet, take


class TokenPropagation(TokenMigration):
    """GTP-ViT (arXiv 2311.03035): what is dropped is first handed on to those that stay, along a graph.

    The graph joins every dropped token with the tokens around it and with those most like it; kept tokens take in
    ``alpha`` times the sum of their dropped neighbours, each divided by its number of neighbours, and count in the
    softmax as much more. The paper selects by the attention map, which fused attention never makes: here selection is
    migration's. That dropped tokens return to their places is ours too; the paper classifies and needs them no more.

    Args:
        depth: Blocks of the main stage.
        alpha: Share of a dropped token that is handed on.
        neighbours: Most similar kept tokens that each dropped token is joined with.
        score: See :class:`TokenMigration`.
        **ratios: See :class:`TokenReducer`.
    """

    def __init__(
        self, depth: int, *, alpha: float = 0.1, neighbours: int = 8, score: str = 'neighborhood', **ratios: object
    ) -> None:
        super().__init__(depth, score=score, rounds=1, follow=False, **ratios)
        if not 0 <= alpha <= 1:
            raise ValueError(f'alpha is {alpha!r}; allowed: 0 to 1')
        if isinstance(neighbours, bool) or not isinstance(neighbours, int) or neighbours < 1:
            raise ValueError(f'neighbours is {neighbours!r}; allowed: whole numbers from 1')
        self.alpha = alpha
        self.neighbours = neighbours

    def reduce(self, tokens: TokenSet, _block: nn.Module, keep: int) -> TokenSet:
        """Hand on and put aside all but ``keep`` tokens of every window."""
        features = unit_features(tokens)
        kept, dropped = split_by_redundancy(tokens, features, keep, score=self.score, rounds=self.rounds)
        reduced = tokens.select(kept, dropped)
        graph = self._graph(tokens, features, kept, dropped)
        weights = tokens.weights()
        given = weights.gather(-1, dropped).unsqueeze(-1)  # padding hands nothing on
        x = reduced.x + self.alpha * (graph @ (take(tokens.x, dropped) * (given > 0)))
        size = reduced.weights() + self.alpha * (graph @ given).squeeze(-1)
        return replace(reduced, x=x, weight=size * (reduced.weights() > 0))

    @torch.no_grad()
    def _graph(self, tokens: TokenSet, features: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
        """Shares ``(B, windows, kept, dropped)``; each column sums to 1."""
        similar = take(features, kept) @ take(features, dropped).transpose(-1, -2)
        nearest = similar.topk(min(self.neighbours, kept.shape[-1]), dim=2).indices
        joined = torch.zeros_like(similar).scatter_(2, nearest, 1.0)
        places, wide = tokens.places(), tokens.grid.wide
        row, column = (
            (part.gather(-1, kept).unsqueeze(-1) - part.gather(-1, dropped).unsqueeze(-2)).abs_()
            for part in (places // wide, places % wide)
        )
        joined = joined.masked_fill_((row <= 1) & (column <= 1), 1.0)
        return (joined / joined.sum(2, keepdim=True)).to(tokens.x.dtype)
