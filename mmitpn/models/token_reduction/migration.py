"""Token migration: drop the most redundant tokens of the main stage, put them back for the pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .scores import SCORES, best_match
from .tokens import TokenSet, take


def check_keep_ratio(value: float, name: str = 'keep_ratio') -> float:
    """A share of tokens, more than 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f'{name} is {value!r}; allowed: more than 0, up to 1 (the share of the tokens that stay)')
    return float(value)


def check_blocks(value: Sequence[int], depth: int, name: str) -> tuple[int, ...]:
    """Blocks of the main stage, ascending."""
    blocks = tuple(value)
    if any(isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < depth for block in blocks):
        raise ValueError(f'{name} is {blocks}; allowed: blocks of the main stage, 0 to {depth - 1}')
    if list(blocks) != sorted(set(blocks)):
        raise ValueError(f'{name} is {blocks}; give the blocks ascending and each once')
    return blocks


class TokenReducer(nn.Module):
    """Fewer tokens from some blocks of the main stage on, and all of them again after the last.

    A subclass defines :meth:`reduce`.

    Args:
        depth: Blocks of the main stage.
        at: The blocks before which tokens are taken away; None: one quarter of the way.
        keep_ratio: Share of the tokens present that stay, at each of ``at``.
        test_keep_ratio: The share while not training; None: the same.
    """

    def __init__(
        self,
        depth: int,
        *,
        at: Sequence[int] | None = None,
        keep_ratio: float = 0.5,
        test_keep_ratio: float | None = None,
    ) -> None:
        super().__init__()
        self.at = (depth // 4,) if at is None else check_blocks(at, depth, 'at')
        self.keep_ratio = check_keep_ratio(keep_ratio)
        self.test_keep_ratio = (
            self.keep_ratio if test_keep_ratio is None else check_keep_ratio(test_keep_ratio, 'test_keep_ratio')
        )

    @property
    def ratio(self) -> float:
        """The share that stays, in the present mode."""
        return self.keep_ratio if self.training else self.test_keep_ratio

    def forward(self, tokens: TokenSet, block: nn.Module) -> TokenSet:
        """Take tokens away before ``block``; at least one a window stays."""
        count = int(tokens.x.shape[2])  # a number also where a tracer gives a tensor
        keep = max(1, round(self.ratio * count))
        return tokens if keep == count else self.reduce(tokens, block, keep)

    def reduce(self, tokens: TokenSet, block: nn.Module, keep: int) -> TokenSet:
        """Keep ``keep`` tokens of every window."""
        raise NotImplementedError


class TokenMigration(TokenReducer):
    """Migration (arXiv 2211.12735, 3.2; the paper names the idea only: all else is our reading).

    Before each block of ``at`` the most redundant tokens of every window are put aside; after the last block they
    return to their places, for the pyramid, which has no attention and works on every position for itself. A dropped
    token *follows* the kept token that it was most like: it returns changed by as much as that one was changed since.
    Without this (``follow=False``) it returns as it went, a stranger among tokens that are many blocks further.
    It has no parameters: any released checkpoint runs with it.

    Args:
        depth: Blocks of the main stage.
        score: What redundant means, a name of ``SCORES``.
        follow: Whether dropped tokens follow kept ones.
        **ratios: See :class:`TokenReducer`.
    """

    def __init__(self, depth: int, *, score: str = 'bipartite', follow: bool = True, **ratios: object) -> None:
        super().__init__(depth, **ratios)
        if score not in SCORES:
            raise ValueError(f'unknown score {score!r}; allowed: {", ".join(map(repr, SCORES))}')
        self.score = score
        self.follow = follow

    def reduce(self, tokens: TokenSet, _block: nn.Module, keep: int) -> TokenSet:
        """Keep the ``keep`` least redundant tokens of every window."""
        features = unit_features(tokens)
        kept, dropped = split_by_redundancy(redundancy(tokens, features, self.score), keep)
        return tokens.select(kept, dropped, leader=nearest(features, kept, dropped) if self.follow else None)


@torch.no_grad()
def unit_features(tokens: TokenSet) -> Tensor:
    """The tokens in fp32, of length 1: what redundancy and likeness are judged by."""
    return F.normalize(tokens.x.float(), dim=-1)


@torch.no_grad()
def redundancy(tokens: TokenSet, features: Tensor, score: str) -> Tensor:
    """Redundancy of every token, ``(B, windows, m)`` in fp32; padding is more redundant than anything."""
    found = SCORES[score](features, tokens.places(), tokens.grid)
    if tokens.weight is not None:
        found = found.masked_fill(tokens.weight == 0, float('inf'))
    return found


@torch.no_grad()
def nearest(features: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """For each dropped token the number of the kept token that is most like it."""
    return best_match(take(features, dropped), take(features, kept))[1]


def split_by_redundancy(found: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Positions of the ``keep`` least redundant tokens and of the others, both ascending."""
    order = found.topk(int(found.shape[-1]), largest=False).indices  # a sort that ONNX has too
    return order[..., :keep].sort(-1).values, order[..., keep:].sort(-1).values
