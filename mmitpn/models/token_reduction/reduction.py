"""The main stage with token migration or token gathering: its blocks, run on fewer tokens and in windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmitpn.config_types import type_name

from ..layers import maybe_checkpoint, plain_sizes
from .gathering import GatheringAttention, ProportionalAttention, TokenGathering
from .migration import REDUCERS, BaseTokenReducer
from .windows import WindowedTokens, WindowPartition


class TokenReduction(nn.Module):
    """Windows, gathering tokens and fewer tokens for the blocks of a main stage.

    Args:
        depth: Blocks of the main stage.
        migration: ``token_migration`` of the backbone: ``type`` (a name of ``REDUCERS``) and its arguments.
        gathering: ``token_gathering`` of the backbone: the arguments of :class:`TokenGathering`.

    Raises:
        TypeError: If one of the two is neither a dict nor None, or has an unknown argument.
        ValueError: If ``type`` is no name of ``REDUCERS``, or an argument is outside what is allowed.
    """

    def __init__(self, depth: int, *, migration: Mapping | None, gathering: Mapping | None) -> None:
        super().__init__()
        self.depth = depth
        self.gathering = None if gathering is None else TokenGathering(depth, **_options(gathering))
        self.migration: BaseTokenReducer | None = None
        if migration is not None:
            options = _options(migration)
            kind = type_name(options.pop('type', 'TokenMigration'))
            if kind not in REDUCERS:
                raise ValueError(f'token_migration has the type {kind!r}; allowed: {", ".join(map(repr, REDUCERS))}')
            self.migration = REDUCERS[kind](depth, **options)
        # Called before every block with its index, its tokens and how they attend; for visualization.
        self.observer: Callable[[int, WindowedTokens, ProportionalAttention | GatheringAttention], None] | None = None

    def forward(
        self, blocks: Sequence[nn.Module], x: Tensor, *, last_block: int, out_blocks: Sequence[int], recompute: bool
    ) -> list[Tensor]:
        """Run the blocks. Dropped tokens are put back as ``whole_blocks`` of :class:`BaseTokenReducer` says.

        Args:
            blocks: The main stage: blocks whose attention is :class:`WindowedAttention`.
            x: Its input with the position embedding, ``(B, H, W, C)``.
            last_block: Index of the last block that is run.
            out_blocks: Blocks whose output is wanted, ascending. Dropped tokens are put back in it, as they are then.
            recompute: Compute every block again in the backward pass.

        Returns:
            The outputs of ``out_blocks``, then that of ``last_block``: ``(B, H, W, C)``, all tokens where they were.
        """
        height, width = plain_sizes(x.shape[1:3])
        grid = WindowPartition(height, width) if self.gathering is None else self.gathering.windows(height, width)
        tokens = WindowedTokens.of(x, grid)
        attends: dict[bool, Any] = {}  # windowed or not -> how the present tokens attend
        outs = []
        for i, block in zip(range(last_block + 1), blocks, strict=False):
            if tokens.unmerge and i == self.migration.restore_at:
                tokens = tokens.restore_all()
                attends.clear()
            if self.migration is not None and i in self.migration.at:
                tokens = self._reduce(tokens, block, attends)
            windowed = grid.num_windows > 1 and i not in self.gathering.global_blocks
            if windowed not in attends:
                attends[windowed] = self.gathering.attention(tokens) if windowed else ProportionalAttention(tokens)
            attend = attends[windowed]
            if self.observer is not None:
                self.observer(i, tokens, attend)
            if tokens.unmerge and i == self.depth - 1:
                # After the last attention every token is on its own, beginning with this block's second half.
                tokens = tokens.update(maybe_checkpoint(block.forward_attn, tokens.x, attend, recompute=recompute))
                out = maybe_checkpoint(block.forward_mlp, tokens.restore(), recompute=recompute)
            else:
                tokens = tokens.update(maybe_checkpoint(block, tokens.x, attend, recompute=recompute))
                out = tokens.restore() if i in out_blocks or i == last_block else None
            if i in out_blocks:
                outs.append(out)
        return [*outs, out]

    def _reduce(self, tokens: WindowedTokens, block: nn.Module, attends: dict[bool, Any]) -> WindowedTokens:
        """Fewer tokens; a function of its own, so that all of them can be freed."""
        fewer = self.migration(tokens, block)
        if fewer is not tokens:
            attends.clear()
        return fewer


def _options(given: Mapping) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f'token_migration and token_gathering take a dict of settings, not {given!r}')
    return dict(given)
