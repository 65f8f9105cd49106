"""Token migration: drop the most redundant tokens of the main stage, put them back for the pyramid.

``REDUCERS`` and ``SCORES`` are open registries: methods of others and other scores register themselves in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmitpn.utils import is_int

from ..layers import is_dynamic, plain_sizes
from .gathering import check_blocks
from .windows import WindowedTokens, WindowPartition, gather_tokens

# Added to the scores of the tokens that may be dropped in a round: more than any two scores differ by.
_CANDIDATES = 4.0
# Bytes of similarities that are computed at once, and parts of them in a graph for windows of any size.
_BUDGET = 8 * 2**20
_DYNAMIC_PARTS = 8


# --- what every reduction shares ------------------------------------------------------------------------------------


def check_keep_ratio(value: float, name: str = 'keep_ratio') -> float:
    """Return a fraction of tokens, more than 0, or raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f'{name} is {value!r}; allowed: more than 0, up to 1 (the fraction of the tokens that stay)')
    return float(value)


class BaseTokenReducer(nn.Module):
    """Fewer tokens from some blocks of the main stage on, and all of them again for its last blocks.

    A subclass defines :meth:`reduce`.

    Args:
        depth: Blocks of the main stage.
        at: The blocks before which tokens are taken away: indices from 0, or from -1 backwards, ascending. None: one
            block, ``round(depth / 6)`` but at least 2, such as block 4 of 24.
        keep_ratio: Fraction of the present tokens that stay, at each of ``at``: more than 0, at most 1.
        test_keep_ratio: The same fraction in evaluation mode; None: ``keep_ratio``.
        whole_blocks: Number of blocks at the end that work on all tokens again; 0: all tokens are back after the
            attention of the last block. None: 1, or 0 where tokens are taken away before the last block.

    Raises:
        ValueError: If an argument is outside what is allowed; the message says what is.
        TypeError: If ``at`` is no sequence.
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
        elif not is_int(whole_blocks) or not 0 <= whole_blocks < depth:
            raise ValueError(f'whole_blocks is {whole_blocks!r}; allowed: 0 to {depth - 1} of the {depth} blocks')
        self.restore_at = depth - whole_blocks
        self.at = (min(max(round(depth / 6), 2), self.restore_at - 1),) if given is None else given
        if self.at and self.at[-1] >= self.restore_at:
            raise ValueError(
                f'at is {self.at}, but all tokens are back before block {self.restore_at}'
                f' (whole_blocks={whole_blocks}); allowed: 0 to {self.restore_at - 1}'
            )
        self.keep_ratio = check_keep_ratio(keep_ratio)
        self.test_keep_ratio = (
            self.keep_ratio if test_keep_ratio is None else check_keep_ratio(test_keep_ratio, 'test_keep_ratio')
        )

    @property
    def ratio(self) -> float:
        """The fraction that stays, in the present mode."""
        return self.keep_ratio if self.training else self.test_keep_ratio

    def forward(self, tokens: WindowedTokens, block: nn.Module) -> WindowedTokens:
        """Take tokens away before ``block``; at least one per window stays."""
        (count,) = plain_sizes(tokens.x.shape[2:3])
        keep = max(1, round(self.ratio * count))
        return tokens if keep == count else self.reduce(tokens, block, keep)

    def reduce(self, tokens: WindowedTokens, block: nn.Module, keep: int) -> WindowedTokens:
        """Keep ``keep`` tokens of every window; subclasses define this.

        Args:
            tokens: The present tokens.
            block: The block that comes next.
            keep: Number of tokens of every window that stay: at least 1, and fewer than are present.

        Returns:
            The tokens that stay, as :meth:`WindowedTokens.select` gives them: it also notes how the others come back.
        """
        raise NotImplementedError


REDUCERS: dict[str, type[BaseTokenReducer]] = {}
"""Methods by the ``type`` of ``token_migration``: ``TokenMigration`` and those of :func:`register_reducer`."""


def register_reducer(cls: type[BaseTokenReducer]) -> type[BaseTokenReducer]:
    """Make a reducer available as ``token_migration=dict(type=NAME)``, by the name of its class.

    The backbone builds it by ``cls(depth, **settings)``, where the settings are all other entries of the dict.

    Args:
        cls: A subclass of :class:`BaseTokenReducer`.

    Returns:
        The class itself, so that this can be used as a decorator.

    Raises:
        ValueError: If the name is taken.
    """
    if cls.__name__ in REDUCERS:
        raise ValueError(f'a token reducer named {cls.__name__!r} is registered already; choose another name')
    REDUCERS[cls.__name__] = cls
    return cls


# --- migration -------------------------------------------------------------------------------------------------------


@register_reducer
class TokenMigration(BaseTokenReducer):
    """Migration (arXiv 2211.12735, 3.2; the paper only names the idea: all else is our interpretation).

    Before each block of ``at`` the most redundant tokens of every window are put aside. Before the last block they
    return to where they were: that block attends with all of them, and the norm and the pyramid work on all. A dropped
    token receives the update of the kept token that it was most similar to; meanwhile that one counts for both in the
    softmax (proportional attention, ToMe). With ``follow=False`` a dropped token is restored unchanged. Migration has
    no parameters: any released checkpoint runs with it.

    Args:
        depth: Blocks of the main stage.
        score: The measure of redundancy, a name of ``SCORES``.
        rounds: Number of rounds in which tokens are dropped; the tokens that are left are scored again in each. Rounds
            alternate between the two colors of a checkerboard, so that no token is dropped for its similarity to one
            that is dropped too. 1: all at once, of both colors.
        follow: Whether dropped tokens receive the updates of kept ones.
        **ratios: ``at``, ``keep_ratio``, ``test_keep_ratio`` and ``whole_blocks``, see :class:`BaseTokenReducer`.

    Raises:
        ValueError: If an argument is outside what is allowed; the message says what is.
    """

    def __init__(
        self, depth: int, *, score: str = 'bipartite', rounds: int = 2, follow: bool = True, **ratios: object
    ) -> None:
        super().__init__(depth, **ratios)
        if score not in SCORES:
            raise ValueError(f'unknown score {score!r}; allowed: {", ".join(map(repr, SCORES))}')
        if not is_int(rounds) or rounds < 1:
            raise ValueError(f'rounds is {rounds!r}; allowed: integers from 1')
        self.score = score
        self.rounds = rounds
        self.follow = follow

    def reduce(self, tokens: WindowedTokens, _block: nn.Module, keep: int) -> WindowedTokens:
        """Keep the ``keep`` least redundant tokens of every window."""
        features = unit_features(tokens)
        kept, dropped = split_by_redundancy(tokens, features, keep, score=self.score, rounds=self.rounds)
        return tokens.select(
            kept, dropped, nearest_kept=nearest(tokens, features, kept, dropped) if self.follow else None
        )


@torch.no_grad()
def unit_features(tokens: WindowedTokens) -> Tensor:
    """The tokens in fp32, of length 1: what similarity is measured on."""
    return F.normalize(tokens.x.float(), dim=-1)


@torch.no_grad()
def split_by_redundancy(
    tokens: WindowedTokens, features: Tensor, keep: int, *, score: str, rounds: int
) -> tuple[Tensor, Tensor]:
    """Which tokens stay and which are dropped.

    Args:
        tokens: The tokens; padding is dropped before anything else.
        features: Of :func:`unit_features`.
        keep: Tokens of every window that stay.
        score: A name of ``SCORES``.
        rounds: See :class:`TokenMigration`.

    Returns:
        Indices of the ``keep`` least redundant tokens of every window and of the others, both ascending.
    """
    positions, grid = tokens.positions(), tokens.grid
    (count,) = plain_sizes(positions.shape[-1:])
    left, dropped = torch.arange(count, device=positions.device).expand_as(positions), []
    for step in range(rounds):
        (before,) = plain_sizes(left.shape[-1:])
        after = keep if step + 1 == rounds else count - round((count - keep) * (step + 1) / rounds)
        if after == before:
            continue
        at, present = positions.gather(-1, left), features if before == count else gather_tokens(features, left)
        found = SCORES[score](present, at, grid)
        if rounds > 1:
            found = found + _CANDIDATES * ((grid.diagonals(at) + step) % 2 == 0)
        if tokens.weight is not None:
            found = found.masked_fill(tokens.weights().gather(-1, left) == 0, float('inf'))
        order = found.topk(before, largest=False).indices  # a sort that ONNX has too
        dropped.append(left.gather(-1, order[..., after:]))
        left = left.gather(-1, order[..., :after].sort(-1).values)
    return left, torch.cat(dropped, -1).sort(-1).values


@torch.no_grad()
def nearest(tokens: WindowedTokens, features: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
    """For each dropped token the index of the most similar kept one, ``(B, windows, d)``; never padding."""
    queries, keys = gather_tokens(features, dropped), gather_tokens(features, kept)
    if tokens.weight is not None:  # one more channel makes padding dissimilar to everything
        padding = tokens.weights().gather(-1, kept) == 0
        keys = torch.cat((keys, torch.where(padding, -4.0, 0.0).unsqueeze(-1)), -1)
        queries = F.pad(queries, (0, 1), value=1.0)
    return best_match(queries, keys)[1]


# --- scores: how redundant a token is ---------------------------------------------------------------------------------

# features (B, W, m, C) of length 1, positions (B, W, m), windows -> redundancy (B, W, m), the higher the more
# redundant, in a range of at most 4
Score = Callable[[Tensor, Tensor, WindowPartition], Tensor]
SCORES: dict[str, Score] = {}
"""Scores of :class:`TokenMigration` by name: ``bipartite``, ``neighborhood`` and those of :func:`register_score`."""


def register_score(name: str) -> Callable[[Score], Score]:
    """Make a score available as ``token_migration=dict(score=name)``.

    The decorated function gets features ``(B, windows, m, C)`` of length 1 (:func:`unit_features`), positions
    ``(B, windows, m)`` in the full window, and the :class:`WindowPartition`. It returns the redundancy of each token,
    ``(B, windows, m)``: tokens with the highest values are dropped first. Any two values may differ by at most 4.

    Args:
        name: Its name in configs.

    Returns:
        The decorator, which returns the function.

    Raises:
        ValueError: If the name is taken.
    """

    def add(score: Score) -> Score:
        if name in SCORES:
            raise ValueError(f'a score named {name!r} is registered already; choose another name')
        SCORES[name] = score
        return score

    return add


@register_score('neighborhood')
def neighborhood_similarity(features: Tensor, positions: Tensor, grid: WindowPartition) -> Tensor:
    """Mean cosine similarity to the present tokens around it (3x3, inside the window)."""
    batch, windows, _, dim = features.shape
    canvas = features.new_zeros(batch, windows, grid.tokens_per_window, dim + 1)
    counted = F.pad(features, (0, 1), value=1.0)  # the last channel counts the present tokens
    canvas = canvas.scatter_(2, positions.unsqueeze(-1).expand_as(counted), counted)
    canvas = canvas.view(batch, windows, grid.window_h, grid.window_w, dim + 1)
    around = F.pad(canvas, (0, 0, 1, 1, 1, 1))
    around = around[:, :, :-2] + around[:, :, 1:-1] + around[:, :, 2:]
    around = around[..., :-2, :] + around[..., 1:-1, :] + around[..., 2:, :]
    around = around.view(batch, windows, grid.tokens_per_window, dim + 1)
    around = around.gather(2, positions.unsqueeze(-1).expand_as(counted))
    similar = (around[..., :dim] * features).sum(-1) - features.square().sum(-1)
    return similar / (around[..., dim] - 1).clamp(min=1)


@register_score('bipartite')
def bipartite_similarity(features: Tensor, positions: Tensor, grid: WindowPartition) -> Tensor:
    """Cosine similarity to the nearest token of the other half, as ToMe matches (arXiv 2210.09461).

    The halves are a checkerboard: every other position would give stripes in a window of even width.
    """
    white = grid.diagonals(positions) % 2 == 0
    # The halves are not equally large: one more channel keeps each from matching its own (+1 and -1, scaled).
    side = torch.where(white, 2.0, -2.0).unsqueeze(-1)
    best, _ = best_match(torch.cat((features, side), -1), torch.cat((features, -side), -1))
    return best - 4.0


def best_match(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The largest product of each query with a key, and which key it is.

    Args:
        queries: ``(B, W, q, C)``.
        keys: ``(B, W, k, C)``.

    Returns:
        Products and indices of the keys, both ``(B, W, q)``. Only a part of all products is in memory at once.
    """
    found = [(part @ keys.transpose(-1, -2)).max(-1) for part in _query_parts(queries, keys)]
    values, indices = (torch.cat(parts, 2)[:, :, : queries.shape[2]] for parts in zip(*found, strict=True))
    return values, indices


def _query_parts(queries: Tensor, keys: Tensor) -> Sequence[Tensor]:
    """Queries whose products with all keys are in memory at once, ``(B, W, ..., C)``; zeros follow dynamic ones."""
    *outer, keys_each, queries_each = plain_sizes((*keys.shape[:3], queries.shape[2]))
    if is_dynamic(queries_each):
        rows = queries_each // _DYNAMIC_PARTS + 1
        padded = F.pad(queries, (0, 0, 0, rows * _DYNAMIC_PARTS - queries_each))
        return padded.unflatten(2, (_DYNAMIC_PARTS, rows)).unbind(2)
    outer = prod([number for number in outer if not is_dynamic(number)])
    rows = max(1, _BUDGET // (4 * max(1, outer * keys_each)))
    return queries.split(min(rows, queries_each), 2)
