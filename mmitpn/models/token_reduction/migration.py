"""Token migration: drop the most redundant tokens of the main stage, put them back for the pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .scores import SCORES, best_match
from .tokens import TokenSet, take

# Added to the scores of those that may go: more than any two scores, which are cosines, differ by.
_CANDIDATES = 4.0


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
    """Fewer tokens from some blocks of the main stage on, and all of them again for its last blocks.

    A subclass defines :meth:`reduce`.

    Args:
        depth: Blocks of the main stage.
        at: The blocks before which tokens are taken away; None: a sixth of the way, block 2 at the earliest.
        keep_ratio: Share of the tokens present that stay, at each of ``at``.
        test_keep_ratio: The share while not training; None: the same.
        whole_blocks: So many blocks at the end work on all tokens again; 0: they are back after the last attention.
            None: 1, or 0 where tokens are taken away before the last block.
    """

    def __init__(
        self,
        depth: int,
        *,
        at: Sequence[int] | None = None,
        keep_ratio: float = 0.5,
        test_keep_ratio: float | None = None,
        whole_blocks: int | None = None,
    ) -> None:
        super().__init__()
        given = None if at is None else check_blocks(at, depth, 'at')
        if whole_blocks is None:
            whole_blocks = int(depth > 1 and not (given and given[-1] == depth - 1))
        elif isinstance(whole_blocks, bool) or not isinstance(whole_blocks, int) or not 0 <= whole_blocks < depth:
            raise ValueError(f'whole_blocks is {whole_blocks!r}; allowed: 0 to {depth - 1} of the {depth} blocks')
        self.back_at = depth - whole_blocks
        self.at = (min(max(round(depth / 6), 2), self.back_at - 1),) if given is None else given
        if self.at and self.at[-1] >= self.back_at:
            raise ValueError(
                f'at is {self.at}, but all tokens are back before block {self.back_at} (whole_blocks={whole_blocks});'
                f' allowed: 0 to {self.back_at - 1}'
            )
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

    Before each block of ``at`` the most redundant tokens of every window are put aside; before the last block they
    return to their places: that block attends with all of them, and the norm and the pyramid work on all. A dropped
    token *follows* the kept token that it was most like: that one counts for it in the softmax meanwhile (proportional
    attention, ToMe), and it returns changed by as much as that one was changed. Without this (``follow=False``) it is
    forgotten meanwhile and returns as it went, a stranger among tokens many blocks further. It has no parameters: any
    released checkpoint runs with it.

    Args:
        depth: Blocks of the main stage.
        score: What redundant means, a name of ``SCORES``.
        rounds: Tokens are dropped in so many steps, scored anew among those that are left; in every other step only
            those on the white places of a checkerboard may go, in the others those on the black ones, so that no token
            goes because of one that goes too. 1: all at once, wherever they lie.
        follow: Whether dropped tokens follow kept ones.
        **ratios: See :class:`TokenReducer`.
    """

    def __init__(
        self, depth: int, *, score: str = 'bipartite', rounds: int = 2, follow: bool = True, **ratios: object
    ) -> None:
        super().__init__(depth, **ratios)
        if score not in SCORES:
            raise ValueError(f'unknown score {score!r}; allowed: {", ".join(map(repr, SCORES))}')
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f'rounds is {rounds!r}; allowed: whole numbers from 1')
        self.score = score
        self.rounds = rounds
        self.follow = follow

    def reduce(self, tokens: TokenSet, _block: nn.Module, keep: int) -> TokenSet:
        """Keep the ``keep`` least redundant tokens of every window."""
        features = unit_features(tokens)
        kept, dropped = split_by_redundancy(tokens, features, keep, score=self.score, rounds=self.rounds)
        return tokens.select(kept, dropped, leader=nearest(tokens, features, kept, dropped) if self.follow else None)


@torch.no_grad()
def unit_features(tokens: TokenSet) -> Tensor:
    """The tokens in fp32, of length 1: what redundancy and likeness are judged by."""
    return F.normalize(tokens.x.float(), dim=-1)


@torch.no_grad()
def split_by_redundancy(
    tokens: TokenSet, features: Tensor, keep: int, *, score: str, rounds: int
) -> tuple[Tensor, Tensor]:
    """Which tokens stay and which go.

    Args:
        tokens: The tokens; padding goes before anything else.
        features: Of :func:`unit_features`.
        keep: Tokens of every window that stay.
        score: A name of ``SCORES``.
        rounds: See :class:`TokenMigration`.

    Returns:
        Positions of the ``keep`` least redundant tokens of every window and of the others, both ascending.
    """
    places, grid = tokens.places(), tokens.grid
    count = int(places.shape[-1])
    left, gone = torch.arange(count, device=places.device).expand_as(places), []
    for step in range(rounds):
        before, after = int(left.shape[-1]), count - round((count - keep) * (step + 1) / rounds)
        if after == before:
            continue
        at, present = places.gather(-1, left), features if before == count else take(features, left)
        found = SCORES[score](present, at, grid)
        if rounds > 1:
            found = found + _CANDIDATES * ((at // grid.wide + at % grid.wide + step) % 2 == 0)
        if tokens.weight is not None:
            found = found.masked_fill(tokens.weights().gather(-1, left) == 0, float('inf'))
        order = found.topk(before, largest=False).indices  # a sort that ONNX has too
        gone.append(left.gather(-1, order[..., after:]))
        left = left.gather(-1, order[..., :after].sort(-1).values)
    return left, torch.cat(gone, -1).sort(-1).values


@torch.no_grad()
def nearest(tokens: TokenSet, features: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """For each dropped token the number of the kept token that is most like it; never padding."""
    queries, keys = take(features, dropped), take(features, kept)
    if tokens.weight is not None:  # one more channel makes padding unlike everything
        padding = tokens.weights().gather(-1, kept) == 0
        keys = torch.cat((keys, torch.where(padding, -4.0, 0.0).unsqueeze(-1)), -1)
        queries = F.pad(queries, (0, 1), value=1.0)
    return best_match(queries, keys)[1]
